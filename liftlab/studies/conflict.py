"""Context against memory: which does a lifted model follow where the prompt contradicts what it was trained on?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from liftlab.documents import Document, Question
from liftlab.models import BaseModel
from liftlab.probes import conflict
from liftlab.probes.answers import chances, scored
from liftlab.prompts import style
from liftlab.scoring import SCORES
from liftlab.studies.registers import (
    about,
    ask_facts,
    at_least_one,
    base_model,
    known,
    other_document_of,
    over_registers,
    recipes_of,
    register_of,
    shuffled,
    watched,
)
from liftlab.studies.together import Cell

PROBES = ("layout", "answers", "gates", "conflict")


def run(
    *,
    base: str,
    window_tokens: int,
    windows: float,
    documents: int,
    seeds: int,
    questions: int,
    every: int,
    recipes: dict,
    recipe_changes: dict,
    filler: float,
    english: str = "plain",
    answer_tokens: int,
    score: str,
    records: str | Path,
) -> pd.DataFrame:
    """Records: `probes.conflict` of a document; `score`, closed book, of its own facts in held-out wordings.

    Conditions: lift, at step 0, every `every`-th and the last, with each of `recipes` (adapter: recipe) and seed; base;
    and other_document: the finished adapter, where the prompt and the questions are another document's. A cell of the
    cache is one document of `windows` windows, at most 1; `questions` facts are asked, each in a trained and in a
    held-out wording.
    """
    at_least_one(documents=documents, seeds=seeds, questions=questions, every=every, answer_tokens=answer_tokens)
    if not 0 < windows <= 1:
        raise ValueError(f"windows = {windows}: the edited fact must stand in the prompt, give a length in 0..1")
    known([score], tuple(SCORES), "score")
    plans = recipes_of(recipes, recipe_changes)
    settings = {
        "base": base, "window_tokens": window_tokens, "seeds": seeds,
        "questions": questions, "every": every, "recipes": recipes, "recipe_changes": recipe_changes, "filler": filler,
        "english": english, "answer_tokens": answer_tokens, "score": score,
    }  # fmt: skip
    return over_registers(cell, settings, documents, [windows], records, recipes=list(plans.values()), probes=PROBES)


def cell(
    base: str,
    window_tokens: int,
    windows: float,
    seeds: int,
    questions: int,
    every: int,
    recipes: dict,
    recipe_changes: dict,
    filler: float,
    english: str,
    answer_tokens: int,
    score: str,
    document_seed: int,
) -> Cell:
    """One document, lifted with each recipe and seed and probed along the way, with its controls."""
    model = base_model(base, window_tokens)
    plans = recipes_of(recipes, recipe_changes)
    document = register_of(model, document_seed, windows, filler, english)
    wrong = register_of(model, other_document_of(document_seed), windows, filler, english)
    prompt = {"answer_tokens": answer_tokens, "style": style(next(iter(plans.values())).style), "score": score}
    own, other = (_Asked(text, ask_facts(text, questions, document_seed), prompt) for text in (document, wrong))

    def look(on: BaseModel, last: bool) -> pd.DataFrame:
        rows = [own.probed(on).assign(condition="lift"), own.known(on, own.held_out).assign(condition="lift")]
        if last:
            rows.append(other.probed(on).assign(condition="other_document"))
            rows.append(own.known(on, shuffled(document, own.held_out)).assign(condition="shuffled_answers"))
        return pd.concat(rows)

    nothing = {"adapter": "", "step": 0, "seed": 0}
    frames = [
        own.probed(model).assign(condition="base", **nothing),
        own.known(model, own.held_out).assign(condition="base", **nothing),
        chances(document, own.held_out).assign(condition="chance", **nothing),
    ]
    for adapter, plan in plans.items():
        for seed in range(seeds):
            rows = yield from watched(model, document, replace(plan, seed=seed), every, look)
            frames.append(rows.assign(adapter=adapter, seed=seed))
    return pd.concat(frames, ignore_index=True).assign(**about("conflict", base, model, document))


@dataclass(frozen=True)
class _Asked:
    """A document and what is asked of it."""

    document: Document
    questions: Sequence[Question]
    prompt: dict  # how it is asked and scored

    def probed(self, on: BaseModel) -> pd.DataFrame:
        return conflict.probe(on, self.document, self.questions, **self.prompt)

    @property
    def held_out(self) -> list[Question]:
        return [question for question in self.questions if question.wording == "held_out"]

    def known(self, on: BaseModel, asked: Sequence[Question]) -> pd.DataFrame:
        """Answers closed book."""
        return scored(on, self.document, asked, "none", **self.prompt)
