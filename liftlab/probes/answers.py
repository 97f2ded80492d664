"""What the probes that ask share: greedy answers and their score, a row a question."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from liftlab import scoring
from liftlab.answering import answer
from liftlab.documents import Document, Question
from liftlab.models import BaseModel
from liftlab.probes.gates import at_rest
from liftlab.prompts import PLAIN, PromptStyle


def scored(
    base: BaseModel,
    document: Document,
    questions: Sequence[Question],
    context: str,
    *,
    answer_tokens: int = 8,
    style: PromptStyle = PLAIN,
    score: str = "exact_match",
) -> pd.DataFrame:
    """Columns: question, wording, kind, hops, depth (0..1, NaN without evidence), metric (`score`), unit, value (0..1).

    ValueError for no question, a `score` that `scoring.SCORES` lacks, or a document that does not fit (context "full").
    """
    right = scoring.score(score)
    if not questions:
        raise ValueError("no question was given: a probe asks at least one")
    with at_rest(base.model):
        said = answer(base, document, questions, context, answer_tokens=answer_tokens, style=style)
    if None in said:
        raise ValueError(
            f"document {document.name!r} does not fit the window of {base.window} tokens with question "
            f"{questions[said.index(None)].text!r} and {answer_tokens} answer tokens: choose context truncated"
        )
    values = [right(text, question.answer) for text, question in zip(said, questions, strict=True)]
    return rows(document, questions, values, score)


def chances(document: Document, questions: Sequence[Question]) -> pd.DataFrame:
    """The probability of a right guess; the columns of `scored`."""
    return rows(document, questions, [float(question.chance) for question in questions], "chance")


def rows(document: Document, questions: Sequence[Question], values: Sequence[float], metric: str) -> pd.DataFrame:
    """A value a question, a share of questions; the columns of `scored`."""
    measured = {"metric": metric, "unit": "share of questions"}
    pairs = zip(questions, values, strict=True)
    return pd.DataFrame([{**about(document, question), **measured, "value": value} for question, value in pairs])


def about(document: Document, question: Question) -> dict:
    """The columns that say which question a row is of."""
    return {
        "question": question.text,
        "wording": question.wording,
        "kind": question.kind,
        "hops": question.hops,
        "depth": document.depth(question),
    }
