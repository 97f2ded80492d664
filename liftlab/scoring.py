"""Scores of an answer against its reference, each 0..1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable


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


def contains(answer: str, reference: str) -> float:
    """1.0 where the reference's words stand in the answer, in a row, after normalisation: for models that chat."""
    return float(f" {normalised(reference)} " in f" {normalised(answer)} ")


def score(name: str) -> Callable[[str, str], float]:
    """The score called `name`; ValueError names the known ones."""
    if name not in SCORES:
        raise ValueError(f"score {name!r} is unknown: choose one of {', '.join(SCORES)}")
    return SCORES[name]


SCORES = {"exact_match": exact_match, "f1": f1, "contains": contains}
