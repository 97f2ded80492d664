"""`liftlab status`: where a profile's latest run is, and how to go on."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from liftlab import progress, run_log, runner


def status(profile: Annotated[str, typer.Option(help="A subfolder of papermill_runs.")] = "micro") -> None:
    """Where the latest run of a profile is: what is done, runs and failed, why, the time left, how to go on."""
    root = runner.root()
    runner.runs_under(root, profile)  # an unknown profile is an error of its own
    log = run_log.latest(runner.logs_folder(root, profile))
    if log is None:
        raise runner.RunError(f"no run of profile {profile!r} has left a log: liftlab run --profile {profile}")
    typer.echo("\n".join(told(root, run_log.read(log), time.time())))


def told(root: Path, state: run_log.State, now: float) -> list[str]:
    """The lines that tell of a run. RunError where its log does not even tell how it began."""
    if not state.facts:
        raise runner.RunError(f"the run's log {state.path} does not tell how it began: remove it, and run again")
    alive = state.alive
    at = now if alive else state.at
    lines = [_headed(state, alive), progress.line(state, at) if alive else progress.counts(state, at)]
    lines += _named(state, alive, at)
    if state.broken:
        lines.append(f"broken lines of the log, not counted: {state.broken}")
    lines.append(f"log: {state.path.relative_to(root)}")
    left = [name for name, known in state.notebooks.items() if known.status != "done"]
    if left and not alive:
        lines.append(
            f"to go on (finished cells are kept): {progress.again(left, state.facts['profile'], state.facts['sets'])}"
        )
    return lines


def _headed(state: run_log.State, alive: bool) -> str:
    began = datetime.fromtimestamp(state.facts["at"], UTC).isoformat(" ", "seconds").removesuffix("+00:00")
    seconds = progress.duration(state.at - state.facts["at"])
    ends = {"done": "ended", "failed": "failed", "interrupted": "was interrupted", "": "was killed: last heard of"}
    how = f"goes on (process {state.facts['process']})" if alive else f"{ends[state.end]} after {seconds}"
    return f"run of {state.facts['profile']}, begun {began} UTC, {how}"


def _named(state: run_log.State, alive: bool, now: float) -> list[str]:
    """A line a notebook that is not done, with its cells; the done and the waiting ones in a line each."""
    lines = [f"{status}: {', '.join(names)}" for status in ("done", "waiting") if (names := state.names(status))]
    for name in state.names("running"):
        known = state.notebooks[name]
        since = progress.duration(now - known.began)
        lines.append(f"{'running' if alive else 'was running'}: {name}, {since}{_cells(known)}")
    return lines + [f"failed: {name}: {state.notebooks[name].reason}" for name in state.names("failed")]


def _cells(known: run_log.Executed) -> str:
    studies = known.studies.items()
    return "".join(f", cells of {name} {progress.of(c.done, c.failed, c.total)}" for name, c in studies)
