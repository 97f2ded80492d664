"""Several lifted documents made into one adapter without training: the mean of their deltas, or of their weights.

The delta of a LoRA is alpha / rank * B A. Its mean over k documents has rank k * rank and is kept exactly, as one LoRA
with the k factors side by side. The mean of the weights keeps the rank, but mean(B) mean(A) also multiplies each
document's B with the others' A: it is near the mean of the deltas only where the A (or B) are alike, as they are where
training began from one seed. peft's add_weighted_adapter makes the first as "cat", on a loaded model; its "linear" is,
up to a factor of k, the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import peft
import torch

from liftlab.documents import Document
from liftlab.lifted import Lifted

BASE_FACTS = ("weights_sha256", "revision", "name")


def of_deltas(lifts: Sequence[Lifted], document: Document, share: float | None = None) -> Lifted:
    """A LoRA whose delta at every place is `share` times the sum of the lifts' deltas there; rank k * rank.

    `share` None is 1 / k, the mean; 1 is the sum, which task arithmetic takes (https://arxiv.org/abs/2212.04089).
    `document`: what the result is to be known as (see `documents.joined`). Its history is empty: nothing was trained.
    ValueError for lifts that are not alike, or that have no LoRA.
    """
    first = _alike(lifts)
    if not isinstance(first.adapter, peft.LoraConfig):
        raise ValueError(
            f"deltas of adapter {first.recipe.adapter} cannot be averaged: they are no product of two matrices, "
            "as those of lora and pissa are; take the mean of the weights"
        )
    count = len(lifts)
    share = 1 / count if share is None else share
    state = {}
    for key, value in first.state.items():
        parts, up = [lifted.state[key] for lifted in lifts], "lora_B" in key
        if not up and "lora_A" not in key:
            raise ValueError(f"weight {key!r} is neither lora_A nor lora_B: only plain LoRAs have deltas to average")
        state[key] = torch.cat(parts, dim=int(up)).to(torch.float64).mul(share if up else 1).to(value.dtype)
    wider = copy(first.adapter)
    wider.r, wider.lora_alpha = count * wider.r, count * wider.lora_alpha
    recipe = replace(first.recipe, rank=count * first.recipe.rank, alpha=count * first.recipe.alpha)
    return Lifted(document, recipe, wider, state, (), dict(first.base))


def of_weights(lifts: Sequence[Lifted], document: Document) -> Lifted:
    """An adapter like the lifts', each of its weights the mean of theirs.

    Meaningful where all began from the same weights (the recipes' seed). ValueError for lifts that are not alike.
    """
    first = _alike(lifts)
    state = {
        key: torch.stack([lifted.state[key] for lifted in lifts]).to(torch.float64).mean(0).to(value.dtype)
        for key, value in first.state.items()
    }
    return Lifted(document, first.recipe, first.adapter, state, (), dict(first.base))


def _alike(lifts: Sequence[Lifted]) -> Lifted:
    """The first of `lifts`; ValueError where there is none, or one differs in base model, adapter or shapes."""
    if not lifts:
        raise ValueError("no lifted documents to average: give at least one")
    first = lifts[0]
    for other in lifts[1:]:
        if what := _difference(first, other):
            raise ValueError(
                f"the adapters of {first.document.name!r} and {other.document.name!r} cannot be averaged: {what}; "
                "lift both on one base model with one adapter, rank and alpha"
            )
    return first


def _difference(a: Lifted, b: Lifted) -> str:
    """What sets two lifts apart, "" for nothing that matters here."""
    for fact in BASE_FACTS:
        mine, theirs = a.base.get(fact), b.base.get(fact)
        if mine and theirs and mine != theirs:
            return f"{fact} of their base models is {mine} and {theirs}"
    settings = [{} if lifted.adapter is None else lifted.adapter.to_dict() for lifted in (a, b)]
    for field in sorted(settings[0].keys() | settings[1].keys()):
        mine, theirs = (of.get(field) for of in settings)
        if mine != theirs:
            return f"{field} is {mine} and {theirs}"
    shapes = [{key: tuple(value.shape) for key, value in lifted.state.items()} for lifted in (a, b)]
    for key in sorted(shapes[0].keys() | shapes[1].keys()):
        mine, theirs = (of.get(key) for of in shapes)
        if mine != theirs:
            return f"weight {key!r} is {mine or 'absent'} and {theirs or 'absent'}"
    return ""
