"""The cell cache: a study's grid, one file a cell, so that a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
from tqdm import tqdm

from liftlab import failures, locks, provenance, records, run_log
from liftlab.cell_groups import WORKERS, Facts, Group, Settings, Together, Work, ended, failure_of, is_whole, sweep
from liftlab.failures import CellError, CellsFailed


def run(
    name: str,
    cell: Callable[..., pd.DataFrame | Generator],
    grid: list[Settings],
    folder: Path,
    modules: Sequence[str],
    facts: Facts,
    data: Sequence[Path] = (),
    *,
    together: Together | None = None,
    at_once: int = 1,
    alone: bool = False,
) -> pd.DataFrame:
    """The records of `cell(**settings)` for every settings of `grid`, joined in grid order; written to folder/name.csv.

    A cell is computed unless folder/name/KEY.csv is whole, and kept by the process that computes it as soon as its
    group is done. KEY covers the study's name, the settings, the source of `modules` (import names; a package counts
    its __init__ only) and the bytes of the `data` files that they read. `facts` go into the provenance; where callable,
    they are asked for once in each process that computes, before it keeps its first cell.

    `together`: each cell is a generator, and this gives what several of them return, or the error in a cell's place.
    The grid is cut into groups of `at_once`, wherever a run stopped before, so that a resumed one gives the bits of an
    unbroken one: a group that lacks a cell is computed whole, and what it lacks is kept. Groups are computed side by
    side in `workers()` processes; `alone`: one after the other, for cells that time things. What another run computes
    at the same time is waited for, not computed again.

    An error in a cell is kept as folder/name/KEY.failed.json and stops no other cell; the next run tries it again. Then
    the joined records hold a row for it (see `failures.rows`) and CellsFailed is raised; nothing is joined where all
    failed. An error that is the whole run's (see `failures.ends_run`) is raised at once.
    """
    folder = Path(folder)
    code = fingerprint(modules, data)
    keys = _keys(name, grid, code)
    files = {key: folder / name / f"{key}.csv" for key in keys}
    missing = {key for key, file in files.items() if not _found_whole(file)}
    cells = [keys[i : i + at_once] for i in range(0, len(keys), at_once)]
    todo = _groups(cells, dict(zip(keys, grid, strict=True)), missing)
    if todo:
        made_with = {"study": name, "at_once": at_once, "fingerprint": code, "files": provenance.hashes(data)}
        before = {key: kept for key in missing if (kept := failure_of(files[key])) is not None}
        work = Work(uuid.uuid4().hex, cell, together, folder / name, facts, made_with, before)
        processes = 1 if alone else min(workers(), len(cells))
        _told(name, len(grid), len(missing), ended(work, todo, processes, alone))
    frame, failed = _joined(name, grid, files, folder / f"{name}.csv")
    if failed:
        raise CellsFailed(failures.summary(failed, grid, folder / name))
    return frame


def workers() -> int:
    """LIFTLAB_WORKERS; without it one where there is a GPU, else one a core. CellError if it is no whole number."""
    given = whole_number(WORKERS, "processes for cells")
    if given is None:
        import torch  # here, because figures are redrawn without it

        return 1 if torch.cuda.is_available() else joblib.cpu_count()
    return given


def whole_number(variable: str, what: str) -> int | None:
    """The number of `what` in an environment variable, at least 1, else CellError; None where it is not set."""
    given = os.environ.get(variable)
    if given is not None and not (given.isdecimal() and int(given) >= 1):
        raise CellError(f"{variable} = {given!r}: give the number of {what}, 1 or more")
    return None if given is None else int(given)


def _groups(cells: list[list[str]], settings: dict[str, Settings], missing: set[str]) -> list[Group]:
    """The groups that lack a cell."""
    lacking = [(group, tuple(key for key in group if key in missing)) for group in cells]
    return [Group({key: settings[key] for key in group}, lack) for group, lack in lacking if lack]


def _told(name: str, total: int, missing: int, done: Iterator[dict[str, bool]]) -> None:
    """Say how far the study is, in the run's log where there is one, else as a bar on stderr."""
    failed = 0
    run_log.event("cells", study=name, total=total, done=total - missing, failed=failed)
    bar = {"total": total, "initial": total - missing, "unit": "cell", "disable": run_log.active()}
    with tqdm(desc=name, file=sys.stderr, **bar) as shown:
        for group in done:
            failed, missing = failed + sum(group.values()), missing - len(group)
            shown.update(len(group))
            if failed:
                shown.set_postfix(failed=failed)
            run_log.event("cells", study=name, total=total, done=total - missing - failed, failed=failed)


def _keys(name: str, grid: list[Settings], fingerprint: str) -> list[str]:
    """One key per settings, 16 hexadecimal digits; CellError for an empty grid or settings that come twice."""
    if not grid:
        raise CellError(f"study {name!r} has an empty grid: give at least one settings dict")
    keys: list[str] = []
    for settings in grid:
        _require_json(settings, "settings")
        canonical = json.dumps([name, settings, fingerprint], sort_keys=True, separators=(",", ":"))
        keys.append(hashlib.sha256(canonical.encode("utf-8")).hexdigest()[:16])
        if keys[-1] in keys[:-1]:
            raise CellError(f"study {name!r} has settings {settings} twice in its grid: list each once")
    return keys


def _require_json(value: Any, where: str) -> None:
    """CellError unless `value` is made of JSON values: a tuple, an array or NaN would not come back as it went."""
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        for key, item in value.items():
            _require_json(item, f"{where}[{key!r}]")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _require_json(item, f"{where}[{index}]")
    elif type(value) not in (str, int, bool, float, type(None)) or (type(value) is float and not math.isfinite(value)):
        raise CellError(
            f"{where} = {value!r} ({type(value).__name__}) is not a JSON value: "
            "use text, finite numbers, true/false, None, lists and dicts with text keys"
        )


def fingerprint(modules: Sequence[str], data: Sequence[Path]) -> str:
    """One hash of the sources and data files that decide a cell's result; modules are found, not imported."""
    digest = hashlib.sha256()
    for label, path in [(module, _source(module)) for module in sorted(modules)] + [
        (p.name, p) for p in map(Path, data)
    ]:
        digest.update(label.encode("utf-8") + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _source(module: str) -> Path:
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.has_location:
        raise CellError(f"compute module {module!r} has no source file: give import names such as 'liftlab.lifting'")
    return Path(spec.origin)


def _found_whole(path: Path) -> bool:
    """Whether the cell is whole; a damaged one is named on stderr and will be redone."""
    whole = is_whole(path)
    if not whole and path.exists():
        tqdm.write(f"warning: cell {path} is damaged and will be computed again", file=sys.stderr)
    return whole


def _joined(
    name: str, grid: list[Settings], files: dict[str, Path], path: Path
) -> tuple[pd.DataFrame | None, list[failures.Failure]]:
    """The cells' tables under each other, then the failures' rows, as read back from disk; and the failures.

    So a resumed run equals an unbroken one. Without any whole cell nothing is written.
    """
    with locks.held(path.with_name(f".{name}.lock")):
        sweep(path.parent, [name])
        cells = {key: records.read(file) for key, file in files.items() if file.exists()}
        failed = {key: failures.read(failures.path_of(file)) for key, file in files.items() if key not in cells}
        if not cells:
            return None, [*failed.values()]
        for key in cells:
            failures.path_of(files[key]).unlink(missing_ok=True)  # of an attempt before it was whole
        frame = pd.concat([frame for frame, _ in cells.values()], ignore_index=True)
        about = {"study": name, "grid": grid, "keys": list(files)}
        about["made_with"] = provenance.joined(made_with for _, made_with in cells.values())
        if failed:
            about["failed"] = [failure.told() for failure in failed.values()]
            frame = pd.concat([frame, failures.rows(failed, name, frame)], ignore_index=True)
        records.write(frame, path, about, keep_equal=True)
        return records.read(path)[0], [*failed.values()]
