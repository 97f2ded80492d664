"""Layers of a stack with few passes over memory, forward and backward; what the model computes, to rounding.

Layers whose form is known exactly have, for a while, one autograd function each: RMS norms, and gated MLPs with LoRA on
all three projections. Other layers keep their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.activations import GELUTanh, SiLUActivation

from liftlab.rotary import SUPPORTED, few_passes
from liftlab.stacked_layers import StackedLora

Forward = Callable[[torch.Tensor], torch.Tensor]
ADDED_ONE = ("gemma2", "gemma3")  # whose norms multiply by 1 + weight, in float32


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """While open, norms and MLPs of `model` that can be are fused, and its rotary positions are `rotary.rotated`."""
    changed = []
    try:
        for module, forward in _fusable(model):
            module.forward = forward  # on the instance, where it hides that of the class
            changed.append(module)
        with few_passes(model):
            yield
    finally:
        for module in changed:
            del module.forward


def _fusable(model: nn.Module) -> Iterator[tuple[nn.Module, Forward]]:
    for module in model.modules():
        kind, architecture = type(module).__name__, _architecture(module)
        if architecture not in SUPPORTED:
            continue
        if kind.endswith("RMSNorm"):
            yield module, partial(_normed, module, architecture in ADDED_ONE)
        elif kind.endswith("MLP"):
            layers = [module.gate_proj, module.up_proj, module.down_proj]
            if _stacked(layers) and type(module.act_fn) in (SiLUActivation, GELUTanh):
                yield module, partial(_mlp, layers, type(module.act_fn) is GELUTanh)


def _architecture(module: nn.Module) -> str:
    """The transformers architecture that defines the module, or nothing."""
    where = type(module).__module__.split(".")
    return where[2] if where[:2] == ["transformers", "models"] else ""


def _normed(module: nn.Module, added_one: bool, x: torch.Tensor) -> torch.Tensor:
    """`module`(x); by its own forward where types differ, and in float64, which it rounds to float32."""
    if x.dtype != module.weight.dtype or x.dtype == torch.float64:
        return type(module).forward(module, x)
    if added_one:
        return _Norm.apply(x, 1.0 + module.weight.float(), module.eps)
    return _Norm.apply(x, module.weight, module.variance_epsilon)


class _Norm(torch.autograd.Function):
    """x / rms(x) * weight, the rms in float32, the product in the weight's type; no gradient for the weight."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).to(weight.dtype).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        x, weight, inverse = ctx.saved_tensors
        wide, wanted = x.float(), gradient.float() * weight
        along = torch.einsum("...i,...i->...", wanted, wide)[..., None] * inverse.pow(3).div_(-x.shape[-1])
        return wanted.mul_(inverse).addcmul_(wide, along).to(x.dtype), None, None


def _stacked(layers: Sequence[nn.Module]) -> bool:
    """Whether all are LoRA of one scaling on plain linear layers, weights and LoRA of one type."""
    return (
        all(type(layer) is StackedLora and type(layer.base_layer) is nn.Linear for layer in layers)
        and len({layer.scaling for layer in layers}) == 1
        and len({weight.dtype for layer in layers for weight in (layer.base_layer.weight, layer.lora_A)}) == 1
    )


def _mlp(layers: Sequence[StackedLora], gelu: bool, x: torch.Tensor) -> torch.Tensor:
    rows = x.reshape(len(layers[0].lora_A), -1, x.shape[-1])  # (documents, tokens, in)
    linear = [t for layer in layers for t in (layer.base_layer.weight, layer.base_layer.bias)]
    lora = [t for layer in layers for t in (layer.lora_A, layer.lora_B)]
    return _GatedMlp.apply(rows, layers[0].scaling, gelu, *linear, *lora).view(*x.shape[:-1], -1)


class _GatedMlp(torch.autograd.Function):
    """down(act(gate(x)) * up(x)), each with LoRA; keeps gate and up, and computes their product again in backward."""

    @staticmethod
    def forward(ctx, x, scaling, gelu, w_gate, bias_gate, w_up, bias_up, w_down, bias_down, *lora):
        a_gate, b_gate, a_up, b_up, a_down, b_down = lora
        a_both = torch.cat([a_gate, a_up], 1)
        inner = x.bmm(a_both.mT).mul_(scaling)  # what LoRA's B reads, gate's beside up's
        of_gate, of_up = inner.split([a_gate.shape[1], a_up.shape[1]], -1)
        gate = functional.linear(x, w_gate, bias_gate).baddbmm_(of_gate, b_gate.mT)
        up = functional.linear(x, w_up, bias_up).baddbmm_(of_up, b_up.mT)
        product = _act(gate, gelu).mul_(up)
        inner_down = product.bmm(a_down.mT).mul_(scaling)
        ctx.scaling, ctx.gelu = scaling, gelu
        ctx.save_for_backward(
            x, gate, up, inner, inner_down, w_gate, w_up, w_down, a_both, b_gate, b_up, a_down, b_down
        )
        return functional.linear(product, w_down, bias_down).baddbmm_(inner_down, b_down.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        x, gate, up, inner, inner_down, w_gate, w_up, w_down, a_both, b_gate, b_up, a_down, b_down = ctx.saved_tensors
        slope = gradient.bmm(b_down).mul_(ctx.scaling)
        of_product = torch.matmul(gradient, w_down).baddbmm_(slope, a_down)
        acted = _act(gate, ctx.gelu)
        of_a_down, of_b_down = slope.mT.bmm(acted * up), gradient.mT.bmm(inner_down)
        of_up, of_gate = acted.mul_(of_product), _act_back(of_product.mul_(up), gate, ctx.gelu)
        slope = torch.cat([of_gate.bmm(b_gate), of_up.bmm(b_up)], -1).mul_(ctx.scaling)
        ranks = [b_gate.shape[-1], b_up.shape[-1]]
        of_a_gate, of_a_up = slope.mT.bmm(x).split(ranks, 1)
        of_b_gate, of_b_up = (of.mT.bmm(i) for of, i in zip((of_gate, of_up), inner.split(ranks, -1), strict=True))
        of_x = torch.matmul(of_gate, w_gate) if ctx.needs_input_grad[0] else None
        if of_x is not None:
            of_x.view(-1, x.shape[-1]).addmm_(of_up.flatten(0, 1), w_up)
            of_x.baddbmm_(slope, a_both)
        return of_x, *[None] * 8, of_a_gate, of_b_gate, of_a_up, of_b_up, of_a_down, of_b_down


def _act(x: torch.Tensor, gelu: bool) -> torch.Tensor:
    return functional.gelu(x, approximate="tanh") if gelu else functional.silu(x)


def _act_back(gradient: torch.Tensor, x: torch.Tensor, gelu: bool) -> torch.Tensor:
    if gelu:
        return torch.ops.aten.gelu_backward(gradient, x, approximate="tanh")
    return torch.ops.aten.silu_backward(gradient, x)
