"""Pre-LIFT fine-tuning in an evaluation: its settings, and the other documents that it is trained on."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from liftlab import cells
from liftlab.documents import Document
from liftlab.examples import Pair
from liftlab.models import BaseModel
from liftlab.presft import ADAPTERS, Unseen, presft
from liftlab.recipes import Recipe
from liftlab.studies import sources
from liftlab.studies.conditions import Plan, pairs_of, plans
from liftlab.studies.registers import COMPUTE, at_least_one, data_files, known, register_of

FIELDS = ("documents", "windows", "recipe", "recipe_changes", "auxiliary")  # of the `presft` parameter
REGISTERS = ("register", "register_needle")  # sources whose documents are registers
FIRST_REGISTER = 10_000  # seed of the corpus; studies lift 200 and more, micro has read 1,000,000 and more
TRIED = 20  # registers drawn for each that is wanted, before giving up
MODULES = (*COMPUTE, "liftlab.presft", "liftlab.studies.tuning")  # a change in them makes a tuned model stale


@dataclass(frozen=True)
class Tuning:
    """The fine-tuning: how many documents, of which length (registers; windows), with which recipe and pairs."""

    documents: int
    windows: float
    plan: Plan

    @property
    def recipe(self) -> Recipe:
        return self.plan.recipe_for(0)


def checked(given: dict, wanted: dict[str, Plan], benchmark: dict, style: str, four_bit: bool) -> Tuning | None:
    """The `presft` parameter, None where it is {}. ValueError for a wrong one, before anything is loaded.

    `wanted`: the conditions; one that has presft needs it, and it needs one that has. `benchmark` is checked.
    """
    users = [name for name, plan in wanted.items() if plan.presft]
    if not given:
        if users:
            raise ValueError(f"condition {users[0]!r} has presft, but presft is {{}}: give its documents and recipe")
        return None
    known(list(given), FIELDS, "setting of presft:")
    for needed in ("documents", "recipe"):
        if needed not in given:
            raise ValueError(f"presft lacks {needed}: give it beside {', '.join(FIELDS)}")
    if not users:
        raise ValueError("presft is given, but no condition has presft: true: set it in one, or presft to {}")
    if four_bit:
        raise ValueError("presft fine-tunes the base weights, which four_bit packs: set four_bit = false")
    if benchmark["source"] == "needle":
        raise ValueError("presft: benchmark source 'needle' is one text, it has no other documents: choose another")
    if benchmark["source"] not in REGISTERS and "windows" in given:
        raise ValueError(f"presft: windows = {given['windows']} is for registers: leave it out")
    at_least_one(**{"presft: documents": given["documents"]})
    found = chosen(given, style)
    if not found.windows > 0:
        raise ValueError(f"presft: windows = {found.windows}: a register's length in windows, give a number above 0")
    known([found.recipe.adapter], ADAPTERS, "presft: adapter")
    return found


def chosen(given: dict, style: str) -> Tuning:
    """The fine-tuning that a checked `presft` asks for; recipe and pairs are settings as those of a condition."""
    settings = {name: given[name] for name in ("recipe", "recipe_changes", "auxiliary") if name in given}
    plan = plans({"presft": settings}, style, {})["presft"]
    return Tuning(given["documents"], float(given.get("windows", 1.0)), plan)


def tuned(
    base: BaseModel, tuning: Tuning, benchmark: dict, tests: Sequence[Document], folder: Path, replies: Path
) -> BaseModel:
    """`base` fine-tuned on other documents of the benchmark than `tests`; kept in `folder` for the next who asks."""

    def pairs(document: Document) -> list[Pair]:
        return pairs_of(tuning.plan, base, document, 0, replies)[0]

    code = cells.fingerprint(MODULES, data_files())
    found = corpus(tuning, benchmark, base, tests)
    return presft(base, found, tuning.recipe, tests, pairs, folder=folder, code=code, progress=False)


def corpus(tuning: Tuning, benchmark: dict, base: BaseModel, tests: Sequence[Document]) -> list[Document]:
    """The documents to fine-tune on: none has a name, a text or a sentence of one of `tests`.

    Registers without idle sentences, which all registers share, from seed 10,000 on; else other documents of the
    benchmark, drawn by a fixed seed, whose tests are not all of them. ValueError where there are too few.
    """
    plan = sources.checked(benchmark)
    if plan["source"] in REGISTERS:
        seeds = range(FIRST_REGISTER, FIRST_REGISTER + TRIED * tuning.documents)
        english = plan.get("english", "plain")
        drawn: Iterable[Document] = (register_of(base, seed, tuning.windows, 0.0, english) for seed in seeds)
    else:
        others = sources.documents(plan, 0, base)
        drawn = random.Random("presft").sample(others, len(others))
    return _disjoint(drawn, tuning.documents, tests)


def _disjoint(drawn: Iterable[Document], count: int, tests: Sequence[Document]) -> list[Document]:
    """The first `count` of the documents that may be trained on, each text once."""
    known_tests, found = Unseen(tests), {}  # the latter by text
    fresh = (document for document in drawn if not known_tests.cannot(document))
    while len(found) < count and (document := next(fresh, None)):
        found.setdefault(document.text, document)
    if len(found) < count:
        raise ValueError(
            f"presft: documents = {count}: only {len(found)} documents share no sentence with the tests, "
            "ask for fewer, or test fewer (documents)"
        )
    return list(found.values())
