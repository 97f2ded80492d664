"""The record table: one row = one measured value, kept as a CSV file with its provenance beside it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # pandas is imported by the functions that need it: the command line starts without it
    import pandas as pd

TEXT = ("study", "base_model", "document", "condition", "metric", "unit")  # required, never empty
WHOLE = ("document_tokens", "seed")  # required
COLUMNS = ("study", "base_model", "document", "document_tokens", "seed", "condition", "metric", "unit", "value")
PACKAGES = ("torch", "transformers", "peft", "tokenizers", "numpy", "pandas", "scipy")


class RecordError(ValueError):
    """A table breaks the contract of records, or a records file is damaged."""


def check(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` unchanged, or raise RecordError naming the column, the row and what to do.

    Required: `COLUMNS`; text columns hold non-empty text, `document_tokens` and `seed` whole numbers, `value` finite
    numbers. Further columns (settings) are free, but each holds one type: text, whole numbers, numbers or true/false.
    """
    import numpy as np

    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise RecordError(f"record table lacks column {missing[0]!r}: a row needs {', '.join(COLUMNS)}")
    if frame.columns.has_duplicates:
        raise RecordError(f"record table has column {_first_duplicate(frame)!r} twice: name each column once")
    if frame.empty:
        raise RecordError("record table has no rows: measure at least one value")
    kinds = {name: _kind(frame[name]) for name in frame.columns}
    for name in TEXT:
        _require(kinds[name] == "text", frame, name, "must hold text")
        empty = frame[name].isna() | (frame[name].astype(str).str.strip() == "")
        _require(not empty.any(), frame, name, f"is empty in row {empty.argmax()}: give a text")
    for name in WHOLE:
        _require(kinds[name] == "whole", frame, name, "must hold whole numbers, in every row")
    _require(kinds["value"] in ("number", "whole"), frame, "value", "must hold numbers")
    wrong = ~np.isfinite(frame["value"].to_numpy(float))
    _require(not wrong.any(), frame, "value", f"is not finite in row {wrong.argmax()}: drop nothing, find out why")
    return frame


def write(frame: pd.DataFrame, path: str | Path, provenance: dict[str, Any]) -> Path:
    """Write a checked table as CSV, each file atomically; the provenance goes first, to the same name with `.json`.

    Numbers are written in the shortest form that reads back exactly, so writing what was read gives the same bytes.
    """
    path = _csv_path(path)
    frame = check(frame)
    data = _csv(frame)
    sidecar = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "columns": {name: "number" if name == "value" else _kind(frame[name]) for name in frame.columns},
        "provenance": provenance,
    }
    replace_file(path.with_suffix(".json"), _json(sidecar))
    replace_file(path, data)
    return path


def read(path: str | Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table and its provenance. Raises FileNotFoundError, or RecordError if the file differs from its checksum.

    A missing text reads as "" and a missing number as NaN.
    """
    import pandas as pd

    path = _csv_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such records: {path}: run its notebook first")
    data, sidecar = path.read_bytes(), _sidecar(path.with_suffix(".json"))
    if hashlib.sha256(data).hexdigest() != sidecar["sha256"]:
        raise RecordError(
            f"records {path} differ from the checksum in {path.stem}.json: edited or cut short, run again"
        )
    rows = list(csv.reader(io.StringIO(data.decode("utf-8"), newline="")))
    columns = zip(rows[0], zip(*rows[1:], strict=True), strict=True)
    frame = pd.DataFrame({name: _parsed(values, sidecar["columns"][name]) for name, values in columns})
    return check(frame), sidecar["provenance"]


def provenance(**facts: Any) -> dict[str, Any]:
    """What made a record: versions, git state, machine, plus the caller's `facts` (base model, settings, gpu ...)."""
    known = {
        "liftlab": _version("liftlab"),
        "git": _git(Path(__file__).resolve().parent),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "hardware": {"platform": platform.platform(), "cpu": _cpu_name(), "cpus": os.cpu_count()},
    }
    taken = sorted(set(known) & set(facts))
    if taken:
        raise RecordError(f"fact {taken[0]!r} is one that provenance finds by itself: name yours otherwise")
    return json.loads(_json(known | facts))


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step: a reader, or a kill at any moment, sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _require(holds: bool, frame: pd.DataFrame, name: str, rule: str) -> None:
    if not holds:
        raise RecordError(f"record table: column {name!r} ({frame[name].dtype}) {rule}")


def _first_duplicate(frame: pd.DataFrame) -> str:
    return frame.columns[frame.columns.duplicated()][0]


def _kind(column: pd.Series) -> str:
    """What a column holds: "flag" (true/false), "whole", "number" or "text"; RecordError for anything else."""
    from pandas.api import types

    for kind, matches in (("flag", types.is_bool_dtype), ("whole", types.is_integer_dtype)):
        if matches(column):
            _require(
                not column.hasnans, column.to_frame(), column.name, "has missing values: use plain int64 or float64"
            )
            return kind
    if types.is_float_dtype(column):
        return "number"
    if column.dropna().map(lambda value: isinstance(value, str)).all():
        return "text"
    raise RecordError(
        f"record table: column {column.name!r} ({column.dtype}) must hold one of text, numbers, true/false"
    )


def _csv(frame: pd.DataFrame) -> bytes:
    """Text quoted where CSV needs it, missing values empty, lines ended by a single newline."""
    texts = [_written(frame[name], "number" if name == "value" else _kind(frame[name])) for name in frame.columns]
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_MINIMAL, lineterminator="\n")
    writer.writerow(frame.columns)
    writer.writerows(zip(*texts, strict=True))
    return out.getvalue().encode("utf-8")


def _written(column: pd.Series, kind: str) -> list[str]:
    if kind == "number":
        numbers = column.to_numpy(float, na_value=math.nan).tolist()
        return ["" if math.isnan(value) else repr(value) for value in numbers]
    return column.fillna("").tolist() if kind == "text" else [str(value) for value in column.tolist()]


def _parsed(values: tuple[str, ...], kind: str) -> pd.Series:
    import pandas as pd

    if kind == "number":
        return pd.Series([float(value) if value else math.nan for value in values], dtype="float64")
    if kind == "whole":
        return pd.Series([int(value) for value in values], dtype="int64")
    return pd.Series([v == "True" for v in values], dtype=bool) if kind == "flag" else pd.Series(values, dtype="str")


def _csv_path(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".csv":
        raise RecordError(f"records file {path} must end in .csv")
    return path


def _json(content: Any) -> bytes:
    try:
        return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")
    except TypeError as error:
        raise RecordError(f"provenance must hold JSON values only: {error}") from error


def _sidecar(path: Path) -> dict[str, Any]:
    """The JSON beside a table, complete, or RecordError."""
    try:
        sidecar = json.loads(path.read_text("utf-8"))
        return {key: sidecar[key] for key in ("sha256", "columns", "provenance")}
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"records lack a whole {path} (provenance and checksum): run the notebook again") from error


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit and whether anything differs from it (untracked files too); None where `folder` is not tracked by git."""
    if not _git_says(folder, "ls-files", "."):
        return None
    return {
        "commit": (_git_says(folder, "rev-parse", "--verify", "--quiet", "HEAD") or "").strip() or None,
        "dirty": bool(_git_says(folder, "status", "--porcelain", "--untracked-files=normal")),
    }


def _git_says(folder: Path, *words: str) -> str | None:
    """Git's answer, None if git is absent or refuses. A hook's GIT_* variables would name another repository."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout


def _cpu_name() -> str:
    """The processor's name as the system reports it; the architecture where it reports none."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
