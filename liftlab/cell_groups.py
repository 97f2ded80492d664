"""Groups of cells: computed side by side, each by one run at a time, and kept by the process that computes them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import joblib
import pandas as pd

from liftlab import failures, locks, provenance, records
from liftlab.failures import CellsFailed, ends_run

Settings = dict[str, Any]  # JSON values only
Facts = dict[str, Any] | Callable[[], dict[str, Any]]
Outcome = pd.DataFrame | Exception  # a cell's records, or why it failed
Together = Callable[[list[Generator]], list[Outcome]]
WORKERS = "LIFTLAB_WORKERS"  # environment variable: processes that compute cells side by side


@dataclass(frozen=True)
class Group:
    """Cells that are computed together, by key, and the keys of those that are to be kept."""

    cells: dict[str, Settings]
    lacking: tuple[str, ...]


@dataclass(frozen=True)
class Work:
    """What a process needs to know to compute groups of a run and keep their cells; two are equal if of one run."""

    run: str  # a name that no other run has
    cell: Callable[..., pd.DataFrame | Generator] = field(compare=False)
    together: Together | None = field(compare=False)
    folder: Path = field(compare=False)
    facts: Facts = field(compare=False)
    made_with: dict[str, Any] = field(compare=False)  # facts that are known from the start
    before: dict[str, bytes] = field(compare=False)  # the failures, by key, that the run has found

    def file(self, key: str) -> Path:
        return self.folder / f"{key}.csv"

    def settled(self, key: str) -> bool:
        """Whether the cell is whole, or has failed since the run began: another run has computed it."""
        return is_whole(self.file(key)) or failure_of(self.file(key)) not in (None, self.before.get(key))

    def outcomes(self, cells: dict[str, Settings]) -> dict[str, Outcome]:
        if self.together is None:
            return {key: _tried(lambda of=of: records.check(self.cell(**of))) for key, of in cells.items()}
        found = self.together([self.cell(**of) for of in cells.values()])
        return {
            key: outcome if isinstance(outcome, Exception) else _tried(partial(records.check, outcome))
            for key, outcome in zip(cells, found, strict=True)
        }

    def keep(self, key: str, settings: Settings, outcome: Outcome, **times: str) -> None:
        file = self.file(key)
        if isinstance(outcome, Exception):
            file.unlink(missing_ok=True)  # a damaged one
            failures.write(failures.Failure.of(settings, outcome), failures.path_of(file))
        else:
            made_with = self.made_with | _known(self) | times
            records.write(outcome, file, records.provenance(settings=settings, key=key, **made_with))


@lru_cache(maxsize=1)
def _known(work: Work) -> dict[str, Any]:
    return work.facts() if callable(work.facts) else work.facts


def _tried(make: Callable[[], pd.DataFrame]) -> Outcome:
    try:
        return make()
    except Exception as error:
        if ends_run(error):
            raise
        return error


def ended(work: Work, todo: list[Group], processes: int, alone: bool) -> Iterator[dict[str, bool]]:
    """The keys that each group lacked, as it is done, and whether the cell failed.

    Groups that another run computes come last: they are waited for when nothing else is left. Cells that time things
    wait in their turn, so that those of two runs do not disturb each other.
    """
    busy = []
    for group, failed in _computed(partial(_group, work, wait=alone), todo, processes):
        if failed is None:
            busy.append(group)
        else:
            yield failed
    yield from (failed for _, failed in _computed(partial(_group, work, wait=True), busy, processes))


def _computed(
    compute: Callable[[Group], tuple[Group, Any]], todo: list[Group], processes: int
) -> Iterator[tuple[Group, Any]]:
    """Each group and what came of it as it is done; several processes share the cores evenly.

    How many cores a group has depends on the grid alone, not on how many groups are left: it may decide the last bits.
    """
    if processes <= 1 or not todo:  # all cores for each group in turn
        yield from map(compute, todo)
        return
    threads = max(1, joblib.cpu_count() // processes)
    calls = (joblib.delayed(compute)(group) for group in todo)
    try:
        with joblib.parallel_config("loky", n_jobs=processes, inner_max_num_threads=threads):
            yield from joblib.Parallel(return_as="generator_unordered", batch_size=1)(calls)
    except BrokenExecutor as error:
        raise CellsFailed(
            "a process that computed cells was killed, by the system if memory ran out: what was finished is kept; "
            f"run again, with {WORKERS} below {processes} if memory is short"
        ) from error


def _group(work: Work, group: Group, *, wait: bool) -> tuple[Group, dict[str, bool] | None]:
    """Compute and keep what the group lacks: whether it failed, by key; None where another run is at one of them."""
    with ExitStack() as held:
        for key in sorted(group.lacking):  # sorted: two runs cannot wait for each other
            if not held.enter_context(locks.held(work.folder / f".{key}.lock", wait=wait)):
                return group, None
        left = [key for key in group.lacking if not work.settled(key)]
        if left:
            sweep(work.folder, left)
            start = provenance.now()
            found = work.outcomes(group.cells)
            end = provenance.now()
            for key in left:
                work.keep(key, group.cells[key], found[key], start=start, end=end)
        return group, {key: not work.file(key).exists() for key in group.lacking}


def sweep(folder: Path, names: Iterable[str]) -> None:
    """Remove the temporary files that a killed process left of these; their locks are held, so nobody writes them."""
    for name in names:
        for left in folder.glob(f".{name}.*.tmp"):
            left.unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Whether the cell file exists and matches its checksum."""
    try:
        records.read(path)
    except (FileNotFoundError, records.RecordError):
        return False
    return True


def failure_of(file: Path) -> bytes | None:
    """The failure of the cell as it is kept, None if there is none."""
    try:
        return failures.path_of(file).read_bytes()
    except FileNotFoundError:
        return None
