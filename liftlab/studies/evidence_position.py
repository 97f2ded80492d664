"""Which depths of a long document are answered: read from its head and tail, recalled from an adapter, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from liftlab.answering import CONDITIONS
from liftlab.documents import Document, Question
from liftlab.examples import known_pairs
from liftlab.lifting import lift
from liftlab.models import BaseModel
from liftlab.probes.answers import chances
from liftlab.probes.evidence_position import probe, truncated_place
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
    register_of,
    shuffled,
)

PROBES = ("layout", "answers", "gates", "evidence_position")
_Asked = tuple[Document, Sequence[Question]]


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
    Recipe.preset(recipe, **recipe_changes)
    settings = {
        "base": base, "window_tokens": window_tokens, "seeds": seeds, "questions": questions, "recipe": recipe,
        "recipe_changes": recipe_changes, "conditions": list(conditions), "filler": filler,
        "answer_tokens": answer_tokens, "score": score,
    }  # fmt: skip
    return over_registers(cell, settings, documents, windows, records, probes=PROBES)


def cell(
    base: str,
    window_tokens: int,
    seeds: int,
    questions: int,
    recipe: str,
    recipe_changes: dict,
    conditions: Sequence[str],
    filler: float,
    answer_tokens: int,
    score: str,
    windows: float,
    document_seed: int,
) -> pd.DataFrame:
    """One document, lifted with each seed and asked under every condition."""
    model = base_model(base, window_tokens)
    plan = Recipe.preset(recipe, **recipe_changes)
    settings = {"answer_tokens": answer_tokens, "style": style(plan.style)}
    ask = partial(probe, **settings, score=score)
    own, other = (
        _asked(register_of(model, seed, windows, filler), questions, seed)
        for seed in (document_seed, other_document_of(document_seed))
    )
    document, asked = own
    places = [truncated_place(model, document, question, **settings) for question in asked]
    fitting = [question for question, place in zip(asked, places, strict=True) if place == "whole"]
    guessed = chances(document, asked).assign(place="absent", would_be=places, seed=0, condition="chance")
    frames = [guessed]

    def add(on: BaseModel, condition: str, seed: int, of: _Asked, context: str = "none") -> None:
        if of[1]:
            rows = ask(on, *of, context=context)
            frames.append(rows.assign(seed=seed, condition=condition))

    contexts = {name: CONDITIONS[name].context for name in conditions}
    lifted = [name for name in conditions if CONDITIONS[name].lifted]
    for name in (name for name in conditions if name not in lifted):
        add(model, name, 0, (document, fitting) if contexts[name] == "full" else own, contexts[name])
    for seed in range(seeds):
        with lift(model, document, replace(plan, seed=seed), known_pairs(document), progress=False).on(model) as on:
            for name in lifted:
                add(on, name, seed, own, contexts[name])
            add(on, "shuffled_answers", seed, (document, shuffled(document, asked)))
            add(on, "other_document", seed, other)
    shared = about("evidence_position", base, model, document)
    return pd.concat(frames, ignore_index=True).assign(windows=windows, **shared)


def _asked(document: Document, count: int, seed: int) -> _Asked:
    """Up to `count` of its facts, in a held-out wording each."""
    return document, [question for question in ask_facts(document, count, seed) if question.wording == "held_out"]
