"""Where the gates of Gated Memory open: every gate of every token, with where the token comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch

from liftlab.gated_layer import observed
from liftlab.models import BaseModel
from liftlab.probes.layout import PLACES, ROLES, Layout


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
