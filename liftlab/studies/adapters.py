"""Which adapter memorises a document best, at equal steps and at equal training time?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from liftlab.answering import answer
from liftlab.documents import Document
from liftlab.examples import known_pairs
from liftlab.lifted import Lifted
from liftlab.lifting import lift
from liftlab.models import BaseModel
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
)

OTHERS = ("lora", "pissa")
exact_match = SCORES["exact_match"]


def run(
    *,
    base: str,
    window_tokens: int,
    windows: float,
    documents: int,
    seeds: int,
    questions: int,
    recipe: str,
    published_recipe: str,
    other_recipes: dict,
    filler: float,
    english: str = "plain",
    answer_tokens: int,
    records: str | Path,
) -> pd.DataFrame:
    """Records: exact match (0..1) a question, closed book; and per lift its steps, seconds and trained weights.

    Conditions: gated_memory (`recipe`) and gated_memory_published; for lora and pissa (`other_recipes`: adapter to
    recipe) NAME_equal_steps, on the same examples for as many epochs, and NAME_equal_time, for as many as take the
    seconds that gated_memory took just before; and for all three NAME_segments, with segments mixed in, as many epochs.
    The seconds are this machine's, so these records differ from run to run.
    """
    at_least_one(documents=documents, seeds=seeds, questions=questions, answer_tokens=answer_tokens)
    gated_recipe(recipe, {}), gated_recipe(published_recipe, {})
    if set(other_recipes) != set(OTHERS):
        raise ValueError(f"other_recipes names {', '.join(other_recipes) or 'nothing'}: give one for each of {OTHERS}")
    for name in other_recipes.values():
        Recipe.preset(name)
    settings = {
        "base": base, "window_tokens": window_tokens, "seeds": seeds,
        "questions": questions, "recipe": recipe, "published_recipe": published_recipe,
        "other_recipes": other_recipes, "filler": filler, "english": english, "answer_tokens": answer_tokens,
    }  # fmt: skip
    return over_registers(cell, settings, documents, [windows], records, alone=True)


def cell(
    base: str,
    window_tokens: int,
    windows: float,
    seeds: int,
    questions: int,
    recipe: str,
    published_recipe: str,
    other_recipes: dict,
    filler: float,
    english: str,
    answer_tokens: int,
    document_seed: int,
) -> pd.DataFrame:
    """One document, lifted under every condition with each seed."""
    model = base_model(base, window_tokens)
    document = register_of(model, document_seed, windows, filler, english)
    asked = ask_facts(document, questions, document_seed)
    rows: list[dict] = [_row("chance", "chance", q.chance, "share of questions", q, 0) for q in asked]
    for seed in range(seeds):
        own = replace(gated_recipe(recipe, {}), seed=seed)
        published = replace(gated_recipe(published_recipe, {}), seed=seed)
        others = {name: replace(Recipe.preset(other_recipes[name]), seed=seed) for name in OTHERS}
        for condition, lifted, weights in _lifts(model, document, own, published, others):
            with lifted.on(model) as on:
                said = answer(on, document, asked, "none", answer_tokens=answer_tokens, style=style(own.style))
            rows += [_row(condition, "exact_match", exact_match(text, q.answer), "share of questions", q, seed)
                     for q, text in zip(asked, said, strict=True)]  # fmt: skip
            rows += [_row(condition, "steps", len(lifted.history), "steps", None, seed),
                     _row(condition, "train_seconds", lifted.history[-1].seconds, "s", None, seed),
                     _row(condition, "trained_weights", weights, "weights", None, seed)]  # fmt: skip
    return pd.DataFrame(rows).assign(**about("adapters", base, model, document))


def _lifts(model: BaseModel, document: Document, own: Recipe, published: Recipe, others: dict[str, Recipe]):
    """(condition, lifted document, trained weights) of each condition in turn."""
    first, weights = _lift(model, document, own)
    yield "gated_memory", first, weights
    yield "gated_memory_published", *_lift(model, document, published)
    yield "gated_memory_segments", *_lift(model, document, replace(own, segments_in_mixed=True))
    epochs = {"segment_epochs": own.segment_epochs, "mixed_epochs": own.mixed_epochs}
    for name, recipe in others.items():
        same = replace(recipe, **epochs, segments_in_mixed=own.segments_in_mixed)
        lifted, weights = _lift(model, document, same)
        yield f"{name}_equal_steps", lifted, weights
        ratio = first.history[-1].seconds / lifted.history[-1].seconds
        matched = {stage: max(1, round(ratio * count)) if count else 0 for stage, count in epochs.items()}
        yield f"{name}_equal_time", *_lift(model, document, replace(same, **matched))
        yield f"{name}_segments", *_lift(model, document, replace(same, segments_in_mixed=True))


def _lift(model: BaseModel, document: Document, recipe: Recipe) -> tuple[Lifted, int]:
    """The lifted document and how many weights were trained."""
    counts: list[int] = []

    def count(step: int, on: BaseModel) -> None:
        if step == 0:
            counts.append(sum(weight.numel() for weight in on.model.parameters() if weight.requires_grad))

    return lift(model, document, recipe, known_pairs(document), watch=count, progress=False), counts[0]


def _row(condition: str, metric: str, value: float, unit: str, question, seed: int) -> dict:
    wording, text = (question.wording, question.text) if question else ("", "")
    return {"seed": seed, "condition": condition, "metric": metric, "unit": unit, "value": float(value),
            "wording": wording, "question": text}  # fmt: skip
