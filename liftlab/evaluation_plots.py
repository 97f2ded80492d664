"""Figures of the papers' evaluation: scores by question type and condition, and the needle's grid."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from liftlab.canvas import COLOURS, LABELS, LINE, MARKERS, Drawn, PlotError, heading, heat_map
from liftlab.evaluation_points import points

SCORE_LABELS = {
    "exact_match": "exact match",
    "f1": "F1",
    "contains": "reference contained in the answer",
    "rouge_l": "ROUGE-L",
    "meteor_without_synonyms": "METEOR without synonyms",
    "longbench_score": "LongBench's score of the task",
    "judge": "judged right",
    "longreward": "mean of four ratings",
    **{f"judge_{name}": f"{name}, rated" for name in ("helpfulness", "logicality", "faithfulness", "completeness")},
    "needle_keys": "key words found",
    "coordinate": "coordinate score",
}
ORDER = "coordinate"
PUBLISHED_MODELS = "Llama-3"  # the published model that a figure shows; tables show all
OVERLAP = ("meteor", "bertscore")  # published beside a judge's score; in tables alone
WORDS = {"lift": "LIFT", "icl": "ICL", "qa": "QA", "pissa": "PiSSA", "sft": "SFT"}  # of a condition's name
ROW = 0.22  # inches a condition
PLACE = re.compile(r"length_([0-9.]+)([a-z]*)_depth_([0-9.]+)")


def condition_label(name: str) -> str:
    """A condition in words."""
    return LABELS.get(name, " ".join(WORDS.get(word, word) for word in name.split("_")))


def scores(notebook: str, records: pd.DataFrame) -> Drawn:
    """A panel per score, a row per question type, a point per condition with its interval; open: published."""
    data = points(records, notebook)
    measured = data[(data["source"] == "measured") & (data["metric"] != "chance")]
    metrics, kinds, conditions = (list(dict.fromkeys(measured[name])) for name in ("metric", "kind", "condition"))
    size = (4.6 * len(metrics) + 2.2, ROW * len(kinds) * (len(conditions) + 1.5) + 1.9)  # inches
    figure, axes = plt.subplots(1, len(metrics), sharey=True, squeeze=False, figsize=size, layout="constrained")
    figure.suptitle(heading(records, measured), fontsize="medium")
    for axis, metric in zip(axes[0], metrics, strict=True):
        guessed = metric == metrics[0] or metrics[0] != ORDER  # its chance level is not that of other scores
        _panel(axis, data if guessed else measured, metric, kinds, conditions)
        axis.set(xlim=(-0.03, 1.03), xlabel=SCORE_LABELS.get(metric, metric))
    _published(axes[0, 0], data, kinds, conditions)
    axes[0, 0].set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
    axes[0, 0].set_ylim(len(kinds) - 0.5, -0.5)
    _legend(figure, axes[0])
    return figure, data


def _shift(place: int, count: int) -> float:
    return 0.7 * ((place + 0.5) / count - 0.5)


def _panel(axis: Axes, data: pd.DataFrame, metric: str, kinds: list[str], conditions: list[str]) -> None:
    measured = data[(data["source"] == "measured") & (data["metric"] == metric)]
    for place, condition in enumerate(conditions):
        rows = measured[measured["condition"] == condition]
        at = rows["kind"].map(kinds.index).astype(float) + _shift(place, len(conditions))
        reach = [(rows["mean"] - rows["low"]).clip(lower=0), (rows["high"] - rows["mean"]).clip(lower=0)]
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        axis.errorbar(rows["mean"], at, xerr=reach, color=colour, marker=marker, label=condition_label(condition),
                      **{**LINE, "linestyle": "none"})  # fmt: skip
    levels = data[data["metric"] == "chance"]
    levels = levels[levels["kind"].isin(kinds)]
    if len(levels):
        axis.plot(levels["mean"], levels["kind"].map(kinds.index), "|", color="0.3", markersize=14, label="chance")
    for edge in range(1, len(kinds)):
        axis.axhline(edge - 0.5, color="0.85", linewidth=0.8, zorder=0)


def _published(axis: Axes, data: pd.DataFrame, kinds: list[str], conditions: list[str]) -> None:
    """Open diamonds: what the papers print for the same type and condition, at their scale and by their judge."""
    rows = data[(data["source"] == "published") & data["model"].str.startswith(PUBLISHED_MODELS)]
    rows = rows[rows["kind"].isin(kinds) & rows["condition"].isin(conditions) & ~rows["metric"].isin(OVERLAP)]
    for count, (_, row) in enumerate(rows.iterrows()):
        place = conditions.index(row["condition"])
        axis.plot(row["mean"], kinds.index(row["kind"]) + _shift(place, len(conditions)), "d", markersize=6,
                  markerfacecolor="none", markeredgecolor=COLOURS[place % len(COLOURS)],
                  label="_" * bool(count) + "published, Llama-3-8B")  # fmt: skip


def _legend(figure: Figure, axes: np.ndarray) -> None:
    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=min(3, len(found)))


def needle(records: pd.DataFrame) -> Drawn:
    """A map of length by depth for each condition, in the first score; above measured, below as 2502.14644v4 prints."""
    data = points(records, "needle")
    data = data[(data["metric"] != "chance") & ~data["kind"].str.startswith("mean_")]
    found = data["kind"].str.extract(PLACE).set_axis(["length", "length_unit", "depth"], axis=1)
    if found.isna().any(axis=None):
        raise PlotError(f"kind {data['kind'][found.isna().any(axis=1)].iloc[0]!r} is no length_L_depth_D")
    data = pd.concat([data, found.astype({"length": float, "depth": float})], axis=1)
    measured, told = data[data["source"] == "measured"], data[data["source"] == "published"]
    metric = measured["metric"].iloc[0]
    rows = [measured[measured["metric"] == metric], told[told["condition"].isin(["finetune_raw", "lift"])]]
    columns = [list(dict.fromkeys(part["condition"])) for part in rows]
    wide = max(map(len, columns))
    figure, axes = plt.subplots(2, wide, figsize=(3.6 * wide + 1, 6.4), squeeze=False, layout="constrained")
    n = heading(records, rows[0]).partition(" documents")[0]
    figure.suptitle(f"{n} haystacks a cell: {SCORE_LABELS.get(metric, metric)}", fontsize="medium")
    for line, part, names in zip(axes, rows, columns, strict=True):
        for axis, name in zip(line, names, strict=False):
            last = part is rows[-1] and name == names[-1]
            _map(axis, part[part["condition"] == name], condition_label(name), last)
        for axis in line[len(names) :]:
            axis.set_axis_off()
    figure.colorbar(axes[0, 0].collections[0], ax=axes, shrink=0.5, label="score, 0..1")
    return figure, pd.concat(rows, ignore_index=True)


def _map(axis: Axes, rows: pd.DataFrame, name: str, last: bool) -> None:
    """Depth down, length across, the mean in each cell."""
    wide = (
        rows.pivot(index="depth", columns="length", values="mean").rename("{:g}".format).rename(columns="{:g}".format)
    )
    heat_map(axis, wide, 1, "viridis", "x-small", last=last)
    unit = {"w": "windows", "k": "1,000 tokens"}.get(rows["length_unit"].iloc[0], "words")
    where = "published: " if rows["source"].iloc[0] == "published" else ""
    axis.set_title(where + name, fontsize="small")
    axis.set(xlabel=f"length ({unit})", ylabel="depth (%)")
    axis.tick_params(length=0)


NOTEBOOKS = (
    "table_loogle", "table_longbench", "ablation_contextualized", "ablation_auxiliary", "ablation_adapter",
    "sentence_qa", "prompt_format", "evidence_in_prompt", "pre_lift_sft", "timeline",
)  # fmt: skip
DRAWINGS: dict[str, Callable[[pd.DataFrame], Drawn]] = {
    **{name: partial(scores, name) for name in NOTEBOOKS},
    "needle": needle,
}
