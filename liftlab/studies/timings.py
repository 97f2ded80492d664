"""The clock of decoded tokens, and the counts that turn seconds into shares of a machine's peak."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn
from transformers.generation.streamers import BaseStreamer

from liftlab import costs
from liftlab.batches import epochs
from liftlab.lifting import lift, make_examples, shares
from liftlab.models import BaseModel
from liftlab.packed_attention import attention_of
from liftlab.packing import tree_tokens
from liftlab.prompts import style
from liftlab.recipes import Recipe
from liftlab.studies.inputs import Input, input_of
from liftlab.studies.registers import base_model


@dataclass(frozen=True)
class Operations:
    """Floating-point operations (see `costs`) of a base model with an adapter; the head counts where it is applied.

    `adapter`: its trained weights, 0 where `full` trains the model's own. Attention counts its causal half alone, every
    layer sees all tokens before. Not counted: padding, norms, activations, the optimizer.
    """

    size: costs.Size
    adapter: int
    full: bool
    checkpointing: bool

    def forward(self, tokens: int, squares: int, scored: int) -> float:
        """Of `tokens`; `squares`: their sequences' lengths squared, summed; `scored`: tokens with logits."""
        each = 2.0 * self.adapter * tokens + 2.0 * self.size.embeddings * scored
        return costs.reading(self.size, tokens, squares) + each

    def training(self, tokens: int, squares: int, scored: int) -> float:
        """Forward and backward: 4 a frozen weight and token, 6 a trained one, 2 more with checkpointing."""
        own = (6 + 2 * self.checkpointing) * self.adapter * tokens
        head = (4 + 2 * self.full) * self.size.embeddings * scored
        matrices = costs.training(self.size, tokens, squares, full=self.full, checkpointing=self.checkpointing)
        return matrices + own + head


class _Clock(BaseStreamer):
    """The times at which tokens were on the host; first of all the prompt's."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


@torch.no_grad()
def token_seconds(base: BaseModel, prompt: list[int], tokens: int) -> list[float]:
    """Seconds from the prompt until each of `tokens` greedy tokens was there; an end token does not end it."""
    clock, began = _Clock(), time.perf_counter()
    ids = torch.tensor([prompt], device=base.model.device)
    base.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), min_new_tokens=tokens, max_new_tokens=tokens,
        do_sample=False, repetition_penalty=1.0, pad_token_id=base.tokenizer.pad_token_id, streamer=clock,
    )  # fmt: skip
    return [moment - began for moment in clock.times[1:]]


def operations(base: BaseModel, recipe: Recipe, trained: int) -> Operations:
    """The counts of `base` with the adapter of `recipe`, which trains `trained` weights (0: the base model alone)."""
    model, config = base.model, base.model.config.get_text_config()
    linear = [part.weight.numel() for part in model.get_decoder().modules() if isinstance(part, nn.Linear)]
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    size = costs.Size(sum(linear), config.num_hidden_layers, width, model.get_output_embeddings().weight.numel())
    full = recipe.adapter == "full"
    return Operations(size, 0 if full else trained, full, recipe.gradient_checkpointing)


def trained_operations(base: BaseModel, given: Input, recipe: Recipe, trained: int) -> tuple[int, float]:
    """(tokens of the examples, operations) of lifting `given` with `recipe`, all epochs.

    What examples of a batch begin with alike is computed once, and counted so; attention is counted as if it were not.
    """
    attention = attention_of(base.model)
    tokens = computed = squares = scored = 0
    for batch in chain.from_iterable(epochs(*make_examples(base, given.document, recipe, given.pairs), recipe)):
        read = sum(len(example.ids) for example in batch)
        tokens += read
        computed += tree_tokens(batch) if shares(attention, batch, base.model.device) else read
        squares += sum(len(example.ids) ** 2 for example in batch)
        scored += sum(example.scored_tokens for example in batch)
    return tokens, operations(base, recipe, trained).training(computed, squares, scored)


def decoded_bytes(base: BaseModel, adapter_bytes: int) -> int:
    """Bytes of weights that one token of one sequence reads: all but an embedding that is not the head as well.

    The adapter's are read too; the cache of keys and values is not counted.
    """
    embedding, head = base.model.get_input_embeddings().weight, base.model.get_output_embeddings().weight
    own = sum(weight.nbytes for weight in base.model.parameters())
    return own + adapter_bytes - embedding.nbytes * (embedding is not head)


def occupy(condition: str, base: str, window_tokens: int, recipe: Recipe, pairs_per_sentence: int, tokens: int) -> None:
    """Load the base model, take in an input of `tokens` under `condition` (icl or lift), make one token."""
    model, form = base_model(base, window_tokens), style(recipe.style)
    given = input_of(model, tokens, form, pairs_per_sentence)
    if condition == "icl":
        token_seconds(model, given.prompt(model, form, with_document=True), 1)
        return
    with lift(model, given.document, recipe, given.pairs, progress=False).on(model) as on:
        token_seconds(on, given.prompt(model, form, with_document=False), 1)
