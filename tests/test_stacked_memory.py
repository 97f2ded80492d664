"""A stack stays within the memory that it was given."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from liftlab import adapters, stacked
from liftlab.examples import known_pairs
from liftlab.recipes import Recipe
from liftlab.stacked import Job
from liftlab.stacked_memory import Cost, measured
from liftlab.worlds import register

RECIPE = Recipe.preset("micro/lora", mixed_epochs=1, segment_tokens=60, offset_tokens=20)
GIB = 2**30


class Peak(TorchDispatchMode):
    """Bytes of the tensors that are alive at once, at most, among those made while open."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage):
        import weakref

        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen[storage] = weakref.finalize(storage, self._gone, size)
        self.now += size
        self.most = max(self.most, self.now)

    def _gone(self, size):
        self.now -= size


def jobs(count, recipe=RECIPE):
    made = [register(seed, 150, 0.2) for seed in range(400, 400 + count)]
    return [Job(document, recipe, known_pairs(document)) for document in made]


def used(base, given, gib):
    """Peak bytes of `stacked.lift`, and how many documents were in the largest stack."""
    documents = []
    original = stacked.train

    def noting(base, config, states, *others):
        documents.append(len(states))
        return original(base, config, states, *others)

    stacked.train = noting
    try:
        with Peak() as peak:
            stacked.lift(base, given, memory_gib=gib, progress=False)
    finally:
        stacked.train = original
    return peak.most, max(documents)


@pytest.mark.parametrize("recipe", [RECIPE, Recipe.preset("micro/gated_memory", mixed_epochs=1)],
                         ids=["lora", "gated memory"])  # fmt: skip
def test_training_stays_within_the_budget(tiny, recipe):
    given, sizes = jobs(6, recipe), []
    for gib in (0.008, 0.03, 1.0):
        peak, documents = used(tiny, given, gib)
        assert peak < gib * GIB
        sizes.append((documents, peak))
    assert sizes[0][0] < sizes[2][0] == 6
    assert sizes[0][1] < sizes[2][1]


def test_what_a_budget_allows_is_used(tiny):
    """The estimate is no more than a few times what is really needed."""
    peak, documents = used(tiny, jobs(6), 0.03)
    assert documents > 1
    assert peak > 0.03 * GIB / 5


def test_the_weights_do_not_depend_on_the_budget(tiny):
    given = jobs(4)
    for one, other in zip(
        *(stacked.lift(tiny, given, memory_gib=g, progress=False) for g in (0.008, 1.0)), strict=True
    ):
        for key, weight in one.state.items():
            assert float((weight - other.state[key]).norm() / weight.norm()) < 1e-4


def test_a_budget_that_one_document_exceeds_is_refused_before_training(tiny):
    with pytest.raises(ValueError, match=r"memory_gib = 0\.0001: one document alone needs .* GiB"):
        stacked.lift(tiny, jobs(1), memory_gib=1e-4, progress=False)


def test_room_is_shared_out():
    cost = Cost(adapter=100, token=10, head=1000)
    assert cost.room(1000 + 4 * (100 + 50 * 10), 8, example=20, step=50) == (4, 50)
    assert cost.room(1000 + 2 * (100 + 70 * 10), 2, example=20, step=50) == (2, 70)
    assert cost.room(1000 + 100 + 20 * 10, 8, example=20, step=50) == (1, 20)
    with pytest.raises(ValueError, match="give more memory"):
        cost.room(1000 + 100 + 19 * 10, 8, example=20, step=50)


def test_checkpointing_keeps_less_of_a_token(tiny):
    config = adapters.config(RECIPE)
    assert measured(tiny, config, True).token < measured(tiny, config, False).token
    larger = measured(tiny, adapters.config(replace(RECIPE, rank=16)), False)
    assert larger.adapter == 2 * measured(tiny, config, False).adapter
