"""The ways to lift the same documents, timed: the authors' loop, liftlab's one by one, and many at once."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import joblib
import torch

from liftlab import lifting, machine, reference, stacked, weights
from liftlab.documents import Document
from liftlab.examples import Pair
from liftlab.lifted import Step
from liftlab.models import BaseModel
from liftlab.recipes import Recipe

Load = Callable[[], BaseModel]
Work = Sequence[tuple[Document, list[Pair]]]  # each document with the pairs that it is lifted with
History = tuple[Step, ...]


@dataclass(frozen=True)
class Way:
    """A way to lift: `name` is reference, fast, stacked or processes; the first `documents` documents.

    `at_once` are stacked; in way processes by as many processes as there are cores, each its even share.
    """

    name: str
    at_once: int
    documents: int

    @property
    def label(self) -> str:
        if self.name in ("reference", "fast"):
            return self.name
        return f"stacked, {self.at_once} at once" + (", a process a core" if self.name == "processes" else "")


@dataclass(frozen=True)
class Outcome:
    """What lifting took: seconds over all documents, each document's history, GiB at the peak (None on a CPU)."""

    load: float
    training: float
    histories: tuple[History, ...]
    peak: float | None


def reloading(base: BaseModel) -> Load:
    """Loads the weights of `base` anew and does nothing more: no checksums, the same tokenizer.

    Random weights are drawn anew. `base` itself need not be kept.
    """
    config, dtype, device = deepcopy(base.model.config), base.model.dtype, base.model.device
    directory, emptied = Path(base.model.name_or_path), replace(base, model=None)

    def load() -> BaseModel:
        if emptied.provenance["random_weights"]:
            model = weights.at_random(deepcopy(config), emptied.tokenizer, dtype, device)
        else:
            model = weights.read(directory, deepcopy(config), dtype, device, four_bit=False)
        return replace(emptied, model=model.eval().requires_grad_(False))

    return load


def lift_all(way: Way, load: Load, work: Work, recipe: Recipe, memory_gib: float) -> Outcome:
    """Lift every document of `work`. The authors' loop loads the base model for each, the other ways once."""
    gc.collect()  # what the way before left
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if way.name == "reference":
        loading, training, histories = _reference(load, work, recipe)
    elif way.name == "processes":
        loading, training, histories = _in_processes(way, load, work, recipe, memory_gib)
    else:
        loading, training, histories = _liftlab(way, load, work, recipe, memory_gib)
    return Outcome(loading, training, tuple(histories), torch.cuda.max_memory_allocated() / 2**30 if cuda else None)


def _reference(load: Load, work: Work, recipe: Recipe) -> tuple[float, float, list[History]]:
    histories, loading, training = [], 0.0, 0.0
    for document, pairs in work:
        lifted, seconds = reference.lift(load, document, recipe, pairs)
        histories.append(lifted.history)
        loading, training = loading + seconds.load, training + seconds.training
    return loading, training, histories


def _liftlab(way: Way, load: Load, work: Work, recipe: Recipe, memory_gib: float) -> tuple[float, float, list[History]]:
    began = time.perf_counter()
    base = load()
    loaded = _now(base)
    histories = []  # the adapters are not kept
    for start in range(0, len(work), way.at_once):
        group = work[start : start + way.at_once]
        if way.name == "fast":
            lifted = [lifting.lift(base, document, recipe, pairs, progress=False) for document, pairs in group]
        else:
            jobs = [stacked.Job(document, recipe, pairs) for document, pairs in group]
            lifted = stacked.lift(base, jobs, memory_gib=memory_gib, progress=False)
        histories += [one.history for one in lifted]
    return loaded - began, _now(base) - loaded, histories


def _in_processes(
    way: Way, load: Load, work: Work, recipe: Recipe, memory_gib: float
) -> tuple[float, float, list[History]]:
    """As `_liftlab`, in processes with a thread and a base model each; from the first call on they are there."""
    began, count = time.perf_counter(), joblib.cpu_count()
    share = Way("stacked", -(-way.at_once // count), way.documents)
    with joblib.parallel_config("loky", n_jobs=count, inner_max_num_threads=1):
        parts = [work[place::count] for place in range(count)]
        lift = joblib.delayed(_liftlab)
        found = joblib.Parallel()(lift(share, load, part, recipe, memory_gib / count) for part in parts if part)
    seconds = time.perf_counter() - began
    loading = max(taken for taken, _, _ in found)
    histories = [found[place % count][2][place // count] for place in range(len(work))]
    return loading, seconds - loading, histories


def _now(base: BaseModel) -> float:
    """Seconds, when the base model's device has done all that it was given to do."""
    machine.wait(base.model.device)
    return time.perf_counter()


def check_same_work(outcomes: Mapping[Way, Outcome]) -> None:
    """ValueError where two ways gave a document unlike numbers of steps or tokens."""
    done = {way: [(h[-1].step, h[-1].tokens) for h in outcome.histories] for way, outcome in outcomes.items()}
    fast = next(taken for way, taken in done.items() if way.name == "fast")
    for way, taken in done.items():
        for number, (ours, theirs) in enumerate(zip(fast, taken, strict=False), start=1):
            if ours != theirs:
                raise ValueError(
                    f"document {number} takes {ours[0]} steps over {ours[1]} tokens in way fast, {theirs[0]} over "
                    f"{theirs[1]} in way {way.label}, so their times cannot be compared: raise batch_tokens until "
                    "batch_examples alone bounds a batch"
                )
