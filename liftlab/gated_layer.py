"""What Gated Memory puts into one attention layer: two small networks a query head, and the mixing before o_proj."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

FLOOR = 1 / (1 + math.exp(3.0))  # the gate of a network that says 0: sigmoid(3 * (0 - 1)) = 0.047

# (layer index, query, attention, gate, memory), each (batch, tokens, heads, head_dim or, for the gate, 1)
Observer = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]


class HeadNetworks(nn.Module):
    """The memory and the gate of every query head of one layer: no bias, no sharing between heads.

    memory: head_dim -> memory_width -> head_dim; gate: head_dim -> gate_width -> 1; SiLU between.
    """

    def __init__(self, heads: int, head_dim: int, memory_width: int, gate_width: int, init: str) -> None:
        super().__init__()
        self.neutral = init == "neutral"
        self.memory_in = nn.Parameter(torch.empty(heads, head_dim, memory_width))
        self.memory_out = nn.Parameter(torch.empty(heads, memory_width, head_dim))
        self.gate_in = nn.Parameter(torch.empty(heads, head_dim, gate_width))
        self.gate_out = nn.Parameter(torch.empty(heads, gate_width, 1))
        for weight in self.parameters():  # uniform, as torch.nn.Linear draws a weight of that fan-in
            _, inputs, outputs = weight.shape
            bound = 1 / math.sqrt(inputs * outputs if init == "released" else inputs)
            nn.init.uniform_(weight, -bound, bound)
        if self.neutral:
            nn.init.zeros_(self.gate_out)

    def forward(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(gate 0..1, memory) of `query`: (batch, tokens, heads, 1) and (batch, tokens, heads, head_dim)."""
        query = query.to(self.memory_in.dtype)
        memory = _two_layers(query, self.memory_in, self.memory_out)
        return gate_of(_two_layers(query, self.gate_in, self.gate_out), self.neutral), memory


def gate_of(said: torch.Tensor, neutral: bool) -> torch.Tensor:
    """The gate, 0..1, of what a gate network says."""
    gate = torch.sigmoid(3 * (said - 1))
    if neutral:  # clamp, not relu: its gradient at exactly 0 is 1, so a fresh gate can open
        gate = ((gate - torch.sigmoid(gate.new_tensor(-3.0))) / (1 - FLOOR)).clamp(min=0)
    return gate


def _two_layers(query: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    hidden = nn.functional.silu(torch.einsum("bthd,hdw->bthw", query, first))
    return torch.einsum("bthw,hwd->bthd", hidden, second)


class GatedMemoryLayer(nn.Module, BaseTunerLayer):
    """Stands in for one o_proj: mixes the heads' memory into the attention output before it is projected.

    The query is q_proj's output before RoPE: memory is looked up by content, not by position. Models with a query norm
    compare the normed query with their keys, so there the query is taken after the norm.
    """

    adapter_layer_names = ("gated_memory",)

    def __init__(self, base_layer: nn.Module, attention: nn.Module, index: int, heads: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.index, self.heads = index, heads
        self.gated_memory = nn.ModuleDict()
        self.observers: list[Observer] = []
        self._query: torch.Tensor | None = None  # from q_proj to o_proj within one forward pass
        self._norm = (getattr(attention, "q_norm", None),)  # in a tuple: it stays the attention's own submodule
        self._hook = attention.q_proj.register_forward_hook(self._keep_query)
        self._disable_adapters, self.merged_adapters = False, []

    def _keep_query(self, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        self._query = output

    def update_layer(self, adapter_name: str, networks: HeadNetworks, inference_mode: bool) -> None:
        """Add the networks of one adapter, on the device and in the dtype of o_proj."""
        self.gated_memory[adapter_name] = networks
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def forward(self, attention: torch.Tensor) -> torch.Tensor:
        """`attention`: (batch, tokens, heads * head_dim), the heads' outputs. Returns o_proj of the mixture."""
        query, self._query = self._query, None
        active = [] if self.disable_adapters else [n for n in self.active_adapters if n in self.gated_memory]
        if active:
            query = query.unflatten(-1, (self.heads, -1))
            query = query if self._norm[0] is None else self._norm[0](query)
        for name in active:
            attention = self._mixed(attention, query, self.gated_memory[name])
        return self.base_layer(attention)

    def _mixed(self, attention: torch.Tensor, query: torch.Tensor, networks: HeadNetworks) -> torch.Tensor:
        """(1 - gate) * attention + gate * memory, computed in the adapter's precision, in the attention's dtype."""
        gate, memory = networks(query)
        present = attention.unflatten(-1, (self.heads, -1))
        for observer in self.observers:
            observer(self.index, query, present, gate, memory)
        return ((1 - gate) * present + gate * memory).to(attention.dtype).flatten(-2)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """ValueError always: what is recalled depends on the query, so no weight of the base model can hold it."""
        raise ValueError("gated memory cannot be merged into the base model's weights: keep the adapter, or unload()")

    def unload_and_optionally_merge_module(self, merge: bool, safe_merge: bool, adapter_names: list[str] | None):
        """The original o_proj, with no hook left on q_proj. Called by peft's unload()."""
        if merge:
            self.merge()
        self._hook.remove()
        return self.base_layer


def layers_of(model: nn.Module) -> list[GatedMemoryLayer]:
    """The Gated Memory layers of `model`, by index; ValueError where it has none."""
    found = [module for module in model.modules() if isinstance(module, GatedMemoryLayer)]
    if not found:
        held = ", ".join(str(c.peft_type.value) for c in getattr(model, "peft_config", {}).values()) or "no adapter"
        raise ValueError(f"the model has no gates (it holds {held}): lift with adapter gated_memory to probe them")
    return found


@contextmanager
def observed(model: nn.Module, observer: Observer) -> Iterator[None]:
    """While open, `observer` sees every layer's query, attention, gate and memory in each forward pass."""
    layers = layers_of(model)
    for layer in layers:
        layer.observers.append(observer)
    try:
        yield
    finally:
        for layer in layers:
            layer.observers.remove(observer)


@contextmanager
def collected_gates(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """While open, the gates of each forward pass, (batch, tokens, heads, 1) a layer, gather in the list it yields."""
    gates: list[torch.Tensor] = []
    with observed(model, lambda index, query, attention, gate, memory: gates.append(gate)):
        yield gates


def mean_gate(gates: list[torch.Tensor], mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean gate (0..1) over layers, heads and the tokens where `mask` (batch, tokens) is 1; None = all tokens."""
    stacked = torch.stack([gate.mean(dim=(2, 3)) for gate in gates]).mean(0)  # (batch, tokens)
    return stacked.mean() if mask is None else (stacked * mask).sum() / mask.sum()
