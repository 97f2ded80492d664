"""What a Gated Memory should be, and what it learned: attention split exactly into the document's part and the rest.

Softmax attention over the document's keys and all others is exactly g*m* + (1 - g*)a*: g* the softmax mass on the
document's keys, m* and a* the attention outputs restricted to them and to the others.
Source: the identity behind Gated Memory, https://arxiv.org/abs/2502.14644v3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from scipy import stats
from torch import Tensor

from liftlab.documents import Document, Question
from liftlab.gated_layer import layers_of
from liftlab.models import BaseModel
from liftlab.probes.gates import at_rest, whole
from liftlab.probes.layout import Layout
from liftlab.prompts import PLAIN, PromptStyle

Learned = dict[int, tuple[Tensor, Tensor]]  # layer: gate (tokens, heads), memory (tokens, heads, head_dim)
UNITS = {"gate_exact": "softmax mass 0..1", "gate_learned": "gate 0..1", "gate_spearman": "correlation -1..1",
         "gate_pearson": "correlation -1..1", "memory_cosine": "cosine -1..1"}  # fmt: skip


@dataclass(frozen=True)
class Exact:
    """One layer's attention at the asked tokens (question and answer), split; float32, on the CPU.

    `roles`: a token's role each. `query` (tokens, heads, head_dim): what Gated Memory reads, before RoPE, after the
    query norm where there is one. `full` (tokens, heads, head_dim): the attention output. `gate` (tokens, heads), 0..1:
    g*. `memory`, `rest` (tokens, heads, head_dim): m* and a*, 0 where no mass is on their keys.
    """

    layer: int
    roles: tuple[str, ...]
    query: Tensor
    full: Tensor
    gate: Tensor
    memory: Tensor
    rest: Tensor


def probe(
    base: BaseModel,
    document: Document,
    questions: Sequence[Question],
    *,
    answer_tokens: int = 8,
    style: PromptStyle = PLAIN,
) -> pd.DataFrame:
    """The rows of `compare` for a document that fits the window; correlations that do not exist are left out.

    `base` has Gated Memory on it, ValueError otherwise; the exact split is that of its base model.
    """
    layers_of(base.model)
    prompts = [whole(base, document, question, "full", answer_tokens, style) for question in questions]
    with base.model.disable_adapter():
        plain = replace(base, model=base.model.get_base_model())
        splits = [exact(plain, prompt) for prompt in prompts]
    return compare(splits, [learned(base, split) for split in splits]).dropna(subset="value")


def exact(base: BaseModel, layout: Layout) -> list[Exact]:
    """Every layer's exact split of the attention to `layout`, in which the document stands (context "full").

    One forward pass under eager attention. ValueError for a model with an adapter on it, or no document tokens.
    """
    if isinstance(base.model, PeftModel):
        raise ValueError("the exact gate is the base model's own: give the base model without an adapter")
    if "document" not in layout.roles:
        raise ValueError("no token of the prompt comes from the document: make the layout with context 'full'")
    found: list[Exact] = []
    with at_rest(base.model), _eager(base.model), ExitStack() as hooks:
        decoder = base.model.get_decoder()
        for index, layer in enumerate(decoder.layers):
            _watch(hooks, layer.self_attn, index, layout, found)
        decoder(input_ids=torch.tensor([layout.ids], device=base.model.device), use_cache=False)
    return found


@contextmanager
def _eager(model) -> Iterator[None]:
    """While open, the attention weights are computed as such; then the implementation is what it was."""
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")
        yield
    finally:
        model.set_attn_implementation(before)


def _watch(hooks: ExitStack, attention, index: int, layout: Layout, found: list[Exact]) -> None:
    """Hooks that append the layer's split to `found` in a forward pass; `hooks` takes them off."""
    seen: dict[str, Tensor] = {}

    def keep(name: str):  # (1, tokens, heads * head_dim) -> (tokens, heads, head_dim)
        return lambda module, args, output: seen.update({name: output[0].unflatten(-1, (-1, attention.head_dim))})

    def split(module, args, output) -> None:
        found.append(_split(index, attention, layout, output[1][0], **seen))
        seen.clear()

    for handle in (
        attention.q_proj.register_forward_hook(keep("query")),
        attention.v_proj.register_forward_hook(keep("value")),
        attention.o_proj.register_forward_pre_hook(lambda module, args: keep("full")(module, args, args[0])),
        attention.register_forward_hook(split),
    ):
        hooks.callback(handle.remove)


def _split(index: int, attention, layout: Layout, weights: Tensor, query: Tensor, value: Tensor, full: Tensor) -> Exact:
    """`weights` (heads, tokens, keys), `value` (keys, key-value heads, head_dim), `query` and `full` of all tokens."""
    asked = [t for t, role in enumerate(layout.roles) if role in ("question", "answer")]
    document = torch.tensor([role == "document" for role in layout.roles], device=weights.device)
    weights = weights[:, asked].float().transpose(0, 1)  # (asked, heads, keys)
    value = value.float().repeat_interleave(full.shape[1] // value.shape[1], dim=1)  # (keys, heads, head_dim)
    norm = getattr(attention, "q_norm", None)
    query = query[asked] if norm is None else norm(query[asked])
    inside, memory = _part(weights[..., document], value[document])
    outside, rest = _part(weights[..., ~document], value[~document])
    tensors = query, full[asked], inside / (inside + outside), memory, rest
    return Exact(index, tuple(layout.roles[t] for t in asked), *(tensor.float().cpu() for tensor in tensors))


def _part(weights: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """(mass (tokens, heads), attention output restricted to these keys (tokens, heads, head_dim), 0 without mass)."""
    mass = weights.sum(-1)
    output = torch.einsum("qhk,khd->qhd", weights, value)
    return mass, torch.where(mass[..., None] > 0, output / mass[..., None], 0.0)


def learned(adapted: BaseModel, decomposed: Sequence[Exact]) -> Learned:
    """What the adapter's gate and memory say to those very queries, for each layer that has them; float32, on the CPU.

    ValueError where `adapted` has no Gated Memory.
    """
    memories = {layer.index: layer for layer in layers_of(adapted.model)}
    said: Learned = {}
    with at_rest(adapted.model):
        for split in decomposed:
            if split.layer in memories:
                layer = memories[split.layer]
                networks = layer.gated_memory[layer.active_adapters[0]]
                gate, memory = networks(split.query[None].to(networks.memory_in.device))
                said[split.layer] = gate[0, ..., 0].float().cpu(), memory[0].float().cpu()
    return said


def compare(decomposed: Sequence[Sequence[Exact]], recalled: Sequence[Learned]) -> pd.DataFrame:
    """How far the learned gate and memory are from the exact ones, over a document's questions.

    `decomposed` and `recalled` hold one element a question, from `exact` and `learned`. One row a layer that has a
    memory, role ("both", "question", "answer") and metric: columns layer, role, metric, unit, value. Tokens of all
    questions and heads are pooled. Errors are relative: sqrt(sum |x - y|^2 / sum |y|^2), 0 = exact. memory_* leave out
    tokens with g* = 0, where m* does not exist. output_error_* are of the attention output: (1 - g)a* + gm ("learned"),
    a* ("no_memory") and (1 - c)a* + u with the best c in 0..1 and vector u a head for these tokens ("constant"; fitted
    on what it is measured on). A correlation with a constant is NaN.
    """
    rows = []
    for layer in recalled[0]:
        asked = list(zip(decomposed, recalled, strict=True))
        splits = [next(split for split in question if split.layer == layer) for question, _ in asked]
        pooled = _pooled(splits, [said[layer] for _, said in asked])
        roles = np.array([role for split in splits for role in split.roles])
        for role in ("both", "question", "answer"):
            chosen = torch.from_numpy((roles == role) | (role == "both"))
            metrics = _metrics(**{name: tensor[chosen] for name, tensor in pooled.items()})
            rows += [(layer, role, name, UNITS.get(name, "relative error"), value) for name, value in metrics.items()]
    return pd.DataFrame(rows, columns=["layer", "role", "metric", "unit", "value"])


def _pooled(splits: Sequence[Exact], said: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """All questions' tokens one after another, float64; the learned gate is g, the learned memory m."""
    names = [field.name for field in fields(Exact) if field.name not in ("layer", "roles", "query")]
    pooled = {name: torch.cat([getattr(split, name) for split in splits]).double() for name in names}
    gates, memories = zip(*said, strict=True)
    return {**pooled, "g": torch.cat(gates).double(), "m": torch.cat(memories).double()}


def _metrics(full: Tensor, gate: Tensor, memory: Tensor, rest: Tensor, g: Tensor, m: Tensor) -> dict[str, float]:
    told = gate > 0
    mixed = (1 - g[..., None]) * rest + g[..., None] * m
    return {
        "gate_exact": gate.mean().item(),
        "gate_learned": g.mean().item(),
        "gate_spearman": _correlation(stats.spearmanr, g, gate),
        "gate_pearson": _correlation(stats.pearsonr, g, gate),
        "memory_cosine": torch.cosine_similarity(m[told], memory[told], dim=-1).mean().item(),
        "memory_error": _error(m[told], memory[told]),
        "output_error_learned": _error(mixed, full),
        "output_error_no_memory": _error(rest, full),
        "output_error_constant": _error(_best_constant(rest, full), full),
    }


def _correlation(measure, one: Tensor, other: Tensor) -> float:
    one, other = one.flatten().numpy(), other.flatten().numpy()
    constant = min(len(np.unique(one)), len(np.unique(other))) < 2
    return float("nan") if constant else float(measure(one, other).statistic)


def _error(given: Tensor, right: Tensor) -> float:
    return ((given - right).square().sum() / right.square().sum()).sqrt().item()


def _best_constant(rest: Tensor, full: Tensor) -> Tensor:
    """(1 - c)a* + u with the c in 0..1 and the u that minimise each head's squared error; closed form."""
    a, f = rest - rest.mean(0), full - full.mean(0)  # the best u makes up for the means, whatever c is
    size = a.square().sum((0, 2))  # (heads,)
    share = torch.where(size > 0, (a * f).sum((0, 2)) / size, 0.0).clamp(0, 1)  # 1 - c
    return share[:, None] * a + full.mean(0)
