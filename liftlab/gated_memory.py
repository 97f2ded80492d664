"""Gated Memory as a PEFT method: each query head learns what to recall from its parameters, and how much.

Softmax attention over an absent document and the present context is exactly g*m + (1 - g)*a: g is the softmax mass on
the document's keys, m the attention output restricted to them, a the attention output over what is present. For a fixed
document g and m are functions of the query alone, so two small networks a head learn them; a comes from the context.
Source: https://arxiv.org/abs/2502.14644v3 (Gated Memory) and the sizes of the authors' released program.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method
from torch import nn

from liftlab.gated_layer import GatedMemoryLayer, HeadNetworks, collected_gates, mean_gate

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gemma3")  # transformers' model_type
INITS = ("released", "per_head", "neutral")


@dataclass
class GatedMemoryConfig(PeftConfig):
    """Settings of Gated Memory. ValueError for one out of its bounds.

    memory_width: hidden units of each head's memory network; None = 2 * head_dim.
    gate_width: hidden units of each head's gate network; None = int(sqrt(head_dim)).
    layers_to_transform: indices of the layers that get one; None = all.
    init: "released" = the fan-in that the authors' program used (in * out; the memory starts near 0, the gate near
        0.047); "per_head" = the evident intent (fan-in = in); "neutral" = per_head with a gate that starts at exactly
        0, so no logit changes; its gate is rescaled to (sigmoid - 0.047) / (1 - 0.047), and never below 0.
    gate_penalty: weight of the mean gate (0..1) in the loss; 0 = off. Tried by the authors, not in the paper.
    """

    memory_width: int | None = None
    gate_width: int | None = None
    layers_to_transform: list[int] | int | None = None
    init: str = "released"
    gate_penalty: float = 0.0
    base_shape: dict | None = None  # written by save_pretrained, checked before loading; not a choice

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.GATED_MEMORY
        self.target_modules = {"o_proj"}  # where the mixing happens; not a choice
        for name in ("memory_width", "gate_width"):
            value = getattr(self, name)
            if value is not None and not (type(value) is int and value >= 1):
                raise ValueError(f"gated memory: {name} = {value!r}: must be a whole number, at least 1, or None")
        if self.init not in INITS:
            raise ValueError(f"gated memory: init = {self.init!r}: must be one of {', '.join(INITS)}")
        if type(self.gate_penalty) not in (int, float) or not 0 <= self.gate_penalty < math.inf:
            raise ValueError(f"gated memory: gate_penalty = {self.gate_penalty!r}: must be a number, at least 0")
        if self.layers is not None and not (self.layers and all(type(i) is int and i >= 0 for i in self.layers)):
            raise ValueError(
                f"gated memory: layers_to_transform = {self.layers_to_transform!r}: must be an index from 0, "
                "a list of them, or None for all layers"
            )

    def includes(self, layer: int) -> bool:
        """Whether the layer of that index gets a memory."""
        return self.layers is None or layer in self.layers

    @property
    def layers(self) -> list | None:
        """The layer indices as a list, None for all."""
        chosen = self.layers_to_transform
        return list(chosen) if isinstance(chosen, list | tuple | set) else None if chosen is None else [chosen]

    def fit(self, shape: dict) -> None:
        """Note the shape of the base model it is put on; ValueError where it was saved from another."""
        if self.base_shape not in (None, shape):
            raise ValueError(
                f"gated memory: the adapter was trained on a base model of {_words(self.base_shape)}, this one has "
                f"{_words(shape)}: load it onto the model it was trained on"
            )
        self._shape = shape  # not a field: the same settings may be put on another model

    def to_dict(self) -> dict:
        """The settings, with the shape of the base model they were put on."""
        return {**super().to_dict(), "base_shape": getattr(self, "_shape", self.base_shape)}


class GatedMemoryModel(BaseTuner):
    """The tuner that `get_peft_model` builds. ValueError for an architecture, shape or layer that cannot have one."""

    prefix = "gated_memory"
    tuner_layer_cls = GatedMemoryLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _prepare_model(self, config: GatedMemoryConfig, model: nn.Module) -> None:
        """Every check, before any module is touched; peft calls it for each adapter."""
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        if kind not in SUPPORTED:
            raise ValueError(
                f"gated memory does not support {kind}: it needs separate q_proj and o_proj around softmax attention; "
                f"supported are {', '.join(SUPPORTED)}"
            )
        layers = model.config.get_text_config().num_hidden_layers
        for index in config.layers or ():
            if index >= layers:
                raise ValueError(
                    f"gated memory: layer {index!r} does not exist: the model has layers 0 to {layers - 1}"
                )
        attentions = [(n, m) for n, m in model.named_modules() if re.search(r"layers\.\d+\.self_attn$", n)]
        heads = {(_heads(name, module), module.head_dim) for name, module in attentions if hasattr(module, "o_proj")}
        config.fit({"layers": layers, "heads_and_head_dim": [list(pair) for pair in sorted(heads)]})

    @staticmethod
    def _check_target_module_exists(config: GatedMemoryConfig, key: str) -> bool:
        found = re.search(r"layers\.(\d+)\.self_attn\.o_proj$", key)
        return bool(found) and config.includes(int(found[1]))

    def _create_and_replace(self, config, adapter_name, target, target_name, parent, current_key, **kwargs) -> None:
        layer = target
        if not isinstance(target, GatedMemoryLayer):
            index = int(re.search(r"layers\.(\d+)\.", current_key)[1])
            layer = GatedMemoryLayer(target, parent, index, _heads(current_key, parent))
            self._replace_module(parent, target_name, layer, target)
        head_dim = layer.base_layer.in_features // layer.heads
        widths = config.memory_width or 2 * head_dim, config.gate_width or int(math.sqrt(head_dim))
        networks = HeadNetworks(layer.heads, head_dim, *widths, config.init)
        layer.update_layer(adapter_name, networks, config.inference_mode)

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, model, config, adapter_name: str, state_dict: dict) -> dict:
        renamed = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        places = {k: v.shape for k, v in model.state_dict().items() if f".{cls.prefix}.{adapter_name}." in k}
        for key in sorted(places.keys() | renamed.keys()):
            given, place = renamed[key].shape if key in renamed else None, places.get(key)
            if given != place:
                raise ValueError(
                    f"gated memory: {key} is {_shape(given)} in the adapter and {_shape(place)} in the base model: "
                    "load the adapter onto the model it was trained on"
                )
        return renamed

    def forward(self, *args, **kwargs):
        """The base model's output; where there is a loss and a gate penalty, with penalty * mean gate added."""
        penalty = sum(getattr(self.peft_config[name], "gate_penalty", 0.0) for name in self.active_adapters)
        if not (penalty and self.training):
            return self.model(*args, **kwargs)
        with collected_gates(self.model) as gates:
            outputs = self.model(*args, **kwargs)
        if getattr(outputs, "loss", None) is not None:
            outputs.loss = outputs.loss + penalty * mean_gate(gates, kwargs.get("attention_mask"))
        return outputs


def _heads(name: str, attention: nn.Module) -> int:
    """The number of query heads; ValueError where head_dim does not divide what q_proj gives or o_proj takes."""
    o_proj = getattr(attention.o_proj, "base_layer", attention.o_proj)  # there may be a memory on it already
    gives, takes, head_dim = attention.q_proj.out_features, o_proj.in_features, attention.head_dim
    if gives != takes or gives % head_dim:
        raise ValueError(
            f"gated memory: {name}: q_proj gives {gives} numbers and o_proj takes {takes}; both must be the same "
            f"multiple of head_dim = {head_dim}: correct head_dim in the model's configuration"
        )
    return gives // head_dim


def _words(shape: dict) -> str:
    heads = " and ".join(f"{heads} heads of {head_dim}" for heads, head_dim in shape["heads_and_head_dim"])
    return f"{shape['layers']} layers with {heads}"


def _shape(shape: torch.Size | None) -> str:
    return "absent" if shape is None else str(tuple(shape))


def _register() -> None:
    """peft's list of methods is a closed enum: this is the one place that adds to it."""
    name = "GATED_MEMORY"
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    member._name_, member._value_, member.__objclass__ = name, name, PeftType
    setattr(PeftType, name, member)  # before it is a member: a member's attribute cannot be set
    PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
    PeftType._member_names_.append(name)
    register_peft_method(
        name=name.lower(), config_cls=GatedMemoryConfig, model_cls=GatedMemoryModel, prefix=GatedMemoryModel.prefix
    )


_register()
