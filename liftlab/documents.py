"""Documents and the questions asked about them, and readers for text files."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

MOST_BYTES = 2**30  # of a file that is read: it is held in memory, several times over
BETWEEN = "\n\n"  # texts that are joined: a blank line
_MARKS = {  # how a text in another encoding begins; the longer marks first
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


@dataclass(frozen=True)
class Question:
    """A question with its reference answer and where the document says it.

    `evidence` is the (start, end) character span, end exclusive, in `Document.text` that states the answer; `bridge` is
    the span of the other fact that a two-hop question needs. `wording` is "trained" (may be trained on) or "held_out".
    `chance` is the probability of a right guess from the answer distribution alone, 0..1. `also` are other answers that
    are right as well. `quoted` is the evidence as the benchmark quotes it, whether the document holds it so or not.
    """

    text: str
    answer: str
    evidence: tuple[int, int] | None = None
    bridge: tuple[int, int] | None = None
    kind: str = ""
    wording: str = "held_out"
    hops: int = 1
    chance: float | None = None
    also: tuple[str, ...] = ()
    quoted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """A long text and the questions about it. `name` identifies it in records; `title` heads its first segment."""

    name: str
    text: str
    title: str = ""
    questions: tuple[Question, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError(f"document {self.name!r} is empty: a document needs at least one word")
        for what in ("name", "title", "text"):
            check_characters(getattr(self, what), f"the {what} of document {self.name!r:.80}")
        for question in self.questions:
            for what in (question.text, question.answer, *question.also, *question.quoted):
                check_characters(what, f"question {question.text!r:.80} of document {self.name!r:.80}")
            self._check_span(question)

    def _check_span(self, question: Question) -> None:
        for span in (question.evidence, question.bridge):
            if span is not None and not 0 <= span[0] < span[1] <= len(self.text):
                raise ValueError(
                    f"evidence {span} of question {question.text!r} lies outside document {self.name!r} "
                    f"(0..{len(self.text)} characters): give a (start, end) span of the document's text"
                )

    def depth(self, question: Question) -> float | None:
        """Where the evidence stands: 0 = it begins the document, 1 = it ends the document; None without evidence."""
        if question.evidence is None:
            return None
        start, end = question.evidence
        return start / max(1, len(self.text) - (end - start))

    def evidence_of(self, question: Question) -> tuple[str, ...]:
        """The texts that state the answer: as quoted, else those of the spans (evidence, bridge); () without any."""
        spans = (question.evidence, question.bridge)
        return question.quoted or tuple(self.text[slice(*span)] for span in spans if span is not None)

    def asked(self, wording: str | None = None, hops: int = 1) -> tuple[Question, ...]:
        """The questions of one `wording` ("trained", "held_out", None = both) and number of `hops`."""
        return tuple(q for q in self.questions if q.hops == hops and wording in (None, q.wording))


def joined(documents: Sequence[Document], name: str, title: str = "") -> Document:
    """The texts one after another, a blank line between two; each question's spans are those of the same words.

    The titles are not kept: `title` heads the whole. ValueError where there is no document.
    """
    if not documents:
        raise ValueError(f"document {name!r} is to be joined from no documents: give at least one")
    questions, start = [], 0
    for document in documents:
        questions += [
            replace(q, evidence=_shifted(q.evidence, start), bridge=_shifted(q.bridge, start))
            for q in document.questions
        ]
        start += len(document.text) + len(BETWEEN)
    return Document(name, BETWEEN.join(document.text for document in documents), title, tuple(questions))


def _shifted(span: tuple[int, int] | None, by: int) -> tuple[int, int] | None:
    return None if span is None else (span[0] + by, span[1] + by)


def read_text(path: str | Path, title: str | None = None) -> Document:
    """Read a UTF-8 plain text or Markdown file; without a `title` the file's name is it.

    FileNotFoundError; ValueError for an empty or binary file, another encoding, or a title that is not one line.
    """
    path = Path(path)
    text = decoded(file_bytes(path, "document", "the path of a text or Markdown file"), f"document {shown(path)}")
    if not text.strip():
        raise ValueError(f"document {shown(path)} is empty: a document needs at least one word")
    heading = path.stem if title is None else title
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in heading):
        raise ValueError(
            f"document {shown(path)} has the title {heading!r}, which holds a control character or a line's end: "
            "give another title"
        )
    return Document(name=path.stem, text=text.strip(), title=heading)


def file_bytes(path: Path, what: str, wanted: str) -> bytes:
    """What the file holds. FileNotFoundError, or ValueError for one beyond `MOST_BYTES`, naming `what` it was for."""
    if not path.is_file():
        raise FileNotFoundError(f"no such {what}: {shown(path)}: give {wanted}")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{what} {shown(path)} has {size} bytes, at most {MOST_BYTES} are read: split it")
    return path.read_bytes()


def decoded(data: bytes, place: str) -> str:
    """UTF-8 as text, without the mark that may begin it.

    ValueError for any other encoding, or a NUL byte; both name `place` and the byte, from 0.
    """
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            raise ValueError(
                f"{place} is {encoding}, not UTF-8 text (byte 0: the mark {mark.hex(' ')}): convert it to UTF-8, "
                f"such as with iconv -f {encoding} -t UTF-8"
            )
    if (at := data.find(0)) >= 0:
        raise ValueError(f"{place} holds a NUL byte (byte {at}), so it is no text: give UTF-8 text without any")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{place} is not UTF-8 text (byte {error.start}): convert it to UTF-8, such as with "
            "iconv -f LATIN1 -t UTF-8"
        ) from error


def check_characters(text: str, what: str) -> None:
    """ValueError, naming `what`, for a character that is no text: NUL, or half of a surrogate pair."""
    if (at := text.find("\0")) >= 0:
        raise ValueError(f"{what} holds a NUL character (character {at}): remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} holds half of a surrogate pair (character {error.start}), which no tokenizer takes: remove it, "
            "or write it in UTF-8"
        ) from error


def shown(path: str | Path) -> str:
    """A path as one line: what a terminal would act on, or could not print, is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))
