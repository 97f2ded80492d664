"""Scores of an answer against its reference, each 0..1 (the papers report percent); BERTScore: `text_overlap`."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations

from liftlab.documents import Question
from liftlab.text_overlap import meteor, meteor_without_synonyms, rouge_l

Score = Callable[[str, str], float]  # of (answer, reference)


def score(name: str) -> Score:
    """The score called `name`; ValueError names the known ones."""
    if name not in SCORES:
        raise ValueError(f"score {name!r} is unknown: choose one of {', '.join(SCORES)}")
    return SCORES[name]


def best(name: str, answer: str, right: Question | Sequence[str]) -> float:
    """The highest score called `name` over all right answers: a list, or the question's `answer` and `also`."""
    references = [right.answer, *right.also] if isinstance(right, Question) else list(right)
    if isinstance(right, str) or not references:
        raise ValueError(f"right answers {right!r}: give a question, or a list of at least one text")
    return max(score(name)(answer, reference) for reference in references)


def normalised(text: str) -> str:
    """Lower case, ASCII punctuation removed, then articles; single spaces: SQuAD's (arXiv 1606.05250) and LongBench's.

    Words joined by punctuation become one: "Oslo-born" is "osloborn".
    """
    return _bare(text, "")


def exact_match(answer: str, reference: str) -> float:
    """1.0 where both are the same after normalisation, else 0.0."""
    return float(normalised(answer) == normalised(reference))


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of token precision and recall after normalisation; 0.0 where one is empty.

    1.0 where both are empty, as in SQuAD 2.0; LongBench gives 0 there.
    """
    said, wanted = normalised(answer).split(), normalised(reference).split()
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))


def contains(answer: str, reference: str) -> float:
    """1.0 where the reference's words stand in the answer, in a row: for models that chat; no benchmark's own score.

    Words are read both as `normalised` does and with a space for each punctuation mark; one suffices: "US" stands in
    "the U.S.", "Oslo" in "Oslo-born". So it is never below `exact_match`.
    """
    return float(any(f" {_bare(reference, mark)} " in f" {_bare(answer, mark)} " for mark in ("", " ")))


def retrieval(answer: str, reference: str) -> float:
    """Share of the numbers in the answer that are the right paragraph's; 0.0 without a number.

    LongBench, passage_retrieval_en (arXiv 2308.14508). Reference: "Paragraph 7"; ValueError for another.
    """
    wanted = re.search(r"Paragraph (\d+)", reference)
    if wanted is None:
        raise ValueError(f'reference {reference!r} names no paragraph: give one such as "Paragraph 7"')
    numbers = re.findall(r"\d+", answer)
    return numbers.count(wanted[1]) / len(numbers) if numbers else 0.0


def coordinate(answer: str, reference: str) -> float:
    """Share of the pairs that stand in the reference's order; 0.0 unless the answer has its items, each once.

    Timeline reorder (2412.13626). A reference without a letter is an order of numbers: "2,1,3"; of the answer all its
    numbers count, whatever is around them. Else both are cut at commas, semicolons, arrows and line ends, or at white
    space where they have none: "Ada, Bruno, Carla"; case and punctuation around an item do not count. ValueError for a
    reference of fewer than two items, or with one twice.
    """
    numbers = re.search(r"[^\W\d_]", reference) is None
    wanted, said = (re.findall(r"\d+", text) if numbers else _items(text) for text in (reference, answer))
    if len(wanted) < 2 or len(set(wanted)) < len(wanted):
        raise ValueError(f'reference {reference!r} is no order: give two or more items, each once, such as "2,1,3"')
    if sorted(said) != sorted(wanted):
        return 0.0
    pairs = list(combinations(wanted, 2))
    return sum(said.index(first) < said.index(second) for first, second in pairs) / len(pairs)


def needle_keys(answer: str, reference: str) -> float:
    """Share of the key words that stand in the answer, in any case (2502.14644v4, needle in a haystack).

    Reference: the key words with semicolons between, "eat a sandwich; Dolores Park; sunny day"; ValueError for none.
    """
    keys = [key for part in reference.split(";") if (key := _spaced(part))]
    if not keys:
        raise ValueError(f"reference {reference!r} has no key word: give at least one, semicolons between")
    return sum(key in _spaced(answer) for key in keys) / len(keys)


def _bare(text: str, mark: str) -> str:
    """`text` in lower case with `mark` for each punctuation mark, then without articles; single spaces."""
    plain = text.lower().translate(dict.fromkeys(map(ord, string.punctuation), mark))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def _items(text: str) -> list[str]:
    parts = [part for part in re.split(r"[,;>→\n]", text) if part.strip()]
    parts = text.split() if len(parts) < 2 else parts
    return [item for part in parts if (item := _spaced(part.strip(string.punctuation + string.whitespace)))]


def _spaced(text: str) -> str:
    return " ".join(text.lower().split())


# the scores that any pair of texts has and no library computes
SHORT_ANSWER_SCORES: dict[str, Score] = {"exact_match": exact_match, "f1": f1, "contains": contains}
SCORES: dict[str, Score] = SHORT_ANSWER_SCORES | {
    "rouge_l": rouge_l, "retrieval": retrieval, "meteor": meteor, "meteor_without_synonyms": meteor_without_synonyms,
    "coordinate": coordinate, "needle_keys": needle_keys,
}  # fmt: skip
CHANCE = {"coordinate": 0.5}  # scores that say what a guess earns: here the right items in any order, on average
TASK_SCORES = {  # LongBench task: its score, the best over the right answers
    "musique": "f1", "narrativeqa": "f1", "qmsum": "rouge_l", "gov_report": "rouge_l",
    "passage_retrieval_en": "retrieval",
}  # fmt: skip
