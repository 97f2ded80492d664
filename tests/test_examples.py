from collections import Counter

import pytest
from test_prompts import Counting, readable_tokenizer, spoken

from liftlab.documents import Document
from liftlab.examples import (
    IGNORED,
    RECITE,
    Pair,
    contextualized_segments,
    document_ids,
    end_of_turn,
    known_pairs,
    pair_examples,
    read_pairs,
    segment_spans,
    segments,
)  # fmt: skip
from liftlab.pretraining import word_tokenizer
from liftlab.prompts import PLAIN, STYLES
from liftlab.worlds import register

TOKENIZER = word_tokenizer()
TEN = Document("d", "one two three four five six seven eight nine ten", "Colby")
ASK = "The article Colby: \n... Please answer the question based on Colby.\nQuestion: Who rows? Answer: Ada rows."
READABLE = readable_tokenizer(TEN.text, RECITE, ASK)
BARE = "Please answer the question based on Colby . ⏎ Question : Who rows ? ⏎ Answer :"
ENDS = "one ⏎ ... ⏎ seven eight nine ten"  # of a budget of 8: head 4 less the separator's 3, tail 4
RECITED = "Given above context , please recite following segment of the context : ⏎ ⏎ ⏎"


def test_segments_start_at_every_offset_until_the_document_ends():
    """The paper's numbers: segments of 2048 every 768; the last ones lie inside earlier ones."""
    spans = segment_spans(5000, 2048, 768)
    assert spans[:3] == [(0, 2048), (768, 2816), (1536, 3584)]
    assert spans[-3:] == [(3072, 5000), (3840, 5000), (4608, 5000)]


@pytest.mark.parametrize(
    ("tokens", "length", "offset"), [(1, 8, 3), (7, 8, 3), (100, 8, 3), (64, 16, 16), (65, 16, 16)]
)
def test_every_token_lies_in_a_segment(tokens, length, offset):
    covered = {t for start, end in segment_spans(tokens, length, offset) for t in range(start, end)}
    assert covered == set(range(tokens))


@pytest.mark.parametrize(
    ("length", "offset", "name"),
    [(8, 9, "offset_tokens = 9"), (8, 0, "offset_tokens = 0"), (1, 1, "segment_tokens = 1")],
)
def test_impossible_segments_are_refused(length, offset, name):
    with pytest.raises(ValueError, match=name):
        segment_spans(100, length, offset)


def test_the_title_stands_once_before_the_document():
    document = register(0, 150)
    ids = document_ids(TOKENIZER, document)
    assert TOKENIZER.decode(ids).startswith(document.title.split()[0])
    assert ids == TOKENIZER(f"{document.title}\n{document.text}", add_special_tokens=False)["input_ids"]
    cut = segments(TOKENIZER, document, 64, 24)
    assert [list(e.ids) for e in cut] == [ids[s:e] for s, e in segment_spans(len(ids), 64, 24) if e - s > 1]
    assert all(e.ids == e.labels for e in cut)


def test_a_document_shorter_than_a_segment_is_refused_with_the_bound():
    document = Document("d", "Ada lives in Oslo.")
    assert len(segments(TOKENIZER, document, 5, 5)[0].ids) == 5
    for cut in (segments, lambda *shape: contextualized_segments(*shape, 8, 0)):
        with pytest.raises(ValueError, match="'d' has 5 tokens .* a segment has 6: make segment_tokens at most 5"):
            cut(TOKENIZER, document, 6, 3)


def test_a_document_of_one_token_is_refused():
    with pytest.raises(ValueError, match="1 token"):
        segments(TOKENIZER, Document("d", "Oslo"), 64, 24)


def test_contextualized_segments_score_the_segment_alone_and_repeat_by_seed():
    document = register(0, 300)
    one, again, other = (contextualized_segments(TOKENIZER, document, 64, 24, 50, seed) for seed in (0, 0, 1))
    assert one == again != other
    ids = document_ids(TOKENIZER, document)
    for example, (start, end) in zip(one, segment_spans(len(ids), 64, 24), strict=True):
        scored = [label for label in example.labels if label != IGNORED]
        assert scored == ids[start:end] == list(example.ids[-len(scored) :])
        recite = len(TOKENIZER("...Given above context, please recite following segment of the context:")["input_ids"])
        assert len(example.ids) - len(scored) == 50 + recite


def told(tokenizer, example):
    """(the tokens that carry no loss, those that do), which stand behind them and are their own labels."""
    free = sum(label == IGNORED for label in example.labels)
    assert example.labels == (*[IGNORED] * free, *example.ids[free:])
    assert example.scored_tokens == len(example.ids) - free
    return spoken(tokenizer, example.ids[:free]), spoken(tokenizer, example.ids[free:])


def test_contextualized_segments_token_by_token():
    """Front + "..." + back + instruction, then the segment; a front of length 0 begins with the dots."""
    made = contextualized_segments(READABLE, TEN, 5, 3, 6, 0)
    assert [told(READABLE, example) for example in made] == [
        (f"... five six seven eight nine ten {RECITED}", "Colby ⏎ one two three"),
        (f"⏎ one two three ... nine ten {RECITED}", "two three four five six"),
        (f"Colby ⏎ one ... seven eight nine {RECITED}", "five six seven eight nine"),
        (f"Colby ⏎ one two ... eight nine {RECITED}", "eight nine ten"),
    ]


def test_a_document_shorter_than_the_context_lends_all_its_tokens():
    """The context is then the document's own length, 12 tokens with its title, and no more."""
    made = contextualized_segments(READABLE, TEN, 5, 3, 4096, 3)
    assert made == contextualized_segments(READABLE, TEN, 5, 3, 12, 3)
    for example in made:
        front, back = (part.split() for part in told(READABLE, example)[0].removesuffix(RECITED).split("..."))
        assert len(front) + len(back) == 12
        assert all(" ".join(part) in f"Colby ⏎ {TEN.text}" for part in (front, back))


def test_a_context_of_one_token_has_no_front():
    made = contextualized_segments(READABLE, TEN, 5, 3, 1, 0)
    assert {told(READABLE, example)[0] for example in made} == {f"... ten {RECITED}"}
    with pytest.raises(ValueError, match="context_tokens = 0: .* at least 1 token"):
        contextualized_segments(READABLE, TEN, 5, 3, 0, 0)


def test_front_and_back_are_drawn_evenly_once_a_segment():
    """Front ~ U{0..context-1} from anywhere in the first tokens, the rest from anywhere in the last ones."""
    document, context = Document("d", " ".join(f"w{i}" for i in range(2000))), 8
    tokenizer = readable_tokenizer(document.text, RECITE, "...")
    made = contextualized_segments(tokenizer, document, 2, 1, context, 0)
    places = []
    for example in made:
        said = told(tokenizer, example)[0].removesuffix(RECITED).split("...")
        front, back = ([int(word[1:]) for word in part.split()] for part in said)
        for part in (front, back):
            assert part == list(range(part[0], part[0] + len(part))) if part else part is front
        assert len(front) + len(back) == context and max(front, default=0) < context and min(back) >= 2000 - context
        places.append((len(front), front[0] if front else None, back[0]))
    assert len(made) == 2000
    lengths = Counter(length for length, *_ in places)
    assert set(lengths) == set(range(context)) and all(190 <= n <= 310 for n in lengths.values())  # 250 each, 4 sigma
    for length in range(1, context):  # every place there is, both ends included
        assert {start for n, start, _ in places if n == length} == set(range(context - length + 1))
        assert {start for n, _, start in places if n == length} == set(range(2000 - context, 2001 - context + length))


def test_a_pair_is_scored_on_its_answer_and_end_of_turn_alone():
    (example,) = pair_examples(TOKENIZER, register(0), [Pair("Where does Ada live?", "Oslo")], PLAIN, "none", 64)
    assert TOKENIZER.decode(example.ids) == "<|user|> Where does Ada live ? <|end|> <|assistant|> Oslo <|end|>"
    assert [i for i in example.labels if i != IGNORED] == TOKENIZER("Oslo <|end|>")["input_ids"]
    (raw,) = pair_examples(TOKENIZER, register(0), [Pair("Where?", "Oslo")], STYLES["loogle_v1"], "none", 64)
    assert [i for i in raw.labels if i != IGNORED] == TOKENIZER("Oslo")["input_ids"]


@pytest.mark.parametrize(
    ("style", "context", "window", "asked", "answered"),
    [
        ("loogle_v1", "none", 64, BARE, "Ada rows ."),
        ("loogle_v1", "truncated", 34, f"The article Colby : ⏎ {ENDS} ⏎ {BARE}", "Ada rows ."),
        ("loogle_v1", "truncated", 64, f"The article Colby : ⏎ {TEN.text} ⏎ {BARE}", "Ada rows ."),
        ("loogle_v1_bos", "none", 64, f"<s> {BARE}", "Ada rows ."),
        ("loogle_v1_bos", "truncated", 35, f"<s> The article Colby : ⏎ {ENDS} ⏎ {BARE}", "Ada rows ."),
        ("plain", "none", 64, "<s> <user> ⏎ Who rows ? <end> ⏎ <assistant> ⏎", "Ada rows . <end>"),
        ("plain", "truncated", 23, f"<s> <user> ⏎ {ENDS} ⏎ Who rows ? <end> ⏎ <assistant> ⏎",
         "Ada rows . <end>"),
    ],
)  # fmt: skip
def test_pairs_token_by_token(style, context, window, asked, answered):
    """Raw: the answer alone is scored, no EOS; chat: answer and end of turn. A cut document fills the window."""
    (example,) = pair_examples(READABLE, TEN, [Pair("Who rows?", "Ada rows.")], STYLES[style], context, window)
    assert told(READABLE, example) == (asked, answered)
    assert example.kind == "pair" and len(example.ids) <= window
    assert "..." not in asked or len(example.ids) == window


@pytest.mark.parametrize("context", ["none", "truncated", "full"])
@pytest.mark.parametrize("style", ["plain", "loogle_v1"])
def test_pairs_together_are_the_examples_that_each_is_alone(style, context):
    document = register(1, 120)
    odd = [Pair("Who <|end|> rows?", "<|user|> Ada  "), Pair(" \n", ""), Pair("Where? ", "é Oslo\n")]
    pairs, settings = [*known_pairs(document), *odd], (STYLES[style], context, 200 if context == "truncated" else 900)
    alone = [pair_examples(TOKENIZER, document, [pair], *settings) for pair in pairs]
    assert pair_examples(TOKENIZER, document, pairs, *settings) == [example for (example,) in alone]


@pytest.mark.parametrize("style", ["plain", "loogle_v1"])
def test_however_many_pairs_the_tokenizer_is_called_as_often(style):
    """But for pairs that are asked with the document, of which each prompt is fitted by itself."""
    document, pairs, calls = register(1, 120), known_pairs(register(1, 120)), []
    for count in (1, len(pairs)):
        counting = Counting(TOKENIZER)
        assert len(pair_examples(counting, document, pairs[:count], STYLES[style], "none", 256)) == count
        calls.append(len(counting.calls))
    assert len(pairs) > 10 and calls[0] == calls[1] <= 3


def test_no_pairs_are_no_examples_whatever_the_tokenizer():
    bare = word_tokenizer()
    bare.chat_template = None
    assert pair_examples(bare, TEN, [], PLAIN, "none", 64) == []
    with pytest.raises(ValueError, match="template"):
        pair_examples(bare, TEN, [Pair("Who?", "Ada")], PLAIN, "none", 64)


def test_end_of_turn_is_what_the_template_writes():
    assert TOKENIZER.convert_ids_to_tokens(end_of_turn(TOKENIZER)) == "<|end|>"


def test_known_pairs_hold_no_held_out_wording():
    document = register(1, 300)
    asked = {pair.question for pair in known_pairs(document)}
    assert asked == {q.text for q in document.asked("trained")}


def test_a_pair_longer_than_the_window_is_refused():
    with pytest.raises(ValueError, match="does not fit a window of 16 tokens"):
        pair_examples(TOKENIZER, register(0), [Pair("Where " * 20, "Oslo")], PLAIN, "none", 16)


def test_pairs_are_read_and_a_bad_line_is_named(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"question": "Who?", "answer": "Ada"}\n\n')
    assert read_pairs(path) == [Pair("Who?", "Ada")]
    for line, message in [
        ("{", "pairs.jsonl:2 is not JSON"),
        ('{"question": "Who?", "answer": 3}', 'jsonl:2 needs "question"'),
    ]:
        path.write_text('{"question": "Who?", "answer": "Ada"}\n' + line)
        with pytest.raises(ValueError, match=message):
            read_pairs(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        read_pairs(path)
    path.write_text('{"question": "One\u2028two?", "answer": "a\x85b"}\n', "utf-8")  # no ends of a line
    assert read_pairs(path) == [Pair("One\u2028two?", "a\x85b")]
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_pairs(tmp_path / "none.jsonl")
