"""How a register's facts become prose: sentences of varied syntax, pronouns once a person is named, connectives.

The words are those of data/register_fluent.yaml. Source: liftlab's own; no published counterpart.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LED = 0.35  # probability that a sentence begins with an opening or a connective
MOST_IDLE = 2  # idle sentences before a paragraph, at most
SHE = {"who": "she", "whose": "her", "whom": "her"}
HE = {"who": "he", "whose": "his", "whom": "him"}
AGAIN = {"they": "who", "their": "whose", "them": "whom"}  # a statement's second mention of its person


@dataclass(frozen=True)
class Prose:
    """What prose needs beside statements: the names that are she, all names, and what may begin a sentence."""

    she: frozenset[str]
    names: frozenset[str]
    openings: tuple[str, ...]  # of the first sentence of a paragraph
    connectives: tuple[str, ...]  # of a later one

    def paragraph(self, name: str, facts: Iterable[tuple[str, str]], opening: str, rng: random.Random) -> Iterator[str]:
        """A sentence for each of one person's `facts`, a statement and a value; `opening` may begin the first.

        The person is named in the first one, and after a sentence that names somebody else whom the same pronoun means.
        """
        by_name, connectives = True, rng.sample(self.connectives, len(self.connectives))
        for place, (statement, value) in enumerate(facts):
            led = rng.random() < LED and bool(connectives)
            lead = (connectives.pop() if place else opening) if led else ""
            yield self.sentence(lead + statement, name, value, by_name)
            by_name = value in self.names and (value in self.she) == (name in self.she)

    def sentence(self, statement: str, name: str, value: str, by_name: bool) -> str:
        """The statement about `name`, who is named or meant by a pronoun."""
        pronouns = SHE if name in self.she else HE
        person = {"who": name, "whose": f"{name}'s", "whom": name} if by_name else pronouns
        again = {word: pronouns[case] for word, case in AGAIN.items()}
        told = statement.format(**person, **again, value=value, a="an" if value[0] in "aeiou" else "a")
        return f"{told[0].upper()}{told[1:]}."
