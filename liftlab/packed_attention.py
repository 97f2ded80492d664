"""Attention within packed examples: each token sees its own example's beginning, and nothing else of its row.

In short rows the model's attention has a mask. In long ones it sees the examples written out, those of one length at a
time, so no mask is needed; what it says of a token that several of them share is taken from one of them, as it is the
same in all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from liftlab.examples import Example
from liftlab.packing import Packed
from liftlab.rotary import SUPPORTED, architecture
from liftlab.stacked_prefix import Prefix
from liftlab.stacked_products import joined, of_documents, of_tokens
from liftlab.token_losses import causal_model, has_prefix

PACKED = "liftlab_packed"  # our attention function; as no mask function has that name, transformers makes no mask
EAGER = "eager_attention_forward"  # each architecture has its own


class SequenceAttention:
    """Lets `model` attend within examples; its own attention function does the work."""

    def __init__(self, model: PreTrainedModel) -> None:
        configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
        self._configs = [(config, config._attn_implementation) for config in configs.values()]
        self._own = {id(config): name for config, name in self._configs}

    def takes(self, examples: Sequence[Example]) -> bool:
        """Whether no example is longer than what a token of the model sees."""
        windows = [getattr(config, "sliding_window", None) for config, _ in self._configs]
        return max(len(example.ids) for example in examples) <= min(filter(None, windows), default=sys.maxsize)

    @contextmanager
    def within(self, packed: Packed, prefix: Prefix | None = None) -> Iterator[None]:
        """While open (backward included), the model reads `packed`, and nothing else.

        If there is a `prefix`, each row after its document's, in the order of the rows; they then are not written out.
        """
        written, longest = packed.written, packed.longest + _length(prefix)
        shapes = written.shapes if written else packed.groups
        seen = [None] * len(shapes) if written else _seen(packed, _length(prefix))

        def attention(module, query, key, value, attention_mask, **settings):
            _check_window(longest, settings.get("sliding_window"))
            inner = _inner(self._own[id(module.config)], module)
            given = [t[0].transpose(0, 1) for t in (query, key, value)]  # (tokens, heads, head_dim)
            if written:
                given = [_WrittenOut.apply(t, written.order, written.back, written.again) for t in given]
            parts = [[t.transpose(1, 2) for t in of_tokens(whole, shapes)] for whole in given]
            if prefix:
                before = [of_documents(t, shapes) for t in prefix[module.layer_idx]]
                parts[1:] = [[torch.cat(both, 2) for both in zip(*pair, strict=True)]
                             for pair in zip(before, parts[1:], strict=True)]  # fmt: skip
            said = []
            for mask, *part in zip(seen, *parts, strict=True):
                said.append(inner(module, *part, _mask(inner, mask, part[0]), **settings)[0].flatten(0, 1))
            return (Gathered.apply(joined(said), written.back) if written else joined(said))[None], None

        AttentionInterface.register(PACKED, attention)
        try:
            for config, _ in self._configs:
                config._attn_implementation_internal = PACKED
            yield
        finally:
            for config, own in self._configs:
                config._attn_implementation_internal = own


def attention_of(model: torch.nn.Module) -> SequenceAttention | None:
    """For `model`, in an adapter or not; None where layers are not known to see other tokens by attention alone, or
    where a prefix stands before all.
    """
    known = architecture(type(causal_model(model).get_decoder())) in SUPPORTED
    return SequenceAttention(causal_model(model)) if known and not has_prefix(model) else None


def packed_states(model: torch.nn.Module, packed: Packed, prefix: Prefix | None = None) -> torch.Tensor:
    """What the head would read, (1, tokens, width); `SequenceAttention.within` it, with the same prefix."""
    decoder, positions = causal_model(model).get_decoder(), packed.positions + _length(prefix)
    return decoder(input_ids=packed.ids, position_ids=positions, use_cache=False).last_hidden_state


def _length(prefix: Prefix | None) -> int:
    """Tokens."""
    return prefix[0][0].shape[2] if prefix else 0


def _seen(packed: Packed, before: int) -> list[torch.Tensor]:
    """Of each group: whether a token of a row sees another, (rows, 1, tokens, before + tokens), or itself; all see the
    `before` tokens of a prefix.
    """
    at = torch.arange(packed.ids.shape[1], device=packed.ids.device)
    places = zip(of_tokens(at, packed.groups), of_tokens(packed.ends[0], packed.groups), strict=True)
    seen = [((at[:, :, None] >= at[:, None]) & (at[:, :, None] < ends[:, None]))[:, None] for at, ends in places]
    return [functional.pad(mask, (before, 0), value=True) for mask in seen]


def _check_window(longest: int, window: int | None) -> None:
    if window is not None and longest > window:
        raise ValueError(
            f"a sequence of {longest} tokens does not fit the model's sliding window of {window} tokens: lift such "
            "documents one by one, or with shorter segments"
        )


def _inner(name: str, module) -> Callable:
    """The attention function that the model has without packing."""
    eager = getattr(sys.modules[type(module).__module__], EAGER, None)
    return AttentionInterface().get_interface(name, eager)


def _mask(inner: Callable, seen: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor | None:
    """What may be seen, None = all before, as `inner` takes it: an eager function adds it to the scores."""
    if inner.__name__ != EAGER:
        return seen
    if seen is None:
        seen = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=query.device).tril()
    return torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, torch.finfo(query.dtype).min)


class _WrittenOut(torch.autograd.Function):
    """x[order]; a token that is written out several times has the sum of their gradients, padding has none."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, order: torch.Tensor, back: torch.Tensor, again: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(order, back, again)
        return x.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        order, back, again = ctx.saved_tensors
        first = gradient.index_select(0, back)
        return first.index_add_(0, order.index_select(0, again), gradient.index_select(0, again)), None, None, None


class Gathered(torch.autograd.Function):
    """x[places], no place twice; what is not taken has no gradient."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.length = len(x)
        return x.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        (places,) = ctx.saved_tensors
        return put(gradient, places, ctx.length), None


def put(x: torch.Tensor, places: torch.Tensor, length: int) -> torch.Tensor:
    """0 everywhere but at `places`, where x stands."""
    return x.new_zeros(length, *x.shape[1:]).index_copy_(0, places, x)
