"""The balance of context and memory: a fact in the prompt contradicts what a lifted model remembers of it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from liftlab import scoring
from liftlab.answering import answer_prompts
from liftlab.documents import Document, Question
from liftlab.gated_layer import GatedMemoryLayer
from liftlab.models import BaseModel
from liftlab.probes.answers import about
from liftlab.probes.gates import at_rest, gates
from liftlab.probes.layout import Layout, layout
from liftlab.prompts import PLAIN, PromptStyle, put
from liftlab.scoring import normalised

SOURCES = ("context", "memory", "neither")
COLUMNS = ["question", "wording", "kind", "hops", "depth", "source", "metric", "unit", "value"]


def probe(
    base: BaseModel,
    document: Document,
    questions: Sequence[Question],
    *,
    answer_tokens: int = 8,
    style: PromptStyle = PLAIN,
    context: str = "truncated",
    score: str = "exact_match",
) -> pd.DataFrame:
    """What the model answers when the document in the prompt says something else than `document` (see `edited`).

    Three rows a question, metric "answered_from", source "context" (it gave the edited answer), "memory" (the
    original one) or "neither" (none, or both), value 1.0 for one of them; gave: with a `score` of 1. With Gated Memory
    one more, metric "gate": the mean over layers, heads and the tokens where the edited answer is read off (teacher
    forced), source = what it answered from.
    A question applies where it can be edited and its edited evidence is whole in the prompt; the others are counted in
    the last row, metric "not_applicable", which has no source. ValueError where no question applies.
    """
    right, settings = scoring.score(score), (context, base.window, answer_tokens, style)
    cases = [case for question in questions if (case := _case(base, document, question, settings)) is not None]
    if not cases:
        raise ValueError(
            f"none of the {len(questions)} questions applies: each needs evidence that holds its answer and is whole "
            f"in the prompt (context {context!r}), and a question of its kind with another answer in the document"
        )
    with at_rest(base.model):
        prompts = [put(base.tokenizer, case.edited, case.asked, *settings) for case in cases]
        said = answer_prompts(base, prompts, answer_tokens)
    sources = [_source(text, case, right) for text, case in zip(said, cases, strict=True)]
    read_off = _gates(base, cases)
    rows = [row for of in zip(cases, sources, read_off, strict=True) for row in _rows(document, *of)]
    count = {"metric": "not_applicable", "unit": "questions", "value": float(len(questions) - len(cases))}
    return pd.DataFrame([*rows, count], columns=COLUMNS)


def edited(document: Document, question: Question) -> Document | None:
    """`document` with another answer in the question's evidence: that of another question of its kind.

    Drawn by the question's text, and neither in that text nor in the evidence. The fact's questions (same evidence and
    answer) have the new answer, every span is moved along; two-hop questions by way of the fact keep their old answer.
    None where the question has no evidence or kind, no answer can stand in, the evidence does not hold the answer
    exactly once as a whole word, or the fact stands in several places.
    """
    edit = _edit(document, question)
    return None if edit is None else edit.document(document)


@dataclass(frozen=True)
class _Edit:
    """The fact that `question` asks, told at characters `start` to `end` of the document, becomes `answer`."""

    question: Question
    start: int
    end: int
    answer: str

    def document(self, document: Document) -> Document:
        text = f"{document.text[: self.start]}{self.answer}{document.text[self.end :]}"
        return replace(document, text=text, questions=tuple(map(self.asked, document.questions)))

    def asked(self, question: Question) -> Question:
        """`question` as it is asked of the edited document."""
        same = (question.evidence, question.answer) == (self.question.evidence, self.question.answer)
        return replace(
            question,
            answer=self.answer if same else question.answer,
            evidence=self._span(question.evidence),
            bridge=self._span(question.bridge),
        )

    def _span(self, span: tuple[int, int] | None) -> tuple[int, int] | None:
        """The span in the edited text; one that held a part of the old answer holds all of the new."""
        if span is None:
            return None
        (start, end), longer = span, len(self.answer) - (self.end - self.start)
        start = start + longer if start >= self.end else min(start, self.start)
        return start, end if end <= self.start else max(end, self.end) + longer


def _edit(document: Document, question: Question) -> _Edit | None:
    if question.evidence is None or _told_again(document, question):
        return None
    start, end = question.evidence
    places = list(_word(question.answer).finditer(document.text[start:end]))
    others = _other_answers(document, question)
    if len(places) != 1 or not others:
        return None
    chosen = random.Random(question.text).choice(others)
    return _Edit(question, start + places[0].start(), start + places[0].end(), chosen)


def _told_again(document: Document, question: Question) -> bool:
    """The evidence's words stand twice in the document, or the same question has evidence elsewhere too."""
    spans = {q.evidence for q in document.questions if q.text == question.text} - {None, question.evidence}
    return bool(spans) or document.text.count(document.text[slice(*question.evidence)]) > 1


def _other_answers(document: Document, question: Question) -> list[str]:
    """The answers of the question's kind that may stand in for its own, sorted."""
    named = f"{question.text}\n{document.text[slice(*question.evidence)]}"
    answers = {q.answer for q in document.questions if q.kind == question.kind != ""}
    own = normalised(question.answer)
    return sorted(a for a in answers if normalised(a) != own and not _word(a).search(named))


def _word(answer: str) -> re.Pattern:
    return re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)")


@dataclass(frozen=True)
class _Case:
    """A question that applies: as it is, as it is asked of the edited document, and that prompt."""

    question: Question
    edited: Document
    asked: Question
    layout: Layout


def _case(base: BaseModel, document: Document, question: Question, settings: tuple) -> _Case | None:
    edit = _edit(document, question)
    if edit is None:
        return None
    changed, asked = edit.document(document), edit.asked(question)
    made = layout(base.tokenizer, changed, asked, *settings)
    return _Case(question, changed, asked, made) if made is not None and made.evidence_place == "kept" else None


def _gates(base: BaseModel, cases: Sequence[_Case]) -> list[float | None]:
    """Per case the mean gate where the edited answer is read off; None each without Gated Memory."""
    if not any(isinstance(m, GatedMemoryLayer) and not m.disable_adapters for m in base.model.modules()):
        return [None] * len(cases)
    found = gates(base, [case.layout for case in cases]).query("role == 'answer'")
    return found.groupby("prompt")["gate"].mean().tolist()


def _rows(document: Document, case: _Case, source: str, gate: float | None) -> list[dict]:
    of = about(document, case.question)
    metric = {"metric": "answered_from", "unit": "share of questions"}
    rows = [{**of, "source": name, **metric, "value": float(name == source)} for name in SOURCES]
    if gate is not None:
        rows.append({**of, "source": source, "metric": "gate", "unit": "gate 0..1", "value": gate})
    return rows


def _source(said: str, case: _Case, right: Callable[[str, str], float]) -> str:
    """ "neither" also where both would be right."""
    context, memory = (right(said, question.answer) == 1.0 for question in (case.asked, case.question))
    if context == memory:
        return "neither"
    return "context" if context else "memory"
