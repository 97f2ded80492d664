"""Prompts that begin alike: what they share is read once, and its keys and values serve all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import Cache, DynamicCache

from liftlab.token_losses import causal_model, has_prefix

ALIKE = 0.75  # of a prompt must be shared for it to join a prefix: two cuts of a document share its head alone, a half
WORTH = 0.75  # of the tokens; where more are left to read, prompts are read whole
CHANGING = ("dynamic", "longrope")  # RoPE types whose angles depend on how long a text is


@dataclass(frozen=True)
class Shared:
    """Each prompt is `prefixes[owners[i]]` and what follows it, at least a token."""

    prompts: Sequence[list[int]]
    prefixes: list[list[int]]
    owners: list[int]

    @property
    def rests(self) -> list[list[int]]:
        return [prompt[len(self.prefixes[i]) :] for prompt, i in zip(self.prompts, self.owners, strict=True)]

    @property
    def tokens(self) -> int:
        """Padded tokens to read."""
        longest = max(map(len, self.prefixes))
        return len(self.prefixes) * longest + len(self.prompts) * max(map(len, self.rests))


def can_share(model) -> bool:
    """Whether what is read of a prefix is what would be read of it within a prompt, padded or not.

    It is not with layers of a sliding window, positions that depend on the whole length, or a cartridge.
    """
    config = model.config.get_text_config()
    layers = getattr(config, "layer_types", None) or ()
    sliding = getattr(config, "sliding_window", None) or "sliding_attention" in layers
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {of.get("rope_type") for of in (rope, *rope.values()) if isinstance(of, dict)}
    return not sliding and kinds.isdisjoint(CHANGING) and not has_prefix(model)


def found(prompts: Sequence[list[int]]) -> Shared | None:
    """The prefixes of `prompts` (token ids); None where too little is shared to gain by it."""
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    prefixes: list[list[int]] = []
    owners = [0] * len(prompts)
    for i in order:
        common = _common(prefixes[-1], prompts[i]) if prefixes else 0
        if common and common >= ALIKE * max(len(prompts[i]), len(prefixes[-1])):
            prefixes[-1] = prompts[i][:common]
        else:
            prefixes.append(prompts[i][:-1])
        owners[i] = len(prefixes) - 1
    return _worth(Shared(prompts, prefixes, owners))


def found_in_rows(prompts: Sequence[list[int]], documents: int) -> Shared | None:
    """As `found`, with one prefix for each of `documents` equal parts of `prompts`, in order."""
    count = len(prompts) // documents
    parts = [sorted(prompts[at : at + count]) for at in range(0, len(prompts), count)]
    prefixes = [part[0][: _common(part[0][:-1], part[-1][:-1])] for part in parts]
    return _worth(Shared(prompts, prefixes, [i for i in range(documents) for _ in range(count)]))


def _common(a: list[int], b: list[int]) -> int:
    """How many tokens both begin with, short of the last one of `b`."""
    shortest = min(len(a), len(b) - 1)
    return next((i for i in range(shortest) if a[i] != b[i]), shortest)


def _worth(shared: Shared) -> Shared | None:
    whole = len(shared.prompts) * max(map(len, shared.prompts))
    return shared if min(map(len, shared.prefixes)) and shared.tokens <= WORTH * whole else None


def padded(rows: Sequence[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), each (rows, tokens), padded on the left with the token `pad`."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def read(model, shared: Shared, pad: int) -> tuple[torch.Tensor, torch.Tensor, Cache]:
    """(ids, mask, cache) to generate from: every prompt's tokens, and the keys and values of its prefix.

    Padding stands before a prefix, and between it and the rest; the mask hides it, positions are counted without it.
    """
    ids, mask = padded(shared.prefixes, pad, model.device)
    cache = DynamicCache(config=causal_model(model).config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    causal_model(model).get_decoder()(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    )
    owners = torch.tensor(shared.owners, device=model.device)
    cache.batch_select_indices(owners)
    rest, seen = padded(shared.rests, pad, model.device)
    return torch.cat([ids[owners], rest], 1), torch.cat([mask[owners], seen], 1), cache
