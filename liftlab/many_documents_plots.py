"""Drawing of several lifted documents: accuracy, stored KiB and trained tokens against how many there are."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from liftlab.canvas import (
    SUMMARY,
    Drawn,
    PlotError,
    bars,
    headed,
    joined,
    log_ticks,
    measured,
    only,
    only_known,
    over_documents,
)

SHARED = {  # drawing order; position decides colour and marker
    "routed": "an adapter each, routed",
    "joint": "one adapter, trained on all",
    "joint_equal_tokens": "one adapter, tokens of one lift",
    "averaged_deltas": "mean of the deltas",
    "summed_deltas": "sum of the deltas",
    "averaged_weights": "mean of the weights",
}
CONTROLS = {"routed_wrong": "routed to the wrong adapter", "closed_book": "base, closed book"}
LABELS = SHARED | CONTROLS
SCORES = ("exact_match", "f1", "contains")  # the metric of answers is the first that the records hold
PANELS = {
    "accuracy": "accuracy (share of questions)",
    "stored_kib": "adapters kept (KiB)",
    "train_tokens": "tokens trained on",
}
COLUMNS = ["panel", "condition", "together", *SUMMARY]
DODGE = 0.05  # octaves between neighbouring conditions, so that equal values stay visible


def many_documents(records: pd.DataFrame) -> Drawn:
    """Accuracy (0..1), adapters' KiB and trained tokens against the number of documents, a line per condition.

    Records: a score of `SCORES` with columns together (documents; 0 for the base model, which is asked about the whole
    group) and register; metrics "stored_kib", "train_tokens" and "chance". `document` is the group of documents.
    """
    points = _points(records)
    groups = sorted(set(points.loc[points["panel"] == "accuracy", "documents"]))
    figure, axes = plt.subplots(1, len(PANELS), figsize=(13.5, 4.6), layout="constrained")  # inches
    n = f"{groups[0]}" if len(groups) == 1 else f"{groups[0]} to {groups[-1]}"
    title = f"{only(records, 'base_model')}: n = {n} groups of documents a point, bars: 95 % bootstrap interval"
    figure.suptitle(title, fontsize="medium")
    for axis, (panel, label) in zip(axes, PANELS.items(), strict=True):
        _lines(axis, points[points["panel"] == panel])
        headed(axis, label)
    _levels(axes[0], points[points["panel"] == "accuracy"])
    axes[0].set_ylim(-0.03, 1.03)
    entries = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4)
    return figure, points


def score_of(records: pd.DataFrame) -> str:
    """The metric that the answers were scored with."""
    held = [name for name in SCORES if name in records["metric"].unique()]
    if len(held) != 1:
        raise PlotError(f"records hold the scores {held}: draw those of one, of {', '.join(SCORES)}, at a time")
    return held[0]


def answers(records: pd.DataFrame) -> pd.DataFrame:
    """The rows of answers; PlotError where a column is missing or a condition has no place."""
    columns = ["condition", "together", "document", "seed", "value"]
    return only_known(measured(records, score_of(records), columns), LABELS)


def _points(records: pd.DataFrame) -> pd.DataFrame:
    by = ["condition", "together"]
    costs = [records[(records["metric"] == metric) & records["condition"].isin(list(SHARED))]
             for metric in list(PANELS)[1:]]  # fmt: skip
    parts = [over_documents(answers(records), by).assign(panel="accuracy")]
    parts += [over_documents(rows, by).assign(panel=panel) for panel, rows in zip(list(PANELS)[1:], costs, strict=True)]
    level = over_documents(records[records["metric"] == "chance"].assign(condition="chance"), by)
    parts.append(level.assign(panel="accuracy", low=np.nan, high=np.nan))
    points = joined(parts)
    ranks = {name: place for place, name in enumerate([*LABELS, "chance"])}
    panel = points["panel"].map(list(PANELS).index)
    order = np.lexsort([points["together"], points["condition"].map(ranks), panel])
    return points.iloc[order].reset_index(drop=True)[COLUMNS]


def _lines(axis: Axes, points: pd.DataFrame) -> None:
    present = [name for name in LABELS if name in set(points.loc[points["together"] > 0, "condition"])]
    for place, name in enumerate(present):
        rows = points[(points["condition"] == name) & (points["together"] > 0)]
        at = rows["together"] * 2 ** (DODGE * (place - (len(present) - 1) / 2))
        thin = {"linewidth": 0.7, "elinewidth": 0.5, "markersize": 3, "linestyle": "--"} if name in CONTROLS else {}
        bars(axis, at, rows, list(LABELS).index(name), LABELS[name], **thin)
    if (points["mean"] > 1).any():  # KiB and tokens: proportional to the documents, or the same for any number
        axis.set_yscale("log")
        log_ticks(axis.yaxis)
    axis.set_xscale("log", base=2)
    sizes = sorted(points.loc[points["together"] > 0, "together"].unique())
    axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("documents")


def _levels(axis: Axes, points: pd.DataFrame) -> None:
    """What does not depend on the number of documents: the base model and chance, as level lines."""
    for name, line in (("closed_book", (0, (4, 2))), ("chance", ":")):
        for level in points.loc[(points["condition"] == name) & (points["together"] == 0), "mean"]:
            axis.axhline(level, color="0.3", linestyle=line, linewidth=1.2, label=LABELS.get(name, name), zorder=0)


def values(means: pd.DataFrame, condition: str, together: int) -> pd.Series:
    """The accuracy of each group of documents, by its name, from `answers` averaged by condition and together."""
    rows = means[(means["condition"] == condition) & (means["together"] == together)]
    return rows.set_index("document")["value"]


def table(data: pd.DataFrame) -> pd.DataFrame:
    """A row per condition, its accuracy by number of documents, and what the largest number costs."""
    rows = data[data["panel"] == "accuracy"].assign(shown=data.apply(_interval, axis=1))
    wide = rows.pivot(index="condition", columns="together", values="shown").fillna("-")
    order = [name for name in [*LABELS, "chance"] if name in wide.index]
    sizes = [size for size in wide.columns if size > 0]
    shown = {f"{size} document" + "s" * (size != 1): wide.loc[order, size] for size in sizes}
    if 0 in wide.columns:
        shown |= {"the whole group": wide.loc[order, 0]}
    largest = data[data["together"] == sizes[-1]].pivot(index="condition", columns="panel", values="mean")
    for panel, label in list(PANELS.items())[1:]:
        costs = largest.reindex(order)[panel]
        shown[f"{label}, {sizes[-1]} documents"] = costs.map("{:,.0f}".format).where(costs.notna(), "-")
    found = pd.DataFrame(shown)
    found.insert(0, "condition", [LABELS.get(name, name) for name in order])
    return found.reset_index(drop=True)


def _interval(row: pd.Series) -> str:
    return f"{row['mean']:.2f}" + ("" if np.isnan(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]")
