import peft
import pytest
import torch

from liftlab import adapters
from liftlab.recipes import ADAPTERS, Recipe


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def settings(name):
    return adapters.config(Recipe(adapter=name, rank=4, alpha=8.0, prefix_tokens=8 if name == "cartridge" else None))


@pytest.fixture
def ids():
    return torch.randint(6, 400, (2, 20), generator=torch.Generator().manual_seed(1))


def train(wrapped, ids, steps=2):
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], 1e-2)
    for _ in range(steps):
        wrapped(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_fresh_lora_changes_no_logit(tiny, ids):
    before = logits(tiny.model, ids)
    with adapters.attached(tiny.model, settings("lora")) as wrapped:
        assert torch.equal(logits(wrapped, ids), before)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_removed_adapter_leaves_weights_logits_and_modules_bit_for_bit(tiny, ids, name):
    before, said, modules = weights(tiny.model), logits(tiny.model, ids), [n for n, _ in tiny.model.named_modules()]
    with adapters.attached(tiny.model, settings(name)) as wrapped:
        train(wrapped, ids)
        assert not torch.equal(logits(wrapped, ids), said)
    assert torch.equal(logits(tiny.model, ids), said)
    assert all(torch.equal(value, before[key]) for key, value in weights(tiny.model).items())
    assert [n for n, _ in tiny.model.named_modules()] == modules
    assert not any(p.requires_grad or p.grad is not None for p in tiny.model.parameters())
    assert not hasattr(tiny.model, "peft_config") and not tiny.model.training


def test_an_error_while_attached_leaves_the_base_as_it_was(tiny, ids):
    said = logits(tiny.model, ids)
    for name in ADAPTERS:
        with pytest.raises(RuntimeError, match="stop"), adapters.attached(tiny.model, settings(name)) as wrapped:
            train(wrapped, ids)
            raise RuntimeError("stop")
        assert torch.equal(logits(tiny.model, ids), said)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["lora", "gated_memory"])
def test_weights_drawn_beside_an_adapter_are_those_it_would_have_begun_with(tiny, ids, name, kind):
    tiny.model.to(kind)
    states = []
    for seed in (0, 1, 2):
        torch.manual_seed(seed)
        with adapters.attached(tiny.model, settings(name)) as wrapped:
            states.append(adapters.trained_state(wrapped)[1])
    with adapters.attached(tiny.model, settings(name), states[0]) as wrapped:
        modules, said = [n for n, _ in wrapped.named_modules()], logits(wrapped, ids)
        for seed in (2, 0, 1):
            drawn = adapters.fresh(wrapped, seed)
            assert drawn.keys() == states[seed].keys()
            assert all(torch.equal(drawn[k], v) and drawn[k].dtype == v.dtype for k, v in states[seed].items())
        assert torch.equal(logits(wrapped, ids), said) and wrapped.active_adapters == ["default"]
        assert [n for n, _ in wrapped.named_modules()] == modules and list(wrapped.peft_config) == ["default"]
        assert any(p.requires_grad for p in wrapped.parameters())
    assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", ["lora", "gated_memory", "cartridge", "full"])
def test_weights_put_back_answer_as_they_did(tiny, ids, name):
    with adapters.attached(tiny.model, settings(name)) as wrapped:
        train(wrapped, ids)
        said, (config, state) = logits(wrapped, ids), adapters.trained_state(wrapped)
    with adapters.attached(tiny.model, config, state) as wrapped:
        assert torch.equal(logits(wrapped, ids), said)


def test_pissa_starts_at_the_base_and_leaves_as_a_lora_of_twice_the_rank(tiny, ids):
    before = logits(tiny.model, ids)
    with adapters.attached(tiny.model, settings("pissa")) as wrapped:
        torch.testing.assert_close(logits(wrapped, ids), before, atol=1e-5, rtol=0)
        _, start = adapters.trained_state(wrapped)
        train(wrapped, ids)
        said, (config, end) = logits(wrapped, ids), adapters.trained_state(wrapped)
    config, state = adapters.as_plain_lora(config, start, end)
    assert isinstance(config, peft.LoraConfig) and config.r == 8 and config.init_lora_weights is True
    with adapters.attached(tiny.model, config, state) as wrapped:
        torch.testing.assert_close(logits(wrapped, ids), said, atol=1e-4, rtol=0)


def test_weights_of_another_shape_of_model_are_refused(tiny):
    with (
        pytest.raises(ValueError, match="no place for"),
        adapters.attached(
            tiny.model,
            settings("lora"),
            {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.zeros(4, 32)},
        ),
    ):
        pass
    assert not hasattr(tiny.model, "peft_config")


def test_a_recipe_s_gated_memory_settings_reach_its_networks(tiny):
    chosen = {"memory_width": 5, "gate_width": 3, "layers_to_transform": (1,), "init": "neutral", "gate_penalty": 0.5}
    config = adapters.config(Recipe(adapter="gated_memory", **chosen))
    with adapters.attached(tiny.model, config) as wrapped:
        shapes = {k.split(".")[-2]: tuple(v.shape) for k, v in wrapped.state_dict().items() if "gated_memory" in k}
        held = {k.split("gated_memory.default.")[1]: v for k, v in wrapped.state_dict().items() if "gated_memory" in k}
        assert all(".layers.1." in key for key in wrapped.state_dict() if "gated_memory" in key) and shapes
    shapes = {name: tuple(weight.shape) for name, weight in held.items()}
    assert shapes == {"memory_in": (4, 8, 5), "memory_out": (4, 5, 8), "gate_in": (4, 8, 3), "gate_out": (4, 3, 1)}
    assert config.gate_penalty == 0.5 and not held["gate_out"].any()


def test_gated_memory_of_another_shape_of_model_is_refused_and_leaves_no_trace(tiny, ids):
    said = logits(tiny.model, ids)
    with adapters.attached(tiny.model, adapters.config(Recipe(adapter="gated_memory", layers_to_transform=(0,)))) as w:
        _, state = adapters.trained_state(w)
    with (
        pytest.raises(ValueError, match="absent in the adapter"),
        adapters.attached(tiny.model, settings("gated_memory"), state),
    ):
        pass
    assert torch.equal(logits(tiny.model, ids), said) and not hasattr(tiny.model, "peft_config")
