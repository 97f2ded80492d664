import random
from dataclasses import replace

import pytest
import torch

from liftlab.answering import answer
from liftlab.documents import Document, Question
from liftlab.models import load
from liftlab.probes import evidence_position, in_context
from liftlab.prompts import put
from liftlab.scoring import exact_match
from liftlab.studies.registers import ask_facts, register_of
from liftlab.worlds import register, word_count

LONG, SHORT = register(0, 600), register(0, 150)
BOTH = pytest.mark.parametrize("module", [in_context, evidence_position])
POSITION = ["question", "wording", "kind", "hops", "depth", "metric", "unit", "value", "place", "would_be"]


def place_by_words(tiny, document, question, answer_tokens):
    """Head and tail as they read in the decoded prompt, the evidence placed by counting words (one token each)."""
    prompt = tiny.tokenizer.decode(put(tiny.tokenizer, document, question, "truncated", tiny.window, answer_tokens))
    if "..." not in prompt:
        return "whole"
    head, tail = (len(part.split()) for part in prompt.split("..."))
    around = word_count(question.text) + len(["<|end|>", "<|assistant|>"])
    head, tail = head - len(["<|user|>"]), word_count(document.text) - (tail - around)
    start, end = (word_count(document.text[:character]) for character in question.evidence)
    edges = [head <= word < tail for word in range(start, end)]  # dropped
    if not any(edges):
        return "head" if end <= head else "tail"
    return "middle" if all(edges) else "cut"


def test_truncation_puts_the_evidence_where_the_prompt_shows_it(tiny):
    questions = LONG.asked()[::5]
    frame = evidence_position.probe(tiny, LONG, questions, context="truncated", answer_tokens=2)
    assert list(frame.columns) == POSITION and set(frame.unit) == {"share of questions"}
    assert list(frame.place) == [place_by_words(tiny, LONG, q, 2) for q in questions] == list(frame.would_be)
    assert set(frame.place) == {"head", "middle", "tail", "cut"}
    depth = frame.groupby("place").depth
    assert depth.max()["head"] < depth.min()["middle"] and depth.max()["middle"] < depth.min()["tail"]


@pytest.mark.parametrize("context, place", [("none", "absent"), ("truncated", "whole"), ("full", "whole")])
def test_a_document_that_fits_is_whole_or_absent(tiny, context, place):
    frame = evidence_position.probe(tiny, SHORT, SHORT.questions[:4], context=context, answer_tokens=2)
    assert set(frame.place) == {place} and set(frame.would_be) == {"whole"}


def test_closed_book_answers_are_split_as_truncation_would(tiny):
    questions = LONG.questions[::9]
    closed = evidence_position.probe(tiny, LONG, questions, answer_tokens=2)
    truncated = [evidence_position.truncated_place(tiny, LONG, q, answer_tokens=2) for q in questions]
    assert set(closed.place) == {"absent"} and list(closed.would_be) == truncated and set(closed.hops) == {1, 2}


def test_evidence_that_touches_an_edge_is_whole():
    """Head ends at character 10, tail starts at 20; spans are end exclusive."""
    place = evidence_position._place
    spans = {(0, 10): "head", (9, 11): "cut", (10, 20): "middle", (19, 21): "cut", (20, 30): "tail", (0, 30): "cut"}
    assert {span: place(span, (10, 20)) for span in spans} == spans
    assert place((0, 30), None) == "whole"


@pytest.mark.parametrize(
    "module, context", [(in_context, "full"), (in_context, "truncated"), (evidence_position, "none")]
)
def test_a_row_a_question_with_the_score_of_its_answer(tiny, module, context):
    right = answer(tiny, SHORT, SHORT.questions[:1], context, answer_tokens=3)[0]
    questions = [replace(SHORT.questions[0], answer=right), *SHORT.questions[1:6]]
    said = answer(tiny, SHORT, questions, context, answer_tokens=3)
    frame = module.probe(tiny, SHORT, questions, context=context, answer_tokens=3)
    assert list(frame.value) == [exact_match(text, q.answer) for text, q in zip(said, questions, strict=True)]
    assert frame.value[0] == 1 and set(frame.metric) == {"exact_match"}
    for row, q in zip(frame.itertuples(), questions, strict=True):
        assert (row.question, row.wording, row.kind, row.hops) == (q.text, q.wording, q.kind, q.hops)
        assert row.depth == SHORT.depth(q)


def test_in_context_names_its_context_and_needs_no_evidence(tiny):
    frame = in_context.probe(tiny, Document("d", "Ada lives in Oslo."), [Question("Where does Ada live?", "Oslo")])
    assert list(frame.context) == ["full"] and frame.depth.isna().all()


def test_what_does_not_apply_is_refused_by_name(tiny):
    with pytest.raises(ValueError, match=r"'register-0' does not fit the window of 256 tokens.*choose context trunc"):
        in_context.probe(tiny, LONG, LONG.questions[:2])
    with pytest.raises(ValueError, match="'register-0' does not fit"):
        evidence_position.probe(tiny, LONG, LONG.questions[:2], context="full")
    with pytest.raises(ValueError, match="context 'none' leaves the document out"):
        in_context.probe(tiny, SHORT, SHORT.questions[:2], context="none")
    nowhere = replace(SHORT.questions[1], evidence=None)
    with pytest.raises(ValueError, match=f"question {nowhere.text!r} names no evidence".replace("?", r"\?")):
        evidence_position.probe(tiny, SHORT, [SHORT.questions[0], nowhere])


@BOTH
def test_no_question_and_an_unknown_context_are_refused(tiny, module):
    with pytest.raises(ValueError, match="no question was given"):
        module.probe(tiny, SHORT, [])
    with pytest.raises(ValueError, match="context 'half' is unknown"):
        module.probe(tiny, SHORT, SHORT.questions[:1], context="half")


@BOTH
def test_the_model_is_as_it_was_and_a_second_time_gives_the_same(tiny, module):
    tiny.model.train()
    tiny.model.model.layers[1].mlp.eval()
    weights = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    mode = lambda: [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in tiny.model.modules()]  # noqa: E731
    before = mode(), torch.get_rng_state().tolist(), random.getstate()
    once = module.probe(tiny, SHORT, SHORT.questions[:4])
    assert once.equals(module.probe(tiny, SHORT, SHORT.questions[:4]))
    assert before == (mode(), torch.get_rng_state().tolist(), random.getstate())
    assert all(torch.equal(weights[name], value) for name, value in tiny.model.state_dict().items())


def test_micro_answers_from_head_and_tail_and_not_from_the_middle():
    base = load("micro")
    for seed in (300, 301):
        document = register_of(base, seed, 2, 0.1)
        frame = evidence_position.probe(base, document, ask_facts(document, 40, seed), context="truncated")
        by_place = frame.groupby("place").value
        assert by_place.size()[["head", "middle", "tail"]].min() >= 8
        assert by_place.mean()["head"] >= 0.8 and by_place.mean()["tail"] >= 0.8 and by_place.mean()["middle"] <= 0.2


def test_micro_answers_from_a_document_that_fits():
    base = load("micro")
    document = register_of(base, 300, 0.9, 0.1)
    assert in_context.probe(base, document, ask_facts(document, 8, 0)).value.mean() >= 0.9
