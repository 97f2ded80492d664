"""The numbers of an evaluation's figure and table: what was measured, and beside it what was published."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from itertools import cycle

import numpy as np
import pandas as pd
import yaml

from liftlab import published
from liftlab.canvas import NUMBERS, PlotError, only
from liftlab.statistics import summarise

LONG = ("comprehension_and_reasoning", "multiple_information_retrieval", "computation", "timeline_reorder")
LONG_QA = "long_qa"  # all questions of LooGLE's long dependency
KINDS = ("short_qa", LONG_QA, *LONG, "musique", "narrativeqa", "qmsum", "gov_report", "passage_retrieval_en")
COLUMNS = ["source", "version", "model", "metric", "kind", "condition", *NUMBERS]
SHARE = "share of questions"


def points(records: pd.DataFrame, notebook: str) -> pd.DataFrame:
    """Columns `COLUMNS`, values 0..1: rows of source "measured" (mean and interval over documents), then "published".

    Measured: every score by kind and condition, and LooGLE's long-dependency kinds together as "long_qa".
    """
    measured = measured_points(records)
    told = published_points(notebook)
    whole = pd.concat([measured, told], ignore_index=True) if len(told) else measured
    ranks = {kind: rank for rank, kind in enumerate([*KINDS, *sorted(set(whole["kind"]) - set(KINDS), key=_natural)])}
    first = {name: list(dict.fromkeys(whole[name])).index for name in ("model", "metric", "condition")}  # as recorded
    order = whole.assign(a=whole["source"], b=whole["version"], c=whole["model"].map(first["model"]),
                         d=whole["metric"].map(first["metric"]), e=whole["kind"].map(ranks),
                         f=whole["condition"].map(first["condition"]))  # fmt: skip
    order = order.sort_values(["a", "b", "c", "d", "e", "f"], kind="stable")
    return order[COLUMNS].astype({"documents": "Int64", "questions": "Int64"}).reset_index(drop=True)


def _natural(kind: str) -> list:
    """Sorts the numbers in a name by size: length_2k before length_16k."""
    parts = re.split(r"(\d+(?:\.\d+)?)", kind)
    return [float(part) if number else part for number, part in zip(cycle((False, True)), parts, strict=False)]


def measured_scores(records: pd.DataFrame) -> pd.DataFrame:
    """The rows of scored questions; several of LooGLE's long-dependency kinds also together, as kind "long_qa".

    PlotError for records without a score.
    """
    absent = [name for name in ("kind", "condition", "metric", "unit", "base_model") if name not in records]
    if absent:
        raise PlotError(f"records lack column {absent[0]!r}, which an evaluation needs: they have {list(records)}")
    rows = records[(records["unit"] == SHARE) & (records["condition"] != "chance")]
    if rows.empty:
        raise PlotError("records hold no score of a question: run the evaluation's notebook first")
    return _with_long(rows)


def _with_long(rows: pd.DataFrame) -> pd.DataFrame:
    long = rows[rows["kind"].isin(LONG)]
    parts = [rows, long.assign(kind=LONG_QA)] if long["kind"].nunique() > 1 else [rows]
    return pd.concat(parts, ignore_index=True)


def measured_points(records: pd.DataFrame) -> pd.DataFrame:
    """The measured rows, and the chance level of each kind as condition and metric "chance"."""
    scored, by = measured_scores(records), ["metric", "kind", "condition"]
    rows = pd.concat([scored, _with_long(records[records["condition"] == "chance"])], ignore_index=True)
    found = summarise(rows, by).assign(unit=SHARE, source="measured", version="", model=only(records, "base_model"))
    orders = [found[name].map(list(rows[name].unique()).index) for name in ("condition", "metric")]
    return found.iloc[np.lexsort(orders)][COLUMNS]


def published_points(notebook: str) -> pd.DataFrame:
    """What the papers print for this notebook, percent as shares; methods under our conditions' names."""
    rows = published.of(notebook)
    names = _methods().get(notebook, {})
    conditions = [names.get(version, {}).get(method, method)
                  for version, method in zip(rows["version"], rows["method"], strict=True)]  # fmt: skip
    empty = {"low": float("nan"), "high": float("nan"), "documents": pd.NA, "questions": pd.NA}
    found = rows.assign(source="published", kind=rows["task"].map(published_task), condition=conditions,
                        mean=rows["value"] / 100, unit="share", **empty)  # fmt: skip
    return found[COLUMNS]


@cache
def _raw() -> dict:
    return yaml.safe_load(files("liftlab").joinpath("paper/published_methods.yaml").read_text("utf-8"))


def _methods() -> dict[str, dict[str, dict[str, str]]]:
    return _raw()["methods"]


def published_task(name: str) -> str:
    """The question type that a task of published.csv is, under the benchmark's own name."""
    return _raw()["tasks"].get(name, name)
