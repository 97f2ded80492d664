"""Which depths of a long document are answered: read from its head and tail, recalled from an adapter, or both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from liftlab import cells
from liftlab.answering import CONDITIONS
from liftlab.documents import Document, Question
from liftlab.examples import known_pairs
from liftlab.lifting import lift
from liftlab.models import BaseModel
from liftlab.probes import in_context
from liftlab.probes.evidence_position import probe, truncated_place
from liftlab.prompts import style
from liftlab.recipes import Recipe
from liftlab.studies.registers import (
    COMPUTE,
    FIRST_DOCUMENT,
    about,
    ask_facts,
    at_least_one,
    base_model,
    data_files,
    known,
    other_document_of,
    register_of,
    shuffled,
)

PROBES = (
    "liftlab.probes.layout", "liftlab.probes.gates", "liftlab.probes.in_context", "liftlab.probes.evidence_position",
)  # fmt: skip


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
    """Records: exact match (0 or 1) a question and condition, with the evidence's depth and `would_be`, and its chance.

    `would_be` is where truncation puts the evidence (see probes.evidence_position), the same under all conditions; a
    question has full_icl only where the whole document fits beside it. Beside `conditions` there are always the
    controls, closed book: other_document (with the adapter of another register of the same length) and shuffled_answers
    (the answers of "lift" scored against those of other facts). A cell of the cache is one document of one length;
    `questions` facts of it are asked, in a held-out wording each. What is lifted is repeated with `seeds` seeds.
    """
    at_least_one(documents=documents, seeds=seeds, questions=questions, answer_tokens=answer_tokens)
    for length in windows:
        if not length > 0:
            raise ValueError(f"windows = {list(windows)}: a document length of {length} windows, give lengths above 0")
    known(conditions, tuple(CONDITIONS), "condition")
    Recipe.preset(recipe, **recipe_changes)
    fixed = {
        "base": base, "window_tokens": window_tokens, "seeds": seeds, "questions": questions, "recipe": recipe,
        "recipe_changes": recipe_changes, "conditions": list(conditions), "filler": filler,
        "answer_tokens": answer_tokens,
    }  # fmt: skip
    chosen = range(FIRST_DOCUMENT, FIRST_DOCUMENT + documents)
    grid = [{**fixed, "windows": float(length), "document_seed": seed} for length in windows for seed in chosen]
    facts = lambda: {"base_model": base_model(base, window_tokens).provenance}  # noqa: E731
    return cells.run("evidence_position", cell, grid, Path(records), (*COMPUTE, *PROBES, __name__), facts, data_files())


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
    windows: float,
    document_seed: int,
) -> pd.DataFrame:
    """One document, lifted with each seed and asked under every condition."""
    model = base_model(base, window_tokens)
    document = register_of(model, document_seed, windows, filler)
    other = register_of(model, other_document_of(document_seed), windows, filler)
    asked = [q for q in ask_facts(document, questions, document_seed) if q.wording == "held_out"]
    plan = Recipe.preset(recipe, **recipe_changes)
    settings = {"answer_tokens": answer_tokens, "style": style(plan.style)}
    places = [truncated_place(model, document, question, **settings) for question in asked]
    frames = [_chance(document, asked, places)]
    fitting = [question for question, place in zip(asked, places, strict=True) if place == "whole"]
    situations = _situations(model, document, other, asked, fitting, plan, conditions, seeds)
    for seed, condition, on, put, context in situations:
        rows = probe(on, document, put, context=context, **settings)
        frames.append(rows.assign(seed=seed, condition=condition))
    shared = about("evidence_position", base, model, document)
    return pd.concat(frames, ignore_index=True).assign(windows=windows, **shared)


def _situations(
    model: BaseModel,
    document: Document,
    other: Document,
    asked: Sequence[Question],
    fitting: Sequence[Question],
    plan: Recipe,
    conditions: Sequence[str],
    seeds: int,
) -> Iterator[tuple[int, str, BaseModel, Sequence[Question], str]]:
    """(seed, condition, model to ask, questions, context) of each condition in turn; one lift serves all it can."""
    contexts = {name: CONDITIONS[name].context for name in conditions}
    for name in (name for name in contexts if not CONDITIONS[name].lifted):
        put = fitting if contexts[name] == "full" else asked
        if put:
            yield 0, name, model, put, contexts[name]
    own = {name: (asked, context) for name, context in contexts.items() if CONDITIONS[name].lifted}
    wrong = [replace(q, answer=a) for q, a in zip(asked, shuffled(document, asked), strict=True)]
    own["shuffled_answers"] = wrong, "none"
    foreign = {"other_document": (asked, "none")}
    for seed in range(seeds):
        for source, ways in ((document, own), (other, foreign)):
            with lift(model, source, replace(plan, seed=seed), known_pairs(source), progress=False).on(model) as on:
                yield from ((seed, name, on, *way) for name, way in ways.items())


def _chance(document: Document, asked: Sequence[Question], places: Sequence[str]) -> pd.DataFrame:
    """A row a question: the probability of a right guess."""
    rows = [
        {**in_context.about(document, question), "place": "absent", "would_be": place, "metric": "chance",
         "unit": "share of questions", "value": float(question.chance), "seed": 0, "condition": "chance"}
        for question, place in zip(asked, places, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows)
