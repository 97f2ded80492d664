"""Notebooks under profiles: parameters checked before a kernel starts, papermill to execute, the outcome kept."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liftlab.parameters import (
    RunError,
    checked,
    defaults,
    from_text,
    from_yaml,
    notebook_json,
    papermill_path,
    quiet_papermill,
    source_of,
    suggestion,
)

RUNS, NOTEBOOKS, FIGURES = "papermill_runs", "notebooks", "figures"


class NotebookFailed(RunError):
    """A notebook was executed and one of its cells failed."""


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
    """Names of the notebooks that `profile` has a parameter file for, in the order of a run."""
    _chosen(profile, {name: name for name in profiles(root)}, "profile")
    return [known.name for known in notebooks(root) if _parameter_file(root, known.name, profile).is_file()]


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

    A failed cell raises NotebookFailed with its last error line and leaves NAME.failed.ipynb instead.
    """
    root = Path(root).resolve()
    values, source = parameters(root, name, profile, sets), notebook(root, name).path
    done, failed, running = (root / RUNS / profile / f"{name}{tail}.ipynb" for tail in ("", ".failed", ".running"))
    try:
        _execute(source, running, values, root)
        _add_provenance(running, profile, values)
        running.replace(done)
        failed.unlink(missing_ok=True)
    except NotebookFailed as error:
        if running.exists():
            running.replace(failed)
        raise NotebookFailed(f"notebook {name} failed {error}; see {failed.relative_to(root)}") from error
    finally:
        running.unlink(missing_ok=True)
    return done


def last_run(root: Path, name: str, profile: str) -> LastRun | None:
    """The latest execution under `profile`, None if there was none. A failed one is later than a done one beside it."""
    for tail, status in ((".failed", "failed"), ("", "done")):
        path = root / RUNS / profile / f"{name}{tail}.ipynb"
        if path.is_file():
            kept = notebook_json(path).get("metadata", {}).get("papermill", {})
            return LastRun(status, str(kept.get("end_time") or ""), float(kept.get("duration") or math.nan), path)
    return None


def _execute(source: Path, output: Path, values: dict[str, Any], root: Path) -> None:
    """Run every cell with papermill. NotebookFailed for a failing cell or a dying kernel."""
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    kernel = {"kernel_name": "python3", "language": "python", "progress_bar": False, "cwd": str(root)}
    kernel["config"] = Config(KernelManager={"transport_encryption": "auto"})  # other users of the machine may listen
    try:
        with _clean_environment(), quiet_papermill():
            papermill.execute_notebook(papermill_path(source), papermill_path(output), values, **kernel)
    except papermill.PapermillExecutionError as error:
        line = " ".join(f"{error.ename}: {error.evalue}".split())
        raise NotebookFailed(f"in cell [{error.exec_count}]: {line}") from error
    except (DeadKernelError, CellTimeoutError) as error:
        raise NotebookFailed(f"because its kernel died or hung: {error}") from error
    except NoSuchKernel as error:
        raise RunError("Jupyter kernel 'python3' is not installed here: pip install ipykernel") from error


@contextmanager
def _clean_environment() -> Iterator[None]:
    """The kernel is this interpreter's own and shows figures, whatever the shell or another Jupyter left behind."""
    kept = dict(os.environ)
    for name in ("MPLBACKEND", "JPY_PARENT_PID", "JPY_SESSION_NAME", "PAPERMILL_OUTPUT_PATH"):
        os.environ.pop(name, None)
    os.environ |= {"JUPYTER_PREFER_ENV_PATH": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


def _add_provenance(path: Path, profile: str, values: dict[str, Any]) -> None:
    from liftlab import records

    executed = notebook_json(path)
    made_with = records.provenance(profile=profile, parameters=values)
    executed.setdefault("metadata", {}).setdefault("liftlab", {})["provenance"] = made_with
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
