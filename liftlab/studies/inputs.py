"""What timed lifts are given: documents of any length with their pairs and a question, and pairs that come in time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from liftlab.documents import Document
from liftlab.examples import Pair
from liftlab.models import BaseModel
from liftlab.prompts import PromptStyle, encode_prompt
from liftlab.studies.registers import FIRST_DOCUMENT
from liftlab.worlds import register

STATEMENTS = 4  # of a register in one sentence, which then has about 30 tokens, as English prose has
WORDINGS = 3  # trained questions of each statement
MOST_PAIRS = STATEMENTS * WORDINGS  # a sentence
REGISTER_WORDS, REGISTERS = 4000, 1000  # words of one register; registers that an input may hold
ROOM = 2  # tokens by which a text may be longer than its sentences, each counted alone


@dataclass(frozen=True)
class Input:
    """A document new to the model, the pairs to lift it with, a question about it."""

    document: Document
    pairs: tuple[Pair, ...]
    question: str

    def prompt(self, base: BaseModel, form: PromptStyle, *, with_document: bool) -> list[int]:
        """Token ids of the question, with the whole document or closed book, whatever the window."""
        text = form.text(self.question, self.document.title, self.document.text if with_document else None)
        return encode_prompt(base.tokenizer, text, form)


def input_of(base: BaseModel, tokens: int, form: PromptStyle, pairs_per_sentence: int, number: int = 0) -> Input:
    """An input whose prompt with document and question has at most `tokens` tokens, a sentence less at the least.

    Its sentences are statements of registers, joined; inputs of another `number` hold other ones. A pair asks for one
    statement. ValueError where not even one sentence fits.
    """
    sentences, title = _sentences(base, tokens, number)
    question = sentences[0][1][0].question
    bare = len(encode_prompt(base.tokenizer, form.text(question, title, ""), form))
    lengths = [
        len(ids) for ids in base.tokenizer([f" {text}" for text, _ in sentences], add_special_tokens=False).input_ids
    ]
    count = sum(total <= tokens - bare + ROOM for total in accumulate(lengths))
    while count:
        told = sentences[:count]
        pairs = tuple(pair for _, of in told for pair in of[:pairs_per_sentence])
        document = Document(f"registers-{number}-{tokens}", " ".join(text for text, _ in told), title)
        made = Input(document, pairs, question)
        if len(made.prompt(base, form, with_document=True)) <= tokens:
            return made
        count -= 1
    raise ValueError(
        f"an input of {tokens} tokens has no room for a sentence of {lengths[0]} and {bare} of question and wording: "
        "give at least twice that"
    )


def _sentences(base: BaseModel, tokens: int, number: int) -> tuple[list[tuple[str, list[Pair]]], str]:
    """(sentence, its pairs) of registers until there are `tokens` words or more; the title of the first register."""
    made: list[tuple[str, list[Pair]]] = []
    first = FIRST_DOCUMENT + REGISTERS * number
    words, title = 0, register(first, REGISTER_WORDS, filler=0.0).title
    for seed in range(first, first + REGISTERS):
        statements = _statements(register(seed, REGISTER_WORDS, filler=0.0))
        for start in range(0, len(statements) - STATEMENTS + 1, STATEMENTS):
            made.append(_sentence(statements[start : start + STATEMENTS]))
            words += made[-1][0].count(" ") + 1
        if words >= tokens:  # a word is a token, or more
            return made, title
    raise ValueError(f"an input of {tokens} tokens is longer than the {words} words there are: make it shorter")


def _statements(document: Document) -> list[tuple[str, list[str]]]:
    """Each statement in the document's order, with its trained questions."""
    asked: dict[tuple[int, int], list[str]] = {}
    for question in document.asked("trained"):
        asked.setdefault(question.evidence, []).append(question.text)
    return [(document.text[slice(*span)], questions) for span, questions in asked.items()]


def _sentence(statements: Sequence[tuple[str, list[str]]]) -> tuple[str, list[Pair]]:
    pairs = [Pair(questions[wording], said) for wording in range(WORDINGS) for said, questions in statements]
    return " and ".join(said.rstrip(".") for said, _ in statements) + ".", pairs


def paced(pairs: Sequence[Pair], seconds_each: float) -> Iterator[Pair]:
    """`pairs` as if generated now: the n-th comes n times `seconds_each` after the first was asked for, or later."""
    began = time.perf_counter()
    for count, pair in enumerate(pairs, start=1):
        time.sleep(max(0.0, began + count * seconds_each - time.perf_counter()))
        yield pair
