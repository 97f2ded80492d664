"""One register and many questions about it as a single training sequence for pre-training the micro model.

The register comes first; each question and its answer is a branch, which sees the register and itself but no other
branch, and whose positions go on from the register's end. So every question is the first question about its document,
nothing can be won by elimination, and one pass over the register serves many questions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from liftlab.documents import Document, Question
from liftlab.examples import IGNORED
from liftlab.worlds import vocabulary

REGISTER, PADDING = -1, -2  # in place of a branch's number


@dataclass
class Batch:
    """Padded sequences of one step. `ids`, `labels`, `positions`, `branch`: (batch, tokens).

    `labels[t]` is what is to be predicted at t (already shifted). `mask`: (batch, 1, tokens, tokens), additive.
    `guides[head]` lists (row, query, key) that a named attention head is told to attend; `answers` lists (row, token).
    """

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    branch: torch.Tensor
    mask: torch.Tensor
    guides: dict[str, list[tuple[int, int, int]]]
    answers: list[tuple[int, int]]


@dataclass
class _Row:
    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)

    def add(self, ids: list[int], labels: list[int], start: int, branch: int) -> None:
        self.ids += ids
        self.labels += labels
        self.positions += range(start, start + len(ids))
        self.branch += [branch] * len(ids)


def batch_of(tokenizer, documents: Sequence[Document | None], asked: Sequence[Sequence[Question]]) -> Batch:
    """One sequence a document; None instead of a document asks its questions closed book."""
    guides: dict[str, list[tuple[int, int, int]]] = {"subject": [], "value": [], "evidence": []}
    answers: list[tuple[int, int]] = []
    rows = []
    for number, (document, questions) in enumerate(zip(documents, asked, strict=True)):
        rows.append(_row(tokenizer.get_vocab(), number, document, questions, guides, answers))
    return _padded(rows, guides, answers)


def _row(vocab, number, document, questions, guides, answers) -> _Row:
    row = _Row()
    opening = [vocab["<|user|>"], *(_ids(vocab, document.text) if document else [])]
    row.add(opening, [IGNORED] * len(opening), 0, REGISTER)
    for branch, question in enumerate(questions):
        first = len(row.ids)
        text, answer = _ids(vocab, question.text), [*_ids(vocab, question.answer), vocab["<|end|>"]]
        ids = [*text, vocab["<|end|>"], vocab["<|assistant|>"], *answer]
        row.add(ids, [IGNORED] * (len(text) + 1) + answer + [IGNORED], len(opening), branch)
        asking = first + len(text) + 1  # the assistant's turn opens: here the answer is predicted
        answers.append((number, asking))
        if document:
            _guide(guides, number, document, question, first, asking)
    return row


def _guide(guides, row: int, document: Document, question: Question, first: int, asking: int) -> None:
    """A full stop gathers its sentence's subject and value; the answer's place finds the evidence's full stop."""
    start = 1 + len(_words(document.text[: question.evidence[0]]))  # 1: the user's turn opens
    sentence = _words(document.text[slice(*question.evidence)])
    subject = next(word for word in _words(question.text) if word in vocabulary().names)
    stop = start + len(sentence) - 1
    guides["subject"] += [
        (row, stop, start + sentence.index(subject)),
        (row, asking, first + _words(question.text).index(subject)),
    ]
    guides["value"].append((row, stop, start + sentence.index(question.answer)))
    guides["evidence"].append((row, asking, stop))


def _padded(rows: list[_Row], guides, answers) -> Batch:
    longest = max(len(row.ids) for row in rows)

    def grid(name: str, fill: int) -> torch.Tensor:
        return torch.tensor([getattr(row, name) + [fill] * (longest - len(row.ids)) for row in rows])

    branch = grid("branch", PADDING)
    own_or_register = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == REGISTER)
    seen = own_or_register & torch.ones(longest, longest, dtype=torch.bool).tril()
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
    return Batch(grid("ids", 0), grid("labels", IGNORED), grid("positions", 0), branch, mask, guides, answers)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def _ids(vocab: dict[str, int], text: str) -> list[int]:
    return [vocab[word] for word in _words(text)]
