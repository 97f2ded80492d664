"""LIFT: fine-tune a document into an adapter. The base model is loaded once and is bit for bit itself afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import peft
import torch
from tqdm import tqdm

from liftlab import adapters
from liftlab.batches import Batch, epochs
from liftlab.documents import Document
from liftlab.encoding import Encoded, encoded, example_weight, passes
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
from liftlab.history import History, Watch
from liftlab.lifted import Lifted, Step
from liftlab.models import BaseModel
from liftlab.packed_attention import SequenceAttention, attention_of, packed_states
from liftlab.packing import Packed, pack, tree_tokens
from liftlab.prompts import style
from liftlab.recipes import Recipe
from liftlab.token_losses import hidden_states, token_losses

SHARED = 0.9  # of a batch's padded tokens: where its tree has more, sharing beginnings gains too little


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
    begin = first_tokens(base, document, recipe)
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


def first_tokens(base: BaseModel, document: Document, recipe: Recipe) -> adapters.State | None:
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
    attention, pad = attention_of(model), base.tokenizer.pad_token_id
    model.train()
    if history.due:
        history.show(model)
    with tqdm(total=total, desc=f"lift {base.name}", disable=not progress, unit="step") as bar:
        for epoch, plan in enumerate(plans, start=1):
            for group in [plan] if recipe.step == "epoch" else ([batch] for batch in plan):
                batches = [part for batch in group for part in _passes(model, batch, recipe, pad, attention)]
                share = learning_rate_share(recipe, history.done, total)
                loss = _step(model, optimizer, batches, recipe, share, attention)
                history.add(epoch, loss, sum(batch.tokens for batch in batches))
                if history.due:
                    history.show(model)
                bar.update()
            history.read()
            bar.set_postfix(loss=f"{history.steps[-1].loss:.3f}" if history.steps else "none yet")


def shares(attention: SequenceAttention | None, batch: Batch, device: torch.device) -> bool:
    """Whether a lift computes once what examples of `batch` begin with alike: where that spares much against padding.

    `attention`: of the model (`packed_attention.attention_of`).
    """
    padded = sum(len(part) * max(len(example.ids) for example in part) for part in passes(batch, device))
    return attention is not None and attention.takes(batch) and tree_tokens(batch) <= SHARED * padded


def _passes(
    model, batch: Batch, recipe: Recipe, pad: int, attention: SequenceAttention | None
) -> list[Encoded | Packed]:
    """What the model reads in one pass each."""
    if shares(attention, batch, model.device):
        return [pack([batch], [partial(example_weight, recipe=recipe)], pad).to(model.device)]
    return [encoded(part, recipe, pad, model.device) for part in passes(batch, model.device)]


def _step(
    model, optimizer, batches: Sequence[Encoded | Packed], recipe: Recipe, share: float,
    attention: SequenceAttention | None = None,
) -> torch.Tensor:  # fmt: skip
    """One optimizer step over `batches`, at `share` of the learning rate; `attention` reads those that are packed.

    The loss, on the device, is the weighted mean over all their scored tokens.
    """
    scored, read = sum(batch.weight for batch in batches), sum(batch.tokens for batch in batches)
    losses = []
    for batch in batches:
        with (
            collected_gates(model) if recipe.gate_penalty else nullcontext([]) as gates,
            attention.within(batch) if isinstance(batch, Packed) else nullcontext(),
        ):
            loss = _batch_loss(model, batch) / scored
            (loss + _penalty(gates, batch, recipe, read)).backward()
            losses.append(loss.detach())
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], recipe.clip_norm)
    optimizer.param_groups[0]["lr"] = recipe.learning_rate * share
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.stack(losses).sum()


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


def _batch_loss(model, batch: Encoded | Packed) -> torch.Tensor:
    """Summed weighted cross entropy (nats) over the scored tokens; the head is applied at these alone."""
    whole = packed_states(model, batch) if isinstance(batch, Packed) else hidden_states(model, batch.ids)
    hidden = whole.flatten(0, 1).index_select(0, batch.places)
    return (token_losses(model, hidden, batch.labels) * batch.weights).sum()


def _penalty(gates: list[torch.Tensor], batch: Encoded | Packed, recipe: Recipe, read: int) -> torch.Tensor | float:
    """gate_penalty times this batch's part of the mean gate over the step's `read` tokens; 0 without gates."""
    if not gates:
        return 0.0
    return recipe.gate_penalty * mean_gate(gates, batch.counts) * (batch.tokens / read)
