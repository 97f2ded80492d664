"""A language model as judge: does an answer mean the same as its reference, and how good is it in four respects?"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache as once
from importlib.resources import files
from typing import Any

import yaml

from liftlab.auxiliary.replies import Generator, ReplyCache, Request, ask
from liftlab.documents import Document, Question
from liftlab.prompts import head_and_tail

Asked = tuple[str, str, str]  # question, reference, answer
DIMENSIONS = ("helpfulness", "logicality", "faithfulness", "completeness")  # of 2410.21252
JUDGE, LONGREWARD = JUDGED = ("judge", "longreward")  # scores that a judge gives
BEST = 10  # a rating is 0..BEST


@dataclass(frozen=True)
class Verdict:
    """Whether the answer is right; None where the judge gave no usable reply, which a share of True must count too."""

    right: bool | None
    failure: str = ""  # why there is none
    raw: str = ""  # the judge's reply, as it wrote it


@dataclass(frozen=True)
class ToRate:
    """An answer to rate. `grounds`: what the document says about the question (see `grounds_of`)."""

    question: str
    reference: str
    answer: str
    grounds: str


@dataclass(frozen=True)
class Rating:
    """A rating as a share of the best, 0..1; None where the judge gave no usable reply, which a mean counts as 0."""

    value: float | None
    failure: str = ""  # why there is none
    raw: str = ""  # the judge's reply, as it wrote it


def verdicts(asked: Sequence[Asked], generator: Generator, cache: ReplyCache | None = None) -> list[Verdict]:
    """The judge's verdict on each (question, reference, answer), in order. Its raw replies stay in the cache.

    An empty answer is wrong without asking. ValueError for an empty reference. The score of 2412.13626 and 2502.14644
    is the share of True among all.
    """
    _check_texts("reference", [(question, reference) for question, reference, _ in asked])
    given = [one for one in asked if one[2].strip()]
    replies = ask([judging(*one) for one in given], read_verdict, generator, cache)
    found = iter([Verdict(reply.value, reply.failure, reply.text) for reply in replies])
    return [next(found) if answer.strip() else Verdict(False) for _, _, answer in asked]


def ratings(asked: Sequence[ToRate], generator: Generator, cache: ReplyCache | None = None) -> list[dict[str, Rating]]:
    """The judge's rating of each answer in each of `DIMENSIONS`, in order. Its raw replies stay in the cache.

    An empty answer is rated 0 without asking. ValueError for an empty reference, or empty grounds. The score of
    2410.21252 is the mean of the four.
    """
    _check_texts("reference", [(one.question, one.reference) for one in asked])
    _check_texts("evidence", [(one.question, one.grounds) for one in asked])
    requests = [rating(name, one) for one in asked if one.answer.strip() for name in DIMENSIONS]
    found = iter([Rating(reply.value, reply.failure, reply.text)
                  for reply in ask(requests, read_rating, generator, cache)])  # fmt: skip
    return [{name: next(found) if one.answer.strip() else Rating(0.0) for name in DIMENSIONS} for one in asked]


def marks(
    score: str, asked: Sequence[ToRate], generator: Generator, cache: ReplyCache | None = None
) -> tuple[dict[str, list[float]], int]:
    """The marks of `asked` by metric, 0..1, the score's own first; and how many the judge did not give: these are 0."""
    if score == JUDGE:
        found = verdicts([(one.question, one.reference, one.answer) for one in asked], generator, cache)
        return {JUDGE: [float(bool(verdict.right)) for verdict in found]}, sum(v.right is None for v in found)
    rated = ratings(asked, generator, cache)
    by_name = {f"judge_{name}": [one[name].value or 0.0 for one in rated] for name in DIMENSIONS}
    means = [sum(of) / len(of) for of in zip(*by_name.values(), strict=True)]
    return {LONGREWARD: means, **by_name}, sum(of.value is None for one in rated for of in one.values())


def grounds_of(document: Document, question: Question, tokenizer, tokens: int) -> str:
    """The question's evidence; where it has none, the document, or its head and tail of at most `tokens` tokens."""
    return "\n".join(document.evidence_of(question)) or head_and_tail(tokenizer, document.text, tokens)


def _check_texts(what: str, given: Sequence[tuple[str, str]]) -> None:
    """ValueError for a (question, text) whose text is empty."""
    for number, (question, text) in enumerate(given):
        if not text.strip():
            raise ValueError(f"judge: the {what} of question {number} ({question!r}) is empty: give its text")


def judging(question: str, reference: str, answer: str) -> Request:
    """What the judge is asked, worded in paper/judge.yaml."""
    wording = _wording()
    told = wording["user"].format(question=question, reference=reference, answer=answer)
    settings = {name: wording[name] for name in ("reply_tokens", "temperature", "seed")}
    return Request((("system", wording["system"]), ("user", told)), always_greedy=True, **settings)


def rating(dimension: str, one: ToRate) -> Request:
    """What the judge is asked about one dimension, worded in paper/judge.yaml."""
    wording = _wording()["longreward"]
    respect = wording["respects"][dimension]
    told = wording["user"].format(
        question=one.question, label=wording["labels"][respect["shown"]], shown=getattr(one, respect["shown"]),
        answer=one.answer, respect=respect["respect"],
    )  # fmt: skip
    settings = {name: wording[name] for name in ("reply_tokens", "temperature", "seed")}
    return Request((("system", wording["system"]), ("user", told)), always_greedy=True, **settings)


def read_rating(reply: str) -> float:
    """The share of the best that the rating is, where it begins the reply, or is the only value of a JSON object.

    "7", "7/10", "**7**", '{"rating": 7}'; ValueError for anything else, a range, and a number outside 0..10.
    """
    said = _only_value(reply) if reply.lstrip().startswith("{") else reply
    said = "" if isinstance(said, bool) else str(said)
    number, other = r"[\s\"'*`]*(\d+(?:\.\d+)?)", r"\s*(?:[-–/\d%]|,\s*\d|to\b|or\b)|\.\d"
    match = re.match(rf"{number}(?:\s*/\s*10\b|(?!{other}))", said)
    if match is None or float(match[1]) > BEST:
        raise ValueError(f"the judge said {reply[:80]!r}, no rating of 0 to {BEST}")
    return float(match[1]) / BEST


def read_verdict(reply: str) -> bool:
    """True or False where that is the reply's first word, or the only value of a JSON object; ValueError otherwise."""
    said = _only_value(reply) if reply.lstrip().startswith("{") else reply
    if isinstance(said, bool):
        return said
    match = re.match(r"[\s\"'*`]*(true|false)\b(?!\s*(?:/|or\b))", said if isinstance(said, str) else "", re.IGNORECASE)
    if match is None:
        raise ValueError(f"the judge said {reply[:80]!r}, neither True nor False")
    return match[1].lower() == "true"


def _only_value(reply: str) -> Any:
    values = list(json.loads(reply).values())
    return values[0] if len(values) == 1 else None


@once
def _wording() -> dict[str, Any]:
    return yaml.safe_load(files("liftlab").joinpath("paper/judge.yaml").read_text("utf-8"))
