"""The learned gate and memory against the exact ones, on documents that still fit the window."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from liftlab.examples import known_pairs
from liftlab.probes.oracle_gate import probe
from liftlab.prompts import style
from liftlab.stacked import Job
from liftlab.studies.registers import (
    about,
    ask_facts,
    at_least_one,
    base_model,
    gated_recipe,
    over_registers,
    register_of,
)
from liftlab.studies.together import Cell

PROBES = ("layout", "gates", "oracle_gate")


def run(
    *,
    base: str,
    window_tokens: int,
    windows: float,
    documents: int,
    seeds: int,
    questions: int,
    recipe: str,
    recipe_changes: dict,
    filler: float,
    english: str = "plain",
    answer_tokens: int,
    records: str | Path,
) -> pd.DataFrame:
    """Records: a row per document, training seed, layer, role of the token and metric of `probes.oracle_gate.compare`.

    A cell of the cache is one document of `windows` windows, at most 1; `questions` facts of it are asked in a held-out
    wording, with the whole document in the base model's prompt. ValueError for a document that does not fit.
    """
    at_least_one(documents=documents, seeds=seeds, questions=questions, answer_tokens=answer_tokens)
    if not 0 < windows <= 1:
        raise ValueError(f"windows = {windows}: the exact gate needs the whole document in the window, give 0..1")
    plan = gated_recipe(recipe, recipe_changes)
    settings = {
        "base": base, "window_tokens": window_tokens, "seeds": seeds,
        "questions": questions, "recipe": recipe, "recipe_changes": recipe_changes, "filler": filler,
        "english": english, "answer_tokens": answer_tokens,
    }  # fmt: skip
    return over_registers(cell, settings, documents, [windows], records, recipes=[plan], probes=PROBES)


def cell(
    base: str,
    window_tokens: int,
    windows: float,
    seeds: int,
    questions: int,
    recipe: str,
    recipe_changes: dict,
    filler: float,
    english: str,
    answer_tokens: int,
    document_seed: int,
) -> Cell:
    """One document, lifted and compared with each seed."""
    model = base_model(base, window_tokens)
    document = register_of(model, document_seed, windows, filler, english)
    asked = [q for q in ask_facts(document, questions, document_seed) if q.wording == "held_out"]
    frames = []
    for seed in range(seeds):
        plan = gated_recipe(recipe, {**recipe_changes, "seed": seed})
        lifted = yield Job(document, plan, known_pairs(document))
        with lifted.on(model) as on:
            rows = probe(on, document, asked, answer_tokens=answer_tokens, style=style(plan.style))
        frames.append(rows.assign(seed=seed))
    return pd.concat(frames, ignore_index=True).assign(condition="lift", **about("oracle_gate", base, model, document))
