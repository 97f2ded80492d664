"""Accuracy against document length: in context, lifted, both, or neither."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from liftlab import cells
from liftlab.answering import CONDITIONS, answer
from liftlab.examples import document_ids, known_pairs
from liftlab.lifting import lift
from liftlab.models import BaseModel
from liftlab.prompts import style
from liftlab.recipes import Recipe
from liftlab.scoring import SCORES
from liftlab.studies.registers import COMPUTE, ask_facts, at_least_one, base_model, data_files, known, register_of

SEGMENTS_ONLY = "lift_segments_only"  # LIFT closed book, trained on the raw text alone, without auxiliary pairs


def run(
    *,
    base: str,
    window_tokens: int,
    windows: Sequence[float],
    documents: int,
    seeds: int,
    questions: int,
    recipe: str,
    recipe_changes: dict,
    conditions: Sequence[str],
    filler: float,
    answer_tokens: int,
    records: str | Path,
) -> pd.DataFrame:
    """Records: one row a question, condition and score (exact_match, f1: 0..1), and one with its chance level.

    A cell of the cache is one document of one length lifted with one seed; `questions` facts of it are asked, each in a
    trained and in a held-out wording. `window_tokens` 0 = the model's own window.
    """
    at_least_one(documents=documents, seeds=seeds, questions=questions, answer_tokens=answer_tokens)
    known(conditions, (*CONDITIONS, SEGMENTS_ONLY), "condition")
    Recipe.preset(recipe, **recipe_changes)
    fixed = {
        "base": base, "window_tokens": window_tokens, "questions": questions, "recipe": recipe,
        "recipe_changes": recipe_changes, "conditions": list(conditions), "filler": filler,
        "answer_tokens": answer_tokens,
    }  # fmt: skip
    grid = [
        {**fixed, "windows": float(length), "document_seed": document, "seed": seed}
        for length in windows
        for document in range(documents)
        for seed in range(seeds)
    ]
    facts = lambda: {"base_model": base_model(base, window_tokens).provenance}  # noqa: E731
    return cells.run("lift_vs_icl", cell, grid, Path(records), (*COMPUTE, __name__), facts, data_files())


def cell(
    base: str,
    window_tokens: int,
    questions: int,
    recipe: str,
    recipe_changes: dict,
    conditions: Sequence[str],
    filler: float,
    answer_tokens: int,
    windows: float,
    document_seed: int,
    seed: int,
) -> pd.DataFrame:
    """One document lifted with one seed and asked under every condition."""
    model = base_model(base, window_tokens)
    document = register_of(model, document_seed, windows, filler)
    asked = ask_facts(document, questions, document_seed)
    plan = Recipe.preset(recipe, **recipe_changes, seed=seed)
    rows = [("chance", question, "chance", question.chance) for question in asked]

    def ask(on: BaseModel, condition: str, context: str) -> None:
        said = answer(on, document, asked, context, answer_tokens=answer_tokens, style=style(plan.style))
        for question, text in zip(asked, said, strict=True):
            if text is not None:  # full ICL has no answer where the whole document does not fit the window
                rows.extend((condition, question, name, score(text, question.answer)) for name, score in SCORES.items())

    wanted = {name: CONDITIONS[name] for name in conditions if name in CONDITIONS}
    for name in (name for name, condition in wanted.items() if not condition.lifted):
        ask(model, name, wanted[name].context)
    lifted = [name for name, condition in wanted.items() if condition.lifted]
    if lifted:
        with lift(model, document, plan, known_pairs(document), progress=False).on(model) as on:
            for name in lifted:
                ask(on, name, wanted[name].context)
    if SEGMENTS_ONLY in conditions:
        with lift(model, document, plan, (), progress=False).on(model) as on:
            ask(on, SEGMENTS_ONLY, "none")
    tokens = len(document_ids(model.tokenizer, document))
    return pd.DataFrame(
        {
            "study": "lift_vs_icl", "base_model": base, "document": document.name, "document_tokens": tokens,
            "windows": windows, "seed": seed, "condition": condition, "wording": question.wording,
            "question": question.text, "kind": question.kind, "depth": document.depth(question),
            "metric": metric, "unit": "share of questions", "value": float(value),
        }
        for condition, question, metric, value in rows
    )  # fmt: skip
