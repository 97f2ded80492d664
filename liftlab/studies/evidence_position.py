"""Which depths of a long document are answered: read from its head and tail, recalled from an adapter, or both."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

import pandas as pd

from liftlab.answering import CONDITIONS
from liftlab.documents import Document, Question
from liftlab.examples import known_pairs
from liftlab.lifted import Lifted
from liftlab.models import BaseModel
from liftlab.probes.answers import chances
from liftlab.probes.evidence_position import truncated_place
from liftlab.prompts import style
from liftlab.recipes import Recipe
from liftlab.scoring import SCORES
from liftlab.stacked import Job
from liftlab.studies.registers import (
    about,
    ask_facts,
    at_least_one,
    base_model,
    known,
    other_document_of,
    over_registers,
    register_of,
    shuffled,
)
from liftlab.studies.together import Answers, Ask, Cell, scored

PROBES = ("layout", "answers", "gates", "evidence_position")


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
    score: str,
    records: str | Path,
) -> pd.DataFrame:
    """Records: `score` (see `scoring.SCORES`) and chance a question and condition, with the evidence's depth and place.

    `would_be` is where truncation puts the evidence (see probes.evidence_position), the same under all conditions; a
    question has full_icl only where the whole document fits beside it. Beside `conditions` there are always the
    controls, closed book: other_document (the same adapter, asked about another register of the same length; depth and
    place are those in that one) and shuffled_answers (scored against the answers of other facts). A cell of the cache
    is one document of one length; `questions` facts of it are asked, in a held-out wording each. What is lifted is
    repeated with `seeds` seeds.
    """
    at_least_one(documents=documents, seeds=seeds, questions=questions, answer_tokens=answer_tokens)
    for length in windows:
        if not length > 0:
            raise ValueError(f"windows = {list(windows)}: a document length of {length} windows, give lengths above 0")
    known([score], tuple(SCORES), "score")
    known(conditions, tuple(CONDITIONS), "condition")
    plan = Recipe.preset(recipe, **recipe_changes)
    settings = {
        "base": base, "window_tokens": window_tokens, "seeds": seeds, "questions": questions, "recipe": recipe,
        "recipe_changes": recipe_changes, "conditions": list(conditions), "filler": filler, "english": english,
        "answer_tokens": answer_tokens, "score": score,
    }  # fmt: skip
    return over_registers(cell, settings, documents, windows, records, recipes=[plan], probes=PROBES)


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
    score: str,
    windows: float,
    document_seed: int,
) -> Cell:
    """One document, lifted with each seed and asked under every condition."""
    model = base_model(base, window_tokens)
    plan = Recipe.preset(recipe, **recipe_changes)
    prompt = {"answer_tokens": answer_tokens, "style": style(plan.style), "score": score}
    own, other = (
        _Asked.of(model, register_of(model, seed, windows, filler, english), questions, seed, prompt)
        for seed in (document_seed, other_document_of(document_seed))
    )
    asked = {name: (own, CONDITIONS[name].context) for name in conditions}
    unlifted = {name: of for name, of in asked.items() if not CONDITIONS[name].lifted}
    lifted = {name: of for name, of in asked.items() if CONDITIONS[name].lifted}
    lifted |= {"shuffled_answers": (own.shuffled(), "none"), "other_document": (other, "none")}
    frames = [own.chances().assign(seed=0, condition="chance")]
    frames += yield from _rows(None, 0, unlifted)
    for seed in range(seeds):
        adapter = yield Job(own.document, replace(plan, seed=seed), known_pairs(own.document))
        frames += yield from _rows(adapter, seed, lifted)
    shared = about("evidence_position", base, model, own.document)
    return pd.concat(frames, ignore_index=True).assign(windows=windows, **shared)


def _rows(
    lifted: Lifted | None, seed: int, asked: dict[str, tuple[_Asked, str]]
) -> Generator[Ask, Answers, list[pd.DataFrame]]:
    """The rows of each condition, by what is asked and its context; none where there is nothing to ask."""
    frames = []
    for condition, (of, context) in asked.items():
        fitting = of.fitting(context)
        if fitting.questions:
            rows = yield from fitting.scored(lifted, context)
            frames.append(rows.assign(seed=seed, condition=condition))
    return frames


@dataclass(frozen=True)
class _Asked:
    """A document and what is asked of it, with where truncation puts the evidence of each question."""

    base: BaseModel
    document: Document
    questions: Sequence[Question]
    places: Sequence[str]
    prompt: dict  # how it is asked and scored

    @classmethod
    def of(cls, base: BaseModel, document: Document, count: int, seed: int, prompt: dict) -> _Asked:
        """Up to `count` of its facts, in a held-out wording each."""
        asked = [question for question in ask_facts(document, count, seed) if question.wording == "held_out"]
        put = {name: prompt[name] for name in ("answer_tokens", "style")}
        return cls(base, document, asked, [truncated_place(base, document, q, **put) for q in asked], prompt)

    def shuffled(self) -> _Asked:
        return replace(self, questions=shuffled(self.document, self.questions))

    def chances(self) -> pd.DataFrame:
        return chances(self.document, self.questions).assign(place="absent", would_be=self.places)

    def fitting(self, context: str) -> _Asked:
        """With the whole document in the prompt, the questions alone that it fits with."""
        fits = [context != "full" or place == "whole" for place in self.places]
        return replace(self, questions=list(compress(self.questions, fits)), places=list(compress(self.places, fits)))

    def scored(self, lifted: Lifted | None, context: str) -> Generator[Ask, Answers, pd.DataFrame]:
        """The rows of `probes.evidence_position.probe`."""
        rows = yield from scored(self.base, lifted, self.document, self.questions, context, **self.prompt)
        place = {"none": "absent", "full": "whole", "truncated": self.places}[context]
        return rows.assign(place=place, would_be=self.places)
