"""Tables from a figure's own numbers: figures/PROFILE/NAME.csv read, NAME.md written beside it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from liftlab.canvas import LABELS, noted
from liftlab.companion_tables import companions
from liftlab.context_plots import length_label
from liftlab.efficiency_tables import efficiency
from liftlab.evaluation_tables import TABLES as EVALUATION_TABLES
from liftlab.gate_plots import PROMPTS, signed
from liftlab.many_documents_plots import table as many_documents
from liftlab.plots import ADAPTER_LABELS, PRETRAINING_LABELS, WORDINGS
from liftlab.probe_tables import conflict, evidence_position, interval, memorization_vs_icl, segment_offset
from liftlab.records import replace_file

GATE_PLACES = {  # evidence_place, or which tokens of the document; the order of the rows
    "absent": "not in the prompt",
    "kept": "in the prompt",
    "dropped": "dropped from the prompt",
    "evidence": "-",
    "other": "-",
    "dropped - kept": "dropped minus in the prompt",
}
ADAPTER_WORDINGS = {"trained": "trained wordings", "held_out": "held-out wordings"}
ORACLE_NAMES = {
    "gate_exact": "exact gate",
    "gate_learned": "learned gate",
    "gate_spearman": "Spearman",
    "gate_pearson": "Pearson",
    "memory_cosine": "memory cosine",
    "output_error_learned": "output error, learned",
    "output_error_no_memory": "no memory",
    "output_error_constant": "best constant",
}


def lift_vs_icl(data: pd.DataFrame) -> pd.DataFrame:
    """A row per condition and wording, a column per document length; accuracy 0..1 with its 95 % interval."""
    rows = data[data["condition"] != "chance"].assign(accuracy=data.apply(interval, axis=1))
    lengths = sorted(rows["windows"].unique())
    wide = rows.pivot(index=["condition", "wording"], columns="windows", values="accuracy")[lengths]
    order = [pair for pair in product(LABELS, WORDINGS) if pair in wide.index]
    table = wide.loc[order].fillna("does not fit").reset_index()
    table["condition"], table["wording"] = table["condition"].map(LABELS), table["wording"].map(WORDINGS)
    return table.set_axis(["condition", "questions", *map(length_label, lengths)], axis=1)


def pretrain_micro(data: pd.DataFrame) -> pd.DataFrame:
    """The last measurement of each condition, and chance."""
    last = data[(data["step"] == data["step"].max()) | (data["condition"] == "chance")]
    named = last["condition"].map({**PRETRAINING_LABELS, "chance": "chance"})
    return pd.DataFrame({"condition": named, "accuracy": last.apply(interval, axis=1), "registers": last["documents"],
                         "questions": last["questions"]})  # fmt: skip


def gate_values(data: pd.DataFrame) -> pd.DataFrame:
    """Mean gate (0..1) by token, prompt and place of the evidence, then the paired differences."""
    document = (data["panel"] == "roles") & (data["role"] == "document")
    rows = data[data["panel"].isin(["evidence", "difference"]) | document].copy()
    rows["place"] = rows["evidence_place"].fillna("evidence").where(~document | rows["evidence"], "other")
    rows["rank"] = rows["place"].map(list(GATE_PLACES).index)
    rows = rows.sort_values(["rank", "role"], ascending=[True, False])  # question before answer
    shown = [signed(row) if row["panel"] == "difference" else interval(row) for _, row in rows.iterrows()]
    of = rows["place"].map({"evidence": ", evidence", "other": ", other"}).fillna("")
    return pd.DataFrame({"tokens": rows["role"] + of, "prompt": rows["condition"].map(PROMPTS), "gate": shown,
                         "evidence": rows["place"].map(GATE_PLACES), "documents": rows["documents"]}
                        )[["tokens", "prompt", "evidence", "gate", "documents"]]  # fmt: skip


def oracle_gate(data: pd.DataFrame) -> pd.DataFrame:
    """A row per layer and one over all layers (the documents' means over their layers)."""
    rows = data.assign(layer=data["layer"].fillna(np.inf), shown=data.apply(interval, axis=1))
    wide = rows.pivot(index="layer", columns="metric", values="shown").reindex(columns=list(ORACLE_NAMES))
    wide = wide.astype(object).fillna("-")
    wide.insert(0, "layer", ["all layers" if np.isinf(layer) else f"{layer:.0f}" for layer in wide.index])
    return wide.rename(columns=ORACLE_NAMES).reset_index(drop=True).rename_axis(columns=None)


def adapters(data: pd.DataFrame) -> pd.DataFrame:
    """A row per recipe: trained weights, steps and seconds (means over documents), accuracy 0..1 in both wordings."""
    rows = data[data["condition"] != "chance"]
    rows = rows.assign(shown=rows.apply(interval, axis=1), what=rows["wording"].fillna("seconds"))
    wide = rows.pivot(index="condition", columns="what", values="shown").fillna("-")
    wide = wide.loc[[name for name in ADAPTER_LABELS if name in wide.index]]
    first = rows.groupby("condition")[["trained_weights", "steps"]].first().loc[wide.index]
    columns = {
        "recipe": wide.index.map(ADAPTER_LABELS),
        "trained weights": first["trained_weights"].map("{:,.0f}".format),
        "steps": first["steps"].map("{:.0f}".format),
        "seconds": wide["seconds"],
    }
    return pd.DataFrame(columns | {label: wide.get(name, "-") for name, label in ADAPTER_WORDINGS.items()})


TABLES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
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
    **EVALUATION_TABLES,
}


def save(name: str, folder: str | Path, failed: str = "") -> pd.DataFrame:
    """The table of `folder`/NAME.csv, also written to NAME.md. KeyError for a name that has no table.

    `failed`: how many cells failed, as `canvas.worked` says it, the last line of NAME.md; "" for none.
    """
    path = Path(folder) / f"{name}.csv"
    table = TABLES[name](pd.read_csv(path))
    replace_file(path.with_suffix(".md"), noted(markdown(table), failed).encode("utf-8"))
    return table


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(str(value).replace("|", "\\|") for value in row) + " |" for row in rows)
