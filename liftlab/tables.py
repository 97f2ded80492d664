"""Tables from a figure's own numbers: figures/PROFILE/NAME.csv read, NAME.md written beside it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from liftlab.plots import LABELS, PRETRAINING_LABELS, WORDINGS
from liftlab.records import replace_file


def lift_vs_icl(data: pd.DataFrame) -> pd.DataFrame:
    """A row per condition and wording, a column per document length; accuracy 0..1 with its 95 % interval."""
    rows = data[data["condition"] != "chance"].assign(accuracy=data.apply(interval, axis=1))
    lengths = sorted(rows["windows"].unique())
    wide = rows.pivot(index=["condition", "wording"], columns="windows", values="accuracy")[lengths]
    order = [pair for pair in product(LABELS, WORDINGS) if pair in wide.index]
    table = wide.loc[order].fillna("does not fit").reset_index()
    table["condition"], table["wording"] = table["condition"].map(LABELS), table["wording"].map(WORDINGS)
    return table.set_axis(["condition", "questions", *map(_windows, lengths)], axis=1)


def _windows(length: float) -> str:
    return f"{length:g} " + ("window" if length == 1 else "windows")


def pretrain_micro(data: pd.DataFrame) -> pd.DataFrame:
    """The last measurement of each condition, and chance."""
    last = data[(data["step"] == data["step"].max()) | (data["condition"] == "chance")]
    named = last["condition"].map({**PRETRAINING_LABELS, "chance": "chance"})
    return pd.DataFrame({"condition": named, "accuracy": last.apply(interval, axis=1), "registers": last["documents"],
                         "questions": last["questions"]})  # fmt: skip


TABLES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "lift_vs_icl": lift_vs_icl,
    "pretrain_micro": pretrain_micro,
}


def interval(row: pd.Series) -> str:
    """ "0.91 [0.88, 0.94]"; the mean alone where there is no interval."""
    return f"{row['mean']:.2f}" + ("" if np.isnan(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]")


def save(name: str, folder: str | Path) -> pd.DataFrame:
    """The table of `folder`/NAME.csv, also written to NAME.md. KeyError for a name that has no table."""
    path = Path(folder) / f"{name}.csv"
    table = TABLES[name](pd.read_csv(path))
    replace_file(path.with_suffix(".md"), (markdown(table) + "\n").encode("utf-8"))
    return table


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(str(value).replace("|", "\\|") for value in row) + " |" for row in rows)
