"""Is a lifted document memorised as text or known as facts, and what does the lift cost the model otherwise?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from liftlab.documents import Document, Question
from liftlab.models import BaseModel
from liftlab.probes import answers, in_context, memorization
from liftlab.prompts import style
from liftlab.recipes import Recipe
from liftlab.scoring import SCORES
from liftlab.studies.registers import (
    about,
    ask_facts,
    at_least_one,
    base_model,
    known,
    other_document_of,
    over_registers,
    paraphrase_of,
    recipes_of,
    register_of,
    shuffled,
    watched,
)
from liftlab.studies.together import Cell

PROBES = ("layout", "answers", "gates", "in_context", "memorization")
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
    english: str = "plain",
    answer_tokens: int,
    score: str,
    records: str | Path,
) -> pd.DataFrame:
    """Records: `probes.memorization` of a document; `score` with its head and tail, and on an unseen document.

    Conditions: lift, at step 0, every `every`-th and the last, with each of `recipes` (adapter: recipe) and seed; base;
    chance; and, closed book, the finished adapter asked about another document (other_document) or scored against the
    answers of other facts (shuffled_answers). A cell of the cache is one document of `windows` windows: up to
    `questions` one-hop and as many two-hop facts in a trained and a held-out wording each; `cues` cues of each place.
    """
    at_least_one(documents=documents, seeds=seeds, questions=questions, every=every, cues=cues,
                 answer_tokens=answer_tokens)  # fmt: skip
    if windows <= 0:
        raise ValueError(f"windows = {windows}: must be above 0")
    known([score], tuple(SCORES), "score")
    plans = recipes_of(recipes, recipe_changes)
    settings = {
        "base": base, "window_tokens": window_tokens, "seeds": seeds,
        "questions": questions, "every": every, "recipes": recipes, "recipe_changes": recipe_changes, "cues": cues,
        "filler": filler, "english": english, "answer_tokens": answer_tokens, "score": score,
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
    cues: int,
    filler: float,
    english: str,
    answer_tokens: int,
    score: str,
    document_seed: int,
) -> Cell:
    """One document, lifted with each recipe and seed and probed along the way, with its controls."""
    model = base_model(base, window_tokens)
    plans = recipes_of(recipes, recipe_changes)
    document, other, unseen = (
        register_of(model, document_seed, windows, filler, english),
        register_of(model, other_document_of(document_seed), windows, filler, english),
        register_of(model, document_seed + UNSEEN_AFTER, UNSEEN_WINDOWS, filler, english),
    )
    case = _Case(
        *(_Asked.of(text, questions, document_seed) for text in (document, other, unseen)),
        paraphrase=paraphrase_of(model, document_seed, windows, filler, english),
        plan=next(iter(plans.values())),
        cues=cues,
        answer_tokens=answer_tokens,
        score=score,
    )
    nothing = {"adapter": "", "step": 0, "seed": 0}
    frames = [case.probed(model).assign(condition="base", **nothing), case.chance().assign(**nothing)]
    for adapter, plan in plans.items():
        for seed in range(seeds):
            rows = yield from watched(model, document, replace(plan, seed=seed), every, case.look)
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
    score: str

    @property
    def settings(self) -> dict:
        return {"answer_tokens": self.answer_tokens, "style": style(self.plan.style), "score": self.score}

    def look(self, on: BaseModel, last: bool) -> pd.DataFrame:
        rows = [self.probed(on).assign(condition="lift")]
        if last:
            own, other = self.own, self.other
            rows.append(self._scored(on, other.document, other.questions, "other_document"))
            rows.append(self._scored(on, own.document, shuffled(own.document, own.questions), "shuffled_answers"))
        return pd.concat(rows, ignore_index=True)

    def probed(self, on: BaseModel) -> pd.DataFrame:
        """Closed book (context "none"); in held-out wordings with the document's head and tail, or an unseen one."""
        closed = memorization.probe(
            on, self.own.document, self.own.questions, paraphrase=self.paraphrase, unseen=self.unseen.document,
            cue_tokens=CUE_TOKENS, cues=self.cues, recite_tokens=RECITE_TOKENS,
            segment_tokens=self.plan.segment_tokens, offset_tokens=self.plan.offset_tokens, **self.settings,
        )  # fmt: skip
        closed["context"] = closed["metric"].map({self.score: "none"})
        cut, whole = (
            in_context.probe(on, asked.document, asked.held_out, context=context, **self.settings)
            for asked, context in ((self.own, "truncated"), (self.unseen, "full"))
        )
        return pd.concat([closed, cut, whole.assign(context="unseen_document")], ignore_index=True)

    def chance(self) -> pd.DataFrame:
        return answers.chances(self.own.document, self.own.questions).assign(context="none", condition="chance")

    def _scored(self, on: BaseModel, document: Document, asked: Sequence[Question], condition: str) -> pd.DataFrame:
        """Answers closed book."""
        found = answers.scored(on, document, asked, "none", **self.settings)
        return found.assign(context="none", condition=condition)
