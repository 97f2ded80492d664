"""Context against memory: which does a lifted model follow where the prompt contradicts what it was trained on?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from liftlab import cells
from liftlab.documents import Document, Question
from liftlab.models import BaseModel
from liftlab.probes import conflict
from liftlab.probes.in_context import about as about_question
from liftlab.probes.in_context import exact_matches
from liftlab.prompts import PromptStyle, style
from liftlab.studies.registers import (
    COMPUTE,
    FIRST_DOCUMENT,
    about,
    ask_facts,
    at_least_one,
    base_model,
    data_files,
    other_document_of,
    recipes_of,
    register_of,
    watched,
)

PROBES = tuple(f"liftlab.probes.{name}" for name in ("layout", "gates", "in_context", "conflict"))


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
    answer_tokens: int,
    records: str | Path,
) -> pd.DataFrame:
    """Records: `probes.conflict` of a document; exact match, closed book, of its own facts in held-out wordings.

    Conditions: lift, at step 0, every `every`-th and the last, with each of `recipes` (adapter: recipe) and seed; base;
    and other_document: the finished adapter, where the prompt and the questions are another document's. A cell of the
    cache is one document of `windows` windows, at most 1; `questions` facts are asked, each in a trained and in a
    held-out wording.
    """
    at_least_one(documents=documents, seeds=seeds, questions=questions, every=every, answer_tokens=answer_tokens)
    if not 0 < windows <= 1:
        raise ValueError(f"windows = {windows}: the edited fact must stand in the prompt, give a length in 0..1")
    recipes_of(recipes, recipe_changes)
    fixed = {
        "base": base, "window_tokens": window_tokens, "windows": float(windows), "seeds": seeds,
        "questions": questions, "every": every, "recipes": recipes, "recipe_changes": recipe_changes, "filler": filler,
        "answer_tokens": answer_tokens,
    }  # fmt: skip
    grid = [{**fixed, "document_seed": seed} for seed in range(FIRST_DOCUMENT, FIRST_DOCUMENT + documents)]
    facts = lambda: {"base_model": base_model(base, window_tokens).provenance}  # noqa: E731
    return cells.run("conflict", cell, grid, Path(records), (*COMPUTE, *PROBES, __name__), facts, data_files())


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
    answer_tokens: int,
    document_seed: int,
) -> pd.DataFrame:
    """One document, lifted with each recipe and seed and probed along the way, with its controls."""
    model = base_model(base, window_tokens)
    plans = recipes_of(recipes, recipe_changes)
    document = register_of(model, document_seed, windows, filler)
    wrong = register_of(model, other_document_of(document_seed), windows, filler)
    own, other = (
        _Asked(text, ask_facts(text, questions, document_seed), answer_tokens, style(next(iter(plans.values())).style))
        for text in (document, wrong)
    )

    def look(on: BaseModel, last: bool) -> pd.DataFrame:
        rows = [own.probed(on).assign(condition="lift"), own.known(on).assign(condition="lift")]
        return pd.concat([*rows, *([other.probed(on).assign(condition="other_document")] if last else [])])

    frames = [own.probed(model).assign(condition="base", adapter="", step=0, seed=0)]
    for adapter, plan in plans.items():
        for seed in range(seeds):
            rows = watched(model, document, replace(plan, seed=seed), every, look)
            frames.append(rows.assign(adapter=adapter, seed=seed))
    return pd.concat(frames, ignore_index=True).assign(**about("conflict", base, model, document))


@dataclass(frozen=True)
class _Asked:
    """A document and what is asked of it."""

    document: Document
    questions: Sequence[Question]
    answer_tokens: int
    style: PromptStyle

    def probed(self, on: BaseModel) -> pd.DataFrame:
        return conflict.probe(on, self.document, self.questions, answer_tokens=self.answer_tokens, style=self.style)

    def known(self, on: BaseModel) -> pd.DataFrame:
        """Exact match, closed book, of the facts as they are, in held-out wordings."""
        asked = [question for question in self.questions if question.wording == "held_out"]
        scores = exact_matches(on, self.document, asked, "none", self.answer_tokens, self.style)
        of = [about_question(self.document, question) for question in asked]
        return pd.DataFrame([{**row, **score} for row, score in zip(of, scores, strict=True)])
