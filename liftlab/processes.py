"""Processes of a run, which end when it does: in good order, by force, or because nobody is left to wait for them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from threading import Lock, Thread

from liftlab.fork_server import Program, Server
from liftlab.forks import PYTHON

GRACE = 30.0  # seconds that a stopped notebook has to shut its kernel down
KILLED = 1.0  # seconds within which the system ends a killed process; where nobody waits for it, it stays listed
INTERRUPTED_KERNEL = "[IPKernelApp] ERROR | KeyboardInterrupt caught in kernel.\n"  # how some end in good order


@dataclass(frozen=True)
class Outcome:
    """How one notebook's `liftlab run` ended (`code` is negative where a signal killed it), and what it printed."""

    code: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """Why it failed, in a line: the last thing that liftlab said, or else anyone."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        said = [line.removeprefix("liftlab: ") for line in lines if line.startswith("liftlab: ")]
        return (said or lines or [f"it ended with exit code {self.code} and said nothing"])[-1]


class Processes:
    """The processes that run, so that all of them can be stopped, whichever thread waits for them.

    What each one prints is kept in `folder`, which exists: NAME.out and NAME.err.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock, self._stopped = folder, Lock(), False
        self._running: set[Popen[bytes] | Program] = set()
        self._server: Server | None = None

    def execute(self, name: str, words: Sequence[str], environment: dict[str, str]) -> Outcome | None:
        """Run one to its end, None where all are stopped. A session of its own: a terminal's Ctrl-C is for us alone.

        Its stdin ends when we do, see `end_with_parent`.
        """
        server = self._server if self._server and list(words[:2]) == PYTHON and self._server.ready() else None
        out, err = (self._folder / f"{name}{tail}" for tail in (".out", ".err"))
        with out.open("ab") as stdout, err.open("ab") as stderr, self._lock:
            if self._stopped:
                return None
            channels = {"stdin": PIPE, "stdout": stdout, "stderr": stderr}
            process = server and server.program(words, stdout, stderr)
            process = process or Popen(words, **channels, env=os.environ | environment, start_new_session=True)
            self._running.add(process)
        process.wait()
        process.stdin.close()
        with self._lock:
            self._running.remove(process)
            if self._stopped:
                return None
        said = err.read_text("utf-8", errors="replace").replace(INTERRUPTED_KERNEL, "")
        if process.returncode < 0:
            said += f"liftlab: notebook {name} was killed by {signal.Signals(-process.returncode).name}\n"
        return Outcome(process.returncode, out.read_text("utf-8", errors="replace"), said)

    @contextmanager
    def forked_from(self, server: Server | None) -> Iterator[None]:
        """Programs that can be forked from `server` are, in the block; it has their environment, and ends with it."""
        with server or nullcontext():
            self._server = server
            yield
        self._server = None

    @contextmanager
    def stopped_with(self, pool: ThreadPoolExecutor) -> Iterator[None]:
        """Whatever ends the block before its time stops the processes, so that the threads of `pool` end as well."""
        try:
            yield
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            self._stop()
            raise

    def _stop(self) -> None:
        """Start no more; end those that run as their own SIGTERM handler does or, after `GRACE`, by force."""
        with self._lock:
            self._stopped, running = True, list(self._running)
        if self._server:
            self._server.stop()
        for process in running:
            process.terminate()
        end = time.monotonic() + GRACE
        for process in running:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except TimeoutExpired:
                _kill(process)


def end_with_parent() -> None:
    """Stop this process as SIGTERM does when stdin ends: `Processes` holds its other end, and was killed.

    A process that the parent ends itself is gone before that.
    """

    def wait() -> None:
        with suppress(OSError, ValueError):  # stdin was closed here
            while os.read(sys.stdin.fileno(), 1):
                pass
            os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=wait, daemon=True).start()


def _kill(process: Popen[bytes] | Program) -> None:
    """Kill a process and all that it started, its kernel with it, and wait until they are gone."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for one in started:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(started, timeout=KILLED)
