"""The table of `liftlab bench`: from its records, a row per way to lift, with medians over rounds and paired ratios."""

from __future__ import annotations

import math
from io import StringIO
from pathlib import Path

import pandas as pd

from liftlab.canvas import measured, only
from liftlab.laws import median_interval
from liftlab.records import replace_file
from liftlab.tables import markdown

STUDY = "bench"  # of its records, whatever their file is called
WAYS = {
    "reference": "authors' loop",
    "fast": "one by one",
    "stacked": "stacked",
    "processes": "stacked, a process a core",
}
RATES = {"": "documents_per_hour_without_load", "_with_load": "documents_per_hour"}  # column suffix: metric
MEDIANS = ("training_seconds", "load_seconds", "steps", "tokens", "tokens_per_second", "last_epoch_loss")
LARGEST = ("loss_difference", "peak_memory")
AGAINST = ("fast", "reference")
SAME = ("base_model", "device", "command")  # in all records of one run
COLUMNS = ["base_model", "condition", "at_once", "documents", "document_tokens", "device", "command"]


def summary(records: pd.DataFrame) -> pd.DataFrame:
    """A row per way, the authors' loop first.

    Columns, each also _with_load (loading the base model counted): documents_per_hour, the median over rounds, with its
    lowest and highest; fast_ratio and reference_ratio, the median of the ratios within a round to the loop named, with
    low and high of its 95 % interval (missing for one round, or where the loop was not measured). loss_difference is
    the largest of all rounds, the seconds are medians.
    """
    rates = {suffix: _by_round(records, metric) for suffix, metric in RATES.items()}
    for column in SAME:
        only(records, column)
    known = records.drop_duplicates(["condition", "at_once"])[COLUMNS]
    known = known.sort_values(["condition", "at_once"], key=_rank, kind="stable").reset_index(drop=True)
    rows = []
    for way in zip(known["condition"], known["at_once"], strict=True):
        row = {"rounds": len(rates[""])}
        for suffix, rate in rates.items():
            row |= _spread(rate[way], f"documents_per_hour{suffix}")
            row |= {k: v for loop in AGAINST for k, v in _ratio(rate, way, loop, f"{loop}_ratio{suffix}").items()}
        rows.append(row | _others(records, way))
    return pd.concat([known, pd.DataFrame(rows)], axis=1)


def _by_round(records: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A row a round, a column a way: (condition, at_once)."""
    rows = measured(records, metric, ["condition", "at_once", "round"])
    return rows.pivot(index="round", columns=["condition", "at_once"], values="value")


def _rank(column: pd.Series) -> pd.Series:
    return column.map(list(WAYS).index) if column.name == "condition" else column


def _spread(values: pd.Series, name: str) -> dict[str, float]:
    return {name: values.median(), f"{name}_lowest": values.min(), f"{name}_highest": values.max()}


def _ratio(rate: pd.DataFrame, way: tuple[str, int], loop: str, name: str) -> dict[str, float]:
    known = way[0] != loop and (loop, 1) in rate
    found = median_interval((rate[way] / rate[loop, 1]).to_numpy()) if known else (math.nan,) * 3
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def _others(records: pd.DataFrame, way: tuple[str, int]) -> dict[str, float]:
    rows = records[(records["condition"] == way[0]) & (records["at_once"] == way[1])]
    values = rows.groupby("metric")["value"]
    middle, largest = values.median(), values.max()
    return {name: middle[name] for name in MEDIANS} | {name: largest.get(name, math.nan) for name in LARGEST}


def table(data: pd.DataFrame) -> pd.DataFrame:
    """`summary` in words: rates with their range over rounds, ratios with their 95 % interval."""
    rows = [row for _, row in data.iterrows()]
    columns = {
        "way": [WAYS[row["condition"]] for row in rows],
        "at once": [row["at_once"] for row in rows],
        "documents": [row["documents"] for row in rows],
        "documents an hour": [_range(row, "documents_per_hour") for row in rows],
        "loading counted": [_range(row, "documents_per_hour_with_load") for row in rows],
        "/ one by one": [_times(row, "fast_ratio") for row in rows],
        "/ authors' loop": [_times(row, "reference_ratio") for row in rows],
        "/ authors' loop, loading counted": [_times(row, "reference_ratio_with_load") for row in rows],
        "rounds": [row["rounds"] for row in rows],
    }
    return pd.DataFrame(columns)


def _range(row: pd.Series, name: str) -> str:
    """ "812 (790 to 840)"."""
    return f"{row[name]:,.0f} ({row[f'{name}_lowest']:,.0f} to {row[f'{name}_highest']:,.0f})"


def _times(row: pd.Series, name: str) -> str:
    """ "6.31 [6.02, 6.70]"; the ratio alone without an interval, "-" for the loop itself or one not measured."""
    if math.isnan(row[name]):
        return "-"
    return f"{row[name]:.2f}" + (
        "" if math.isnan(row[f"{name}_low"]) else f" [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
    )


def notes(data: pd.DataFrame) -> str:
    """What stands below the table: base model, documents, machine, command line."""
    first, differs = data.iloc[0], data["loss_difference"].max()
    stacked = "" if math.isnan(differs) else (
        f"Last losses of stacked documents differ from those of one by one by at most {differs:.1g} (relative).\n"
    )  # fmt: skip
    return (
        f"Base model {first['base_model']}, documents of about {first['document_tokens']} tokens. Rates: median over "
        "rounds (lowest to highest), without loading the base model unless it says so.\n"
        "Ratios: median over rounds of the ratio of two rates in one round [95 % bootstrap interval].\n"
        f"{stacked}Hardware: {first['device']}.\nMade by: `{first['command']}`\n"
    )


def save(records: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Write the summary to `path`.csv and the table to `path`.md; equal records give equal bytes. Returns the table."""
    data = summary(records)
    text = data.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    replace_file(path.with_name(f"{path.name}.csv"), text.encode("utf-8"))
    data = pd.read_csv(StringIO(text))  # as kept: no number is rounded twice
    shown = table(data)
    replace_file(path.with_name(f"{path.name}.md"), f"{markdown(shown)}\n\n{notes(data)}".encode())
    return shown
