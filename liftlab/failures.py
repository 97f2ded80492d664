"""Failed cells: why each one failed, kept beside the others' files, and its row in the study's table."""

from __future__ import annotations

import errno
import json
import math
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liftlab import provenance, records

if TYPE_CHECKING:  # pandas is imported by the functions that need it, as in records
    import pandas as pd

METRIC, UNIT = "failed", "cell"  # of a failed cell's row
UNKNOWN = "unknown"  # in the text columns that nobody has filled
REASON_CHARACTERS = 400  # of a reason, at most; the whole of it stands in the failure's file
NAMED = 5  # failed cells that a summary names
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # of an OSError: no cell can be kept until somebody has seen to it


class CellError(ValueError):
    """The grid, the list of compute modules or what the environment says cannot be turned into cells."""


class CellsFailed(RuntimeError):
    """Cells failed, or a process that computed them was killed; what was finished is kept."""


def ends_run(error: Exception) -> bool:
    """Whether an error in a cell is the whole run's: a mistake in the grid, or a disk that nothing can be kept on."""
    refused = isinstance(error, OSError) and error.errno in NO_ROOM
    return refused or isinstance(error, CellError | records.WriteError)


@dataclass(frozen=True)
class Failure:
    """One failed cell."""

    settings: dict[str, Any]
    reason: str  # one line
    error: str  # the error's class
    trace: str
    at: str  # see `provenance.now`

    @classmethod
    def of(cls, settings: dict[str, Any], error: Exception) -> Failure:
        kind = type(error).__name__
        reason = " ".join(str(error).split()) or f"{kind}, which says no more"
        if len(reason) > REASON_CHARACTERS:
            reason = reason[: REASON_CHARACTERS - 3] + "..."
        trace = "".join(traceback.format_exception(error))
        return cls(settings, reason, kind, trace, provenance.now())

    def told(self) -> dict[str, Any]:
        """What the study's provenance tells of it."""
        return {"settings": self.settings, "reason": self.reason, "error": self.error}


def path_of(cell: Path) -> Path:
    """Where the failure of the cell is kept whose records would be in the file `cell`."""
    return cell.with_suffix(".failed.json")


def write(failure: Failure, path: Path) -> None:
    content = json.dumps(asdict(failure), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    records.replace_file(path, content.encode("utf-8", "backslashreplace"))


def read(path: Path) -> Failure:
    """The failure as kept. RecordError for a file that is damaged."""
    try:
        return Failure(**json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise records.RecordError(f"{path} is damaged and says no failure: delete it and run again") from error


def rows(failed: dict[str, Failure], study: str, like: pd.DataFrame) -> pd.DataFrame:
    """A row for each failure, by the cell's key, in the columns and types of `like`, the other cells' rows.

    A column holds the setting of its name, where it is of the column's type. What nothing tells is "unknown" in the
    columns that every record must fill, else empty text, NaN, 0 or False.
    """
    import pandas as pd

    made = [_row(key, failure, study, like) for key, failure in failed.items()]
    return pd.DataFrame(made, columns=list(like.columns)).astype(like.dtypes)


def split(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The records without the rows of failed cells, and those rows; each numbered from 0."""
    failed = (frame["metric"] == METRIC) & (frame["unit"] == UNIT)
    return frame[~failed].reset_index(drop=True), frame[failed].reset_index(drop=True)


def summary(failed: Sequence[Failure], grid: Sequence[dict[str, Any]], folder: Path) -> str:
    """One paragraph: how many cells failed and why, each told by the settings that differ within the grid."""
    telling = [name for name in failed[0].settings if any(other.get(name) != grid[0].get(name) for other in grid)]
    told = "; ".join(
        f"{ {name: failure.settings[name] for name in telling or failure.settings} }: {failure.reason}"
        for failure in failed[:NAMED]
    )
    more = f"; and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
    where = f"why stands in {folder}/*.failed.json, and the next run tries them again"
    return f"{len(failed)} of {len(grid)} cells failed: {told}{more}: {where}"


def _row(key: str, failure: Failure, study: str, like: pd.DataFrame) -> dict[str, Any]:
    base = failure.settings.get("base")
    named = isinstance(base, str) and base.strip()
    own = {"study": study, "base_model": base if named else UNKNOWN, "document": f"cell {key}",
           "condition": UNKNOWN, "metric": METRIC, "unit": UNIT, "value": 1.0}  # fmt: skip
    return {name: _value(own.get(name, failure.settings.get(name)), like[name].dtype) for name in like.columns}


def _value(value: Any, dtype: Any) -> Any:
    """`value`, or what stands for none where a column of `dtype` cannot hold it."""
    from pandas.api import types

    if types.is_bool_dtype(dtype):
        return value if isinstance(value, bool) else False
    whole, number = type(value) is int, type(value) in (int, float)
    if types.is_integer_dtype(dtype):
        return value if whole else 0
    if types.is_float_dtype(dtype):
        return float(value) if number else math.nan
    return value if isinstance(value, str) else ""
