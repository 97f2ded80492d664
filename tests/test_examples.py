import pytest

from liftlab.documents import Document
from liftlab.examples import (
    IGNORED,
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


def test_a_pair_is_scored_on_its_answer_and_end_of_turn_alone():
    (example,) = pair_examples(TOKENIZER, register(0), [Pair("Where does Ada live?", "Oslo")], PLAIN, "none", 64)
    assert TOKENIZER.decode(example.ids) == "<|user|> Where does Ada live ? <|end|> <|assistant|> Oslo <|end|>"
    assert [i for i in example.labels if i != IGNORED] == TOKENIZER("Oslo <|end|>")["input_ids"]
    (raw,) = pair_examples(TOKENIZER, register(0), [Pair("Where?", "Oslo")], STYLES["loogle_v1"], "none", 64)
    assert [i for i in raw.labels if i != IGNORED] == TOKENIZER("Oslo")["input_ids"]


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
