"""What a probe's records say, as sentences: paired differences with interval, p and what could have been found."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import pandas as pd

from liftlab.canvas import PlotError, noted, worked
from liftlab.comparisons import FINDINGS, Comparison, counted
from liftlab.records import replace_file
from liftlab.statistics import Paired, holm, minimum_detectable_effect, paired_differences, paired_tests

POWER = 0.8
LEAST = 2  # documents that a test needs

Found = tuple[Comparison, Paired | None, pd.Series | None]  # with its test and its documents' differences, if any


def of(name: str, records: pd.DataFrame, cells: int | None = None) -> str:
    """Markdown: a bullet per comparison, and a line on the tests. PlotError for records that lack what it compares.

    Where cells failed, a line says how many of all the study's `cells`; they count in no comparison.

    p: sign-flip test over documents, Holm's correction over the comparisons of one bullet, which ask one question.
    """
    if name not in FINDINGS:
        raise PlotError(f"no findings are called {name!r}: choose one of {', '.join(FINDINGS)}")
    records, failed = worked(records, cells)
    comparisons, plain = FINDINGS[name](records)
    found = _tested(comparisons)
    bullets = [_bullet(what, list(of)) for what, of in groupby(found, lambda one: one[0].what)]
    counts = [test.documents for _, test, _ in found if test]
    said = "\n".join([*bullets, *(f"- {sentence}" for sentence in plain), *_about_tests(counts)])
    return noted(said, failed)


def save(name: str, records: pd.DataFrame, folder: str | Path, cells: int | None = None) -> str:
    """What `of` says, also written to `folder`/NAME.findings.md."""
    said = of(name, records, cells)
    replace_file(Path(folder) / f"{name}.findings.md", said.encode("utf-8"))
    return said


def _tested(comparisons: list[Comparison]) -> list[Found]:
    """Each with its test, all of them resampled together."""
    apart = [paired_differences(c.a, c.b) if c.documents >= LEAST else None for c in comparisons]
    tests = iter(paired_tests([differences for differences in apart if differences is not None]))
    return [(c, None if differences is None else next(tests), differences)
            for c, differences in zip(comparisons, apart, strict=True)]  # fmt: skip


def _bullet(what: str, found: list[Found]) -> str:
    corrected = iter(holm([test.p for _, test, _ in found if test]))
    said = [_said(c, test, differences, next(corrected)) if test else _untested(c) for c, test, differences in found]
    return f"- {what}: {'; '.join(said)}."


def _untested(comparison: Comparison) -> str:
    return f"{comparison.who} not tested, {counted(comparison.documents)} with both".strip()


def _said(comparison: Comparison, test: Paired, differences: pd.Series, p: float) -> str:
    """ "LoRA +0.93 [+0.88, +0.97], p = 0.06 (6 documents; an effect of 0.20 would be found with power 0.8)"."""
    effect = minimum_detectable_effect(differences, POWER)
    found = f"an effect of {effect:.2f} would be found with power {POWER}" if effect else "the same in each of them"
    lead = f"{comparison.who} no difference found:" if test.low <= 0 <= test.high else comparison.who
    numbers = f"{signed(test.difference)} [{signed(test.low)}, {signed(test.high)}]"
    return f"{lead} {numbers}, p = {p:.2g} ({counted(test.documents)}; {found})".strip()


def signed(value: float) -> str:
    """A number with its sign and two decimals; zero is +0.00."""
    return f"{round(value, 2) + 0.0:+.2f}"  # + 0.0: no minus before a zero


def _about_tests(counts: Sequence[int]) -> list[str]:
    """What p and the detectable effects are, and the smallest p that so few documents can give; `counts` a test."""
    if not counts:
        return []
    least = 2 / 2 ** max(counts)
    limit = f" With at most {max(counts)} documents it cannot fall below {least:.2g}." if least > 0.05 else ""
    many = "two-sided sign-flip test over documents, Holm's correction over the comparisons of a sentence"
    return ["", f"p: {many}.{limit} Detectable effects: paired t-test at 0.05, before that correction."]
