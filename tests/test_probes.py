"""Laws of all probes, whichever there are: adding one puts it under these tests by itself."""

import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from liftlab import adapters, probes, records
from liftlab.gated_memory import GatedMemoryConfig
from liftlab.recipes import Recipe
from liftlab.studies.registers import ask_facts, register_of

NEED_GATES = {"gates", "oracle_gate"}


@pytest.fixture
def asked(tiny):
    document = register_of(tiny, 0, 0.9, 0.1)
    return document, ask_facts(document, 6, 0)


@pytest.fixture
def gated(tiny):
    """The tiny model with Gated Memory on it, not yet trained."""
    torch.manual_seed(1)
    with adapters.attached(tiny.model, GatedMemoryConfig(task_type="CAUSAL_LM", init="per_head")) as model:
        yield replace(tiny, model=model)


def state(model):
    """All that a probe could leave behind: weights, gradients, modes, hooks, implementation, random numbers."""
    hooks = [(n, list(m._forward_hooks), list(m._forward_pre_hooks)) for n, m in model.named_modules()]
    modes = [module.training for module in model.modules()]
    grads = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    weights = [weight.clone() for weight in model.state_dict().values()]
    attention = model.get_base_model().config._attn_implementation
    drawn = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
    return weights, (hooks, modes, grads, attention, drawn)


def test_probes_are_found_by_name():
    assert {"gates", "oracle_gate", "memorization", "in_context", "conflict", "evidence_position"} <= set(
        probes.names()
    )
    assert probes.find("gates").__module__ == "liftlab.probes.gates"
    with pytest.raises(ValueError, match="probe 'gate' is unknown: choose one of .*gates"):
        probes.find("gate")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", probes.names())
def test_a_probe_says_the_same_twice_and_leaves_no_trace(name, training, gated, asked):
    gated.model.train(training)
    weights, rest = state(gated.model)
    first, second = (probes.find(name)(gated, *asked) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    after, rest_after = state(gated.model)
    assert all(torch.equal(a, b) for a, b in zip(weights, after, strict=True)) and rest == rest_after


@pytest.mark.parametrize("name", probes.names())
def test_a_probe_s_rows_are_records_once_they_say_what_they_are_of(name, gated, asked):
    rows = probes.find(name)(gated, *asked)
    assert len(rows) and rows["value"].map(np.isfinite).all()
    whole = rows.assign(study="s", base_model="tiny", document="d", document_tokens=1, seed=0, condition="c")
    assert len(records.check(whole)) == len(rows)


@pytest.mark.parametrize("name", probes.names())
def test_a_probe_that_fails_leaves_no_trace_either(name, gated, asked, monkeypatch):
    weights, rest = state(gated.model)

    def stop(*args, **kwargs):
        raise RuntimeError("stop")

    monkeypatch.setattr(gated.model.get_base_model().model.layers[1].mlp, "forward", stop)
    with pytest.raises(RuntimeError, match="stop"):
        probes.find(name)(gated, *asked)
    monkeypatch.undo()
    after, rest_after = state(gated.model)
    assert all(torch.equal(a, b) for a, b in zip(weights, after, strict=True)) and rest == rest_after


@pytest.mark.parametrize("name", sorted(NEED_GATES))
def test_a_model_without_gates_is_refused_by_what_it_holds(name, tiny, asked):
    lora, said = adapters.config(Recipe(adapter="lora")), r"no gates \(it holds LORA\): lift with adapter gated_memory"
    with adapters.attached(tiny.model, lora) as model, pytest.raises(ValueError, match=said):
        probes.find(name)(replace(tiny, model=model), *asked)
    with pytest.raises(ValueError, match="it holds no adapter"):
        probes.find(name)(tiny, *asked)


@pytest.mark.parametrize("name", sorted(set(probes.names()) - NEED_GATES))
def test_the_other_probes_take_a_base_model_too(name, tiny, asked):
    assert len(probes.find(name)(tiny, *asked))
