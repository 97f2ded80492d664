"""The efficiency figure: what LIFT costs in seconds, memory and the machine's share, against in-context learning."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.polynomial import polynomial

from liftlab.canvas import COLOURS, Drawn, bars, headed, log_ticks, only
from liftlab.efficiency_points import (
    CONDITIONS,
    LAW_TOKENS,
    LONG_INPUT,
    MEASURED,
    TERMS,
    WHOLE,
    points,
)
from liftlab.probe_plots import panels

SPLIT = {  # component: its label, of the stacked bars from below
    "prefill": "prefill",
    "waiting": "waiting for pairs",
    "training": "training",
    "decode": "decoding",
}
PALE = ["#a1c9f4", "#ffb482", "#8de5a1", "#ff9f9b"]  # of `SPLIT`: the palette that seaborn calls "pastel"
SHARES = {"share_of_peak": "of the matrix product's FLOP/s", "share_of_bandwidth": "of the copy's bytes/s"}
LABELS = {"input_tokens": "input (tokens)", "output_tokens": "output (tokens)", "documents": "documents at once"}
PUBLISHED = {"published 2502.14644v4": ("d", "v4"), "published 2412.13626": ("P", "2412")}  # source: marker, in words
NEAR = 0.05  # a long input within this share of the published one is shown beside it
FAILED = {"out of memory": "x", "beyond window": "|"}  # outcome: marker


def efficiency(records: pd.DataFrame) -> Drawn:
    """Time to first token and its parts, time by output, peak memory, share of the machine's peak, documents an hour.

    Records: columns part, component, input_tokens, output_tokens, documents, repeat, outcome, device, pair_seconds
    (seconds that a pair takes to arrive), method (which memory is meant, "" elsewhere); metrics seconds, peak_memory,
    tokens_per_second, share_of_peak, share_of_bandwidth, documents_per_hour, peak_flops, peak_bandwidth.
    A part that was not measured is said to be so.
    """
    data = points(records)
    figure, axes = panels(6, _heading(records, data))
    figure.set_size_inches(14, 9.2)
    drawn = {"first_token": (axes[0], _first_token), "output_length": (axes[2], _output_length),
             "memory": (axes[3], _memory), "throughput": (axes[4], _shares),
             "documents_at_once": (axes[5], _documents)}  # fmt: skip
    for part, (axis, draw) in drawn.items():
        draw(axis, data[data["part"] == part])
    _split(axes[1], data[data["part"] == "first_token"])
    if methods := sorted(set(records["method"]) - {""}):
        axes[3].set_ylabel(f"GiB, {' or '.join(methods)}", fontsize="small")
    return figure, data


def _heading(records: pd.DataFrame, data: pd.DataFrame) -> str:
    """Base model, machine, the repeats behind a point, what the bars are."""
    counts = sorted(set(data.loc[(data["row"] == "point") & (data["source"] == MEASURED), "repeats"]))
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    pace = records["pair_seconds"].max()
    paced = f"a pair every {pace:g} s" if pace else "pairs given at once"
    of = f"{only(records, 'base_model')} on {only(records, 'device')}"
    return f"{of}, {paced}\nmedians of n = {n} repeats a point, bars: 95 % interval of the median, lines: fitted laws"


def _first_token(axis: Axes, data: pd.DataFrame) -> None:
    if _measured(axis, data, "time to the first token"):
        axis.set(xscale="log", yscale="log", ylabel="seconds")
        _curves(axis, data, "input_tokens")
        log_ticks(axis.yaxis)
        _length_ticks(axis)
        headed(axis, "time to the first token", 2)


def _output_length(axis: Axes, data: pd.DataFrame) -> None:
    """Published times only beside an input of their length."""
    ours = data.loc[data["source"] == MEASURED, "input_tokens"].dropna()
    title = f"total time, input of {ours.max():,} tokens" if len(ours) else "total time by output"
    if _measured(axis, data, title):
        alike = abs(ours.max() / LONG_INPUT - 1) <= NEAR
        _curves(axis, data if alike else data[data["source"] == MEASURED], "output_tokens")
        axis.set(ylim=(0, None), ylabel="seconds")
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        headed(axis, title, 2)


def _memory(axis: Axes, data: pd.DataFrame) -> None:
    if _measured(axis, data, "peak memory"):
        axis.set(xscale="log", ylabel="GiB")
        _curves(axis, data, "input_tokens")
        axis.set_ylim(bottom=0)
        _length_ticks(axis)
        headed(axis, "peak memory", 2)


def _documents(axis: Axes, data: pd.DataFrame) -> None:
    if not _measured(axis, data, "lifting many documents"):
        return
    rows = data[data["outcome"] == MEASURED].sort_values("documents")
    _points(axis, rows["documents"].astype(float), rows, 3, "_documents", linestyle="-")
    _failures(axis, data, "documents", 3, "")
    axis.set_xscale("log", base=2)
    places = sorted(set(data["documents"]))
    axis.set_xticks(places, [f"{place}" for place in places])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.set(ylim=(0, None), xlabel=LABELS["documents"], ylabel="documents an hour")
    headed(axis, "lifting many documents", 2)


def _shares(axis: Axes, data: pd.DataFrame) -> None:
    """A row per component (and input, where there are several), its tokens per second beside its name."""
    rows = data[data["metric"].isin(SHARES) & (data["outcome"] == MEASURED)]
    if not _measured(axis, rows, "share of the machine's peak"):
        return
    key = ["condition", "component", "input_tokens"]
    places = {place: number for number, place in enumerate(dict.fromkeys(rows[key].itertuples(index=False, name=None)))}
    at = pd.Series([places[place] for place in rows[key].itertuples(index=False, name=None)], rows.index, dtype=float)
    for style, (metric, label) in enumerate(SHARES.items()):
        chosen = rows[rows["metric"] == metric]
        if len(chosen):
            _points(axis, at[chosen.index], chosen, 4 + 3 * style, label, across=True, linestyle="none")
    rates = data[data["metric"] == "tokens_per_second"].set_index(key)["value"].groupby(level=key).first()
    axis.set_yticks(range(len(places)), [_place_label(*place, places, rates.get(place)) for place in places])
    axis.set(xlim=(0, max(1, 1.05 * rows["value"].max())), ylim=(len(places) - 0.5, -0.5), xlabel="share of the peak")
    headed(axis, "share of the machine's measured peak", 1)


def _place_label(condition: str, component: str, length: int, places: dict, rate: float | None) -> str:
    """A row's name, with what tells it from the others, and its tokens per second."""
    several = [len({place[name] for place in places if place[1] == component}) > 1 for name in (0, 2)]
    more = [CONDITIONS.get(condition, condition), f"{length:,} tokens"]
    words = [component.replace("_", ", "), *(word for word, needed in zip(more, several, strict=True) if needed)]
    return ", ".join(words) + (f"\n{rate:,.0f} tokens/s" if rate is not None else "")


def _split(axis: Axes, data: pd.DataFrame) -> None:
    """Stacked medians of the parts: at each length a bar a condition, in the order of `CONDITIONS`."""
    rows = data[data["component"].isin(SPLIT) & (data["outcome"] == MEASURED) & (data["row"] == "point")]
    if not _measured(axis, rows, "its parts"):
        return
    lengths = sorted(set(rows["input_tokens"]))
    present = [name for name in CONDITIONS if name in set(rows["condition"])]
    width = 0.8 / len(present)
    for place, condition in enumerate(present):
        wide = rows[rows["condition"] == condition].pivot(index="input_tokens", columns="component", values="value")
        bottom = np.zeros(len(wide))
        at = np.array([lengths.index(length) for length in wide.index]) + width * (place - (len(present) - 1) / 2)
        for number, component in enumerate(SPLIT):
            if component in wide:
                axis.bar(at, wide[component].fillna(0), width, bottom, color=PALE[number], edgecolor="0.4",
                         linewidth=0.5, label=f"{component} {condition}")  # fmt: skip
                bottom = bottom + wide[component].fillna(0).to_numpy()
    _split_legend(axis)
    axis.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=30 * (len(lengths) > 5))
    axis.set(xlabel=LABELS["input_tokens"], ylabel="seconds")
    axis.text(0.03, 0.96, "bars, left to right:\n" + "\n".join(CONDITIONS[name] for name in present), va="top",
              transform=axis.transAxes, fontsize="small")  # fmt: skip


def _split_legend(axis: Axes) -> None:
    """One entry a component, although each condition has its own bars."""
    labels = {handle.get_label().partition(" ")[0]: handle for handle in axis.containers}
    for handle in axis.containers:
        handle.set_label("_" + handle.get_label())
    for component, handle in labels.items():
        handle.set_label(SPLIT[component])
    headed(axis, "its parts", 2)


def _curves(axis: Axes, data: pd.DataFrame, x: str) -> None:
    """Per condition: points, its law up to the last x, where it failed, where it crosses ICL, what was published."""
    whole = data[(data["component"] == WHOLE) & (data["row"] == "point")]
    for style, (condition, label) in enumerate(CONDITIONS.items()):
        rows = whole[(whole["condition"] == condition) & (whole["outcome"] == MEASURED)]
        ours = rows[rows["source"] == MEASURED]
        if len(ours):
            _points(axis, ours[x].astype(float), ours, style, label, linestyle="none")
        _law(axis, data[(data["row"] == "law") & (data["condition"] == condition)], ours[x].min(), x, style)
        for source, (marker, version) in PUBLISHED.items():
            told = rows[rows["source"] == source]
            if len(told):
                axis.plot(told[x].astype(float), told["value"], marker, color=_colour(style), markerfacecolor="none",
                          markersize=5, label=f"{label}, published {version}")  # fmt: skip
        _failures(axis, whole[whole["condition"] == condition], x, style, label)
    ours = whole.loc[(whole["source"] == MEASURED) & (whole["outcome"] == MEASURED), x]
    for _, row in data[(data["row"] == "crossing") & data["value"].notna()].iterrows():
        _crossing(axis, row, float(ours.min()), float(ours.max()))
    axis.set_xlabel(LABELS[x])


def _law(axis: Axes, rows: pd.DataFrame, first: float, x: str, style: int) -> None:
    rows = rows[rows["outcome"] == "chosen"]
    if rows.empty:
        return
    terms = rows.set_index("term")["value"]
    along = np.geomspace(max(float(first), 1), float(rows[x].iloc[0]), 200)
    values = polynomial.polyval(along / LAW_TOKENS, terms.reindex(TERMS).dropna().to_numpy())
    axis.plot(along, values, color=_colour(style), linewidth=1, zorder=1, label=f"_law {style}")


def _crossing(axis: Axes, row: pd.Series, first: float, last: float) -> None:
    """A line at the crossing, its interval shaded from `first` to `last`."""
    style = list(CONDITIONS).index(row["condition"])
    axis.axvline(row["value"], color=_colour(style), linestyle=":", linewidth=1.2, zorder=0,
                 label=f"crosses ICL at {row['value']:,.0f}")  # fmt: skip
    if pd.notna(row["low"]):
        axis.axvspan(max(row["low"], first), min(row["high"], last), color=_colour(style), alpha=0.12, linewidth=0)


def _failures(axis: Axes, rows: pd.DataFrame, x: str, style: int, label: str) -> None:
    """A mark at the panel's upper edge where a condition ran out of memory or did not fit the window."""
    for outcome, marker in FAILED.items():
        at = rows.loc[rows["outcome"] == outcome, x].astype(float)
        if len(at):
            said = f"{label}: {outcome}" if label else outcome
            axis.plot(at, [0.97 - 0.04 * style] * len(at), marker, color=_colour(style), markersize=7, label=said,
                      transform=axis.get_xaxis_transform())  # fmt: skip


def _points(axis: Axes, at: pd.Series, rows: pd.DataFrame, style: int, label: str, **changes) -> None:
    """Medians with their intervals."""
    bars(axis, at, rows.rename(columns={"value": "mean"}), style, label, **changes)


def _colour(style: int) -> str:
    return COLOURS[style]


def _measured(axis: Axes, data: pd.DataFrame, title: str) -> bool:
    """Whether there is anything of ours to draw; where not, the panel says so."""
    if (data["source"] == MEASURED).any():
        return True
    axis.set_title(title, fontsize="medium")
    axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes)
    axis.set_axis_off()
    return False


def _length_ticks(axis: Axes) -> None:
    """Numbers at 1, 2 and 5 of each decade of a log scale of tokens."""
    log_ticks(axis.xaxis)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.tick_params(axis="x", labelsize="small")
