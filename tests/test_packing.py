"""Packed examples are read as if each stood alone, and what several begin with is read once."""

from functools import partial

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from liftlab.examples import IGNORED, Example
from liftlab.packed_attention import SequenceAttention, attention_of, packed_states
from liftlab.packing import GROUP_TOKENS, MASKED_TOKENS, pack, padded_length, tree_tokens


def tokens(length, seed=0):
    return tuple(
        torch.randint(5, 90, (length,), generator=torch.Generator().manual_seed(seed * 1000 + length)).tolist()
    )


def example(length, seed=0, begin=()):
    ids = (*begin, *tokens(length, seed))
    return Example(ids, ids, "pair")


def packed(rows, weight=1.0):
    return pack(rows, [lambda e: weight] * len(rows), 0)


def states(model, batch):
    with SequenceAttention(model).within(batch):
        return packed_states(model, batch)[0]


LIKE = tokens(30, 9)
SHORT = [
    [example(5, 1), example(9, 2), example(7, 3, LIKE)],
    [example(9, 4)],
    [],
    [example(5, 5, LIKE[:4]), example(3)],
]
LONG = [
    [example(5, 1), example(9, 2, LIKE), example(37, 3, LIKE), example(37, 3, LIKE)],
    [example(9, 4)],
    [],
    [example(5, 5), example(70, 6), example(2, 7, tokens(70, 6)[:60]), example(66, 8), example(17, 8, LIKE)],
]
BOTH = pytest.mark.parametrize("rows", [SHORT, LONG], ids=["masked", "written out"])


def alone(model, one):
    return model.get_decoder()(input_ids=torch.tensor([one.ids]), use_cache=False).last_hidden_state[0]


def places_of(batch, document, one):
    """Where the tokens of an example stand, found by walking its row: each next one within the last one's followers."""
    ids, ends, owners = batch.ids[0].tolist(), batch.ends[0].tolist(), batch.owners[0].tolist()
    at = owners.index(document)
    last, found = at + owners.count(document), []
    for token in one.ids:
        while ids[at] != token:
            at = ends[at]
            assert at < last
        found.append(at)
        at += 1
    return found


def check_each_alone(model, rows):
    batch = packed(rows)
    found = states(model, batch)
    assert (batch.written is None) == (rows is SHORT)
    for document, examples in enumerate(rows):
        for one in examples:
            read = found[places_of(batch, document, one)]
            torch.testing.assert_close(read, alone(model, one), atol=2e-6, rtol=1e-5)


@BOTH
@torch.no_grad()
def test_an_example_is_read_as_if_alone(tiny, rows):
    check_each_alone(tiny.model, rows)


@BOTH
@torch.no_grad()
def test_so_it_is_by_eager_attention(tiny, rows):
    tiny.model.set_attn_implementation("eager")
    check_each_alone(tiny.model, rows)


@BOTH
@torch.no_grad()
def test_so_it_is_with_soft_capping(rows):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, attn_logit_softcapping=0.5, sliding_window=80, pad_token_id=0,
    )  # fmt: skip
    check_each_alone(Gemma2ForCausalLM._from_config(config, attn_implementation="eager").eval(), rows)


def test_an_example_beyond_a_sliding_window_is_refused():
    config = MistralConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=64, pad_token_id=0,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    states(model, packed([[example(64)]]))
    assert attention_of(model).takes([example(64)]) and not attention_of(model).takes([example(65)])
    with pytest.raises(ValueError, match="sliding window of 64 tokens.*one by one"):
        states(model, packed([[example(65)]]))


def test_a_model_whose_layers_are_not_known_is_not_packed(tiny):
    other = MptForCausalLM(MptConfig(vocab_size=9, d_model=8, n_heads=2, n_layers=1))
    assert attention_of(other) is None
    assert attention_of(tiny.model) is not None


@BOTH
def test_gradients_are_the_sum_of_those_of_the_examples_alone(tiny, rows, monkeypatch):
    """By every matrix of the decoder, in float64; the norms too, which otherwise round to float32."""
    model = tiny.model.double().requires_grad_(True)
    norm = lambda own, x: x * (x.square().mean(-1, keepdim=True) + own.variance_epsilon).rsqrt() * own.weight  # noqa: E731
    monkeypatch.setattr(type(model.get_decoder().norm), "forward", norm)
    wanted = [parameter for parameter in model.get_decoder().parameters() if parameter.ndim == 2]
    batch = packed(rows)
    with SequenceAttention(model).within(batch):
        hidden = packed_states(model, batch)[0]
        places = [at for document, row in enumerate(rows) for one in row for at in places_of(batch, document, one)]
        found = torch.autograd.grad(hidden[places].square().sum(), wanted)
    expected = [torch.zeros_like(parameter) for parameter in wanted]
    for one in (one for row in rows for one in row):
        for total, gradient in zip(
            expected, torch.autograd.grad(alone(model, one).square().sum(), wanted), strict=True
        ):
            total += gradient
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-10


@BOTH
def test_a_token_touches_its_followers_alone(tiny, rows):
    model = tiny.model
    batch = packed(rows)
    vectors = model.get_input_embeddings()(batch.ids).detach().requires_grad_()
    chosen = places_of(batch, 3, rows[3][0])
    with SequenceAttention(model).within(batch):
        out = model.get_decoder()(inputs_embeds=vectors, position_ids=batch.positions, use_cache=False)
        out.last_hidden_state[0, chosen].square().sum().backward()
    touched = vectors.grad[0].abs().sum(-1) > 0
    assert touched.nonzero().flatten().tolist() == sorted(chosen)


def test_the_attention_of_the_model_is_its_own_again(tiny):
    own = tiny.model.config._attn_implementation
    with pytest.raises(KeyError), SequenceAttention(tiny.model).within(packed(LONG)):
        raise KeyError
    assert tiny.model.config._attn_implementation == own
    ids = torch.tensor([[0, 0, 7, 8, 9]])
    mask = (ids > 0).long()
    masked = tiny.model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    torch.testing.assert_close(masked[0, 2:], tiny.model(input_ids=ids[:, 2:]).logits[0], atol=1e-5, rtol=1e-5)


def test_scored_tokens_keep_their_label_weight_and_document():
    one = Example((11, 12, 13, 14), (IGNORED, IGNORED, 13, 14), "pair")
    two = Example((11, 12, 33), (11, 12, 33), "segment")
    batch = pack([[one], [two, one]], [lambda e: 2.0, lambda e: 3.0 if e.kind == "pair" else 1.0], 0)
    ids = batch.ids[0]
    read = zip(ids[batch.places].tolist(), batch.labels.tolist(), batch.weights.tolist(), batch.scored_owners.tolist(),
               strict=True)  # fmt: skip
    assert sorted(read) == [
        (11, 12, 1, 1),
        (12, 13, 2, 0),
        (12, 13, 3, 1),
        (12, 33, 1, 1),
        (13, 14, 2, 0),
        (13, 14, 3, 1),
    ]
    assert batch.documents == (0, 1) and batch.tokens == 11 and batch.weight == 12
    assert sorted(batch.counts[batch.owners == 1].tolist()) == [1, 1, 1, 2, 2]


def test_a_shared_beginning_stands_there_once():
    rows = [example(4, 1, LIKE), example(6, 2, LIKE), example(6, 2, LIKE), example(2, 3, LIKE[:10])]
    assert tree_tokens(rows) == 30 + 4 + 6 + 2
    batch = packed([rows])
    assert batch.ids.shape == (1, 42) and batch.tokens == 34 + 36 + 36 + 12
    assert int(batch.counts.sum()) == batch.tokens and int(batch.counts.max()) == 4


def test_written_out_each_place_is_taken_once():
    batch = packed(LONG)
    written, places = batch.written, torch.arange(batch.ids.numel())
    assert torch.equal(written.order[written.back], places)
    assert sum(count * length for count, length in written.shapes) == len(written.order)
    again = written.order[written.again].bincount(minlength=len(places))
    assert torch.equal(again, (batch.counts[0] - 1).clamp(min=0))


@pytest.mark.parametrize("lengths", [(50,), (50, 49, 48, 20, 19), (300, 200, 100), (40, 39, 38, 37), (90, *[12] * 9)])
def test_rows_of_like_length_stand_together_and_no_grouping_is_cheaper(lengths):
    batch = packed([[example(length, seed)] for seed, length in enumerate(reversed(lengths))])
    cost = lambda groups: sum(count * length + GROUP_TOKENS for count, length in groups)  # noqa: E731
    in_order = lengths if len(batch.groups) > 1 else lengths[::-1]  # one group leaves the documents where they are
    assert [lengths[::-1][document] for document in batch.documents] == list(in_order)
    assert sum(count for count, _ in batch.groups) == len(lengths)
    assert batch.ids.numel() == sum(count * length for count, length in batch.groups)
    for split in range(2 ** (len(lengths) - 1)):  # every way to cut the rows into groups
        cuts = [0, *(at for at in range(1, len(lengths)) if split >> (at - 1) & 1), len(lengths)]
        other = [(end - begin, lengths[begin]) for begin, end in zip(cuts, cuts[1:], strict=False)]
        assert cost(batch.groups) <= cost(other)


@pytest.mark.parametrize("length", [*range(1, 300), 2048, 2049, 5000])
def test_a_sequence_is_padded_by_less_than_a_sixteenth(length):
    padded = padded_length(length)
    assert length <= padded < length * (1 + 1 / 16) + 1e-9
    assert padded_length(padded) == padded


def test_there_are_few_lengths():
    assert len({padded_length(length) for length in range(1, 4097)}) <= 16 * 9


def test_long_rows_are_written_out():
    at_most, beyond = ([example(n, 1)] for n in (MASKED_TOKENS, MASKED_TOKENS + 1))
    assert packed([at_most]).written is None and packed([beyond]).written is not None


@pytest.mark.parametrize("pack_rows", [packed, partial(pack, weights_of=[], pad=0)], ids=["rows", "no weights"])
def test_nothing_to_pack_is_refused(pack_rows):
    with pytest.raises(ValueError, match="no example"):
        pack_rows([[], []])
