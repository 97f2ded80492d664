"""Laws of the probe that tells recited text from known facts and from damage."""

import math
import random
from dataclasses import replace

import pytest
import torch

from liftlab.answering import answer
from liftlab.documents import Document, Question
from liftlab.examples import document_ids
from liftlab.lifting import lift
from liftlab.models import load
from liftlab.probes import memorization
from liftlab.probes.memorization import COLUMNS, bits, cue_starts, probe
from liftlab.recipes import Recipe
from liftlab.worlds import register

SHORT, LONG = register(0, 48), register(1, 700)  # tokens, about: within the tiny window of 256, and beyond it
MEMORIZE = Recipe.preset(
    "micro/lora", adapter="full", segment_tokens=48, offset_tokens=16, mixed_epochs=60, learning_rate=1e-2
)
CUES = {"cue_tokens": 4, "cues": 5, "recite_tokens": 12}


def plain_bits(base, read):
    """Mean bits of (window, index of the scored token) pairs: a window at a time, all logits, float64."""
    log_p = {}
    for window in {tuple(window) for window, _ in read}:
        with torch.no_grad():
            log_p[window] = base.model(input_ids=torch.tensor([window])).logits[0].double().log_softmax(-1)
    return -sum(log_p[tuple(window)][t - 1, window[t]].item() for window, t in read) / math.log(2) / len(read)


def plain_recited(base, ids, position, cue_tokens, limit):
    """Greedy by hand: a whole forward pass a token."""
    said = ids[position : position + cue_tokens]
    for count in range(limit):
        with torch.no_grad():
            token = base.model(input_ids=torch.tensor([said])).logits[0, -1].argmax().item()
        if token != ids[position + cue_tokens + count]:
            return count
        said = [*said, token]
    return limit


@pytest.fixture(scope="module")
def micro():
    return load("micro", device="cpu")


@pytest.fixture
def memorized(tiny):
    with lift(tiny, SHORT, MEMORIZE, progress=False).on(tiny) as on:
        yield on


def test_bits_of_a_text_within_the_window_are_the_plain_ones(tiny):
    ids = document_ids(tiny.tokenizer, SHORT)
    expected = plain_bits(tiny, [(ids, t) for t in range(1, len(ids))])
    assert bits(tiny, ids) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("window", [16, 17, 64])
@pytest.mark.parametrize("batch_tokens", [1, 200])
def test_bits_beyond_the_window_are_those_of_windows_that_overlap_by_half(tiny, window, batch_tokens, monkeypatch):
    """Every token but the first once, in the first window that reaches it; the last window ends with the text."""
    monkeypatch.setattr(memorization, "BATCH_TOKENS", batch_tokens)
    small, half = replace(tiny, window=window), window // 2
    for tokens in (window, window + 1, window + half, window + half + 1, 150):
        ids = document_ids(tiny.tokenizer, LONG)[:tokens]
        read = [(ids[:window], t) for t in range(1, window)]
        for token in range(window, tokens):
            start = min(math.ceil((token + 1 - window) / half) * half, tokens - window)
            assert token - start >= half
            read.append((ids[start : start + window], token - start))
        assert len(read) == tokens - 1
        assert bits(small, ids) == pytest.approx(plain_bits(small, read), abs=1e-5)


@pytest.mark.parametrize("document", [SHORT, LONG])
def test_a_uniform_model_needs_log2_of_the_vocabulary(tiny, document):
    tiny.model.get_output_embeddings().weight.zero_()
    vocabulary = tiny.model.config.vocab_size
    assert bits(tiny, document_ids(tiny.tokenizer, document)) == pytest.approx(math.log2(vocabulary), rel=1e-6)


def test_training_on_a_document_saves_bits_on_it(tiny):
    recipe = replace(MEMORIZE, adapter="lora", mixed_epochs=3)
    before = probe(tiny, SHORT, **CUES).query("metric == 'bits_per_token'").value.item()
    with lift(tiny, SHORT, recipe, progress=False).on(tiny) as on:
        assert probe(on, SHORT, **CUES).query("metric == 'bits_per_token'").value.item() < before - 0.1


def test_a_row_for_each_text_that_is_given_title_included(tiny):
    frame = probe(tiny, SHORT, paraphrase=register(0, 48, wording_seed=1), unseen=LONG, **CUES)
    rows = frame[frame.metric == "bits_per_token"].set_index("text")
    assert list(rows.index) == ["document", "paraphrase", "unseen"] and set(rows.unit) == {"bits a token"}
    assert rows.tokens["unseen"] == len(tiny.tokenizer(f"{LONG.title}\n{LONG.text}")["input_ids"]) - 1
    assert list(frame.columns) == COLUMNS and frame.value.map(math.isfinite).all()
    assert set(probe(tiny, SHORT, **CUES).text.dropna()) == {"document"}


def test_a_document_learned_by_heart_is_recited_to_the_limit(memorized):
    """From a segment's start, with the same few tokens before it as in training."""
    frame = probe(memorized, SHORT, segment_tokens=48, offset_tokens=16, **CUES)
    rows = frame[frame.metric == "recited_tokens"]
    assert set(rows[rows.place == "segment_start"].value) == {12.0} == set(rows.limit)
    assert frame.value[0] < 0.5  # bits


def test_recited_tokens_are_those_of_a_plain_loop(memorized, monkeypatch):
    """Also where reciting goes wrong on the way: the text is another order of the sentences learned."""
    monkeypatch.setattr(memorization, "BATCH_TOKENS", 40)
    ordered = SHORT.text.split(". ")
    mixed = replace(SHORT, text=". ".join([*ordered[::2], *ordered[1::2]]), questions=())
    ids = document_ids(memorized.tokenizer, mixed)
    rows = probe(memorized, mixed, cue_tokens=3, cues=9, recite_tokens=10).query("metric == 'recited_tokens'")
    expected = [plain_recited(memorized, ids, int(position), 3, 10) for position in rows.position]
    assert list(rows.value) == expected and len(rows) == 9
    assert 0 < sum(expected) < 90


def test_a_short_document_is_recited_to_its_end(memorized):
    """One cue; as many tokens as there are after it."""
    ids = document_ids(memorized.tokenizer, SHORT)
    frame = probe(memorized, SHORT, cue_tokens=6, recite_tokens=200).query("metric == 'recited_tokens'")
    assert (frame.position.item(), frame.limit.item()) == (0, len(ids) - 6)
    assert frame.value.item() == plain_recited(memorized, ids, 0, 6, len(ids) - 6)


def test_a_penalty_of_the_model_s_own_does_not_change_what_is_recited(memorized):
    before = probe(memorized, SHORT, **CUES)
    memorized.model.generation_config.repetition_penalty = 5.0
    assert probe(memorized, SHORT, **CUES).equals(before)


def test_cues_stand_where_they_should():
    assert cue_starts(10, 3, None, None) == [("anywhere", 0), ("anywhere", 5), ("anywhere", 10)]
    assert cue_starts(2, 9, None, None) == [("anywhere", 0), ("anywhere", 1), ("anywhere", 2)]
    assert cue_starts(10, 1, None, None) == [("anywhere", 0)]
    starts, middles = [0, 24, 48, 72, 96], [12, 36, 60, 84]
    both = [("segment_start", start) for start in starts] + [("segment_middle", middle) for middle in middles]
    assert cue_starts(100, 5, 64, 24) == both
    assert [position for _, position in cue_starts(100, 2, 64, 24)] == [0, 96, 12, 84]
    assert cue_starts(3, 2, 4, 1) == [("segment_start", 0), ("segment_start", 3)]


def test_every_cue_leaves_the_same_number_of_tokens_to_recite(tiny):
    tokens = len(document_ids(tiny.tokenizer, LONG))
    rows = probe(tiny, LONG, segment_tokens=64, offset_tokens=24).query("metric == 'recited_tokens'")
    assert rows.groupby("place").size().to_dict() == {"segment_start": 12, "segment_middle": 12}
    assert set(rows.limit) == {32} and (rows.position + 8 + 32 <= tokens).all()
    assert rows.depth.between(0, 1).all() and rows.depth.min() == 0 and rows.depth.max() > 0.9
    assert (rows[rows.place == "segment_start"].position % 24 == 0).all()
    assert (rows[rows.place == "segment_middle"].position % 24 == 12).all()


def test_a_row_a_question_closed_book(micro):
    """What `answer` says without the document scores 1 as the reference, and nothing else does."""
    questions = [*LONG.asked()[:3], Question("Where?", "no such word", kind="town", wording="trained", hops=2)]
    rows = probe(micro, LONG, questions, **CUES).query("metric == 'exact_match'")
    assert list(rows.question) == [question.text for question in questions]
    assert list(rows.wording) == [question.wording for question in questions]
    assert list(rows.hops) == [1, 1, 1, 2] and rows.kind.iloc[-1] == "town" and rows.value.iloc[-1] == 0.0
    assert rows.depth.tolist()[:3] == [LONG.depth(question) for question in questions[:3]]
    assert rows.depth.isna().tolist() == [False, False, False, True]
    said = answer(micro, LONG, questions, "none")
    right = [replace(question, answer=text) for question, text in zip(questions, said, strict=True)]
    assert set(probe(micro, LONG, right, **CUES).query("metric == 'exact_match'").value) == {1.0}


def test_two_runs_are_equal_and_leave_no_trace(micro):
    model = micro.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    model.get_decoder().layers[0].eval()
    try:
        modes = [(name, module.training) for name, module in model.named_modules()]
        drawn, rolled = torch.get_rng_state(), random.getstate()
        frames = [probe(micro, LONG, LONG.asked()[:2], unseen=SHORT, **CUES) for _ in range(2)]
        assert frames[0].equals(frames[1])
        assert modes == [(name, module.training) for name, module in model.named_modules()]
        assert torch.equal(drawn, torch.get_rng_state()) and rolled == random.getstate()
    finally:
        model.eval()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cue_tokens": 0}, "cue_tokens = 0: must be at least 1"),
        ({"cues": 0}, "cues = 0: must be at least 1"),
        ({"recite_tokens": 0}, "recite_tokens = 0: must be at least 1"),
        ({"recite_tokens": 249}, "cue_tokens = 8 and recite_tokens = 249 take 257 tokens.*tiny is 256: make them"),
        ({"segment_tokens": 64}, "segment_tokens = 64 and offset_tokens = None: give both"),
        ({"segment_tokens": 8, "offset_tokens": 9}, "offset_tokens = 9 with segment_tokens = 8"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(tiny, settings, message):
    with pytest.raises(ValueError, match=message):
        probe(tiny, SHORT, **settings)


def test_a_document_without_a_token_to_recite_is_refused(tiny):
    document = Document("d", "Ada lives in Oslo .")
    with pytest.raises(ValueError, match="'d' has 5 tokens.*a cue has 5.*make cue_tokens at most 4"):
        probe(tiny, document, cue_tokens=5)
    assert probe(tiny, document, cue_tokens=4).limit.dropna().tolist() == [1]
