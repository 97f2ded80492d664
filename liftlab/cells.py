"""The cell cache: a study's grid, one file a cell, so that a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
from tqdm import tqdm

from liftlab import records

Settings = dict[str, Any]  # JSON values only
Facts = dict[str, Any] | Callable[[], dict[str, Any]]
Together = Callable[[list[Generator]], list[pd.DataFrame]]
WORKERS = "LIFTLAB_WORKERS"  # environment variable: processes that compute cells side by side


class CellError(ValueError):
    """The grid or the list of compute modules cannot be turned into cells."""


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

    A cell is computed unless folder/name/KEY.csv is whole. KEY covers the study's name, the settings, the source of
    `modules` (import names; a package counts its __init__ only) and the bytes of the `data` files that they read.
    `facts` go into the provenance; where callable, they are asked for once, before the first computed cell is kept.

    `together`: each cell is a generator, and this gives what several of them return. The grid is cut into groups of
    `at_once`, wherever a run stopped before, so that a resumed one gives the bits of an unbroken one: a group that
    lacks a cell is computed whole, and what it lacks is kept. Groups are computed side by side in `workers()`
    processes; `alone`: one after the other, for cells that time things.
    """
    folder = Path(folder)
    keys = _keys(name, grid, _fingerprint(modules, data))
    files = {key: folder / name / f"{key}.csv" for key in keys}
    missing = {key for key in keys if not _is_whole(files[key])}
    settings = dict(zip(keys, grid, strict=True))
    groups = [keys[i : i + at_once] for i in range(0, len(keys), at_once)]
    todo = [{key: settings[key] for key in group} for group in groups if missing & set(group)]
    known: dict[str, Any] = {}
    with tqdm(desc=name, total=len(grid), initial=len(grid) - len(missing), unit="cell", file=sys.stderr) as bar:
        processes = 1 if alone or len(todo) < 2 else min(workers(), len(todo))
        for frames in _computed(partial(_group, cell, together), todo, processes):
            known = known or (facts() if callable(facts) else facts)
            for key in (key for key in frames if key in missing):
                made_with = records.provenance(study=name, settings=settings[key], key=key, **known)
                records.write(frames[key], files[key], made_with)
                bar.update()
    return _joined(name, grid, files, folder / f"{name}.csv")


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


def _computed(
    group: Callable[[dict[str, Settings]], dict[str, pd.DataFrame]], todo: list[dict[str, Settings]], processes: int
) -> Iterator[dict[str, pd.DataFrame]]:
    """Records by key of each group as it is done; several processes share the cores evenly."""
    if processes <= 1:  # all cores for each group in turn
        yield from map(group, todo)
        return
    threads = max(1, joblib.cpu_count() // processes)
    with joblib.parallel_config("loky", n_jobs=processes, inner_max_num_threads=threads):
        yield from joblib.Parallel(return_as="generator_unordered", batch_size=1)(map(joblib.delayed(group), todo))


def _group(
    cell: Callable[..., pd.DataFrame | Generator], together: Together | None, cells: dict[str, Settings]
) -> dict[str, pd.DataFrame]:
    if together is None:
        frames = [cell(**settings) for settings in cells.values()]
    else:
        frames = together([_named(cell, settings) for settings in cells.values()])
    return {key: _checked(frame, cells[key]) for key, frame in zip(cells, frames, strict=True)}


def _named(cell: Callable[..., Generator], settings: Settings) -> Generator:
    """The cell; an error in it says which one it was."""
    try:
        return (yield from cell(**settings))
    except Exception as error:
        error.add_note(f"in the cell {settings}")
        raise


def _checked(frame: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    try:
        return records.check(frame)
    except records.RecordError as error:
        raise records.RecordError(f"cell {settings}: {error}") from error


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


def _fingerprint(modules: Sequence[str], data: Sequence[Path]) -> str:
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


def _is_whole(path: Path) -> bool:
    """Whether the cell file exists and matches its checksum; a damaged one is named on stderr and will be redone."""
    if not path.exists():
        return False
    try:
        records.read(path)
    except records.RecordError as error:
        tqdm.write(f"warning: cell {path} is damaged and will be computed again ({error})", file=sys.stderr)
        return False
    return True


def _joined(name: str, grid: list[Settings], files: dict[str, Path], path: Path) -> pd.DataFrame:
    """The cells' tables under each other, as read back from disk, so that a resumed run equals an unbroken one."""
    cells = [records.read(file) for file in files.values()]
    made_with: list[dict[str, Any]] = []  # distinct: cells may come from several runs, machines, commits
    for _, provenance in cells:
        made = {fact: value for fact, value in provenance.items() if fact not in ("settings", "key")}
        made_with += [made] if made not in made_with else []
    frame = pd.concat([frame for frame, _ in cells], ignore_index=True)
    records.write(frame, path, {"study": name, "grid": grid, "keys": list(files), "made_with": made_with})
    return records.read(path)[0]
