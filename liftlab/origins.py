"""Where a figure comes from: the command, notebook, parameters and records behind it, and what made those."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liftlab import records, runner
from liftlab.parameters import RunError, suggestion

CLAIMS = "claims"  # the figure drawn from the records of many notebooks


@dataclass(frozen=True)
class Source:
    """A records file and what made it.

    `command` makes it again, `notebook` and `parameters` are files (None for a command without). `whole`: whether it
    matches its checksum; `rows` and `seeds` are read where it does. `settings` of its cells: those that all share, and
    lists of values of those that differ (`varied`). `cells` is 0 where it was not made by cells. `makers`: see
    `provenance.joined`.
    """

    path: Path
    command: str
    notebook: Path | None
    parameters: Path | None
    sha256: str
    whole: bool
    rows: int
    seeds: list[int]
    cells: int
    failed: int
    settings: dict[str, Any]
    varied: dict[str, list]
    makers: list[dict[str, Any]]


@dataclass(frozen=True)
class Origin:
    """A figure's files, the command that draws them, and the records that it draws."""

    figure: str
    profile: str
    files: list[Path]
    command: str
    sources: list[Source]


def origin(root: Path, figure: str, profile: str | None = None) -> Origin:
    """Of a figure by its name ("conflict"), its file's name ("conflict.png") or a path ("figures/micro/conflict.png").

    `profile` is "micro" where neither it nor the path says. RunError for an unknown one, and where it has no records.
    """
    name, profile = _named(figure, profile)
    drawn = _drawn(root, profile)
    notebooks = runner.runs_under(root, profile)
    known = sorted({*drawn, *notebooks, *(path.stem for path in record_files(root, profile))})
    if name not in known:
        there = ", ".join(known) or "none"
        raise RunError(
            f"no figure of profile {profile!r} is called {name!r}{suggestion(name, known)}; there are: {there}"
        )
    paths = _claimed(root, profile) if name == CLAIMS else [_folder(root, profile) / f"{name}.csv"]
    sources = [_source(root, profile, path) for path in paths]
    return Origin(name, profile, drawn.get(name, []), f"liftlab figures --profile {profile}", sources)


def _named(figure: str, profile: str | None) -> tuple[str, str]:
    path = Path(figure)
    told = path.parent.name or None
    if told and profile and told != profile:
        raise RunError(f"{figure} is of profile {told!r}, --profile says {profile!r}: leave one out")
    return path.name.partition(".")[0], told or profile or "micro"


def _folder(root: Path, profile: str) -> Path:
    return root / runner.RUNS / profile / "records"


def record_files(root: Path, profile: str) -> list[Path]:
    """The profile's tables of records, sorted by name."""
    return sorted(_folder(root, profile).glob("[!.]*.csv"))


def _drawn(root: Path, profile: str) -> dict[str, list[Path]]:
    """The files of each figure of the profile, by its name."""
    found: dict[str, list[Path]] = {}
    for path in sorted((root / runner.FIGURES / profile).glob("[!.]*.*")):
        found.setdefault(path.name.partition(".")[0], []).append(path)
    return found


def _claimed(root: Path, profile: str) -> list[Path]:
    from liftlab import claims

    found = [path for path in record_files(root, profile) if path.stem in claims.notebooks()]
    if not found:
        raise RunError(f"profile {profile!r} has no records of a claim: liftlab run --profile {profile} makes them")
    return found


def _source(root: Path, profile: str, path: Path) -> Source:
    name, run = path.stem, f"liftlab run {path.stem} --profile {profile}"
    known = name in runner.runs_under(root, profile)
    if not path.is_file():
        remedy = f"{run} makes them" if known else "it is no notebook of the profile, so restore them from where it ran"
        raise RunError(f"no records of {name} ({path.relative_to(root)}): {remedy}")
    about = records.sidecar(path)
    made = about["provenance"]
    shared, varied = _split(made.get("grid") or [made.get("settings", {})])
    alone = [{fact: value for fact, value in made.items() if fact != "settings"}]
    return Source(
        path=path,
        command=run + _sets(root, profile, name, shared) if known else made.get("command", "not told"),
        notebook=runner.notebook(root, name).path if known else None,
        parameters=root / runner.RUNS / profile / f"{name}.yaml" if known else None,
        sha256=about["sha256"],
        **_content(path, about["sha256"]),
        cells=len(made.get("grid", [])),
        failed=len(made.get("failed", [])),
        settings=shared,
        varied=varied,
        makers=made.get("made_with") or alone,
    )


def _content(path: Path, sha256: str) -> dict[str, Any]:
    """The fields that the table itself gives."""
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        return {"whole": False, "rows": 0, "seeds": []}
    table = records.read(path)[0]
    return {"whole": True, "rows": len(table), "seeds": sorted(set(table["seed"].tolist()))}


def _split(grid: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, list]]:
    """The settings that all cells share, and of the others, which some cells may lack, the distinct values."""
    values: dict[str, list] = {}
    cells = list(grid)
    for name in dict.fromkeys(name for cell in cells for name in cell):
        found = {json.dumps(cell[name], sort_keys=True): cell[name] for cell in cells if name in cell}
        values[name] = list(found.values())
    same = {name for name, found in values.items() if len(found) == 1 and all(name in cell for cell in cells)}
    shared = {name: found[0] for name, found in values.items() if name in same}
    return shared, {name: found for name, found in values.items() if name not in same}


def _sets(root: Path, profile: str, name: str, settings: dict[str, Any]) -> str:
    """ " --set NAME=VALUE" for each single value that the records were made with and the profile does not give now."""
    now = runner.parameters(root, name, profile, {})
    single = {key: value for key, value in settings.items() if isinstance(value, str | int | float)}
    other = {key: value for key, value in single.items() if type(now.get(key)) is type(value) and now[key] != value}
    return "".join(f" --set {shlex.quote(f'{key}={value}')}" for key, value in other.items())
