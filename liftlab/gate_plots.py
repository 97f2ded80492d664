"""Drawings of Gated Memory: where and when its gates open, and how gate and memory compare with the exact ones."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from liftlab.canvas import (
    LABELS,
    SUMMARY,
    Drawn,
    PlotError,
    bars,
    by_document,
    each_over_documents,
    headed,
    heading,
    heat_map,
    joined,
    last_step,
    log_ticks,
    measured,
    only_known,
    over_documents,
    shared_steps,
)

CLOSED, OPEN = "lift", "lift_truncated_icl"
PROMPTS = {CLOSED: "closed book", OPEN: "with head and tail of the document"}
ASKED = {"question": "question tokens", "answer": "answer tokens"}
STYLES = {"question": 0, "answer": 2}  # colours that no condition of `PROMPTS` has
TOKENS = {  # role, evidence
    ("question", False): "question",
    ("answer", False): "answer",
    ("template", False): "template",
    ("document", False): "document,\nother",
    ("document", True): "document,\nevidence",
}
PLACES = {"absent": "nowhere\n(closed book)", "kept": "in the prompt", "dropped": "dropped from\nthe prompt"}
GATE_COLUMNS = ["panel", "condition", "role", "evidence", "evidence_place", "layer", "head", "step", *SUMMARY]
ANNOTATED = 8  # heads or layers; more do not leave room for a number each
ORACLE = {  # panel: metric: label
    "gate": {"gate_exact": "exact gate", "gate_learned": "learned gate"},
    "correlation": {"gate_spearman": "Spearman", "gate_pearson": "Pearson"},
    "memory": {"memory_cosine": "cosine"},
    "output": {
        "output_error_learned": "output: learned gate and memory",
        "output_error_no_memory": "output: no memory (gate 0)",
        "output_error_constant": "output: best constant",
        "memory_error": "memory, per head",
    },
}
ORACLE_TITLES = {
    "gate": ("mean gate", "gate (0..1)"),
    "correlation": ("learned gate against the exact one", "correlation (-1..1)"),
    "memory": ("learned memory against the exact one", "cosine (-1..1)"),
    "output": ("error of the attention output, and of the memory", "relative error (0 = exact)"),
}
ORACLE_COLUMNS = ["panel", "metric", "layer", *SUMMARY]


def gate_values(records: pd.DataFrame) -> Drawn:
    """Mean gate (0..1) by layer and head, by token, over training, and by where the evidence is.

    Records: metric "gate" with columns role, evidence, evidence_place, step, layer, head (both empty: all heads) and
    tokens; metric "accuracy" with columns step and wording.
    """
    points = _gate_points(records)
    panels = dict(tuple(points.groupby("panel")))
    figure, (heads, roles, training, evidence) = _four_panels(heading(records, points))
    _heat_map(heads, panels["layers_heads"])
    _by_token(roles, panels["roles"])
    _over_training(training, panels["training"])
    _by_evidence(evidence, panels["evidence"], panels.get("difference"))
    gates = points[(points["unit"] == "gate") & points["panel"].isin(["roles", "training", "evidence"])]
    top = 1.05 * (gates[["mean", "high"]].max(axis=None) or 1)
    for axis in (roles, training, evidence):  # one scale: the panels are compared
        axis.set(ylim=(0, top), ylabel="mean gate (0..1)")
    return figure, points


def _four_panels(title: str) -> tuple[Figure, list[Axes]]:
    """Two rows of two, each row with a layout of its own: a colour bar above takes no room below."""
    figure = plt.figure(figsize=(10.6, 8.6), layout="constrained")  # inches
    figure.get_layout_engine().set(w_pad=0.1)  # inches
    figure.suptitle(title, fontsize="medium")
    return figure, [axis for row in figure.subfigures(2, 1) for axis in row.subplots(1, 2)]


def _gate_points(records: pd.DataFrame) -> pd.DataFrame:
    """The numbers of every panel, in drawing order."""
    gates, right = _gate_rows(records)
    heads, last = last_step(gates[gates["layer"].notna()]), last_step(gates[gates["layer"].isna()])
    learning = gates[gates["layer"].isna() & (gates["condition"] == CLOSED) & gates["role"].isin(ASKED)]
    placed = last[last["role"].isin(ASKED) & last["evidence_place"].isin(PLACES)]
    panels = [
        ("layers_heads", heads.query("condition == @CLOSED and role == 'answer'"), ["role", "layer", "head"]),
        ("roles", last, ["role", "evidence"]),
        ("training", shared_steps(learning), ["role", "step"]),
        ("training", shared_steps(right), ["step"]),
        ("evidence", placed, ["role", "evidence_place"]),
        ("difference", _difference(placed[placed["condition"] == OPEN]), ["role", "evidence_place"]),
    ]
    found = [over_documents(rows, ["condition", *by], "tokens").assign(panel=name) for name, rows, by in panels]
    points = joined(found).reindex(columns=GATE_COLUMNS)
    closed = points["condition"] == CLOSED
    return points.assign(evidence=points["evidence"].eq(True),
                         evidence_place=points["evidence_place"].mask(closed, "absent"))  # fmt: skip


def _gate_rows(records: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The gates, and the accuracy closed book in held-out wordings; PlotError where a panel would stay empty."""
    columns = ["condition", "role", "evidence", "evidence_place", "layer", "head", "tokens", "step"]
    gates = only_known(measured(records, "gate", columns), PROMPTS)
    answers = gates[(gates["condition"] == CLOSED) & (gates["role"] == "answer")]
    if not 0 < answers["layer"].isna().sum() < len(answers):
        raise PlotError("records lack gates at answer tokens, closed book: by layer and head, or over all of them")
    right = measured(records, "accuracy", ["step", "wording"])
    return gates, right[(right["condition"] == CLOSED) & (right["wording"] == "held_out")].assign(tokens=1)


def _difference(placed: pd.DataFrame) -> pd.DataFrame:
    """gate(dropped) - gate(kept), a row per role and document that has both."""
    means = by_document(placed, ["condition", "role", "evidence_place", "unit"], "tokens")
    wide = means.pivot(index=["condition", "role", "unit", "document"], columns="evidence_place", values="value")
    wide = wide.reindex(columns=["kept", "dropped"])
    rows = (wide["dropped"] - wide["kept"]).dropna().rename("value").reset_index()
    return rows.assign(evidence_place="dropped - kept", seed=0, tokens=1)


def _heat_map(axis: Axes, points: pd.DataFrame) -> None:
    grid = points.assign(layer=points["layer"].astype(int), head=points["head"].astype(int))
    grid = grid.pivot(index="layer", columns="head", values="mean").sort_index(ascending=False)
    few = max(grid.shape) <= ANNOTATED
    heat_map(axis, grid, grid.max(axis=None) or 1, "Blues", "medium" if few else "", bar="gate (0..1)")
    axis.tick_params(axis="y", rotation=0)
    headed(axis, "by layer and head: answer tokens, closed book")


def _by_token(axis: Axes, points: pd.DataFrame) -> None:
    for shift, condition in ((-0.1, CLOSED), (0.1, OPEN)):
        rows = points[points["condition"] == condition]
        at = pd.Series(list(zip(rows["role"], rows["evidence"], strict=True)), rows.index).map(list(TOKENS).index)
        bars(axis, at + shift, rows, list(LABELS).index(condition), PROMPTS[condition], linestyle="none")
    axis.set_xticks(range(len(TOKENS)), TOKENS.values())
    axis.set_xlim(-0.5, len(TOKENS) - 0.5)
    headed(axis, "by token", 2)


def _over_training(axis: Axes, points: pd.DataFrame) -> None:
    for role, label in ASKED.items():
        rows = points[points["role"] == role]
        bars(axis, rows["step"], rows, STYLES[role], label)
    right, rows = axis.twinx(), points[points["unit"] != "gate"]
    bars(right, rows["step"], rows, 0, "accuracy (right axis)", color="0.5", linestyle="--", marker="")
    right.set(ylim=(0, 1.05), ylabel="accuracy, held-out wordings (0..1)")
    right.spines["right"].set_visible(True)
    right.tick_params(colors="0.4")
    right.yaxis.label.set_color("0.4")
    axis.set_xlabel("training step")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    headed(axis, "over training, closed book", 3, right)


def _by_evidence(axis: Axes, points: pd.DataFrame, differences: pd.DataFrame | None) -> None:
    for shift, role in zip((-0.08, 0.08), ASKED, strict=True):
        rows = points[points["role"] == role]
        at = rows["evidence_place"].map(list(PLACES).index)
        bars(axis, at + shift, rows, STYLES[role], ASKED[role], linestyle="none")
    axis.set_xticks(range(len(PLACES)), PLACES.values())
    axis.set_xlim(-0.5, len(PLACES) - 0.5)
    rows = {} if differences is None else {row["role"]: row for _, row in differences.iterrows()}
    said = [f"{ASKED[role]} {signed(rows[role])}, n = {rows[role]['documents']}" for role in ASKED if role in rows]
    axis.set_xlabel("\n".join(["dropped minus in the prompt, per document:", *(said or ["no document has both"])]))
    headed(axis, "by where the evidence is", 2)


def signed(row: pd.Series) -> str:
    """ "+0.050 [+0.021, +0.083]"; the mean alone where there is no interval."""
    return f"{row['mean']:+.3f}" + ("" if np.isnan(row["low"]) else f" [{row['low']:+.3f}, {row['high']:+.3f}]")


def oracle_gate(records: pd.DataFrame) -> Drawn:
    """Learned gate and memory against the exact ones, by layer, and over all layers (column layer empty).

    Records: the metrics of `ORACLE` with columns layer and role; role "both" is drawn. Correlations may be missing.
    """
    points = _oracle_points(records)
    figure, axes = _four_panels(heading(records, points))
    for axis, panel in zip(axes, ORACLE, strict=True):
        rows, (title, unit) = points[points["panel"] == panel], ORACLE_TITLES[panel]
        _by_layer(axis, rows, ORACLE[panel])
        axis.set(ylabel=unit, xlabel="layer")
        headed(axis, title, min(2, len(ORACLE[panel])))
        _scale(axis, panel, unit, rows["mean"])
    return figure, points


def _scale(axis: Axes, panel: str, unit: str, means: pd.Series) -> None:
    """From 0, or with a zero line where values may be negative; errors that differ tenfold on a log scale."""
    if panel in ("correlation", "memory"):
        axis.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    elif panel == "output" and means.max() > 10 * means.min() > 0:
        axis.set(yscale="log", ylabel=f"{unit}, log scale")
        log_ticks(axis.yaxis)
    else:
        axis.set_ylim(bottom=0)


def _oracle_points(records: pd.DataFrame) -> pd.DataFrame:
    found = []  # (panel, its metric's means over documents and layers)
    for panel, metrics in ORACLE.items():
        for metric in metrics:
            rows = _both(records, metric)
            if rows.empty and panel != "correlation":
                raise PlotError(f"records hold no {metric!r} at role 'both': run the study's notebook again")
            found.append((panel, by_document(rows, ["metric", "unit", "layer"]).assign(seed=0)))
    layers = [means for _, means in found]
    both = zip(each_over_documents(layers, ["metric", "layer"]), each_over_documents(layers, ["metric"]), strict=True)
    parts = [part.assign(panel=panel) for (panel, _), parts in zip(found, both, strict=True) for part in parts]
    return joined(parts).reindex(columns=ORACLE_COLUMNS)  # each layer, then the documents' means over their layers


def _both(records: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The finite values of `metric` at question and answer tokens together; a correlation may be missing."""
    if metric in ORACLE["correlation"] and metric not in set(records["metric"]):
        return records.iloc[:0]
    rows = measured(records, metric, ["layer", "role", "condition"])
    return only_known(rows[(rows["role"] == "both") & rows["value"].notna()], [CLOSED])


def _by_layer(axis: Axes, points: pd.DataFrame, metrics: dict[str, str]) -> None:
    """Lines over the layers, and to their right the mean over all layers."""
    every = points["layer"].max() + 1.5 if points["layer"].notna().any() else 1.5
    for place, (metric, label) in enumerate(metrics.items()):
        found = points[points["metric"] == metric]
        rows, whole = found[found["layer"].notna()], found[found["layer"].isna()]
        shift = 0.06 * (place - (len(metrics) - 1) / 2)
        bars(axis, rows["layer"] + shift, rows, place, label)
        bars(axis, whole["layer"].fillna(every) + shift, whole, place, "_all", linestyle="none")
    layers = sorted(points["layer"].dropna().astype(int).unique())
    shown = layers[:: -(-len(layers) // 8)] if layers else []
    axis.set_xticks([*shown, every], [*map(str, shown), "all"])
