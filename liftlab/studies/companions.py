"""What does LIFT buy against what one would otherwise use? One document under all methods: answers and costs."""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from liftlab import cells
from liftlab.documents import Document, Question
from liftlab.examples import known_pairs, segments
from liftlab.models import BaseModel
from liftlab.prompts import style
from liftlab.recipes import Recipe
from liftlab.register_tasks import TASKS, with_tasks
from liftlab.scoring import SHORT_ANSWER_SCORES
from liftlab.stacked import Job
from liftlab.studies.companion_methods import METHODS, Asked, cannot
from liftlab.studies.registers import (
    COMPUTE,
    FIRST_DOCUMENT,
    about,
    at_least_one,
    base_model,
    check_english,
    data_files,
    known,
    register_of,
)
from liftlab.studies.together import Ask, Cell, alone, grouped

PREDICTED = ("lift", "raw_text", "temp_lora")  # whose perplexity of the document is measured, beside the base model's
MODULES = (
    *COMPUTE,
    *(f"liftlab.{name}" for name in (
        "register_tasks", "auxiliary.sentences", "retrieval", "grouped_positions", "long_perplexity",
        "studies.companion_methods", "studies.companions",
    )),
)  # fmt: skip


def run(
    *,
    base: str,
    window_tokens: int,
    windows: Sequence[float],
    documents: int,
    seeds: int,
    questions: int,
    question_types: Sequence[str],
    methods: Sequence[str],
    recipes: dict[str, str],
    changes: dict,
    passage_tokens: int,
    group: int,
    neighbours: int,
    style: str,
    filler: float,
    english: str = "plain",
    answer_tokens: int,
    score: str,
    expected_questions: int,
    timed: bool,
    records: str | Path,
) -> pd.DataFrame:
    """Records: `score` (0..1) a question and method, and a row a cost, method and document.

    Costs: training_tokens (positions read in training), prompt_tokens (mean over the questions; whole prompts, though
    what they share is read once), stored_bytes (what must be kept to answer later: the adapter's weights, and the text
    in UTF-8 where a prompt holds it; an index is made anew); with `timed` also prepare_seconds and question_seconds,
    answered in batches. A method that cannot run has a row cannot_run instead, with the `reason`. Metrics perplexity
    and long_perplexity (`context` short, long) of closed_book and `PREDICTED`. `questions`: of each of `question_types`
    (register_tasks.TASKS), in held-out wordings; `seeds`: training seeds of what is trained. raw_text gets as many
    epochs as come nearest to the training tokens of lift, where that is asked too. `changes`: fields of a recipe to
    change, by its name in `recipes`. `expected_questions`: how many a document is to answer, for its whole cost.
    """
    at_least_one(documents=documents, seeds=seeds, questions=questions, answer_tokens=answer_tokens,
                 passage_tokens=passage_tokens, group=group, neighbours=neighbours,
                 expected_questions=expected_questions, methods=len(methods),
                 question_types=len(question_types))  # fmt: skip
    for length in windows:
        if not length > 0:
            raise ValueError(f"windows = {list(windows)}: a document length of {length} windows, give lengths above 0")
    known([score], tuple(SHORT_ANSWER_SCORES), "score")
    known(methods, tuple(METHODS), "method")
    known(question_types, tuple(TASKS), "question type")
    known(list(changes), tuple(recipes), "recipe of changes:")
    check_english(base, english)
    plans = [_plan(name, recipes, changes, style) for name in _recipes_of(methods)]
    settings = {
        "base": base, "window_tokens": window_tokens, "seeds": seeds, "questions": questions,
        "question_types": list(question_types), "methods": list(methods), "recipes": recipes,
        "changes": changes, "passage_tokens": passage_tokens, "group": group, "neighbours": neighbours,
        "style_name": style, "filler": filler, "english": english, "answer_tokens": answer_tokens, "score": score,
        "expected_questions": expected_questions, "timed": timed,
    }  # fmt: skip
    seeds_of = range(FIRST_DOCUMENT, FIRST_DOCUMENT + documents)
    grid = [{**settings, "windows": float(length), "document_seed": seed} for seed in seeds_of for length in windows]
    load = partial(base_model, base, window_tokens)
    facts = lambda: {"base_model": load().provenance}  # noqa: E731
    how = {"alone": True} if timed else grouped(load, plans)
    return cells.run(
        "companions", timed_cell if timed else cell, grid, Path(records), MODULES, facts, data_files(), **how
    )


def timed_cell(**settings) -> pd.DataFrame:
    """`cell` by itself, after a small document that nobody times: what a process does once is no method's cost."""
    model = base_model(settings["base"], settings["window_tokens"])
    for name in _recipes_of(settings["methods"]):
        plan = _plan(name, settings["recipes"], settings["changes"], settings["style_name"])
        if (settings["base"], settings["window_tokens"], plan) not in _warmed:
            alone(model, _warm(model, plan, settings["english"]))
            _warmed.add((settings["base"], settings["window_tokens"], plan))
    return alone(model, cell(**settings))


_warmed: set[tuple] = set()


def _warm(model: BaseModel, plan: Recipe, english: str) -> Cell:
    document = register_of(model, 0, 0.5, 0.0, english)
    small = replace(plan, segment_epochs=min(plan.segment_epochs, 1), mixed_epochs=min(plan.mixed_epochs, 1))
    lifted = yield Job(document, small, known_pairs(document))
    yield Ask([[model.tokenizer.eos_token_id]], 1, lifted)
    return pd.DataFrame()


def cell(
    base: str, window_tokens: int, seeds: int, questions: int, question_types: Sequence[str], methods: Sequence[str],
    recipes: dict[str, str], changes: dict, passage_tokens: int, group: int, neighbours: int, style_name: str,
    filler: float, english: str, answer_tokens: int, score: str, expected_questions: int, timed: bool,
    windows: float, document_seed: int,
) -> Cell:  # fmt: skip
    """One document under every method."""
    model = base_model(base, window_tokens)
    told = register_of(model, document_seed, windows, filler, english)
    document = with_tasks(told, list(question_types), document_seed)
    asked = drawn(document, question_types, questions, document_seed)
    positions = {"group": group, "neighbours": neighbours}
    how = Asked(model, document, asked, style(style_name), answer_tokens, score, passage_tokens, positions, timed)
    found: list[dict] = []
    for name in _untrained(methods):
        found += [{"condition": name, "seed": 0, **row} for row in (yield from how.measured(METHODS[name], None))]
    if "closed_book" in methods:
        found += [{"condition": "closed_book", "seed": 0, **row} for row in how.predicted(None)]
    trained = {name: _plan(name, recipes, changes, style_name) for name in _recipes_of(methods)}
    for seed in range(seeds):
        found += yield from _trained(how, trained, methods, seed)
    empty = {"kind": "", "question": "", "answer": "", "reason": "", "context": ""}
    told = {**about("companions", base, model, document), "windows": windows, "expected_questions": expected_questions}
    return pd.DataFrame({**told, **empty, **row} for row in found)


def drawn(document: Document, question_types: Sequence[str], count: int, seed: int) -> list[Question]:
    """Up to `count` questions of each type, drawn by `seed`; a short document may have fewer."""
    rng = random.Random(f"companions {seed}")
    held_out = [q for q in document.questions if q.wording == "held_out"]
    by_type = [[q for q in held_out if q.kind == kind] for kind in question_types]
    return [q for of in by_type for q in rng.sample(of, min(count, len(of)))]


def _untrained(methods: Sequence[str]) -> list[str]:
    return [name for name in METHODS if name in methods and not METHODS[name].recipe]


def _recipes_of(methods: Sequence[str]) -> list[str]:
    """The recipes that the methods train, each once, lift first."""
    return list(dict.fromkeys(of.recipe for name, of in METHODS.items() if name in methods and of.recipe))


def _plan(name: str, recipes: dict[str, str], changes: dict, style_name: str) -> Recipe:
    if name not in recipes:
        raise ValueError(f"recipes = {recipes}: give the recipe of {name!r}, which a method trains")
    return replace(Recipe.preset(recipes[name], **changes.get(name, {})), style=style_name)


def _trained(how: Asked, plans: dict[str, Recipe], methods: Sequence[str], seed: int) -> Generator:
    """The rows of what is trained, one lift for the methods that share it; of one that cannot be trained, why."""
    rows, tokens = [], 0
    for recipe, plan in plans.items():
        of = {name: METHODS[name] for name in METHODS if name in methods and METHODS[name].recipe == recipe}
        pairs = known_pairs(how.document) if any(method.pairs for method in of.values()) else []
        began = time.perf_counter()
        try:
            if recipe == "raw_text" and tokens:
                plan = _with_tokens(how, plan, tokens)
            lifted = yield Job(how.document, replace(plan, seed=seed), pairs)
        except ValueError as error:
            rows += [{"condition": name, "seed": seed, **cannot(str(error))} for name in of]
            continue
        seconds = time.perf_counter() - began
        tokens = lifted.history[-1].tokens if recipe == "lift" else tokens
        for name, method in of.items():
            found = yield from how.measured(method, lifted, seconds)
            found += how.predicted(lifted) if name in PREDICTED else []
            rows += [{"condition": name, "seed": seed, **row} for row in found]
    return rows


def _with_tokens(how: Asked, plan: Recipe, tokens: int) -> Recipe:
    """`plan` on the text alone, with as many epochs as come nearest to reading `tokens`."""
    cut = segments(how.base.tokenizer, how.document, plan.segment_tokens, plan.offset_tokens)
    epochs = max(1, round(tokens / sum(len(segment.ids) for segment in cut)))
    return replace(plan, segment_epochs=epochs, mixed_epochs=0)
