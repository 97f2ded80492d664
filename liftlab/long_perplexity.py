"""Perplexity of a document under a context of so many tokens, and LongPPL: that of its key tokens alone (2410.23771).

A key token is one that a long context makes more likely. Which ones they are is found with the base model. A lift that
stored the document predicts them without that context: base and lifted are compared on the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isnan, log

import pandas as pd
import torch

from liftlab.documents import Document
from liftlab.examples import document_ids
from liftlab.lifted import Lifted
from liftlab.models import BaseModel
from liftlab.probes.gates import at_rest
from liftlab.token_losses import hidden_states, token_losses

ALPHA, BETA = 2.0, -2.0  # nats, the paper's
SHORT_SHARE = 8  # default: the short context is an eighth of the window
BATCH_TOKENS = 4096  # tokens of one forward pass (one window may exceed it)
COLUMNS = ["metric", "unit", "value", "context", "context_tokens", "tokens", "key_tokens"]


@dataclass(frozen=True)
class Perplexity:
    """`value` = exp(mean negative log probability in nats) over `tokens` tokens; None over no token."""

    value: float | None
    tokens: int

    @property
    def nats(self) -> float | None:
        """Mean negative log probability of a token."""
        return None if self.value is None else log(self.value)


def key_tokens(
    base: BaseModel,
    document: Document,
    short_tokens: int,
    alpha: float = ALPHA,
    beta: float = BETA,
    *,
    long_tokens: int | None = None,
    stride: int = 1,
) -> list[int]:
    """Positions of the key tokens in `examples.document_ids`, in order; there may be none.

    The log probability (nats) of a key token is above `beta` after the last `long_tokens` tokens (None: as many as the
    window holds), and there more than `alpha` above that after the last `short_tokens`. `stride` as for `perplexity`,
    after the short context at most half of it.
    ValueError where the short context is not the shorter one, or a threshold is no number.
    """
    sizes = _sizes(base.window, short_tokens, long_tokens)
    return _key(_read(base, document, sizes, stride), alpha, beta)


def perplexity(
    base: BaseModel,
    document: Document,
    context_tokens: int,
    positions: Iterable[int] | None = None,
    *,
    stride: int = 1,
) -> Perplexity:
    """Of the document's tokens at `positions` in `examples.document_ids`, None: of all but the first.

    `base` is a base model, or `Lifted.on(base)`. A token is predicted from the `context_tokens` tokens before it, or as
    many as there are. With `stride` above 1 so many tokens are scored in one reading, with at least
    `context_tokens` - `stride` + 1 tokens before each: faster by that factor. Losses float32, summed in float64.
    ValueError for a context beyond the window, a stride beyond the context, or positions that are not in the document.
    """
    ids = document_ids(base.tokenizer, document)
    wanted = _places(document, len(ids), range(1, len(ids)) if positions is None else positions)
    return _perplexity(_nats(base, ids, context_tokens, stride, wanted), wanted)


def rows(
    base: BaseModel,
    lifted: Lifted,
    document: Document,
    *,
    short_tokens: int | None = None,
    long_tokens: int | None = None,
    alpha: float = ALPHA,
    beta: float = BETA,
    stride: int = 1,
) -> pd.DataFrame:
    """The rows of `of_model` for `base` and for `lifted` (column condition: base, lift), on the key tokens of `base`.

    `short_tokens` None: an eighth of the window; `long_tokens` None: the window, that of the lifted model if smaller.
    `stride` as for `key_tokens`.
    """
    with lifted.on(base) as on:
        sizes = _sizes(min(base.window, on.window), short_tokens, long_tokens)
        after = _read(on, document, sizes, stride)
    before = _read(base, document, sizes, stride)
    key = _key(before, alpha, beta)
    frames = [_rows(sizes, nats, key).assign(condition=name) for name, nats in (("base", before), ("lift", after))]
    return pd.concat(frames, ignore_index=True)[["condition", *COLUMNS]]


def of_model(
    base: BaseModel,
    document: Document,
    *,
    key: Sequence[int] | None = None,
    short_tokens: int | None = None,
    long_tokens: int | None = None,
    alpha: float = ALPHA,
    beta: float = BETA,
    stride: int = 1,
) -> pd.DataFrame:
    """Metric perplexity over all tokens, and long_perplexity over the key ones, after the short and the long context.

    `key`: their positions, None: as this model itself finds them. `context`: short, long; `tokens`: those scored;
    `key_tokens`: how many there are. Without any there is no row of long_perplexity. `stride` as for `key_tokens`.
    """
    sizes = _sizes(base.window, short_tokens, long_tokens)
    nats = _read(base, document, sizes, stride)
    return _rows(sizes, nats, _key(nats, alpha, beta) if key is None else _places(document, len(nats["short"]), key))


def _sizes(window: int, short_tokens: int | None, long_tokens: int | None) -> dict[str, int]:
    """Context tokens by name."""
    short = max(1, window // SHORT_SHARE) if short_tokens is None else short_tokens
    long = window if long_tokens is None else long_tokens
    if short >= long:
        raise ValueError(f"short_tokens = {short}: the short context must be below the long one of {long} tokens")
    return {"short": short, "long": long}


def _read(base: BaseModel, document: Document, sizes: dict[str, int], stride: int) -> dict[str, torch.Tensor]:
    """Nats of the document's tokens after each context; the short one's stride is at most half of it."""
    ids = document_ids(base.tokenizer, document)
    strides = {"short": min(stride, max(1, sizes["short"] // 2)), "long": stride}
    return {name: _nats(base, ids, tokens, strides[name]) for name, tokens in sizes.items()}


def _key(nats: dict[str, torch.Tensor], alpha: float, beta: float) -> list[int]:
    for name, value in {"alpha": alpha, "beta": beta}.items():
        if isnan(value):
            raise ValueError(f"{name} = {value}: give a threshold in nats")
    key = (-nats["long"] > beta) & (nats["short"] - nats["long"] > alpha)
    return (key[1:].nonzero().flatten() + 1).tolist()


def _places(document: Document, tokens: int, positions: Iterable[int]) -> list[int]:
    """`positions`, each once and in order."""
    wanted = sorted(set(positions))
    outside = [position for position in wanted if not 1 <= position < tokens]
    if outside:
        raise ValueError(
            f"position {outside[0]}: document {document.name!r} has {tokens} tokens, and the first is not "
            f"predicted: give positions in 1..{tokens - 1}"
        )
    return wanted


def _perplexity(nats: torch.Tensor, positions: Sequence[int]) -> Perplexity:
    return Perplexity(nats[list(positions)].mean().exp().item() if positions else None, len(positions))


def _rows(sizes: dict[str, int], nats: dict[str, torch.Tensor], key: Sequence[int]) -> pd.DataFrame:
    made = []
    for context, size in sizes.items():
        every = range(1, len(nats[context]))
        for metric, positions in (("perplexity", every), ("long_perplexity", key)):
            found = _perplexity(nats[context], positions)
            if found.value is not None:
                made.append([metric, "perplexity", found.value, context, size, found.tokens, len(key)])
    return pd.DataFrame(made, columns=COLUMNS)


def _nats(
    base: BaseModel, ids: Sequence[int], context: int, stride: int, positions: Sequence[int] | None = None
) -> torch.Tensor:
    """Negative log probability of each token, (tokens,), float64 on the CPU; 0 where `positions` does not ask for it.

    All readings are equally long, so there is no padding; one that scores no wanted token is left out.
    """
    _check(base, context, stride)
    read, nats = torch.tensor(ids), torch.zeros(len(ids), dtype=torch.float64)
    wanted = torch.zeros(len(ids), dtype=torch.bool)
    wanted[list(range(1, len(ids)) if positions is None else positions)] = True
    with at_rest(base.model):
        for places, scored in _readings(len(ids), context, stride, wanted):
            hidden = hidden_states(base.model, read[places - 1].to(base.model.device))[scored.to(base.model.device)]
            losses = token_losses(base.model, hidden, read[places[scored]].to(base.model.device))
            nats[places[scored]] = losses.double().cpu()
    return nats


def _readings(
    tokens: int, context: int, stride: int, wanted: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(windows, length) of the positions predicted by a batch of windows, and which of these are scored there."""
    length = min(context, tokens - 1)
    last = tokens - 1 - length
    starts = torch.tensor([*range(0, last, stride), last])
    first = torch.cat([torch.tensor([1]), starts[:-1] + length + 1])  # per window: the first position not yet scored
    count = wanted.cumsum(0)
    asked = (count[starts + length] > count[first - 1]).nonzero().flatten()
    for part in asked.split(max(1, BATCH_TOKENS // length)) if len(asked) else ():
        places = starts[part, None] + 1 + torch.arange(length)
        yield places, (places >= first[part, None]) & wanted[places]


def _check(base: BaseModel, context: int, stride: int) -> None:
    if not 1 <= context <= base.window:
        raise ValueError(
            f"a context of {context} tokens: the window of {base.name} is {base.window} tokens, give 1..{base.window}"
        )
    if not 1 <= stride <= context:
        raise ValueError(f"stride = {stride} with a context of {context} tokens: give 1..{context}")
