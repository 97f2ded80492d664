"""The judge's word, and only a clear one, is the verdict; what it never says clearly is None and is not dropped."""

import pytest
from endpoint_server import EndpointServer, prompt_of

from liftlab.auxiliary.endpoint import Endpoint
from liftlab.auxiliary.replies import ReplyCache
from liftlab.documents import Document, Question
from liftlab.judge import (
    DIMENSIONS,
    Rating,
    ToRate,
    Verdict,
    grounds_of,
    judging,
    rating,
    ratings,
    read_rating,
    read_verdict,
    verdicts,
)

WHOLE = """\
Question: Where does Ada live?
Reference answer: Oslo
Given answer: In {Oslo}, Norway.

Does the given answer mean the same as the reference answer? Wording, order and length do not matter. A given answer \
that contradicts the reference answer, leaves out a part of it that the question asks for, or says that it does not \
know, does not mean the same. Reply with one word: True or False."""


def test_the_whole_prompt_word_for_word():
    request = judging("Where does Ada live?", "Oslo", "In {Oslo}, Norway.")
    system, user = request.messages
    assert system == (
        "system",
        "You mark answers to questions about a document. You see a question, its reference answer and a given answer, "
        "and decide whether the given answer means the same as the reference answer.",
    )
    assert user == ("user", WHOLE)
    assert (request.temperature, request.reply_tokens, request.seed, request.schema) == (0.0, 16, 0, None)


@pytest.mark.parametrize(
    ("reply", "right"),
    [("True", True), ("false", False), (" TRUE.\n", True), ("**False**", False), ('"True"', True),
     ("True. It is not false to say so.", True), ("False, since it is true of Bergen.", False),
     ('{"same": true}', True), ('{"verdict": "False"}', False)],
)  # fmt: skip
def test_a_clear_verdict_is_read(reply, right):
    assert read_verdict(reply) is right


@pytest.mark.parametrize(
    "reply",
    ["", "Yes", "It is true.", "True or False", "true / false", "True/False", "Truely", "untrue", "1", "{}",
     '{"same": 1}', '{"same": null}', '{"a": true, "b": false}', '{"same": tr', "Not true", '{"same": {"same": true}}'],
)  # fmt: skip
def test_anything_else_is_unusable(reply):
    with pytest.raises(ValueError):
        read_verdict(reply)


ASKED = [
    ("Where does Ada live?", "Oslo", "In Oslo."),
    ("Where does Ben live?", "Bergen", " \n"),
    ("Where does Cay live?", "Paris", "In Rome."),
    ("Where does Dan live?", "Turin", "mumble"),
    ("Where does Ada live?", "Oslo", "In Oslo."),
]


def opinion(body):
    prompt = prompt_of(body)
    return "Hard to say." if "mumble" in prompt else str("In Oslo" in prompt)


def test_verdicts_keep_order_and_number_and_are_asked_once(tmp_path):
    with EndpointServer(opinion, {"error": 0.2, "malformed": 0.2}) as server:
        generator = Endpoint(server.url, "judge", attempts=6, first_wait_seconds=0.01)
        found = verdicts(ASKED, generator, ReplyCache(tmp_path, "doc"))
        assert [verdict.right for verdict in found] == [True, False, False, None, True]
        assert [verdict.raw for verdict in found[:3]] == ["True", "", "False"] and found[1] == Verdict(False)
        assert found[3].failure.startswith("unusable reply: the judge said") and not found[0].failure
        assert len(server.asked) == 3 and not any("Ben" in prompt for prompt in server.asked)
        assert {body["temperature"] for body in server.bodies if "Ada" in prompt_of(body)} == {0.0}
        sent = server.asked.total()
        again = verdicts(ASKED[:3], generator, ReplyCache(tmp_path, "doc"))
        assert again == found[:3] and server.asked.total() == sent


def test_an_empty_answer_needs_no_judge():
    assert verdicts([("Where?", "Oslo", "")], generator=None) == [Verdict(False)]


def test_an_empty_reference_is_a_mistake():
    with pytest.raises(ValueError, match=r"the reference of question 1 \('Why\?'\) is empty"):
        verdicts([("Where?", "Oslo", "Oslo"), ("Why?", " ", "So.")], generator=None)


# --- four ratings (2410.21252)

ONE = ToRate("Where does Ada live?", "Oslo", "In {Oslo}.", "Ada lives in Oslo.")


def test_a_rating_s_whole_prompt_word_for_word():
    request = rating("completeness", ONE)
    assert request.messages == (
        ("system", "You rate answers to questions about a long document, in one respect at a time, with a whole "
         "number from 0 (as bad as can be) to 10 (nothing to improve)."),
        ("user", "Question: Where does Ada live?\nReference answer: Oslo\nGiven answer: In {Oslo}.\n\nRate how "
         "complete the given answer is. Each point of the reference answer that the question asks for should be in "
         "it, none left out. Reply with one whole number from 0 to 10 and nothing else."),
    )  # fmt: skip
    assert (request.temperature, request.reply_tokens, request.always_greedy) == (0.0, 16, True)


def test_faithfulness_alone_sees_what_the_document_says_and_each_dimension_asks_for_itself():
    told = {name: rating(name, ONE).messages[1][1] for name in DIMENSIONS}
    assert {name for name, text in told.items() if "Ada lives in Oslo." in text} == {"faithfulness"}
    assert {name for name, text in told.items() if "Reference answer: Oslo\n" in text} == set(DIMENSIONS) - {
        "faithfulness"
    }
    assert len(set(told.values())) == 4


@pytest.mark.parametrize(
    ("reply", "value"),
    [("7", 0.7), (" 10\n", 1.0), ("0", 0.0), ("7/10", 0.7), ("8 / 10, as it is short.", 0.8), ("**9**", 0.9),
     ('"3"', 0.3), ("6.5", 0.65), ("7. It names the town.", 0.7), ("7, it names the town", 0.7),
     ('{"rating": 7}', 0.7), ('{"rating": "7"}', 0.7)],
)  # fmt: skip
def test_a_clear_rating_is_read(reply, value):
    assert read_rating(reply) == pytest.approx(value)


@pytest.mark.parametrize(
    "reply",
    ["", "seven", "11", "100", "10.5", "-1", "7-8", "7 to 8", "7 or 8", "7/5", "7/100", "70%", "7, 8", "7,5",
     "I say 7", "{}", '{"rating": true}', '{"a": 7, "b": 8}', '{"rating": 7'],
)  # fmt: skip
def test_any_other_rating_is_unusable(reply):
    with pytest.raises(ValueError):
        read_rating(reply)


class Scripted:
    """A generator that says `say(prompt)`; a reply that is no rating is a failure."""

    name = "scripted"

    def __init__(self, say):
        self.say, self.asked = say, []

    def replies(self, requests, read):
        from liftlab.auxiliary.replies import Reply

        for (index, request), reader in zip(requests, read, strict=True):
            self.asked.append(request.messages[1][1])
            text = self.say(self.asked[-1])
            try:
                yield Reply(index, text, reader(text), attempts=1)
            except ValueError as error:
                yield Reply(index, text, None, f"unusable reply: {error}", 1)


def test_ratings_keep_order_and_dimension_and_count_what_failed(tmp_path):
    marks = {"how helpful": "8", "how logical": "9", "how faithful": "maybe", "how complete": "2"}
    generator = Scripted(lambda prompt: next(mark for words, mark in marks.items() if words in prompt))
    asked = [ONE, ToRate("Where does Ben live?", "Bergen", " ", "Ben lives in Bergen."), ONE]
    first, empty, again = ratings(asked, generator, ReplyCache(tmp_path, "doc"))
    values = {"helpfulness": 0.8, "logicality": 0.9, "faithfulness": None, "completeness": 0.2}
    assert {name: one.value for name, one in first.items()} == values and list(first) == list(DIMENSIONS)
    assert first["faithfulness"].failure.startswith("unusable reply: the judge said 'maybe', no rating of 0 to 10")
    assert [one.raw for one in first.values()] == list(marks.values())
    assert {name: one.value for name, one in again.items()} == values
    assert empty == dict.fromkeys(DIMENSIONS, Rating(0.0)) and len(generator.asked) == 4
    ratings(asked[:1], generator, ReplyCache(tmp_path, "doc"))
    assert len(generator.asked) == 5  # the failed one alone is asked again


def test_an_empty_answer_is_rated_without_a_judge_and_empty_texts_are_mistakes():
    assert ratings([ToRate("Where?", "Oslo", "", "Ada.")], generator=None) == [dict.fromkeys(DIMENSIONS, Rating(0.0))]
    with pytest.raises(ValueError, match=r"the reference of question 0 \('Where\?'\) is empty"):
        ratings([ToRate("Where?", " ", "Oslo", "Ada.")], generator=None)
    with pytest.raises(ValueError, match=r"the evidence of question 0 \('Where\?'\) is empty"):
        ratings([ToRate("Where?", "Oslo", "Oslo", "\n")], generator=None)


def test_the_grounds_are_the_evidence_or_the_document_with_its_middle_left_out(tiny):
    document = Document("d", "Ada lives in Oslo. " + "Ben keeps a cat. " * 40 + "Cora plays the harp.")
    quoted = Question("Where?", "Oslo", evidence=(0, 18))
    assert grounds_of(document, quoted, tiny.tokenizer, 40) == "Ada lives in Oslo."
    cut = grounds_of(document, Question("Where?", "Oslo"), tiny.tokenizer, 40)
    assert cut.startswith("Ada lives in Oslo.") and cut.endswith("Cora plays the harp.") and "\n...\n" in cut
    assert len(tiny.tokenizer(cut, add_special_tokens=False)["input_ids"]) <= 40
    assert grounds_of(document, Question("Where?", "Oslo"), tiny.tokenizer, 4000) == document.text
