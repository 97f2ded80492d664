"""Many documents at once: each gets the adapter that it would get alone, in one forward and backward pass for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import peft
import torch

from liftlab import adapters, lifting
from liftlab.answering import answer_prompts, generate
from liftlab.batches import epochs
from liftlab.documents import Document
from liftlab.examples import Pair
from liftlab.history import Watch
from liftlab.lifted import Lifted
from liftlab.lifting import make_examples
from liftlab.models import BaseModel
from liftlab.recipes import Recipe
from liftlab.shared_prefixes import can_share, found_in_rows
from liftlab.stacked_layers import fits, stacked_on, trains
from liftlab.stacked_memory import Cost, measured
from liftlab.stacked_training import Course, train

MEMORY_GIB = 4.0  # on a CPU, where no budget is given
Prompts = Sequence[list[int] | None]  # token ids
_Group = tuple[peft.PeftConfig | None, list[int]]  # an adapter's config, and the places of those that have it


@dataclass(frozen=True)
class Job:
    """One document to lift; fields as for `lifting.lift`, but ValueError for pairs that are no Sequence.

    `base` None: the base model that all are lifted on; studies.together takes jobs for several.
    """

    document: Document
    recipe: Recipe
    pairs: Sequence[Pair] = ()
    watch: Watch | None = None
    every: int = 1
    base: BaseModel | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every = {self.every}: watch is called at each `every`-th step, so give at least 1")
        if not isinstance(self.pairs, Sequence):
            raise ValueError(
                f"document {self.document.name!r}: pairs that arrive while others are trained on cannot be stacked: "
                "give a list"
            )


def lift(
    base: BaseModel, jobs: Sequence[Job], *, memory_gib: float | None = None, progress: bool = True
) -> list[Lifted]:
    """Each job's lift, in the jobs' order: that of `lifting.lift` to rounding (1e-5 in float32).

    Documents may differ in length and settings; those whose adapters have the same shape are stacked, as many as fit
    into `memory_gib` (GiB, for adapters, their optimizer and activations, beside the base model); None: 4 GiB, on a GPU
    half of what is free. Full fine-tuning is done alone, and so is an adapter for which a budget that nobody gave is
    too small.

    The seconds of a history are those of its whole stack. Raises what `lifting.lift` raises, and ValueError for a given
    budget that one document alone exceeds, or a job for another base model.
    """
    if memory_gib is not None and not memory_gib > 0:
        raise ValueError(f"memory_gib = {memory_gib}: give the memory for training in GiB, above 0")
    for job in jobs:
        if job.base is not None and job.base.model is not base.model:
            raise ValueError(
                f"document {job.document.name!r} is to be lifted on {job.base.name}, not on {base.name}: "
                "lift those of one base model at a time"
            )
    recipes, done = [job.recipe for job in jobs], {}
    for config, places in _by_adapter(
        [adapters.config(recipe) for recipe in recipes], [recipe.gradient_checkpointing for recipe in recipes]
    ):
        if not trains(config):
            done |= {i: _alone(base, jobs[i], progress) for i in places}
            continue
        courses = {i: _course(base, jobs[i]) for i in places}
        cost = measured(base, config, recipes[places[0]].gradient_checkpointing)
        if memory_gib is None:
            large = [i for i in places if cost.least(courses[i].longest_example) > _budget(base)]
            done |= {i: _alone(base, jobs[i], progress) for i in large}
            courses = {i: course for i, course in courses.items() if i not in large}
        for stack, tokens in _stacks(courses, cost, _budget(base) if memory_gib is None else memory_gib * 2**30):
            chosen = [courses[i] for i in stack]
            begin = [lifting.first_tokens(base, jobs[i].document, recipes[i]) or recipes[i].seed for i in stack]
            found = train(base, config, begin, chosen, tokens, progress)
            for i, (adapter, state, history) in zip(stack, found, strict=True):
                job = jobs[i]
                done[i] = Lifted(job.document, job.recipe, adapter, state, history, dict(base.provenance))
    return [done[i] for i in range(len(jobs))]


def _alone(base: BaseModel, job: Job, progress: bool) -> Lifted:
    settings = {"watch": job.watch, "every": job.every, "progress": progress}
    return lifting.lift(base, job.document, job.recipe, job.pairs, **settings)


def _course(base: BaseModel, job: Job) -> Course:
    within = adapters.beside_prefix(base, job.recipe)
    cut, answered = make_examples(within, job.document, job.recipe, job.pairs)
    steps = []
    for epoch, plan in enumerate(epochs(cut, list(answered), job.recipe), start=1):
        batches = [[example for batch in plan for example in batch]] if job.recipe.step == "epoch" else plan
        steps += [(epoch, tuple(batch)) for batch in batches]
    if not steps:
        raise lifting.nothing_to_train_on(job.document)
    return Course(job.document.name, job.recipe, tuple(steps), job.watch, job.every)


def _budget(base: BaseModel) -> float:
    """Bytes, where none are given."""
    if base.model.device.type == "cuda":
        return torch.cuda.mem_get_info(base.model.device)[0] / 2
    return MEMORY_GIB * 2**30


def _stacks(courses: dict[int, Course], cost: Cost, budget: float) -> Iterator[tuple[list[int], int]]:
    """(places, tokens a document in one forward pass) of stacks within the budget, long courses first."""
    left = sorted(courses, key=lambda i: -len(courses[i].steps))
    while left:
        example = max(courses[i].longest_example for i in left)
        step = max(courses[i].longest_step for i in left)
        documents, tokens = cost.room(budget, len(left), example, step)
        yield left[:documents], tokens
        left = left[documents:]


def answer(
    base: BaseModel,
    lifted: Sequence[Lifted],
    prompts: Sequence[Prompts],
    answer_tokens: int = 8,
    batch_tokens: int = 16384,
) -> list[list[str | None]]:
    """Greedy answers to `prompts[i]` of `lifted[i]` (token ids each, see `prompts.put`); None for None.

    Documents whose adapters have the same shape are asked in one forward pass; `batch_tokens` bounds its padded prompt
    tokens. ValueError where `base` is not the model that a document was lifted on.
    """
    for document in lifted:
        document.check_base(base)
    answers: list[list[str | None]] = [[None] * len(of) for of in prompts]
    for config, places in _by_adapter([document.adapter for document in lifted], [None] * len(lifted)):
        if not fits(config):
            for i in places:
                with lifted[i].on(base) as on:
                    answers[i] = answer_prompts(on, prompts[i], answer_tokens, batch_tokens)
            continue
        _answer_stacked(base, config, places, lifted, prompts, answers, answer_tokens, batch_tokens)
    return answers


def _by_adapter(configs: Sequence[peft.PeftConfig | None], also: Sequence[object]) -> list[_Group]:
    """The places of each config, where what stands in `also` is the same, too."""
    groups: dict[str, _Group] = {}
    for place, config in enumerate(configs):
        key = f"{config and sorted(config.to_dict().items(), key=str)} {also[place]}"
        groups.setdefault(key, (config, []))[1].append(place)
    return list(groups.values())


@torch.no_grad()
def _answer_stacked(base, config, places, lifted, prompts, answers, answer_tokens, batch_tokens) -> None:
    """Fill in `answers`: the same number of prompts of every document at a time, long ones first."""
    rows = {i: sorted((k for k, p in enumerate(prompts[i]) if p is not None), key=lambda k: -len(prompts[i][k]))
            for i in places}  # fmt: skip
    asked = sorted((i for i in places if rows[i]), key=lambda i: -len(rows[i]))
    if not asked:
        return
    with stacked_on(base.model, config, [lifted[i].state for i in asked]) as stack:
        done = 0  # prompts of each document
        while asked := [i for i in asked if len(rows[i]) > done]:
            stack.arrange(range(len(asked)))
            longest = max(len(prompts[i][rows[i][done]]) for i in asked)
            count = min(max(1, batch_tokens // (longest * len(asked))), len(rows[asked[0]]) - done)
            taken = [(i, rows[i][done : done + count]) for i in asked]
            filled = [prompts[i][k] for i, mine in taken for k in [*mine, *mine[-1:] * (count - len(mine))]]
            shared = found_in_rows(filled, len(asked)) if can_share(base.model) else None
            said = generate(base, filled, answer_tokens, shared)
            for number, (i, mine) in enumerate(taken):
                for k, text in zip(mine, said[number * count :], strict=False):
                    answers[i][k] = text
            done += count
