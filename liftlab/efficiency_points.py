"""The numbers of the efficiency figure and table: medians over repeats, laws, crossing points, published times."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from liftlab import published
from liftlab.canvas import PlotError, only, only_known
from liftlab.laws import LEAST, Law, crossing, fits, median_interval

PARTS = {  # part: the column of its x
    "first_token": "input_tokens",
    "output_length": "output_tokens",
    "memory": "input_tokens",
    "throughput": "input_tokens",
    "documents_at_once": "documents",
}
CURVES = {"first_token": "seconds", "output_length": "seconds", "memory": "peak_memory"}  # parts with laws: metric
CONDITIONS = {"icl": "ICL", "lift": "LIFT", "lift_streamed": "LIFT, pairs streamed"}  # of these parts, drawing order
METRICS = (*dict.fromkeys(CURVES.values()), "share_of_peak", "share_of_bandwidth", "tokens_per_second", "peak_flops",
           "peak_bandwidth", "documents_per_hour")  # fmt: skip
WHOLE = "whole"  # component: all of a condition's seconds
MEASURED = "measured"
PLACE = ["part", "condition", "component", "metric", "input_tokens", "output_tokens", "documents"]
COLUMNS = ["row", "source", *PLACE, "law", "term", "value", "low", "high", "repeats", "unit", "outcome"]
NEEDED = (*PLACE, "repeat", "outcome", "device", "pair_seconds", "method", "base_model", "unit")  # columns of records
EIGHT_B = re.compile(r"llama-3(\.1)?-8b", re.IGNORECASE)  # base models of the published times' size
PUBLISHED = {"efficiency_ttft": "first_token", "efficiency_generation_128k": "output_length", "figure3": "first_token"}
METHODS = {"lift_sequential": "lift", "lift_async_pipeline": "lift_streamed"}  # published name: ours
LONG_INPUT = 128_000  # tokens, of efficiency_generation_128k
LAW_TOKENS = 1000  # laws count tokens in thousands
TERMS = ("constant", "linear", "quadratic")


def points(records: pd.DataFrame) -> pd.DataFrame:
    """Columns `COLUMNS`, three kinds of `row`.

    "point": median over repeats with its 95 % interval; where `outcome` is not "measured", without a value. Beside them
    those of source "published VERSION", where the base model is of the published size. "law": its coefficients (terms
    constant, linear, quadratic; x in 1,000 tokens) with 95 % intervals, its residuals' "rms" and "largest" (a share),
    `outcome` "chosen" for the law of the lower AICc. "crossing": where `condition` and ICL change order, in tokens;
    `term` names the one that is lower before. Law and crossing: the last x that counted stands in the column of x.
    """
    rows = _checked(records)
    base, _ = only(rows, "base_model"), only(rows, "device")
    taken = rows[rows["outcome"] == MEASURED]
    parts = [_medians(taken), _failed(rows[rows["outcome"] != MEASURED]), _published(base, set(rows["part"])),
             _laws(taken), _crossings(taken)]  # fmt: skip
    whole = pd.concat([part.reindex(columns=COLUMNS).astype(object) for part in parts if len(part)], ignore_index=True)
    numbers = dict.fromkeys(["value", "low", "high"], float) | dict.fromkeys([*PLACE[-3:], "repeats"], "Int64")
    return whole.astype(numbers)


def curve(rows: pd.DataFrame, part: str, condition: str) -> pd.DataFrame:
    """Values of a part's curve, a row per repeat, a column per x: only those x that every repeat measured."""
    rows = rows[(rows["part"] == part) & (rows["metric"] == CURVES[part]) & (rows["condition"] == condition)]
    rows = rows[rows["component"] == WHOLE]
    return rows.pivot_table(index="repeat", columns=PARTS[part], values="value").dropna(axis=1)


def _checked(records: pd.DataFrame) -> pd.DataFrame:
    """The rows of known metrics, in the order of parts and conditions. PlotError for what has no place."""
    absent = [name for name in NEEDED if name not in records]
    if absent:
        raise PlotError(f"records lack column {absent[0]!r}, which this drawing needs: they have {list(records)}")
    rows = records[records["metric"].isin(METRICS)]
    if rows.empty:
        raise PlotError(f"records hold none of {', '.join(METRICS)}: run the notebook efficiency first")
    if unknown := sorted(set(rows["part"]) - set(PARTS)):
        raise PlotError(f"part {unknown[0]!r} has no place in this drawing: it knows {', '.join(PARTS)}")
    only_known(rows[rows["part"].isin(CURVES)], CONDITIONS)
    return rows


def _medians(rows: pd.DataFrame) -> pd.DataFrame:
    """A point per place, several values of one repeat averaged first."""
    found = []
    for key, group in _places(rows):
        middle = median_interval(group.groupby("repeat")["value"].mean().to_numpy())
        found.append((*key, *middle, group["repeat"].nunique(), only(group, "unit")))
    table = pd.DataFrame(found, columns=[*PLACE, "value", "low", "high", "repeats", "unit"])
    return table.assign(row="point", source=MEASURED, outcome=MEASURED)


def _failed(rows: pd.DataFrame) -> pd.DataFrame:
    """A point without a value per place and outcome, with the repeats that ended so."""
    found = [(*key, outcome, group["repeat"].nunique())
             for key, place in _places(rows) for outcome, group in place.groupby("outcome")]  # fmt: skip
    return pd.DataFrame(found, columns=[*PLACE, "outcome", "repeats"]).assign(row="point", source=MEASURED)


def _places(rows: pd.DataFrame):
    """(key, rows) of each place, in the order of parts, conditions (others as recorded) and x."""
    orders = {"part": PARTS, "condition": dict.fromkeys([*CONDITIONS, *rows["condition"]]),
              "component": dict.fromkeys(rows["component"]), "metric": METRICS}  # fmt: skip
    ranks = [rows[name].map({value: rank for rank, value in enumerate(order)}) for name, order in orders.items()]
    lengths = [rows[name] for name in PLACE[-3:]]
    return rows.iloc[np.lexsort([*reversed(lengths), *reversed(ranks)])].groupby(PLACE, sort=False)


def _curves(rows: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """The curves with enough x for a law, by part and condition."""
    found = {(part, condition): curve(rows, part, condition) for part in CURVES for condition in CONDITIONS}
    return {key: one for key, one in found.items() if one.shape[1] >= LEAST}


def _laws(rows: pd.DataFrame) -> pd.DataFrame:
    found = []
    for (part, condition), one in _curves(rows).items():
        unit = only(rows[rows["metric"] == CURVES[part]], "unit")
        at = {"row": "law", "source": MEASURED, "part": part, "condition": condition, "component": WHOLE,
              "metric": CURVES[part], PARTS[part]: one.columns[-1], "repeats": len(one)}  # fmt: skip
        for rank, law in enumerate(fits(one.set_axis(one.columns / LAW_TOKENS, axis=1))):
            chosen = rank == 0 and np.isfinite(law.aicc)
            named = at | {"law": law.name, "outcome": "chosen" if chosen else "not chosen"}
            found += [named | term for term in _terms(law, unit)]
    return pd.DataFrame(found)


def _terms(law: Law, unit: str) -> list[dict]:
    units = (unit, f"{unit} per 1,000 tokens", f"{unit} per (1,000 tokens)^2")
    found = [{"term": term, "value": mean, "low": low, "high": high, "unit": of}
             for term, of, (mean, low, high) in zip(TERMS, units, law.coefficients, strict=False)]  # fmt: skip
    rms = {"term": "rms", "value": law.rms, "unit": unit}
    return [*found, rms, {"term": "largest", "value": law.largest, "unit": "share of the median"}]


def _crossings(rows: pd.DataFrame) -> pd.DataFrame:
    """ICL against each LIFT condition of each part, where both were measured at enough of the same x."""
    curves, found = _curves(rows), []
    for (part, condition), one in curves.items():
        icl = curves.get((part, "icl"))
        shared = icl.columns.intersection(one.columns) if icl is not None and condition != "icl" else []
        if len(shared) < LEAST:
            continue
        at = crossing(icl, one)
        found.append({"row": "crossing", "source": MEASURED, "part": part, "condition": condition, "component": WHOLE,
                      "metric": CURVES[part], PARTS[part]: shared[-1], "value": at.at, "low": at.low, "high": at.high,
                      "term": {"a": "icl", "b": condition}.get(at.lower_first, ""), "unit": "tokens",
                      "repeats": len(icl.index.intersection(one.index)), "outcome":
                      "no crossing" if np.isnan(at.at) else MEASURED})  # fmt: skip
    return pd.DataFrame(found)


def _published(base: str, parts: set[str]) -> pd.DataFrame:
    """The papers' seconds for the measured parts; none where `base` is not a Llama 3 of 8B."""
    rows = published.of("efficiency")
    rows = rows.assign(part=rows["item"].map(PUBLISHED))
    rows = rows[rows["part"].isin(parts)] if EIGHT_B.search(base) else rows.head(0)
    length = rows["task"].str.extract(r"_(\d+)$")[0].astype("Int64")
    outputs = rows["part"] == "output_length"
    lengths = {"input_tokens": length.mask(outputs, LONG_INPUT), "output_tokens": length.where(outputs, 1)}
    return rows.assign(row="point", source="published " + rows["version"], component=WHOLE, metric="seconds", unit="s",
                       condition=rows["method"].replace(METHODS), outcome=MEASURED, documents=1, **lengths)  # fmt: skip
