"""Figures from records: each drawing returns its figure and the table of exactly the numbers drawn. Never computes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from liftlab.canvas import (
    INK,
    LABELS,
    NUMBERS,
    Drawn,
    PlotError,
    bars,
    chance,
    heading,
    joined,
    log_ticks,
    only,
    summarised,
    worked,
)
from liftlab.companion_plots import companions
from liftlab.context_plots import conflict, evidence_position
from liftlab.efficiency_plots import efficiency
from liftlab.evaluation_plots import DRAWINGS as EVALUATION_DRAWINGS
from liftlab.gate_plots import gate_values, oracle_gate
from liftlab.many_documents_plots import many_documents
from liftlab.probe_plots import memorization_vs_icl, segment_offset
from liftlab.records import replace_file

PRETRAINING_LABELS = {"in_context": "in context", "closed_book": "closed book"}
WORDINGS = {"trained": "questions in trained wordings", "held_out": "questions in held-out wordings"}
ADAPTER_LABELS = {
    "gated_memory": "Gated Memory, own recipe",
    "gated_memory_published": "Gated Memory, published schedule",
    "lora_equal_steps": "LoRA, equal steps",
    "pissa_equal_steps": "PiSSA, equal steps",
    "lora_equal_time": "LoRA, equal time",
    "pissa_equal_time": "PiSSA, equal time",
    "gated_memory_segments": "Gated Memory, with segments",
    "lora_segments": "LoRA, with segments",
    "pissa_segments": "PiSSA, with segments",
    "lora_own": "LoRA, own recipe",
}
ADAPTER_PANELS = {"accuracy": "accuracy", "seconds": "training time"}
DODGE = 0.025  # octaves between neighbouring conditions, so that equal values stay visible
STYLE = {
    **dict.fromkeys(["axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"], INK),
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titley": 1.0,  # nothing stands above a panel that its title would have to avoid
    "font.sans-serif": ["Arial", "DejaVu Sans", "Liberation Sans", "Bitstream Vera Sans", "sans-serif"],
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
    "patch.edgecolor": "w",
    "patch.force_edgecolor": True,
}
SVG = {"svg.hashsalt": "liftlab", "svg.fonttype": "none"}
DPI = 150  # of a PNG
EFFORT = 3  # of its compression, 0..9: below the usual 6, as there is less to compress


def lift_vs_icl(records: pd.DataFrame) -> Drawn:
    """Accuracy (0..1) against document length in windows, a panel per wording, a line per condition.

    Records: metric "exact_match" with columns wording and windows (document_tokens / window); metric "chance".
    """
    by = ["wording", "condition", "windows"]
    points = pd.concat(
        [summarised(records, "exact_match", by, LABELS), chance(records, ["wording"])], ignore_index=True
    )
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
    points = pd.concat(
        [summarised(records, "accuracy", by, PRETRAINING_LABELS), chance(records, [])], ignore_index=True
    )
    points = _ordered(points[[*by, *NUMBERS]], {"condition": PRETRAINING_LABELS})
    figure, axes = _canvas(1, points, records)
    _curves(axes[0], points, "step", PRETRAINING_LABELS, 0)
    return _finished(figure, axes, "training step"), points


def adapters(records: pd.DataFrame) -> Drawn:
    """Accuracy (0..1) and training seconds of each recipe, a row each.

    Records: metric "exact_match" with column wording; metrics "train_seconds", "steps", "trained_weights", "chance".
    """
    points = _adapter_points(records)
    present = [name for name in ADAPTER_LABELS if name in set(points["condition"])]
    places = points["condition"].map({name: place for place, name in enumerate(present)})
    title, size = heading(records, points[points["condition"] != "chance"]), (9.6, 0.45 * len(present) + 2.2)  # inches
    figure, (left, right) = plt.subplots(1, 2, sharey=True, figsize=size, layout="constrained")
    figure.suptitle(title, fontsize="medium")
    _accuracies(left, points[points["panel"] == "accuracy"], places)
    _seconds(right, points[points["panel"] == "seconds"], places)
    left.set_yticks(range(len(present)), [ADAPTER_LABELS[name] for name in present])
    left.set_ylim(len(present) - 0.5, -0.5)
    figure.legend(loc="outside lower center", ncols=3)
    return figure, points


def _adapter_points(records: pd.DataFrame) -> pd.DataFrame:
    """Both panels' numbers, with the mean steps and trained weights of each condition beside them."""
    by = ["condition", "wording"]
    accuracy = [summarised(records, "exact_match", by, ADAPTER_LABELS), chance(records, ["wording"])]
    seconds = summarised(records, "train_seconds", ["condition"], ADAPTER_LABELS).drop(columns="questions")
    parts = [joined(accuracy).assign(panel="accuracy"), seconds.assign(panel="seconds")]
    points = _ordered(joined(parts), {"panel": ADAPTER_PANELS, "condition": ADAPTER_LABELS, "wording": WORDINGS})
    for name in ("steps", "trained_weights"):
        means = summarised(records, name, ["condition"], ADAPTER_LABELS).set_index("condition")["mean"]
        points[name] = points["condition"].map(means)
    whole = {name: points[name].round().astype("Int64") for name in ("questions", "trained_weights")}
    return points.assign(**whole)[["panel", *by, *NUMBERS, "steps", "trained_weights"]]


def _accuracies(axis: Axes, points: pd.DataFrame, places: pd.Series) -> None:
    """Filled points for held-out wordings, open ones for trained wordings, and the dotted chance line."""
    for wording, shift, inside in (("held_out", 0.12, {}), ("trained", -0.12, {"markerfacecolor": "white"})):
        rows = points[(points["wording"] == wording) & (points["condition"] != "chance")]
        bars(axis, places[rows.index] + shift, rows, 0, WORDINGS[wording], across=True, linestyle="none", **inside)
    for place, level in enumerate(points.loc[points["condition"] == "chance", "mean"].unique()):
        axis.axvline(level, color="0.3", linestyle=":", linewidth=1.2, label="_" * place + "chance", zorder=0)
    axis.set(xlim=(-0.03, 1.03), xlabel=f"accuracy ({only(points, 'unit')})")


def _seconds(axis: Axes, points: pd.DataFrame, places: pd.Series) -> None:
    """Training seconds; on a log scale where they differ by more than a factor of 10."""
    bars(axis, places[points.index], points, 0, "_seconds", across=True, linestyle="none")
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("training time (s)")
    if points["mean"].max() <= 10 * points["mean"].min():
        axis.set_xlim(left=0)
        return
    axis.set(xscale="log", xlabel="training time (s), log scale")
    log_ticks(axis.xaxis)


DRAWINGS: dict[str, Callable[[pd.DataFrame], Drawn]] = {
    "lift_vs_icl": lift_vs_icl,
    "pretrain_micro": pretrain_micro,
    "gate_values": gate_values,
    "oracle_gate": oracle_gate,
    "adapters": adapters,
    "memorization_vs_icl": memorization_vs_icl,
    "conflict": conflict,
    "evidence_position": evidence_position,
    "segment_offset": segment_offset,
    "efficiency": efficiency,
    "many_documents": many_documents,
    "companions": companions,
    **EVALUATION_DRAWINGS,
}


def save(name: str, records: pd.DataFrame, folder: str | Path, cells: int | None = None) -> Figure:
    """Draw `name` and write folder/name .png, .svg and .csv; equal records give equal bytes. Returns the figure.

    Of failed cells the title says how many there are, of all the study's `cells`; nothing else is drawn of them.
    """
    if name not in DRAWINGS:
        raise PlotError(f"no drawing is called {name!r}: choose one of {', '.join(DRAWINGS)}")
    records, failed = worked(records, cells)
    with mpl.rc_context(STYLE):
        figure, data = DRAWINGS[name](records)
    write_figure(figure, data, Path(folder) / name, failed)
    return figure


def write_figure(figure: Figure, data: pd.DataFrame, path: Path, note: str = "", wide: bool = False) -> None:
    """The figure, `note` below its title, as path.png and path.svg, its numbers as path.csv, and the figure closed.

    The SVG has the PNG's layout, as laying out takes as long as drawing; one of its own where names are so `wide` that
    they would not fit, as a text's width depends on the resolution.
    """
    plt.close(figure)  # a notebook shows the returned figure once, not twice
    if note:
        figure.suptitle(f"{figure.get_suptitle()}\n{note}", fontsize="medium")
    layout = figure.get_layout_engine()
    with mpl.rc_context(SVG):
        replace_file(path.with_name(f"{path.name}.png"), _rendered(figure, "png"))
        figure.set_layout_engine(layout if wide else "none")
        replace_file(path.with_name(f"{path.name}.svg"), _rendered(figure, "svg"))
    figure.set_layout_engine(layout)
    text = data.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    replace_file(path.with_name(f"{path.name}.csv"), text.encode("utf-8"))


def _ordered(points: pd.DataFrame, orders: dict[str, dict[str, str]]) -> pd.DataFrame:
    """Rows in drawing order, chance last."""
    ranks = {column: {value: rank for rank, value in enumerate(order)} for column, order in orders.items()}
    keys = [points[column].map(ranks[column]).fillna(len(ranks[column])) for column in orders]
    numbers = [points[column] for column in ("windows", "step") if column in points]
    return points.iloc[np.lexsort([*numbers, *reversed(keys)])].reset_index(drop=True)


def _canvas(panels: int, points: pd.DataFrame, records: pd.DataFrame) -> tuple[Figure, list[Axes]]:
    """Empty panels side by side, with the unit on the y axis and model and n in the title."""
    unit, size = only(points, "unit"), (4.2 * panels + 0.8, 4.4)  # size in inches
    title = heading(records, points[points["condition"] != "chance"])
    figure, axes = plt.subplots(1, panels, sharey=True, squeeze=False, figsize=size, layout="constrained")
    figure.suptitle(title, fontsize="medium")
    axes[0, 0].set_ylabel(f"accuracy ({unit})")
    return figure, list(axes[0])


def _curves(axis: Axes, points: pd.DataFrame, x: str, labels: dict[str, str], dodge: float) -> None:
    """A line with 95 % bars per condition, shifted by `dodge` octaves each, and the dotted chance line."""
    present = [condition for condition in labels if condition in set(points["condition"])]
    for place, condition in enumerate(present):
        rows, style = points[points["condition"] == condition], list(labels).index(condition)
        shifted = rows[x] * 2 ** (dodge * (place - (len(present) - 1) / 2))
        bars(axis, shifted, rows, style, labels[condition])
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


def _rendered(figure: Figure, form: str) -> bytes:
    """What `savefig` writes, which draws a figure twice: once to lay it out, though drawing it does so by itself.

    A PNG has the same pixels without their opacity, which is full: about as many bytes in half the time.
    """
    shown, dpi, out = figure.canvas, figure.dpi, io.BytesIO()
    try:
        figure.set_dpi(DPI)
        if form == "png":
            (canvas := FigureCanvasAgg(figure)).draw()
            picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
            picture.save(out, "png", dpi=(DPI, DPI), compress_level=EFFORT)
        else:
            FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    finally:
        figure.set_canvas(shown)
        figure.set_dpi(dpi)
    return out.getvalue()
