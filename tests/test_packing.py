"""Packed sequences are read as if each stood alone."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

from liftlab.examples import IGNORED, Example
from liftlab.packing import SequenceAttention, pack, padded_length


def example(length, seed=0, labels=None):
    ids = tuple(torch.randint(5, 90, (length,), generator=torch.Generator().manual_seed(seed * 1000 + length)).tolist())
    return Example(ids, ids if labels is None else labels, "pair")


def packed(rows, weight=1.0):
    return pack(rows, [lambda e: weight] * len(rows), 0)


def hidden(model, batch):
    with SequenceAttention(model).within(batch):
        out = model.get_decoder()(input_ids=batch.ids, position_ids=batch.positions, use_cache=False)
    return out.last_hidden_state


ROWS = [[example(5, 1), example(9, 2), example(37, 3)], [example(9, 4)], [], [example(5, 5), example(70, 6)]]


def alone(model, one):
    return model.get_decoder()(input_ids=torch.tensor([one.ids]), use_cache=False).last_hidden_state[0]


def check_each_alone(model):
    batch = packed(ROWS)
    found = hidden(model, batch)
    for row, examples in enumerate(ROWS):
        at = 0
        for one in examples:
            torch.testing.assert_close(found[row, at : at + len(one.ids)], alone(model, one), atol=2e-6, rtol=1e-5)
            at += padded_length(len(one.ids))


@torch.no_grad()
def test_a_sequence_is_read_as_if_alone(tiny):
    check_each_alone(tiny.model)


@torch.no_grad()
def test_so_it_is_by_eager_attention(tiny):
    tiny.model.set_attn_implementation("eager")
    check_each_alone(tiny.model)


@torch.no_grad()
def test_so_it_is_with_soft_capping():
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, attn_logit_softcapping=0.5, sliding_window=80, pad_token_id=0,
    )  # fmt: skip
    check_each_alone(Gemma2ForCausalLM._from_config(config, attn_implementation="eager").eval())


def test_a_sequence_beyond_a_sliding_window_is_refused():
    config = MistralConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=64, pad_token_id=0,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    hidden(model, packed([[example(64)]]))
    with pytest.raises(ValueError, match="sliding window of 64 tokens.*one by one"):
        hidden(model, packed([[example(65)]]))


def test_gradients_stay_within_a_sequence(tiny):
    model = tiny.model
    embed = model.get_input_embeddings()
    rows = [[example(6, 1), example(11, 2)], [example(6, 3)]]
    batch = packed(rows)
    vectors = embed(batch.ids).detach().requires_grad_()
    with SequenceAttention(model).within(batch):
        out = model.get_decoder()(inputs_embeds=vectors, position_ids=batch.positions, use_cache=False)
        out.last_hidden_state[0, 6:17].square().sum().backward()
    touched = vectors.grad.abs().sum(-1) > 0
    assert touched[0, 6:17].all()
    assert touched.sum() == 11


def test_the_attention_of_the_model_is_its_own_again(tiny):
    own = tiny.model.config._attn_implementation
    with pytest.raises(KeyError), SequenceAttention(tiny.model).within(packed(ROWS)):
        raise KeyError
    assert tiny.model.config._attn_implementation == own
    ids = torch.tensor([[0, 0, 7, 8, 9]])
    mask = (ids > 0).long()
    masked = tiny.model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    torch.testing.assert_close(masked[0, 2:], tiny.model(input_ids=ids[:, 2:]).logits[0], atol=1e-5, rtol=1e-5)


def test_scored_tokens_keep_their_label_weight_and_row():
    one = Example((11, 12, 13, 14), (IGNORED, IGNORED, 13, 14), "pair")
    two = Example((21, 22, 23), (21, 22, 23), "segment")
    batch = pack([[one], [two, one]], [lambda e: 2.0, lambda e: 3.0 if e.kind == "pair" else 1.0], 0)
    flat = batch.ids.flatten()
    assert flat[batch.scored].tolist() == [12, 13, 21, 22, 12, 13]
    assert batch.labels.tolist() == [13, 14, 22, 23, 13, 14]
    assert batch.weights.tolist() == [2, 2, 1, 1, 3, 3]
    assert batch.rows.tolist() == [0, 0, 1, 1, 1, 1]
    assert batch.real.tolist() == [[True] * 4 + [False] * 3, [True] * 7]


def test_order_and_back_undo_each_other():
    batch = packed(ROWS)
    everywhere = torch.arange(batch.ids.numel())
    assert torch.equal(batch.order[batch.back], everywhere)
    assert torch.equal(batch.order.sort().values, everywhere)
    assert sum(count * length for count, length in batch.shapes) == batch.ids.numel()


@pytest.mark.parametrize("length", [*range(1, 300), 2048, 2049, 5000])
def test_a_sequence_is_padded_by_less_than_a_sixteenth(length):
    padded = padded_length(length)
    assert length <= padded < length * (1 + 1 / 16) + 1e-9
    assert padded_length(padded) == padded


def test_there_are_few_lengths():
    assert len({padded_length(length) for length in range(1, 4097)}) <= 16 * 9


def test_nothing_to_pack_is_refused():
    with pytest.raises(ValueError, match="no example"):
        packed([[], []])
