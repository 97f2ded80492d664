"""Synthetic documents with planted evidence: registers of people, written in English-looking sentences.

A register states facts (person, relation, value). A value says nothing about the person, so closed-book answers are at
chance unless the register was learned. Facts, wordings and order are drawn from independent streams, so that the same
facts can be told in other words (`wording_seed`).
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import yaml

from liftlab.documents import Document, Question

WORDS_PER_FACT = 6.5  # below the mean length of a statement (7.1 words), so that facts never run out before the words
FACTS_PER_PERSON = 4  # so a register of n facts names about n / 4 people, and each relation has several bearers


@dataclass(frozen=True)
class Relation:
    """One relation: its possible values and its wordings (statements, trained questions, held-out questions)."""

    name: str
    values: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """`name` has `value` under `relation`; `sentence` is how the register says it, `span` where (characters)."""

    name: str
    relation: Relation
    value: str
    sentence: str = ""
    span: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Vocabulary:
    """Every word list of the register world, read from data/register.yaml."""

    names: tuple[str, ...]
    towns: tuple[str, ...]
    relations: tuple[Relation, ...]
    filler: tuple[str, ...]
    chain: str

    @property
    def words(self) -> tuple[str, ...]:
        """Every word and punctuation mark a register or its questions can hold, sorted."""
        wordings = [w for r in self.relations for w in (*r.statements, *r.questions, *r.held_out, *r.values)]
        texts = (*self.names, *self.towns, *self.filler, self.chain, "The register of", *wordings)
        plain = (re.sub(r"{\w+}", " ", text) for text in texts)
        return tuple(sorted({word for text in plain for word in re.findall(r"\w+|[^\w\s]", text)}))


@cache
def vocabulary() -> Vocabulary:
    """The register world's words; the same object each time."""
    raw = yaml.safe_load(files("liftlab").joinpath("data/register.yaml").read_text("utf-8"))
    names = tuple(raw["names"].split())
    first, last = raw["years"]
    special = {"person": names, "year": tuple(str(year) for year in range(first, last + 1))}
    relations = tuple(
        Relation(
            name,
            special.get(r["values"]) or tuple(r["values"].split()),
            tuple(r["statements"]),
            tuple(r["questions"]),
            tuple(r["held_out"]),
        )
        for name, r in raw["relations"].items()
    )
    return Vocabulary(names, tuple(raw["towns"].split()), relations, tuple(raw["filler"]), raw["chain"])


def word_count(text: str) -> int:
    """Words and punctuation marks of `text`: the tokens it has under the micro model's word-level tokenizer."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def register(seed: int, words: int = 200, filler: float = 0.1, wording_seed: int | None = None) -> Document:
    """A register of at most `words` words (tokens of the micro model, at least 24), nearly that many.

    `filler` is the probability, 0..0.9, that an idle sentence precedes a fact.
    Two calls with one `seed` and two `wording_seed`s tell the same facts in other words and with other idle sentences.
    Questions: every fact in every trained and held-out wording, and two-hop questions where a mentor's fact is known.
    Source: liftlab's own; no published counterpart.
    """
    if words < 24:
        raise ValueError(f"words = {words}: a register needs at least 24 words, give a larger number")
    if not 0.0 <= filler < 0.9:
        raise ValueError(f"filler = {filler}: the probability of an idle sentence lies in 0..0.9 (0.9 excluded)")
    rng = random.Random(f"facts {seed}")
    facts = _draw_facts(rng, 3 + round(words / (WORDS_PER_FACT + 8 * filler)))
    text, facts = _write(facts, words, filler, random.Random(f"words {seed} {wording_seed}"))
    town = rng.choice(vocabulary().towns)
    questions = tuple(q for fact in facts for q in _questions(fact)) + tuple(_two_hop_questions(facts))
    return Document(f"register-{seed}", text, f"The register of {town}", questions)


def _draw_facts(rng: random.Random, count: int) -> list[Fact]:
    """`count` facts about distinct (person, relation) pairs, in telling order; years rise from event to event."""
    words = vocabulary()
    people = rng.sample(words.names, min(len(words.names), max(3, round(count / FACTS_PER_PERSON))))
    pairs = [(person, relation) for person in people for relation in words.relations]
    chosen = rng.sample(pairs, min(count, len(pairs)))
    events = [i for i, (_, relation) in enumerate(chosen) if relation.name in ("shop", "prize")]
    years = sorted(rng.choice(words.relations[-1].values) for _ in events)
    facts = [
        Fact(p, r, rng.choice([v for v in (people if r.name == "mentor" else r.values) if v != p])) for p, r in chosen
    ]
    for i, year in zip(events, years, strict=True):
        facts[i] = replace(facts[i], value=year)
    return facts


def _write(facts: list[Fact], words: int, filler: float, rng: random.Random) -> tuple[str, list[Fact]]:
    """The register's text, at most `words` words, and the facts that it holds with their sentences and spans."""
    text, used, told = "", 0, []
    for fact in facts:
        idle = rng.choice(vocabulary().filler) + " " if rng.random() < filler else ""
        sentence = rng.choice(fact.relation.statements).format(name=fact.name, value=fact.value)
        used += word_count(idle + sentence)
        if used > words:
            break
        start = len(text) + len(idle)
        text += f"{idle}{sentence} "
        told.append(replace(fact, sentence=sentence, span=(start, start + len(sentence))))
    return text.rstrip(), told


def _questions(fact: Fact) -> list[Question]:
    """The fact asked in every wording of its relation."""
    return _ask(fact, fact.name, bridge=None)


def _two_hop_questions(facts: list[Fact]) -> list[Question]:
    """For each told mentor: the mentor's own facts, asked by way of the pupil ("the mentor of Ada")."""
    asked = []
    for link in (f for f in facts if f.relation.name == "mentor"):
        subject = vocabulary().chain.format(name=link.name)
        for fact in (f for f in facts if f.name == link.value and f.relation.name != "mentor"):
            asked += _ask(fact, subject, bridge=link.span)
    return asked


def _ask(fact: Fact, subject: str, bridge: tuple[int, int] | None) -> list[Question]:
    wordings = [(w, "trained") for w in fact.relation.questions] + [(w, "held_out") for w in fact.relation.held_out]
    return [
        Question(
            text=wording.format(name=subject),
            answer=fact.value,
            evidence=fact.span,
            bridge=bridge,
            kind=fact.relation.name,
            wording=use,
            hops=1 if bridge is None else 2,
            chance=1 / len(fact.relation.values),
        )
        for wording, use in wordings
    ]
