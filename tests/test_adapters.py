import peft
import pytest
import torch

from liftlab import adapters


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def settings(name):
    return adapters.config(name, 4, 8.0, "all-linear")


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


@pytest.mark.parametrize("name", adapters.NAMES)
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
    for name in adapters.NAMES:
        with pytest.raises(RuntimeError, match="stop"), adapters.attached(tiny.model, settings(name)) as wrapped:
            train(wrapped, ids)
            raise RuntimeError("stop")
        assert torch.equal(logits(tiny.model, ids), said)


@pytest.mark.parametrize("name", ["lora", "full"])
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


def test_an_unknown_adapter_is_named_with_the_known_ones(tiny):
    with pytest.raises(ValueError, match="adapter 'dora' is not available: choose one of lora, pissa, full"):
        adapters.config("dora", 4, 8.0, "all-linear")
