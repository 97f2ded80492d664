"""Many sequences in one row: tokens side by side, attention within each sequence alone.

A row holds the examples of one document. Everything but attention looks at single tokens, so nothing is padded there
but each sequence, by less than a sixteenth, and the shorter rows. In short rows attention has a mask, a block for each
sequence. In long ones it sees sequences of one length at a time: the tokens are put into that order and back, a
permutation, so no mask is needed and nothing leaks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
from transformers import AttentionInterface, PreTrainedModel

from liftlab.examples import IGNORED, Example

PACKED = "liftlab_packed"  # our attention function; as no mask function has that name, transformers makes no mask
EAGER = "eager_attention_forward"  # each architecture has its own
MASKED_TOKENS = 128  # rows up to this length: there the products a mask throws away cost less than a permutation


@dataclass(frozen=True)
class Packed:
    """The tokens of one forward pass, (rows, tokens), a row a document; `scored` indexes the flattened rows.

    `sequences` numbers the sequences. `order` puts flattened tokens into `shapes` (sequences, length), one after the
    other; `back` undoes that. Of each scored token, the one whose successor is to be predicted: its label, its
    example's weight and its row.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    real: torch.Tensor  # (rows, tokens), bool: no padding
    sequences: torch.Tensor
    order: torch.Tensor
    back: torch.Tensor
    shapes: tuple[tuple[int, int], ...]
    scored: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    rows: torch.Tensor

    def to(self, device: torch.device) -> Packed:
        """On `device`; a copy to a GPU does not wait for it."""
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), torch.Tensor)}
        if device.type == "cuda":
            tensors = {name: value.pin_memory() for name, value in tensors.items()}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})


def padded_length(length: int) -> int:
    """The length, in tokens, that a sequence is padded to: 16 lengths from each power of two to the next."""
    step = max(1, (1 << (length - 1).bit_length() - 1) // 16) if length > 1 else 1
    return -(-length // step) * step


def pack(rows: Sequence[Sequence[Example]], weights_of: Sequence[Callable[[Example], float]], pad: int) -> Packed:
    """Each row's examples side by side, `pad` the token id of padding; `weights_of[row]` gives the weight of an
    example's scored tokens.

    A row may be empty. ValueError where all are.
    """
    longest = max((sum(padded_length(len(e.ids)) for e in row) for row in rows), default=0)  # tokens
    if longest == 0:
        raise ValueError("no example was given to pack: give at least one")
    ids, positions, real, sequences, lengths, starts = [], [], [], [], [], []
    scored, labels, weights, owners = [], [], [], []
    for number, row in enumerate(rows):
        at = number * longest
        for example in row:
            length, taken = padded_length(len(example.ids)), len(example.ids)
            ids += [*example.ids, *[pad] * (length - taken)]
            positions += range(length)
            real += [True] * taken + [False] * (length - taken)
            sequences += [len(lengths)] * length
            lengths.append(length)
            starts.append(at)
            places = [place for place in range(1, taken) if example.labels[place] != IGNORED]
            scored += [at + place - 1 for place in places]
            labels += [example.labels[place] for place in places]
            weights += [weights_of[number](example)] * len(places)
            owners += [number] * len(places)
            at += length
        missing = (number + 1) * longest - at
        ids, positions, real = ids + [pad] * missing, positions + [0] * missing, real + [False] * missing
        sequences += range(len(lengths), len(lengths) + missing)
        lengths, starts = lengths + [1] * missing, starts + [*range(at, at + missing)]
    order, shapes = _order(torch.tensor(lengths), torch.tensor(starts))
    whole = lambda values: torch.tensor(values, dtype=torch.long)  # noqa: E731
    return Packed(
        whole(ids).view(len(rows), longest), whole(positions).view(len(rows), longest),
        torch.tensor(real).view(len(rows), longest), whole(sequences).view(len(rows), longest),
        order, torch.argsort(order), shapes,
        whole(scored), whole(labels), torch.tensor(weights), whole(owners),
    )  # fmt: skip


def _order(lengths: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, tuple[tuple[int, int], ...]]:
    """The flattened tokens sequence by sequence, those of one length together, and (sequences, length) of each."""
    parts, shapes = [], []
    for length in lengths.unique().tolist():
        first = starts[lengths == length]
        parts.append((first[:, None] + torch.arange(length)).flatten())
        shapes.append((len(first), length))
    return torch.cat(parts), tuple(shapes)


class SequenceAttention:
    """Lets `model` attend within sequences; its own attention function does the work."""

    def __init__(self, model: PreTrainedModel) -> None:
        configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
        self._configs = [(config, config._attn_implementation) for config in configs.values()]
        self._own = {id(config): name for config, name in self._configs}

    @contextmanager
    def within(self, packed: Packed) -> Iterator[None]:
        """While open (backward included), the model reads `packed`, and nothing else."""
        mask = None
        if packed.ids.shape[1] <= MASKED_TOKENS:
            same = packed.sequences[:, :, None] == packed.sequences[:, None]
            mask = same.tril()[:, None]  # (rows, 1, tokens, tokens)

        def attention(module, query, key, value, attention_mask, **settings):
            _check_window(packed, settings.get("sliding_window"))
            inner = _inner(self._own[id(module.config)], module)
            if mask is not None:
                return inner(module, query, key, value, _mask(inner, mask, query), **settings)
            return _by_sequence(inner, packed, module, query, key, value, settings), None

        AttentionInterface.register(PACKED, attention)
        try:
            for config, _ in self._configs:
                config._attn_implementation_internal = PACKED
            yield
        finally:
            for config, own in self._configs:
                config._attn_implementation_internal = own


def _check_window(packed: Packed, window: int | None) -> None:
    longest = max(length for _, length in packed.shapes)
    if window is not None and longest > window:
        raise ValueError(
            f"a sequence of {longest} tokens does not fit the model's sliding window of {window} tokens: lift such "
            "documents one by one, or with shorter segments"
        )


def _inner(name: str, module) -> Callable:
    """The attention function that the model has without packing."""
    eager = getattr(sys.modules[type(module).__module__], EAGER, None)
    return AttentionInterface().get_interface(name, eager)


def _by_sequence(inner: Callable, packed: Packed, module, query, key, value, settings: dict) -> torch.Tensor:
    """Attention output (rows, tokens, heads, head_dim) of query, key, value (rows, heads, tokens, head_dim)."""
    rows, heads, tokens, _ = query.shape
    sorted_by_length = [_Permuted.apply(t.transpose(1, 2).flatten(0, 1), packed.order, packed.back)
                        for t in (query, key, value)]  # fmt: skip
    sizes, outputs = [count * length for count, length in packed.shapes], []
    for shape, *parts in zip(packed.shapes, *(t.split(sizes) for t in sorted_by_length), strict=True):
        parts = [part.unflatten(0, shape).transpose(1, 2) for part in parts]
        causal = None if inner.__name__ != EAGER else torch.ones(shape[1], shape[1], device=query.device).bool().tril()
        outputs.append(inner(module, *parts, _mask(inner, causal, query), **settings)[0].flatten(0, 1))
    output = _Permuted.apply(torch.cat(outputs), packed.back, packed.order)
    return output.view(rows, tokens, heads, -1)


def _mask(inner: Callable, seen: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor | None:
    """`seen` (bool) as `inner` takes it: an eager function adds it to the scores; None where it is causal by itself."""
    if seen is None or inner.__name__ != EAGER:
        return seen
    return torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, torch.finfo(query.dtype).min)


class _Permuted(torch.autograd.Function):
    """x[order] of the first dimension; `back` is the inverse, so the gradient is a permutation, too."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, order: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None
