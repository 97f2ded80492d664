"""What every drawing needs: rows chosen and averaged, points with their bars, a title naming base model and n."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from liftlab import failures
from liftlab.statistics import summarise

LABELS = {  # drawing order; position decides colour and marker
    "closed_book": "base, closed book",
    "truncated_icl": "truncated ICL",
    "full_icl": "full ICL",
    "lift": "LIFT, closed book",
    "lift_segments_only": "LIFT, segments only",
    "lift_truncated_icl": "LIFT + truncated ICL",
}
MARKERS = "osD^vP"
COLOURS = [  # told apart by the colour-blind too: the palette that seaborn calls "colorblind"
    "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9",
]  # fmt: skip
INK = "0.15"  # of text and axes
UPRIGHT = 6  # rows of a heat map; the names of more rows lie flat, or they would overlap
NAMED = 16  # rows or columns of a heat map that have a name each; of more, every second, third ...
NUMBERS = ["mean", "low", "high", "documents", "questions", "unit"]
SUMMARY = [name for name in NUMBERS if name != "questions"]
LINE = {"markersize": 5, "linewidth": 1.2, "elinewidth": 0.9, "capsize": 2, "clip_on": False}

Drawn = tuple[Figure, pd.DataFrame]


class PlotError(ValueError):
    """The records do not hold what the drawing needs."""


def measured(records: pd.DataFrame, metric: str, columns: list[str]) -> pd.DataFrame:
    """The rows of `metric`. PlotError where there are none, or one of `columns` is missing."""
    absent = [name for name in (*columns, "metric", "base_model", "unit") if name not in records.columns]
    if absent:
        raise PlotError(
            f"records lack column {absent[0]!r}, which this drawing needs: they have {list(records.columns)}"
        )
    rows = records[records["metric"] == metric]
    if rows.empty:
        raise PlotError(f"records hold no metric {metric!r}: they have {', '.join(sorted(records['metric'].unique()))}")
    return rows


def worked(records: pd.DataFrame, cells: int | None = None) -> tuple[pd.DataFrame, str]:
    """The records without the rows of failed cells, and how many failed, of the study's `cells`; "" where none did."""
    if absent := [name for name in ("metric", "unit") if name not in records.columns]:
        raise PlotError(f"records lack column {absent[0]!r}: they have {list(records.columns)}")
    if not (records["metric"] == failures.METRIC).any():
        return records, ""  # without the copy that a split makes
    kept, failed = failures.split(records)
    of = "" if cells is None else f" of {cells}"
    noun, verb = ("cell", "is") if len(failed) == 1 and not of else ("cells", "are")
    return kept, f"{len(failed)}{of} {noun} failed and {verb} not in these numbers"


def noted(text: str, note: str) -> str:
    """`text` as a file's contents; `note`, if there is one, is its last line, a paragraph of its own."""
    return f"{text}\n" + (f"\n{note}\n" if note else "")


def only_known(rows: pd.DataFrame, conditions: Collection[str]) -> pd.DataFrame:
    """`rows`, or PlotError naming a condition that the drawing has no place for."""
    unknown = sorted(set(rows["condition"].unique()) - set(conditions))
    if unknown:
        raise PlotError(f"condition {unknown[0]!r} has no place in this drawing: it knows {', '.join(conditions)}")
    return rows


def only(rows: pd.DataFrame, column: str) -> str:
    """The one value that `column` holds; a drawing that mixed several would average over them."""
    values = sorted(rows[column].unique())
    if len(values) != 1:
        raise PlotError(f"records mix several values of {column!r} ({', '.join(values)}): draw one at a time")
    return values[0]


def by_document(rows: pd.DataFrame, by: list[str], weights: str | None = None) -> pd.DataFrame:
    """One value per group of `by` and document: its rows averaged within a seed (by `weights`), then its seeds.

    Within a seed rows are summed in the order of their values: how a table is sorted changes no digit.
    """
    keys = [*by, "document", "seed"]
    seed = rows.groupby(keys, dropna=False).ngroup().to_numpy()
    value, weight = rows["value"].to_numpy(float), (rows[weights].to_numpy(float) if weights else np.ones(len(rows)))
    order = np.lexsort([weight, value, seed])
    sums = pd.DataFrame({"total": value * weight, "weight": weight}).iloc[order].groupby(seed[order]).sum()
    first = order[np.diff(seed[order], prepend=-1) > 0]  # a row of each seed
    seeds = rows[keys].iloc[first].assign(value=(sums["total"] / sums["weight"]).to_numpy())
    if seeds["seed"].nunique() == 1:  # sorted, and there is nothing to average
        return seeds.drop(columns="seed").reset_index(drop=True)
    return seeds.groupby([*by, "document"], dropna=False)["value"].mean().reset_index()


def over_documents(rows: pd.DataFrame, by: list[str], weights: str | None = None) -> pd.DataFrame:
    """Mean and interval over documents per group of `by`: columns `by` and `SUMMARY`. No rows give no rows."""
    if rows.empty:
        return pd.DataFrame(columns=[*by, *SUMMARY])
    return summarise(by_document(rows, by, weights), by).assign(unit=only(rows, "unit"))[[*by, *SUMMARY]]


def each_over_documents(parts: list[pd.DataFrame], by: list[str]) -> list[pd.DataFrame]:
    """`over_documents` of each part, all of them summarised at once, which is faster than one by one."""
    units = ["" if rows.empty else only(rows, "unit") for rows in parts]
    needed = [rows[[*by, "document", "seed", "value"]].assign(part=place) for place, rows in enumerate(parts)]
    whole = [rows for rows in needed if len(rows)]
    if not whole:
        return [over_documents(rows, by) for rows in parts]
    means = summarise(by_document(joined(whole), ["part", *by]), ["part", *by])
    each = [means[means["part"] == place].assign(unit=unit) for place, unit in enumerate(units)]
    return [rows[[*by, *SUMMARY]].reset_index(drop=True) for rows in each]


def summarised(records: pd.DataFrame, metric: str, by: list[str], known: dict[str, str]) -> pd.DataFrame:
    """Mean and interval of `metric` per group of `by`. PlotError for a missing column or an unknown condition."""
    rows = only_known(measured(records, metric, by), known)
    return summarise(rows, by).assign(unit=only(rows, "unit"))


def last_step(rows: pd.DataFrame, by: Collection[str] = ()) -> pd.DataFrame:
    """The rows of the last step; documents differ in it by a few steps, so each has its own, within `by`."""
    return rows[rows["step"] == rows.groupby([*by, "document", "seed"])["step"].transform("max")]


def shared_steps(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of those steps at which every document and seed was measured: one set of documents in all points."""
    lifts = rows.groupby("step")[["document", "seed"]].apply(lambda at: len(at.drop_duplicates()))
    return rows[rows["step"].isin(lifts.index[lifts == len(rows[["document", "seed"]].drop_duplicates())])]


def chance(records: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """One chance level per group of `by`, as rows of condition "chance"; no row where none was recorded."""
    rows = records[records["metric"] == "chance"].assign(condition="chance")
    if rows.empty:
        return pd.DataFrame(columns=[*by, "condition", *NUMBERS]).astype({"mean": float, "low": float, "high": float})
    levels = summarise(rows, [*by, "condition"])
    return levels.assign(low=np.nan, high=np.nan, unit=only(rows, "unit"))


def joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """The parts that have rows, one after another."""
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def heading(records: pd.DataFrame, points: pd.DataFrame) -> str:
    """The figure's title: base model, the documents behind a point, what the bars are."""
    counts = sorted(set(points["documents"]))
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{only(records, 'base_model')}: n = {n} documents a point, bars: 95 % bootstrap interval"


def bars(axis: Axes, at: pd.Series, rows: pd.DataFrame, style: int, label: str, **changes) -> None:
    """Means at `at`, joined by a line, with their intervals; `style` is the place in the palette and in `MARKERS`.

    `changes` replace the line's settings; `across=True` puts the means on the x axis. No rows draw nothing.
    """
    if rows.empty:
        return
    across = changes.pop("across", False)
    reach = [(rows["mean"] - rows["low"]).clip(lower=0), (rows["high"] - rows["mean"]).clip(lower=0)]
    colour = {"color": COLOURS[style], "marker": MARKERS[style % len(MARKERS)]}
    places = (rows["mean"], at) if across else (at, rows["mean"])
    axis.errorbar(*places, **{"xerr" if across else "yerr": reach}, label=label, **{**colour, **LINE, **changes})


def log_ticks(axis: Axis) -> None:
    """Numbers at 1, 2 and 5 of each decade of a log scale."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def headed(axis: Axes, title: str, columns: int = 0, more: Axes | None = None) -> None:
    """A panel's title, and between it and the panel a legend of `columns` columns, where it covers no point."""
    found = [pair for one in (axis, more) if one for pair in zip(*one.get_legend_handles_labels(), strict=True)]
    if columns and found:
        where = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "borderaxespad": 0.2, "ncols": columns}
        axis.legend(*zip(*found, strict=True), fontsize="small", columnspacing=1.2, handletextpad=0.5, **where)
    lines = -(-len(found) // columns) if columns else 0
    axis.set_title(title, fontsize="medium", pad=6 + 15 * lines)


def heat_map(
    axis: Axes, grid: pd.DataFrame, top: float, colours: str, numbers: str = "", bar: str = "", last: bool = True
) -> None:
    """`grid` as coloured cells, 0 to `top` in the colour map `colours`, its first row above; missing cells are empty.

    `numbers`: their font size in the cells, "" for none; `bar`: a colour bar's label, "" for none; with both, white
    lines part the cells. A figure's `last` map lays it out once without its own names: from there its layout settles.
    """
    rows, columns = grid.shape
    lines = {"edgecolor": "white", "linewidths": 0.5 if bar and numbers else 0}
    mesh = axis.pcolormesh(grid.to_numpy(float), vmin=0, vmax=top, cmap=colours, **lines)
    axis.spines[:].set_visible(False)
    axis.set(xlim=(0, columns), ylim=(rows, 0))
    if bar:
        axis.figure.colorbar(mesh, ax=axis, label=bar).outline.set_linewidth(0)
    _names(axis, grid)
    figure = axis.get_figure(root=True)
    if last and (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
    axis.set(xlabel=grid.columns.name, ylabel=grid.index.name)
    if numbers:
        _numbers(axis, grid, mesh, numbers)


def _names(axis: Axes, grid: pd.DataFrame) -> None:
    """The names of rows and columns, at most about `NAMED` of each."""
    across, down = (range(0, count, -(-count // NAMED)) for count in reversed(grid.shape))
    axis.set_xticks([place + 0.5 for place in across], [str(grid.columns[place]) for place in across])
    turned = {"rotation": "vertical", "va": "center"} if len(grid) <= UPRIGHT else {}
    axis.set_yticks([place + 0.5 for place in down], [str(grid.index[place]) for place in down], **turned)


def _numbers(axis: Axes, grid: pd.DataFrame, mesh: QuadMesh, size: str) -> None:
    """Each cell's value in two decimals, white on dark cells (relative luminance as WCAG 2 defines it)."""
    mesh.update_scalarmappable()
    rgb = mesh.get_facecolors()[:, :3]
    luminance = np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
    for number, value in enumerate(grid.to_numpy(float).flat):
        row, column = divmod(number, grid.shape[1])
        if np.isfinite(value):
            axis.text(column + 0.5, row + 0.5, f"{value:.2f}", color=INK if luminance[number] > 0.408 else "w",
                      ha="center", va="center", fontsize=size)  # fmt: skip
