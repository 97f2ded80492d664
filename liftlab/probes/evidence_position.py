"""Where in the document the evidence stands, and whether the question about it is answered.

Truncation keeps head and tail; what stands in the middle can only be answered from memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from liftlab.documents import Document, Question
from liftlab.models import BaseModel
from liftlab.probes.answers import scored
from liftlab.probes.layout import Ends
from liftlab.prompts import PLAIN, PromptStyle, fit


def probe(
    base: BaseModel,
    document: Document,
    questions: Sequence[Question],
    *,
    context: str = "none",
    answer_tokens: int = 8,
    style: PromptStyle = PLAIN,
    score: str = "exact_match",
) -> pd.DataFrame:
    """`score` (see `scoring.SCORES`) of the greedy answers, a row a question.

    Columns: question, wording, kind, hops, depth (0..1), place, would_be, metric (`score`), unit, value (0..1).
    `would_be`: where truncation puts the evidence: "head", "tail" (kept whole), "middle" (dropped whole), "cut" (kept
    in part), or "whole" (the whole document fits). `place`: where it stands in the prompt that was asked: the same for
    context "truncated", "whole" for "full", "absent" for "none". A two-hop question's bridge may stand elsewhere.
    ValueError where no question is given, one names no evidence, or the document does not fit (context "full").
    """
    for question in questions:
        _has_evidence(question)
    found = scored(base, document, questions, context, answer_tokens=answer_tokens, style=style, score=score)
    would_be = [truncated_place(base, document, q, answer_tokens=answer_tokens, style=style) for q in questions]
    place = {"none": "absent", "full": "whole", "truncated": would_be}[context]
    return found.assign(place=place, would_be=would_be)


def truncated_place(
    base: BaseModel, document: Document, question: Question, *, answer_tokens: int = 8, style: PromptStyle = PLAIN
) -> str:
    """Where truncation puts the question's evidence: "head", "middle", "tail", "cut" or "whole" (see `probe`)."""
    _has_evidence(question)
    _, ends = fit(base.tokenizer, document, question, "truncated", base.window, answer_tokens, style)
    return _place(question.evidence, ends)


def _place(evidence: tuple[int, int], ends: Ends) -> str:
    if ends is None:
        return "whole"
    (start, end), (head_end, tail_start) = evidence, ends
    if end <= head_end:
        return "head"
    if start >= tail_start:
        return "tail"
    return "middle" if head_end <= start and end <= tail_start else "cut"


def _has_evidence(question: Question) -> None:
    if question.evidence is None:
        raise ValueError(f"question {question.text!r} names no evidence: give its span, or leave the question out")
