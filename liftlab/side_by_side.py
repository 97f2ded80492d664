"""Several notebooks at once, each in a process of its own: who runs beside whom, on how many cores; told in order."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from threading import Lock
from typing import Any

import joblib
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from liftlab import runner
from liftlab.cells import WORKERS

CORES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LOKY_MAX_CPU_COUNT")  # a kernel's threads; the cores that joblib sees
GRACE = 30.0  # seconds that a stopped notebook has to shut its kernel down
INTERRUPTED_KERNEL = "[IPKernelApp] ERROR | KeyboardInterrupt caught in kernel.\n"  # how some end in good order
FAILED, MISTAKEN = 1, 2  # exit codes of `liftlab run`

Asked = dict[str, dict[str, Any]]  # a notebook's name to its checked parameters


@dataclass(frozen=True)
class Outcome:
    """How one notebook's `liftlab run` ended (`code` is negative where a signal killed it), and what it printed."""

    code: int
    out: str
    err: str


def run(root: Path, profile: str, asked: Asked, sets: dict[str, str], workers: int) -> int:
    """Execute the notebooks of `asked` with `workers` processes in all. Returns the exit code.

    0: all is well; 1: a notebook failed, which stops no other; 2: one could not be run as asked. What each one printed
    is printed once it and all before it in `asked` are done. Whatever interrupts this is passed on when every process
    that was started is gone, its kernel too.
    """
    processes = _Processes()
    with _Told(list(asked)) as told:

        def execute(name: str, environment: dict[str, str]) -> None:
            with told.running(name):
                if outcome := processes.execute(name, command(name, profile, sets), environment):
                    told.outcomes[name] = outcome

        for group in turns(root, profile, asked, workers):
            at_a_time, environment = share(workers, len(group))
            with ThreadPoolExecutor(at_a_time) as pool, processes.stopped_with(pool):
                for done in as_completed([pool.submit(execute, name, environment) for name in group]):
                    done.result()
                    told.due()
    codes = {outcome.code for outcome in told.outcomes.values()}
    return MISTAKEN if MISTAKEN in codes else FAILED if codes - {0} else 0


def turns(root: Path, profile: str, asked: Asked, workers: int) -> list[list[str]]:
    """The notebooks in groups: each group starts when the one before it is done.

    The first runs side by side, where it can those first whose last run took longest (or is unknown), so that the end
    is no long one on one core. Then, one a group: those that time what they do, those whose pairs or verdicts come from
    a generator (one process at a time may ask about a document, see `ReplyCache`), and those that read records.
    """
    known = {known.name: known for known in runner.notebooks(root)}
    readers = [name for name in asked if known[name].reads]
    alone = [name for name, values in asked.items() if name not in readers and (known[name].times or _asks(values))]
    together = [name for name in asked if name not in (*readers, *alone)]
    if workers > 1:
        together.sort(key=lambda name: -_seconds(root, name, profile))
    return [*([together] if together else []), *([name] for name in (*alone, *readers))]


def share(workers: int, group: int) -> tuple[int, dict[str, str]]:
    """How many of a `group` of notebooks run at a time, and each one's environment: its part of workers and cores."""
    at_a_time = min(workers, group)
    environment = {WORKERS: str(workers // at_a_time)}
    if at_a_time > 1:
        environment |= dict.fromkeys(CORES, str(max(1, joblib.cpu_count() // at_a_time)))
    return at_a_time, environment


def command(name: str, profile: str, sets: dict[str, str]) -> list[str]:
    """The program that executes one notebook."""
    words = [sys.executable, "-m", "liftlab.cli", "run", name, "--profile", profile]
    return words + [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]


class _Processes:
    """The processes that run, so that all of them can be stopped, whichever thread waits for them."""

    def __init__(self) -> None:
        self._lock, self._stopped = Lock(), False
        self._running: set[Popen[str]] = set()

    def execute(self, name: str, words: Sequence[str], environment: dict[str, str]) -> Outcome | None:
        """Run one to its end, None where all are stopped. A session of its own: a terminal's Ctrl-C is for us alone."""
        channels = {"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE, "encoding": "utf-8", "errors": "replace"}
        with self._lock:
            if self._stopped:
                return None
            process = Popen(words, **channels, env=os.environ | environment, start_new_session=True)
            self._running.add(process)
        out, err = process.communicate()  # until its kernel is gone as well, which writes to the same stderr
        with self._lock:
            self._running.remove(process)
            if self._stopped:
                return None
        err = err.replace(INTERRUPTED_KERNEL, "")
        if process.returncode < 0:
            err += f"liftlab: notebook {name} was killed by {signal.Signals(-process.returncode).name}\n"
        return Outcome(process.returncode, out, err)

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
        for process in running:
            process.terminate()
        end = time.monotonic() + GRACE
        for process in running:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except TimeoutExpired:
                process.kill()


class _Told:
    """What is told: on stdout what the notebooks printed, in the order of `names`; on stderr how far the run is.

    The latter is a bar with the names that run on a terminal, elsewhere a line as each is done.
    """

    def __init__(self, names: list[str]) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._untold, self._total = names, len(names)
        self._running: list[str] = []
        columns = (MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        console = Console(stderr=True)
        bar = {"transient": True, "redirect_stdout": sys.stdout.isatty(), "disable": not console.is_terminal}
        self._bar = Progress(*columns, console=console, **bar)
        self._task = self._bar.add_task("", total=len(names))

    def __enter__(self) -> _Told:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self._untold = [name for name in self._untold if name in self.outcomes]  # more than is due, if interrupted
        self.due()

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Show that `name` runs, and then that it is done, if it is."""
        began = time.monotonic()
        self._running.append(name)
        self._show()
        yield
        self._running.remove(name)
        self._show()
        if self._bar.disable and name in self.outcomes:
            line = f"{len(self.outcomes)} of {self._total}: {name}, {time.monotonic() - began:.0f} s"
            typer.echo(line, err=True)

    def due(self) -> None:
        """Print what each one printed that is done, and all before it."""
        while self._untold and self._untold[0] in self.outcomes:
            outcome = self.outcomes[self._untold.pop(0)]
            typer.echo(outcome.out, nl=False)
            typer.echo(outcome.err, nl=False, err=True)

    def _show(self) -> None:
        self._bar.update(self._task, description=", ".join(self._running), completed=len(self.outcomes))


def _seconds(root: Path, name: str, profile: str) -> float:
    """Seconds of the last whole run, infinite where there was none."""
    last = runner.last_run(root, name, profile)
    return last.seconds if last and last.status == "done" and not math.isnan(last.seconds) else math.inf


def _asks(value: Any) -> bool:
    """Whether parameters name a generator or a judge, at any depth."""
    if isinstance(value, dict):
        return any(bool(item) if key in ("generator", "judge") else _asks(item) for key, item in value.items())
    return isinstance(value, list) and any(_asks(item) for item in value)
