"""The process that programs are forked from, seen from the run that starts it, waits for them and ends it."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from subprocess import DEVNULL, Popen, TimeoutExpired
from threading import Event, Lock
from typing import IO

from liftlab.forks import PYTHON, READY, Child

PATIENCE = 120.0  # seconds that the server has to import all; then programs start without it


class Program(Child):
    """A program that was forked from the server; `told` says how it ended, its stdin is open until it is closed here.

    One thread waits for it without a timeout; others may wait with one.
    """

    def __init__(self, pid: int, told: IO[bytes], stdin: IO[bytes]) -> None:
        super().__init__(pid)
        self.stdin, self._told, self._over = stdin, told, Event()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; TimeoutExpired after `timeout` seconds."""
        if timeout is not None and not self._over.wait(timeout):
            raise TimeoutExpired(PYTHON, timeout)
        if timeout is None:
            with self._told:
                self.returncode = int(self._told.readline() or -signal.SIGKILL)  # who waited for it was killed as well
            self._over.set()
        return self.returncode


class Server:
    """A process that has imported `modules`, in an `environment` that its programs inherit.

    It starts when it is first asked whether it is ready. Only Linux can have one, and only where there is no GPU.
    """

    def __init__(self, modules: Sequence[str], environment: dict[str, str]) -> None:
        self._modules, self._environment, self._lock = list(modules), environment, Lock()
        self._process: Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._told, self._works = Event(), False
        if sys.platform != "linux":
            self._told.set()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._channel is not None:
            self._channel.close()

    def ready(self) -> bool:
        """Whether it can fork programs: waits until it can, or never will."""
        with self._lock:
            first = self._process is None and not self._told.is_set()
            if first:
                self._start()
        if first:
            with suppress(OSError):
                self._channel.settimeout(PATIENCE)
                self._works = self._channel.recv(1) == READY
                self._channel.settimeout(None)
            if not self._works:
                self.stop()
            self._told.set()
        self._told.wait()
        return self._works

    def stop(self) -> None:
        """End it, not its programs; who waits for it is told."""
        with self._lock:
            if self._process is None:
                self._told.set()
            else:
                self._process.kill()
                self._process.wait()

    def program(self, words: Sequence[str], out: IO[bytes], err: IO[bytes]) -> Program | None:
        """Start `words`, which begin with PYTHON, in a session of their own; None where it could not."""
        (told, tell), (stdin, feed) = os.pipe(), os.pipe()
        ours, theirs = (os.fdopen(told, "rb"), os.fdopen(feed, "wb")), (tell, stdin)
        with suppress(OSError):
            said = json.dumps(list(words)[len(PYTHON) :]).encode()
            socket.send_fds(self._channel, [said], [*theirs, out.fileno(), err.fileno()])
        for file in theirs:
            os.close(file)
        if number := ours[0].readline():
            return Program(int(number), *ours)
        for file in ours:
            file.close()
        return None

    def _start(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            end = theirs.fileno()
            words = [sys.executable, "-c", f"from liftlab import forks; forks.serve({end}, {self._modules})"]
            silent = {"stdin": DEVNULL, "stdout": DEVNULL, "stderr": DEVNULL}
            self._process = Popen(words, **silent, env=self._environment, pass_fds=[end], start_new_session=True)
