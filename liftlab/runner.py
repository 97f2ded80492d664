"""Notebooks under profiles: parameters checked before a kernel starts, papermill to execute, the outcome kept."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from glob import escape
from pathlib import Path
from typing import Any

from liftlab import kernels, provenance, records, run_log
from liftlab.kernels import NotebookFailed
from liftlab.parameters import (
    RunError,
    checked,
    defaults,
    from_text,
    from_yaml,
    notebook_json,
    source_of,
    suggestion,
)

RUNS, NOTEBOOKS, FIGURES = "papermill_runs", "notebooks", "figures"
ORDER = "order.yaml"  # in a profile's folder: which notebooks run first
CLOCKS = ("start_time", "end_time", "duration")  # that papermill keeps of each cell


@dataclass(frozen=True)
class LastRun:
    """How the latest execution of a notebook went: `status` "done" or "failed", `end` in UTC (ISO 8601)."""

    status: str
    end: str
    seconds: float
    path: Path


@dataclass(frozen=True)
class Notebook:
    """A notebook of the repository.

    `question` is its first heading; of its metadata, `reproduces` names the source, `reads` "records" says that it
    reads what other notebooks recorded, and `times` that it times what it does: no other may run beside it.
    """

    name: str
    path: Path
    question: str
    reproduces: str = ""
    reads: str = ""
    times: bool = False

    @property
    def parameters(self) -> dict[str, Any]:
        """Defaults of the parameters cell. RunError for what papermill would not see, or could not replace."""
        return defaults(self.path)


def root(path: str | Path | None = None) -> Path:
    """The repository root: `path` (the working directory) or the nearest parent with notebooks/ and papermill_runs/."""
    start = Path.cwd() if path is None else Path(path).resolve()
    for folder in (start, *start.parents):
        if (folder / NOTEBOOKS).is_dir() and (folder / RUNS).is_dir():
            return folder
    raise RunError(
        f"{start} is in no liftlab repository (no parent holds {NOTEBOOKS}/ and {RUNS}/): change to a clone of it"
    )


def records_folder(profile: str) -> Path:
    """Where a profile's records go, also for a notebook that runs in its own folder."""
    return root() / RUNS / profile / "records"


def figures_folder(profile: str) -> Path:
    """Where a profile's figures and tables go, also for a notebook that runs in its own folder."""
    return root() / FIGURES / profile


def logs_folder(root: Path, profile: str) -> Path:
    """Where a profile's runs keep their logs."""
    return root / RUNS / profile / "logs"


def notebooks(root: Path) -> list[Notebook]:
    """Every notebook of the repository, by name, those that read the others' records last: the order of a run."""
    found = [_described(path) for path in sorted((root / NOTEBOOKS).glob("*.ipynb"))]
    return sorted(found, key=lambda known: bool(known.reads))


def notebook(root: Path, name: str) -> Notebook:
    """The notebook called `name`, or RunError with the names there are."""
    return _chosen(name, {known.name: known for known in notebooks(root)}, "notebook")


def profiles(root: Path) -> list[str]:
    """The profiles: subfolders of papermill_runs, by name."""
    return sorted(path.name for path in (root / RUNS).iterdir() if path.is_dir() and not path.name.startswith("."))


def runs_under(root: Path, profile: str) -> list[str]:
    """Names of the notebooks that `profile` has a parameter file for, in the order of a run.

    That is the profile's own (see `first_of`), then that of `notebooks`.
    """
    first = first_of(root, profile)
    return [*first, *(known.name for known in _under(root, profile) if known.name not in first)]


def first_of(root: Path, profile: str) -> list[str]:
    """The notebooks that papermill_runs/PROFILE/order.yaml has run first, in its order; [] without that file.

    RunError where it is no list, or names one that the profile does not run, one twice, or one that reads the others'
    records: these run last.
    """
    known, file = _under(root, profile), root / RUNS / profile / ORDER
    if not file.is_file():
        return []
    source, given = str(file.relative_to(root)), from_yaml(file)
    first = given.get("first")
    if list(given) != ["first"] or not isinstance(first, list) or not first:
        raise RunError(f"{source} must hold `first: [NAME, ...]`, the notebooks that run first, and nothing else")
    readers, names = ([one.name for one in known if bool(one.reads) is reads] for reads in (True, False))
    for place, name in enumerate(first):
        if name in readers:
            raise RunError(f"{source} names {name!r}, which reads what the others record and runs last: leave it out")
        if name not in names:
            near, there = suggestion(name, dict.fromkeys(names)), ", ".join(names) or "none"
            raise RunError(f"{source} names {name!r}, which profile {profile!r} does not run{near}; there are: {there}")
        if name in first[:place]:
            raise RunError(f"{source} names {name!r} twice: name it once")
    return first


def _under(root: Path, profile: str) -> list[Notebook]:
    _chosen(profile, {name: name for name in profiles(root)}, "profile")
    return [known for known in notebooks(root) if _parameter_file(root, known.name, profile).is_file()]


def parameters(root: Path, name: str, profile: str, sets: dict[str, str]) -> dict[str, Any]:
    """What the notebook runs with: its defaults, replaced by the profile's YAML file, replaced by `sets` (as text).

    A value is JSON, or plain text where the default is text. RunError names a wrong parameter and the valid ones.
    """
    chosen, file = notebook(root, name), _parameter_file(root, name, profile)
    if not file.is_file():
        under = ", ".join(runs_under(root, profile)) or "none"
        raise RunError(f"notebook {name!r} has no profile {profile!r} (no {file.relative_to(root)}); it runs: {under}")
    known = chosen.parameters
    values, source = dict(known), str(file.relative_to(root))
    given = [(key, value, source) for key, value in from_yaml(file).items()]
    given += [(key, from_text(words, known.get(key)), "--set") for key, words in sets.items()]
    for key, value, origin in given:
        values[key] = checked(key, value, known, origin, name)
        if key == "profile" and value != profile:
            raise RunError(f"parameter 'profile' = {value!r} (from {origin}) is for --profile to set: leave it out")
    return values | ({"profile": profile} if "profile" in known else {})


def run(root: Path, name: str, profile: str, sets: dict[str, str]) -> Path:
    """Execute a notebook in the root; returns papermill_runs/PROFILE/NAME.ipynb, there only when all cells passed.

    A failed cell or a dying kernel raises NotebookFailed with its last line and leaves NAME.failed.ipynb instead. One
    process at a time executes a notebook under a profile: a second one waits, and says so on stderr.
    """
    root = Path(root).resolve()
    values, source = parameters(root, name, profile, sets), notebook(root, name).path
    done, failed, running = (root / RUNS / profile / f"{name}{tail}.ipynb" for tail in ("", ".failed", ".running"))
    with _executing_alone(running.with_name(f".{name}.lock"), name, profile):
        _sweep(running.parent, name)
        began = provenance.now()
        try:
            _execute(source, running, values, root)
            _keep(running, done, root, source, profile=profile, parameters=values, start=began, end=provenance.now())
            failed.unlink(missing_ok=True)
        except NotebookFailed as error:
            where = failed.relative_to(root)
            _keep(running, failed, root, source, profile=profile, parameters=values, start=began, end=provenance.now())
            raise NotebookFailed(f"notebook {name} failed {error}; see {where}") from error
        finally:
            running.unlink(missing_ok=True)
    return done


def last_run(root: Path, name: str, profile: str) -> LastRun | None:
    """The latest execution under `profile`, None if there was none. A failed one is later than a done one beside it."""
    for tail, status in ((".failed", "failed"), ("", "done")):
        path = root / RUNS / profile / f"{name}{tail}.ipynb"
        if path.is_file():
            kept = notebook_json(path).get("metadata", {}).get("liftlab", {}).get("provenance", {})
            start, end = (str(kept.get(moment) or "") for moment in ("start", "end"))
            both = (datetime.fromisoformat(end) - datetime.fromisoformat(start)) if start and end else None
            return LastRun(status, end, both.total_seconds() if both else math.nan, path)
    return None


@contextmanager
def _executing_alone(path: Path, name: str, profile: str) -> Iterator[None]:
    """Hold the lock file `path`; that of a process that died is free at once."""
    from liftlab.locks import held  # here, because most commands execute nothing

    with held(path, wait=False) as got:
        if got:
            yield
            return
    reason = f"another run executes notebook {name} under {profile}: waiting for its end"
    print(f"liftlab: {reason}", file=sys.stderr, flush=True)
    run_log.event("notebook", notebook=name, status="waiting", reason=reason)
    with held(path):
        run_log.event("notebook", notebook=name, status="running")
        yield


def _sweep(folder: Path, name: str) -> None:
    """Remove what a killed execution left half-written."""
    for tail in (".ipynb.*.tmp", ".failed.ipynb.*.tmp"):
        for path in folder.glob(f".{escape(name)}{tail}"):
            path.unlink()
    (folder / f"{name}.running.ipynb").unlink(missing_ok=True)


def _execute(source: Path, running: Path, values: dict[str, Any], root: Path) -> None:
    """As `kernels.execute`; OSError, said in one sentence, where the disk is full or read-only."""
    try:
        kernels.execute(source, running, values, root)
    except OSError as error:
        what = f"cannot execute notebook {source.stem} into {running} ({error.strerror or error})"
        raise records.WriteError(error.errno, f"{what}: free space on the disk, or make the folder writable") from error


def _keep(running: Path, path: Path, root: Path, source: Path, **facts: Any) -> None:
    """Put the executed notebook at `path` with its provenance, and without what else changes from run to run."""
    executed = notebook_json(running)
    metadata = executed.setdefault("metadata", {})
    for kept in (metadata, *(cell["metadata"] for cell in executed["cells"])):
        kept.pop("execution", None)  # moments at which messages came
        kept["papermill"] = {key: fact for key, fact in kept.get("papermill", {}).items() if key not in CLOCKS}
    for cell in executed["cells"]:
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell["id"] = "injected-parameters"  # papermill draws another one each time
    metadata["papermill"] |= {f"{end}_path": p.relative_to(root).as_posix() for end, p in
                              (("input", source), ("output", path))}  # fmt: skip
    metadata.setdefault("liftlab", {})["provenance"] = provenance.provenance(**facts)
    records.replace_file(path, (json.dumps(executed, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))


def _described(path: Path) -> Notebook:
    raw = notebook_json(path)
    prose = "\n".join(source_of(cell) for cell in raw["cells"] if cell["cell_type"] == "markdown")
    headings = [line.lstrip("#").strip() for line in prose.splitlines() if line.startswith("#")]
    kept = raw.get("metadata", {}).get("liftlab", {})
    said = {name: kept[name] for name in ("reproduces", "reads", "times") if name in kept}
    return Notebook(path.stem, path, headings[0] if headings else "", **said)


def _parameter_file(root: Path, name: str, profile: str) -> Path:
    return root / RUNS / profile / f"{name}.yaml"


def _chosen(name: str, known: dict[str, Any], what: str) -> Any:
    if name not in known:
        raise RunError(
            f"no {what} is called {name!r}{suggestion(name, known)}; there are: {', '.join(known) or 'none'}"
        )
    return known[name]
