"""Several notebooks at once, each in a process of its own: who runs beside whom, on how many cores; told in order."""

from __future__ import annotations

import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import joblib
import typer

from liftlab import kernels, progress, run_log, runner
from liftlab.cells import WORKERS
from liftlab.fork_server import Server
from liftlab.processes import Outcome, Processes

CORES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LOKY_MAX_CPU_COUNT")  # a kernel's threads; the cores that joblib sees
# what notebooks import, and what executes them; not what reads its environment when it is imported
IMPORTED = [f"liftlab.{name}" for name in ("claims", "findings", "plots", "runner", "tables", "studies.evaluation")]
IMPORTED += ["ipykernel.ipkernel", "jupyter_client.provisioning", "papermill"]
FAILED, MISTAKEN = 1, 2  # exit codes of `liftlab run`

Asked = dict[str, dict[str, Any]]  # a notebook's name to its checked parameters


def run(root: Path, profile: str, asked: Asked, sets: dict[str, str], workers: int) -> int:
    """Execute the notebooks of `asked` with `workers` processes in all. Returns the exit code.

    0: all is well; 1: a notebook failed, which stops no other; 2: one could not be run as asked. What each one printed
    is printed once it and all before it in `asked` are done; at the end, which ones failed and why. Whatever interrupts
    this is passed on when every process that was started is gone, its kernel too.
    """
    groups = turns(root, profile, asked, workers)
    with progress.logged(root, profile, groups, workers, sets) as log, _Told(list(asked)) as told:
        processes = Processes(log.with_suffix(""))

        def execute(name: str, environment: dict[str, str]) -> None:
            began = time.monotonic()
            run_log.event("notebook", notebook=name, status="running")
            if outcome := processes.execute(name, command(name, profile, sets), environment):
                how = {"status": "failed", "reason": outcome.reason} if outcome.code else {"status": "done"}
                run_log.event("notebook", notebook=name, **how)
                told.done(name, outcome, time.monotonic() - began)

        for group in groups:
            at_a_time, environment = share(workers, len(group))
            forked = server(environment) if 1 < at_a_time < len(group) else None
            with processes.forked_from(forked), ThreadPoolExecutor(at_a_time) as pool, processes.stopped_with(pool):
                for done in as_completed([pool.submit(execute, name, environment) for name in group]):
                    done.result()
                    told.due()
    return _ended(told.outcomes, profile, sets)


def turns(root: Path, profile: str, asked: Asked, workers: int) -> list[list[str]]:
    """The notebooks in groups: each group starts when the one before it is done.

    The first runs side by side, where it can those first whose last run took longest (or is unknown), so that the end
    is no long one on one core; in the order asked for where the profile has an order of its own. Then, one a group:
    those that time what they do, and those that read records.
    """
    known = {known.name: known for known in runner.notebooks(root)}
    readers = [name for name in asked if known[name].reads]
    alone = [name for name in asked if name not in readers and known[name].times]
    together = [name for name in asked if name not in (*readers, *alone)]
    if workers > 1 and not runner.first_of(root, profile):
        expected = progress.expected(root, profile, together)
        together.sort(key=lambda name: -expected.get(name, math.inf))
    return [*([together] if together else []), *([name] for name in (*alone, *readers))]


def share(workers: int, group: int) -> tuple[int, dict[str, str]]:
    """How many of a `group` of notebooks run at a time, and each one's environment: its part of workers and cores."""
    at_a_time = min(workers, group)
    environment = {WORKERS: str(workers // at_a_time)}
    if at_a_time > 1:
        environment |= dict.fromkeys(CORES, str(max(1, joblib.cpu_count() // at_a_time)))
    return at_a_time, environment


def server(environment: dict[str, str]) -> Server:
    """What notebooks are forked from, each with its `environment`, as a kernel starts with it."""
    # a kernel sets it before matplotlib is read
    inline = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    return Server(IMPORTED, kernels.environment(os.environ | environment) | inline)


def command(name: str, profile: str, sets: dict[str, str]) -> list[str]:
    """The program that executes one notebook."""
    return [sys.executable, "-m", "liftlab.cli", *progress.words([name], profile, sets)]


class _Told:
    """What is told of the notebooks `names`: on stdout what they printed, in this order; on stderr each that is done.

    The latter where no bar shows how far the run is.
    """

    def __init__(self, names: list[str]) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._untold, self._total = names, len(names)

    def __enter__(self) -> _Told:
        return self

    def __exit__(self, *_: object) -> None:
        self._untold = [name for name in self._untold if name in self.outcomes]  # more than is due, if interrupted
        self.due()

    def done(self, name: str, outcome: Outcome, seconds: float) -> None:
        """Take in how a notebook ended."""
        self.outcomes[name] = outcome
        if not progress.is_live():
            typer.echo(f"{len(self.outcomes)} of {self._total}: {name}, {seconds:.0f} s", err=True)

    def due(self) -> None:
        """Print what each one printed that is done, and all before it."""
        while self._untold and self._untold[0] in self.outcomes:
            outcome = self.outcomes[self._untold.pop(0)]
            typer.echo(outcome.out, nl=False)
            typer.echo(outcome.err, nl=False, err=True)


def _ended(outcomes: dict[str, Outcome], profile: str, sets: dict[str, str]) -> int:
    """The exit code, after a summary on stderr of what failed."""
    failed = {name: outcome for name, outcome in outcomes.items() if outcome.code}
    if failed:
        typer.echo(f"liftlab: {len(failed)} of {len(outcomes)} notebooks failed", err=True)
        for name, outcome in failed.items():
            typer.echo(f"  {name}: {outcome.reason}", err=True)
        typer.echo(f"to go on (finished cells are kept): {progress.again([*failed], profile, sets)}", err=True)
    codes = {outcome.code for outcome in failed.values()}
    return MISTAKEN if MISTAKEN in codes else FAILED if codes else 0
