"""Figures from records: each drawing returns its figure and the table of exactly the numbers drawn. Never computes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from liftlab.records import replace_file
from liftlab.statistics import summarise

LABELS = {  # drawing order; position decides colour and marker
    "closed_book": "base, closed book",
    "truncated_icl": "truncated ICL",
    "full_icl": "full ICL",
    "lift": "LIFT, closed book",
    "lift_segments_only": "LIFT, segments only",
    "lift_truncated_icl": "LIFT + truncated ICL",
}
PRETRAINING_LABELS = {"in_context": "in context", "closed_book": "closed book"}
WORDINGS = {"trained": "questions in trained wordings", "held_out": "questions in held-out wordings"}
MARKERS = "osD^vP"
DODGE = 0.025  # octaves between neighbouring conditions, so that equal values stay visible
NUMBERS = ["mean", "low", "high", "documents", "questions", "unit"]
STYLE = sns.axes_style("ticks") | {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
SVG = {"svg.hashsalt": "liftlab", "svg.fonttype": "none"}

Drawn = tuple[Figure, pd.DataFrame]


class PlotError(ValueError):
    """The records do not hold what the drawing needs."""


def lift_vs_icl(records: pd.DataFrame) -> Drawn:
    """Accuracy (0..1) against document length in windows, a panel per wording, a line per condition.

    Records: metric "exact_match" with columns wording and windows (document_tokens / window); metric "chance".
    """
    by = ["wording", "condition", "windows"]
    points = pd.concat([_points(records, "exact_match", by, LABELS), _chance(records, ["wording"])], ignore_index=True)
    points = _ordered(points[[*by, *NUMBERS]], {"wording": WORDINGS, "condition": LABELS})
    panels = [wording for wording in WORDINGS if wording in set(points["wording"])]
    figure, axes = _canvas(len(panels), points, records)
    for axis, wording in zip(axes, panels, strict=True):
        _curves(axis, points[points["wording"] == wording], "windows", LABELS, DODGE)
        axis.set_title(WORDINGS[wording], fontsize="medium")
        axis.axvline(1, color="0.6", linewidth=0.8, zorder=0)
    _window_ticks(axes, points["windows"].dropna())
    return _finished(figure, axes, "document length in windows"), points


def pretrain_micro(records: pd.DataFrame) -> Drawn:
    """Accuracy (0..1) of the bundled model against its training step, in context and closed book.

    Records: metric "accuracy", conditions in_context and closed_book, column step; metric "chance".
    """
    by = ["condition", "step"]
    points = pd.concat([_points(records, "accuracy", by, PRETRAINING_LABELS), _chance(records, [])], ignore_index=True)
    points = _ordered(points[[*by, *NUMBERS]], {"condition": PRETRAINING_LABELS})
    figure, axes = _canvas(1, points, records)
    _curves(axes[0], points, "step", PRETRAINING_LABELS, 0)
    return _finished(figure, axes, "training step"), points


DRAWINGS: dict[str, Callable[[pd.DataFrame], Drawn]] = {"lift_vs_icl": lift_vs_icl, "pretrain_micro": pretrain_micro}


def save(name: str, records: pd.DataFrame, folder: str | Path) -> Figure:
    """Draw `name` and write folder/name .png, .svg and .csv; equal records give equal bytes. Returns the figure."""
    if name not in DRAWINGS:
        raise PlotError(f"no drawing is called {name!r}: choose one of {', '.join(DRAWINGS)}")
    with mpl.rc_context(STYLE):
        figure, data = DRAWINGS[name](records)
    plt.close(figure)  # a notebook shows the returned figure once, not twice
    path = Path(folder) / name
    with mpl.rc_context(SVG):
        replace_file(path.with_name(f"{name}.png"), _rendered(figure, "png", {"Software": None}))
        replace_file(path.with_name(f"{name}.svg"), _rendered(figure, "svg", {"Date": None, "Creator": None}))
    text = data.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    replace_file(path.with_name(f"{name}.csv"), text.encode("utf-8"))
    return figure


def _points(records: pd.DataFrame, metric: str, by: list[str], known: dict[str, str]) -> pd.DataFrame:
    """Mean and interval of `metric` per group of `by`. PlotError for a missing column or an unknown condition."""
    rows = _measured(records, metric, by)
    unknown = sorted(set(rows["condition"]) - set(known))
    if unknown:
        raise PlotError(f"condition {unknown[0]!r} has no place in this drawing: it knows {', '.join(known)}")
    return summarise(rows, by).assign(unit=_only(rows, "unit"))


def _measured(records: pd.DataFrame, metric: str, by: list[str]) -> pd.DataFrame:
    absent = [name for name in (*by, "metric", "base_model", "unit") if name not in records.columns]
    if absent:
        raise PlotError(
            f"records lack column {absent[0]!r}, which this drawing needs: they have {list(records.columns)}"
        )
    rows = records[records["metric"] == metric]
    if rows.empty:
        raise PlotError(f"records hold no metric {metric!r}: they have {', '.join(sorted(set(records['metric'])))}")
    return rows


def _chance(records: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """One chance level per group of `by`, as rows of condition "chance"; no row where none was recorded."""
    rows = records[records["metric"] == "chance"].assign(condition="chance")
    if rows.empty:
        return pd.DataFrame(columns=[*by, "condition", *NUMBERS]).astype({"mean": float, "low": float, "high": float})
    levels = summarise(rows, [*by, "condition"])
    return levels.assign(low=np.nan, high=np.nan, unit=_only(rows, "unit"))


def _only(rows: pd.DataFrame, column: str) -> str:
    """The one value that `column` holds; a drawing that mixed several would average over them."""
    values = sorted(set(rows[column]))
    if len(values) != 1:
        raise PlotError(f"records mix several values of {column!r} ({', '.join(values)}): draw one at a time")
    return values[0]


def _ordered(points: pd.DataFrame, orders: dict[str, dict[str, str]]) -> pd.DataFrame:
    """Rows in drawing order, chance last."""
    ranks = {column: {value: rank for rank, value in enumerate(order)} for column, order in orders.items()}
    keys = [points[column].map(ranks[column]).fillna(len(ranks[column])) for column in orders]
    numbers = [points[column] for column in ("windows", "step") if column in points]
    return points.iloc[np.lexsort([*numbers, *reversed(keys)])].reset_index(drop=True)


def _canvas(panels: int, points: pd.DataFrame, records: pd.DataFrame) -> tuple[Figure, list[Axes]]:
    """Empty panels side by side, with the unit on the y axis and model and n in the title."""
    counts = sorted(set(points.loc[points["condition"] != "chance", "documents"]))
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    title = f"{_only(records, 'base_model')}: n = {n} documents a point, bars: 95 % bootstrap interval"
    unit, size = _only(points, "unit"), (4.2 * panels + 0.8, 4.4)  # size in inches
    figure, axes = plt.subplots(1, panels, sharey=True, squeeze=False, figsize=size, layout="constrained")
    figure.suptitle(title, fontsize="medium")
    axes[0, 0].set_ylabel(f"accuracy ({unit})")
    return figure, list(axes[0])


def _curves(axis: Axes, points: pd.DataFrame, x: str, labels: dict[str, str], dodge: float) -> None:
    """A line with 95 % bars per condition, shifted by `dodge` octaves each, and the dotted chance line."""
    present = [condition for condition in labels if condition in set(points["condition"])]
    for place, condition in enumerate(present):
        rows, style = points[points["condition"] == condition], list(labels).index(condition)
        axis.errorbar(
            rows[x] * 2 ** (dodge * (place - (len(present) - 1) / 2)),
            rows["mean"],
            yerr=[(rows["mean"] - rows["low"]).clip(lower=0), (rows["high"] - rows["mean"]).clip(lower=0)],
            color=sns.color_palette("colorblind")[style],
            marker=MARKERS[style],
            label=labels[condition],
            **{"markersize": 5, "linewidth": 1.2, "elinewidth": 0.9, "capsize": 2, "clip_on": False},
        )
    for level in points.loc[points["condition"] == "chance", "mean"]:
        axis.axhline(level, color="0.3", linestyle=":", linewidth=1.2, label="chance", zorder=0)


def _window_ticks(axes: list[Axes], windows: pd.Series) -> None:
    """Ticks at the measured lengths; the one at 1 says that the base model's window ends there."""
    ticks = sorted({*windows, 1.0})
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"{tick:g}" if tick != 1 else "1\n(window)" for tick in ticks])
        axis.minorticks_off()


def _finished(figure: Figure, axes: list[Axes], x_label: str) -> Figure:
    """x labels, limits 0..1, and one legend below the panels."""
    for axis in axes:
        axis.set(xlabel=x_label, ylim=(-0.03, 1.03))
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(4, len(entries)))
    return figure


def _rendered(figure: Figure, form: str, metadata: dict[str, None]) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format=form, dpi=150, metadata=metadata)
    return out.getvalue()
