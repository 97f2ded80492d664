"""What the papers printed: every number, the table or figure it is from, and which notebook re-runs it or why none."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd
import yaml

KEYS = ["version", "item"]  # of a table or figure


@dataclass(frozen=True)
class Apart:
    """Rows of an item that are shown but not re-run: those whose `column` has one of `values`."""

    column: str
    values: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Item:
    """A published table or figure: re-run by `notebook`, but for the rows `apart`; or not, for `reason`."""

    version: str
    item: str
    title: str
    notebook: str = ""
    reason: str = ""
    apart: tuple[Apart, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.notebook) == bool(self.reason):
            raise ValueError(f"item {self.item} of {self.version}: give either a notebook or a reason")

    @property
    def told(self) -> str:
        """The notebook, or why there is none; a line more for the rows that are not re-run."""
        rows = [f"{', '.join(part.values)}: {part.reason}" for part in self.apart]
        return "\n".join([self.notebook or self.reason, *rows])


def items() -> list[Item]:
    """Every published table and figure with numbers, paper by paper. ValueError for a mistake in the data."""
    raw = yaml.safe_load(_data("published_items.yaml"))["items"]
    return [Item(**entry | {"apart": tuple(map(_apart, entry.get("apart", [])))}) for entry in raw]


def numbers() -> pd.DataFrame:
    """Every published number, a row each.

    Columns: version, item, benchmark, model, method, task, metric (with its unit), value, and read_from: a table, or
    how it was read off a figure.
    """
    return _numbers().copy()


def of(notebook: str) -> pd.DataFrame:
    """The rows of `numbers` that belong beside what a notebook measures; none if nothing was published of it.

    A further column, reason, says why a row is not re-run; it is "" for those that are.
    """
    rows = _reproduced()
    return rows[rows["notebook"] == notebook].drop(columns="notebook").reset_index(drop=True)


def reproduced() -> pd.DataFrame:
    """`numbers` with two more columns: notebook ("" for none) and reason, why a row is not re-run ("" if it is)."""
    rows = numbers()
    known = {(item.version, item.item): item for item in items()}
    of_rows = [known.get(key) for key in rows[KEYS].itertuples(index=False, name=None)]
    if None in of_rows:
        key = tuple(rows[KEYS].iloc[of_rows.index(None)])
        raise ValueError(f"published item {key} has numbers but is not in published_items.yaml: describe it there")
    told = [_reason(item, row) for item, (_, row) in zip(of_rows, rows.iterrows(), strict=True)]
    return rows.assign(notebook=[item.notebook for item in of_rows], reason=told)


def benchmarks() -> dict[str, Any]:
    """Sizes of the benchmarks, for estimates of cost: hub, source, and of each task documents, questions, lengths."""
    return yaml.safe_load(_data("benchmarks.yaml"))


def _reason(item: Item, row: pd.Series) -> str:
    return next((part.reason for part in item.apart if row[part.column] in part.values), item.reason)


def _apart(part: dict[str, Any]) -> Apart:
    return Apart(part["column"], tuple(part["values"]), part["reason"])


@cache
def _reproduced() -> pd.DataFrame:
    return reproduced()


@cache
def _numbers() -> pd.DataFrame:
    with files("liftlab").joinpath("paper/published.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, comment="#", dtype={"version": str, "value": float})


def _data(name: str) -> str:
    return files("liftlab").joinpath(f"paper/{name}").read_text("utf-8")
