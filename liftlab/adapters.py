"""Adapters by name, attached to a base model and taken off again without a trace.

LoRA, PiSSA and the cartridge are peft's, Gated Memory is ours. "full" trains every weight; it has no PEFT form and is
kept as a full set of weights. A cartridge is a prefix of keys and values that stands before whatever the model reads:
no weight of the model is touched, but the prefix takes its tokens of the window.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import replace
from typing import TypeVar

import peft
import torch
from peft.tuners.cartridge.utils import prompt_embeddings_from_past_key_values

from liftlab.gated_memory import GatedMemoryConfig
from liftlab.models import BaseModel, Configuration
from liftlab.recipes import Recipe
from liftlab.token_losses import has_prefix

State = dict[str, torch.Tensor]
Base = TypeVar("Base", BaseModel, Configuration)
PREFIX = "prompt_embeddings"  # peft's name of a cartridge's only weight: (tokens, keys and values of all layers)
BESIDE = "beside"  # peft's name of an adapter that is drawn beside the attached one, "default"


def config(recipe: Recipe) -> peft.PeftConfig | None:
    """The PEFT config of a recipe's adapter, None for "full"."""
    if recipe.adapter == "full":
        return None
    kinds = {"gated_memory": _gated_memory, "cartridge": _cartridge}
    return kinds.get(recipe.adapter, _lora)(recipe)


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


def _cartridge(recipe: Recipe) -> peft.CartridgeConfig:
    """The first token, on which models rest much of their attention, stays frozen, as 2506.06266 has it.

    Trained it is as every adapter here, by the next tokens of the auxiliary pairs, and of segments where the recipe has
    them. That paper's self-study trains on the model's own conversations about parts of the document instead, and on
    the distribution of each next token that the model has with that part in its prompt (context distillation).
    """
    return peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=recipe.prefix_tokens, num_frozen_tokens=1)


def beside_prefix(base: Base, recipe: Recipe) -> Base:
    """`base` with the window that the recipe's adapter leaves: ValueError where a prefix leaves nothing."""
    taken = recipe.prefix_tokens or 0
    if taken >= base.window:
        raise ValueError(
            f"recipe: prefix_tokens = {taken} leaves nothing of the window of {base.name}, {base.window} tokens: "
            "make it smaller"
        )
    return replace(base, window=base.window - taken) if taken else base


@torch.no_grad()
def prefix_of(model: torch.nn.Module, ids: Sequence[int]) -> State:
    """The cartridge that stands for `ids` in the prompt: the keys and values that the base model itself has of them."""
    cache = model.get_decoder()(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=True)
    flat = prompt_embeddings_from_past_key_values(cache.past_key_values, num_virtual_tokens=len(ids))
    return {PREFIX: flat.float().cpu()}


def prefix_shape(model: torch.nn.Module, adapter: peft.PeftConfig) -> torch.Size:
    """Of a cartridge's weight on `model`; no memory is taken for it."""
    sized = peft.utils._prepare_prompt_learning_config(copy(adapter), model.config)
    return torch.Size((sized.num_virtual_tokens, sized.num_layers * 2 * sized.token_dim))


@contextmanager
def attached(model: torch.nn.Module, adapter: peft.PeftConfig | None, state: State | None = None) -> Iterator:
    """`model` with the adapter on it (fresh, or with the weights of `state`), trainable; bit for bit itself afterwards.

    Yields the model to train or ask: a PeftModel, or `model` itself for full fine-tuning (`adapter` is None).
    """
    # PiSSA and full fine-tuning write into the base weights: keep a copy of what they may change
    changes_base = adapter is None or getattr(adapter, "init_lora_weights", None) == "pissa"
    before = {k: v.detach().clone() for k, v in model.state_dict().items()} if changes_base else {}
    prefixed = adapter is not None and adapter.is_prompt_learning
    own = [(part, set(vars(part))) for part in (model, model.get_decoder())] if prefixed else []
    wrapped = model if adapter is None else _wrap(model, adapter)
    try:
        if adapter is None:
            model.requires_grad_(True)
        if state is not None:
            load(wrapped, state)
        yield wrapped
    finally:
        if adapter is not None:
            _take_off(wrapped, own)
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


def _take_off(wrapped: peft.PeftModel, own: list[tuple[torch.nn.Module, set[str]]]) -> None:
    if not has_prefix(wrapped):
        wrapped.unload()
        return
    for part, names in own:  # peft stands beside the model here, but its `generate` leaves attributes there
        for name in set(vars(part)) - names:
            delattr(part, name)


def merged(model: torch.nn.Module, adapter: peft.PeftConfig | None, state: State) -> State:
    """Every weight of `model` with a LoRA added to it, on the CPU; `state` itself after full fine-tuning."""
    if adapter is None:
        return state
    wrapped = _wrap(deepcopy(model), adapter)
    load(wrapped, state)
    return trained_state(wrapped.merge_and_unload())[1]


def load(wrapped, state: State) -> None:
    """Put `state` into an attached adapter; ValueError for weights that it has no place for."""
    if not isinstance(wrapped, peft.PeftModel):
        wrapped.load_state_dict(state, strict=True)
        return
    if has_prefix(wrapped):
        _load_prefix(wrapped.prompt_encoder["default"], state)
        return
    problems = peft.set_peft_model_state_dict(wrapped, state)
    if problems.unexpected_keys:
        raise ValueError(f"the adapter holds weights the base model has no place for: {problems.unexpected_keys[:3]}")


def _load_prefix(encoder: torch.nn.Module, state: State) -> None:
    given, place = {key: tuple(value.shape) for key, value in state.items()}, {PREFIX: tuple(encoder.weight.shape)}
    if given != place:
        raise ValueError(f"the adapter's weights are {given}, the base model has a place for {place}")
    encoder.load_prompt_embeddings(state[PREFIX])


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
