"""Products of each document's tokens with the document's own matrices, where documents may have unlike many tokens.

The tokens of all documents stand one below the other. Documents of equally many stand together, and share a product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Groups = tuple[tuple[int, int], ...]  # (documents, tokens of each), in order


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


def add_product(out: torch.Tensor, x: torch.Tensor, matrices: torch.Tensor, groups: Groups) -> torch.Tensor:
    """`out` (tokens, out), with `product(x, matrices, groups)` added in place."""
    of_each = (of_tokens(out, groups), of_tokens(x, groups), of_documents(matrices, groups))
    for into, rows, own in zip(*of_each, strict=True):
        into.baddbmm_(rows, own)
    return out


def outer(x: torch.Tensor, y: torch.Tensor, groups: Groups) -> torch.Tensor:
    """Each document's x' y, (documents, x's width, y's width), of `x` and `y` (tokens, width)."""
    both = zip(of_tokens(x, groups), of_tokens(y, groups), strict=True)
    return joined([mine.mT.bmm(theirs) for mine, theirs in both])
