"""The efficiency figure's table: fitted laws, crossing points, the machine's share, documents an hour."""

from __future__ import annotations

import numpy as np
import pandas as pd

from liftlab.efficiency_points import CONDITIONS, CURVES, MEASURED, PARTS, TERMS, WHOLE
from liftlab.probe_tables import digits, interval

NAMES = {
    "first_token": "time to the first token",
    "output_length": "total time by output",
    "memory": "peak memory",
    "throughput": "throughput",
    "documents_at_once": "documents an hour",
}
OF = {"share_of_peak": "of the matrix product's FLOP/s", "share_of_bandwidth": "of the copy's bytes/s",
      "tokens_per_second": "tokens/s", "peak_flops": "FLOP/s, matrix product", "peak_bandwidth": "bytes/s, copy",
      "documents_per_hour": "documents/h"}  # fmt: skip
POWERS = ("", " x", " x^2")
NOT_MEASURED = "not measured"
FOUND = "found (x: 1,000 tokens)"
COLUMNS = ["measured", "of", "at, or up to", FOUND, "rms residual", "largest residual", "repeats"]
PEAKS = ("peak_flops", "peak_bandwidth")


def efficiency(data: pd.DataFrame) -> pd.DataFrame:
    """Rows by part: laws (x in 1,000 tokens; the chosen one marked), crossings of ICL's curve, single numbers.

    Brackets hold 95 % intervals. Residuals are those of the medians, the largest as a share of its median.
    """
    rows = [row for part in PARTS for row in _of_part(part, data[data["part"] == part])]
    return pd.DataFrame(rows, columns=COLUMNS, dtype=object).fillna("-")


def _of_part(part: str, data: pd.DataFrame) -> list[dict]:
    ours = data[data["source"] == MEASURED]
    if ours.empty:
        return [{"measured": NAMES[part], FOUND: NOT_MEASURED}]
    rows = _laws(part, ours) + _crossings(part, ours) if part in CURVES else _numbers(part, ours)
    return [{"measured": NAMES[part], **row} for row in [*rows, *_failures(part, ours)]]


def _laws(part: str, data: pd.DataFrame) -> list[dict]:
    """A row per condition and law; a condition with too few x for one says so."""
    rows, laws = [], data[data["row"] == "law"]
    for condition in [name for name in CONDITIONS if name in set(data["condition"])]:
        of = laws[laws["condition"] == condition]
        if of.empty:
            rows.append({"of": CONDITIONS[condition], FOUND: f"{NOT_MEASURED} at enough lengths for a law"})
        for name, terms in of.groupby("law", sort=False):
            chosen = ", chosen" * (terms["outcome"].iloc[0] == "chosen")
            rows.append({"of": f"{CONDITIONS[condition]}, {name} law{chosen}", **_law(part, terms.set_index("term"))})
    return rows


def _law(part: str, terms: pd.DataFrame) -> dict:
    """ "s: 0.1 [0.09, 0.11] + 0.4 [0.39, 0.41] x"."""
    known = terms.reindex(TERMS).dropna(subset="value")
    unit = terms["unit"].loc["constant"]
    words = [number(row) + power for (_, row), power in zip(known.iterrows(), POWERS, strict=False)]
    return {"at, or up to": _at(part, terms.iloc[0]), FOUND: f"{unit}: {' + '.join(words)}",
            "rms residual": f"{digits(terms['value'].loc['rms'])} {unit}",
            "largest residual": f"{100 * terms['value'].loc['largest']:.1f} %",
            "repeats": f"{terms['repeats'].iloc[0]:.0f}"}  # fmt: skip


def _crossings(part: str, data: pd.DataFrame) -> list[dict]:
    return [{"of": f"{CONDITIONS[row['condition']]} against ICL", "at, or up to": _at(part, row),
             FOUND: _crossing(row), "repeats": f"{row['repeats']:.0f}"}
            for _, row in data[data["row"] == "crossing"].iterrows()]  # fmt: skip


def _crossing(row: pd.Series) -> str:
    """Which is lower from where on; an interval's bound beyond what was measured is said to be so."""
    before = CONDITIONS.get(row["term"], "")
    if np.isnan(row["value"]):
        return f"no crossing, {before} is lower throughout" if before else "no crossing, equal throughout"
    after = CONDITIONS[row["condition"]] if row["term"] == "icl" else CONDITIONS["icl"]
    bounds = [f"{end:,.0f}" if np.isfinite(end) else beyond
              for end, beyond in ((row["low"], "before the first"), (row["high"], "beyond the last"))]  # fmt: skip
    of = "" if np.isnan(row["low"]) else f" [{', '.join(bounds)}]"
    return f"{before} is lower up to {row['value']:,.0f}{of} tokens, then {after}"


def _numbers(part: str, data: pd.DataFrame) -> list[dict]:
    rows = data[data["metric"].isin(OF) & (data["outcome"] == MEASURED)]
    several = rows.groupby(["component", "metric"])["condition"].transform("nunique") > 1
    return [{"of": _component(row, more), "at, or up to": "-" if row["metric"] in PEAKS else _at(part, row),
             FOUND: f"{number(row)} {OF[row['metric']]}", "repeats": f"{row['repeats']:.0f}"}
            for (_, row), more in zip(rows.iterrows(), several, strict=True)]  # fmt: skip


def _component(row: pd.Series, several: bool) -> str:
    """Which component; its condition too, where there are several or it is the whole of it."""
    if row["metric"] in PEAKS:
        return "the machine"
    condition = CONDITIONS.get(row["condition"], row["condition"])
    if row["component"] == WHOLE:
        return condition
    component = row["component"].replace("_", ", ")
    return f"{component}, {condition}" if several else component


def _failures(part: str, data: pd.DataFrame) -> list[dict]:
    """Where a condition ran out of memory or did not fit the window."""
    rows = data[(data["row"] == "point") & (data["outcome"] != MEASURED)]
    rows = rows.drop_duplicates(["condition", PARTS[part], "outcome"])  # of each component
    return [{"of": CONDITIONS.get(row["condition"], row["condition"]), "at, or up to": _at(part, row),
             FOUND: row["outcome"], "repeats": f"{row['repeats']:.0f}"} for _, row in rows.iterrows()]  # fmt: skip


def number(row: pd.Series) -> str:
    """ "0.91 [0.88, 0.94]", in three digits; the median alone where there is no interval."""
    return interval(row.rename({"value": "mean"}), digits)


def _at(part: str, row: pd.Series) -> str:
    """ "4,000 input tokens", "16 at once"."""
    count, column = f"{row[PARTS[part]]:,.0f}", PARTS[part]
    return f"{count} at once" if column == "documents" else f"{count} {column.replace('_', ' ')}"
