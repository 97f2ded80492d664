"""Linear layers with LoRA that read the same input, for many documents at once, with few passes over memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from liftlab.stacked_products import Groups, add_product, outer, product

Tensors = Sequence[torch.Tensor]
Linear = tuple[torch.Tensor, torch.Tensor | None]  # weight (out, in) and bias


def project(
    x: torch.Tensor, linear: Sequence[Linear], lora_a: Tensors, lora_b: Tensors, scaling: float, groups: Groups
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """x W' + bias + scaling x A' B' of each layer, `x` (tokens, in); and scaling x A', (tokens, ranks of all).

    `lora_a`: (documents, rank, in) and `lora_b`: (documents, out, rank) of each layer.
    """
    inner = product(x, _together(lora_a, 1).mT, groups).mul_(scaling)
    both = zip(linear, _by_rank(inner, lora_b, -1), lora_b, strict=True)
    return [add_product(functional.linear(x, *layer), part, b.mT, groups) for layer, part, b in both], inner


def project_back(
    gradients: Tensors, x: torch.Tensor, weights: Tensors, lora_a: Tensors, lora_b: Tensors, inner: torch.Tensor,
    scaling: float, groups: Groups, wanted: bool,
) -> tuple[torch.Tensor | None, list[torch.Tensor], list[torch.Tensor]]:  # fmt: skip
    """The gradients of `project` by x (None where it is not `wanted`), each layer's A and each layer's B."""
    of_inner = _together([product(g, b, groups) for g, b in zip(gradients, lora_b, strict=True)], -1).mul_(scaling)
    of_a = _by_rank(outer(of_inner, x, groups), lora_b, 1)
    of_b = [outer(g, part, groups) for g, part in zip(gradients, _by_rank(inner, lora_b, -1), strict=True)]
    if not wanted:
        return None, of_a, of_b
    of_x = gradients[0].matmul(weights[0])
    for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
        of_x.addmm_(gradient, weight)
    return add_product(of_x, of_inner, _together(lora_a, 1), groups), of_a, of_b


def _together(parts: Tensors, dim: int) -> torch.Tensor:
    """The layers' tensors side by side in that dimension."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _by_rank(x: torch.Tensor, lora_b: Tensors, dim: int) -> list[torch.Tensor]:
    return [x] if len(lora_b) == 1 else list(x.split([b.shape[-1] for b in lora_b], dim))


class Projected(torch.autograd.Function):
    """`project` of any number of layers; no gradient for the frozen W and bias.

    Called with x, scaling, groups, each layer's W, each bias, each A (documents, rank, in) and each B.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, scaling: float, groups: Groups, *tensors: torch.Tensor | None):
        count = len(tensors) // 4
        weights, biases, lora_a, lora_b = (tensors[at : at + count] for at in range(0, 4 * count, count))
        out, inner = project(x, list(zip(weights, biases, strict=True)), lora_a, lora_b, scaling, groups)
        ctx.save_for_backward(x, inner, *weights, *lora_a, *lora_b)
        ctx.scaling, ctx.groups = scaling, groups
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: torch.Tensor):
        (x, inner, *rest), count = ctx.saved_tensors, len(gradients)
        weights, lora_a, lora_b = (rest[at : at + count] for at in range(0, 3 * count, count))
        given = (weights, lora_a, lora_b, inner, ctx.scaling, ctx.groups)
        of_x, of_a, of_b = project_back(gradients, x, *given, ctx.needs_input_grad[0])
        return of_x, None, None, *[None] * (2 * count), *of_a, *of_b
