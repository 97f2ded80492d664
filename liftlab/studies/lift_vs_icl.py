"""Accuracy against document length: in context, lifted, both, or neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd

from liftlab.answering import CONDITIONS
from liftlab.documents import Question
from liftlab.examples import known_pairs
from liftlab.prompts import style
from liftlab.recipes import Recipe
from liftlab.scoring import SHORT_ANSWER_SCORES
from liftlab.stacked import Job
from liftlab.studies.registers import (
    about,
    ask_facts,
    at_least_one,
    base_model,
    known,
    over_registers,
    register_of,
)
from liftlab.studies.together import Cell, asking

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
    english: str = "plain",
    answer_tokens: int,
    records: str | Path,
) -> pd.DataFrame:
    """Records: one row a question, condition and score (exact_match, f1: 0..1), and one with its chance level.

    A cell of the cache is one document of one length; `questions` facts of it are asked, each in a trained and in a
    held-out wording. Conditions with LIFT are repeated with `seeds` training seeds. `window_tokens` 0 = the model's.
    """
    at_least_one(documents=documents, seeds=seeds, questions=questions, answer_tokens=answer_tokens)
    known(conditions, (*CONDITIONS, SEGMENTS_ONLY), "condition")
    plan = Recipe.preset(recipe, **recipe_changes)
    settings = {
        "base": base, "window_tokens": window_tokens, "seeds": seeds, "questions": questions, "recipe": recipe,
        "recipe_changes": recipe_changes, "conditions": list(conditions), "filler": filler, "english": english,
        "answer_tokens": answer_tokens,
    }  # fmt: skip
    return over_registers(cell, settings, documents, windows, records, recipes=[plan])


def cell(
    base: str,
    window_tokens: int,
    seeds: int,
    questions: int,
    recipe: str,
    recipe_changes: dict,
    conditions: Sequence[str],
    filler: float,
    english: str,
    answer_tokens: int,
    windows: float,
    document_seed: int,
) -> Cell:
    """One document, lifted with each seed and asked under every condition."""
    model = base_model(base, window_tokens)
    document = register_of(model, document_seed, windows, filler, english)
    asked = ask_facts(document, questions, document_seed)
    plan = Recipe.preset(recipe, **recipe_changes)
    ask = partial(asking, model, answer_tokens=answer_tokens, style=style(plan.style))
    without_pairs = {SEGMENTS_ONLY: "none"} if SEGMENTS_ONLY in conditions else {}
    lifts = ((_contexts(conditions, lifted=True), known_pairs(document)), (without_pairs, []))
    rows = [(0, "chance", question, "chance", question.chance) for question in asked]
    for condition, context in _contexts(conditions, lifted=False).items():
        said = yield from ask(None, document, asked, context)
        rows += [(0, condition, *row) for row in _scored(asked, said)]
    for seed, (contexts, pairs) in product(range(seeds), [of for of in lifts if of[0]]):
        lifted = yield Job(document, replace(plan, seed=seed), pairs)
        for condition, context in contexts.items():
            said = yield from ask(lifted, document, asked, context)
            rows += [(seed, condition, *row) for row in _scored(asked, said)]
    return pd.DataFrame(
        {
            **about("lift_vs_icl", base, model, document), "windows": windows, "seed": seed,
            "condition": condition, "wording": question.wording,
            "question": question.text, "kind": question.kind, "depth": document.depth(question),
            "metric": metric, "unit": "share of questions", "value": float(value),
        }
        for seed, condition, question, metric, value in rows
    )  # fmt: skip


def _contexts(conditions: Sequence[str], lifted: bool) -> dict[str, str]:
    """The context of each condition with a lift, or without one."""
    wanted = {name: CONDITIONS[name] for name in conditions if name in CONDITIONS}
    return {name: condition.context for name, condition in wanted.items() if condition.lifted == lifted}


def _scored(asked: Sequence[Question], said: Sequence[str | None]) -> list[tuple[Question, str, float]]:
    """(question, metric, value) for each answer; full ICL has none where the document does not fit the window."""
    answered = [(question, text) for question, text in zip(asked, said, strict=True) if text is not None]
    return [
        (question, name, score(text, question.answer))
        for question, text in answered
        for name, score in SHORT_ANSWER_SCORES.items()
    ]
