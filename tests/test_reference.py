"""The reference loop does the same work as `lifting`, the other way: loaded anew, checkpointed, all logits."""

import copy
import gc
import logging
import os
import random
import tempfile
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from liftlab import lifting, models, reference
from liftlab.examples import known_pairs
from liftlab.models import BaseModel
from liftlab.recipes import Recipe
from liftlab.worlds import register

DOCUMENT = register(0, 120)
PAIRS = known_pairs(DOCUMENT)[:18]
AUTHORS = {"batch_examples": 4, "batch_tokens": 100_000, "first_epoch_in_order": True, "segments_in_mixed": False}
ONCE = Recipe.preset("micro/lora", **AUTHORS, mixed_epochs=1)
GATED = Recipe.preset("micro/gated_memory", **AUTHORS, mixed_epochs=1)


class Loads:
    """Loads a base model by copying it, and counts."""

    def __init__(self, base: BaseModel) -> None:
        self.base, self.calls, self.seen = base, 0, []

    def __call__(self) -> BaseModel:
        self.calls += 1
        fresh = replace(self.base, model=copy.deepcopy(self.base.model))
        self.seen.append(weakref.ref(fresh.model))
        return fresh


@pytest.fixture(scope="module", autouse=True)
def few_objects_to_search():
    """The Trainer collects garbage at every start: spare it the thousands of objects that were there before."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def micro():
    return models.load("micro")


@pytest.mark.parametrize("recipe", [ONCE, GATED], ids=["lora", "gated_memory"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"segments_in_mixed": True, "segment_tokens": 48, "offset_tokens": 18},
        {"warmup_steps": 3, "weight_decay": 0.1, "clip_norm": 0.01, "betas": (0.8, 0.9), "epsilon": 1e-3},
    ],
    ids=["pairs", "with segments", "other settings"],
)
def test_it_is_the_same_work(tiny, recipe, changes):
    """In a given order every step's loss and the weights in the end are those of `lifting.lift`."""
    same_work(tiny, replace(recipe, **changes))


@pytest.mark.parametrize("recipe", [ONCE, GATED], ids=["lora", "gated_memory"])
def test_it_is_the_same_work_on_micro(micro, recipe):
    """In float64: in float32 Adam makes whole steps of what rounding leaves of gradients that are all but 0."""
    same_work(replace(micro, model=copy.deepcopy(micro.model).double()), recipe)


def same_work(base, recipe):
    there, _ = reference.lift(Loads(base), DOCUMENT, recipe, PAIRS)
    here = lifting.lift(base, DOCUMENT, recipe, PAIRS, progress=False)
    assert len(here.history) > 4
    assert [s.loss for s in there.history] == pytest.approx([s.loss for s in here.history], rel=1e-5)
    assert [(s.step, s.epoch, s.tokens) for s in there.history] == [(s.step, s.epoch, s.tokens) for s in here.history]
    assert there.state.keys() == here.state.keys()
    for key, weight in here.state.items():
        error = float((there.state[key] - weight).norm() / weight.norm())
        assert error < 1e-4, (key, error)


def test_every_epoch_takes_every_example_once_in_as_many_steps(tiny, monkeypatch):
    """The first epoch in the given order, the others shuffled; steps, epochs and tokens are those of `lifting.lift`."""
    batches, plain = [], reference._padded
    monkeypatch.setattr(reference, "_padded", lambda batch, pad: batches.append(batch) or plain(batch, pad))
    recipe = replace(ONCE, mixed_epochs=3)
    there, _ = reference.lift(Loads(tiny), DOCUMENT, recipe, PAIRS)
    given = lifting.make_examples(tiny, DOCUMENT, recipe, PAIRS)[1]
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 2] * 3
    first, second, third = (sum(batches[start : start + 5], []) for start in (0, 5, 10))
    assert first == given and second != given and third not in (given, second)
    assert sorted(second, key=repr) == sorted(third, key=repr) == sorted(given, key=repr)
    here = lifting.lift(tiny, DOCUMENT, recipe, PAIRS, progress=False)
    assert [(s.step, s.epoch) for s in there.history] == [(s.step, s.epoch) for s in here.history]
    assert [s.tokens for s in there.history[4::5]] == [s.tokens for s in here.history[4::5]]


def test_without_a_first_epoch_in_order_the_first_is_shuffled_by_seed(tiny):
    recipe = replace(ONCE, first_epoch_in_order=False, learning_rate=1e-9)
    (one, _), (same, _), (other, _) = (
        reference.lift(Loads(tiny), DOCUMENT, replace(recipe, seed=seed), PAIRS) for seed in (0, 0, 1)
    )
    given = [len(e.ids) for e in lifting.make_examples(tiny, DOCUMENT, recipe, PAIRS)[1]]
    in_order = [sum(given[: start + 4]) for start in range(0, len(given), 4)]
    tokens = [[step.tokens for step in lifted.history] for lifted in (one, same, other)]
    assert tokens[0] == tokens[1] and tokens[2] != tokens[0] and in_order not in tokens
    assert all(torch.equal(weight, same.state[key]) for key, weight in one.state.items())


def test_the_model_is_loaded_anew_for_every_document_and_gone_afterwards(tiny):
    loads = Loads(tiny)
    gc.disable()
    try:
        for done in (1, 2):
            reference.lift(loads, DOCUMENT, ONCE, PAIRS)
            assert loads.calls == done
            assert [model() for model in loads.seen] == [None] * done
    finally:
        gc.enable()


def test_activations_are_checkpointed_and_the_head_gives_all_logits(tiny):
    """Each decoder layer runs twice a step, and the head sees every position of a padded batch."""
    runs, inputs, outputs = [], [], []

    def load():
        fresh = Loads(tiny)()
        for layer in fresh.model.model.layers:
            layer.mlp.register_forward_pre_hook(lambda *_: runs.append(1))
        fresh.model.get_input_embeddings().register_forward_hook(lambda m, a, out: inputs.append(out.shape[:2]))
        fresh.model.lm_head.register_forward_hook(lambda m, a, out: outputs.append(out.shape))
        return fresh

    lifted, _ = reference.lift(load, DOCUMENT, ONCE, PAIRS)
    steps, layers = len(lifted.history), tiny.model.config.num_hidden_layers
    assert len(runs) == 2 * layers * steps
    given = lifting.make_examples(tiny, DOCUMENT, ONCE, PAIRS)[1]
    longest = [max(len(e.ids) for e in given[start : start + 4]) for start in range(0, len(given), 4)]
    assert inputs == [(min(4, len(given) - 4 * step), longest[step]) for step in range(steps)]
    assert outputs == [(*shape, len(tiny.tokenizer)) for shape in inputs]


def test_seconds_are_those_of_loading_and_of_all_the_rest(tiny, monkeypatch):
    """Of a clock that ticks by itself: before loading, after it, and when the weights are on the CPU."""
    ticks = iter([100.0, 107.0, 130.0])
    monkeypatch.setattr(reference, "_clock", lambda: next(ticks))
    lifted, seconds = reference.lift(Loads(tiny), DOCUMENT, ONCE, PAIRS)
    assert seconds == reference.Seconds(load=7.0, training=23.0)
    stated = [step.seconds for step in lifted.history]
    assert stated[0] > 0 and stated == sorted(stated)


def test_what_it_leaves_is_an_adapter_for_the_base_model(tiny, tmp_path):
    lifted, _ = reference.lift(Loads(tiny), DOCUMENT, ONCE, PAIRS)
    assert (lifted.document, lifted.recipe, lifted.base) == (DOCUMENT, ONCE, tiny.provenance)
    lifted.save(tmp_path / "kept")
    ids = torch.arange(6, 30)[None]
    before = tiny.model(input_ids=ids).logits
    with lifted.on(tiny) as on, torch.no_grad():
        assert not torch.allclose(on.model(input_ids=ids).logits, before, atol=1e-4)


def states():
    """What the Trainer might change of the process, as values that can be compared."""
    python, numpy = random.getstate(), np.random.get_state()
    return {
        "generators": (python, numpy[1].tolist(), numpy[2:], torch.get_rng_state().tolist()),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "gradients": torch.is_grad_enabled(),
        "precision": (torch.get_default_dtype(), torch.get_float32_matmul_precision()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "environment": dict(os.environ),
        "verbosity": (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()),
        "logging": (logging.getLogger().level, logging.getLogger("transformers").level),
    }


def test_it_is_silent_and_leaves_nothing_behind(tiny, tmp_path, monkeypatch, capfd, caplog):
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    before = states()
    reference.lift(Loads(tiny), DOCUMENT, ONCE, PAIRS)
    assert states() == before
    assert capfd.readouterr() == ("", "") and not caplog.records
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here", "temporary"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": "pissa"}, "adapter = 'pissa': the reference loop covers only lora and gated_memory"),
        ({"adapter": "full"}, "adapter = 'full'"),
        ({"step": "epoch"}, "step = 'epoch': the reference loop covers only batch"),
        ({"segment_epochs": 1}, "segment_epochs = 1: the reference loop covers only 0"),
        ({"pair_weight": 2.0}, "pair_weight = 2.0: the reference loop covers only 1"),
        ({"adapter": "gated_memory", "gate_penalty": 0.1}, "gate_penalty = 0.1"),
        ({"batch_examples": None}, "batch_examples = None: the reference loop needs a number"),
    ],
)
def test_a_recipe_it_does_not_cover_is_refused_before_a_model_is_loaded(tiny, changes, message):
    loads = Loads(tiny)
    with pytest.raises(ValueError, match=message):
        reference.lift(loads, DOCUMENT, replace(ONCE, **changes), PAIRS)
    assert loads.calls == 0


def test_pairs_that_arrive_are_refused(tiny):
    with pytest.raises(ValueError, match="cannot train on pairs as they arrive: give them as a list"):
        reference.lift(Loads(tiny), DOCUMENT, ONCE, iter(PAIRS))


def test_a_token_budget_that_would_change_the_batches_is_refused(tiny):
    """`lifting` keeps to batch_tokens, the reference loop cannot: where it bites the steps would not be the same."""
    longest = max(len(e.ids) for e in lifting.make_examples(tiny, DOCUMENT, ONCE, PAIRS)[1])
    reference.lift(Loads(tiny), DOCUMENT, replace(ONCE, batch_tokens=4 * longest), PAIRS)
    with pytest.raises(ValueError, match=f"up to {4 * longest} padded tokens: make batch_tokens at least that"):
        reference.lift(Loads(tiny), DOCUMENT, replace(ONCE, batch_tokens=4 * longest - 1), PAIRS)


def test_nothing_to_train_on_is_an_error(tiny):
    with pytest.raises(ValueError, match="nothing to train on"):
        reference.lift(Loads(tiny), DOCUMENT, ONCE)


def test_a_loss_that_is_no_number_is_an_error_and_leaves_nothing_behind(tiny):
    before = states()
    with pytest.raises(FloatingPointError, match="at step .*lower learning_rate"):
        reference.lift(Loads(tiny), DOCUMENT, replace(ONCE, learning_rate=1e30, mixed_epochs=2), PAIRS)
    assert states() == before


def test_a_model_where_the_trainer_would_not_train_is_refused(tiny):
    elsewhere = replace(tiny, model=copy.deepcopy(tiny.model).to("meta"))
    with pytest.raises(ValueError, match="and tiny is on meta: load it on"):
        reference.lift(lambda: elsewhere, DOCUMENT, ONCE, PAIRS)
