"""Benchmarks are read whole, as they are, or the reading stops with the place of what is wrong."""

import json
import re
from pathlib import Path

import pytest

from liftlab.benchmarks import haystack, read_longbench, read_loogle, read_questions, rows, with_needle

SAMPLES = Path(__file__).parents[2] / "shared" / "data" / "loogle"
TEXT = " Ada lives in  Oslo.\nShe has a goat. Ben bakes bread."
PAIRS = [
    {
        "Q": "Where does Ada live?",
        "A": "Oslo",
        "S": ["Ada lives in Oslo.", "She has a goat.", "Ben bakes"],
        "type": "x",
    },
    {"Q": "What does Ben do?", "A": "He bakes.", "S": "Ben likes bread."},
    {"Q": "Who?", "A": "Ada", "S": ["", " "]},
]


def written(path, *lines):
    texts = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts), "utf-8")
    return path


@pytest.mark.parametrize("pairs", [PAIRS, repr(PAIRS)], ids=["list", "text"])
def test_loogle_is_read_in_both_released_forms(tmp_path, pairs):
    path = written(tmp_path / "short.jsonl", {"input": TEXT, "title": "Oslo", "qa_pairs": pairs, "output": "none"})
    (document,) = read_loogle(path)
    assert (document.name, document.title, document.text) == ("short-000", "Oslo", TEXT)
    first, second, third = document.questions
    assert (first.text, first.answer, first.kind) == ("Where does Ada live?", "Oslo", "x")
    assert TEXT[slice(*first.evidence)] == "Ada lives in  Oslo." and TEXT[slice(*first.bridge)] == "She has a goat."
    assert (second.answer, second.kind, second.evidence, second.bridge) == ("He bakes.", "", None, None)
    quoted = [tuple(PAIRS[0]["S"]), ("Ben likes bread.",), ()]  # all of it, also what the text does not hold
    assert [question.quoted for question in (first, second, third)] == quoted
    assert document.evidence_of(first) == quoted[0]


def test_loogle_s_text_is_data_and_never_run(tmp_path):
    harm = tmp_path / "harm"
    path = written(tmp_path / "a.jsonl", {"input": TEXT, "title": "t", "qa_pairs": f"[open({str(harm)!r}, 'w')]"})
    with pytest.raises(ValueError, match=r'a\.jsonl:1: "qa_pairs" is text, but no Python literal'):
        read_loogle(path)
    assert not harm.exists()


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the sample documents are not beside this clone")
@pytest.mark.parametrize(
    ("name", "questions"), [("shortdep_qa", [11, 12, 16, 25, 16]), ("longdep_qa", [6, 9, 11, 10, 7])]
)
def test_the_sample_documents_have_all_their_questions_and_types(name, questions):
    documents = read_loogle(SAMPLES / f"{name}.jsonl")
    assert [len(document.questions) for document in documents] == questions
    lines = (SAMPLES / f"{name}.jsonl").read_text("utf-8").split("\n")
    for document, line in zip(documents, lines, strict=False):
        raw = json.loads(line)
        assert (document.text, document.title) == (raw["input"], raw["title"])
        for question in document.questions:  # the literal as text holds each of them
            assert repr(question.text)[1:-1] in raw["qa_pairs"] or json.dumps(question.text)[1:-1] in raw["qa_pairs"]
            assert question.kind == "" or f"'type': '{question.kind}'" in raw["qa_pairs"]
    kinds = {question.kind for document in documents for question in document.questions}
    long = {"comprehension_and_reasoning", "computation", "multiple_information_retrieval", "timeline_reorder"}
    assert kinds == (long if name == "longdep_qa" else {""})
    quoted = [bool(q.quoted) for document in documents for q in document.questions]
    assert all(quoted)
    found = [q.evidence is not None for document in documents for q in document.questions]
    assert sum(found) / len(found) > 0.5


def test_longbench_keeps_every_right_answer(tmp_path):
    row = {"input": "Who bakes?", "context": TEXT, "answers": ["Ben", "Benjamin"], "dataset": "musique", "_id": "a1",
           "length": 9, "language": "en", "all_classes": None}  # fmt: skip
    summary = row | {"input": "", "dataset": "gov_report", "_id": "b2", "answers": ["Ada and Ben."]}
    first, second = read_longbench(written(tmp_path / "musique.jsonl", row, summary))
    (asked,), (told,) = first.questions, second.questions
    assert (first.name, first.text, first.title) == ("a1", TEXT, "")
    assert (asked.text, asked.answer, asked.also, asked.kind) == ("Who bakes?", "Ben", ("Benjamin",), "musique")
    assert (told.text, told.answer, told.also, told.kind) == ("", "Ada and Ben.", (), "gov_report")


def test_one_s_own_questions_belong_to_their_documents(tmp_path):
    other = {"document": "Cid rows.", "question": "Who rows?", "answer": "Cid", "title": "A boat", "kind": "who"}
    first, again = {"document": TEXT, "question": "Who bakes?", "answer": "Ben"}, {"evidence": "She has a goat."}
    again |= {"document": TEXT, "question": "Whose goat?", "answer": "Ada's"}
    path = written(tmp_path / "mine.jsonl", first, other, again)
    first, second = read_questions(path)
    assert [q.text for q in first.questions] == ["Who bakes?", "Whose goat?"]
    assert TEXT[slice(*first.questions[1].evidence)] == "She has a goat." and first.questions[0].evidence is None
    assert [q.quoted for q in first.questions] == [(), ("She has a goat.",)]
    assert (second.name, second.title, second.questions[0].kind) == ("mine-001", "A boat", "who")


@pytest.mark.parametrize(
    ("read", "line", "words"),
    [
        (read_questions, "{", r"is not JSON \(.*\): one object a line"),
        (read_questions, "[1]", "holds a list: one JSON object"),
        (read_questions, {"document": TEXT, "question": " ", "answer": "a"}, 'needs "question", a non-empty text'),
        (read_questions, {"document": TEXT, "question": "q", "answer": 3}, 'needs "answer", a non-empty text'),
        (read_questions, {"document": TEXT, "question": "q", "answer": "a", "evidence": "No."}, "does not hold the"),
        (read_loogle, {"input": TEXT, "title": "t"}, 'needs "qa_pairs", a list of at least one question'),
        (read_loogle, {"input": TEXT, "title": "t", "qa_pairs": "[1, "}, "is text, but no Python literal"),
        (read_loogle, {"input": TEXT, "title": "t", "qa_pairs": [{"Q": "q"}]}, 'needs "A", a non-empty text'),
        (read_loogle, {"input": TEXT, "title": "t", "qa_pairs": [{"Q": "q", "A": "a", "S": 1}]}, "neither a text nor"),
        (read_longbench, {"input": "", "context": TEXT, "answers": [], "dataset": "d", "_id": "i"}, 'needs "answers"'),
        (read_longbench, {"input": "", "context": TEXT, "answers": ["a"], "dataset": "d"}, 'needs "_id"'),
    ],
)  # fmt: skip
def test_a_malformed_row_stops_the_reading_and_is_named(tmp_path, read, line, words):
    good = {"document": TEXT, "question": "q", "answer": "a", "input": TEXT, "title": "t", "qa_pairs": PAIRS,
            "context": TEXT, "answers": ["a"], "dataset": "d", "_id": "i"}  # fmt: skip
    path = written(tmp_path / "data.jsonl", good, "", line)
    with pytest.raises(ValueError, match=rf"data\.jsonl:3.*{words}"):
        read(path)


def test_files_that_are_missing_empty_or_binary_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a JSONL file"):
        list(rows(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match="is empty"):
        list(rows(written(tmp_path / "empty.jsonl", "", " ")))
    (tmp_path / "bytes.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(ValueError, match=r"bytes\.jsonl:1 is not UTF-8"):
        list(rows(tmp_path / "bytes.jsonl"))


def test_a_line_separator_inside_a_text_does_not_end_its_line(tmp_path):
    path = written(tmp_path / "a.jsonl", {"document": "One.\u2028Two.\x85", "question": "q", "answer": "a"})
    assert read_questions(path)[0].text == "One.\u2028Two.\x85"


HAY = " ".join(f"This is sentence {i} of the hay, and no needle." for i in range(200))
NEEDLE = "The best thing is a sandwich in the park."


@pytest.mark.parametrize("depth", [0, 0.1, 0.25, 0.5, 0.77, 0.9, 1])
@pytest.mark.parametrize("words", [40, 300, 2000])
def test_depth_really_is_depth(depth, words):
    """To half a sentence, as the needle stands between two; the hay is all there, in its order."""
    document = with_needle(HAY, NEEDLE, "What is best?", "a sandwich", words, depth)
    (question,) = document.questions
    assert document.text[slice(*question.evidence)] == NEEDLE
    sentence = len("This is sentence 199 of the hay, and no needle.")
    assert document.depth(question) == pytest.approx(
        depth, abs=0.5 * (sentence + 1) / (len(document.text) - len(NEEDLE))
    )
    assert depth not in (0, 1) or document.depth(question) == depth
    assert document.text.replace(NEEDLE, "").split() == HAY.split()[:words]
    start = question.evidence[0]
    assert start == 0 or re.search(r"[.] $", document.text[:start]) or depth == 1


def test_depths_are_told_apart():
    starts = [with_needle(HAY, NEEDLE, "?", "a", 1000, step / 10).questions[0].evidence[0] for step in range(11)]
    assert starts == sorted(set(starts))


@pytest.mark.parametrize(
    ("words", "depth", "said"),
    [(10, 1.5, "depth = 1.5"), (0, 0.5, "words = 0"), (10**6, 0.5, "words = 1000000: the haystack has 2000 words")],
)
def test_an_impossible_needle_is_refused(words, depth, said):
    with pytest.raises(ValueError, match=said):
        with_needle(HAY, NEEDLE, "?", "a", words, depth)


def test_a_haystack_is_a_folder_s_texts_by_name(tmp_path):
    for name, text in (("b.txt", "Two.\n"), ("a.md", "One."), ("c.csv", "no")):
        (tmp_path / name).write_text(text)
    assert haystack(tmp_path) == "One.\n\nTwo."
    with pytest.raises(ValueError, match="holds no .txt or .md file"):
        haystack(tmp_path / "nothing")


def test_two_documents_of_one_name_are_refused_with_both_lines(tmp_path):
    row = {"input": "Who?", "context": TEXT, "answers": ["Ben"], "dataset": "musique", "_id": "a1"}
    path = written(tmp_path / "a.jsonl", row, row | {"_id": "b2"}, row)
    with pytest.raises(ValueError, match=r'a\.jsonl:3: "_id" \'a1\' is the document of .*a\.jsonl:1 already'):
        read_longbench(path)


@pytest.mark.parametrize(("read", "row"), [
    (read_questions, {"document": TEXT, "question": "How many?", "answer": 42}),
    (read_longbench, {"input": "?", "context": TEXT, "answers": [42], "dataset": "m", "_id": "a"}),
    (read_loogle, {"input": TEXT, "title": "t", "qa_pairs": [{"Q": "How many?", "A": 42}]}),
])  # fmt: skip
def test_an_answer_that_is_no_text_is_refused_by_its_line_and_value(tmp_path, read, row):
    with pytest.raises(ValueError, match=r"a\.jsonl:1 .*42.*quote"):
        read(written(tmp_path / "a.jsonl", row))
