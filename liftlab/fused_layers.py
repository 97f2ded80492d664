"""Layers of a stack with few passes over memory, forward and backward; what the model computes, to rounding.

Layers whose form is known exactly have, for a while, one autograd function each: RMS norms, gated MLPs with LoRA on all
three projections, and queries, keys and values with LoRA on each. Other layers keep their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.activations import GELUTanh, SiLUActivation

from liftlab.rotary import SUPPORTED, architecture, few_passes, turning
from liftlab.stacked_layers import StackedLora
from liftlab.stacked_lora import Projected, project, project_back
from liftlab.stacked_products import Groups

Forward = Callable[[torch.Tensor], torch.Tensor]
ADDED_ONE = ("gemma2", "gemma3")  # whose norms multiply by 1 + weight, in float32


class Fused:
    """What of `model` can be fused: found once, fused in many passes."""

    def __init__(self, model: nn.Module) -> None:
        self._fusable, self._turning = list(_fusable(model)), turning(model)

    @contextmanager
    def on(self) -> Iterator[None]:
        """While open, forward and backward, norms and MLPs are fused, and rotary positions are `rotary.rotated`."""
        try:
            for module, forward in self._fusable:
                module.forward = forward  # on the instance, where it hides that of the class
            with few_passes(self._turning):
                yield
        finally:
            for module, _ in self._fusable:
                vars(module).pop("forward", None)


def fused(model: nn.Module) -> AbstractContextManager[None]:
    """`Fused.on` of `model`, for one pass."""
    return Fused(model).on()


def _fusable(model: nn.Module) -> Iterator[tuple[nn.Module, Forward]]:
    for module in model.modules():
        kind, family = type(module).__name__, architecture(type(module))
        if family not in SUPPORTED:
            continue
        if kind.endswith("RMSNorm"):
            yield module, partial(_normed, module, family in ADDED_ONE)
        elif kind.endswith("MLP"):
            layers = [module.gate_proj, module.up_proj, module.down_proj]
            if _alike(layers) and type(module.act_fn) in (SiLUActivation, GELUTanh):
                yield module, partial(_mlp, layers, type(module.act_fn) is GELUTanh)
        elif kind.endswith("Attention"):
            layers = [module.q_proj, module.k_proj, module.v_proj]
            if _alike(layers):
                once = _Projections(layers)
                yield from ((layer, partial(once.of, which)) for which, layer in enumerate(layers))


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


def _alike(layers: Sequence[nn.Module]) -> bool:
    """Whether all are LoRA of one scaling on plain linear layers, weights and LoRA of one type."""
    return (
        all(type(layer) is StackedLora and layer.plain for layer in layers)
        and len({layer.scaling for layer in layers}) == 1
        and len({layer.lora_A.dtype for layer in layers}) == 1
    )


def _tensors(layers: Sequence[StackedLora]) -> list[torch.Tensor | None]:
    """As `Projected` takes them: all weights, all biases, all A, all B."""
    of_each = [(one.base_layer.weight, one.base_layer.bias, one.lora_A, one.lora_B) for one in layers]
    return [tensor for kind in zip(*of_each, strict=True) for tensor in kind]


class _Projections:
    """Queries, keys and values of one input: the first that an attention layer asks for computes all of them."""

    def __init__(self, layers: Sequence[StackedLora]) -> None:
        self._layers = layers
        self._read: torch.Tensor | None = None
        self._found: tuple[torch.Tensor, ...] = ()

    def of(self, which: int, x: torch.Tensor) -> torch.Tensor:
        """What layer `which` makes of `x` (rows, tokens, in)."""
        if self._read is not x:
            rows, first = x.reshape(-1, x.shape[-1]), self._layers[0]
            given = (rows, first.scaling, first.stack.groups_of(len(rows)), *_tensors(self._layers))
            self._read, self._found = x, Projected.apply(*given)
        out = self._found[which].view(*x.shape[:-1], -1)
        if which == len(self._layers) - 1:
            self._read, self._found = None, ()
        return out


def _mlp(layers: Sequence[StackedLora], gelu: bool, x: torch.Tensor) -> torch.Tensor:
    rows, first = x.reshape(-1, x.shape[-1]), layers[0]  # (tokens, in)
    given = (rows, first.scaling, gelu, first.stack.groups_of(len(rows)), *_tensors(layers))
    return _GatedMlp.apply(*given).view(*x.shape[:-1], -1)


class _GatedMlp(torch.autograd.Function):
    """down(act(gate(x)) * up(x)), each with LoRA; keeps gate and up, and computes their product again in backward."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, scaling: float, gelu: bool, groups: Groups, *tensors: torch.Tensor | None):
        *weights, bias_gate, bias_up, bias_down, a_gate, a_up, a_down, b_gate, b_up, b_down = tensors
        both = ([(weights[0], bias_gate), (weights[1], bias_up)], [a_gate, a_up], [b_gate, b_up])
        (gate, up), inner = project(x, *both, scaling, groups)
        down = ([(weights[2], bias_down)], [a_down], [b_down])
        (out,), inner_down = project(_act(gate, gelu).mul_(up), *down, scaling, groups)
        ctx.scaling, ctx.gelu, ctx.groups = scaling, gelu, groups
        lora = (a_gate, a_up, a_down, b_gate, b_up, b_down)
        ctx.save_for_backward(x, gate, up, *weights, *lora, *inner, *inner_down)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        x, gate, up, *rest = ctx.saved_tensors
        weights, (a_gate, a_up, a_down, b_gate, b_up, b_down), ranks = rest[:3], rest[3:9], rest[9:]
        inner, inner_down = ranks[: len(ctx.groups)], ranks[len(ctx.groups) :]
        acted, settings = _act(gate, ctx.gelu), (ctx.scaling, ctx.groups)
        down = ([gradient], acted * up, weights[2:], [a_down], [b_down], inner_down)
        of_product, of_a_down, of_b_down = project_back(*down, *settings, True)
        of_up, of_gate = acted.mul_(of_product), _act_back(of_product.mul_(up), gate, ctx.gelu)
        both = ([of_gate, of_up], x, weights[:2], [a_gate, a_up], [b_gate, b_up], inner)
        of_x, of_a, of_b = project_back(*both, *settings, ctx.needs_input_grad[0])
        return of_x, *[None] * 9, *of_a, *of_a_down, *of_b, *of_b_down


def _act(x: torch.Tensor, gelu: bool) -> torch.Tensor:
    return functional.gelu(x, approximate="tanh") if gelu else functional.silu(x)


def _act_back(gradient: torch.Tensor, x: torch.Tensor, gelu: bool) -> torch.Tensor:
    if gelu:
        return torch.ops.aten.gelu_backward(gradient, x, approximate="tanh")
    return torch.ops.aten.silu_backward(gradient, x)
