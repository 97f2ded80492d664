"""Averaged adapters against plain float64 arithmetic, and against peft's own combinations."""

from dataclasses import replace

import peft
import pytest
import torch

from liftlab import adapters, averaging
from liftlab.answering import answer
from liftlab.documents import joined
from liftlab.examples import known_pairs
from liftlab.lifted import Lifted
from liftlab.lifting import lift
from liftlab.recipes import Recipe
from liftlab.worlds import register

DOCUMENTS = [register(seed, 70) for seed in range(3)]
WHOLE = joined(DOCUMENTS, "three")
QUICK = Recipe.preset("micro/lora", rank=3, alpha=6, mixed_epochs=1, segments_in_mixed=False, batch_tokens=1024)


def lifts_on(base, **changes):
    return [lift(base, document, replace(QUICK, seed=seed, **changes), known_pairs(document), progress=False)
            for seed, document in enumerate(DOCUMENTS)]  # fmt: skip


def deltas(lifted):
    """alpha / rank * B A of every module, in float64."""
    scale = lifted.adapter.lora_alpha / lifted.adapter.r
    double = {key: value.double() for key, value in lifted.state.items()}
    return {key.replace("lora_A", "*"): scale * double[key.replace("lora_A", "lora_B")] @ value
            for key, value in double.items() if "lora_A" in key}  # fmt: skip


def assert_close(found, wanted):
    assert found.keys() == wanted.keys() and found
    for key, value in wanted.items():
        torch.testing.assert_close(found[key].double(), value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("adapter", ["lora", "pissa"])
@pytest.mark.parametrize("share", [None, 1.0, 0.25])
def test_the_delta_is_the_share_of_the_summed_deltas(tiny, adapter, share):
    lifts = lifts_on(tiny, adapter=adapter)
    one = averaging.of_deltas(lifts, WHOLE, share)
    each = [deltas(lifted) for lifted in lifts]
    assert_close(deltas(one), {key: (share or 1 / 3) * sum(of[key] for of in each) for key in each[0]})
    assert one.adapter.r == 3 * lifts[0].adapter.r and lifts[0].adapter.r == (3 if adapter == "lora" else 6)
    assert one.document is WHOLE and one.history == ()


@pytest.mark.parametrize("adapter", ["lora", "gated_memory", "full"])
def test_a_weight_is_the_mean_of_the_weights(tiny, adapter):
    lifts = lifts_on(tiny, adapter=adapter)
    one = averaging.of_weights(lifts, WHOLE)
    assert_close(one.state, {key: sum(of.state[key].double() for of in lifts) / 3 for key in lifts[0].state})
    assert one.adapter == lifts[0].adapter


def test_peft_s_cat_is_the_mean_of_the_deltas_and_its_linear_is_k_times_the_mean_weights(tiny):
    lifts = lifts_on(tiny)
    with adapters.attached(tiny.model, lifts[0].adapter, lifts[0].state) as model:
        for name, lifted in zip("bc", lifts[1:], strict=True):
            model.add_adapter(name, lifted.adapter)
            peft.set_peft_model_state_dict(model, lifted.state, adapter_name=name)
        for kind in ("cat", "linear"):
            model.add_weighted_adapter(["default", "b", "c"], [1 / 3] * 3, kind, combination_type=kind)
        combined = {kind: {f"{name}.*.weight": module.get_delta_weight(kind).double()
                           for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
                    for kind in ("cat", "linear")}  # fmt: skip
    of_weights = {key: 3 * value for key, value in deltas(averaging.of_weights(lifts, WHOLE)).items()}
    for kind, wanted in (("cat", deltas(averaging.of_deltas(lifts, WHOLE))), ("linear", of_weights)):
        assert combined[kind].keys() == wanted.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(combined[kind][key], value, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("combine", [averaging.of_deltas, averaging.of_weights])
@pytest.mark.parametrize("adapter", ["lora", "pissa"])
def test_the_mean_of_one_is_itself(tiny, combine, adapter):
    (one, *_) = lifts_on(tiny, adapter=adapter)
    same = combine([one], one.document)
    assert all(torch.equal(value, one.state[key]) for key, value in same.state.items())
    assert same.adapter == one.adapter and same.recipe == one.recipe


@pytest.mark.parametrize(("combine", "adapter"), [(averaging.of_deltas, "lora"), (averaging.of_deltas, "pissa"),
                                                  (averaging.of_weights, "gated_memory")])  # fmt: skip
def test_it_is_saved_read_and_asked_like_any_lifted_document(tiny, tmp_path, combine, adapter):
    one = combine(lifts_on(tiny, adapter=adapter), WHOLE)
    read = Lifted.load(one.save(tmp_path / "one"))
    said = []
    for lifted in (one, read):
        with lifted.on(tiny) as on:
            said.append(answer(on, WHOLE, WHOLE.questions[:3], "none", answer_tokens=3))
    assert said[0] == said[1] and len(said[0]) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": 2}, r"lora_alpha|weight|r is 3 and 2"),
        ({"alpha": 12}, "lora_alpha is 6 and 12"),
        ({"adapter": "gated_memory"}, "cannot be averaged: .* is .* and .*; lift both on one base model"),
    ],
)
@pytest.mark.parametrize("combine", [averaging.of_deltas, averaging.of_weights])
def test_unlike_adapters_are_refused(tiny, combine, change, words):
    first, second = (lift(tiny, document, replace(QUICK, **more), known_pairs(document), progress=False)
                     for document, more in zip(DOCUMENTS, ({}, change), strict=False))  # fmt: skip
    with pytest.raises(ValueError, match=words):
        combine([first, second], WHOLE)


def test_other_base_models_missing_weights_and_no_lifts_are_refused(tiny):
    first, second, _ = lifts_on(tiny)
    elsewhere = replace(second, base={"name": "tiny", "weights_sha256": "another"})
    with pytest.raises(ValueError, match="weights_sha256 of their base models is tiny-0 and another"):
        averaging.of_weights([first, elsewhere], WHOLE)
    key = sorted(second.state)[0]
    less = replace(second, state={name: value for name, value in second.state.items() if name != key})
    with pytest.raises(ValueError, match="and absent; lift both"):
        averaging.of_deltas([first, less], WHOLE)
    with pytest.raises(ValueError, match="no lifted documents to average"):
        averaging.of_deltas([], WHOLE)


@pytest.mark.parametrize("adapter", ["gated_memory", "full"])
def test_adapters_without_factors_have_no_deltas_to_average(tiny, adapter):
    with pytest.raises(ValueError, match=f"deltas of adapter {adapter} cannot be averaged: .*mean of the weights"):
        averaging.of_deltas(lifts_on(tiny, adapter=adapter), WHOLE)
