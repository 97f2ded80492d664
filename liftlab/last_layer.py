"""The last layer, behind its attention, for scored tokens alone: what it says of the others is read by nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from liftlab.packed_attention import Gathered, put
from liftlab.packing import Packed
from liftlab.rotary import SUPPORTED, architecture
from liftlab.stacked_layers import Stack, StackedLora


@contextmanager
def for_scored(model: nn.Module, stack: Stack, packed: Packed) -> Iterator[None]:
    """While open (backward included), the last layer's MLP, and its o_proj where that is a LoRA, skip other tokens of
    `packed`, and say 0 of them. Architectures whose form is not known keep theirs.
    """
    decoder, own = model.get_decoder(), {}
    if architecture(type(decoder)) in SUPPORTED:
        last = decoder.layers[-1]
        skipping = [last.mlp, *([last.self_attn.o_proj] if type(last.self_attn.o_proj) is StackedLora else [])]
        own = {module: vars(module).get("forward") for module in skipping}
    try:
        for module in own:
            module.forward = partial(_kept_alone, module.forward, stack, packed)
        yield
    finally:
        for module, before in own.items():
            del module.forward
            if before is not None:
                module.forward = before


def _kept_alone(forward: Callable[[torch.Tensor], torch.Tensor], stack: Stack, packed: Packed, x: torch.Tensor):
    """`forward` of the kept tokens of `x` (1, tokens, in), which it is to see as a stack's batch of their own."""
    stack.groups, groups = packed.kept_groups, stack.groups
    try:
        said = forward(Gathered.apply(x[0], packed.kept)[None])[0]
    finally:
        stack.groups = groups
    return _Put.apply(said, packed.kept, x.shape[1])[None]


class _Put(torch.autograd.Function):
    """0 everywhere but at `kept`, where x stands."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, kept: torch.Tensor, tokens: int) -> torch.Tensor:
        ctx.save_for_backward(kept)
        return put(x, kept, tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        (kept,) = ctx.saved_tensors
        return gradient.index_select(0, kept), None, None
