"""What is shared is read once, and changes nothing of what follows."""

import pytest
import torch

from liftlab import adapters
from liftlab.answering import answer_prompts
from liftlab.grouped_positions import grouped
from liftlab.prompts import put
from liftlab.recipes import Recipe
from liftlab.shared_prefixes import can_share, found, found_in_rows, read
from liftlab.worlds import register


def asked(base, seeds, context="full", words=150):
    documents = [register(seed, words) for seed in seeds]
    return [put(base.tokenizer, d, q, context, base.window, 4) for d in documents for q in d.questions[:9]]


@pytest.fixture(params=["plain", "lora", "gated_memory", "grouped"])
def reader(tiny, request):
    """A base model as it is, with an adapter whose weights are not those it begins with, or at grouped positions."""
    if request.param in ("lora", "gated_memory"):
        preset = {"lora": "micro/lora", "gated_memory": "micro/gated_memory"}[request.param]
        with adapters.attached(tiny.model, adapters.config(Recipe.preset(preset))) as wrapped:
            with torch.no_grad():
                for weight in wrapped.parameters():
                    if weight.requires_grad:
                        weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
            yield wrapped
    elif request.param == "grouped":
        with grouped(tiny.model, 4, 32):
            yield tiny.model
    else:
        yield tiny.model


@torch.no_grad()
def test_the_logits_after_a_shared_prefix_are_those_of_the_whole_prompt(tiny, reader):
    prompts = asked(tiny, (0, 1, 2))
    shared = found(prompts)
    ids, mask, cache = read(reader, shared, tiny.tokenizer.pad_token_id)
    start, positions = cache.get_seq_length(), (mask.cumsum(-1) - 1).clamp(min=0)
    rest = {"input_ids": ids[:, start:], "position_ids": positions[:, start:]}
    after = reader(**rest, attention_mask=mask, past_key_values=cache).logits[:, -1]
    whole = torch.stack([reader(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in prompts])
    torch.testing.assert_close(after, whole, rtol=1e-5, atol=1e-5)


def test_answers_are_those_of_prompts_read_whole(tiny, monkeypatch):
    for context in ("full", "truncated"):
        prompts = asked(tiny, (0, 1, 2), context, words=150 if context == "full" else 500)
        assert found(prompts) is not None
        with_shared = answer_prompts(tiny, prompts, 6)
        with monkeypatch.context() as patched, torch.no_grad():
            patched.setattr("liftlab.answering.can_share", lambda model: False)
            assert answer_prompts(tiny, prompts, 6) == with_shared


def test_fewer_tokens_are_read(tiny, monkeypatch):
    read_tokens = []
    tiny.model.get_decoder().register_forward_pre_hook(
        lambda module, given, settings: read_tokens.append(settings["input_ids"].numel()), with_kwargs=True
    )
    prompts = asked(tiny, (0, 1))
    answer_prompts(tiny, prompts, 1)
    assert sum(read_tokens) < 0.4 * sum(map(len, prompts))


def test_a_prefix_and_the_rest_are_the_prompt_and_no_rest_is_empty(tiny):
    for prompts in (asked(tiny, (0, 1, 2)), asked(tiny, (3,), "truncated", 500), [[5, 6], [5, 6], [5, 6, 7]] * 20):
        for shared in (found(prompts), found_in_rows(prompts, 1)):
            if shared is not None:
                again = [shared.prefixes[i] + rest for i, rest in zip(shared.owners, shared.rests, strict=True)]
                assert again == prompts
                assert all(shared.rests)


def test_each_document_has_a_prefix_of_its_own(tiny):
    prompts = asked(tiny, (0, 1, 2))
    shared = found(prompts)
    assert len(shared.prefixes) == 3
    assert [len(set(shared.owners[i : i + 9])) for i in (0, 9, 18)] == [1, 1, 1]
    assert found_in_rows(prompts, 3).owners == [0] * 9 + [1] * 9 + [2] * 9


def test_where_little_is_shared_prompts_are_read_whole(tiny):
    assert found(asked(tiny, (0, 1), "none")) is None
    assert found(asked(tiny, (0,))[:1]) is None
    assert found_in_rows(asked(tiny, (0, 1)), 18) is None


def test_a_cartridge_a_sliding_window_or_changing_positions_are_read_whole(tiny):
    assert can_share(tiny.model)
    recipe = Recipe.preset("micro/cartridge", prefix_tokens=4)
    with adapters.attached(tiny.model, adapters.config(recipe)) as wrapped:
        assert not can_share(wrapped)
    config, own = tiny.model.config, tiny.model.config.rope_parameters
    for changed in ({"sliding_window": 64}, {"layer_types": ["full_attention", "sliding_attention"]},
                    {"rope_parameters": {**own, "rope_type": "dynamic"}},
                    {"rope_parameters": {"full_attention": {**own, "rope_type": "longrope"}}}):  # fmt: skip
        before = {name: getattr(config, name, None) for name in changed}
        for name, value in changed.items():
            setattr(config, name, value)
        assert not can_share(tiny.model), changed
        for name, value in before.items():
            setattr(config, name, value)
    assert can_share(tiny.model)
