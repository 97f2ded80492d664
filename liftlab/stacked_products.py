"""Products of each document's tokens with the document's own matrices, where documents may have unlike many tokens.

The tokens of all documents stand one below the other. Documents of equally many stand together, and share a product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Groups = tuple[tuple[int, int], ...]  # (documents, tokens of each), in order
Ranks = list[torch.Tensor]  # of each group (documents, ranks, tokens): so few rows of many, a CPU multiplies fastest


def even(documents: int, tokens: int) -> Groups:
    """All `tokens` divided evenly among the documents."""
    return ((documents, tokens // documents),)


def of_documents(x: torch.Tensor, groups: Groups) -> tuple[torch.Tensor, ...]:
    """Each group's part of `x` (documents, ...)."""
    return (x,) if len(groups) == 1 else x.split([documents for documents, _ in groups])


def of_tokens(x: torch.Tensor, groups: Groups) -> list[torch.Tensor]:
    """Each group's part of `x` (tokens, ...), (documents, tokens of each, ...)."""
    if len(groups) == 1:
        return [x.view(*groups[0], *x.shape[1:])]
    parts = x.split([documents * tokens for documents, tokens in groups])
    return [part.unflatten(0, shape) for part, shape in zip(parts, groups, strict=True)]


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One tensor of the groups' parts, one below the other."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def product(x: torch.Tensor, matrices: torch.Tensor, groups: Groups) -> torch.Tensor:
    """(tokens, out) of `x` (tokens, in) and `matrices` (documents, in, out)."""
    both = zip(of_tokens(x, groups), of_documents(matrices, groups), strict=True)
    return joined([rows.bmm(own).flatten(0, 1) for rows, own in both])


def of_ranks(matrices: torch.Tensor, x: torch.Tensor, groups: Groups) -> Ranks:
    """`matrices` (documents, ranks, in) times each document's tokens of `x` (tokens, in)."""
    both = zip(of_documents(matrices, groups), of_tokens(x, groups), strict=True)
    return [own.bmm(rows.mT) for own, rows in both]


def add_ranks(out: torch.Tensor, ranks: Ranks, matrices: torch.Tensor, groups: Groups) -> torch.Tensor:
    """`out` (tokens, out), with `ranks`, transposed, times `matrices` (documents, ranks, out) added in place."""
    for into, part, own in zip(of_tokens(out, groups), ranks, of_documents(matrices, groups), strict=True):
        into.baddbmm_(part.mT, own)
    return out


def over_tokens(ranks: Ranks, x: torch.Tensor, groups: Groups) -> torch.Tensor:
    """`ranks` times each document's tokens of `x` (tokens, width): (documents, ranks, width)."""
    return joined([part.bmm(rows) for part, rows in zip(ranks, of_tokens(x, groups), strict=True)])
