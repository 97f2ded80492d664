from weakref import WeakSet

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from liftlab import adapters
from liftlab.recipes import Recipe
from liftlab.token_losses import hidden_states, scored_logits, token_losses

KINDS = ["llama", "mistral", "qwen2", "qwen3", "gemma2"]


def model_of(kind, dtype=torch.float32):
    """Random weights; Gemma 2 caps its final logits, and so low here that the cap matters."""
    settings = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, head_dim=8, pad_token_id=0)  # fmt: skip
    capped = {"final_logit_softcapping": 0.5} if kind == "gemma2" else {}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **settings, **capped)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype).eval()


def plain_losses(model, ids):
    """(batch * (tokens - 1),) nats in float64, by the whole model's own logits."""
    log_p = model(ids).logits[:, :-1].double().log_softmax(-1)
    return -log_p.gather(-1, ids[:, 1:, None]).flatten()


@pytest.mark.parametrize("kind", KINDS)
def test_scored_logits_are_the_model_s_own(kind):
    model = model_of(kind)
    ids, scored = torch.randint(1, 99, (2, 12)), torch.rand(2, 11) < 0.5
    with torch.no_grad():
        torch.testing.assert_close(scored_logits(model, ids, scored), model(ids).logits[:, :-1][scored])


@pytest.mark.parametrize("chunk_tokens", [1, 4, 22, 512])
@pytest.mark.parametrize("trained", ["before the head", "head", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_all_logits_at_once(kind, trained, chunk_tokens):
    """Whether the head is frozen, trains alone, or (with all else, tied to the embedding where it is) trains too."""
    model = model_of(kind)
    model.requires_grad_(trained == "both")
    for part, wanted in (("before the head", model.get_decoder().layers), ("head", model.get_output_embeddings())):
        if part == trained:
            wanted.requires_grad_(True)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    ids, scale = torch.randint(1, 99, (2, 12)), torch.linspace(-1, 3, 22)
    hidden = hidden_states(model, ids)[:, :-1].flatten(0, 1)
    found, expected = token_losses(model, hidden, ids[:, 1:].flatten(), chunk_tokens), plain_losses(model, ids)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    mine, plain = (torch.autograd.grad((losses * scale).sum(), weights) for losses in (found, expected))
    torch.testing.assert_close(mine, plain, atol=1e-5, rtol=1e-4)


class Kept:
    """A tensor that backward needs, known to be alive while autograd holds on to it."""

    def __init__(self, tensor, alive):
        self.tensor = tensor
        alive.add(self)


@pytest.mark.parametrize("head_trains", [False, True])
def test_logits_of_no_more_than_a_chunk_exist_at_once(head_trains):
    """The head is given at most chunk_tokens rows a call, and what autograd keeps never amounts to all logits."""
    model, rows, alive, at_once = model_of("llama").requires_grad_(False), [], WeakSet(), []
    head = model.get_output_embeddings()
    head.weight.requires_grad_(head_trains)
    head.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    hidden, labels = torch.randn(70, 32, requires_grad=True), torch.randint(1, 99, (70,))

    def keep(tensor):
        kept = Kept(tensor, alive)
        at_once.append(sum(one.tensor.numel() for one in alive))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        losses = token_losses(model, hidden, labels, 16)
        losses.sum().backward()
    assert sorted(rows) == sorted([16, 16, 16, 16, 6] * (1 + head_trains))
    fixed = head.weight.numel() + hidden.numel() + labels.numel()
    assert max(at_once) <= fixed + 2 * 16 * 99 < fixed + 70 * 99


def test_without_gradients_the_losses_are_the_same():
    model = model_of("gemma2")
    ids = torch.randint(1, 99, (2, 12))
    with torch.no_grad():
        found = token_losses(model, hidden_states(model, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), 5)
        torch.testing.assert_close(found.double(), plain_losses(model, ids), atol=1e-5, rtol=1e-5)
    assert not found.requires_grad


def test_a_bfloat16_model_s_losses_are_float32_and_near_those_of_float32():
    ids = torch.randint(1, 99, (2, 12))
    found, gradients = [], []
    for dtype in (torch.float32, torch.bfloat16):
        model = model_of("llama").to(dtype)
        with adapters.attached(model, adapters.config(Recipe.preset("micro/lora"))) as lifted:
            weights = [weight for weight in lifted.parameters() if weight.requires_grad]
            losses = token_losses(lifted, hidden_states(lifted, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), 5)
            losses.sum().backward()
            assert losses.dtype == torch.float32 and {weight.dtype for weight in weights} == {torch.float32}
            found.append(losses)
            gradients.append(torch.cat([weight.grad.flatten() for weight in weights]))
    torch.testing.assert_close(*found, atol=0.05, rtol=0)
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.98


@pytest.mark.parametrize("chunk_tokens", [0, -3])
def test_a_chunk_of_no_token_is_refused(chunk_tokens):
    with pytest.raises(ValueError, match=f"chunk_tokens = {chunk_tokens}: at least 1"):
        token_losses(model_of("llama"), torch.randn(3, 32), torch.tensor([1, 2, 3]), chunk_tokens)
