"""Grouped positions: the paper's formula pair by pair, the same with a cache and padding, and no trace afterwards."""

from copy import deepcopy
from dataclasses import replace

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from test_gated_architectures import KINDS, TINY, WIDE, model_of

from liftlab import grouped_positions
from liftlab.answering import answer_prompts
from liftlab.grouped_positions import NAME, cannot, grouped, reach
from liftlab.models import load
from liftlab.prompts import put
from liftlab.worlds import register

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft 0.21
KIND = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", WIDE),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", WIDE),
    "mistral": ("MistralConfig", "MistralForCausalLM", TINY | {"sliding_window": None}),
}
WINDOW = 32  # of the models below; 40 tokens are read
IDS = torch.randint(1, 97, (2, 40), generator=torch.Generator().manual_seed(5))


@pytest.fixture(params=KIND)
def model(request):
    settings_class, model_class, sizes = KIND[request.param]
    made = model_of(settings_class, model_class, "sdpa", **sizes | {"max_position_embeddings": WINDOW})
    generator = torch.Generator().manual_seed(3)
    for name, weight in made.named_parameters():  # attention that is not the same everywhere
        if "q_proj" in name or "k_proj" in name:
            weight.mul_(3 + torch.rand(weight.shape, generator=generator))
    return made


@torch.no_grad()
def logits(model, ids, **inputs):
    return model(input_ids=ids, **inputs).logits


def explicit(model, ids, group, neighbours):
    """The hidden states after the first layer's attention, each pair of tokens turned by its distance in float64."""
    layer = model.model.layers[0]
    attention, config = layer.self_attn, model.config
    hidden = layer.input_layernorm(model.model.embed_tokens(ids)).double()
    size = attention.head_dim
    parts = {}
    for name in ("q", "k", "v"):
        projection = getattr(attention, f"{name}_proj")
        part = (hidden @ projection.weight.double().T).unflatten(-1, (-1, size))
        norm = getattr(attention, f"{name}_norm", None)
        parts[name] = norm(part.float()).double() if norm else part
    base = config.rope_parameters["rope_theta"]
    angle = torch.tensor([base ** (-2 * i / size) for i in range(size // 2)], dtype=torch.float64)
    numbers = {name: torch.complex(*part.chunk(2, dim=-1)) for name, part in parts.items() if name != "v"}
    heads, shared = config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads
    out = torch.zeros(ids.shape[1], heads, size, dtype=torch.float64)
    for head in range(heads):
        for m in range(ids.shape[1]):
            scores = []
            for n in range(m + 1):
                far = m - n >= neighbours
                distance = m // group - n // group + neighbours - neighbours // group if far else m - n
                turn = torch.polar(torch.ones_like(angle), angle * distance)
                product = numbers["q"][0, m, head] * turn * numbers["k"][0, n, head // shared].conj()
                scores.append(product.real.sum() / size**0.5)
            weights = torch.stack(scores).softmax(0)
            out[m, head] = (weights[:, None] * parts["v"][0, : m + 1, head // shared]).sum(0)
    return out.flatten(1) @ attention.o_proj.weight.double().T


@pytest.mark.parametrize(("group", "neighbours"), [(2, 8), (3, 8), (4, 1), (1, 8), (8, 31)])
@torch.no_grad()
def test_attention_is_the_paper_s_formula_for_every_pair(model, group, neighbours):
    ids, seen = IDS[:1, : min(40, reach(WINDOW, group, neighbours))], []
    hook = model.model.layers[0].self_attn.register_forward_hook(lambda module, given, out: seen.append(out[0][0]))
    with grouped(model, group, neighbours):
        logits(model, ids)
    hook.remove()
    wanted = explicit(model, ids, group, neighbours)
    torch.testing.assert_close(seen[0].double(), wanted, atol=1e-4, rtol=0)
    assert wanted.abs().max() > 0.1


def test_a_group_of_one_is_the_model_itself(model):
    with grouped(model, 1, 5):
        said = logits(model, IDS[:, :WINDOW])
    torch.testing.assert_close(said, logits(model, IDS[:, :WINDOW]), atol=1e-5, rtol=0)


def test_only_what_has_farther_tokens_changes(model):
    plain = logits(model, IDS)
    with grouped(model, 4, 16):
        said, short = logits(model, IDS), logits(model, IDS[:, :16])
    torch.testing.assert_close(said[:, :16], plain[:, :16], atol=1e-5, rtol=0)
    torch.testing.assert_close(short, plain[:, :16], atol=1e-5, rtol=0)
    assert ((said - plain)[:, 20:].abs().amax(-1) > 1e-3).all()


def test_few_scores_at_once_are_the_same(model, monkeypatch):
    with grouped(model, 4, 8):
        at_once = logits(model, IDS)
        monkeypatch.setattr(grouped_positions, "MOST_SCORES", 3 * 2 * 4 * 40)  # three queries
        torch.testing.assert_close(logits(model, IDS), at_once, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("steps", [[40], [12, 20, 8], [30, *[1] * 10]])
def test_the_cache_changes_nothing(model, steps):
    with grouped(model, 4, 8):
        whole, past, said = logits(model, IDS, use_cache=False), None, []
        for part in IDS.split(steps, dim=1):
            outputs = model(input_ids=part, past_key_values=past, use_cache=True)
            past = outputs.past_key_values
            said.append(outputs.logits)
    torch.testing.assert_close(torch.cat(said, dim=1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("counted", [True, False])  # whether the positions begin at the first real token
def test_padding_changes_nothing(model, side, counted):
    ids, lengths = torch.cat([IDS, IDS[:1].flip(1)]), (40, 31, 7)
    mask = torch.stack([(torch.arange(40) < length).long() for length in lengths])
    mask = mask.flip(1) if side == "left" else mask
    places = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if counted else {}
    with grouped(model, 4, 8):
        said = logits(model, torch.where(mask.bool(), ids, 0), attention_mask=mask, **places)
        for row, real, told in zip(ids, mask.bool(), said, strict=True):
            torch.testing.assert_close(told[real], logits(model, row[real][None])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("cache", ["dynamic", "static", None])
def test_padded_batches_are_continued_as_each_prompt_alone(model, cache):
    """Beyond the window, under every cache, and without a warning."""
    model.generation_config.eos_token_id = None
    mask = torch.stack([torch.arange(40) >= 40 - length for length in (40, 25)]).long()
    settings = dict(max_new_tokens=6, do_sample=False, pad_token_id=0)
    with grouped(model, 4, 8):
        kind = {"cache_implementation": cache} if cache else {"use_cache": False}
        said = model.generate(input_ids=IDS * mask, attention_mask=mask, **settings, **kind)[:, 40:]
        for row, real, told in zip(IDS, mask.bool(), said, strict=True):
            ids = row[real][None]
            for _ in range(6):
                ids = torch.cat([ids, logits(model, ids)[:, -1:].argmax(-1)], dim=1)
            assert torch.equal(ids[0, -6:], told)


def adapted(model):
    torch.manual_seed(1)
    made = peft.get_peft_model(deepcopy(model), peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1)
    return made.eval()


def test_an_adapter_reads_as_its_merged_weights_do(model):
    adapter = adapted(model)
    plain = logits(adapter, IDS)
    assert cannot(adapter) == ""
    with grouped(adapter, 4, 8):
        said = logits(adapter, IDS)
        with adapter.disable_adapter():
            without = logits(adapter, IDS)
    with grouped(model, 4, 8):
        torch.testing.assert_close(without, logits(model, IDS), atol=1e-5, rtol=0)
    assert torch.equal(logits(adapter, IDS), plain)
    merged = adapter.merge_and_unload()
    with grouped(merged, 4, 8):
        torch.testing.assert_close(said, logits(merged, IDS), atol=1e-4, rtol=0)
    assert (said - without).abs().max() > 1e-3


def test_the_model_is_itself_afterwards(model):
    before, config, weights = logits(model, IDS), model.config.to_dict(), deepcopy(model.state_dict())
    with grouped(model, 4, 8):
        logits(model, IDS)
        assert model.config._attn_implementation == NAME
    with pytest.raises(KeyError, match="stop"), grouped(model, 2, 4):
        raise KeyError("stop")
    again = pytest.raises(ValueError, match="reads with grouped positions already")
    with grouped(model, 2, 4), again, grouped(model, 2, 4):
        pass
    assert model.config._attn_implementation == "sdpa" and model.config.to_dict() == config
    assert torch.equal(logits(model, IDS), before) and not grouped_positions._open
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in weights.items())


def test_two_models_are_read_side_by_side(model):
    other = deepcopy(model)
    with grouped(model, 4, 8):
        wanted = logits(model, IDS)
    with grouped(other, 2, 8), grouped(model, 4, 8):
        assert torch.equal(logits(model, IDS), wanted) and not torch.equal(logits(other, IDS), wanted)


@settings(derandomize=True, max_examples=50, deadline=None, database=None)
@given(some.integers(1, 60), some.integers(1, 9), some.integers(1, 60))
def test_no_distance_is_beyond_training_and_one_more_token_would_be(window, group, neighbours):
    neighbours = min(neighbours, window)
    tokens = reach(window, group, neighbours)

    def farthest(count):
        """The largest distance, as the last of `count` tokens sees the others."""
        last, shift = count - 1, neighbours - neighbours // group
        return max(last - n if last - n < neighbours else last // group - n // group + shift for n in range(count))

    assert farthest(tokens) <= window - 1 < farthest(tokens + 1)
    if neighbours % group == 0:
        assert tokens == (window - neighbours) * group + neighbours


def test_whole_documents_are_answered_from_beyond_the_window():
    """As a study would: the same base model with a larger window."""
    base, document = load("micro"), register(150, 300)
    asked = document.asked("held_out")[3::16]
    window = reach(base.window, 4, 64)
    with grouped(base.model, 4, 64):
        wide = replace(base, window=window)
        prompts = [put(wide.tokenizer, document, q, "full", wide.window, 8) for q in asked]
        said = answer_prompts(wide, prompts)
    assert all(base.window < len(prompt) <= window - 8 for prompt in prompts)
    right = sum(text == question.answer for text, question in zip(said, asked, strict=True))
    assert len(asked) >= 4 and right > len(asked) / 2
    assert base.model.config.max_position_embeddings == base.window == 256


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("gemma2", "caps its attention scores softly"), ("gemma3_text", "layers with a sliding window"),
     ("mistral", "layers with a sliding window")],
)  # fmt: skip
def test_an_architecture_that_cannot_says_why(kind, reason):
    settings_class, model_class, sizes = KINDS[kind]
    model = model_of(settings_class, model_class, **sizes)
    assert reason in cannot(model)
    refusal = pytest.raises(ValueError, match=f"cannot read with grouped positions, it .*{reason}.*: use another")
    with refusal, grouped(model, 2, 4):
        pass


def test_positions_that_cannot_be_grouped_say_why():
    cases = {
        "rope_type dynamic": {"rope_type": "dynamic", "factor": 2.0},
        "": {"rope_type": "linear", "factor": 2.0},
    }
    for reason, rope in cases.items():
        made = model_of("LlamaConfig", "LlamaForCausalLM", **TINY, rope_parameters={"rope_theta": 1e4, **rope})
        assert cannot(made).endswith(f"({reason})" if reason else "") and bool(cannot(made)) == bool(reason)
    gpt2 = model_of("GPT2Config", "GPT2LMHeadModel", vocab_size=97, n_embd=16, n_layer=1, n_head=2)
    assert "its architecture gpt2 is not among llama, mistral, qwen2, qwen3" in cannot(gpt2)


def test_a_prompt_in_the_cache_is_refused(model):
    prefix = peft.get_peft_model(model, peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    assert "stands in the cache" in cannot(prefix)


@pytest.mark.parametrize(
    ("group", "neighbours", "message"),
    [(0, 8, "group = 0: give a whole number of 1 or more"), (2.0, 8, "group = 2.0"), (True, 8, "group = True"),
     (2, 0, "neighbours = 0: give a whole number of 1..32, the window"), (2, 33, "neighbours = 33"),
     (2, "8", "neighbours = '8'")],
)  # fmt: skip
def test_settings_out_of_bounds_are_refused(model, group, neighbours, message):
    for refused in (lambda: reach(WINDOW, group, neighbours), lambda: grouped(model, group, neighbours).__enter__()):
        with pytest.raises(ValueError, match=message):
            refused()
    assert model.config._attn_implementation == "sdpa"


def test_what_cannot_be_read_is_refused(model):
    with grouped(model, 2, 30):
        with pytest.raises(
            ValueError, match="40 tokens are to be read, group 2 and neighbours 30 reach 34: make group"
        ):
            logits(model, IDS)
        packed = torch.cat([torch.arange(10), torch.arange(10)])[None]
        for inputs in (
            {"position_ids": packed, "use_cache": False},
            {"attention_mask": torch.zeros(1, 1, 20, 20)},
        ):
            with pytest.raises(
                ValueError, match="plain causal sequences: pack none, and give no attention mask of four"
            ):
                logits(model, IDS[:1, :20], **inputs)
