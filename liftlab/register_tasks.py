"""Registers asked as the benchmarks ask: question types of LooGLE and tasks of LongBench in the register's own words.

What a register cannot ask is left out: it holds no arithmetic, so there is no computation; its paragraphs carry no
numbers, so passage retrieval asks for the number, a year, of a described event.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

from liftlab.documents import Document, Question
from liftlab.worlds import vocabulary

Event = tuple[str, str, str, Question]  # its year, whose it is, what it was, and the question of its fact
EVENTS = {"shop": "opened a shop", "prize": "won a prize"}  # the relations whose value is a year
ORDERED = 3  # events of a timeline question
SUMMED_UP = 6  # statements of a summary


def with_tasks(document: Document, tasks: list[str], seed: int = 0) -> Document:
    """The register with the questions of `tasks` alone, each of that kind; trained wordings stay for auxiliary pairs.

    ValueError for an unknown task.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise ValueError(f"register task {unknown[0]!r} is unknown: choose among {', '.join(TASKS)}")
    rng = random.Random(f"tasks {document.name} {seed}")
    asked = [replace(q, kind=task, wording="held_out") for task in tasks for q in TASKS[task](document, rng)]
    return replace(document, questions=(*document.asked("trained"), *asked))


def single_fact(document: Document, rng: random.Random) -> list[Question]:
    """Each fact in one held-out wording (LooGLE's short dependency, narrativeqa)."""
    return [rng.choice(wordings) for wordings in _facts(document).values()]


def two_hops(document: Document, rng: random.Random) -> list[Question]:
    """A fact of somebody's mentor, asked by way of the pupil (comprehension and reasoning, musique)."""
    return [rng.choice(wordings) for wordings in _facts(document, hops=2).values()]


def two_facts(document: Document, rng: random.Random) -> list[Question]:
    """Two facts of one person at once; the answer is both values in the order asked (multiple retrieval)."""
    pairs = [pair for of in _people(document).values() for pair in combinations(of, 2)]
    chosen = [tuple(rng.choice(wordings) for wordings in pair) for pair in rng.sample(pairs, len(pairs))]
    return [replace(a, text=f"{a.text} {b.text}", answer=f"{a.answer} {b.answer}", bridge=b.evidence, hops=2,
                    chance=(a.chance or 0) * (b.chance or 0)) for a, b in chosen]  # fmt: skip


def timeline(document: Document, rng: random.Random) -> list[Question]:
    """Events of different people and years, named out of order; the answer is their people in order of time."""
    asked = [_ordered(document, chosen, rng) for chosen in _timelines(document, "held_out")]
    return rng.sample(asked, len(asked))


def timeline_pairs(document: Document, seed: int = 0) -> list[Question]:
    """Timelines to be trained on, drawn by `seed`: every choice of `ORDERED` events but those that are asked.

    Two events of an asked timeline may meet again beside another third one. ValueError where none is left.
    """
    rng = random.Random(f"timeline pairs {document.name} {seed}")
    asked = {frozenset(question.quoted) for question in document.questions if question.kind == "timeline_reorder"}
    made = [_ordered(document, chosen, rng) for chosen in _timelines(document, "trained")]
    left = [replace(q, kind="timeline_reorder", wording="trained") for q in made if frozenset(q.quoted) not in asked]
    if not left:
        raise ValueError(
            f"document {document.name!r} has no timeline of {ORDERED} events to train on that is not asked: choose "
            "another auxiliary task, ask fewer questions, or make registers longer (windows)"
        )
    return rng.sample(left, len(left))


def _timelines(document: Document, wording: str) -> list[tuple[Event, ...]]:
    """Every choice of `ORDERED` events of different people and years, each in order of time."""
    dated = [(q.answer, person, EVENTS[q.kind], q) for person, of in _people(document, wording).items()
             for q in (wordings[0] for wordings in of) if q.kind in EVENTS]  # fmt: skip
    choices = combinations(sorted(dated, key=lambda event: event[:3]), ORDERED)
    return [chosen for chosen in choices if all(len({e[at] for e in chosen}) == ORDERED for at in (0, 1))]


def _ordered(document: Document, chosen: tuple[Event, ...], rng: random.Random) -> Question:
    """The events, shuffled, as a question; `quoted`: where the register states them."""
    told = rng.sample(chosen, ORDERED)
    text = " ".join(f"{person} {did}." for _, person, did, _ in told) + " In which year?"
    quoted = tuple(document.text[slice(*q.evidence)] for _, _, _, q in told if q.evidence)
    return Question(text, " ".join(person for _, person, _, _ in chosen), quoted=quoted, hops=ORDERED)


def about_a_person(document: Document, rng: random.Random) -> list[Question]:
    """A person's name; the answer is all that the register states about the person (query-based summary, qmsum)."""
    found = [(person, sorted({w[0].evidence for w in of})) for person, of in _people(document).items()]
    told = [(person, tuple(document.text[slice(*span)] for span in spans), spans[0]) for person, spans in found]
    return [Question(person, " ".join(said), first, quoted=said)
            for person, said, first in rng.sample(told, len(told)) if len(said) > 1]  # fmt: skip


def summary(document: Document, rng: random.Random) -> list[Question]:
    """The register's title; the answer is its first statements without the idle sentences between (gov_report)."""
    spans = sorted({q.evidence for q in document.asked() if q.evidence})[:SUMMED_UP]
    said = tuple(document.text[slice(*span)] for span in spans)
    return [Question(f"{document.title}.", " ".join(said), quoted=said)]


def numbered_event(document: Document, rng: random.Random) -> list[Question]:
    """The year of an event; the answer is scored by the numbers in it (passage retrieval)."""
    return [replace(q, answer=f"Paragraph {q.answer}") for q in single_fact(document, rng) if q.kind in EVENTS]


def _facts(document: Document, hops: int = 1, wording: str = "held_out") -> dict[tuple, list[Question]]:
    """The wordings of each fact, in the document's order."""
    facts: dict[tuple, list[Question]] = {}
    for question in document.asked(wording, hops):
        facts.setdefault((question.evidence, question.bridge, question.answer), []).append(question)
    return facts


def _people(document: Document, wording: str = "held_out") -> dict[str, list[list[Question]]]:
    """The facts of each person, by the one name that a question of one hop holds."""
    names = set(vocabulary().names)
    people: dict[str, list[list[Question]]] = {}
    for wordings in _facts(document, wording=wording).values():
        (name,) = names & set(wordings[0].text.strip("?").split())
        people.setdefault(name, []).append(wordings)
    return people


TASKS: dict[str, Callable[[Document, random.Random], list[Question]]] = {
    "short_qa": single_fact,
    "comprehension_and_reasoning": two_hops,
    "multiple_information_retrieval": two_facts,
    "timeline_reorder": timeline,
    "musique": two_hops,
    "narrativeqa": single_fact,
    "qmsum": about_a_person,
    "gov_report": summary,
    "passage_retrieval_en": numbered_event,
}
