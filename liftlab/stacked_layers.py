"""Adapters with a document axis: each batch row passes through its own document's adapter, all in one product.

PEFT's layers of one adapter are replaced, for a while, by layers that hold the weights of many; the tokens of a batch
are divided among the documents, in order: evenly, or as `Stack.groups` says. The weights stand in one matrix
(documents, weights of one adapter).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from math import prod

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from liftlab import adapters
from liftlab.gated_layer import GatedMemoryLayer, gate_of
from liftlab.stacked_lora import Projected
from liftlab.stacked_prefix import StackedPrefix
from liftlab.stacked_products import Groups, even, joined, of_documents, of_tokens, product

State = adapters.State
Begin = Sequence[State] | Sequence[int]  # the weights that each document's adapter begins with, or their seed


class Stack:
    """The adapters of many documents: `weights` (documents, size) and, where they are trained, `gradients` alike.

    `keys`: name and shape of each tensor of one adapter, in the order of its weights.
    """

    def __init__(self, wrapped: nn.Module, states: Sequence[State], trained: bool) -> None:
        self.wrapped = wrapped  # PEFT's model of one adapter
        self.keys = {key: value.shape for key, value in states[0].items()}
        sizes = [prod(shape) for shape in self.keys.values()]
        self._begin = dict(zip(self.keys, accumulate(sizes, initial=0), strict=False))
        flat = [torch.cat([state[key].flatten() for key in self.keys]) for state in states]
        self.weights = torch.stack(flat).to(wrapped.device)
        self.gradients = torch.empty_like(self.weights) if trained else None
        self.empty = True  # the gradients; set before each step
        self.seen: slice | torch.Tensor = slice(len(states))  # which documents the layers see, in which order
        self.groups: Groups | None = None  # how many tokens each of them has in the batch, None = all alike
        self._layers: list[tuple[nn.Module, str, str]] = []  # (layer, attribute, key)
        self.swaps: list[tuple[Callable[[], None], Callable[[], None]]] = []  # (PEFT's layer in, ours in)
        self.prefix: StackedPrefix | None = None  # what stands before all, in place of layers

    def bind(self, layer: nn.Module, attribute: str, key: str) -> None:
        """Give `layer.attribute` the documents' tensors called `key`: (documents, *shape), a view of the weights."""
        self._layers.append((layer, attribute, key))
        self._set(layer, attribute, key)

    def arrange(self, documents: Sequence[int], groups: Groups | None = None) -> None:
        """Have the layers see `documents`, in that order, each with as many tokens of a batch as `groups` says.

        Unless they are the first ones in their order, what layers see is a copy: arrange them anew after each change.
        """
        self.groups = groups
        begins = list(documents) == list(range(len(documents)))
        if begins and self.seen == slice(len(documents)):
            return
        self.seen = slice(len(documents)) if begins else torch.tensor(documents).to(self.weights.device)
        for bound in self._layers:
            self._set(*bound)

    def groups_of(self, tokens: int) -> Groups:
        """How a batch of so many tokens is divided."""
        return self.groups or even(len(self.weights[self.seen]), tokens)

    def add_gradients(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss` to `gradients`."""
        parameters = [getattr(layer, attribute) for layer, attribute, _ in self._layers]
        found = torch.autograd.grad(loss, parameters)
        for (_, _, key), gradient in zip(self._layers, found, strict=True):
            kept = self._part(self.gradients, key)
            kept[self.seen] = gradient if self.empty else gradient.add_(kept[self.seen])
        self.empty = False

    @property
    def trained(self) -> slice:
        """Which weights of an adapter are: not a cartridge's first tokens."""
        frozen = self.prefix.frozen if self.prefix else 0
        return slice(frozen * self.weights.shape[1] // self.prefix.tokens if frozen else 0, None)

    def state(self, document: int) -> State:
        """A copy, on the CPU, of one document's adapter weights."""
        row = self.weights[document].detach().cpu()
        return {key: self._part(row, key).clone() for key in self.keys}

    @contextmanager
    def alone(self, document: int) -> Iterator[nn.Module]:
        """While open, the model has the adapter of that document alone, in PEFT's own layers; yields the PeftModel."""
        for theirs, _ in self.swaps:
            theirs()
        try:
            adapters.load(self.wrapped, self.state(document))
            yield self.wrapped
        finally:
            for _, ours in self.swaps:
                ours()

    def _set(self, layer: nn.Module, attribute: str, key: str) -> None:
        seen = self._part(self.weights, key)[self.seen]
        setattr(layer, attribute, nn.Parameter(seen, self.gradients is not None))

    def _part(self, weights: torch.Tensor, key: str) -> torch.Tensor:
        begin, shape = self._begin[key], self.keys[key]
        return weights[..., begin : begin + prod(shape)].unflatten(-1, shape)


class StackedLora(nn.Module):
    """base_layer(x) + scaling * B A x with A (documents, rank, in) and B (documents, out, rank)."""

    def __init__(self, layer: LoraLayer, stack: Stack) -> None:
        super().__init__()
        self.base_layer, self.scaling, self.stack = layer.base_layer, layer.scaling["default"], stack

    @property
    def plain(self) -> bool:
        """Whether it is LoRA on a linear layer with weights of its own type."""
        return type(self.base_layer) is nn.Linear and self.base_layer.weight.dtype == self.lora_A.dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`: (rows, tokens, in), the documents' tokens one after the other."""
        read = x.reshape(-1, x.shape[-1])
        groups = self.stack.groups_of(len(read))
        if self.plain:
            layer = self.base_layer
            given = (read, self.scaling, groups, layer.weight, layer.bias, self.lora_A, self.lora_B)
            (out,) = Projected.apply(*given)
        else:
            out = self.base_layer(read)
            inner = product(read.to(self.lora_A.dtype), self.lora_A.mT, groups) * self.scaling
            out = (out + product(inner, self.lora_B.mT, groups)).to(out.dtype)
        return out.view(*x.shape[:-1], -1)


class StackedNetworks(nn.Module):
    """`gated_layer.HeadNetworks` of many documents: weights (documents, heads, in, out)."""

    def __init__(self, networks: nn.Module, stack: Stack) -> None:
        super().__init__()
        self.neutral, self.stack = networks.neutral, stack

    def forward(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(gate, memory) of `query` (rows, tokens, heads, head_dim), as HeadNetworks gives them."""
        groups = self.stack.groups_of(query.shape[0] * query.shape[1])
        by_head = [part.transpose(1, 2).flatten(0, 1).to(self.memory_in.dtype)
                   for part in of_tokens(query.flatten(0, 1), groups)]  # fmt: skip
        memory, gate = (
            _of_heads(by_head, first, second, groups).view(*query.shape[:3], -1)
            for first, second in ((self.memory_in, self.memory_out), (self.gate_in, self.gate_out))
        )
        return gate_of(gate, self.neutral), memory


def _of_heads(by_head: list[torch.Tensor], first: torch.Tensor, second: torch.Tensor, groups: Groups) -> torch.Tensor:
    """Two layers of every head, (tokens, heads, out), of each group's queries (documents * heads, tokens, in)."""
    layers = zip(by_head, of_documents(first, groups), of_documents(second, groups), strict=True)
    said = [nn.functional.silu(x.bmm(one.flatten(0, 1))).bmm(two.flatten(0, 1)) for x, one, two in layers]
    heads = first.shape[1]
    return joined([x.unflatten(0, (-1, heads)).transpose(1, 2).flatten(0, 1) for x in said])


def trains(config: peft.PeftConfig | None) -> bool:
    """Whether adapters of that kind can be trained in a stack: those that fit into one, PiSSA, and cartridges."""
    return fits(config) or is_pissa(config) or (config is not None and config.is_prompt_learning)


def is_pissa(config: peft.PeftConfig | None) -> bool:
    """Whether the adapter begins as the largest part of the base weights, of which it leaves the rest."""
    return getattr(config, "init_lora_weights", None) == "pissa"


def fits(config: peft.PeftConfig | None) -> bool:
    """Whether adapters of that kind can be stacked: LoRA on the unchanged base model, and Gated Memory."""
    if config is None:
        return False
    plain = getattr(config, "init_lora_weights", None) is not None and config.init_lora_weights is True
    return plain or config.peft_type == "GATED_MEMORY"


@contextmanager
def stacked_on(model: nn.Module, config: peft.PeftConfig, begin: Begin, *, trained: bool = False) -> Iterator[Stack]:
    """`model` with adapters on it, a document each, in the order of `begin`; bit for bit itself afterwards.

    A seed stands for the weights that `lifting.lift` begins with under it. ValueError where a layer's adapter cannot be
    stacked, such as LoRA on an embedding.
    """
    if isinstance(begin[0], int):
        torch.manual_seed(begin[0])
    with adapters.attached(model, config) as wrapped:
        stack = Stack(wrapped, _states(wrapped, begin), trained)
        for name, layer in list(wrapped.named_modules()):
            if isinstance(layer, LoraLayer):
                stack.swaps.append(_lora(wrapped, name, layer, stack))
            elif isinstance(layer, GatedMemoryLayer) and "default" in layer.gated_memory:
                stack.swaps.append(_networks(name, layer, stack))
        if config.is_prompt_learning:
            stack.prefix = StackedPrefix(model, wrapped.peft_config["default"])
            stack.bind(stack.prefix, "prefix", adapters.PREFIX)
        try:
            for _, ours in stack.swaps:
                ours()
            yield stack
        finally:
            for theirs, _ in stack.swaps:
                theirs()


def _states(wrapped: peft.PeftModel, begin: Begin) -> Sequence[State]:
    """The weights to begin with; those of the first seed were drawn as `wrapped` was made."""
    if not isinstance(begin[0], int):
        return begin
    if is_pissa(wrapped.peft_config["default"]):  # nothing of it is drawn
        return [adapters.trained_state(wrapped)[1]] * len(begin)
    drawn = {begin[0]: adapters.trained_state(wrapped)[1]}
    for seed in begin:
        if seed not in drawn:
            drawn[seed] = adapters.fresh(wrapped, seed)
    return [drawn[seed] for seed in begin]


def _lora(wrapped: nn.Module, name: str, layer: LoraLayer, stack: Stack):
    if "default" not in layer.lora_A:
        raise ValueError(f"LoRA on {name} ({type(layer).__name__}) cannot be stacked: lift its documents one by one")
    many = StackedLora(layer, stack)
    for part in ("lora_A", "lora_B"):
        stack.bind(many, part, f"{name}.{part}.weight")
    parent, _, attribute = name.rpartition(".")
    holder = wrapped.get_submodule(parent)
    return partial(setattr, holder, attribute, layer), partial(setattr, holder, attribute, many)


def _networks(name: str, layer: GatedMemoryLayer, stack: Stack):
    one = layer.gated_memory["default"]
    many = StackedNetworks(one, stack)
    for part in ("memory_in", "memory_out", "gate_in", "gate_out"):
        stack.bind(many, part, f"{name}.gated_memory.{part}")
    return partial(layer.gated_memory.__setitem__, "default", one), partial(
        layer.gated_memory.__setitem__, "default", many
    )
