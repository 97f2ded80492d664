"""What the steps of a lift did, and who watches them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from liftlab.lifted import Step
from liftlab.models import BaseModel
from liftlab.recipes import Recipe

Watch = Callable[[int, BaseModel], None]
READ_STEPS = 64  # losses stay on the device, unread, for at most so many steps


class History:
    """The steps of one lift. Their losses stay on the device until `read`: nothing else in training waits for it."""

    def __init__(self, base: BaseModel, recipe: Recipe, watch: Watch | None, every: int) -> None:
        self.steps: list[Step] = []  # those whose losses have been read
        self.done = 0
        self._unread: list[tuple[int, torch.Tensor, float, int]] = []
        self._base, self._recipe, self._watch, self._every = base, recipe, watch, every
        self._began, self._tokens = time.perf_counter(), 0

    def add(self, epoch: int, loss: torch.Tensor, tokens: int) -> None:
        """One more step, its loss in nats (0-dimensional, on the device) and the tokens it read."""
        self.done += 1
        self._tokens += tokens
        self._unread.append((epoch, loss, time.perf_counter() - self._began, self._tokens))
        if len(self._unread) >= READ_STEPS:
            self.read()

    def read(self) -> None:
        """Put every step into `steps`. FloatingPointError for a loss that is no number."""
        unread, self._unread = self._unread, []
        losses = torch.stack([loss for _, loss, _, _ in unread]).tolist() if unread else []
        for (epoch, _, seconds, tokens), loss in zip(unread, losses, strict=True):
            step = Step(len(self.steps) + 1, epoch, loss, seconds, tokens)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} at step {step.step}: "
                    f"lower learning_rate (it is {self._recipe.learning_rate:g})"
                )
            self.steps.append(step)
        if unread:  # the device has done the last of them only now
            self.steps[-1] = replace(self.steps[-1], seconds=time.perf_counter() - self._began)

    @property
    def due(self) -> bool:
        """Whether `watch` is to see the model now."""
        return self._watch is not None and self.done % self._every == 0

    def show(self, model) -> float:
        """Call `watch`, off the clock; the seconds that it took. The model trains on afterwards."""
        self.read()
        began = time.perf_counter()
        model.eval()
        with torch.no_grad():
            self._watch(self.done, replace(self._base, model=model))
        model.train()
        seconds = time.perf_counter() - began
        self.pause(seconds)
        return seconds

    def pause(self, seconds: float) -> None:
        """Take `seconds` off the clock."""
        self._began += seconds
