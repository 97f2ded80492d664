from dataclasses import replace

import pytest

from liftlab.documents import Document, Question, joined, read_text, shown
from liftlab.worlds import register


def test_depth_is_0_at_the_start_and_1_at_the_end():
    document = Document("d", "abcdefghij")
    assert document.depth(Question("?", "a", evidence=(0, 3))) == 0.0
    assert document.depth(Question("?", "a", evidence=(7, 10))) == 1.0
    assert document.depth(Question("?", "a")) is None


def test_evidence_is_what_is_quoted_else_the_text_of_the_spans():
    document = Document("d", "abcdefghij")
    assert document.evidence_of(Question("?", "a", (0, 3))) == ("abc",)
    assert document.evidence_of(Question("?", "a", (7, 10), (0, 2))) == ("hij", "ab")
    assert document.evidence_of(Question("?", "a", bridge=(0, 2))) == ("ab",)
    assert document.evidence_of(Question("?", "a", (0, 3), (4, 5), quoted=("x", "y", "z"))) == ("x", "y", "z")
    assert document.evidence_of(Question("?", "a")) == ()


@pytest.mark.parametrize("span", [(0, 11), (-1, 2), (4, 4)])
def test_evidence_outside_the_document_is_refused(span):
    with pytest.raises(ValueError, match="lies outside document 'd'"):
        Document("d", "abcdefghij", questions=(Question("?", "a", evidence=span),))


def test_text_is_read_with_its_name_as_title_unless_one_is_given(tmp_path):
    path = tmp_path / "a walk.md"
    path.write_bytes(b"\xef\xbb\xbf# Walk\n\nCaf\xc3\xa9.\n")
    assert read_text(path) == Document("a walk", "# Walk\n\nCafé.", "a walk")
    assert read_text(path, title="Walk").title == "Walk"


def test_missing_empty_and_binary_files_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such document"):
        read_text(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ValueError, match="is empty"):
        read_text(tmp_path / "empty.txt")
    (tmp_path / "bytes.txt").write_bytes(b"ok \xff\xfe")
    with pytest.raises(ValueError, match=r"not UTF-8 text \(byte 3\)"):
        read_text(tmp_path / "bytes.txt")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_another_encoding_is_refused_by_the_byte_that_shows_it(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("Ada é".encode(encoding))
    with pytest.raises(ValueError, match=r"a\.txt .*byte \d+.*(convert it to UTF-8|give UTF-8 text)"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: Document("d", "a\0b"), "the text of document 'd' holds a NUL character .character 1.: remove it"),
        (
            lambda: Document("d", "a", "\ud800"),
            "the title of document 'd' holds half of a surrogate pair .character 0.",
        ),
        (lambda: Document("\udcff", "a"), r"the name of document '\\udcff' holds half of a surrogate pair"),
        (lambda: Document("d", "a", questions=(Question("?", "\0"),)), "question '.' of document 'd' holds a NUL"),
        (lambda: Document("d", "a", questions=(Question("?", "b", also=("\0",)),)), "question '.' .* holds a NUL"),
    ],
)
def test_what_is_no_text_is_refused_wherever_it_stands(made, words):
    with pytest.raises(ValueError, match=words):
        made()


def test_a_path_is_shown_as_one_line_of_what_can_be_printed():
    assert shown("a/Café 7.txt") == "a/Café 7.txt"
    assert shown("a\nb\x1b[31m\udce9") == r"a\nb\x1b[31m\udce9"


def test_joined_documents_keep_each_question_s_evidence_and_bridge():
    """The law: what states the answer is the same text as before; several mentors give two-hop questions."""
    documents = [register(seed, 200) for seed in range(3)]
    one = joined(documents, "three", "The registers")
    assert (one.name, one.title) == ("three", "The registers")
    assert one.text == "\n\n".join(document.text for document in documents)
    asked = [(document, question) for document in documents for question in document.questions]
    assert any(question.bridge for _, question in asked) and len(asked) == len(one.questions)
    for (document, before), after in zip(asked, one.questions, strict=True):
        assert one.evidence_of(after) == document.evidence_of(before)
        assert replace(after, evidence=None, bridge=None) == replace(before, evidence=None, bridge=None)


def test_joining_one_changes_nothing_and_none_is_refused():
    document = register(1, 60)
    assert joined([document], document.name, document.title) == document
    with pytest.raises(ValueError, match="document 'all' is to be joined from no documents: give at least one"):
        joined([], "all")
