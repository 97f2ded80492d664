"""Perplexity after contexts of two lengths, and the tokens that only the long one predicts."""

import math
import random
from dataclasses import replace
from functools import partial

import pytest
import torch

from liftlab import long_perplexity, probes, records
from liftlab.documents import Document
from liftlab.examples import document_ids
from liftlab.lifting import lift
from liftlab.long_perplexity import Perplexity, key_tokens, of_model, perplexity, rows
from liftlab.recipes import Recipe
from liftlab.worlds import register

SHORT, LONG = register(0, 48), register(1, 100)  # within the window of 64 tokens, and beyond it
ANY = {"alpha": -math.inf, "beta": -math.inf}


@pytest.fixture
def sharp(tiny):
    """The tiny model with larger weights, so that some tokens are likely and what stands far before them matters."""
    for name, weight in tiny.model.named_parameters():
        weight.mul_(12.0 if "attn" in name else 4.0)
    return replace(tiny, window=64)


def plain_nats(base, ids, context):
    """Token by token: all that stands before it, at most `context` tokens, read alone, float64."""
    nats = {}
    for at in range(1, len(ids)):
        with torch.no_grad():
            logits = base.model(input_ids=torch.tensor([ids[max(0, at - context) : at]])).logits[0, -1]
        nats[at] = -logits.double().log_softmax(-1)[ids[at]].item()
    return nats


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("batch_tokens", [1, 200])
@pytest.mark.parametrize("context", [1, 2, 17, 63, 64])
def test_perplexity_is_that_of_the_plain_loop(tiny, context, batch_tokens, monkeypatch):
    monkeypatch.setattr(long_perplexity, "BATCH_TOKENS", batch_tokens)
    base = replace(tiny, window=64)
    nats = plain_nats(base, document_ids(base.tokenizer, LONG), context)
    found = perplexity(base, LONG, context)
    assert found.tokens == len(nats) and found.nats == pytest.approx(mean(nats.values()), abs=1e-6)
    assert found.value == pytest.approx(math.exp(mean(nats.values())), rel=1e-6)
    some = random.Random(0).sample(sorted(nats), 9)
    assert perplexity(base, LONG, context, some).nats == pytest.approx(mean([nats[at] for at in some]), abs=1e-6)


@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 5), (64, 32), (30, 7)])
def test_with_a_stride_a_token_has_at_most_so_many_less_before_it(tiny, context, stride):
    """Each reading takes `context` tokens and scores the last `stride` of them; the first scores all, the last ends."""
    base, ids = replace(tiny, window=64), document_ids(tiny.tokenizer, LONG)
    nats, last, expected = {}, len(ids) - 1 - context, []
    for at in range(1, len(ids)):
        start = 0 if at <= context else min(math.ceil((at - context) / stride) * stride, last)
        assert start == 0 or context - stride + 1 <= at - start <= context
        if start not in nats:
            with torch.no_grad():
                logits = base.model(input_ids=torch.tensor([ids[start : start + context]])).logits[0]
            nats[start] = logits.double().log_softmax(-1)
        expected.append(-nats[start][at - 1 - start, ids[at]].item())
    assert perplexity(base, LONG, context, stride=stride).nats == pytest.approx(mean(expected), abs=1e-6)


def test_of_a_text_within_the_window_it_is_exp_of_transformers_own_loss(tiny):
    ids = torch.tensor([document_ids(tiny.tokenizer, SHORT)])
    with torch.no_grad():
        loss = tiny.model(input_ids=ids, labels=ids).loss.item()
    assert perplexity(tiny, SHORT, tiny.window) == Perplexity(pytest.approx(math.exp(loss), rel=1e-5), ids.shape[1] - 1)


def test_of_a_uniform_model_it_is_the_vocabulary(tiny):
    tiny.model.get_output_embeddings().weight.zero_()
    assert perplexity(tiny, LONG, 40, stride=8).value == pytest.approx(tiny.model.config.vocab_size, rel=1e-5)


@pytest.mark.parametrize("thresholds", [(2.0, -2.0), (0.5, -6.0), (2.0, -math.inf), (-1.0, -6.0)])
def test_key_tokens_are_those_of_the_plain_loop(sharp, thresholds):
    alpha, beta = thresholds
    ids = document_ids(sharp.tokenizer, LONG)
    short, long = plain_nats(sharp, ids, 8), plain_nats(sharp, ids, 64)
    expected = [at for at in long if -long[at] > beta and short[at] - long[at] > alpha]
    found = key_tokens(sharp, LONG, 8, alpha, beta)
    margin = min(abs(short[at] - long[at] - alpha) for at in long if short[at] != long[at])
    assert margin > 1e-5 and found == expected
    if beta < -2:
        assert 0 < len(found) < len(long)
    if alpha >= 0:
        assert all(at > 8 for at in found)  # up to there both contexts are the same


def test_without_thresholds_every_token_but_the_first_is_key_and_both_perplexities_agree(tiny):
    base = replace(tiny, window=64)
    key = key_tokens(base, LONG, 8, **ANY)
    assert key == list(range(1, len(document_ids(base.tokenizer, LONG))))
    assert perplexity(base, LONG, 64, key) == perplexity(base, LONG, 64)


def test_a_stride_for_the_long_context_is_no_longer_than_half_of_the_short_one_there(sharp):
    """Or its first tokens would have next to no context."""
    table = of_model(sharp, LONG, short_tokens=8, long_tokens=60, stride=20).set_index(["metric", "context"])
    for context, tokens, stride in (("short", 8, 4), ("long", 60, 20)):
        expected = perplexity(sharp, LONG, tokens, stride=stride)
        assert table.loc[("perplexity", context), "value"] == expected.value


def test_without_a_key_token_there_is_no_long_perplexity(sharp):
    assert key_tokens(sharp, LONG, 8, alpha=math.inf) == []
    assert perplexity(sharp, LONG, 8, []) == Perplexity(None, 0) and Perplexity(None, 0).nats is None
    lifted = lift(sharp, SHORT, RAW, progress=False)
    table = rows(sharp, lifted, LONG, short_tokens=8, alpha=math.inf)
    assert set(table.metric) == {"perplexity"} and set(table.key_tokens) == {0} and len(table) == 4


RAW = Recipe.preset("micro/raw", segment_tokens=24, offset_tokens=9, segment_epochs=4, learning_rate=5e-3)


def test_rows_hold_base_and_lift_on_the_key_tokens_of_the_base(sharp):
    lifted = lift(sharp, LONG, RAW, progress=False)
    settings = {"short_tokens": 8, "long_tokens": 60, "alpha": 0.5, "beta": -6.0, "stride": 4}
    table = rows(sharp, lifted, LONG, **settings).set_index(["condition", "context", "metric"])
    key = key_tokens(sharp, LONG, 8, 0.5, -6.0, long_tokens=60, stride=4)
    assert key and set(table.key_tokens) == {len(key)} and len(table) == 8
    with lifted.on(sharp) as on:
        for context, tokens in (("short", 8), ("long", 60)):
            for metric, positions in (("perplexity", None), ("long_perplexity", key)):
                row = table.loc[("lift", context, metric)]
                found = perplexity(on, LONG, tokens, positions, stride=4)
                assert (row.value, row.tokens, row.context_tokens) == (found.value, found.tokens, tokens)
    found = perplexity(sharp, LONG, 60, key, stride=4)
    assert table.loc[("base", "long", "long_perplexity"), "value"] == found.value
    value = table.value.loc[:, "short", "perplexity"]
    assert value["lift"] < value["base"]  # it was trained on just that text
    whole = table.reset_index().assign(study="s", base_model="tiny", document="d", document_tokens=1, seed=0)
    assert len(records.check(whole)) == 8
    with lifted.on(sharp) as on:
        told = {name: value for name, value in settings.items() if name not in ("alpha", "beta")}
        probed = probes.find("long_perplexity")(on, LONG, key=key, **told)
    assert probed.value.tolist() == table.loc["lift"].value.tolist()


def test_the_probe_finds_its_own_key_tokens_and_defaults_to_an_eighth_of_the_window(sharp):
    table = probes.find("long_perplexity")(sharp, LONG, alpha=0.5, beta=-6.0)
    assert dict(zip(table.context, table.context_tokens, strict=True)) == {"short": 8, "long": 64}
    assert set(table.key_tokens) == {len(key_tokens(sharp, LONG, 8, 0.5, -6.0))}


def test_the_base_model_and_the_random_numbers_are_as_before(sharp):
    before, drawn = {n: w.clone() for n, w in sharp.model.state_dict().items()}, torch.get_rng_state()
    found = [(key_tokens(sharp, SHORT, 8, 0.5, -6.0), perplexity(sharp, SHORT, 8)) for _ in range(2)]
    assert found[0] == found[1] and torch.equal(drawn, torch.get_rng_state())
    lifted = lift(sharp, SHORT, RAW, progress=False)
    tables = [rows(sharp, lifted, SHORT, short_tokens=8) for _ in range(2)]
    assert tables[0].equals(tables[1])
    assert all(torch.equal(before[name], value) for name, value in sharp.model.state_dict().items())


BAD = [
    (partial(key_tokens, short_tokens=64), "short_tokens = 64: .* below the long one of 64 tokens"),
    (partial(key_tokens, short_tokens=0), "a context of 0 tokens: .*give 1..64"),
    (partial(key_tokens, short_tokens=8, long_tokens=65), "a context of 65 tokens: the window of tiny is 64"),
    (partial(key_tokens, short_tokens=8, alpha=math.nan), "alpha = nan"),
    (partial(key_tokens, short_tokens=8, beta=math.nan), "beta = nan"),
    (partial(perplexity, context_tokens=65), "a context of 65 tokens: the window of tiny is 64"),
    (partial(perplexity, context_tokens=8, stride=9), "stride = 9 with a context of 8 tokens: give 1..8"),
    (partial(perplexity, context_tokens=8, stride=0), "stride = 0"),
    (partial(perplexity, context_tokens=8, positions=[0]), "position 0: .*the first is not predicted: give .* 1.."),
    (partial(perplexity, context_tokens=8, positions=[3, 999]), "position 999: document .* tokens"),
]


@pytest.mark.parametrize(("measure", "message"), BAD)
def test_what_cannot_be_measured_is_refused_by_name(tiny, measure, message):
    with pytest.raises(ValueError, match=message):
        measure(replace(tiny, window=64), LONG)


def test_a_document_of_one_token_and_another_base_are_refused(tiny):
    with pytest.raises(ValueError, match="nothing to predict"):
        perplexity(tiny, Document("d", "Ada"), 8)
    lifted = lift(tiny, SHORT, RAW, progress=False)
    other = replace(tiny, name="other", provenance={"name": "other", "weights_sha256": "other-0"})
    with pytest.raises(ValueError, match="was lifted on tiny"):
        rows(other, lifted, SHORT)
