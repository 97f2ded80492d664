"""Rotary positions with few passes over memory, forward and backward; what transformers computes, to rounding."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import nn
from torch.autograd.function import once_differentiable

NAME = "apply_rotary_pos_emb"  # each architecture's own function, all of the same form
SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3")  # whose form is known: halves, all of head_dim


def architecture(kind: type) -> str:
    """The transformers architecture that defines a class, or nothing."""
    where = kind.__module__.split(".")
    return where[2] if where[:2] == ["transformers", "models"] else ""


def turning(model: nn.Module) -> list[ModuleType]:
    """Where the architectures of `model` have the function by which their attention turns queries and keys."""
    names = {type(module).__module__ for module in model.modules()}
    modules = [sys.modules[name] for name in sorted(names) if name.split(".")[-2:-1] in [[kind] for kind in SUPPORTED]]
    return [module for module in modules if hasattr(module, NAME)]


@contextmanager
def few_passes(places: Sequence[ModuleType]) -> Iterator[None]:
    """While open, these turn queries and keys by `rotated`."""
    own = [getattr(place, NAME) for place in places]
    try:
        for place in places:
            setattr(place, NAME, rotated)
        yield
    finally:
        for place, function in zip(places, own, strict=True):
            setattr(place, NAME, function)


def rotated(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both (batch, heads, tokens, head_dim), turned by the angles of `cos` and `sin` (batch, tokens, head_dim)."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Turned.apply(query, cos, sin), _Turned.apply(key, cos, sin)


class _Turned(torch.autograd.Function):
    """A rotation; its gradient is the rotation back."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        return _turn(gradient, *ctx.saved_tensors, -1), None, None


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, way: int) -> torch.Tensor:
    """Each pair of a lower and an upper number turned; the angles of both are the same."""
    turned, half = x * cos, x.shape[-1] // 2
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-way)
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:], value=way)
    return turned
