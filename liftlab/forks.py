"""Programs forked from a process that has imported what they need, so that they start at once.

That process starts no thread and computes nothing. For each program asked of it, it forks a keeper, which forks the
program and tells how it ended. The program itself, before it has a thread, forks a spare process for its kernel.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import IO, Any

PYTHON = [sys.executable, "-m"]  # how a command begins that can be a fork instead
LONGEST = 2**17  # bytes of a message
READY = b"+"  # said when all is imported

spare: Spare | None = None  # of this program, where it was forked
_left: int | None = None  # with which exit code this program has left


class Child:
    """A forked process, with what of `subprocess.Popen` its users ask for."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        """The exit code, negative where a signal ended it; None as long as it runs."""
        if self.returncode is None:
            ended, how = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(how) if ended else None
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.05)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Spare:
    """A process that does nothing until it becomes a program of its own; it ends with the one that forked it."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if not self._pid:
            self._channel.close()
            _become(theirs)
        theirs.close()

    def becomes(self, words: Sequence[str], stderr: IO[bytes] | None = None, **settings: Any) -> Child | None:
        """Have it run `words`, which begin with PYTHON, with `env` in `cwd`, as a child in a session of its own.

        None where it cannot: a command of another kind, or a process that is gone or was already used.
        """
        if list(words[:2]) != PYTHON:
            return None
        environment = settings["env"] | {"JPY_PARENT_PID": str(os.getpid())}
        said = json.dumps([words[2:], str(settings.get("cwd") or "."), environment]).encode()
        with suppress(OSError), self._channel:
            socket.send_fds(self._channel, [said], [stderr.fileno() if stderr else 2])
            return Child(self._pid)
        return None


def serve(end: int, modules: Sequence[str]) -> None:
    """Import `modules`, then fork a program for each message to the socket `end`; returns in a program, at its end.

    A program's message has its words after PYTHON and four files: to say how it ended, its stdin, stdout and stderr.
    """
    atexit.register(_end)  # before all others, and so called after them
    with socket.socket(fileno=end) as channel:
        _import(modules)
        if not _forkable():
            return
        gc.freeze()  # no program looks through what all of them share
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a keeper
        channel.send(READY)
        while True:
            said, files, *_ = socket.recv_fds(channel, LONGEST, 4)
            if not said:
                return
            if not os.fork():
                break
            for file in files:
                os.close(file)
    _keep(*files)
    global spare
    spare = Spare()
    _run(json.loads(said))


def _import(modules: Sequence[str]) -> None:
    """Import modules that will find themselves in a kernel, where they write and show what they find there."""
    with redirect_stderr(_Stderr()):
        for module in modules:
            importlib.import_module(module)
    import pandas as pd

    pd.set_option("display.max_columns", 20)  # pandas's own, but where it was imported outside of a kernel


def _forkable() -> bool:
    """Whether a fork of this process can do all: neither threads, a library's own among them, nor the driver of a GPU
    survive one. Arrow's allocator, jemalloc, starts its thread anew.
    """
    import torch

    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return len(threads) - threads.count("jemalloc_bg_thd") == 1 and not torch.cuda.is_available()


def _keep(told: int, *channels: int) -> None:
    """Fork; returns in the new process alone, the other one tells its number and, in the end, its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    program = os.fork()
    if not program:
        os.close(told)
        os.setsid()
        _connect(channels)
        return
    with suppress(OSError):  # nobody may listen any more
        os.write(told, b"%d\n" % program)
        _, how = os.waitpid(program, 0)
        os.write(told, b"%d\n" % os.waitstatus_to_exitcode(how))
    os._exit(0)


def _become(channel: socket.socket) -> None:
    """In a spare process: wait for what to run, and run it."""
    with channel:
        said, files, *_ = socket.recv_fds(channel, LONGEST, 1)
    if not said:
        os._exit(0)
    words, folder, environment = json.loads(said)
    os.setsid()
    _connect([os.open(os.devnull, os.O_RDONLY), os.dup(1), *files])
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    _run(words)


def _connect(channels: Sequence[int]) -> None:
    """Make files this process's stdin, stdout and stderr."""
    for place, file in enumerate(channels):
        os.dup2(file, place)
        os.close(file)


def _run(words: Sequence[str]) -> None:
    """As `python -m` does; ends this process."""
    global _left
    sys.argv = list(words)
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        sys.exit(0)
    except SystemExit as exit:
        _left = exit.code if isinstance(exit.code, int) else None
        raise


def _end() -> None:
    """End a program that has left, as the last of its exit functions: to take down what it shares costs a second."""
    if _left is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_left & 0xFF)


class _Stderr:
    """What sys.stderr is at the time: a logger set up before a kernel is there reports in its notebook."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.__stderr__ if sys.stderr is self else sys.stderr, name)
