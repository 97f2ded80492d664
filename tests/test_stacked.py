"""Documents lifted at once get the adapters that they get one by one, and are asked at once as one by one."""

from dataclasses import replace
from itertools import count

import peft
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from liftlab import adapters, lifting, stacked
from liftlab.answering import answer, answer_prompts
from liftlab.documents import Document
from liftlab.examples import Pair, known_pairs
from liftlab.lifted import Lifted
from liftlab.models import BaseModel
from liftlab.prompts import put
from liftlab.recipes import Recipe
from liftlab.stacked import Job
from liftlab.stacked_layers import stacked_on
from liftlab.worlds import register

LORA = Recipe.preset("micro/lora", mixed_epochs=2, segment_tokens=24, offset_tokens=9, learning_rate=2e-3)
PISSA = replace(LORA, adapter="pissa", alpha=8)  # peft does not begin it in float64
GATED = Recipe.preset("micro/gated_memory", mixed_epochs=2, learning_rate=5e-3)
CARTRIDGE = Recipe.preset("micro/cartridge", mixed_epochs=2, prefix_tokens=12, learning_rate=2e-2)


def jobs(recipe, words=(60, 110, 85), **changes):
    made = [register(seed, length, 0.2) for seed, length in enumerate(words, start=300)]
    return [Job(document, replace(recipe, **changes), known_pairs(document)[:17]) for document in made]


def one_by_one(base, given):
    return [lifting.lift(base, j.document, j.recipe, j.pairs, watch=j.watch, every=j.every, progress=False)
            for j in given]  # fmt: skip


def at_once(base, given, **settings):
    return stacked.lift(base, given, progress=False, **settings)


def distance(one: Lifted, other: Lifted) -> float:
    """The largest relative difference of a weight tensor, by its norm."""
    assert one.state.keys() == other.state.keys()
    return max(float((one.state[k] - other.state[k]).norm() / one.state[k].norm().clamp(min=1e-12)) for k in one.state)


def check_same(base, given, weights=1e-5, losses=1e-5):
    for one, other in zip(one_by_one(base, given), at_once(base, given), strict=True):
        assert distance(one, other) < weights
        assert [s.loss for s in other.history] == pytest.approx([s.loss for s in one.history], rel=losses)
        told = [[(s.step, s.epoch, s.tokens) for s in lifted.history] for lifted in (one, other)]
        assert told[0] == told[1]
        assert (other.document, other.recipe, other.base) == (one.document, one.recipe, one.base)


CASES = {
    "lora": (LORA, {}),
    "lora, a step an epoch": (LORA, {"step": "epoch", "mixed_epochs": 4, "schedule": "constant"}),
    "lora, weighted pairs": (LORA, {"pair_weight": 0.3, "segment_epochs": 1}),
    "lora, warm-up, decay, tight clipping": (
        LORA, {"warmup_steps": 3, "weight_decay": 0.1, "clip_norm": 0.05, "betas": (0.8, 0.95)}),
    "lora, four examples a step": (LORA, {"batch_examples": 4, "first_epoch_in_order": True}),
    "lora, checkpointed": (LORA, {"gradient_checkpointing": True}),
    "lora on two projections": (LORA, {"target_modules": ("q_proj", "down_proj")}),
    "lora, contextualized": (LORA, {"contextualized": True, "context_tokens": 20}),
    "gated memory": (GATED, {}),
    "gated memory, neutral start": (GATED, {"init": "neutral"}),
    "gated memory, gate penalty": (GATED, {"gate_penalty": 0.2, "warmup_steps": 2}),
    "gated memory in one layer": (GATED, {"layers_to_transform": (1,)}),
    "cartridge": (CARTRIDGE, {}),
    "cartridge, with segments, decay": (
        CARTRIDGE, {"segments_in_mixed": True, "segment_tokens": 24, "offset_tokens": 9, "weight_decay": 0.1}),
    "cartridge, tight clipping, a step an epoch": (CARTRIDGE, {"clip_norm": 0.05, "step": "epoch"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_in_float64_the_arithmetic_is_the_same(tiny, name):
    recipe, changes = CASES[name]
    tiny.model.double()
    check_same(tiny, jobs(recipe, **changes), weights=1e-6, losses=1e-6)


@pytest.mark.parametrize("recipe", [LORA, GATED, PISSA], ids=["lora", "gated memory", "pissa"])
def test_in_float32_the_weights_are_the_same_to_rounding(tiny, recipe):
    """All weights of an adapter together: Adam turns rounding in a tensor's smallest gradients into whole steps."""
    given = jobs(recipe)
    for one, other in zip(one_by_one(tiny, given), at_once(tiny, given), strict=True):
        weights = [torch.cat([lifted.state[key].flatten() for key in one.state]) for lifted in (one, other)]
        assert float((weights[0] - weights[1]).norm() / weights[0].norm()) < 1e-5
        assert [s.loss for s in other.history] == pytest.approx([s.loss for s in one.history], rel=1e-5)


def another(architecture, config_class, **changes):
    torch.manual_seed(0)
    config = config_class(
        vocab_size=500, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0, **changes,
    )  # fmt: skip
    return architecture._from_config(config).eval().requires_grad_(False)


@pytest.mark.parametrize("recipe", [LORA, GATED, CARTRIDGE], ids=["lora", "gated memory", "cartridge"])
@pytest.mark.parametrize("kind", ["qwen3", "gemma2"])
def test_so_it_is_on_other_architectures(tiny, kind, recipe):
    if kind == "qwen3":
        model = another(Qwen3ForCausalLM, Qwen3Config)
    else:
        model = another(Gemma2ForCausalLM, Gemma2Config, final_logit_softcapping=5.0, sliding_window=128)
        model.set_attn_implementation("eager")
    check_same(replace(tiny, model=model.double()), jobs(recipe, words=(50, 70)), weights=1e-6, losses=1e-6)


def test_each_document_has_its_own_seed_rate_and_schedule(tiny):
    tiny.model.double()
    given = jobs(LORA)
    settings = [{"seed": 1, "learning_rate": 1e-3}, {"schedule": "constant", "mixed_epochs": 1}, {"clip_norm": 0.01}]
    given = [replace(job, recipe=replace(job.recipe, **own)) for job, own in zip(given, settings, strict=True)]
    check_same(tiny, given, weights=1e-6, losses=1e-6)


@pytest.mark.parametrize("seeds", [(4, 4, 4), (2, 0, 2)], ids=["one seed", "two seeds"])
@pytest.mark.parametrize("recipe", [LORA, GATED], ids=["lora", "gated memory"])
def test_each_begins_with_the_very_weights_that_it_begins_with_alone(tiny, recipe, seeds):
    """Bit for bit: those of its seed, for which the model gets its adapter once, however many documents there are."""
    wrapped, alone, config = [], {}, adapters.config(recipe)
    for seed in seeds:
        torch.manual_seed(seed)
        with adapters.attached(tiny.model, config) as model:
            alone[seed] = adapters.trained_state(model)[1]
    with pytest.MonkeyPatch.context() as patch:
        get = peft.get_peft_model
        patch.setattr(peft, "get_peft_model", lambda *given: wrapped.append(1) or get(*given))
        with stacked_on(tiny.model, config, seeds, trained=True) as stack:
            states = [stack.state(place) for place in range(len(seeds))]
    for seed, state in zip(seeds, states, strict=True):
        assert state.keys() == alone[seed].keys()
        assert all(torch.equal(value, alone[seed][key]) for key, value in state.items())
    assert len(wrapped) == 1


def test_cartridges_are_trained_together_and_asked_one_by_one(tiny, monkeypatch):
    monkeypatch.setattr(lifting, "lift", None)  # which lifts one by one
    given = jobs(CARTRIDGE)
    lifted = at_once(tiny, given)
    asked = [
        [put(tiny.tokenizer, job.document, pair.question, "none", 200, 4) for pair in job.pairs[:5]] for job in given
    ]
    for one, prompts, said in zip(lifted, asked, stacked.answer(tiny, lifted, asked, 4), strict=True):
        with one.on(tiny) as on:
            assert answer_prompts(on, prompts, 4) == said


def test_a_document_that_ends_early_is_left_alone_afterwards(tiny):
    short, long = jobs(LORA, words=(40, 120))
    alone, beside = at_once(tiny, [short])[0], at_once(tiny, [long, short])[1]
    assert len(alone.history) < len(at_once(tiny, [long])[0].history)
    assert distance(alone, beside) < 1e-5


def test_unlike_adapters_are_stacked_apart_and_what_cannot_be_is_lifted_alone(tiny):
    recipes = [
        LORA,
        GATED,
        replace(LORA, rank=4),
        PISSA,
        replace(LORA, adapter="full"),
    ]
    given = [replace(job, recipe=recipe) for job, recipe in zip(jobs(LORA, words=(50,) * 5), recipes, strict=True)]
    for one, other in zip(one_by_one(tiny, given), at_once(tiny, given), strict=True):
        assert distance(one, other) < 1e-4
        assert (other.adapter and other.adapter.to_dict()) == (one.adapter and one.adapter.to_dict())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft 0.21 under transformers 5.2x
def test_each_leaves_as_an_ordinary_peft_adapter(tiny, tmp_path):
    lifted = at_once(tiny, jobs(LORA))[1]
    folder = lifted.save(tmp_path / "adapter")
    ids = torch.tensor([[7, 8, 9, 10]])
    with lifted.on(tiny) as on, torch.no_grad():
        expected = on.model(input_ids=ids).logits.clone()
    loaded = peft.PeftModel.from_pretrained(tiny.model, str(folder))
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, expected)


@pytest.mark.parametrize("recipe", [LORA, GATED], ids=["lora", "gated memory"])
def test_the_base_model_is_itself_afterwards_also_after_an_error(tiny, recipe):
    ids = torch.tensor([[7, 8, 9, 10]])
    before, names = tiny.model(input_ids=ids).logits, [name for name, _ in tiny.model.named_modules()]

    def stop(step, on):
        raise KeyError

    at_once(tiny, jobs(recipe))
    with pytest.raises(KeyError):
        at_once(tiny, [replace(jobs(recipe)[0], watch=stop), *jobs(recipe)[1:]])
    assert torch.equal(tiny.model(input_ids=ids).logits, before)
    assert [name for name, _ in tiny.model.named_modules()] == names
    assert not any(p.requires_grad or p.grad is not None for p in tiny.model.parameters())
    assert not tiny.model.training


@pytest.mark.parametrize("recipe", [LORA, GATED], ids=["lora", "gated memory"])
def test_watch_sees_what_it_sees_alone(tiny, recipe):
    ids = torch.tensor([[7, 8, 9, 10]])

    def seen_by(lift):
        seen = {}
        given = [replace(job, every=2, watch=lambda step, on, i=i: seen.__setitem__(
            (i, step), on.model(input_ids=ids).logits.clone())) for i, job in zip(count(), jobs(recipe))]  # fmt: skip
        lift(tiny, given)
        return seen

    alone, together = seen_by(one_by_one), seen_by(at_once)
    assert alone.keys() == together.keys() and {step for _, step in alone} >= {0, 2}
    for key, logits in alone.items():
        torch.testing.assert_close(together[key], logits, atol=2e-5, rtol=1e-4)


def test_watching_changes_nothing(tiny):
    given = jobs(LORA)
    watched = at_once(tiny, [replace(job, watch=lambda step, on: torch.rand(3)) for job in given])
    for one, other in zip(at_once(tiny, given), watched, strict=True):
        assert all(torch.equal(one.state[key], other.state[key]) for key in one.state)


def test_a_loss_that_is_no_number_names_the_document(tiny):
    first, second = jobs(LORA, words=(50, 60))
    second = replace(second, recipe=replace(second.recipe, learning_rate=1e30, clip_norm=1e30))
    with pytest.raises(FloatingPointError, match=f"{second.document.name}.*lower learning_rate"):
        at_once(tiny, [first, second])
    watched = replace(second, watch=lambda step, on: None)  # a look reads the losses before the end
    with pytest.raises(FloatingPointError, match=second.document.name):
        at_once(tiny, [first, watched])


def test_wrong_jobs_are_refused(tiny):
    job = jobs(LORA, words=(50,))[0]
    with pytest.raises(ValueError, match="cannot be stacked.*give a list"):
        replace(job, pairs=iter(job.pairs))
    with pytest.raises(ValueError, match="every = 0"):
        replace(job, every=0)
    with pytest.raises(ValueError, match="nothing to train on"):
        at_once(tiny, [replace(job, recipe=GATED, pairs=())])
    with pytest.raises(ValueError, match="memory_gib = 0"):
        at_once(tiny, [job], memory_gib=0)
    assert at_once(tiny, []) == []


def prompts_of(base: BaseModel, document: Document, number: int):
    asked = document.asked()[:number]
    return [None, *(put(base.tokenizer, document, q, c, base.window, 6) for q in asked for c in ("none", "truncated"))]


@pytest.mark.parametrize("batch_tokens", [16384, 300])
@pytest.mark.parametrize("recipe", [LORA, GATED], ids=["lora", "gated memory"])
def test_answers_at_once_are_those_one_by_one(tiny, recipe, batch_tokens):
    given = jobs(recipe, learning_rate=0.3 if recipe is GATED else 3e-2, mixed_epochs=4)  # random models say little
    lifted = at_once(tiny, given)
    prompts = [prompts_of(tiny, job.document, number) for job, number in zip(given, (5, 2, 7), strict=True)]
    expected = []
    for document, of in zip(lifted, prompts, strict=True):
        with document.on(tiny) as on:
            expected.append(answer_prompts(on, of, 6))
    found = stacked.answer(tiny, lifted, prompts, 6, batch_tokens)
    assert found == expected
    assert found[0][0] is None and len({text for of in found for text in of}) > 3  # not all the same


def test_unlike_adapters_are_asked_too(tiny):
    document = jobs(LORA, words=(60,))[0].document
    pairs = [Pair(q.text, q.answer) for q in document.asked()[:5]]
    recipes = [LORA, GATED, replace(LORA, adapter="full", learning_rate=1e-3)]
    lifted = at_once(tiny, [Job(document, recipe, pairs) for recipe in recipes])
    asked = document.asked()[:3]
    prompts = [put(tiny.tokenizer, document, q, "none", tiny.window, 4) for q in asked]
    for one, said in zip(lifted, stacked.answer(tiny, lifted, [prompts] * 3, 4), strict=True):
        with one.on(tiny) as on:
            assert said == answer(on, document, asked, "none", answer_tokens=4)


def test_another_base_model_is_refused(tiny):
    lifted = at_once(tiny, jobs(LORA, words=(50,)))
    other = replace(tiny, provenance={**tiny.provenance, "weights_sha256": "other"})
    with pytest.raises(ValueError, match="was lifted on"):
        stacked.answer(other, lifted, [[[7, 8]]])
