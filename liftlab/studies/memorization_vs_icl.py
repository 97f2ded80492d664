"""Is a lifted document memorised as text or known as facts, and what does the lift cost the model otherwise?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from liftlab import cells
from liftlab.answering import answer
from liftlab.documents import Document, Question
from liftlab.models import BaseModel
from liftlab.probes import in_context, memorization
from liftlab.prompts import style
from liftlab.recipes import Recipe
from liftlab.scoring import exact_match
from liftlab.studies.registers import (
    COMPUTE,
    FIRST_DOCUMENT,
    about,
    ask_facts,
    at_least_one,
    base_model,
    data_files,
    other_document_of,
    paraphrase_of,
    recipes_of,
    register_of,
    shuffled,
    watched,
)

PROBES = tuple(f"liftlab.probes.{name}" for name in ("layout", "gates", "in_context", "memorization"))
UNSEEN_WINDOWS, UNSEEN_AFTER = 0.9, 500  # the unseen register: windows (it must fit the prompt), seeds further on
CUE_TOKENS, RECITE_TOKENS = 8, 16


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
    cues: int,
    filler: float,
    answer_tokens: int,
    records: str | Path,
) -> pd.DataFrame:
    """Records: `probes.memorization` of a document; exact match with its head and tail, and on an unseen document.

    Conditions: lift, at step 0, every `every`-th and the last, with each of `recipes` (adapter: recipe) and seed; base;
    chance; and, closed book, the finished adapter asked about another document (other_document) or scored against the
    answers of other facts (shuffled_answers). A cell of the cache is one document of `windows` windows: up to
    `questions` one-hop and as many two-hop facts in a trained and a held-out wording each; `cues` cues of each place.
    """
    at_least_one(documents=documents, seeds=seeds, questions=questions, every=every, cues=cues,
                 answer_tokens=answer_tokens)  # fmt: skip
    if windows <= 0:
        raise ValueError(f"windows = {windows}: must be above 0")
    recipes_of(recipes, recipe_changes)
    fixed = {
        "base": base, "window_tokens": window_tokens, "windows": float(windows), "seeds": seeds,
        "questions": questions, "every": every, "recipes": recipes, "recipe_changes": recipe_changes, "cues": cues,
        "filler": filler, "answer_tokens": answer_tokens,
    }  # fmt: skip
    grid = [{**fixed, "document_seed": seed} for seed in range(FIRST_DOCUMENT, FIRST_DOCUMENT + documents)]
    facts = lambda: {"base_model": base_model(base, window_tokens).provenance}  # noqa: E731
    modules = (*COMPUTE, *PROBES, __name__)
    return cells.run("memorization_vs_icl", cell, grid, Path(records), modules, facts, data_files())


def cell(
    base: str,
    window_tokens: int,
    windows: float,
    seeds: int,
    questions: int,
    every: int,
    recipes: dict,
    recipe_changes: dict,
    cues: int,
    filler: float,
    answer_tokens: int,
    document_seed: int,
) -> pd.DataFrame:
    """One document, lifted with each recipe and seed and probed along the way, with its controls."""
    model = base_model(base, window_tokens)
    plans = recipes_of(recipes, recipe_changes)
    document, other, unseen = (
        register_of(model, document_seed, windows, filler),
        register_of(model, other_document_of(document_seed), windows, filler),
        register_of(model, document_seed + UNSEEN_AFTER, UNSEEN_WINDOWS, filler),
    )
    case = _Case(
        *(_Asked.of(text, questions, document_seed) for text in (document, other, unseen)),
        paraphrase=paraphrase_of(model, document_seed, windows, filler),
        plan=next(iter(plans.values())),
        cues=cues,
        answer_tokens=answer_tokens,
    )
    nothing = {"adapter": "", "step": 0, "seed": 0}
    frames = [case.probed(model).assign(condition="base", **nothing), case.chance().assign(**nothing)]
    for adapter, plan in plans.items():
        for seed in range(seeds):
            rows = watched(model, document, replace(plan, seed=seed), every, case.look)
            frames.append(rows.assign(adapter=adapter, seed=seed))
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(**about("memorization_vs_icl", base, model, document))


@dataclass(frozen=True)
class _Asked:
    """A document and what is asked of it."""

    document: Document
    questions: Sequence[Question]

    @classmethod
    def of(cls, document: Document, count: int, seed: int) -> _Asked:
        """Up to `count` facts of one hop and of two."""
        return cls(document, [question for hops in (1, 2) for question in ask_facts(document, count, seed, hops)])

    @property
    def held_out(self) -> list[Question]:
        return [question for question in self.questions if (question.wording, question.hops) == ("held_out", 1)]


@dataclass(frozen=True)
class _Case:
    """A document and what it is compared with; the plan says how its segments and all prompts look."""

    own: _Asked
    other: _Asked
    unseen: _Asked
    paraphrase: Document
    plan: Recipe
    cues: int
    answer_tokens: int

    @property
    def settings(self) -> dict:
        return {"answer_tokens": self.answer_tokens, "style": style(self.plan.style)}

    def look(self, on: BaseModel, last: bool) -> pd.DataFrame:
        rows = [self.probed(on).assign(condition="lift")]
        if last:
            answers = [question.answer for question in self.other.questions]
            rows.append(self._scored(on, self.other, answers, "other_document"))
            rows.append(self._scored(on, self.own, shuffled(self.own.document, self.own.questions), "shuffled_answers"))
        return pd.concat(rows, ignore_index=True)

    def probed(self, on: BaseModel) -> pd.DataFrame:
        """Closed book (context "none"); in held-out wordings with the document's head and tail, or an unseen one."""
        closed = memorization.probe(
            on, self.own.document, self.own.questions, paraphrase=self.paraphrase, unseen=self.unseen.document,
            cue_tokens=CUE_TOKENS, cues=self.cues, recite_tokens=RECITE_TOKENS,
            segment_tokens=self.plan.segment_tokens, offset_tokens=self.plan.offset_tokens, **self.settings,
        )  # fmt: skip
        closed["context"] = closed["metric"].map({"exact_match": "none"})
        cut, whole = (
            in_context.probe(on, asked.document, asked.held_out, context=context, **self.settings)
            for asked, context in ((self.own, "truncated"), (self.unseen, "full"))
        )
        return pd.concat([closed, cut, whole.assign(context="unseen_document")], ignore_index=True)

    def chance(self) -> pd.DataFrame:
        return _rows(self.own, "chance", [question.chance for question in self.own.questions], "chance")

    def _scored(self, on: BaseModel, asked: _Asked, answers: Sequence[str], condition: str) -> pd.DataFrame:
        """Exact match, closed book, against `answers`."""
        said = answer(on, asked.document, asked.questions, "none", **self.settings)
        return _rows(asked, "exact_match", list(map(exact_match, said, answers)), condition)


def _rows(asked: _Asked, metric: str, values: Sequence[float], condition: str) -> pd.DataFrame:
    what = {"metric": metric, "unit": "share of questions", "context": "none", "condition": condition}
    of = [in_context.about(asked.document, question) for question in asked.questions]
    return pd.DataFrame([{**row, **what, "value": value} for row, value in zip(of, values, strict=True)])
