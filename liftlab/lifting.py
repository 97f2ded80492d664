"""LIFT: fine-tune a document into an adapter. The base model is loaded once and is bit for bit itself afterwards."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import peft
import torch
from tqdm import tqdm

from liftlab import adapters
from liftlab.batches import epochs
from liftlab.documents import Document
from liftlab.encoding import Encoded, encoded, passes
from liftlab.examples import (
    Example,
    Pair,
    consecutive_segments,
    contextualized_segments,
    document_ids,
    pair_examples,
    segments,
)
from liftlab.gated_layer import collected_gates, mean_gate
from liftlab.lifted import Lifted, Step
from liftlab.models import BaseModel
from liftlab.prompts import style
from liftlab.recipes import Recipe
from liftlab.token_losses import hidden_states, token_losses

Watch = Callable[[int, BaseModel], None]
READ_STEPS = 64  # losses stay on the device, unread, for at most so many steps


def make_examples(
    base: BaseModel, document: Document, recipe: Recipe, pairs: Iterable[Pair]
) -> tuple[list[Example], Iterable[Example]]:
    """The segments and the pairs of one lift, as `recipe` says, each within the base model's window.

    The pairs' examples are a list, or where `pairs` is no Sequence an iterator that takes them as they come.
    """
    form = (style(recipe.style), recipe.pair_context, base.window)
    if not isinstance(pairs, Sequence):
        recipe.check_streams()
        return [], (pair_examples(base.tokenizer, document, [pair], *form)[0] for pair in pairs)
    cut = _segments(base, document, recipe) if recipe.segment_epochs or recipe.segments_in_mixed else []
    longest = max((len(example.ids) for example in cut), default=0)
    if longest > base.window:
        raise ValueError(
            f"recipe: the longest training sequence has {longest} tokens, the window of {base.name} is {base.window}: "
            "make segment_tokens (or context_tokens) smaller"
        )
    return cut, pair_examples(base.tokenizer, document, pairs if recipe.mixed_epochs else (), *form)


def _segments(base: BaseModel, document: Document, recipe: Recipe) -> list[Example]:
    shape = (base.tokenizer, document, recipe.segment_tokens)
    if recipe.segment_by_segment:
        room = max(0, base.window - recipe.segment_tokens)
        return consecutive_segments(*shape, min(recipe.context_tokens, room))
    if recipe.contextualized:
        return contextualized_segments(*shape, recipe.offset_tokens, recipe.context_tokens, recipe.seed)
    return segments(*shape, recipe.offset_tokens)


def lift(
    base: BaseModel,
    document: Document,
    recipe: Recipe,
    pairs: Iterable[Pair] = (),
    *,
    watch: Watch | None = None,
    every: int = 1,
    progress: bool = True,
) -> Lifted:
    """Fine-tune `document` (and the auxiliary `pairs`) into a fresh adapter on `base`.

    `pairs` that are no Sequence, such as a generator, are trained on as they come (2502.14644v4): the weights are bit
    for bit those of the same pairs in a list, and the history's seconds include waiting for them.
    `watch(step, model)` sees the model with its adapter before the first step (step 0) and after each `every`-th one;
    what it does is not counted in the history's seconds. Raises ValueError for `every` below 1, an adapter that the
    model cannot have, a prefix longer than the document, sequences beyond the window, nothing to train on, or a recipe
    that cannot take pairs as they come; FloatingPointError where a loss is no number, at the latest at the end of its
    epoch or 64 steps on; and whatever `pairs` raises. In every case the base model is left as it was.
    Precision: the frozen weights as they were loaded; an adapter's own weights (peft keeps them so), its optimizer and
    the losses float32. TF32 is left as torch has it, off for matrix products unless the caller turns it on.
    """
    if every < 1:
        raise ValueError(f"every = {every}: watch is called at each `every`-th step, so give at least 1")
    base = adapters.beside_prefix(base, recipe)
    stages = make_examples(base, document, recipe, pairs)
    begin = _first_tokens(base, document, recipe)
    adapter, state, history = train(base, recipe, *stages, begin=begin, watch=watch, every=every, progress=progress)
    if not history:
        raise nothing_to_train_on(document)
    return Lifted(document, recipe, adapter, state, history, dict(base.provenance))


def train(
    base: BaseModel,
    recipe: Recipe,
    cut: Sequence[Example],
    answered: Iterable[Example],
    *,
    begin: adapters.State | None = None,
    watch: Watch | None = None,
    every: int = 1,
    progress: bool = True,
) -> tuple[peft.PeftConfig | None, adapters.State, tuple[Step, ...]]:
    """An adapter trained on the segments `cut` and the pairs `answered` (examples each), of any documents.

    It begins fresh, or with the weights of `begin`. Its config and weights, as they apply to the unchanged base model,
    and the steps: none where there was nothing to train on. Batches are drawn from all documents alike; all else is as
    in `lift`.
    """
    torch.manual_seed(recipe.seed)
    settings = adapters.config(recipe)
    with (
        adapters.attached(base.model, settings, begin) as model,
        checkpointing(base.model, recipe.gradient_checkpointing),
    ):
        _, start = adapters.trained_state(model) if recipe.adapter == "pissa" else (None, {})
        history = History(base, recipe, watch, every)
        _train(model, base, recipe, cut, answered, history, progress)
        adapter, state = adapters.trained_state(model)
        if start:  # a PiSSA adapter applies to base weights that it changed itself: keep it as a LoRA on the real ones
            adapter, state = adapters.as_plain_lora(adapter, start, state)
    return adapter, state, tuple(history.steps)


def _first_tokens(base: BaseModel, document: Document, recipe: Recipe) -> adapters.State | None:
    """What a cartridge begins with, the document's first tokens as the base model reads them; None for the others."""
    if recipe.prefix_tokens is None:
        return None
    ids = document_ids(base.tokenizer, document)
    if len(ids) < recipe.prefix_tokens:
        raise ValueError(
            f"recipe: prefix_tokens = {recipe.prefix_tokens}, but document {document.name!r} has {len(ids)} tokens "
            f"with its title, and the prefix begins as its first ones: make prefix_tokens at most {len(ids)}"
        )
    return adapters.prefix_of(base.model, ids[: recipe.prefix_tokens])


def nothing_to_train_on(document: Document) -> ValueError:
    """The error of a lift without a step."""
    return ValueError(
        f"nothing to train on: recipe takes no segments and document {document.name!r} came with no pairs"
    )


@contextmanager
def checkpointing(model, wanted: bool):
    """`model` with gradient checkpointing while open, where `wanted`."""
    if not wanted:
        yield
        return
    # the method was renamed within transformers 5
    verb = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{verb}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(model, f"{verb}_checkpointing_disable")()


class History:
    """The steps of one lift. Their losses stay on the device until `read`: nothing else in training waits for it."""

    def __init__(self, base: BaseModel, recipe: Recipe, watch: Watch | None, every: int) -> None:
        self.steps: list[Step] = []  # those whose losses have been read
        self.done = 0
        self._unread: list[tuple[int, torch.Tensor, float, int]] = []
        self._base, self._recipe, self._watch, self._every = base, recipe, watch, every
        self._began, self._tokens = time.perf_counter(), 0

    def add(self, epoch: int, loss: torch.Tensor, tokens: int) -> None:
        """One more step, its loss in nats (0-dimensional, on the device) and the tokens it read."""
        self.done += 1
        self._tokens += tokens
        self._unread.append((epoch, loss, time.perf_counter() - self._began, self._tokens))
        if len(self._unread) >= READ_STEPS:
            self.read()

    def read(self) -> None:
        """Put every step into `steps`. FloatingPointError for a loss that is no number."""
        unread, self._unread = self._unread, []
        losses = torch.stack([loss for _, loss, _, _ in unread]).tolist() if unread else []
        for (epoch, _, seconds, tokens), loss in zip(unread, losses, strict=True):
            step = Step(len(self.steps) + 1, epoch, loss, seconds, tokens)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} at step {step.step}: "
                    f"lower learning_rate (it is {self._recipe.learning_rate:g})"
                )
            self.steps.append(step)
        if unread:  # the device has done the last of them only now
            self.steps[-1] = replace(self.steps[-1], seconds=time.perf_counter() - self._began)

    @property
    def due(self) -> bool:
        """Whether `watch` is to see the model now."""
        return self._watch is not None and self.done % self._every == 0

    def show(self, model) -> float:
        """Call `watch`, off the clock; the seconds that it took. The model trains on afterwards."""
        self.read()
        began = time.perf_counter()
        model.eval()
        with torch.no_grad():
            self._watch(self.done, replace(self._base, model=model))
        model.train()
        seconds = time.perf_counter() - began
        self.pause(seconds)
        return seconds

    def pause(self, seconds: float) -> None:
        """Take `seconds` off the clock."""
        self._began += seconds


def _train(model, base: BaseModel, recipe: Recipe, cut, answered, history: History, progress: bool) -> None:
    """Both stages with one optimizer, into `history`."""
    plans, total = epochs(cut, answered, recipe), None  # total: optimizer steps, unknown while pairs arrive
    if isinstance(answered, list):
        plans = list(plans)
        total = sum(1 if recipe.step == "epoch" else len(plan) for plan in plans)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        recipe.learning_rate, recipe.betas, recipe.epsilon, recipe.weight_decay, fused=True,
    )  # fmt: skip
    pad = base.tokenizer.pad_token_id
    model.train()
    if history.due:
        history.show(model)
    with tqdm(total=total, desc=f"lift {base.name}", disable=not progress, unit="step") as bar:
        for epoch, plan in enumerate(plans, start=1):
            for group in [plan] if recipe.step == "epoch" else ([batch] for batch in plan):
                parts = [part for batch in group for part in passes(batch, model.device)]
                batches = [encoded(part, recipe, pad, model.device) for part in parts]
                loss = _step(model, optimizer, batches, recipe, learning_rate_share(recipe, history.done, total))
                history.add(epoch, loss, sum(batch.tokens for batch in batches))
                if history.due:
                    history.show(model)
                bar.update()
            history.read()
            bar.set_postfix(loss=f"{history.steps[-1].loss:.3f}" if history.steps else "none yet")


def _step(model, optimizer, batches: list[Encoded], recipe: Recipe, share: float) -> torch.Tensor:
    """One optimizer step over `batches`, at `share` of the learning rate.

    The loss, on the device, is the weighted mean over all their scored tokens.
    """
    scored, read = sum(batch.weight for batch in batches), sum(batch.tokens for batch in batches)
    parts = []
    for batch in batches:
        with collected_gates(model) if recipe.gate_penalty else nullcontext([]) as gates:
            loss = _batch_loss(model, batch) / scored
        (loss + _penalty(gates, batch, recipe, read)).backward()
        parts.append(loss.detach())
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], recipe.clip_norm)
    optimizer.param_groups[0]["lr"] = recipe.learning_rate * share
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.stack(parts).sum()


def learning_rate_share(recipe: Recipe, done: int, total: int | None) -> float:
    """Share of the learning rate, 0..1, for the step after `done` steps of `total`.

    `total` is read by a schedule that is not constant and by warmup_share. Cosine falls once the warm-up is over.
    """
    warming = recipe.warmup_steps or (math.ceil(recipe.warmup_share * total) if recipe.warmup_share else 0)
    warm = min(1.0, (done + 1) / warming) if warming else 1.0
    if recipe.schedule == "cosine":
        fallen = max(0, done - warming) / max(1, total - warming)
        return warm * (1.0 + math.cos(math.pi * fallen)) / 2
    return warm * (1.0 if recipe.schedule == "constant" else 1.0 - done / total)


def _batch_loss(model, batch: Encoded) -> torch.Tensor:
    """Summed weighted cross entropy (nats) over the scored tokens; the head is applied at these alone."""
    hidden = hidden_states(model, batch.ids).flatten(0, 1).index_select(0, batch.places)
    return (token_losses(model, hidden, batch.labels) * batch.weights).sum()


def _penalty(gates: list[torch.Tensor], batch: Encoded, recipe: Recipe, read: int) -> torch.Tensor | float:
    """gate_penalty times this batch's part of the mean gate over the step's `read` tokens; 0 without gates."""
    if not gates:
        return 0.0
    at = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    real = at < batch.lengths[:, None]  # (batch, tokens): no padding
    return recipe.gate_penalty * mean_gate(gates, real) * (batch.tokens / read)
