"""What Gated Memory's gates do: by head, by token role, over training, with the evidence at hand or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from liftlab.answering import CONDITIONS, answer
from liftlab.documents import Document, Question
from liftlab.models import BaseModel
from liftlab.probes import gates
from liftlab.prompts import style
from liftlab.recipes import Recipe
from liftlab.scoring import SCORES
from liftlab.studies.registers import (
    about,
    ask_facts,
    at_least_one,
    base_model,
    gated_recipe,
    over_registers,
    register_of,
    watched,
)
from liftlab.studies.together import Cell

PROBES = ("layout", "gates")
PROBED = ("lift", "lift_truncated_icl")  # the conditions whose prompts are read


def run(
    *,
    base: str,
    window_tokens: int,
    windows: float,
    documents: int,
    seeds: int,
    questions: int,
    every: int,
    recipe: str,
    recipe_changes: dict,
    filler: float,
    english: str = "plain",
    answer_tokens: int,
    records: str | Path,
) -> pd.DataFrame:
    """Records: metric "gate" (0..1), the mean over the tokens of one role, condition, place of the evidence, and step.

    At the last step one row a layer and head; at every `every`-th step, and the last, one over all of them (layer and
    head empty). Metric "accuracy": closed book, held-out wordings, at the same steps. A cell of the cache is one
    document of `windows` windows, lifted with each seed; `questions` facts of it are asked in a held-out wording.
    """
    at_least_one(documents=documents, seeds=seeds, questions=questions, every=every, answer_tokens=answer_tokens)
    plan = gated_recipe(recipe, recipe_changes)
    settings = {
        "base": base, "window_tokens": window_tokens, "seeds": seeds,
        "questions": questions, "every": every, "recipe": recipe, "recipe_changes": recipe_changes, "filler": filler,
        "english": english, "answer_tokens": answer_tokens,
    }  # fmt: skip
    return over_registers(cell, settings, documents, [windows], records, recipes=[plan], probes=PROBES)


def cell(
    base: str,
    window_tokens: int,
    windows: float,
    seeds: int,
    questions: int,
    every: int,
    recipe: str,
    recipe_changes: dict,
    filler: float,
    english: str,
    answer_tokens: int,
    document_seed: int,
) -> Cell:
    """One document, lifted with each seed and probed along the way."""
    model = base_model(base, window_tokens)
    document = register_of(model, document_seed, windows, filler, english)
    asked = [q for q in ask_facts(document, questions, document_seed) if q.wording == "held_out"]
    frames = []
    for seed in range(seeds):
        plan = gated_recipe(recipe, {**recipe_changes, "seed": seed})

        def look(on: BaseModel, last: bool, plan: Recipe = plan) -> pd.DataFrame:
            gates = _gates(on, document, asked, plan, answer_tokens)
            right = _accuracy(on, document, asked, plan, answer_tokens)
            return pd.concat([gates if last else gates[gates["layer"].isna()], right])

        rows = yield from watched(model, document, plan, every, look)
        frames.append(rows.assign(seed=seed))
    return pd.concat(frames, ignore_index=True).assign(**about("gate_values", base, model, document))


def _gates(
    on: BaseModel, document: Document, asked: Sequence[Question], plan: Recipe, answer_tokens: int
) -> pd.DataFrame:
    """Mean gates per place and head, and per place over all heads (layer and head empty)."""
    settings = {"answer_tokens": answer_tokens, "style": style(plan.style)}
    read = [
        gates.probe(on, document, asked, context=CONDITIONS[condition].context, **settings).assign(condition=condition)
        for condition in PROBED
    ]
    return pd.concat(read, ignore_index=True)


def _accuracy(
    on: BaseModel, document: Document, asked: Sequence[Question], plan: Recipe, answer_tokens: int
) -> pd.DataFrame:
    """Share of the questions answered right, closed book."""
    said = answer(on, document, asked, "none", answer_tokens=answer_tokens, style=style(plan.style))
    right = [SCORES["exact_match"](text, question.answer) for text, question in zip(said, asked, strict=True)]
    return pd.DataFrame(
        {"condition": "lift", "role": "answer", "evidence": False, "evidence_place": "absent", "wording": "held_out",
         "metric": "accuracy", "unit": "share of questions",
         "value": [float(np.mean(right))], "tokens": len(asked), "layer": np.nan, "head": np.nan}
    )  # fmt: skip
