"""Tables of the probes' drawings: from the drawing's own numbers, a row per condition, adapter and step or ratio."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from liftlab.context_plots import PLACES, POSITION_LABELS, POSITIONS
from liftlab.probe_plots import ADAPTERS, ratio_label

CONDITIONS = {  # the order of the rows
    "base": "base",
    "lift": "LIFT",
    "other_document": "LIFT of another document",
    "shuffled_answers": "LIFT, answers shuffled",
    "chance": "chance",
}
TRACES = {  # column: panel and line of the drawing
    "document, bits a token": ("bits", "document"),
    "paraphrase, bits a token": ("bits", "paraphrase"),
    "unseen text, bits a token": ("bits", "unseen"),
    "tokens recited, segment's start": ("recited", "segment_start"),
    "tokens recited, its middle": ("recited", "segment_middle"),
    "closed book, held-out": ("closed_book", "held_out"),
    "closed book, 2 hops": ("closed_book", "two_hops"),
    "unseen document in context": ("in_context", "unseen_document"),
}
ANSWERS = {
    "from the context": ("answers", "context"),
    "from memory": ("answers", "memory"),
    "from neither": ("answers", "neither"),
    "closed book, held-out": ("closed_book", "known"),
    "gate, from the context": ("gate", "context"),
    "gate, from memory": ("gate", "memory"),
}
OFFSETS = {
    "closed book, held-out": ("closed_book", "held_out"),
    "closed book, trained": ("closed_book", "trained"),
    "document, bits a token": ("bits", "document"),
    "paraphrase, bits a token": ("bits", "paraphrase"),
    "tokens recited, segment's start": ("recited", "segment_start"),
    "tokens recited, its middle": ("recited", "segment_middle"),
    "tokens trained on": ("trained_tokens", "trained_tokens"),
}


def memorization_vs_icl(data: pd.DataFrame) -> pd.DataFrame:
    """The base model, each adapter at its first, middle and last step, the controls at the last step, chance."""
    rows = data[(data["panel"] != "controls") | ~data["condition"].isin(["lift", "chance"])]
    rows = rows.assign(panel=rows["panel"].replace("controls", "closed_book"))
    lifted = rows["condition"] == "lift"
    chosen = rows[lifted].groupby("adapter")["step"].unique().map(sorted).map(_three)
    keep = [not lift or step in chosen[adapter]
            for lift, step, adapter in zip(lifted, rows["step"], rows["adapter"], strict=True)]  # fmt: skip
    return _table(rows.assign(step=rows["step"].where(lifted))[keep], "step", "step {:g}".format, TRACES)


def _three(steps: list[float]) -> list[float]:
    return [steps[0], steps[len(steps) // 2], steps[-1]]


def conflict(data: pd.DataFrame) -> pd.DataFrame:
    """What was answered from, closed-book accuracy, gates (0..1): base model, adapters, controls at the last step."""
    last = data.groupby("adapter", dropna=False)["step"].transform("max")
    rows = data[data["step"].isna() | (data["step"] == last)]
    return _table(rows, "step", "step {:g}".format, ANSWERS)


def segment_offset(data: pd.DataFrame) -> pd.DataFrame:
    """The base model, each adapter at each ratio of offset to segment length, the controls over all ratios, chance."""
    data = data[(data["condition"] == "lift") | data["ratio"].isna()]
    return _table(data, "ratio", lambda ratio: f"offset {ratio_label(ratio)}", OFFSETS)


def evidence_position(data: pd.DataFrame) -> pd.DataFrame:
    """A row per condition, a column per place that truncation gives the evidence, at the longest documents."""
    rows = data[data["panel"] == "would_be"]
    rows = rows.assign(shown=rows.apply(interval, axis=1), would_be=rows["would_be"].fillna("all"))
    order = [name for name in [*POSITIONS, "chance"] if name in set(rows["condition"])]
    wide = rows.pivot(index="condition", columns="would_be", values="shown").fillna("-").loc[order]
    columns = {label.replace("\n", " "): wide[name] for name, label in PLACES.items() if name in wide}
    table = pd.DataFrame(columns | {"documents": rows.groupby("condition")["documents"].agg(_range)}).loc[order]
    table.insert(0, "condition", [POSITION_LABELS.get(name, name) for name in order])
    return table.reset_index(drop=True)


def _table(data: pd.DataFrame, at: str, named: Callable[[float], str], columns: dict[str, tuple]) -> pd.DataFrame:
    """A row per condition, adapter and value of `at`, in that order; a column per entry of `columns`, and n."""
    index = ["condition", "adapter", at]
    rows = data[[key in columns.values() for key in zip(data["panel"], data["line"], strict=True)]]
    rows = rows.fillna({"adapter": "", at: -1}).assign(shown=rows.apply(_shown, axis=1))
    wide = rows.pivot(index=index, columns=["panel", "line"], values="shown").fillna("-")
    counts = rows.groupby(index)["documents"].agg(_range)
    order = sorted(wide.index, key=lambda key: (list(CONDITIONS).index(key[0]), ["", *ADAPTERS].index(key[1]), key[2]))
    named_rows = [_name(condition, adapter, named(place) if condition == "lift" else "")
                  for condition, adapter, place in order]  # fmt: skip
    table = {label: wide[key].loc[order].to_list() for label, key in columns.items() if key in wide.columns}
    return pd.DataFrame({"condition": named_rows, **table, "documents": counts.loc[order].to_list()})


def _name(condition: str, adapter: str, place: str) -> str:
    """ "LoRA, step 20", "LIFT of another document, LoRA", "base"."""
    parts = [ADAPTERS[adapter], place] if condition == "lift" else [CONDITIONS[condition], ADAPTERS.get(adapter, "")]
    return ", ".join(filter(None, parts))


def _range(documents: pd.Series) -> str:
    low, high = documents.min(), documents.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _shown(row: pd.Series) -> str:
    """Whole numbers for tokens trained on, else `interval`."""
    return f"{row['mean']:,.0f}" if row["panel"] == "trained_tokens" else interval(row)


def interval(row: pd.Series | dict, of: Callable[[float], str] = "{:.2f}".format) -> str:
    """ "0.91 [0.88, 0.94]", each number as `of` says it; the mean alone where there is no interval."""
    return of(row["mean"]) + ("" if np.isnan(row["low"]) else f" [{of(row['low'])}, {of(row['high'])}]")


def digits(value: float) -> str:
    """Three digits: 0.0123, 12.3, 12,300, 5.25e+10."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{float(f'{value:.3g}'):,.10g}"
