"""Adapters by name, attached to a base model and taken off again without a trace.

LoRA and PiSSA are peft's, Gated Memory is ours. "full" trains every weight; it has no PEFT form and is kept as a full
set of weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

import peft
import torch

from liftlab.gated_memory import GatedMemoryConfig
from liftlab.recipes import Recipe

State = dict[str, torch.Tensor]
BESIDE = "beside"  # peft's name of an adapter that is drawn beside the attached one, "default"


def config(recipe: Recipe) -> peft.PeftConfig | None:
    """The PEFT config of a recipe's adapter, None for "full"."""
    if recipe.adapter == "full":
        return None
    return _gated_memory(recipe) if recipe.adapter == "gated_memory" else _lora(recipe)


def _lora(recipe: Recipe) -> peft.LoraConfig:
    modules = recipe.target_modules
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=0.0,
        target_modules=modules if isinstance(modules, str) else list(modules),
        init_lora_weights="pissa" if recipe.adapter == "pissa" else True,
    )


def _gated_memory(recipe: Recipe) -> GatedMemoryConfig:
    layers = recipe.layers_to_transform
    return GatedMemoryConfig(
        task_type="CAUSAL_LM",
        memory_width=recipe.memory_width,
        gate_width=recipe.gate_width,
        layers_to_transform=None if layers is None else list(layers),
        init=recipe.init,
        gate_penalty=recipe.gate_penalty,
    )


@contextmanager
def attached(model: torch.nn.Module, adapter: peft.PeftConfig | None, state: State | None = None) -> Iterator:
    """`model` with the adapter on it (fresh, or with the weights of `state`), trainable; bit for bit itself afterwards.

    Yields the model to train or ask: a PeftModel, or `model` itself for full fine-tuning (`adapter` is None).
    """
    # PiSSA and full fine-tuning write into the base weights: keep a copy of what they may change
    changes_base = adapter is None or getattr(adapter, "init_lora_weights", None) == "pissa"
    before = {k: v.detach().clone() for k, v in model.state_dict().items()} if changes_base else {}
    wrapped = model if adapter is None else _wrap(model, adapter)
    try:
        if adapter is None:
            model.requires_grad_(True)
        if state is not None:
            load(wrapped, state)
        yield wrapped
    finally:
        if adapter is not None:
            wrapped.unload()
            model.__dict__.pop("peft_config", None)
        if before:
            model.load_state_dict(before)
        model.requires_grad_(False)
        model.zero_grad(set_to_none=True)
        model.eval()


def _wrap(model: torch.nn.Module, adapter: peft.PeftConfig) -> peft.PeftModel:
    with warnings.catch_warnings():  # peft 0.21 asks transformers 5.2x for an attribute that was renamed
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        return peft.get_peft_model(model, adapter)


def load(wrapped, state: State) -> None:
    """Put `state` into an attached adapter; ValueError for weights that it has no place for."""
    if not isinstance(wrapped, peft.PeftModel):
        wrapped.load_state_dict(state, strict=True)
        return
    problems = peft.set_peft_model_state_dict(wrapped, state)
    if problems.unexpected_keys:
        raise ValueError(f"the adapter holds weights the base model has no place for: {problems.unexpected_keys[:3]}")


def trained_state(wrapped, name: str = "default") -> tuple[peft.PeftConfig | None, State]:
    """The adapter's config and its weights, on the CPU, as they apply to the unchanged base model."""
    if not isinstance(wrapped, peft.PeftModel):
        return None, {k: v.detach().cpu().clone() for k, v in wrapped.state_dict().items()}
    held = peft.get_peft_model_state_dict(wrapped, adapter_name=name)
    return wrapped.peft_config[name], {k: v.detach().cpu().clone() for k, v in held.items()}


def fresh(wrapped: peft.PeftModel, seed: int) -> State:
    """The weights that the attached adapter would have begun with under `torch.manual_seed(seed)`, bit for bit.

    The attached one stays as it is: another like it is drawn beside it, by peft itself, and taken off again. Not for
    PiSSA, which is drawn from base weights that it changes.
    """
    torch.manual_seed(seed)
    wrapped.add_adapter(BESIDE, wrapped.peft_config["default"])
    try:
        return trained_state(wrapped, BESIDE)[1]
    finally:
        wrapped.delete_adapter(BESIDE)


def as_plain_lora(config: peft.LoraConfig, start: State, end: State) -> tuple[peft.LoraConfig, State]:
    """A trained PiSSA adapter as a LoRA of twice the rank on the unchanged base: B A - B0 A0 = [B, -B0] [A; A0].

    `start`, `end`: the adapter's weights before and after training; lora_A (rank, in), lora_B (out, rank).
    Source: PiSSA, https://arxiv.org/abs/2404.02948, appendix "equivalent LoRA".
    """
    state = {
        key: torch.cat([value, start[key]] if "lora_A" in key else [value, -start[key]], dim=int("lora_B" in key))
        for key, value in end.items()
    }
    doubled = copy(config)
    doubled.r, doubled.lora_alpha, doubled.init_lora_weights = 2 * config.r, 2 * config.lora_alpha, True
    return doubled, state
