"""A batch of examples as tensors on the model's device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from liftlab.batches import Batch
from liftlab.examples import IGNORED, Example
from liftlab.recipes import Recipe

SPARED_TOKENS = 80  # about what one more pass costs beside its tokens on a CPU, measured with micro


@dataclass(frozen=True)
class Encoded:
    """A right-padded batch with n scored tokens, row by row. Its tensors are on the device, its numbers are known here.

    `ids` (batch, tokens); `lengths` (batch,), without padding; `places` (n,): where in the flattened batch the hidden
    state stands that predicts each scored token; `labels` (n,); `weights` (n,), float32. `tokens` counts real tokens;
    `weight` sums `weights`.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    places: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    tokens: int
    weight: float

    @property
    def counts(self) -> torch.Tensor:
        """Whether a token is real, (batch, tokens): no padding."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]


def example_weight(example: Example, recipe: Recipe) -> float:
    """The weight of each of its scored tokens in the loss."""
    return recipe.pair_weight if example.kind == "pair" else 1.0


def passes(batch: Batch, device: torch.device) -> list[Batch]:
    """`batch`, or on a CPU, where time goes by tokens, parts of like length where cutting it spares much padding.

    A GPU reads hundreds of tokens in the time of one, so there a batch is one pass.
    """
    by_length = sorted(batch, key=lambda example: -len(example.ids))
    lengths = [len(example.ids) for example in by_length]
    spared = [(len(lengths) - at) * (lengths[0] - length) for at, length in enumerate(lengths)]  # by a cut before it
    if device.type != "cpu" or max(spared) < SPARED_TOKENS:
        return [batch]
    at = spared.index(max(spared))
    return [*passes(by_length[:at], device), *passes(by_length[at:], device)]


def encoded(batch: Batch, recipe: Recipe, pad: int, device: torch.device) -> Encoded:
    """`batch` on `device`; copied to a GPU without waiting for what the GPU is still at."""
    lengths = np.array([len(example.ids) for example in batch])
    shape = (len(batch), int(lengths.max()))
    ids, labels = np.full(shape, pad), np.full(shape, IGNORED)
    for row, example in enumerate(batch):
        ids[row, : lengths[row]], labels[row, : lengths[row]] = example.ids, example.labels
    rows, columns = np.nonzero(labels[:, 1:] != IGNORED)  # column c predicts the label at c + 1
    weights = np.array([example_weight(example, recipe) for example in batch], dtype=np.float32)[rows]
    arrays = (ids, lengths, rows * shape[1] + columns, labels[rows, columns + 1], weights)
    return Encoded(
        *(_placed(array, device) for array in arrays), int(lengths.sum()), float(weights.sum(dtype=np.float64))
    )


def _placed(array: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
