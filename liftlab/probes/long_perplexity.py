"""How well a document is predicted after a short and a long context, over all its tokens and its key tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from liftlab import long_perplexity
from liftlab.documents import Document, Question
from liftlab.models import BaseModel


def probe(
    base: BaseModel,
    document: Document,
    questions: Sequence[Question] = (),
    *,
    key: Sequence[int] | None = None,
    short_tokens: int | None = None,
    long_tokens: int | None = None,
    alpha: float = long_perplexity.ALPHA,
    beta: float = long_perplexity.BETA,
    stride: int = 1,
) -> pd.DataFrame:
    """The rows of `long_perplexity.of_model`; questions are not asked.

    For a lifted document give `key`, the base model's `long_perplexity.key_tokens`.
    """
    sizes = {"short_tokens": short_tokens, "long_tokens": long_tokens}
    return long_perplexity.of_model(base, document, key=key, **sizes, alpha=alpha, beta=beta, stride=stride)
