"""Drawings of what training leaves: text, facts and in-context ability over its steps, and over the segment offset."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from liftlab.canvas import (
    COLOURS,
    SUMMARY,
    Drawn,
    PlotError,
    bars,
    each_over_documents,
    headed,
    heading,
    joined,
    last_step,
    measured,
    only_known,
    shared_steps,
)

ADAPTERS = {"lora": "LoRA", "gated_memory": "Gated Memory", "pissa": "PiSSA", "full": "full fine-tuning"}  # colours
STYLES = (("-", "o"), ("--", "s"), ("-.", "D"))  # of a panel's lines
LEVELS = {"base": ":", "chance": (0, (1, 4))}
CONTROLS = {
    "base": "base",
    "lift": "lift",
    "other_document": "other\ndocument",
    "shuffled_answers": "shuffled\nanswers",
    "chance": "chance",
}
FACTS = {"wording": "held_out", "hops": 1}
BITS = {
    "document": ("document", "bits_per_token", {"text": "document"}),
    "paraphrase": ("paraphrase", "bits_per_token", {"text": "paraphrase"}),
    "unseen": ("unseen", "bits_per_token", {"text": "unseen"}),
}
RECITED = {
    "segment_start": ("segment's start", "recited_tokens", {"place": "segment_start"}),
    "segment_middle": ("segment's middle", "recited_tokens", {"place": "segment_middle"}),
}
KNOWN = {
    "held_out": ("held-out", "exact_match", FACTS),
    "trained": ("trained", "exact_match", {"wording": "trained", "hops": 1}),
    "two_hops": ("2 hops", "exact_match", {"hops": 2}),
}
CLOSED_BOOK = {name: (label, metric, chosen | {"context": "none"}) for name, (label, metric, chosen) in KNOWN.items()}
TRACES = {  # panel: line: (label, metric, the values that choose its rows)
    "bits": BITS,
    "recited": RECITED,
    "closed_book": CLOSED_BOOK,
    "in_context": {
        "unseen_document": ("unseen, whole", "exact_match", FACTS | {"context": "unseen_document"}),
        "truncated": ("lifted, truncated", "exact_match", FACTS | {"context": "truncated"}),
    },
}
AT_THE_END = {"controls": {name: CLOSED_BOOK[name] for name in ("held_out", "two_hops")}}
OFFSETS = {
    "closed_book": {name: KNOWN[name] for name in ("held_out", "trained")},
    "bits": {name: BITS[name] for name in ("document", "paraphrase")},
    "recited": RECITED,
    "trained_tokens": {"trained_tokens": ("trained tokens", "trained_tokens", {})},
}
TITLES = {  # panel: title, y axis, columns of the legend
    "bits": ("how well a text is predicted", "bits a token", 3),
    "recited": ("document recited, cue at a", "tokens before the first mistake", 2),
    "closed_book": ("questions, closed book", "accuracy (share of questions)", 3),
    "in_context": ("questions, document in context", "accuracy (share of questions)", 2),
    "controls": ("closed book, last step", "accuracy (share of questions)", 2),
    "trained_tokens": ("tokens trained on", "tokens", 0),
}
LINE_COLUMNS = ["panel", "line", "condition", "adapter"]


def memorization_vs_icl(records: pd.DataFrame) -> Drawn:
    """Text, recitation, closed-book and in-context accuracy over training; controls at each document's last step.

    Records: metrics "bits_per_token" (column text), "recited_tokens" (place), "exact_match" (context, wording, hops),
    "chance"; columns adapter and step. See `along` for the steps drawn. In context: held-out wordings, one hop.
    """
    by = ["condition", "adapter", "step"]
    rows = checked(records, "exact_match", ["adapter", "step", "context", "wording", "hops"], CONTROLS)
    curves = lines(joined([along(rows[rows["condition"] == "lift"]), rows[rows["condition"] == "base"]]), TRACES, by)
    curves = curves[(curves["panel"] != "closed_book") | (curves["condition"] != "base")]  # it is among the controls
    ends = last_step(rows[rows["metric"] != "chance"], ["condition", "adapter"])
    levels = chance_levels(rows, {"closed_book": CLOSED_BOOK, **AT_THE_END})
    points = joined([curves, lines(ends, AT_THE_END, by[:2]), levels])
    points = points.reindex(columns=[*LINE_COLUMNS, "step", *SUMMARY])
    figure, axes = panels(len(TRACES) + 1, heading(records, points[points["condition"] != "chance"]))
    for axis, (panel, drawn) in zip(axes, TRACES.items(), strict=False):
        _curves(axis, points[points["panel"] == panel], panel, drawn, "step")
        axis.set_xlabel("training step")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _controls(axes[len(TRACES)], points[points["panel"] == "controls"])
    axes[-1].legend(handles=_key(points), loc="center", title="lines: see each panel")
    return figure, points


def segment_offset(records: pd.DataFrame) -> Drawn:
    """Closed-book accuracy, bits a token, recited tokens and trained tokens against offset / segment length.

    Records: columns adapter and ratio (empty for the base model); metrics "exact_match" (wording, hops),
    "bits_per_token" (text), "recited_tokens" (place), "trained_tokens", "chance". The controls are in the table over
    all ratios (ratio empty) too.
    """
    by, answers = ["condition", "adapter", "ratio"], {"closed_book": OFFSETS["closed_book"]}
    rows = checked(records, "exact_match", ["adapter", "ratio", "wording", "hops"], CONTROLS)
    parts = [
        lines(rows[rows["condition"].isin(["lift", "base"])], OFFSETS, by),
        lines(rows[rows["condition"] == "other_document"], answers, by, needed=False),
        lines(rows[rows["condition"].isin(["other_document", "shuffled_answers"])], answers, by[:2], needed=False),
        chance_levels(rows, answers),
    ]
    points = joined(parts).reindex(columns=[*LINE_COLUMNS, "ratio", *SUMMARY])
    figure, axes = panels(len(OFFSETS), heading(records, points[points["condition"] != "chance"]))
    ratios = sorted(points["ratio"].dropna().unique())
    for axis, (panel, drawn) in zip(axes, OFFSETS.items(), strict=True):
        axis.axvline(3 / 8, color="0.9", linewidth=6, zorder=0)
        _curves(axis, points[points["panel"] == panel], panel, drawn, "ratio")
        axis.set_xticks(ratios, list(map(ratio_label, ratios)))
        axis.set_xlabel("offset / segment length")
        axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
    marks = [Line2D([], [], color="0.9", linewidth=6, label="3/8")]
    if "other_document" in set(points["condition"]):
        marks.append(Line2D([], [], color="0.4", marker="x", linestyle="", label="lift of another document"))
    figure.legend(handles=[*_key(points), *marks], loc="outside lower center", ncols=4)
    return figure, points


def ratio_label(ratio: float) -> str:
    """ "3/8"."""
    return str(Fraction(ratio).limit_denominator(64))


def checked(records: pd.DataFrame, metric: str, columns: list[str], conditions: Iterable[str]) -> pd.DataFrame:
    """The records, `adapter` "" where there is none. PlotError: no lift's `metric`, a column missing, or a stranger.

    Answers are called exact_match, whatever `score` the study gave them: a study gives all of them the same.
    """
    if "metric" in records.columns:
        records = records.assign(metric=records["metric"].replace({"contains": "exact_match", "f1": "exact_match"}))
    measured(records, metric, ["condition", "document", "seed", "value", *columns])
    rows = only_known(records, conditions)
    if "adapter" in columns:
        rows = rows.assign(adapter=rows["adapter"].fillna(""))
        if unknown := sorted(set(rows["adapter"].unique()) - {"", *ADAPTERS}):
            raise PlotError(f"adapter {unknown[0]!r} has no place in this drawing: it knows {', '.join(ADAPTERS)}")
    if not ((rows["metric"] == metric) & (rows["condition"] == "lift")).any():
        raise PlotError(f"records hold no {metric!r} of condition 'lift': run the study's notebook again")
    return rows


def along(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows at the steps that all documents of an adapter share; a last point holds the last step of each.

    Where last steps differ, that point stands at their mean.
    """
    parts = []
    for _, lifts in rows.groupby("adapter"):
        ends = last_step(lifts)
        parts.append(shared_steps(lifts).astype({"step": float}))
        if ends["step"].nunique() > 1:
            parts.append(ends.assign(step=ends.drop_duplicates(["document", "seed"])["step"].mean()))
    return joined(parts)


def lines(rows: pd.DataFrame, of: dict, by: list[str], needed: bool = True) -> pd.DataFrame:
    """Mean and interval of every line of every panel, by `by`. PlotError where a panel that is `needed` stays empty."""
    found = []
    for panel, drawn in of.items():
        parts = {name: chosen(rows, metric, values) for name, (_, metric, values) in drawn.items()}
        if needed and not any((part["condition"] == "lift").any() for part in parts.values()):
            wanted = " or ".join(f"{metric} where {values}" for _, metric, values in drawn.values())
            raise PlotError(f"panel {panel!r} stays empty: records hold no {wanted} of condition 'lift'")
        found += [(panel, name, part) for name, part in parts.items()]
    means = each_over_documents([part for *_, part in found], by)
    named = [rows.assign(panel=panel, line=name) for (panel, name, _), rows in zip(found, means, strict=True)]
    return joined(named) if any(map(len, named)) else pd.DataFrame(columns=[*by, "panel", "line", *SUMMARY])


def chosen(rows: pd.DataFrame, metric: str, values: dict) -> pd.DataFrame:
    """The rows of `metric` that hold `values`. PlotError where they lack one of those columns."""
    if absent := [name for name in values if name not in rows.columns]:
        raise PlotError(f"records lack column {absent[0]!r}, which {metric} needs: they have {list(rows.columns)}")
    keep = rows["metric"] == metric
    for column, value in values.items():
        keep &= rows[column] == value
    return rows[keep]


def chance_levels(rows: pd.DataFrame, of: dict) -> pd.DataFrame:
    """The chance level of every line, without interval; no row where none was recorded."""
    levels = {panel: {name: (label, "chance", {key: values[key] for key in ("wording", "hops") if key in values})
                      for name, (label, _, values) in drawn.items()} for panel, drawn in of.items()}  # fmt: skip
    rows = rows.assign(condition="chance", adapter="")
    return lines(rows, levels, ["condition", "adapter"], needed=False).assign(low=np.nan, high=np.nan)


def panels(count: int, title: str) -> tuple[Figure, list[Axes]]:
    """`count` panels in one row, or two where they are more than three; a place left over stays white."""
    rows = 1 + (count > 3)
    columns = -(-count // rows)
    size = (max(3.55 * columns, 7.1), 3.8 * rows + 0.5)  # inches
    figure, axes = plt.subplots(rows, columns, squeeze=False, figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # inches
    figure.suptitle(title, fontsize="medium")
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, list(axes.flat)


def adapters_in(points: pd.DataFrame) -> list[str]:
    """The adapters that `points` hold, in drawing order."""
    found = set(points["adapter"].unique())
    return [name for name in ADAPTERS if name in found]


def colour(adapter: str) -> int:
    """The adapter's place in the palette."""
    return list(ADAPTERS).index(adapter)


def _key(points: pd.DataFrame) -> list[Line2D]:
    """Legend entries of the adapters' colours and of the levels drawn dotted."""
    found = set(points["condition"])
    entries = [Line2D([], [], color=COLOURS[colour(name)], linewidth=3, label=ADAPTERS[name])
               for name in adapters_in(points)]  # fmt: skip
    levels = [name for name in LEVELS if name in found]
    return entries + [Line2D([], [], color="0.4", linestyle=LEVELS[name], label=name) for name in levels]


def _curves(axis: Axes, points: pd.DataFrame, panel: str, drawn: dict, x: str) -> None:
    """A line per adapter (colour) and line (style and marker); base and chance dotted, with the line's marker."""
    title, unit, columns = TITLES[panel]
    present, apart = adapters_in(points), 0.012 * (np.ptp(points[x].dropna()) or 1)  # equal values stay visible
    for (dash, marker), (name, (label, *_)) in zip(STYLES, drawn.items(), strict=False):
        style, rows = {"marker": marker, "markersize": 4}, points[points["line"] == name]
        if columns and len(rows):
            axis.plot([], [], color="0.3", linestyle=dash, label=label, **style)
        for adapter in adapters_in(rows):
            of = rows[rows["adapter"] == adapter]
            lift, other = (of[of["condition"] == condition] for condition in ("lift", "other_document"))
            shift = apart * (present.index(adapter) - (len(present) - 1) / 2)
            bars(axis, lift[x] + shift, lift, colour(adapter), f"_{name} {adapter}", linestyle=dash, **style)
            alone = {"linestyle": "none", "marker": "x"}
            bars(axis, other[x] + shift, other, colour(adapter), f"_other {name} {adapter}", **alone)
        for condition, dots in LEVELS.items():
            for level in rows.loc[rows["condition"] == condition, "mean"]:
                axis.plot([0, 1], [level] * 2, color="0.4", linestyle=dots, linewidth=1.1, markevery=[1], zorder=1,
                          clip_on=False, transform=axis.get_yaxis_transform(), **style)  # fmt: skip
    axis.set_ylabel(unit)
    if panel == "trained_tokens":
        axis.yaxis.set_major_formatter("{x:,.0f}")
    if unit.startswith("accuracy"):
        axis.set_ylim(-0.03, 1.03)
    headed(axis, title, columns)


def _controls(axis: Axes, points: pd.DataFrame) -> None:
    """A place per condition; filled points for one hop, open ones for two."""
    title, unit, columns = TITLES["controls"]
    present, insides = adapters_in(points), ({}, {"markerfacecolor": "white"})
    for shift, inside, (name, (label, *_)) in zip((-0.16, 0.16), insides, AT_THE_END["controls"].items(), strict=True):
        rows = points[points["line"] == name]
        if len(rows):
            axis.plot([], [], color="0.3", linestyle="", marker="o", markersize=5, label=label, **inside)
        for adapter in ["", *adapters_in(rows)]:
            of = rows[rows["adapter"] == adapter]
            nudge = 0.1 * (present.index(adapter) - (len(present) - 1) / 2) if adapter else 0
            style = {"linestyle": "none", "marker": "o", **inside, **({} if adapter else {"color": "0.4"})}
            at = of["condition"].map(list(CONTROLS).index).astype(float) + shift + nudge
            bars(axis, at, of, colour(adapter) if adapter else 0, f"_{name} {adapter}", **style)
    axis.set_xticks(range(len(CONTROLS)), CONTROLS.values(), fontsize="x-small")
    axis.set(xlim=(-0.5, len(CONTROLS) - 0.5), ylim=(-0.03, 1.03), ylabel=unit)
    headed(axis, title, columns)
