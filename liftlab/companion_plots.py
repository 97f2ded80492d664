"""The companions figure: accuracy against what it costs, with the methods that no other beats, and by question type."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from liftlab.canvas import COLOURS, LINE, MARKERS, Drawn, PlotError, bars, headed, heading
from liftlab.companion_points import CANNOT, COSTS, KINDS, LABELS, points
from liftlab.context_plots import length_label

MOST = 6  # lengths
WORDS = {"total_tokens": "tokens read for {count} questions", "stored_bytes": "bytes kept to answer",
         "total_seconds": "seconds for {count} questions"}  # fmt: skip
LEFT = 3  # a cost of 0 is drawn this factor below the smallest other one
STYLES = {  # places in the palette and in `MARKERS`, those of the other figures where they have the method
    "closed_book": 0, "truncated_icl": 1, "full_icl": 2, "retrieval": 4, "self_extend": 9, "raw_text": 7,
    "temp_lora": 6, "cartridge": 8, "lift": 3, "lift_truncated_icl": 5,
}  # fmt: skip
MARKER_SIZE = {"markersize": 6}


def companions(records: pd.DataFrame) -> Drawn:
    """Accuracy (0..1) against each cost and by question type: a column of panels per length, a point per method.

    Records: the score a question (column kind), metrics training_tokens, prompt_tokens, stored_bytes, cannot_run (with
    `reason`), where timed prepare_seconds and question_seconds; columns windows and expected_questions.
    """
    data = points(records)
    lengths, costs = sorted(set(data["windows"])), [cost for cost in COSTS if cost in set(data["cost"])]
    if len(lengths) > MOST:
        raise PlotError(f"records hold {len(lengths)} document lengths: draw at most {MOST} at a time")
    rows, columns = len(costs) + 1, len(lengths)
    size = (max(3.1 * columns, 8) + 0.5, 2.9 * rows + 1.5)  # inches
    figure, axes = plt.subplots(rows, columns, sharey=True, squeeze=False, figsize=size, layout="constrained")
    figure.suptitle(heading(records, data[data["panel"] == "cost"]), fontsize="medium")
    for column, length in zip(axes.T, lengths, strict=True):
        at = data[data["windows"] == length]
        for axis, cost in zip(column, costs, strict=False):
            _by_cost(axis, at[(at["panel"] == "cost") & (at["cost"] == cost)])
        _by_kind(column[-1], at[at["panel"] == "kind"])
        headed(column[0], length_label(length) + _missing(at))
    for axis in axes[:, 0]:
        axis.set(ylabel=f"accuracy ({data['unit'].iloc[0]})", ylim=(-0.04, 1.04))
    _legend(figure, axes)
    return figure, data


def _missing(data: pd.DataFrame) -> str:
    """The methods that could not run, a line below the title."""
    rows = data[data["panel"] == CANNOT]
    names = [LABELS[row["condition"]] + ("" if row["documents"] == row["of_documents"] else
             f" ({row['documents']} of {row['of_documents']})") for _, row in rows.iterrows()]  # fmt: skip
    return f"\ncannot run: {', '.join(names)}" if names else "\n"


def _by_cost(axis: Axes, rows: pd.DataFrame) -> None:
    """Points with both intervals, filled where the method ran for every document; the front as steps behind them."""
    least = rows.loc[rows["cost_mean"] > 0, "cost_mean"].min()
    left = least / LEFT
    places = rows.assign(x=rows["cost_mean"].where(rows["cost_mean"] > 0, left))
    best = places[places["front"].astype(bool)].sort_values("x")
    axis.set_xscale("log")
    axis.plot(best["x"], best["mean"], color="0.75", linewidth=4, zorder=0, drawstyle="steps-post",
              label="Pareto front", solid_capstyle="round")  # fmt: skip
    for _, row in places.iterrows():
        _point(axis, row)
    axis.set_xlim(places["x"].min() / 1.6, places["x"].max() * 1.8)
    _cost_ticks(axis, left if (rows["cost_mean"] == 0).any() else None)
    count = int(rows["questions"].iloc[0])
    axis.set_xlabel(WORDS[rows["cost"].iloc[0]].format(count=count) + ", log scale", fontsize="small")


def _point(axis: Axes, row: pd.Series) -> None:
    reach = {"yerr": _reach(row["mean"], row["low"], row["high"])}
    if row["cost_mean"] > 0:
        reach["xerr"] = _reach(row["x"], row["cost_low"], row["cost_high"])
    inside = {} if row["documents"] == row["of_documents"] else {"markerfacecolor": "white"}
    axis.errorbar(
        row["x"], row["mean"], **reach, label=LABELS[row["condition"]], **_look(STYLES[row["condition"]]), **inside
    )


def _look(style: int) -> dict:
    return {**LINE, "color": COLOURS[style], "marker": MARKERS[style % len(MARKERS)], **MARKER_SIZE,
            "linestyle": "none"}  # fmt: skip


def _reach(mean: float, low: float, high: float) -> np.ndarray:
    return np.nan_to_num([[max(mean - low, 0)], [max(high - mean, 0)]])


def _cost_ticks(axis: Axes, zero: float | None) -> None:
    """1, 10, 100 ..., within two decades also 2 and 5 of each; `zero`: where a cost of 0 is drawn."""
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,), numticks=8))
    axis.xaxis.set_major_formatter(FuncFormatter(_short))
    axis.minorticks_off()
    axis.tick_params(axis="x", labelsize="small")
    if zero is not None:
        first, last = int(np.ceil(np.log10(zero * 1.5))), int(np.floor(np.log10(high)))
        decades = [10.0**power for power in range(first, last + 1)]
        axis.set_xticks([zero, *decades], ["0", *map(_short, decades)])
        axis.set_xlim(low, high)


def _short(value: float, _place: int = 0) -> str:
    """ "500", "20 k", "3 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def _by_kind(axis: Axes, rows: pd.DataFrame) -> None:
    """A column of points per question type, the methods beside each other."""
    kinds = [name for name in dict.fromkeys([*KINDS, *rows["kind"]]) if name in set(rows["kind"])]
    present = [name for name in LABELS if name in set(rows["condition"])]
    for place, condition in enumerate(present):
        found = rows[rows["condition"] == condition]
        at = found["kind"].map(kinds.index).astype(float) + 0.8 * ((place + 0.5) / len(present) - 0.5)
        bars(axis, at, found, STYLES[condition], LABELS[condition], linestyle="none", **MARKER_SIZE)
    axis.set_xticks(range(len(kinds)), [KINDS.get(name, name.replace("_", " ")) for name in kinds], fontsize="small")
    axis.set(xlim=(-0.5, len(kinds) - 0.5))
    for border in range(1, len(kinds)):
        axis.axvline(border - 0.5, color="0.85", linewidth=0.8, zorder=0)
    axis.set_xlabel("question type", fontsize="small")


def _legend(figure, axes: np.ndarray) -> None:
    """One for all panels, in the order of `LABELS`."""
    found = [pair for axis in axes.flat for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    entries = {label: handle for handle, label in reversed(found)}
    order = [label for label in (*LABELS.values(), "Pareto front") if label in entries]
    figure.legend(
        [entries[label] for label in order],
        order,
        loc="outside lower center",
        ncols=max(2, int(figure.get_figwidth() / 2.3)),
    )
