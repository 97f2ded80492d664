"""Synthetic documents with planted evidence: registers of people, in plain sentences or in fluent English.

A register states facts (person, relation, value). A value says nothing about the person, so closed-book answers are at
chance unless the register was learned. Facts and wordings are drawn from independent streams, so that the same facts
can be told in other words (`wording_seed`), and in another English.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import cycle

import yaml

from liftlab.documents import Document, Question
from liftlab.register_fluent import MOST_IDLE, Prose

LEAST_WORDS = {"plain": 24, "fluent": 64}  # of a register, by its English
ENGLISH = tuple(LEAST_WORDS)
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
    """Every word list of the register world in one English, read from data/register.yaml and register_fluent.yaml.

    `prose` is what fluent English needs beside them; names, towns, relations and their values are the same in both.
    """

    names: tuple[str, ...]
    towns: tuple[str, ...]
    relations: tuple[Relation, ...]
    filler: tuple[str, ...]
    chain: str
    title: str = "The register of {town}"
    prose: Prose | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """Every word and punctuation mark a plain register or its questions can hold, sorted."""
        wordings = [w for r in self.relations for w in (*r.statements, *r.questions, *r.held_out, *r.values)]
        texts = (*self.names, *self.towns, *self.filler, self.chain, "The register of", *wordings)
        plain = (re.sub(r"{\w+}", " ", text) for text in texts)
        return tuple(sorted({word for text in plain for word in re.findall(r"\w+|[^\w\s]", text)}))


@cache
def vocabulary(english: str = "plain") -> Vocabulary:
    """The register world's words; the same object each time. ValueError for an `english` but plain or fluent."""
    if english not in ENGLISH:
        raise ValueError(f"english = {english!r}: choose among {', '.join(ENGLISH)}")
    raw = _read("register")
    names, towns = (tuple(raw[of].split()) for of in ("names", "towns"))
    first, last = raw["years"]
    values = {"person": names, "year": tuple(str(year) for year in range(first, last + 1))}
    told = raw if english == "plain" else _read("register_fluent")
    wordings = ("statements", "questions", "held_out")
    relations = tuple(
        Relation(name, values.get(of["values"]) or tuple(of["values"].split()),
                 *(tuple(told["relations"][name][kind]) for kind in wordings))
        for name, of in raw["relations"].items()
    )  # fmt: skip
    spoken = Vocabulary(names, towns, relations, tuple(told["filler"]), told["chain"])
    if english == "plain":
        return spoken
    leads = (tuple(told[kind]) for kind in ("openings", "connectives"))
    return replace(spoken, title=told["title"], prose=Prose(frozenset(told["she"].split()), frozenset(names), *leads))


def _read(name: str) -> dict:
    return yaml.safe_load(files("liftlab").joinpath(f"data/{name}.yaml").read_text("utf-8"))


def word_count(text: str) -> int:
    """Words and punctuation marks of `text`: the tokens it has under the micro model's word-level tokenizer."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def register(
    seed: int, words: int = 200, filler: float = 0.1, wording_seed: int | None = None, english: str = "plain"
) -> Document:
    """A register of at most `words` words (tokens of the micro model), nearly that many; at least `LEAST_WORDS`.

    `filler` is the probability, 0..0.9, that an idle sentence precedes a fact.
    Two calls with one `seed` and two `wording_seed`s tell the same facts in other words and with other idle sentences.
    `english`: "plain", short sentences that the micro model can read, in which events stand in time order; or "fluent",
    prose with a paragraph a person, idle sentences between them (at most `MOST_IDLE` together), and pronouns: evidence
    is the sentence that states the fact, and the person may be named in one before it. Fluent facts are longer: of
    those that the plain register draws for the same `seed`, `words` and `filler` it tells all about the first people.
    Questions: every fact in every trained and held-out wording, and two-hop questions where a mentor's fact is known.
    Source: liftlab's own; no published counterpart.
    """
    spoken, least = vocabulary(english), LEAST_WORDS[english]
    if words < least:
        of = "" if english == "plain" else f" in {english} English"
        raise ValueError(f"words = {words}: a register{of} needs at least {least} words, make it longer")
    if not 0.0 <= filler < 0.9:
        raise ValueError(f"filler = {filler}: the probability of an idle sentence lies in 0..0.9 (0.9 excluded)")
    rng = random.Random(f"facts {seed}")
    facts = _draw_facts(rng, 3 + round(words / (WORDS_PER_FACT + 8 * filler)), spoken)
    tell, stream = (_plainly, "words") if english == "plain" else (_fluently, english)
    text, facts = _write(tell(facts, filler, random.Random(f"{stream} {seed} {wording_seed}"), spoken), words)
    title = spoken.title.format(town=rng.choice(spoken.towns))
    questions = tuple(q for fact in facts for q in _questions(fact)) + tuple(_two_hop_questions(facts, spoken.chain))
    name = f"register-{seed}" if english == "plain" else f"register-{seed}-{english}"
    return Document(name, text, title, questions)


def _draw_facts(rng: random.Random, count: int, words: Vocabulary) -> list[Fact]:
    """`count` facts about distinct (person, relation) pairs, in telling order; years rise from event to event."""
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


def _plainly(facts: list[Fact], filler: float, rng: random.Random, words: Vocabulary) -> Iterator[tuple[Fact, str]]:
    """Each fact with its sentence, and the text before that."""
    gap = ""
    for fact in facts:
        idle = rng.choice(words.filler) + " " if rng.random() < filler else ""
        sentence = rng.choice(fact.relation.statements).format(name=fact.name, value=fact.value)
        yield replace(fact, sentence=sentence), gap + idle
        gap = " "


def _fluently(facts: list[Fact], filler: float, rng: random.Random, words: Vocabulary) -> Iterator[tuple[Fact, str]]:
    """As `_plainly`, a paragraph a person, in the order of their first facts; openings and statements take turns."""
    openings, gap = _turns(words.prose.openings, rng), ""
    statements = {relation.name: _turns(relation.statements, rng) for relation in words.relations}
    for name in dict.fromkeys(fact.name for fact in facts):
        own = [fact for fact in facts if fact.name == name]
        idle = rng.sample(words.filler, min(MOST_IDLE, sum(rng.random() < filler for _ in own)))
        before = gap + " ".join(idle) + ("\n\n" if idle else "")
        worded = [(next(statements[fact.relation.name]), fact.value) for fact in own]
        told = words.prose.paragraph(name, worded, next(openings), rng)
        for fact, sentence in zip(own, told, strict=True):
            yield replace(fact, sentence=sentence), before
            before = " "
        gap = "\n\n"


def _turns(texts: tuple[str, ...], rng: random.Random) -> Iterator[str]:
    """The texts one after the other, shuffled once, without end."""
    return cycle(rng.sample(texts, len(texts)))


def _write(told: Iterable[tuple[Fact, str]], words: int) -> tuple[str, list[Fact]]:
    """The register's text, at most `words` words, and the facts that it holds with their spans."""
    text, used, kept = "", 0, []
    for fact, before in told:
        used += word_count(before + fact.sentence)
        if used > words:
            break
        start = len(text) + len(before)
        text += before + fact.sentence
        kept.append(replace(fact, span=(start, start + len(fact.sentence))))
    return text, kept


def _questions(fact: Fact) -> list[Question]:
    """The fact asked in every wording of its relation."""
    return _ask(fact, fact.name, bridge=None)


def _two_hop_questions(facts: list[Fact], chain: str) -> list[Question]:
    """For each told mentor: the mentor's own facts, asked by way of the pupil ("the mentor of Ada")."""
    asked = []
    for link in (f for f in facts if f.relation.name == "mentor"):
        subject = chain.format(name=link.name)
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
