from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from liftlab import adapters
from liftlab.documents import Document, Question
from liftlab.gated_layer import layers_of, observed
from liftlab.gated_memory import GatedMemoryConfig
from liftlab.models import BaseModel
from liftlab.pretraining import word_tokenizer
from liftlab.probes.layout import layout
from liftlab.probes.oracle_gate import compare, exact, learned

DOCUMENT = Document("d", "Ada lives in Oslo. Anna works in Rome. Nothing else.")
QUESTIONS = [Question("Where does Ada live?", "in Oslo"), Question("Anna?", "Rome")]
HEADS, HEAD_DIM = 4, 12  # 4 * 12 is not the width of 32
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"attn_implementation": "sdpa"}),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"attn_implementation": "eager", "sliding_window": 6}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"attn_implementation": "sdpa"}),
}


def made(kind):
    """A random model with 2 key-value heads for 4 query heads, its weights large enough for uneven attention."""
    torch.manual_seed(0)
    config, model, settings = KINDS[kind]
    tokenizer = word_tokenizer()
    config = config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=2, head_dim=HEAD_DIM, max_position_embeddings=256, initializer_range=0.4, **settings,
    )  # fmt: skip
    random = model(config).eval().requires_grad_(False)
    for layer in random.get_decoder().layers:
        if hasattr(layer.self_attn, "q_norm"):
            layer.self_attn.q_norm.weight.data.uniform_(0.5, 2)
    return BaseModel(kind, random, tokenizer, 256, {})


def layouts(base):
    return [layout(base.tokenizer, DOCUMENT, question, "full", 256, 8) for question in QUESTIONS]


def asked(prompt):
    return [i for i, role in enumerate(prompt.roles) if role in ("question", "answer")]


@pytest.fixture(params=list(KINDS))
def base(request):
    return made(request.param)


@pytest.fixture
def llama():
    return made("llama")


@pytest.fixture
def gated(llama):
    """The same weights again, with a Gated Memory on them."""
    other = made("llama")
    with adapters.attached(other.model, GatedMemoryConfig(task_type="CAUSAL_LM", init="per_head")) as model:
        yield replace(other, model=model.eval())


@pytest.fixture
def splits(llama):
    return [exact(llama, prompt) for prompt in layouts(llama)]


def as_learned(splits):
    """The exact values, in the place of what an adapter learned."""
    return [{split.layer: (split.gate, split.memory) for split in question} for question in splits]


def value(frame, metric, layer=0, role="both"):
    return frame.set_index(["metric", "layer", "role"]).value[metric, layer, role]


def test_memory_and_rest_mixed_by_the_gate_are_the_whole_attention(base):
    prompt = layouts(base)[0]
    first, second = exact(base, prompt)
    for split in (first, second):
        gate = split.gate[..., None]
        assert gate.shape == (len(asked(prompt)), HEADS, 1) and split.full.shape[2] == HEAD_DIM
        assert (gate * split.memory + (1 - gate) * split.rest - split.full).abs().max() < 1e-5
        assert split.gate.std() > 0.05 and (split.memory - split.rest).abs().max() > 0.1
    assert (first.layer, second.layer) == (0, 1)
    assert first.roles == tuple(role for role in prompt.roles if role in ("question", "answer"))


def test_the_query_is_what_gated_memory_reads(base):
    prompt, seen = layouts(base)[0], {}
    splits = exact(base, prompt)
    with (
        adapters.attached(base.model, GatedMemoryConfig(task_type="CAUSAL_LM", init="neutral")) as model,
        observed(model, lambda index, query, *_: seen.update({index: query[0]})),
    ):
        model(input_ids=torch.tensor([prompt.ids]))
    for split in splits:
        assert torch.allclose(split.query, seen[split.layer][asked(prompt)], atol=1e-5)


def test_a_llama_agrees_with_attention_from_scratch_in_float64(llama):
    prompt = layouts(llama)[0]
    splits, model = exact(llama, prompt), made("llama").model.double()
    states = model(input_ids=torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states
    positions = torch.arange(len(prompt.ids))[None]
    document = np.array([role == "document" for role in prompt.roles])
    for split, layer, state in zip(splits, model.model.layers, states, strict=False):
        state, attention = layer.input_layernorm(state), layer.self_attn
        q, k, v = (
            project(state).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, *(t.double() for t in model.model.rotary_emb(state, positions)))
        for head in range(HEADS):
            scores = (q[0, head] @ k[0, head // 2].T).numpy() / np.sqrt(HEAD_DIM)
            scores[np.triu_indices(len(scores), 1)] = -np.inf
            weights = np.exp(scores - scores.max(1, keepdims=True))[asked(prompt)]
            inside, values = weights[:, document].sum(1), v[0, head // 2].numpy()
            near = {"rtol": 1e-3, "atol": 1e-5}
            assert np.allclose(split.gate[:, head], inside / weights.sum(1), **near)
            for part, keys in ((split.memory, document), (split.rest, ~document)):
                alone = weights[:, keys] @ values[keys] / weights[:, keys].sum(1, keepdims=True)
                assert np.allclose(part[:, head], alone, **near)


def test_without_mass_on_the_document_its_memory_is_zero():
    base = made("gemma2")  # layer 0 sees 6 tokens back
    first = exact(base, layouts(base)[0])[0]
    assert (first.gate[-1] == 0).all() and (first.memory[-1] == 0).all() and (first.gate[0] > 0).all()
    assert torch.equal(first.rest[-1].isnan(), torch.zeros(HEADS, HEAD_DIM, dtype=torch.bool))
    frame = compare([[first]], [{0: (first.gate, torch.where(first.gate[..., None] > 0, first.memory, 9.0))}])
    assert value(frame, "memory_error") == 0 and value(frame, "memory_cosine") == pytest.approx(1)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_it_was(base, fails):
    prompt, model = layouts(base)[0], base.model
    model.train()
    model.get_decoder().layers[1].mlp.eval()
    before = _state(model, prompt)
    if fails:
        broken = model.get_decoder().layers[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            exact(base, prompt)
        broken.remove()
    else:
        exact(base, prompt)
    after = _state(model, prompt)
    assert torch.equal(after.pop("logits"), before.pop("logits")) and after == before


def _state(model, prompt):
    modules = dict(model.named_modules())
    return {
        "logits": model(input_ids=torch.tensor([prompt.ids])).logits,
        "implementation": model.config._attn_implementation,
        "training": {name: module.training for name, module in modules.items()},
        "hooks": {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in modules.items()},
        "gradients": {name: weight.requires_grad for name, weight in model.named_parameters()},
    }


def test_exact_refuses_an_adapter_and_a_closed_book(llama, gated):
    with pytest.raises(ValueError, match="without an adapter"):
        exact(gated, layouts(llama)[0])
    closed = layout(llama.tokenizer, DOCUMENT, QUESTIONS[0], "none", 256, 8)
    with pytest.raises(ValueError, match="context 'full'"):
        exact(llama, closed)
    with pytest.raises(ValueError, match="has no gates"):
        learned(llama, exact(llama, layouts(llama)[0]))


def test_learned_is_what_the_networks_say_to_the_exact_queries(gated, splits):
    said = learned(gated, splits[0])
    assert list(said) == [0, 1]
    for split, layer in zip(splits[0], layers_of(gated.model), strict=True):
        gate, memory = layer.gated_memory["default"](split.query[None])
        assert torch.equal(said[split.layer][0], gate[0, :, :, 0]) and torch.equal(said[split.layer][1], memory[0])
        assert not said[split.layer][1].requires_grad and said[split.layer][0].shape == split.gate.shape


def test_only_layers_with_a_memory_are_compared(llama, splits):
    settings = GatedMemoryConfig(task_type="CAUSAL_LM", layers_to_transform=[1])
    with adapters.attached(llama.model, settings) as model:
        frame = compare(splits, [learned(replace(llama, model=model), question) for question in splits])
    assert set(frame.layer) == {1} and not frame.duplicated(["layer", "role", "metric"]).any()
    assert len(frame) == 3 * 9 and frame.unit.str.len().min() > 0


def test_an_oracle_has_no_error(splits):
    frame = compare(splits, as_learned(splits))
    for role in ("both", "question", "answer"):
        for layer in (0, 1):
            for metric in ("gate_spearman", "gate_pearson", "memory_cosine"):
                assert value(frame, metric, layer, role) == pytest.approx(1)
            assert value(frame, "memory_error", layer, role) == 0
            assert value(frame, "output_error_learned", layer, role) < 1e-6
            assert value(frame, "output_error_no_memory", layer, role) > 0.01
            assert value(frame, "gate_exact", layer, role) == value(frame, "gate_learned", layer, role)


def test_metrics_are_their_formulas_over_all_questions(gated, splits):
    said = [learned(gated, question) for question in splits]
    frame = compare(splits, said)
    for role in ("both", "question", "answer"):
        rows = [[r == role or role == "both" for r in question[1].roles] for question in splits]

        def pooled(tensors, rows=rows):
            return np.concatenate([tensor[r].numpy() for tensor, r in zip(tensors, rows, strict=True)])

        full, gate, memory, rest = (
            pooled([getattr(question[1], name) for question in splits]) for name in ("full", "gate", "memory", "rest")
        )
        g, m = (pooled([answers[1][part] for answers in said]) for part in (0, 1))
        norm = np.linalg.norm
        wanted = {
            "gate_exact": gate.mean(),
            "gate_learned": g.mean(),
            "gate_pearson": np.corrcoef(g.ravel(), gate.ravel())[0, 1],
            "gate_spearman": np.corrcoef(g.ravel().argsort().argsort(), gate.ravel().argsort().argsort())[0, 1],
            "memory_cosine": ((m * memory).sum(-1) / norm(m, axis=-1) / norm(memory, axis=-1)).mean(),
            "memory_error": norm(m - memory) / norm(memory),
            "output_error_learned": norm((1 - g[..., None]) * rest + g[..., None] * m - full) / norm(full),
            "output_error_no_memory": norm(rest - full) / norm(full),
        }
        for metric, number in wanted.items():
            assert value(frame, metric, 1, role) == pytest.approx(number, rel=1e-4), (role, metric)


def test_no_constant_is_better_than_the_best_one(splits):
    frame = compare(splits, as_learned(splits))
    generator = torch.Generator().manual_seed(0)
    for layer in (0, 1):
        full, rest = (torch.cat([getattr(q[layer], name) for q in splits]).double() for name in ("full", "rest"))
        best = value(frame, "output_error_constant", layer)
        assert best <= value(frame, "output_error_no_memory", layer)
        tried = []
        for size in (0.001, 0.03, 1.0) * 100:  # random constants around the best vector for a random c
            c = torch.rand(HEADS, 1, generator=generator, dtype=torch.float64)
            u = (full - (1 - c) * rest).mean(0) + size * torch.randn(HEADS, HEAD_DIM, generator=generator)
            tried.append((((1 - c) * rest + u - full).norm() / full.norm()).item())
        assert best <= min(tried) < 1.5 * best


@pytest.mark.parametrize("share", [1.0, 0.25, 0.0])
def test_a_constant_gate_and_memory_are_found(splits, share):
    rest = splits[0][0].rest
    memory = torch.linspace(-1, 1, HEADS * HEAD_DIM).view(HEADS, HEAD_DIM).expand_as(rest)
    constant = replace(splits[0][0], full=(1 - share) * rest + share * memory)
    frame = compare([[constant]], as_learned([[constant]]))
    assert value(frame, "output_error_constant") < 1e-6


def test_a_gate_out_of_bounds_is_not_a_constant_gate(splits):
    split = splits[0][0]
    for factor in (-1.0, 2.0):  # would need c = 2 and c = -1
        frame = compare([[replace(split, full=factor * split.rest)]], as_learned([[split]]))
        assert value(frame, "output_error_constant") > 0.05


def test_a_constant_gate_has_no_correlation(splits):
    flat = [{0: (torch.full_like(question[0].gate, 0.047), question[0].memory)} for question in splits]
    frame = compare(splits, flat)
    assert np.isnan(value(frame, "gate_spearman")) and np.isnan(value(frame, "gate_pearson"))
    assert value(frame, "gate_learned") == pytest.approx(0.047)


def test_every_question_needs_its_learned_values(splits):
    with pytest.raises(ValueError, match="zip"):
        compare(splits, as_learned(splits)[:1])
