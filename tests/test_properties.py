"""Laws that hold for any input: cutting, truncating, packing, cell keys, JSONL files, and braces in texts."""

import json
import re

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as some

from liftlab import cells, prompts
from liftlab.auxiliary.replies import Reply
from liftlab.auxiliary.tasks import TASKS, Auxiliary
from liftlab.benchmarks import rows
from liftlab.documents import Document
from liftlab.examples import Example, document_ids, segment_spans, segments
from liftlab.packed_attention import SequenceAttention, packed_states
from liftlab.packing import pack
from liftlab.pretraining import word_tokenizer
from liftlab.worlds import register

TOKENIZER = word_tokenizer()
WORDS = register(0, 200).text.split()
quick = settings(derandomize=True, max_examples=30, deadline=None, database=None,
                 suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
TEXT = some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
FILLED = TEXT.filter(lambda text: bool(text.strip()))


def passage(least):
    return some.lists(some.sampled_from(WORDS), min_size=least, max_size=300).map(" ".join)


def without_overlap(pieces, offset):
    """The tokens that segments starting every `offset` cover, each once, in order."""
    joined = []
    for number, piece in enumerate(pieces):
        joined += piece[len(joined) - number * offset :]
    return joined


@quick
@given(some.integers(0, 500), some.integers(2, 60), some.data())
def test_segments_cover_the_document_exactly_and_in_order(tokens, length, data):
    offset = data.draw(some.integers(1, length))
    spans = segment_spans(tokens, length, offset)
    assert [start for start, _ in spans] == list(range(0, tokens, offset))
    assert all(0 < end - start <= length for start, end in spans)
    assert without_overlap([list(range(*span)) for span in spans], offset) == list(range(tokens))


@quick
@given(passage(40), some.integers(2, 40), some.data())
def test_the_segments_of_a_text_hold_its_tokens(text, length, data):
    """All but a last token alone, which predicts nothing."""
    offset = data.draw(some.integers(1, length))
    document = Document("d", text, "The register")
    ids = document_ids(TOKENIZER, document)
    assume(len(ids) >= length)
    held = without_overlap([list(example.ids) for example in segments(TOKENIZER, document, length, offset)], offset)
    alone = length == offset and len(ids) % offset == 1
    assert held == ids[: len(ids) - alone]


@quick
@given(passage(1), some.integers(20, 120))
def test_truncation_keeps_the_head_and_the_tail(text, budget):
    """Never more than the budget; nothing is cut that fits, and of the rest head and tail differ by the separator."""
    cut = prompts.head_and_tail(TOKENIZER, text, budget)
    count, whole = (len(TOKENIZER(t, add_special_tokens=False)["input_ids"]) for t in (cut, text))
    if whole <= budget:
        assert cut == text
        return
    head, dots, tail = cut.partition(f"\n{prompts.SEPARATOR}\n")
    assert dots and text.startswith(head) and text.endswith(tail) and head and tail
    assert len(head) + len(tail) < len(text) and count <= budget
    kept = [len(TOKENIZER(part, add_special_tokens=False)["input_ids"]) for part in (head, tail)]
    assert kept[1] == budget // 2 and kept[1] - kept[0] == len(TOKENIZER(dots, add_special_tokens=False)["input_ids"])


@quick
@given(passage(1), passage(1), some.sampled_from(prompts.CONTEXTS), some.integers(60, 300), some.integers(1, 30))
def test_a_prompt_never_exceeds_the_window(text, question, context, window, answer_tokens):
    """It leaves room for the answer, or there is none (a whole document too long), or the question is refused."""
    try:
        ids = prompts.put(TOKENIZER, Document("d", text), question, context, window, answer_tokens)
    except ValueError as error:
        assert "ask a shorter question" in str(error)
        return
    if ids is None:
        assert context == "full" and len(TOKENIZER(f"{text} {question}")["input_ids"]) > window - answer_tokens - 60
    else:
        assert len(ids) <= window - answer_tokens


def example(ids):
    return Example(tuple(ids), tuple(ids), "segment")


@quick
@given(
    some.lists(some.lists(some.lists(some.integers(5, 7) | some.integers(5, 90), min_size=1, max_size=60), max_size=4),
               max_size=3),
)  # fmt: skip
def test_packed_examples_are_read_as_if_alone(tiny, drawn):
    """Whatever they begin with alike: what is said of the token before each scored one is what is said of it alone."""
    assume(any(drawn))
    examples = [example(ids) for of in drawn for ids in of]
    batch = pack([[example(ids) for ids in of] for of in drawn], [lambda e: 1.0] * len(drawn), 0)
    with torch.no_grad(), SequenceAttention(tiny.model).within(batch):
        states = packed_states(tiny.model, batch)[0, batch.places].sum(0)
    with torch.no_grad():
        alone = [tiny.model.get_decoder()(torch.tensor([e.ids])).last_hidden_state[0, :-1].sum(0) for e in examples]
    torch.testing.assert_close(states, torch.stack(alone).sum(0), atol=1e-4, rtol=1e-4)
    assert int(batch.counts.sum()) == sum(len(e.ids) for e in examples)


LEAF = some.one_of(
    TEXT, some.integers(), some.floats(allow_nan=False, allow_infinity=False), some.booleans(), some.none()
)
VALUE = some.recursive(
    LEAF, lambda of: some.lists(of, max_size=3) | some.dictionaries(TEXT, of, max_size=3), max_leaves=6
)
SETTINGS = some.dictionaries(TEXT, VALUE, min_size=1, max_size=4)


def same(one, other):
    """Equal as JSON values: 1, 1.0 and true are three, the order of a dict's keys is none."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


def key(of, name="study", fingerprint="sources"):
    return cells._keys(name, [of], fingerprint)[0]


@quick
@given(SETTINGS)
def test_equal_settings_have_equal_cell_keys(of):
    turned = dict(reversed(json.loads(json.dumps(of)).items()))
    assert key(of) == key(turned)
    assert len({key(of), key(of, name="other"), key(of, fingerprint="changed")}) == 3


@quick
@given(SETTINGS, VALUE, some.data())
def test_any_changed_value_has_another_cell_key(of, value, data):
    name = data.draw(some.sampled_from(sorted(of)))
    assume(not same(of[name], value))
    assert key(of) != key(of | {name: value})
    assert key(of) != key({n: v for n, v in of.items() if n != name} | {name + "'": of[name]})


@quick
@given(some.lists(some.dictionaries(TEXT, TEXT, max_size=3), min_size=1, max_size=5), some.booleans(), some.booleans())
def test_jsonl_of_any_text_is_read_as_written(tmp_path, written, ascii_only, marked):
    """Whether escaped or not, whatever ends of lines its texts hold, with a mark at the start or without."""
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in written]
    path.write_bytes(b"\xef\xbb\xbf" * marked + "\n".join(lines).encode("utf-8"))
    found = list(rows(path))
    assert [row for _, row in found] == written
    assert [place for place, _ in found] == [f"{path}:{number}" for number in range(1, len(lines) + 1)]


BROKEN = [
    b'{"a": "b"',
    b'{"a": }',
    b"[1]",
    b'"a"',
    b"{'a': 1}",
    b'{"a": "\xff"}',
    b'{"a": "\\ud800"}',
    b'{"a": "\\u0000"}',
]


@quick
@given(some.lists(some.dictionaries(TEXT, TEXT, max_size=2), max_size=5), some.sampled_from(BROKEN), some.data())
def test_a_broken_line_at_any_place_is_named_by_its_number(tmp_path, written, broken, data):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(row).encode() for row in written]
    place = data.draw(some.integers(0, len(lines)))
    path.write_bytes(b"\n".join([*lines[:place], broken, *lines[place:]]))
    with pytest.raises(ValueError, match=rf"a\.jsonl:{place + 1}\b"):
        list(rows(path))


HOSTILE = "{input} {0} {question!r} {context:>9999} {{ }} $passage ${sentence} %s %(title)s \\{title\\}"


@pytest.mark.parametrize("name", prompts.STYLES)
@quick
@given(FILLED, TEXT, TEXT)
def test_braces_in_a_text_are_never_read_as_fields(name, question, title, context):
    """The prompt of one character for each text, with these then replaced by the texts, is the prompt of the texts."""
    style = prompts.STYLES[name]
    texts = {"\ue000": question + HOSTILE, "\ue001": title + HOSTILE, "\ue002": HOSTILE + context}
    for template, held in ((style.question, False), (style.with_context, True)):
        marks = ["\ue000" if "{question}" in template else "", "\ue001", "\ue002" if held else None]
        filled = re.sub("[\ue000-\ue002]", lambda mark: texts[mark[0]], style.text(*marks))
        assert style.text(*(texts.get(mark, mark) for mark in marks)) == filled


class Asked:
    """A generator that keeps what it is asked and replies nothing of use."""

    name = "asked"

    def __init__(self):
        self.said = []

    def replies(self, requests, read):
        for index, request in requests:
            self.said += [text for _, text in request.messages]
            yield Reply(index, "", None, "no reply", 1)


@pytest.mark.parametrize("task", TASKS)
def test_braces_in_a_document_reach_the_generator_as_they_are(task):
    generator = Asked()
    text = f"Ada wrote {HOSTILE} in Oslo.\n\nBen wrote {HOSTILE} in Rome."
    assert list(Auxiliary(Document("d", text), task, 1, generator)) == []
    assert generator.said and all(HOSTILE in said for said in generator.said)
