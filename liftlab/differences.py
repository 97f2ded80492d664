"""Stored against recomputed: numbers within a tolerance, text exactly, each difference with its place."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

ROUNDING = 1e-12  # absolute: what is zero but for rounding
PICTURES = (".png", ".svg")  # a machine's fonts and libraries change them, their numbers stand in the .csv


@dataclass(frozen=True)
class Difference:
    """One place where a stored file is not what was recomputed.

    `row` counts from 1, without a table's header; `row` and `column` are "" where it is not in one line or cell.
    """

    file: str
    row: int | str
    column: str
    stored: str
    recomputed: str


@dataclass
class Comparison:
    """What was found: how many files were compared, where they differ, and what else must be known.

    `tolerance` is relative; `largest` is the largest relative difference of two numbers, beyond it or not.
    """

    tolerance: float
    files: int = 0
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    largest: float = 0.0

    def of_presence(self, file: str, stored: bool, recomputed: bool) -> bool:
        """Whether both are there; if not, a difference."""
        if not (stored and recomputed):
            self._differs(file, *("a file" if there else "no file" for there in (stored, recomputed)))
        return stored and recomputed

    def of_files(self, file: str, stored: bytes, recomputed: bytes) -> None:
        """Compare by the ending of `file`: .csv by numbers and text, pictures by bytes, anything else by lines."""
        self.files += 1
        if stored == recomputed:
            return
        if file.endswith(PICTURES):
            self.notes.append(f"{file}: the picture differs, which fonts and library versions may cause")
            return
        texts = [data.decode("utf-8", errors="backslashreplace") for data in (stored, recomputed)]
        if file.endswith(".csv"):
            self._of_tables(file, *(list(csv.reader(io.StringIO(text, newline=""))) for text in texts))
        else:
            self._of_lines(file, *(text.splitlines() for text in texts))

    def of_records(self, file: str, stored: pd.DataFrame, recomputed: pd.DataFrame, without: Iterable[str]) -> None:
        """Compare row by row, but for the columns `without`."""
        self.files += 1
        if list(stored.columns) != list(recomputed.columns):
            self._differs(file, ",".join(stored.columns), ",".join(recomputed.columns), column="header")
        elif len(stored) != len(recomputed):
            self._differs(file, len(stored), len(recomputed), column="number of rows")
        else:
            for name in stored.columns.difference(list(without), sort=False):
                self._of_column(file, name, stored[name].tolist(), recomputed[name].tolist())

    def damaged(self, file: str, reason: str) -> None:
        """A stored file that does not match its checksum."""
        self._differs(file, "damaged", reason)

    def equal(self, stored: float, recomputed: float) -> bool:
        """Whether two numbers are equal within the tolerance, or both missing."""
        if stored == recomputed or (math.isnan(stored) and math.isnan(recomputed)):
            return True
        apart, size = abs(stored - recomputed), max(abs(stored), abs(recomputed))
        if not math.isfinite(apart):
            return False
        if apart <= ROUNDING:
            return True
        self.largest = max(self.largest, apart / size)
        return apart <= self.tolerance * size

    def _differs(self, file: str, *sides: object, row: int | str = "", column: str = "") -> None:
        self.differences.append(Difference(file, row, column, *map(str, sides)))

    def _of_tables(self, file: str, stored: list[list[str]], recomputed: list[list[str]]) -> None:
        if stored[:1] != recomputed[:1]:
            self._differs(file, *(",".join(sum(rows[:1], [])) for rows in (stored, recomputed)), column="header")
        elif len(stored) != len(recomputed):
            self._differs(file, len(stored) - 1, len(recomputed) - 1, column="number of rows")
        else:
            for row, (old, new) in enumerate(zip(stored[1:], recomputed[1:], strict=True), start=1):
                self._of_row(file, row, stored[0], old, new)

    def _of_row(self, file: str, row: int, header: list[str], stored: list[str], recomputed: list[str]) -> None:
        if len(stored) != len(recomputed) or len(stored) != len(header):
            self._differs(file, ",".join(stored), ",".join(recomputed), row=row, column="number of cells")
            return
        for column, old, new in zip(header, stored, recomputed, strict=True):
            if not self._same(old, new):
                self._differs(file, old, new, row=row, column=column)

    def _same(self, stored: str, recomputed: str) -> bool:
        if stored == recomputed:
            return True
        try:
            return self.equal(float(stored), float(recomputed))
        except ValueError:  # a text, or a number that is missing on one side
            return False

    def _of_lines(self, file: str, stored: list[str], recomputed: list[str]) -> None:
        if len(stored) != len(recomputed):
            self._differs(file, len(stored), len(recomputed), column="number of lines")
        for row, (old, new) in enumerate(zip(stored, recomputed, strict=False), start=1):
            if old != new:
                self._differs(file, old, new, row=row, column="line")

    def _of_column(self, file: str, column: str, stored: list, recomputed: list) -> None:
        for row, (old, new) in enumerate(zip(stored, recomputed, strict=True), start=1):
            numbers = isinstance(old, int | float) and isinstance(new, int | float)
            if not (self.equal(old, new) if numbers else old == new):
                self._differs(file, old, new, row=row, column=column)
