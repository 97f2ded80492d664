"""Several lifted documents: an adapter each, one adapter for all of them, or adapters averaged; what is lost?"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, product
from pathlib import Path

import numpy as np
import pandas as pd

from liftlab import averaging, cells, scoring
from liftlab.documents import Document, Question, joined
from liftlab.examples import known_pairs
from liftlab.lifted import Lifted
from liftlab.models import BaseModel
from liftlab.probes.answers import chances, rows
from liftlab.prompts import PromptStyle, put, style
from liftlab.recipes import Recipe
from liftlab.scoring import SCORES
from liftlab.stacked import Job
from liftlab.studies.registers import (
    COMPUTE,
    FIRST_DOCUMENT,
    about,
    ask_facts,
    at_least_one,
    base_model,
    check_english,
    data_files,
    known,
    register_of,
)
from liftlab.studies.together import Answers, Ask, Cell, grouped
from liftlab.worlds import vocabulary

CONDITIONS = (
    "closed_book", "routed", "routed_wrong", "joint", "joint_equal_tokens", "averaged_deltas", "summed_deltas",
    "averaged_weights",
)  # fmt: skip
TRAINED = {"joint": False, "joint_equal_tokens": True}  # whether for as many tokens as one document's lift
MERGED = {
    "averaged_deltas": averaging.of_deltas,
    "summed_deltas": partial(averaging.of_deltas, share=1.0),
    "averaged_weights": averaging.of_weights,
}
SEEDS = 1000  # registers that a group may choose from
MODULES = (*COMPUTE, "liftlab.averaging", "liftlab.studies.many_documents")
Lifts = Sequence[Lifted]
Pairs = Sequence[tuple[Document, list[Question]]]  # a document and what is asked of it
Rows = Generator[Ask, Answers, list[pd.DataFrame]]


def run(
    *,
    base: str,
    window_tokens: int,
    windows: float,
    groups: int,
    sizes: Sequence[int],
    seeds: int,
    questions: int,
    recipe: str,
    recipe_changes: dict,
    same_start: bool,
    conditions: Sequence[str],
    filler: float,
    english: str = "plain",
    answer_tokens: int,
    score: str,
    records: str | Path,
) -> pd.DataFrame:
    """Records: `score` of every question and condition, a row a question; stored_kib and train_tokens of each size.

    A cell of the cache is a group: as many registers of `windows` windows as the largest of `sizes`, of which no two
    name the same person, so that no question has two right answers. For each size (column together) the first so many
    are asked `questions` of their facts in a held-out wording, closed book: each of its own adapter (routed), of that
    of the next register in the group (routed_wrong), of one adapter for all of them, or of the base model (together =
    0, the whole group). That one adapter is trained on all of them for the recipe's epochs (joint), or for 1/size of
    these, the tokens of one register's lift (joint_equal_tokens); or is made of the routed ones: see
    liftlab.averaging. With one register all of these are the routed lift.

    `same_start`: a group's lifts begin from the same random weights, which averaged weights need; else each from its
    own. In the records `document` is the group, the unit of sampling; `register` is the document asked about.
    """
    settings = {
        "base": base, "window_tokens": window_tokens, "windows": float(windows), "sizes": list(sizes), "seeds": seeds,
        "questions": questions, "recipe": recipe, "recipe_changes": recipe_changes, "same_start": same_start,
        "conditions": list(conditions), "filler": filler, "english": english,
        "answer_tokens": answer_tokens, "score": score,
    }  # fmt: skip
    at_least_one(groups=groups, seeds=seeds, questions=questions, answer_tokens=answer_tokens, sizes=len(sizes))
    if not windows > 0:
        raise ValueError(f"windows = {windows}: a document's length in windows, give a number above 0")
    known([score], tuple(SCORES), "score")
    known(conditions, CONDITIONS, "condition")
    check_english(base, english)
    plan = Recipe.preset(recipe, **recipe_changes)
    _check(plan, sizes, conditions)
    load = partial(base_model, base, window_tokens)
    facts = lambda: {"base_model": load().provenance}  # noqa: E731
    grid = [{**settings, "group": group} for group in range(groups)]
    how = grouped(load, [plan])
    return cells.run("many_documents", cell, grid, Path(records), MODULES, facts, data_files(), **how)


def _check(plan: Recipe, sizes: Sequence[int], conditions: Sequence[str]) -> None:
    if min(sizes) < 1 or max(sizes) < 2 or len(set(sizes)) < len(sizes):
        raise ValueError(f"sizes = {list(sizes)}: give numbers of documents from 1, each once, the largest at least 2")
    if "joint_equal_tokens" in conditions:
        for size in sizes:
            if plan.segment_epochs % size or plan.mixed_epochs % size:
                raise ValueError(
                    f"joint_equal_tokens trains {size} documents for 1/{size} of segment_epochs = "
                    f"{plan.segment_epochs} and mixed_epochs = {plan.mixed_epochs}: make both multiples of {size} with "
                    "recipe_changes, or leave the condition or the size out"
                )
    if plan.adapter not in ("lora", "pissa") and (deltas := [name for name in conditions if "deltas" in name]):
        raise ValueError(
            f"condition {deltas[0]!r} needs adapter lora or pissa, recipe has {plan.adapter}: leave the condition out"
        )


def cell(
    base: str,
    window_tokens: int,
    windows: float,
    sizes: Sequence[int],
    seeds: int,
    questions: int,
    recipe: str,
    recipe_changes: dict,
    same_start: bool,
    conditions: Sequence[str],
    filler: float,
    english: str,
    answer_tokens: int,
    score: str,
    group: int,
) -> Cell:
    """One group: each register lifted, then the first so many together, or their adapters averaged; all are asked."""
    model = base_model(base, window_tokens)
    documents = group_of(model, group, max(sizes), windows, filler, english)
    pairs = [(document, _held_out(document, questions)) for document in documents]
    plan = Recipe.preset(recipe, **recipe_changes)
    asking = _Asking(model, answer_tokens, style(plan.style), score)
    frames = [chances(*pair).assign(register=pair[0].name, condition="chance", together=0, seed=0) for pair in pairs]
    if "closed_book" in conditions:
        said = yield from asking.one(None, pairs)
        frames += [frame.assign(condition="closed_book", together=0, seed=0) for frame in said]
    for seed in range(seeds):
        lifts: list[Lifted] = []
        for place, document in enumerate(documents):
            began = seed if same_start else seed * len(documents) + place
            lifts.append((yield Job(document, replace(plan, seed=began), known_pairs(document))))
        own = yield from asking.each(lifts, pairs)
        wrong = yield from asking.each([*lifts[1:], lifts[0]], pairs)
        for size, condition in product(sizes, conditions):
            told = {"condition": condition, "together": size, "seed": seed}
            if condition in ("routed", "routed_wrong"):
                answered, kept, trained = (own if condition == "routed" else wrong)[:size], lifts[:size], lifts[:size]
            elif condition in (*TRAINED, *MERGED):
                one, trained = yield from _one_for(condition, documents[:size], lifts[:size], replace(plan, seed=seed))
                answered, kept = (yield from asking.one(one, pairs[:size])), [one]
            else:
                continue
            frames += [frame.assign(**told) for frame in (*answered, _costs(kept, trained))]
    whole = joined(documents, " ".join(document.name for document in documents))
    return pd.concat(frames, ignore_index=True).assign(**about("many_documents", base, model, whole))


def group_of(
    base: BaseModel, group: int, documents: int, windows: float, filler: float, english: str = "plain"
) -> list[Document]:
    """The first `documents` registers of the group's own seeds that name no person of one before them.

    ValueError where there are too few: the register world has 64 names.
    """
    chosen: list[Document] = []
    named: set[str] = set()
    first = FIRST_DOCUMENT + group * SEEDS
    for seed in range(first, first + SEEDS):
        document = register_of(base, seed, windows, filler, english)
        if named.isdisjoint(people(document)):
            chosen.append(document)
            named |= people(document)
        if len(chosen) == documents:
            return chosen
    raise ValueError(
        f"windows = {windows}: only {len(chosen)} of registers {first} to {first + SEEDS - 1} name different people, "
        f"{documents} are wanted: give shorter documents, or fewer of them"
    )


def people(document: Document) -> set[str]:
    """Everybody whom a register names."""
    return set(vocabulary().names) & set(re.findall(r"\w+", document.text))


def _held_out(document: Document, questions: int) -> list[Question]:
    """Up to `questions` of the document's facts, each in a held-out wording."""
    drawn = ask_facts(document, questions, int(document.name.split("-")[1]))
    return [question for question in drawn if question.wording == "held_out"]


@dataclass(frozen=True)
class _Asking:
    """How adapters are asked, closed book: the rows of each document's questions."""

    model: BaseModel
    answer_tokens: int
    style: PromptStyle
    score: str

    def one(self, lifted: Lifted | None, pairs: Pairs) -> Rows:
        """One adapter asked about all documents; None is the base model."""
        how = (self.model.window, self.answer_tokens, self.style)
        prompts = [put(self.model.tokenizer, document, q, "none", *how) for document, asked in pairs for q in asked]
        said = iter((yield Ask(prompts, self.answer_tokens, lifted)))
        return [self._scored(document, asked, list(islice(said, len(asked)))) for document, asked in pairs]

    def each(self, lifts: Lifts, pairs: Pairs) -> Rows:
        """Each adapter asked about the document in its place."""
        found = []
        for lifted, pair in zip(lifts, pairs, strict=True):
            found += yield from self.one(lifted, [pair])
        return found

    def _scored(self, document: Document, asked: Sequence[Question], said: Answers) -> pd.DataFrame:
        right = scoring.score(self.score)
        values = [right(text, question.answer) for question, text in zip(asked, said, strict=True)]
        return rows(document, asked, values, self.score).assign(register=document.name)


def _one_for(
    condition: str, documents: Sequence[Document], lifts: Lifts, plan: Recipe
) -> Generator[Job, Lifted, tuple[Lifted, Lifts]]:
    """One adapter for all `documents`, and the lifts that were trained for it."""
    if len(documents) == 1:
        return lifts[0], lifts
    names, titles = ([getattr(document, field) for document in documents] for field in ("name", "title"))
    whole = joined(documents, " ".join(names), ", ".join(titles))
    if condition in MERGED:
        return MERGED[condition](lifts, whole), lifts
    one = yield _job(whole, plan, len(documents) if TRAINED[condition] else 1)
    return one, [one]


def _job(whole: Document, plan: Recipe, parted: int) -> Job:
    """The lift of several documents as one, for 1/`parted` of the recipe's epochs."""
    shorter = {name: getattr(plan, name) // parted for name in ("segment_epochs", "mixed_epochs")}
    return Job(whole, replace(plan, **shorter), known_pairs(whole))


def _costs(kept: Lifts, trained: Lifts) -> pd.DataFrame:
    """KiB of the adapters that are kept, and the tokens that all those were trained on which had to be trained."""
    stored = sum(value.numel() * value.element_size() for lifted in kept for value in lifted.state.values())
    tokens = sum(lifted.history[-1].tokens for lifted in trained)
    costs = [("stored_kib", "KiB", stored / 1024), ("train_tokens", "tokens", float(tokens))]
    none = {"register": "", "question": "", "wording": "", "kind": "", "hops": 0, "depth": np.nan}
    return pd.DataFrame(costs, columns=["metric", "unit", "value"]).assign(**none)
