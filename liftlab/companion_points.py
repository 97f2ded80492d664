"""The numbers of the companions figure and table: each method's accuracy and costs, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from liftlab.canvas import PlotError, by_document, joined, measured, only, only_known
from liftlab.statistics import summarise

LABELS = {  # drawing order
    "closed_book": "base, closed book",
    "truncated_icl": "truncated ICL",
    "full_icl": "full ICL",
    "retrieval": "retrieval (BM25)",
    "self_extend": "Self-Extend",
    "raw_text": "text alone, equal tokens",
    "temp_lora": "Temp-LoRA",
    "cartridge": "cartridge (KV prefix)",
    "lift": "LIFT, closed book",
    "lift_truncated_icl": "LIFT + truncated ICL",
}
KINDS = {  # question type: its label; others are labelled as they are called
    "short_qa": "one fact",
    "multiple_information_retrieval": "two facts",
    "comprehension_and_reasoning": "two hops",
}
ACCURACY, CANNOT = "accuracy", "cannot_run"
COSTS = {  # cost drawn: (its parts: once, a question), or the one metric that it is
    "total_tokens": ("training_tokens", "prompt_tokens"),
    "stored_bytes": ("stored_bytes",),
    "total_seconds": ("prepare_seconds", "question_seconds"),
}
MEASURES = ("training_tokens", "prompt_tokens", "prepare_seconds", "question_seconds", "perplexity", "long_perplexity")
KEY = ["windows", "condition", "document"]
NUMBERS = ["mean", "low", "high", "documents", "unit"]
COLUMNS = ["panel", "windows", "condition", "cost", "kind", *NUMBERS, "cost_mean", "cost_low", "cost_high", "cost_unit",
           "front", "of_documents", "questions", "reason"]  # fmt: skip


def points(records: pd.DataFrame) -> pd.DataFrame:
    """Columns `COLUMNS`, four kinds of `panel`; intervals are of 95 % over documents.

    "cost": accuracy (0..1, the mean over question types) and what it cost, a row per method and `cost` of `COSTS`;
    `front`: no other method of this length is at least as good and as cheap, and better in one; only methods that ran
    for all of the length's documents (`of_documents`) can be on it. "kind": accuracy by question type. "measure": the
    mean of what `cost` then names, of `MEASURES`. "cannot_run": `documents` that a method could not run on, and why.
    `questions`: how many a document is to answer. Perplexities are those after the short context.
    """
    rows = only_known(measured_rows(records), LABELS)
    of = rows.groupby("windows")["document"].nunique()
    parts = [_costs(rows, of), _kinds(rows), _measures(rows), _cannot(rows)]
    whole = pd.concat([part.reindex(columns=COLUMNS).astype(object) for part in parts if len(part)], ignore_index=True)
    whole["of_documents"], whole["questions"] = whole["windows"].map(of), expected(rows)
    orders = {"panel": ["cost", "kind", "measure", CANNOT], "cost": [*COSTS, *MEASURES], "condition": list(LABELS)}
    for column, order in orders.items():
        whole[f"_{column}"] = whole[column].map(list(dict.fromkeys(order)).index, na_action="ignore")
    whole = whole.sort_values(["_panel", "windows", "_cost", "kind", "_condition"], kind="stable", na_position="first")
    numbers = dict.fromkeys(["mean", "low", "high", "cost_mean", "cost_low", "cost_high"], float)
    whole_numbers = dict.fromkeys(["documents", "of_documents", "questions"], "Int64")
    return whole[COLUMNS].astype({"windows": float, **numbers, **whole_numbers}).reset_index(drop=True)


def front(accuracy: Sequence[float], cost: Sequence[float]) -> list[bool]:
    """Of each (accuracy, cost) whether no other one is at least as good and as cheap, and better in one."""
    each = list(zip(accuracy, cost, strict=True))
    return [not any(a >= good and c <= dear and (a > good or c < dear) for a, c in each) for good, dear in each]


def measured_rows(records: pd.DataFrame) -> pd.DataFrame:
    """The records, with what the drawing needs. PlotError for a missing column, or no question answered."""
    columns = ["windows", "expected_questions", "kind", "reason", "context", "condition", "document", "seed"]
    score = only_score(records)
    measured(records, score, columns)
    return records[records["metric"].isin([score, *MEASURES, "stored_bytes", CANNOT])]


def only_score(records: pd.DataFrame) -> str:
    """The metric of the answers. PlotError where there is none, or several."""
    answered = records[records["kind"] != ""] if "kind" in records else records.head(0)
    if answered.empty:
        raise PlotError("records hold no answered question: run the notebook companions first")
    return only(answered, "metric")


def expected(rows: pd.DataFrame) -> int:
    """How many questions a document is to answer."""
    counts = sorted(rows["expected_questions"].unique().tolist())
    if len(counts) != 1:
        raise PlotError(f"records mix several expected_questions ({counts}): draw one at a time")
    return int(counts[0])


def by_kind(rows: pd.DataFrame) -> pd.DataFrame:
    """The accuracy of each document, method and question type, in column value."""
    return by_document(rows[rows["kind"] != ""], ["windows", "condition", "kind"])


def accuracies(rows: pd.DataFrame) -> pd.DataFrame:
    """The accuracy of each document and method, each question type with the same weight, in column value."""
    return by_kind(rows).groupby(KEY)["value"].mean().reset_index()


def _value(rows: pd.DataFrame, metric: str) -> pd.Series:
    """The measure of each document and method, by `KEY`; seeds averaged."""
    found = rows[(rows["metric"] == metric) & rows["context"].isin(["", "short"])]
    if found.empty:
        return pd.Series(dtype=float, index=pd.MultiIndex.from_tuples([], names=KEY))
    return by_document(found, ["windows", "condition"]).set_index(KEY)["value"]


def _costs(rows: pd.DataFrame, of: pd.Series) -> pd.DataFrame:
    right = summarise(accuracies(rows), ["windows", "condition"]).assign(unit=_unit(rows, only_score(rows)))
    parts = []
    for cost, metrics in COSTS.items():
        each = [_value(rows, metric) for metric in metrics]
        if any(part.empty for part in each):
            continue
        value = each[0] if len(each) == 1 else each[0] + expected(rows) * each[1]
        spent = summarise(value.rename("value").reset_index(), ["windows", "condition"])
        spent = spent.rename(columns={name: f"cost_{name}" for name in ("mean", "low", "high")})
        both = right.merge(spent[["windows", "condition", "cost_mean", "cost_low", "cost_high"]])
        both = both.assign(panel="cost", cost=cost, cost_unit=_unit(rows, metrics[0]), front=False)
        for _, place in both[both["documents"] == both["windows"].map(of)].groupby("windows"):
            both.loc[place.index, "front"] = front(place["mean"], place["cost_mean"])
        parts.append(both)
    return joined(parts)


def _unit(rows: pd.DataFrame, metric: str) -> str:
    return only(rows[rows["metric"] == metric], "unit")


def _kinds(rows: pd.DataFrame) -> pd.DataFrame:
    found = summarise(by_kind(rows), ["windows", "condition", "kind"])
    return found.assign(panel="kind", unit=_unit(rows, only_score(rows)))


def _measures(rows: pd.DataFrame) -> pd.DataFrame:
    """Documents without a key token have no long_perplexity."""
    parts = [summarise(value.rename("value").reset_index(), ["windows", "condition"]).assign(
        panel="measure", cost=metric, unit=_unit(rows, metric))
        for metric in MEASURES if len(value := _value(rows, metric))]  # fmt: skip
    return joined(parts)


def _cannot(rows: pd.DataFrame) -> pd.DataFrame:
    """The reasons of several documents, each once."""
    found = rows[rows["metric"] == CANNOT]
    if found.empty:
        return pd.DataFrame(columns=COLUMNS)
    groups = found.groupby(["windows", "condition"])
    told = groups["reason"].agg(lambda of: "; ".join(sorted(set(of)))).reset_index()
    return told.assign(panel=CANNOT, documents=groups["document"].nunique().to_numpy())
