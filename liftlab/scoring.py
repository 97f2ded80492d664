"""Scores of an answer against its reference, each 0..1."""

from __future__ import annotations

import re
import string
from collections import Counter


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and extra space: the normalisation of SQuAD (arXiv 1606.05250)."""
    bare = "".join(" " if c in string.punctuation else c for c in text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(answer: str, reference: str) -> float:
    """1.0 where both are the same after normalisation, else 0.0."""
    return float(normalised(answer) == normalised(reference))


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of token precision and recall after normalisation; 1.0 where both are empty, 0.0 where one is."""
    said, wanted = normalised(answer).split(), normalised(reference).split()
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))


SCORES = {"exact_match": exact_match, "f1": f1}
