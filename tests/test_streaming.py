"""Pairs made ahead come in the same order, sooner, and give the same weights; no thread is left behind."""

import threading
import time
from dataclasses import replace

import pytest
import torch
from tqdm import TMonitor

from liftlab import lifting
from liftlab.batches import in_order
from liftlab.examples import Example, known_pairs
from liftlab.lifting import lift, make_examples
from liftlab.recipes import Recipe
from liftlab.streaming import ahead
from liftlab.worlds import register

DOCUMENT = register(0, 120)
STREAMED = Recipe.preset("2502.14644v4/lora/quality", rank=4, mixed_epochs=3, style="plain", learning_rate=1e-2)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if not isinstance(thread, TMonitor)]  # tqdm starts one, once a process


def until(holds, seconds=5.0):
    """Whether `holds()` comes true in time."""
    end = time.perf_counter() + seconds
    while not holds() and time.perf_counter() < end:
        time.sleep(0.005)
    return holds()


@pytest.mark.parametrize("buffer", [1, 3, 1000])
@pytest.mark.parametrize("items", [[], [None], range(50), "abc"], ids=["none", "null", "many", "text"])
def test_every_item_comes_once_in_order_and_then_no_more(items, buffer):
    for given in (items, iter(items)):
        with ahead(given, buffer) as arriving:
            assert list(arriving) == list(items)
            assert list(arriving) == []


def test_items_are_made_while_the_reader_is_busy_but_never_more_than_the_buffer_ahead():
    made = []

    def items():
        for number in range(10):
            made.append(number)
            yield number

    with ahead(items(), buffer=3) as arriving:
        assert until(lambda: made == [0, 1, 2])
        time.sleep(0.05)
        assert made == [0, 1, 2]
        assert next(arriving) == 0 and until(lambda: made == [0, 1, 2, 3])
        assert list(arriving) == list(range(1, 10))


def test_an_error_reaches_the_reader_after_the_items_before_it():
    def items():
        yield 1
        raise ValueError("the generator broke")

    with ahead(items()) as arriving:
        assert next(arriving) == 1
        with pytest.raises(ValueError, match="the generator broke"):
            next(arriving)
        assert list(arriving) == []


@pytest.mark.parametrize("buffer", [1, 100])
def test_leaving_early_ends_the_thread_and_closes_the_generator(buffer):
    closed = []

    def items():
        try:
            yield from range(10**9)
        finally:
            closed.append(True)

    with pytest.raises(KeyError), ahead(items(), buffer) as arriving:
        next(arriving)
        raise KeyError("the reader broke")
    assert closed == [True] and list(arriving) == []


def test_seconds_of_making_and_of_waiting_are_told_apart():
    """Making does not count waiting for room; a reader that is slower than the maker waits for the first item alone."""

    def items():
        for number in range(5):
            time.sleep(0.05)
            yield number

    with ahead(items(), buffer=1) as slow:
        for _ in slow:
            time.sleep(0.1)
    with ahead(items()) as fast:
        list(fast)
    assert slow.making_seconds == pytest.approx(0.25, abs=0.1) == fast.making_seconds
    assert fast.waited_seconds == pytest.approx(0.25, abs=0.1) and slow.waited_seconds < fast.waited_seconds


def test_a_buffer_without_room_is_refused():
    with pytest.raises(ValueError, match="buffer = 0: at least 1"), ahead([1], 0):
        pass


def example(length):
    return Example((7,) * length, (7,) * length, "pair")


@pytest.mark.parametrize("lengths", [[], [5], [3, 9, 2, 2, 2, 30, 1, 1, 1, 1, 1, 9, 9], [1] * 9])
def test_batches_in_order_are_consecutive_within_the_budget_and_come_as_soon_as_they_are_full(lengths):
    """Against the plain way: at each example, start a batch if the budget or the number would be exceeded."""
    recipe = replace(STREAMED, batch_tokens=18, batch_examples=4)
    examples, expected = [example(length) for length in lengths], []
    for new in examples:
        joined = [*(expected[-1] if expected else []), new]
        if expected and len(joined) <= 4 and max(len(e.ids) for e in joined) * len(joined) <= 18:
            expected[-1] = joined
        else:
            expected.append([new])
    taken, made = [], []
    for batch in in_order((taken.append(e) or e for e in examples), recipe):
        made.append(batch)
        full = len(batch) == 4 or max(len(e.ids) for e in batch) * (len(batch) + 1) > 18
        assert len(taken) == sum(map(len, made)) + (not full and len(taken) < len(examples))
    assert made == expected


def slowly(pairs):
    for number, pair in enumerate(pairs):
        time.sleep(0.01 * (number % 3))
        yield pair


@pytest.mark.parametrize("changes", [{}, {"batch_tokens": 60, "batch_examples": None}, {"warmup_steps": 9}], ids=str)
def test_pairs_that_arrive_give_bitwise_the_weights_of_a_list(tiny, changes):
    recipe, pairs = replace(STREAMED, **changes), known_pairs(DOCUMENT)
    listed = lift(tiny, DOCUMENT, recipe, pairs, progress=False)
    for slow, buffer in ((iter, 1), (slowly, 1), (slowly, 99)):
        with ahead(slow(pairs), buffer) as arriving:
            lifted = lift(tiny, DOCUMENT, recipe, arriving, progress=False)
        assert [(s.epoch, s.loss, s.tokens) for s in lifted.history] == [
            (s.epoch, s.loss, s.tokens) for s in listed.history
        ]
        assert all(torch.equal(value, lifted.state[key]) for key, value in listed.state.items())


def test_training_begins_before_the_last_pair_has_come_and_its_seconds_include_waiting(tiny):
    pairs, steps, seen = known_pairs(DOCUMENT)[:12], [], []

    def arriving():
        for pair in pairs:
            seen.append(len(steps))
            time.sleep(0.02)
            yield pair

    recipe = replace(STREAMED, mixed_epochs=1)
    lifted = lift(tiny, DOCUMENT, recipe, arriving(), watch=lambda step, _: steps.append(step), progress=False)
    assert seen == [1] * 4 + [2] * 4 + [3] * 4  # steps watched, step 0 among them: one more a batch of 4
    assert lifted.history[-1].seconds > 12 * 0.02


def test_only_the_first_mixed_epoch_is_in_the_given_order(tiny, monkeypatch):
    seen, plain = [], lifting._passes
    monkeypatch.setattr(lifting, "_passes", lambda model, batch, *how: seen.extend(batch) or plain(model, batch, *how))
    lift(tiny, DOCUMENT, replace(STREAMED, mixed_epochs=2), iter(known_pairs(DOCUMENT)), progress=False)
    given = make_examples(tiny, DOCUMENT, STREAMED, known_pairs(DOCUMENT))[1]
    assert seen[: len(given)] == given != seen[len(given) :]
    assert sorted(seen[len(given) :], key=repr) == sorted(given, key=repr)


def test_pairs_that_break_off_or_never_come_leave_the_base_as_it_was(tiny):
    def breaking():
        yield from known_pairs(DOCUMENT)[:9]
        raise OSError("no route to host")

    before = {name: weight.clone() for name, weight in tiny.model.state_dict().items()}
    for adapter in ("lora", "pissa", "full"):
        recipe = replace(STREAMED, adapter=adapter)
        with pytest.raises(OSError, match="no route to host"):
            lift(tiny, DOCUMENT, recipe, breaking(), progress=False)
        with pytest.raises(ValueError, match="nothing to train on"):
            lift(tiny, DOCUMENT, recipe, iter(()), progress=False)
        assert all(torch.equal(value, before[key]) for key, value in tiny.model.state_dict().items())
        assert not hasattr(tiny.model, "peft_config")


@pytest.mark.parametrize(
    "changes",
    [
        {"first_epoch_in_order": False},
        {"step": "epoch"},
        {"segment_epochs": 1},
        {"segments_in_mixed": True},
        {"schedule": "linear"},
    ],
    ids=str,
)
def test_a_recipe_that_cannot_stream_names_the_field_in_the_way_and_takes_no_pair(tiny, changes):
    pairs, (name,) = iter(known_pairs(DOCUMENT)), changes
    with pytest.raises(ValueError, match=f"recipe: {name} = .* give the pairs as a list"):
        lift(tiny, DOCUMENT, replace(STREAMED, **changes), pairs, progress=False)
    assert len(list(pairs)) == len(known_pairs(DOCUMENT))
