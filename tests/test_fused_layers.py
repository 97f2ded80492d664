"""Fused layers are the model's own, to rounding, in value and gradient; the model is itself again afterwards."""

import pytest
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from liftlab import adapters
from liftlab.fused_layers import fused
from liftlab.recipes import Recipe
from liftlab.stacked_layers import stacked_on

KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama, biases": (LlamaForCausalLM, LlamaConfig, {"mlp_bias": True}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {}),
}
IDS = torch.arange(36).view(6, 6) % 50  # two rows a document
PARTS = {
    "everywhere": {},
    "one layer": {"modules": r".*layers\.1\..*_proj"},
    "no up": {"target_modules": ("q_proj", "gate_proj", "down_proj")},
    "the mlp alone": {"target_modules": ("gate_proj", "up_proj", "down_proj")},
}


def small(kind, dtype):
    architecture, config, changes = KINDS[kind]
    torch.manual_seed(0)
    model = architecture(config(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1, pad_token_id=0, **changes,
    ))  # fmt: skip
    for name, weight in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            nn.init.normal_(weight, 0.5, 0.3)  # not the ones and zeros that they begin with
    return model.train().requires_grad_(False).to(dtype)


def drawn(model, modules=None, **recipe):
    """An adapter's config, and three documents' states of random weights; `modules`: a pattern of those with LoRA."""
    config = adapters.config(Recipe.preset("micro/lora", rank=3, **recipe))
    config.target_modules = modules or config.target_modules
    with adapters.attached(model, config) as wrapped:
        state = adapters.trained_state(wrapped)[1]
    return config, [{key: torch.randn_like(value) * 0.2 for key, value in state.items()} for _ in range(3)]


def outcome(model, stack):
    """The loss and all gradients of a stack, in float64."""
    stack.empty = True
    loss = model(input_ids=IDS, labels=IDS).loss
    stack.add_gradients(loss)
    return loss.detach().double(), stack.gradients.double()


def outcomes(kind, dtype, parts):
    """The model's own outcome, the fused one, and the classes of the layers that were fused."""
    config, states = drawn(small(kind, torch.float32), **parts)
    states = [{key: value.to(dtype) for key, value in state.items()} for state in states]
    model = small(kind, dtype)
    with stacked_on(model, config, states, trained=True) as stack:
        own = outcome(model, stack)
        with fused(model):
            return own, outcome(model, stack), [type(m).__name__ for m in model.modules() if "forward" in vars(m)]


def distance(found, expected):
    """The larger relative one, of loss and gradients."""
    return max(float((one - other).norm() / other.norm()) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_the_models_own(kind, parts):
    """In float32 to 1e-5, or where that model's rounding is larger (Gemma's deep norms), to its rounding."""
    exactly, found, replaced = outcomes(kind, torch.float64, PARTS[parts])
    assert distance(found, exactly) < 1e-10
    assert sum(name.endswith("MLP") for name in replaced) == {"no up": 0, "one layer": 1}.get(parts, 2)
    assert sum(name.endswith("RMSNorm") for name in replaced) >= 5  # two a layer and the last
    own, found, _ = outcomes(kind, torch.float32, PARTS[parts])
    assert distance(found, own) < max(1e-5, 3 * distance(own, exactly))


def exact(x, weight, eps):
    """The norm as its paper (1910.07467) defines it, in float64."""
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("shape", [(2, 5, 16), (2, 3, 5, 16)])  # hidden states; the heads of a query
@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma2RMSNorm])
def test_a_norm_is_that_of_its_definition(kind, shape):
    torch.manual_seed(0)
    norm = kind(16, eps=1e-3).requires_grad_(False)
    norm.weight.normal_()
    x, wanted = torch.randn(shape, requires_grad=True), torch.randn(shape)
    weight = norm.weight + 1 if kind is Gemma2RMSNorm else norm.weight
    with fused(norm):
        found = norm(x)
    expected = exact(x, weight, 1e-3)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)
    for one, other in zip(torch.autograd.grad(found, x, wanted), torch.autograd.grad(expected, x, wanted.double()),
                          strict=True):  # fmt: skip
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma2RMSNorm])
def test_a_norm_of_bfloat16_rounds_as_the_models_own(kind):
    torch.manual_seed(0)
    norm = kind(64).requires_grad_(False)
    norm.weight.normal_()
    norm, x = norm.bfloat16(), torch.randn(9, 64).bfloat16()
    own = norm(x)
    with fused(norm):
        found = norm(x)
    assert found.dtype == own.dtype
    torch.testing.assert_close(found, own, atol=0, rtol=2**-7)  # a unit in the last place
    assert (found == own).float().mean() > 0.95


def test_less_is_kept_for_backward():
    model = small("llama", torch.float32)

    def kept():
        held = {}
        note = lambda t: held.__setitem__(t.untyped_storage().data_ptr(), t.untyped_storage()) or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            loss = model(input_ids=IDS, labels=IDS).loss
        del loss
        return sum(storage.nbytes() for storage in held.values())

    with stacked_on(model, *drawn(model), trained=True):
        own = kept()
        with fused(model):
            assert kept() < 0.9 * own


def test_the_model_is_itself_again_also_after_an_error():
    model = small("llama", torch.float32)
    own = model(input_ids=IDS).logits
    with pytest.raises(KeyError), fused(model):
        assert any("forward" in vars(module) for module in model.modules())
        raise KeyError
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(model(input_ids=IDS).logits, own)


def test_an_architecture_of_another_form_keeps_its_layers():
    config = PhiConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with fused(model := PhiForCausalLM(config)):
        assert not any("forward" in vars(module) for module in model.modules())
