"""The record table: one row = one measured value, kept as a CSV file with its provenance beside it."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liftlab.provenance import as_json, provenance

__all__ = ["COLUMNS", "RecordError", "WriteError", "check", "provenance", "read", "replace_file", "sidecar", "write"]

if TYPE_CHECKING:  # pandas is imported by the functions that need it: the command line starts without it
    import pandas as pd

TEXT = ("study", "base_model", "document", "condition", "metric", "unit")  # required, never empty
WHOLE = ("document_tokens", "seed")  # required
COLUMNS = ("study", "base_model", "document", "document_tokens", "seed", "condition", "metric", "unit", "value")
QUOTED = re.compile('[,"\r\n]')  # a text with one of these stands in quotes
REMEDIES = {  # of a write that the system refuses, by its error number
    errno.ENOSPC: "free some space there, then run again",
    errno.EDQUOT: "free some of your quota there, then run again",
    errno.EROFS: "it is read-only, use a folder that can be written to",
    errno.EACCES: "get the right to write there, or use another folder",
    errno.EPERM: "get the right to write there, or use another folder",
    errno.ENOTDIR: "a file stands where its folder should be, move it away",
    errno.EEXIST: "a file stands where its folder should be, move it away",
    errno.EISDIR: "a folder stands where the file should be, move it away",
    errno.ENAMETOOLONG: "use a shorter name",
}
UNSYNCED = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)  # systems that cannot sync a folder


class RecordError(ValueError):
    """A table breaks the contract of records, or a records file is damaged."""


class WriteError(OSError):
    """The system refuses to write a file: a full disk, a read-only folder. `errno` is the system's number."""

    def __str__(self) -> str:
        return self.strerror


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
        empty = [value for value in frame[name].unique() if not isinstance(value, str) or not value.strip()]
        row = frame[name].isin(empty).argmax()
        _require(not empty, frame, name, f"is empty in row {row}: give a text")
    for name in WHOLE:
        _require(kinds[name] == "whole", frame, name, "must hold whole numbers, in every row")
    _require(kinds["value"] in ("number", "whole"), frame, "value", "must hold numbers")
    wrong = ~np.isfinite(frame["value"].to_numpy(float))
    _require(not wrong.any(), frame, "value", f"is not finite in row {wrong.argmax()}: drop nothing, find out why")
    return frame


def write(frame: pd.DataFrame, path: str | Path, provenance: dict[str, Any], *, keep_equal: bool = False) -> Path:
    """Write a checked table as CSV, each file atomically; the provenance goes first, to the same name with `.json`.

    Numbers are written in the shortest form that reads back exactly, so writing what was read gives the same bytes.
    `keep_equal`: where a whole table with the same bytes stands, it and its provenance stay untouched.
    """
    path = _csv_path(path)
    frame = check(frame)
    data = _csv(frame)
    if keep_equal and _stands(path, data):
        return path
    about = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "columns": {name: "number" if name == "value" else _kind(frame[name]) for name in frame.columns},
        "provenance": provenance,
    }
    replace_file(path.with_suffix(".json"), as_json(about))
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
    data, about = path.read_bytes(), sidecar(path)
    if hashlib.sha256(data).hexdigest() != about["sha256"]:
        raise RecordError(
            f"records {path} differ from the checksum in {path.stem}.json: edited or cut short, run again"
        )
    texts = pd.read_csv(io.BytesIO(data), dtype=str, na_filter=False)
    frame = pd.DataFrame({name: _parsed(texts[name], about["columns"][name]) for name in texts})
    return check(frame), about["provenance"]


def sidecar(path: str | Path) -> dict[str, Any]:
    """What stands beside a table, whether or not that is whole: sha256, columns (name to kind), provenance."""
    path = _csv_path(path).with_suffix(".json")
    try:
        about = json.loads(path.read_text("utf-8"))
        return {key: about[key] for key in ("sha256", "columns", "provenance")}
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"records lack a whole {path} (provenance and checksum): run the notebook again") from error


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step: a reader, or a kill at any moment, sees the old file or the new one.

    Raises WriteError where the system refuses; the old file stays then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with refusals_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


@contextmanager
def refusals_told(path: Path) -> Iterator[None]:
    """Where the system refuses in the block to write `path`: WriteError, one sentence with the path and a remedy."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno, "see to the disk or the folder, then run again")
        raise WriteError(error.errno, f"cannot write {path} ({error.strerror or error}): {remedy}") from error


def _sync_folder(folder: Path) -> None:
    """Make a new name last through a loss of power, where the system can."""
    if os.name == "nt":  # has no such call
        return
    try:
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise


def _stands(path: Path, data: bytes) -> bool:
    """Whether `data` is at `path`, with a whole sidecar of it."""
    try:
        return path.read_bytes() == data and sidecar(path)["sha256"] == hashlib.sha256(data).hexdigest()
    except (FileNotFoundError, RecordError):
        return False


def _require(holds: bool, frame: pd.DataFrame, name: str, rule: str) -> None:
    if not holds:
        raise RecordError(f"record table: column {name!r} ({frame[name].dtype}) {rule}")


def _first_duplicate(frame: pd.DataFrame) -> str:
    return frame.columns[frame.columns.duplicated()][0]


def _kind(column: pd.Series) -> str:
    """What a column holds: "flag" (true/false), "whole", "number" or "text"; RecordError for anything else."""
    import pandas as pd
    from pandas.api import types

    for kind, matches in (("flag", types.is_bool_dtype), ("whole", types.is_integer_dtype)):
        if matches(column):
            _require(
                not column.hasnans, column.to_frame(), column.name, "has missing values: use plain int64 or float64"
            )
            return kind
    if types.is_float_dtype(column):
        return "number"
    if isinstance(column.dtype, pd.StringDtype) or column.dropna().map(lambda value: isinstance(value, str)).all():
        return "text"
    raise RecordError(
        f"record table: column {column.name!r} ({column.dtype}) must hold one of text, numbers, true/false"
    )


def _csv(frame: pd.DataFrame) -> bytes:
    """Text quoted where CSV needs it, missing values empty, lines ended by a single newline."""
    columns = [_written(frame[name], "number" if name == "value" else _kind(frame[name])) for name in frame.columns]
    lines = [map(_quoted, frame.columns), *zip(*columns, strict=True)]
    return "".join(",".join(line) + "\n" for line in lines).encode("utf-8")


def _written(column: pd.Series, kind: str) -> list[str]:
    if kind == "number":
        numbers = column.to_numpy(float, na_value=math.nan).tolist()
        return ["" if math.isnan(value) else repr(value) for value in numbers]
    values = column.fillna("").tolist() if kind == "text" else column.tolist()
    return [_quoted(value) if kind == "text" else str(value) for value in values]


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if QUOTED.search(text) else text


def _parsed(texts: pd.Series, kind: str) -> pd.Series:
    import pandas as pd

    if kind == "number":
        return pd.Series([float(text) if text else math.nan for text in texts.tolist()], dtype="float64")
    if kind == "whole":
        return texts.astype("int64")
    return texts == "True" if kind == "flag" else texts


def _csv_path(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".csv":
        raise RecordError(f"records file {path} must end in .csv")
    return path
