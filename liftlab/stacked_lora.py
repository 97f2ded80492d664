"""Linear layers with LoRA that read the same input, for many documents at once, with few passes over memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from liftlab.stacked_products import Groups, Ranks, add_ranks, of_ranks, over_tokens

Tensors = Sequence[torch.Tensor]
Linear = tuple[torch.Tensor, torch.Tensor | None]  # weight (out, in) and bias


def project(
    x: torch.Tensor, linear: Sequence[Linear], lora_a: Tensors, lora_b: Tensors, scaling: float, groups: Groups
) -> tuple[list[torch.Tensor], Ranks]:
    """x W' + bias + scaling x A' B' of each layer, `x` (tokens, in); and scaling A x', of the ranks of all layers.

    `lora_a`: (documents, rank, in) and `lora_b`: (documents, out, rank) of each layer.
    """
    inner = [part.mul_(scaling) for part in of_ranks(_together(lora_a), x, groups)]
    both = zip(linear, _by_layer(inner, lora_b), lora_b, strict=True)
    return [add_ranks(functional.linear(x, *layer), part, b.mT, groups) for layer, part, b in both], inner


def project_back(
    gradients: Tensors, x: torch.Tensor, weights: Tensors, lora_a: Tensors, lora_b: Tensors, inner: Ranks,
    scaling: float, groups: Groups, wanted: bool,
) -> tuple[torch.Tensor | None, list[torch.Tensor], list[torch.Tensor]]:  # fmt: skip
    """The gradients of `project` by x (None where it is not `wanted`), each layer's A and each layer's B."""
    of_layers = [of_ranks(b.mT, g, groups) for g, b in zip(gradients, lora_b, strict=True)]
    of_inner = [_together(parts).mul_(scaling) for parts in zip(*of_layers, strict=True)]
    of_a = list(over_tokens(of_inner, x, groups).split([b.shape[-1] for b in lora_b], 1))
    both = zip(gradients, _by_layer(inner, lora_b), strict=True)
    of_b = [over_tokens(part, gradient, groups).mT for gradient, part in both]
    if not wanted:
        return None, of_a, of_b
    of_x = gradients[0].matmul(weights[0])
    for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
        of_x.addmm_(gradient, weight)
    return add_ranks(of_x, of_inner, _together(lora_a), groups), of_a, of_b


def _together(parts: Tensors) -> torch.Tensor:
    """(documents, ranks of all layers, ...) of the layers' tensors."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)


def _by_layer(ranks: Ranks, lora_b: Tensors) -> list[Ranks]:
    """Each layer's part of the ranks of all."""
    of_groups = [part.split([b.shape[-1] for b in lora_b], 1) for part in ranks]
    return [list(parts) for parts in zip(*of_groups, strict=True)]


class Projected(torch.autograd.Function):
    """`project` of any number of layers; no gradient for the frozen W and bias.

    Called with x, scaling, groups, each layer's W, each bias, each A (documents, rank, in) and each B.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, scaling: float, groups: Groups, *tensors: torch.Tensor | None):
        count = len(tensors) // 4
        weights, biases, lora_a, lora_b = (tensors[at : at + count] for at in range(0, 4 * count, count))
        out, inner = project(x, list(zip(weights, biases, strict=True)), lora_a, lora_b, scaling, groups)
        ctx.save_for_backward(x, *weights, *lora_a, *lora_b, *inner)
        ctx.scaling, ctx.groups = scaling, groups
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: torch.Tensor):
        (x, *rest), count = ctx.saved_tensors, len(gradients)
        weights, lora_a, lora_b = (rest[at : at + count] for at in range(0, 3 * count, count))
        given = (weights, lora_a, lora_b, rest[3 * count :], ctx.scaling, ctx.groups)
        of_x, of_a, of_b = project_back(gradients, x, *given, ctx.needs_input_grad[0])
        return of_x, None, None, *[None] * (2 * count), *of_a, *of_b
