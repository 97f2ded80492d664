"""Training examples in batches: grouped by length in random order, or in their own order as they arrive."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from liftlab.examples import Example
from liftlab.recipes import Recipe

Batch = list[Example]


def epochs(cut: Sequence[Example], answered: Iterable[Example], recipe: Recipe) -> Iterator[Iterable[Batch]]:
    """The batches of every epoch that has any: segments alone, then segments and pairs mixed.

    With segment_by_segment an epoch is one segment, once: all epochs of the first, then of the second, and so on.
    `answered` that is no list is read while the first mixed epoch is taken; the later epochs are made only after that.
    """
    rng = random.Random(f"order {recipe.seed}")
    for part in [[example] for example in cut] if recipe.segment_by_segment else [cut]:
        for _ in range(recipe.segment_epochs if part else 0):
            yield by_length(part, recipe, rng)
    mixed: list[Example] = []
    arriving = _noted(chain(cut if recipe.segments_in_mixed else (), answered), mixed)
    ordered = recipe.mixed_epochs and recipe.first_epoch_in_order
    if ordered and not isinstance(answered, list):
        yield in_order(arriving, recipe)
    else:
        mixed = list(arriving)
        if ordered and mixed:
            yield list(in_order(mixed, recipe))
    for _ in range(recipe.mixed_epochs - bool(ordered) if mixed else 0):
        yield by_length(mixed, recipe, rng)


def _noted(examples: Iterable[Example], into: list[Example]) -> Iterator[Example]:
    for example in examples:
        into.append(example)
        yield example


def by_length(examples: Sequence[Example], recipe: Recipe, rng: random.Random) -> list[Batch]:
    """Batches in random order, each of examples of like length, within the recipe's token and example budgets."""
    shuffled = rng.sample(examples, len(examples))
    batches = list(in_order(sorted(shuffled, key=lambda e: -len(e.ids)), recipe))
    return rng.sample(batches, len(batches))


def in_order(examples: Iterable[Example], recipe: Recipe) -> Iterator[Batch]:
    """Consecutive examples in batches within the recipe's token and example budgets.

    The order alone decides which examples share a batch. A batch comes as soon as no other example could join it.
    """
    batch: Batch = []
    longest = 0  # tokens
    for example in examples:
        longest = max(longest, len(example.ids))
        if batch and not _has_room(batch, longest, recipe):
            yield batch
            batch, longest = [], len(example.ids)
        batch.append(example)
        if not _has_room(batch, longest, recipe):
            yield batch
            batch, longest = [], 0
    if batch:
        yield batch


def _has_room(batch: Batch, longest: int, recipe: Recipe) -> bool:
    """Whether one more example may join a batch whose longest example then has `longest` tokens."""
    more = len(batch) + 1
    return more * longest <= recipe.batch_tokens and (recipe.batch_examples is None or more <= recipe.batch_examples)
