"""The companions table: a row per document length and method, its accuracy, what it cost, or why it cannot run."""

from __future__ import annotations

import pandas as pd

from liftlab.companion_points import CANNOT, KINDS, LABELS
from liftlab.context_plots import length_label
from liftlab.probe_tables import interval

COSTS = {  # column of the table: the cost or measure, and its form
    "training tokens": ("training_tokens", "{mean:,.0f}"),
    "prompt tokens": ("prompt_tokens", "{mean:,.0f}"),
    "tokens in all": ("total_tokens", "{mean:,.0f}"),
    "bytes kept": ("stored_bytes", "{mean:,.0f}"),
    "preparing (s)": ("prepare_seconds", "{mean:.2f}"),
    "a question (s)": ("question_seconds", "{mean:.4f}"),
    "seconds in all": ("total_seconds", "{mean:#.3g} [{low:#.3g}, {high:#.3g}]"),
    "perplexity": ("perplexity", "{mean:.3g}"),
    "LongPPL": ("long_perplexity", "{mean:.3g}"),
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


def _cost(row: dict, form: str) -> str:
    """A star where the method is on the front of this cost."""
    drawn = row["panel"] == "cost"
    spent = {name: row[f"cost_{name}" if drawn else name] for name in ("mean", "low", "high")}
    return form.format(**spent) + (" *" if drawn and row["front"] else "")
