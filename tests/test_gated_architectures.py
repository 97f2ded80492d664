"""Gated Memory on every supported architecture, and against what the authors' program computes."""

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors import safe_open
from test_gated_memory import SIZES, adapter_weights, gated, gates_of, logits, train
from torch import nn

from liftlab.gated_layer import observed
from liftlab.gated_memory import SUPPORTED

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft 0.21
GOLDEN = Path(__file__).parent / "golden/gated_memory.safetensors"  # what the authors' released program computes
IDS = torch.randint(1, 97, (3, 11), generator=torch.Generator().manual_seed(2))
VISION = dict(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
)
TINY = SIZES | {"initializer_range": 0.12}
WIDE = TINY | {"head_dim": 16}  # heads * head_dim != hidden size
GEMMA3 = WIDE | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
KINDS = {  # model_type: (configuration class, model class, settings)
    "llama": ("LlamaConfig", "LlamaForCausalLM", WIDE),
    "mistral": ("MistralConfig", "MistralForCausalLM", TINY | {"sliding_window": 4}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {key: size for key, size in TINY.items() if key != "head_dim"}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", WIDE),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", WIDE | {"sliding_window": 4}),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM", GEMMA3),
    "gemma3": ("Gemma3Config", "Gemma3ForConditionalGeneration", {"text_config": GEMMA3, "vision_config": VISION}),
}
CASES = [(kind, way) for kind in KINDS for way in ("eager", "sdpa") if (kind, way) != ("gemma2", "sdpa")]  # softcapping


def model_of(settings, model, attention="eager", **sizes):
    torch.manual_seed(0)
    made = getattr(transformers, settings)(**sizes)
    return getattr(transformers, model)._from_config(made, attn_implementation=attention).eval().requires_grad_(False)


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    return request.param


@pytest.fixture
def build(case):
    """Builds the same tiny random model each time."""
    settings, model, sizes = KINDS[case[0]]

    def fresh():
        made = model_of(settings, model, case[1], **sizes)
        assert (made.config.model_type, made.config._attn_implementation) == case
        generator = torch.Generator().manual_seed(3)
        for name, weight in made.named_parameters():  # nothing at its neutral value: norms, biases
            if "norm" in name or "bias" in name:
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.3)
        return made

    return fresh


def stirred(base):
    """An adapter whose gates lie anywhere in 0..1."""
    model = gated(base)
    with torch.no_grad():
        for weight in adapter_weights(model).values():
            weight.normal_(std=0.6)
    assert torch.stack(gates_of(model, IDS)).std() > 0.05
    return model


def test_every_supported_architecture_is_tested():
    assert tuple(KINDS) == SUPPORTED


def test_trained_saved_and_loaded_says_exactly_the_same(build, tmp_path):
    base = build()
    before = logits(base, IDS)
    model = gated(base)
    losses = train(model, IDS)
    said = logits(model, IDS)
    assert losses[-1] < losses[0] and (said - before).abs().max() > 1e-3
    with model.disable_adapter():
        assert torch.equal(logits(model, IDS), before)
    model.save_pretrained(tmp_path)
    assert (logits(peft.PeftModel.from_pretrained(build(), tmp_path), IDS) - said).abs().max() == 0


def test_neutral_changes_no_logit(build):
    base = build()
    before = logits(base, IDS)
    torch.testing.assert_close(logits(gated(base, init="neutral"), IDS), before, rtol=0, atol=0)


@torch.no_grad()
def test_token_by_token_through_the_cache_says_the_same(build):
    model = stirred(build())
    past, said = None, []
    for token in IDS.split(1, dim=1):
        outputs = model(input_ids=token, past_key_values=past, use_cache=True)
        past = outputs.past_key_values
        said.append(outputs.logits)
    torch.testing.assert_close(torch.cat(said, dim=1), logits(model, IDS, use_cache=False), atol=1e-5, rtol=0)


def test_generation_is_the_same_with_any_cache(build):
    model = stirred(build())
    model.generation_config.eos_token_id = None
    settings = dict(max_new_tokens=8, do_sample=False, return_dict_in_generate=True, output_logits=True)
    inputs = dict(input_ids=IDS, attention_mask=torch.ones_like(IDS))
    plain = model.generate(**inputs, **settings, use_cache=False)
    wanted = torch.stack(plain.logits)
    best, second = wanted.topk(2).values.unbind(-1)
    assert (best - second).min() > 1e-4 and plain.sequences.shape == (3, 19)  # no ties
    for cache in ("dynamic", "static"):
        cached = model.generate(**inputs, **settings, cache_implementation=cache)
        assert torch.equal(cached.sequences, plain.sequences), cache
        torch.testing.assert_close(torch.stack(cached.logits), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_at_real_tokens(build, side):
    model, lengths = stirred(build()), (11, 7, 3)
    mask = torch.stack([(torch.arange(11) < length).long() for length in lengths])
    mask = mask.flip(1) if side == "left" else mask
    ids = torch.where(mask.bool(), IDS, 0)
    places = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if side == "left" else {}
    said = logits(model, ids, attention_mask=mask, **places)
    for row, real, answer in zip(IDS, mask.bool(), said, strict=True):
        alone = logits(model, row[real][None])[0]
        torch.testing.assert_close(answer[real], alone, atol=1e-5, rtol=0)


def test_the_query_is_what_attention_compares_before_rope(build, case):
    model, seen = stirred(build()), []
    attentions = [module for module in model.modules() if hasattr(module, "q_proj") and hasattr(module, "o_proj")]
    inputs = []
    hooks = [a.q_proj.register_forward_pre_hook(lambda module, args: inputs.append(args[0])) for a in attentions]
    with observed(model, lambda *what: seen.append(what)):
        logits(model, IDS)
    for hook in hooks:
        hook.remove()
    assert len(inputs) == len(seen) == 2
    normed = case[0] in ("qwen3", "gemma3_text", "gemma3")
    for place, (attention, given) in enumerate(zip(attentions, inputs, strict=True)):
        query = nn.functional.linear(given, attention.q_proj.weight, attention.q_proj.bias).unflatten(-1, (4, -1))
        query = attention.q_norm(query) if normed else query
        assert seen[place][0] == place and query.shape[-1] == attention.head_dim
        torch.testing.assert_close(seen[place][1], query, atol=1e-6, rtol=0)


@pytest.mark.parametrize("init", ["released", "per_head", "neutral"])
def test_every_head_of_every_layer_learns(build, init):
    model = gated(build(), init=init)
    train(model, IDS)
    model(input_ids=IDS, labels=IDS).loss.backward()
    weights = adapter_weights(model)
    assert len(weights) == 8
    for name, weight in weights.items():
        assert (weight.grad.abs().amax(dim=(1, 2)) > 0).all(), name


def golden_model(attention):
    """The golden file's tensors and our model with its weights."""
    with safe_open(GOLDEN, "pt") as file:
        settings, tensors = json.loads(file.metadata()["config"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    base = model_of("LlamaConfig", "LlamaForCausalLM", attention, **settings)
    ours, theirs = {}, {}
    for key, value in tensors.items():
        parts = key.split(".")  # weights.model.layers.0.self_attn.mem_proj.2.weight
        if parts[-3:-2] in (["mem_proj"], ["gate_proj"]) and parts[4] == "self_attn":
            part = {"mem_proj": "memory", "gate_proj": "gate"}[parts[5]] + {"0": "_in", "2": "_out"}[parts[6]]
            ours[f"base_model.model.model.layers.{parts[3]}.self_attn.o_proj.gated_memory.{part}"] = value
        elif parts[0] == "weights":
            theirs[key.removeprefix("weights.")] = value
    base.load_state_dict(theirs, strict=True)
    model = gated(base, init="released")
    assert not peft.set_peft_model_state_dict(model, ours).unexpected_keys
    return tensors, model


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_logits_and_gates_are_those_of_the_authors_program(attention):
    tensors, model = golden_model(attention)
    assert model.config._attn_implementation == attention
    gates = torch.stack(gates_of(model, tensors["input_ids"])).squeeze(-1).transpose(2, 3)
    torch.testing.assert_close(logits(model, tensors["input_ids"]), tensors["logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(gates, tensors["gates"], atol=1e-4, rtol=0)
