"""Prompts longer than the window a model was trained on, read with grouped positions: Self-Extend.

https://arxiv.org/abs/2401.01325, "LLM Maybe LongLM". Nothing is trained. A token sees the `neighbours` nearest tokens,
itself among them, at their true distances. Farther ones it sees at the distance of positions floor-divided by `group`,
plus neighbours - neighbours // group, where both join: no distance is larger than those of training. One softmax runs
over both.

Rotations compose, so the queries and keys that a model has already turned by their positions are turned on by what is
missing to the grouped positions; the key-value cache stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

NAME = "grouped_positions"  # in transformers' attention interface
SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")  # their rotations turn the halves of a head, all of it
FIXED = ("default", "linear", "llama3", "yarn")  # RoPE types whose angle of a position never changes
MOST_SCORES = 2**24  # attention scores of one layer that are computed at once
MOST_QUERIES = 128  # at once: keys after the last of them are left out
MASKED = "grouped positions are for plain causal sequences: pack none, and give no attention mask of four dimensions"


@dataclass(frozen=True)
class _Grouping:
    """What an open context has the attention do. `frequencies`: the angle of one position, (head_dim / 2,)."""

    group: int
    neighbours: int
    reach: int
    frequencies: torch.Tensor

    @property
    def shift(self) -> int:
        return self.neighbours - self.neighbours // self.group

    def turned(self, x: torch.Tensor, positions: torch.Tensor, shift: int) -> torch.Tensor:
        """`x` (batch, heads, tokens, head_dim), turned by its `positions` (batch, tokens), at the grouped ones."""
        precise = torch.promote_types(x.dtype, torch.float32)
        angles = (positions // self.group + shift - positions)[:, None, :, None] * self.frequencies.to(precise)
        low, high = x.to(precise).chunk(2, dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)


_open: dict[int, _Grouping] = {}  # id of a model's configuration: what is open for it


def reach(window: int, group: int, neighbours: int) -> int:
    """The tokens, prompt and answer together, that are read without a distance beyond those of `window` tokens.

    (window - neighbours) * group + neighbours as in the paper where `group` divides `neighbours`; else up to group - 1
    fewer. ValueError for a group or neighbours out of bounds.
    """
    for name, value, most in (("group", group, None), ("neighbours", neighbours, window)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1 or (most is not None and value > most):
            bound = "1 or more" if most is None else f"1..{most}, the window"
            raise ValueError(f"{name} = {value!r}: give a whole number of {bound}")
    return max(neighbours, (window - neighbours + neighbours // group) * group)


def cannot(model: nn.Module) -> str:
    """Why `model`, with an adapter or without, cannot read with grouped positions; "" where it can."""
    config = model.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None):
        return "it caps its attention scores softly"
    if getattr(config, "sliding_window", None) or set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        return "it has layers with a sliding window"
    if config.model_type not in SUPPORTED:
        return f"its architecture {config.model_type} is not among {', '.join(SUPPORTED)}"
    if any(getattr(adapter, "is_prompt_learning", False) for adapter in getattr(model, "peft_config", {}).values()):
        return "its adapter stands in the cache in place of tokens, without positions of its own"
    if (kind := config.rope_parameters["rope_type"]) not in FIXED:
        return f"the angles of its rotary positions change with the length (rope_type {kind})"
    if 2 * len(_frequencies(model)) != _head_dim(config):
        return "it turns a part of each head alone"
    return ""


def _frequencies(model: nn.Module) -> torch.Tensor:
    return next(module.inv_freq for module in model.modules() if hasattr(module, "inv_freq"))


def _head_dim(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


@contextmanager
def grouped(model: nn.Module, group: int, neighbours: int) -> Iterator[None]:
    """While open, `model` reads up to `reach` of its own window; it is itself again afterwards, whatever happens.

    In batches padded on either side, with or without a cache. ValueError for a model that cannot, a bad `group` or
    `neighbours`, and, when it reads, for longer or packed sequences.
    """
    if reason := cannot(model):
        raise ValueError(f"the model cannot read with grouped positions, {reason}: use another model or condition")
    config = model.config.get_text_config()
    own, window, before = config._attn_implementation, config.max_position_embeddings, _open.get(id(config))
    if before:
        raise ValueError("the model reads with grouped positions already: leave the one context before the next")
    tokens = reach(window, group, neighbours)
    try:
        _open[id(config)] = _Grouping(group, neighbours, tokens, _frequencies(model).float())
        config.max_position_embeddings = tokens  # or transformers warns of every longer text
        config._attn_implementation = NAME
        yield
    finally:
        config._attn_implementation, config.max_position_embeddings = own, window
        _open.pop(id(config))


def _visible(*, mask_function, allow_is_causal_skip: bool = True, **settings) -> torch.Tensor:
    """Which keys each query sees, bool (batch, 1, queries, keys), also where causality alone would say it."""
    if mask_function is not causal_mask_function:
        raise ValueError(MASKED)
    return sdpa_mask(mask_function=mask_function, allow_is_causal_skip=False, **settings)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **settings,
) -> tuple[torch.Tensor, None]:
    """Attention (batch, queries, heads, head_dim); `query` and `key` (batch, heads, tokens, head_dim) are turned."""
    grouping = _open[id(module.config)]
    seen = _checked(attention_mask, grouping)[:, 0]
    asking, held = seen.sum(-1) - 1, seen[:, -1].cumsum(-1) - 1  # positions, counted over the real tokens
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    pairs = [(query, key.mT)]
    if seen.shape[-1] > grouping.neighbours:
        pairs.append((grouping.turned(query, asking, grouping.shift), grouping.turned(key, held, 0).mT))
    rows = max(1, MOST_SCORES // (query.shape[0] * query.shape[1] * key.shape[2]))
    out = []
    for part in torch.arange(query.shape[2], device=query.device).split(min(rows, MOST_QUERIES)):
        near = seen[:, part] & (asking[:, part, None] - held[:, None] < grouping.neighbours)
        scores = _scores(pairs, part, near, seen[:, part]) * scaling
        weights = nn.functional.softmax(scores, dim=-1, dtype=torch.promote_types(query.dtype, torch.float32))
        held_values = value[:, :, : scores.shape[-1]]
        out.append(nn.functional.dropout(weights.to(query.dtype), dropout, module.training) @ held_values)
    return torch.cat(out, dim=2).transpose(1, 2).contiguous(), None


def _scores(
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], part: torch.Tensor, near: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """Of the queries `part` with the keys up to the last one that they see, the lowest number where they do not.

    `pairs`: queries and keys turned as usual, and where some keys are far, by groups; `near`, `seen`: bool (batch,
    queries, keys).
    """
    usual, last = pairs[0], int(seen.any(1).any(0).nonzero().max()) + 1
    query, key = pairs[-1]
    scores = query[:, :, part] @ key[..., :last]
    if len(pairs) > 1:
        first = int(near.any(1).any(0).nonzero().min())
        close = usual[0][:, :, part] @ usual[1][..., first:last]
        scores[..., first:] = torch.where(near[:, None, :, first:last], close, scores[..., first:])
    return scores.masked_fill_(~seen[:, None, :, :last], torch.finfo(scores.dtype).min)


def _checked(mask: torch.Tensor | None, grouping: _Grouping) -> torch.Tensor:
    if mask is None or mask.dtype != torch.bool:
        raise ValueError(MASKED)
    if mask.shape[-1] > grouping.reach:
        raise ValueError(
            f"{mask.shape[-1]} tokens are to be read, group {grouping.group} and neighbours {grouping.neighbours} "
            f"reach {grouping.reach}: make group larger or neighbours smaller, or shorten the prompt"
        )
    return mask


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _visible)  # without it transformers drops the padding
