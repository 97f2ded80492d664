"""The training of a stack: one forward and backward pass for all documents, an optimizer's memory for each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import peft
import torch
from tqdm import tqdm

from liftlab import adapters
from liftlab.adapters import State
from liftlab.encoding import example_weight
from liftlab.examples import Example
from liftlab.fused_layers import Fused
from liftlab.gated_layer import collected_gates
from liftlab.history import History, Watch
from liftlab.last_layer import for_scored
from liftlab.lifted import Step
from liftlab.lifting import checkpointing, learning_rate_share
from liftlab.models import BaseModel
from liftlab.packed_attention import SequenceAttention, packed_states
from liftlab.packing import Packed, pack, padded_length
from liftlab.recipes import Recipe
from liftlab.stacked_layers import Begin, Stack, is_pissa, stacked_on
from liftlab.token_losses import token_losses


@dataclass(frozen=True)
class Course:
    """What one document's adapter trains on: the epoch and the examples of each optimizer step."""

    document: str
    recipe: Recipe
    steps: tuple[tuple[int, tuple[Example, ...]], ...]
    watch: Watch | None
    every: int

    @property
    def longest_example(self) -> int:
        """Padded tokens."""
        return max(padded_length(len(example.ids)) for _, examples in self.steps for example in examples)

    @property
    def longest_step(self) -> int:
        """Padded tokens of all its examples."""
        return max(sum(padded_length(len(example.ids)) for example in examples) for _, examples in self.steps)


def train(
    base: BaseModel,
    config: peft.PeftConfig,
    begin: Begin,
    courses: Sequence[Course],
    row_tokens: int,
    progress: bool,
) -> list[tuple[peft.PeftConfig, State, tuple[Step, ...]]]:
    """Each course's adapter, as it applies to the unchanged base model, and history.

    They begin with `begin` (see `stacked_on`); `courses` are in falling order of their steps.
    A forward pass reads at most `row_tokens` padded tokens of a document. FloatingPointError names the document whose
    loss is no number.
    """
    recipe = courses[0].recipe
    histories = [History(base, course.recipe, course.watch, course.every) for course in courses]
    with (
        stacked_on(base.model, config, begin, trained=True) as stack,
        checkpointing(base.model, recipe.gradient_checkpointing),
        tqdm(total=len(courses[0].steps), desc=f"lift {len(courses)} on {base.name}", disable=not progress) as bar,
    ):
        training, begun = _Training(base, stack, courses, row_tokens), stack.state(0) if is_pissa(config) else {}
        base.model.train()
        _watch(base, stack, courses, histories)
        for number in range(len(courses[0].steps)):
            active = sum(len(course.steps) > number for course in courses)
            for history, course, loss in zip(histories, courses, training.step(number, active), strict=False):
                epoch, examples = course.steps[number]
                with _named(course):
                    history.add(epoch, loss, sum(len(example.ids) for example in examples))
            _watch(base, stack, courses, histories[:active])
            bar.update()
        for history, course in zip(histories, courses, strict=True):
            with _named(course):
                history.read()
        ends = [stack.state(i) for i in range(len(courses))]
        if begun:  # a PiSSA adapter applies to base weights that it changed itself: keep it as a LoRA on the real ones
            kept = [adapters.as_plain_lora(config, begun, end) for end in ends]
        else:
            kept = [(config, end) for end in ends]
        return [(*one, tuple(history.steps)) for one, history in zip(kept, histories, strict=True)]


def _watch(base: BaseModel, stack: Stack, courses: Sequence[Course], histories: Sequence[History]) -> None:
    """Show each document's adapter, alone, to its watch, where that is due; off everybody's clock."""
    for i, history in enumerate(histories):
        if history.due:
            with stack.alone(i) as model, _named(courses[i]):
                seconds = history.show(model)
            base.model.train()
            for other in histories:
                other.pause(seconds if other is not history else 0.0)


@contextmanager
def _named(course: Course) -> Iterator[None]:
    """A loss that is no number is said with its document."""
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(f"document {course.document!r}: {error}") from error


class _Training:
    """Steps of all documents of a stack, each at its own rate and clipped by itself."""

    def __init__(self, base: BaseModel, stack: Stack, courses: Sequence[Course], row_tokens: int) -> None:
        self.base, self.stack, self.courses, self.row_tokens = base, stack, courses, row_tokens
        self.attention, self.fused = SequenceAttention(base.model), Fused(base.model)
        self.weights = [torch.nn.Parameter(row[stack.trained]) for row in stack.weights]  # views of the stack's
        settings = [
            {"params": [row], "lr": c.recipe.learning_rate, "betas": c.recipe.betas, "eps": c.recipe.epsilon,
             "weight_decay": c.recipe.weight_decay}
            for row, c in zip(self.weights, courses, strict=True)
        ]  # fmt: skip
        self.optimizer = torch.optim.AdamW(settings, fused=True)
        clips = torch.tensor([course.recipe.clip_norm for course in courses])
        penalties = torch.tensor([course.recipe.gate_penalty for course in courses])
        self.clips, self.penalties = clips.to(stack.weights.device), penalties.to(stack.weights.device)

    def step(self, number: int, active: int) -> torch.Tensor:
        """Step `number` (from 0) of the first `active` documents; their losses (active,), on the device."""
        self.stack.empty = True
        groups = [course.steps[number][1] for course in self.courses[:active]]
        scored = self._numbers([sum(example_weight(e, c.recipe) * e.scored_tokens for e in examples)
                                for c, examples in zip(self.courses, groups, strict=False)])  # fmt: skip
        read = self._numbers([sum(len(example.ids) for example in examples) for examples in groups])
        losses = torch.zeros_like(scored)
        for rows in _parts(groups, self.row_tokens):
            losses += self._pass(rows, scored, read)
        self._update(number, active)
        return losses

    def _numbers(self, values: Sequence[float]) -> torch.Tensor:
        made = torch.tensor(values, dtype=torch.float32)
        device = self.stack.weights.device
        return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made

    def _pass(self, rows: Sequence[Sequence[Example]], scored: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """One forward and backward pass; each document's part of its loss (documents,)."""
        weights = [(lambda e, recipe=course.recipe: example_weight(e, recipe)) for course in self.courses]
        masked = {"masked_tokens": math.inf} if self.stack.prefix else {}
        packed = pack(rows, weights, self.base.tokenizer.pad_token_id, **masked).to(self.stack.weights.device)
        self.stack.arrange(packed.documents, packed.groups)
        prefix = self.stack.prefix and self.stack.prefix.states()
        penalised = any(course.recipe.gate_penalty for course in self.courses)
        with (
            self.attention.within(packed, prefix),
            self.fused.on(),
            for_scored(self.base.model, self.stack, packed),
            collected_gates(self.base.model) if penalised else nullcontext([]) as gates,
        ):
            hidden = packed_states(self.base.model, packed, prefix)[0].index_select(0, packed.places)
            losses = token_losses(self.base.model, hidden, packed.labels) * packed.weights
            losses = torch.zeros_like(scored).index_add(0, packed.scored_owners, losses) / scored
            self.stack.add_gradients(losses.sum() + (self._penalty(gates, packed, read) if penalised else 0.0))
        return losses.detach()

    def _penalty(self, gates: Sequence[torch.Tensor], packed: Packed, read: torch.Tensor) -> torch.Tensor:
        """Each document's gate_penalty times its mean gate over the step's tokens, summed."""
        mean = torch.stack([gate.mean(dim=(2, 3)) for gate in gates]).mean(0)[0]  # (tokens,)
        share = self.penalties[: len(read)] / read
        return (mean * packed.counts[0] * share.index_select(0, packed.owners[0])).sum()

    def _update(self, number: int, active: int) -> None:
        """Clip each document's gradient by its own norm, then step at its own rate."""
        gradients = self.stack.gradients[:active]
        norms = gradients.norm(dim=1)
        gradients.mul_((self.clips[:active] / (norms + 1e-6)).clamp(max=1.0)[:, None])
        for i, (course, group) in enumerate(zip(self.courses, self.optimizer.param_groups, strict=True)):
            self.weights[i].grad = self.stack.gradients[i, self.stack.trained] if i < active else None
            if i < active:
                share = learning_rate_share(course.recipe, number, len(course.steps))
                group["lr"] = course.recipe.learning_rate * share
        self.optimizer.step()


def _parts(groups: Sequence[Sequence[Example]], row_tokens: int):
    """The groups' examples in turn, at most `row_tokens` padded tokens of each group at a time (or one example).

    Those that begin alike come together.
    """
    parts = [list(_cut(sorted(group, key=lambda example: example.ids), row_tokens)) for group in groups]
    for number in range(max(map(len, parts))):
        yield [part[number] if number < len(part) else [] for part in parts]


def _cut(examples: Sequence[Example], row_tokens: int):
    row, tokens = [], 0
    for example in examples:
        length = padded_length(len(example.ids))
        if row and tokens + length > row_tokens:
            yield row
            row, tokens = [], 0
        row.append(example)
        tokens += length
    if row:
        yield row
