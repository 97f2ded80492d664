"""The original ability: answering questions about a document that stands in the prompt.

Given an unseen document, it shows what a lift of another one cost the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from liftlab.documents import Document, Question
from liftlab.models import BaseModel
from liftlab.probes.answers import scored
from liftlab.prompts import PLAIN, PromptStyle


def probe(
    base: BaseModel,
    document: Document,
    questions: Sequence[Question],
    *,
    context: str = "full",
    answer_tokens: int = 8,
    style: PromptStyle = PLAIN,
    score: str = "exact_match",
) -> pd.DataFrame:
    """`score` (see `scoring.SCORES`) of the greedy answers, a row a question.

    Columns: question, wording, kind, hops, depth (NaN without evidence), context, metric (`score`), unit, value (0..1).
    ValueError where no question is given, `context` is "none", or the document does not fit (context "full").
    """
    if context == "none":
        raise ValueError("context 'none' leaves the document out of the prompt: choose truncated or full")
    found = scored(base, document, questions, context, answer_tokens=answer_tokens, style=style, score=score)
    return found.assign(context=context)
