"""What a stack needs: bytes of an adapter in training, and bytes of a token between forward and backward, measured."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import peft
import torch

from liftlab import adapters
from liftlab.examples import Example
from liftlab.fused_layers import fused
from liftlab.lifting import checkpointing
from liftlab.models import BaseModel
from liftlab.packed_attention import SequenceAttention, packed_states
from liftlab.packing import pack
from liftlab.stacked_layers import Stack, stacked_on
from liftlab.token_losses import CHUNK_TOKENS

FULL_TOKENS = 2048  # tokens of one document in a forward pass: more are no faster
COPIES = 5  # of an adapter in training: weights, in their order and a pass's, gradients, two moments
BACKWARD = 1.5  # memory of a backward pass against what the forward pass kept, at most: gradients beside activations
_KNOWN: WeakKeyDictionary[torch.nn.Module, dict[tuple[str, bool], Cost]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Cost:
    """Bytes of one document's adapter in training, of one token kept for backward, and of the head whatever is read."""

    adapter: int
    token: int
    head: int

    def least(self, example: int) -> int:
        """Bytes that one document takes whose longest example has `example` padded tokens."""
        return self.head + self.adapter + example * self.token

    def room(self, budget: float, documents: int, example: int, step: int) -> tuple[int, int]:
        """How many of `documents` fit into `budget` bytes at once, and how many tokens of each in a forward pass.

        `example`, `step`: padded tokens of the longest example and step of any. ValueError where one alone does not
        fit.
        """
        wanted = max(example, min(step, FULL_TOKENS))
        least = self.least(example)
        if least > budget:
            raise ValueError(
                f"memory_gib = {budget / 2**30:.3g}: one document alone needs {least / 2**30:.3g} GiB (its adapter "
                f"{self.adapter / 2**30:.3g}, an example of {example} tokens the most of the rest): give more memory, "
                "a smaller rank, or shorter segments"
            )
        free = budget - self.head
        fitting = max(1, min(documents, int(free // (self.adapter + wanted * self.token))))
        return fitting, max(example, int((free / fitting - self.adapter) // self.token))


def measured(base: BaseModel, config: peft.PeftConfig, checkpointed: bool) -> Cost:
    """The cost of an adapter of that kind on `base`: its size, and what a forward pass really keeps a token.

    Measured once for a model and a kind of adapter.
    """
    known = _KNOWN.setdefault(base.model, {})
    kind = (str(sorted(config.to_dict().items(), key=str)), checkpointed)
    if kind not in known:
        known[kind] = _measured(base, config, checkpointed)
    return known[kind]


def _measured(base: BaseModel, config: peft.PeftConfig, checkpointed: bool) -> Cost:
    with adapters.attached(base.model, config) as model:
        state = adapters.trained_state(model)[1]
    weights = sum(value.numel() for value in state.values())
    with stacked_on(base.model, config, [state], trained=True) as stack, checkpointing(base.model, checkpointed):
        base.model.train()
        few, many = (_kept(base, stack, tokens) for tokens in (16, 32))
    kept = (many - few) // 16
    if checkpointed:  # one layer at a time is computed again and kept whole
        with stacked_on(base.model, config, [state], trained=True) as stack:
            few, many = (_kept(base, stack, tokens) for tokens in (16, 32))
        kept += (many - few) // 16 // base.model.config.get_text_config().num_hidden_layers
    vocabulary = base.model.get_output_embeddings().out_features
    return Cost(4 * COPIES * weights, int(BACKWARD * kept), 3 * 4 * CHUNK_TOKENS * vocabulary)


def _kept(base: BaseModel, stack: Stack, tokens: int) -> int:
    """Bytes that a forward pass over one sequence of `tokens` tokens keeps for backward, model weights not counted."""
    held: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in base.model.parameters()}
    ids = (base.tokenizer.pad_token_id,) * tokens
    packed = pack([[Example(ids, ids, "segment")]], [lambda example: 1.0], 0).to(base.model.device)
    prefix = stack.prefix and stack.prefix.states()

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        SequenceAttention(base.model).within(packed, prefix),
        fused(base.model),
        torch.autograd.graph.saved_tensors_hooks(note, lambda t: t),
    ):
        hidden = packed_states(base.model, packed, prefix)
    del hidden
    return sum(held.values())
