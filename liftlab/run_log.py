"""The log of a run: an event a line (JSON), appended by all of its processes; summed up, they tell where the run is."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from liftlab import records

LOG = "LIFTLAB_LOG"  # environment variable: the log file of the run that a process is part of
NOTEBOOK = "LIFTLAB_NOTEBOOK"  # environment variable: the notebook that a process executes
CLOCK_SECONDS = 2.0  # how far two readings of one process's start may lie apart

Groups = Sequence[Sequence[str]]  # names of notebooks: those of a group run side by side, one group after the other


@cache
def say(words: str) -> None:
    """A line on stderr, once a process."""
    print(f"liftlab: {words}", file=sys.stderr, flush=True)


def active() -> bool:
    """Whether this process is part of a run that keeps a log, and shows itself how far it is."""
    return LOG in os.environ


def event(kind: str, **facts: Any) -> None:
    """Append an event (JSON values) to the run's log, with its time and notebook; nothing where there is no run.

    A study tells "cells" (study, total, done, failed): before its first group, with what it found done, and after each.
    """
    if active():
        told = {"at": round(time.time(), 3), "kind": kind}
        told |= {"notebook": os.environ[NOTEBOOK]} if NOTEBOOK in os.environ else {}
        _append(Path(os.environ[LOG]), told | facts)


def printed(name: str) -> Path | None:
    """The file that keeps what a notebook's processes print on stderr; None where there is no run."""
    return Path(os.environ[LOG]).with_suffix("") / f"{name}.err" if active() else None


@contextmanager
def opened(folder: Path, groups: Groups, workers: int, expected: dict[str, float], **facts: Any) -> Iterator[Path]:
    """Keep a log, a new file in `folder`, of this process and those that it starts, to the end of the block.

    `expected`: seconds that a notebook may take, where known. `facts` go into the log with what provenance finds.
    """
    path = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{os.getpid()}.jsonl"
    with _refusal_told(path):
        path.with_suffix("").mkdir(parents=True)
    os.environ[LOG] = str(path)
    process = {"process": os.getpid(), "process_began": _began(os.getpid())}
    try:
        made_with = records.provenance(**facts)
        event("run", groups=[*map(list, groups)], workers=workers, expected=expected, **process, **made_with)
        yield path
        event("end", how="done")
    except BaseException as error:
        with suppress(OSError):  # the error at hand is the one to tell
            event("end", how="interrupted" if isinstance(error, KeyboardInterrupt) else "failed", reason=_line(error))
        raise
    finally:
        del os.environ[LOG]


@contextmanager
def notebook(name: str) -> Iterator[None]:
    """Tell that a notebook runs, and then that it is done, or failed and why; nothing more if it is interrupted."""
    event("notebook", notebook=name, status="running")
    try:
        yield
    except Exception as error:
        with suppress(OSError):  # as above
            event("notebook", notebook=name, status="failed", reason=_line(error))
        raise
    event("notebook", notebook=name, status="done")


@dataclass
class Cells:
    """Cells of a study: `found` of them were done at `began`; `at` is when it last told (seconds since 1970)."""

    total: int
    found: int
    done: int
    failed: int
    began: float
    at: float

    @property
    def computed(self) -> int:
        return self.done + self.failed - self.found

    def seconds_left(self, now: float) -> float | None:
        """By the seconds that its cells took so far; None before the first is computed."""
        waiting = self.total - self.done - self.failed
        if waiting and not self.computed:
            return None
        return max(0.0, waiting * (self.at - self.began) / max(1, self.computed) - (now - self.at)) if waiting else 0.0


@dataclass
class Executed:
    """A notebook of the run; `status`: waiting, running, done or failed; `expected`: seconds, infinite if unknown."""

    expected: float = math.inf
    status: str = "waiting"
    began: float = math.nan
    ended: float = math.nan
    reason: str = ""
    studies: dict[str, Cells] = field(default_factory=dict)

    def seconds_left(self, now: float) -> float:
        """0 if it is over; infinite if neither its cells nor a run before this one tell."""
        if self.status in ("done", "failed"):
            return 0.0
        if self.status == "waiting":
            return self.expected
        known = [left for cells in self.studies.values() if (left := cells.seconds_left(now)) is not None]
        rest = self.expected - (now - self.began)
        return sum(known) if known else rest if rest > 0 else math.inf


@dataclass
class State:
    """Where a run is. `end`: "" while it goes on, else done, failed or interrupted; `broken`: unreadable lines."""

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    notebooks: dict[str, Executed] = field(default_factory=dict)
    end: str = ""
    at: float = math.nan  # seconds since 1970, of the last event
    broken: int = 0

    @property
    def alive(self) -> bool:
        """Whether the run goes on: not ended, and its process is there."""
        began = _began(self.facts.get("process", -1))
        return not self.end and began is not None and abs(began - self.facts["process_began"]) <= CLOCK_SECONDS

    def names(self, status: str) -> list[str]:
        """The notebooks of a status, in the order of the run."""
        return [name for name, known in self.notebooks.items() if known.status == status]

    def cells(self) -> Cells:
        """All studies' cells as if they were one study's; nothing is counted where none has told yet."""
        told = [cells for known in self.notebooks.values() for cells in known.studies.values()]
        sums = {name: sum(getattr(cells, name) for cells in told) for name in ("total", "found", "done", "failed")}
        began, at = min((c.began for c in told), default=math.nan), max((c.at for c in told), default=math.nan)
        return Cells(**sums, began=began, at=at)

    def cells_a_minute(self, now: float) -> float | None:
        """Cells computed since the first study began; None before the first is."""
        cells = self.cells()
        return 60 * cells.computed / (now - cells.began) if cells.computed and now > cells.began else None

    def seconds_left(self, now: float) -> tuple[float, int]:
        """An estimate, group after group; and how many notebooks it leaves out, because nothing is known of them."""
        total, unknown = 0.0, 0
        for group in self.facts.get("groups", ()):
            left = [self.notebooks[name].seconds_left(now) for name in group]
            known = [seconds for seconds in left if seconds < math.inf]
            unknown += len(left) - len(known)
            total += max(sum(known) / min(self.facts["workers"], len(group)), *known, 0.0)
        return total, unknown

    def add(self, told: dict[str, Any]) -> None:
        """Take an event in."""
        self.at, name = told["at"], told.get("notebook")
        if told["kind"] == "run":
            self.facts = told
            expected = told["expected"]
            self.notebooks = {n: Executed(expected.get(n, math.inf)) for group in told["groups"] for n in group}
        elif told["kind"] == "end":
            self.end = told["how"]
        elif told["kind"] == "notebook":
            known = self.notebooks[name]
            known.status, known.reason = told["status"], told.get("reason", "")
            known.began, known.ended = (self.at, math.nan) if known.status == "running" else (known.began, self.at)
        elif told["kind"] == "cells" and name in self.notebooks:
            counts = {count: told[count] for count in ("total", "done", "failed")}
            studies = self.notebooks[name].studies
            first = studies.get(told["study"]) or Cells(**counts, found=told["done"], began=self.at, at=self.at)
            studies[told["study"]] = Cells(**counts, found=first.found, began=first.began, at=self.at)


class Follower:
    """Reads a log as it grows."""

    def __init__(self, path: Path) -> None:
        self.state, self._offset = State(Path(path)), 0

    def __call__(self) -> State:
        """The state now. A last line without its end is still being written, and left for the next call."""
        with self.state.path.open("rb") as file:
            file.seek(self._offset)
            whole, end, _ = file.read().rpartition(b"\n")
        self._offset += len(whole + end)
        for line in whole.splitlines():
            try:
                self.state.add(json.loads(line))
            except (ValueError, KeyError, TypeError):
                self.state.broken += 1
        return self.state


def read(path: Path) -> State:
    """Where the run of a log is, or was when it ended. FileNotFoundError if there is no such log."""
    return Follower(path)()


def latest(folder: Path) -> Path | None:
    """The log in `folder` of the run that began last, None if there is none."""
    return max(folder.glob("*.jsonl"), default=None)


def _append(path: Path, told: dict[str, Any]) -> None:
    """One write to the end of the file, so that lines of several processes do not mix."""
    line = (json.dumps(told, ensure_ascii=False) + "\n").encode("utf-8")
    with _refusal_told(path):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            if os.write(file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(file)


@contextmanager
def _refusal_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"cannot write the run's log {path} ({error.strerror or error})"
        raise records.WriteError(error.errno, f"{what}: free space on the disk, or make the folder writable") from error


def _began(process: int) -> float | None:
    """When a process began, in seconds since 1970; None if there is none of that number."""
    import psutil

    try:
        found = psutil.Process(process)
        return None if found.status() == psutil.STATUS_ZOMBIE else found.create_time()
    except (psutil.NoSuchProcess, ValueError):
        return None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
