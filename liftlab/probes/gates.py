"""Where the gates of Gated Memory open: every gate of every token, with where the token comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch

from liftlab.documents import Document, Question
from liftlab.gated_layer import observed
from liftlab.models import BaseModel
from liftlab.probes.layout import PLACES, ROLES, Layout, layout
from liftlab.prompts import PLAIN, PromptStyle

SPLIT = ["role", "evidence", "evidence_place"]


def gates(base: BaseModel, layouts: Sequence[Layout]) -> pd.DataFrame:
    """One row a layout, layer, head and token, in that order; only layers that have a memory.

    Columns: prompt (index of the layout), layer, head, position (of the token in the window), role, evidence,
    evidence_place, gate (0..1). `base` is a base model with Gated Memory on it; ValueError where it has no gates, its
    adapter is switched off, or there is no layout.
    """
    if not layouts:
        raise ValueError("no layout was given: gates are probed on at least one prompt")
    frames = [_frame(prompt, layout, *_gates(base, layout)) for prompt, layout in enumerate(layouts)]
    return pd.concat(frames, ignore_index=True)


def probe(
    base: BaseModel,
    document: Document,
    questions: Sequence[Question],
    *,
    context: str = "none",
    answer_tokens: int = 8,
    style: PromptStyle = PLAIN,
) -> pd.DataFrame:
    """Metric "gate" (0..1): the mean over the tokens of one role, evidence and evidence_place, in all prompts.

    One row a layer and head, and one over all of them (layer and head empty); column tokens = how many.
    ValueError where `base` has no gates or a prompt does not fit the window.
    """
    prompts = [whole(base, document, question, context, answer_tokens, style) for question in questions]
    heads = gates(base, prompts).groupby([*SPLIT, "layer", "head"], as_index=False, observed=True)["gate"]
    heads = heads.agg(value="mean", tokens="size")
    every = heads.groupby(SPLIT, as_index=False, observed=True).agg(value=("value", "mean"), tokens=("tokens", "first"))
    rows = pd.concat([heads, every.assign(layer=np.nan, head=np.nan)], ignore_index=True)
    return rows.astype({"role": str, "evidence_place": str}).assign(metric="gate", unit="gate")


def whole(
    base: BaseModel, document: Document, question: Question, context: str, answer_tokens: int, style: PromptStyle
) -> Layout:
    """The layout of one prompt; ValueError where the document does not fit the window (context "full")."""
    prompt = layout(base.tokenizer, document, question, context, base.window, answer_tokens, style)
    if prompt is None:
        raise ValueError(
            f"document {document.name!r} and a question do not fit the window of {base.window} tokens: "
            "take a shorter document or a model with a larger window"
        )
    return prompt


@contextmanager
def at_rest(model: torch.nn.Module) -> Iterator[None]:
    """While open, no gradient and no dropout; every module's training flag is as it was afterwards."""
    flags = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in flags.items():
            module.training = training


def _gates(base: BaseModel, layout: Layout) -> tuple[list[int], np.ndarray]:
    """The layers with a memory, and their gates (layers, heads, tokens) in one forward pass."""
    seen: dict[int, torch.Tensor] = {}

    def keep(index, query, attention, gate, memory):
        seen[index] = gate[0, :, :, 0].T.float().cpu()  # (heads, tokens)

    with observed(base.model, keep), at_rest(base.model):
        ids = torch.tensor([layout.ids], device=base.model.device)
        base.model.get_base_model().get_decoder()(input_ids=ids, use_cache=False)  # no logits: they are not asked
    if not seen:
        raise ValueError("the model's adapter is switched off, so it has no gates: probe it outside disable_adapter()")
    return list(seen), torch.stack(list(seen.values())).numpy()


def _frame(prompt: int, layout: Layout, layers: list[int], gate: np.ndarray) -> pd.DataFrame:
    _, heads, tokens = gate.shape
    roles = pd.Categorical.from_codes([ROLES.index(role) for role in layout.roles], list(ROLES))
    every = np.tile(np.arange(tokens), len(layers) * heads)
    return pd.DataFrame(
        {
            "prompt": prompt,
            "layer": np.repeat(layers, heads * tokens),
            "head": np.tile(np.repeat(np.arange(heads), tokens), len(layers)),
            "position": every,
            "role": roles[every],
            "evidence": np.array(layout.evidence)[every],
            "evidence_place": pd.Categorical.from_codes(
                np.full(len(every), PLACES.index(layout.evidence_place)), list(PLACES)
            ),
            "gate": gate.reshape(-1),
        }
    )
