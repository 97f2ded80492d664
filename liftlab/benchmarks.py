"""Released benchmarks, question sets of one's own and needles in a haystack, as documents with their questions.

A malformed row stops the reading with its file and line: nothing is skipped.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from liftlab.documents import Document, Question, check_characters, decoded, file_bytes, read_text, shown

Row = tuple[str, dict[str, Any]]  # file:line, and the object that stands there


def read_loogle(path: str | Path) -> list[Document]:
    """The documents of a LooGLE question file (short or long dependency): JSONL, a document a line.

    Fields: input (the text), title, qa_pairs: a list, or, as first released, a string that holds it as a Python
    literal; of each pair Q, A, S (the evidence: text, or several) and, for long dependency, type, which becomes the
    question's kind. All evidence is kept as quoted; what the text holds of it, whatever its white space, also becomes
    a span, of several the first two.
    Names are the file's, with the document's number. ValueError or FileNotFoundError as `rows`.
    Source: https://arxiv.org/abs/2311.04939, hub dataset bigai-nlco/LooGLE.
    """
    found = []
    for number, (place, row) in enumerate(rows(path)):
        text, title = _text(row, "input", place), _text(row, "title", place)
        questions = tuple(_loogle_question(pair, text, place) for pair in _loogle_pairs(row.get("qa_pairs"), place))
        found.append(Document(f"{Path(path).stem}-{number:03d}", text, title, questions))
    return found


def read_longbench(path: str | Path) -> list[Document]:
    """The documents of a LongBench task file: JSONL, a document with one question a line.

    Fields: context (the text), input (the question; empty for summaries), answers (all of them right), dataset (the
    task, which becomes the question's kind), _id (the document's name). ValueError or FileNotFoundError as `rows`, and
    for a name that comes twice. Source: https://arxiv.org/abs/2308.14508.
    """
    found: list[Document] = []
    places: dict[str, str] = {}  # of each document's name
    for place, row in rows(path):
        answers = row.get("answers")
        if not (isinstance(answers, list) and answers and all(isinstance(answer, str) for answer in answers)):
            raise ValueError(f'{place} needs "answers", a list of at least one text, not {answers!r:.80}: quote each')
        asked = _text(row, "input", place, empty=True)
        question = Question(asked, answers[0], kind=_text(row, "dataset", place), also=tuple(answers[1:]))
        name = _text(row, "_id", place)
        if places.setdefault(name, place) != place:
            raise ValueError(f'{place}: "_id" {name!r} is the document of {places[name]} already: give each its own')
        found.append(Document(name, _text(row, "context", place), questions=(question,)))
    return found


def read_questions(path: str | Path) -> list[Document]:
    """Documents with questions of one's own: JSONL, a question a line.

    Fields: document (its text), question, answer; optional title, kind, and evidence, which the document must hold.
    Lines of one document and title belong together, in the file's order. ValueError or FileNotFoundError as `rows`.
    """
    asked: dict[tuple[str, str], list[Question]] = {}
    for place, row in rows(path):
        text, title, kind = (
            _text(row, name, place, empty=name != "document") for name in ("document", "title", "kind")
        )
        evidence = _text(row, "evidence", place, empty=True)
        span = _span(text, evidence)
        if evidence and span is None:
            raise ValueError(
                f"{place}: the document does not hold the evidence {evidence!r}: quote it as it stands there"
            )
        question = Question(
            _text(row, "question", place), _text(row, "answer", place), span, kind=kind, quoted=_quoted([evidence])
        )
        asked.setdefault((text, title), []).append(question)
    stem = Path(path).stem
    return [Document(f"{stem}-{i:03d}", *key, tuple(of)) for i, (key, of) in enumerate(asked.items())]


def haystack(folder: str | Path) -> str:
    """The text and Markdown files of a folder, by name, an empty line between two. ValueError where it has none."""
    files = sorted(path for path in Path(folder).glob("*") if path.suffix in (".txt", ".md"))
    if not files:
        raise ValueError(f"haystack {shown(folder)} holds no .txt or .md file: give a folder of texts")
    return "\n\n".join(read_text(path).text for path in files)


def with_needle(hay: str, needle: str, question: str, answer: str, words: int, depth: float) -> Document:
    """The first `words` words of `hay` with `needle` put between two sentences, at `depth` of its characters.

    Depth 0 begins the document, 1 ends it; between them the needle stands at the sentence's end that is nearest, so
    `Document.depth` of the question may differ by half a sentence. ValueError for a depth outside 0..1, or too short a
    haystack.
    """
    if not 0 <= depth <= 1:
        raise ValueError(f"depth = {depth}: give a depth in 0..1, where 1 ends the document")
    ends = [match.end() for match in re.finditer(r"\S+", hay)]
    if not 1 <= words <= len(ends):
        raise ValueError(f"words = {words}: the haystack has {len(ends)} words, give 1 to that many, or a larger one")
    text = hay[: ends[words - 1]]
    places = [0, *(match.end() for match in re.finditer(r"[.!?][\"')\]]*(?=\s)", text)), len(text)]
    at = min(places, key=lambda place: abs(place - depth * len(text)))
    before, after = text[:at].rstrip(), text[at:].lstrip()
    start = len(before) + bool(before)
    told = Question(question, answer, (start, start + len(needle)), kind="needle")
    return Document(f"needle-{words}-{depth:g}", " ".join(filter(None, (before, needle, after))), questions=(told,))


def rows(path: str | Path) -> Iterator[Row]:
    """Each line of a JSONL file with its place; empty lines are left out.

    FileNotFoundError; ValueError for text that is not UTF-8, a line that is no JSON object, or no line at all.
    """
    path = Path(path)
    data = file_bytes(path, "file", "a JSONL file")
    lines = enumerate(data.split(b"\n"), start=1)  # a text may hold any other end of a line
    found = [(f"{shown(path)}:{number}", line) for number, line in lines if line.strip()]
    if not found:
        raise ValueError(f"{shown(path)} is empty: at least one JSON object, one a line, is needed")
    for place, line in found:
        yield place, _object(line, place)


def _object(line: bytes, place: str) -> dict[str, Any]:
    text = decoded(line, place)
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of too many digits is a ValueError of its own
        said = getattr(error, "msg", str(error))
        raise ValueError(f"{place} is not JSON ({said}): one object a line is needed") from error
    if not isinstance(row, dict):
        raise ValueError(f"{place} holds a {type(row).__name__}: one JSON object a line is needed")
    for said in _texts(row):
        check_characters(said, f"{place}: a text")
    return row


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, names of fields too."""
    if isinstance(value, str):
        yield value
    for item in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(item)


def _text(row: dict[str, Any], name: str, place: str, empty: bool = False) -> str:
    """The row's text called `name`; where it may be `empty`, "" if it is not there."""
    value = row.get(name, "" if empty else None)
    if not isinstance(value, str) or not (empty or value.strip()):
        held = f", not {value!r:.80} ({type(value).__name__}): put it in quotes" if name in row else ": add it"
        raise ValueError(f'{place} needs "{name}", a {"text" if empty else "non-empty text"}{held}')
    return value


def _loogle_pairs(pairs: Any, place: str) -> list[dict[str, Any]]:
    if isinstance(pairs, str):
        try:
            pairs = ast.literal_eval(pairs)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ValueError(f'{place}: "qa_pairs" is text, but no Python literal ({error})') from error
    if not (isinstance(pairs, list) and pairs and all(isinstance(pair, dict) for pair in pairs)):
        raise ValueError(f'{place} needs "qa_pairs", a list of at least one question with its answer')
    return pairs


def _loogle_question(pair: dict[str, Any], text: str, place: str) -> Question:
    said = pair.get("S", [])
    said = [said] if isinstance(said, str) else said
    if not (isinstance(said, list) and all(isinstance(part, str) for part in said)):
        raise ValueError(
            f'{place}: the evidence "S" of question {pair.get("Q")!r} is neither a text nor a list of texts'
        )
    spans = [span for part in said if (span := _span(text, part))]
    evidence, bridge = [*spans, None, None][:2]
    kind = _text(pair, "type", place, empty=True)
    return Question(_text(pair, "Q", place), _text(pair, "A", place), evidence, bridge, kind, quoted=_quoted(said))


def _quoted(said: list[str]) -> tuple[str, ...]:
    """What is said, without empty texts, which quote nothing."""
    return tuple(part for part in said if part.strip())


def _span(text: str, said: str) -> tuple[int, int] | None:
    """Where `text` first holds the words of `said`, whatever white space is between them; None for none."""
    words = said.split()
    match = re.search(r"\s+".join(map(re.escape, words)), text) if words else None
    return match.span() if match else None
