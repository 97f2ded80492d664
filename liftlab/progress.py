"""How far a run is, told in a line: live on a terminal, elsewhere now and then."""

from __future__ import annotations

import math
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from liftlab import run_log, runner
from liftlab.processes import end_with_parent
from liftlab.run_log import Executed, Follower, State

PAUSE = 60.0  # seconds, at least, from one line to the next where there is no terminal


def line(state: State, now: float) -> str:
    """The counts of notebooks and cells, the rate and the time left, as far as they are known."""
    said, (seconds, unknown) = counts(state, now), state.seconds_left(now)
    if seconds:
        said += f", about {duration(seconds)} left"
    if unknown:
        said += f"{' and' if seconds else ','} {unknown} notebook{'s' * (unknown > 1)} of unknown length"
    return said


def counts(state: State, now: float) -> str:
    """The counts of notebooks and cells that are over, and cells a minute."""
    cells, failed = state.cells(), len(state.names("failed"))
    said = f"notebooks {of(len(state.names('done')), failed, len(state.notebooks))}"
    if cells.total:
        said += f", cells {of(cells.done, cells.failed, cells.total)}"
    rate = state.cells_a_minute(now)
    return said + (f", {rate:.3g} cells a minute" if rate else "")


def of(done: int, failed: int, total: int) -> str:
    """How many are over, and how many of these failed."""
    return f"{done + failed} of {total}" + (f" ({failed} failed)" if failed else "")


def duration(seconds: float) -> str:
    """In the two largest units that it fills: "2 h 5 min", "3 min 20 s", "45 s"."""
    whole = math.ceil(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def words(names: Sequence[str], profile: str, sets: dict[str, str]) -> list[str]:
    """The words after `liftlab` that execute notebooks."""
    given = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    return ["run", *names, "--profile", profile, *given]


def again(names: Sequence[str], profile: str, sets: dict[str, str]) -> str:
    """The command that executes notebooks, as it is typed."""
    return shlex.join(["liftlab", *words(names, profile, sets)])


def expected(root: Path, profile: str, names: Sequence[str]) -> dict[str, float]:
    """Seconds of each notebook's last whole run, where there was one."""
    last = {name: runner.last_run(root, name, profile) for name in names}
    return {name: r.seconds for name, r in last.items() if r and r.status == "done" and not math.isnan(r.seconds)}


@contextmanager
def logged(root: Path, profile: str, groups: run_log.Groups, workers: int, sets: dict[str, str]) -> Iterator[Path]:
    """Keep the log of a run and tell on stderr how far it is while the block runs; gives the log's path.

    It is a live bar on a terminal, else a line a minute, where it says something new.
    """
    known = expected(root, profile, [name for group in groups for name in group])
    folder, facts = runner.logs_folder(root, profile), {"profile": profile, "sets": sets}
    with run_log.opened(folder, groups, workers, known, **facts) as log, _live(log) if is_live() else _in_lines(log):
        yield log


@contextmanager
def alone(root: Path, name: str, profile: str, sets: dict[str, str]) -> Iterator[None]:
    """`logged` for one notebook executed by this process; where that is part of a run, it only ends with the run."""
    if run_log.active():
        if run_log.NOTEBOOK not in os.environ:  # else its stdin is a notebook's
            end_with_parent()
        yield
        return
    with logged(root, profile, [[name]], 1, sets), run_log.notebook(name):
        yield


def is_live() -> bool:
    """Whether stderr is a terminal, which a bar can be drawn on."""
    from rich.console import Console

    return Console(stderr=True).is_terminal


@contextmanager
def _live(log: Path) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    follow = Follower(log)

    class Bar(Progress):
        def get_renderables(self) -> Iterator:
            """Called for each refresh."""
            for task in self.tasks:
                self.update(task.id, **_shown(follow))
            yield self.make_tasks_table(self.tasks)

    columns = (BarColumn(20), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    bar = Bar(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        refresh_per_second=2,
    )
    bar.add_task("", total=1.0)
    with bar:
        yield


def _shown(follow: Follower) -> dict[str, Any]:
    """The bar's share and words. The log may be out of reach for a while, which is told in their place."""
    try:
        state = follow()
    except OSError as error:
        return {"description": f"the run's log cannot be read ({error.strerror})"}
    running = ", ".join(state.names("running"))
    told = line(state, time.time()) + (f": {running}" if running else "")
    return {"description": told, "completed": sum(map(_share, state.notebooks.values())) / len(state.notebooks or "1")}


def _share(notebook: Executed) -> float:
    """How much of a notebook is over, 0 to 1, by its cells."""
    if notebook.status in ("done", "failed"):
        return 1.0
    total = sum(cells.total for cells in notebook.studies.values())
    return sum(cells.done + cells.failed for cells in notebook.studies.values()) / max(1, total)


@contextmanager
def _in_lines(log: Path) -> Iterator[None]:
    over = threading.Event()
    teller = threading.Thread(target=_tell, args=(Follower(log), over), daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def _tell(follow: Follower, over: threading.Event) -> None:
    before = -1
    while not over.wait(PAUSE):
        try:
            state = follow()
        except OSError as error:
            typer.echo(f"the run's log cannot be read ({error.strerror})", err=True)
            continue
        counted = state.cells().done + state.cells().failed + len(state.names("done")) + len(state.names("failed"))
        if counted != before:
            typer.echo(line(state, time.time()), err=True)
        before = counted
