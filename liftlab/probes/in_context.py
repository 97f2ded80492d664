"""The original ability: answering questions about a document that stands in the prompt.

Given an unseen document, it shows what a lift of another one cost the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from liftlab.answering import answer
from liftlab.documents import Document, Question
from liftlab.models import BaseModel
from liftlab.probes.gates import at_rest
from liftlab.prompts import PLAIN, PromptStyle
from liftlab.scoring import exact_match


def probe(
    base: BaseModel,
    document: Document,
    questions: Sequence[Question],
    *,
    context: str = "full",
    answer_tokens: int = 8,
    style: PromptStyle = PLAIN,
) -> pd.DataFrame:
    """Exact match of the greedy answers, a row a question.

    Columns: question, wording, kind, hops, depth (NaN without evidence), context, metric, unit, value (0.0 or 1.0).
    ValueError where no question is given, `context` is "none", or the document does not fit (context "full").
    """
    if context == "none":
        raise ValueError("context 'none' leaves the document out of the prompt: choose truncated or full")
    scores = exact_matches(base, document, questions, context, answer_tokens, style)
    return pd.DataFrame(
        {**about(document, question), "context": context, **score}
        for question, score in zip(questions, scores, strict=True)
    )


def about(document: Document, question: Question) -> dict:
    """The columns that say which question a row is of."""
    return {
        "question": question.text,
        "wording": question.wording,
        "kind": question.kind,
        "hops": question.hops,
        "depth": document.depth(question),
    }


def exact_matches(
    base: BaseModel,
    document: Document,
    questions: Sequence[Question],
    context: str,
    answer_tokens: int,
    style: PromptStyle,
) -> list[dict]:
    """metric, unit and value of each question's answer; ValueError for no question, or a document that does not fit."""
    if not questions:
        raise ValueError("no question was given: a probe asks at least one")
    with at_rest(base.model):
        said = answer(base, document, questions, context, answer_tokens=answer_tokens, style=style)
    if None in said:
        raise ValueError(
            f"document {document.name!r} does not fit the window of {base.window} tokens with question "
            f"{questions[said.index(None)].text!r} and {answer_tokens} answer tokens: choose context truncated"
        )
    return [
        {"metric": "exact_match", "unit": "share of questions", "value": exact_match(text, question.answer)}
        for text, question in zip(said, questions, strict=True)
    ]
