"""The companions table: a row per document length and method, its accuracy, what it cost, or why it cannot run."""

from __future__ import annotations

import pandas as pd

from liftlab.companion_points import CANNOT, KINDS, LABELS
from liftlab.context_plots import length_label
from liftlab.probe_tables import digits, interval

COSTS = {  # column of the table: the cost or measure, and its form; None: three digits, with the interval
    "training tokens": ("training_tokens", "{:,.0f}"),
    "prompt tokens": ("prompt_tokens", "{:,.0f}"),
    "tokens in all": ("total_tokens", "{:,.0f}"),
    "bytes kept": ("stored_bytes", "{:,.0f}"),
    "preparing (s)": ("prepare_seconds", "{:.2f}"),
    "a question (s)": ("question_seconds", "{:.4f}"),
    "seconds in all": ("total_seconds", None),
    "perplexity": ("perplexity", "{:.3g}"),
    "LongPPL": ("long_perplexity", "{:.3g}"),
}
NOTHING = "-"


def companions(data: pd.DataFrame) -> pd.DataFrame:
    """Brackets hold 95 % intervals; costs are means over documents; "*": no other method is as good and as cheap."""
    lengths = sorted(set(data["windows"]))
    rows = [row for length in lengths for row in _of_length(length, data[data["windows"] == length])]
    table = pd.DataFrame(rows).fillna(NOTHING)
    empty = [name for name in COSTS if (table[name] == NOTHING).all()]
    return table.drop(columns=empty)


def _of_length(length: float, data: pd.DataFrame) -> list[dict]:
    kinds = [kind for kind in KINDS if kind in set(data["kind"])] + sorted(set(data["kind"].dropna()) - set(KINDS))
    return [{"document": length_label(length), "method": LABELS[name],
             **_of_method(data[data["condition"] == name], kinds)}
            for name in LABELS if name in set(data["condition"])]  # fmt: skip


def _of_method(data: pd.DataFrame, kinds: list[str]) -> dict:
    rows = data.to_dict("records")
    told = [f"cannot run{_share(row)}: {row['reason']}" for row in rows if row["panel"] == CANNOT]
    right = [interval(row) for row in rows if row["panel"] == "cost"][:1]
    by_kind = {row["kind"]: row["mean"] for row in rows if row["panel"] == "kind"}
    shown = {KINDS.get(kind, kind.replace("_", " ")): f"{by_kind[kind]:.2f}" if kind in by_kind else NOTHING
             for kind in kinds}  # fmt: skip
    of = {row["cost"]: row for row in reversed(rows) if isinstance(row["cost"], str)}  # a cost's first row
    return {"accuracy": "; ".join([*right, *told]), **shown,
            **{title: _cost(of[cost], form) if cost in of else NOTHING for title, (cost, form) in COSTS.items()},
            }  # fmt: skip


def _share(row: dict) -> str:
    return "" if row["documents"] == row["of_documents"] else f" ({row['documents']} of {row['of_documents']})"


def _cost(row: dict, form: str | None) -> str:
    """A star where the method is on the front of this cost."""
    drawn = row["panel"] == "cost"
    spent = {name: row[f"cost_{name}" if drawn else name] for name in ("mean", "low", "high")}
    said = interval(spent, digits) if form is None else form.format(spent["mean"])
    return said + (" *" if drawn and row["front"] else "")
