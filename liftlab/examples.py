"""From a document to training examples: token ids and labels; a tokenizer is needed, no model.

Segments follow the paper (section "Method", "Segments"): length l, offset s, starts every s tokens until the document
ends, title and newline once before the document, no BOS or EOS, no chat template.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from liftlab.benchmarks import rows
from liftlab.documents import Document
from liftlab.prompts import SEPARATOR, Cuts, PromptStyle, encode_prompts, put, token_ids

IGNORED = -100  # the label of a token that carries no loss
RECITE = (
    "Given above context, please recite following segment of the context: \n\n\n"  # 2502.14644v1-v3, contextualized
)


@dataclass(frozen=True)
class Example:
    """One training sequence: `ids[t]` is predicted from `ids[:t]` where `labels[t]` is not IGNORED.

    `kind` is "segment" or "pair".
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    kind: str

    @property
    def scored_tokens(self) -> int:
        """Tokens that carry loss; the first token of a sequence is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class Pair:
    """An auxiliary question-answer pair about the document, trained on beside the segments."""

    question: str
    answer: str


def segment_spans(tokens: int, segment_tokens: int, offset_tokens: int) -> list[tuple[int, int]]:
    """(start, end) of every segment of a document of `tokens` tokens, end exclusive; the last ones may be short."""
    if segment_tokens < 2:
        raise ValueError(f"segment_tokens = {segment_tokens}: a segment needs at least 2 tokens")
    if not 1 <= offset_tokens <= segment_tokens:
        raise ValueError(
            f"offset_tokens = {offset_tokens} with segment_tokens = {segment_tokens}: the offset lies in "
            "1..segment_tokens, or tokens between two segments would never be trained on"
        )
    return [(start, min(start + segment_tokens, tokens)) for start in range(0, tokens, offset_tokens)]


def document_ids(tokenizer, document: Document) -> list[int]:
    """The ids that segments are cut from: title and newline once, then the text; no BOS or EOS."""
    text = f"{document.title}\n{document.text}" if document.title else document.text
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < 2:
        raise ValueError(
            f"document {document.name!r} has {len(ids)} token(s): nothing to predict, give a longer document"
        )
    return ids


def segments(tokenizer, document: Document, segment_tokens: int, offset_tokens: int) -> list[Example]:
    """Overlapping plain segments, every token a label. ValueError for a document shorter than one segment."""
    ids = _at_least_a_segment(document_ids(tokenizer, document), document, segment_tokens)
    cut = [tuple(ids[start:end]) for start, end in segment_spans(len(ids), segment_tokens, offset_tokens)]
    return [Example(piece, piece, "segment") for piece in cut if len(piece) > 1]  # one token alone predicts nothing


def contextualized_segments(
    tokenizer, document: Document, segment_tokens: int, offset_tokens: int, context_tokens: int, seed: int
) -> list[Example]:
    """Segments predicted from a piece of the document: front + "..." + back + instruction + segment.

    Loss on the segment alone. The front's length is drawn from 0..context_tokens-1 and taken at a random place in
    the first `context_tokens` tokens, the rest at a random place in the last `context_tokens`; drawn once a segment
    (2502.14644v1-v3).
    """
    if context_tokens < 1:
        raise ValueError(
            f"context_tokens = {context_tokens}: contextualized training needs at least 1 token of context"
        )
    ids = _at_least_a_segment(document_ids(tokenizer, document), document, segment_tokens)
    rng = random.Random(f"contextualized {seed}")
    dots, recite = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (SEPARATOR, RECITE))
    context_tokens = min(context_tokens, len(ids))
    made = []
    for start, end in segment_spans(len(ids), segment_tokens, offset_tokens):
        front = rng.randrange(context_tokens)
        head = _piece(rng, ids[:context_tokens], front)
        tail = _piece(rng, ids[-context_tokens:], context_tokens - front)
        prompt = (*head, *dots, *tail, *recite)
        piece = tuple(ids[start:end])
        made.append(Example((*prompt, *piece), (IGNORED,) * len(prompt) + piece, "segment"))
    return made


def consecutive_segments(tokenizer, document: Document, segment_tokens: int, context_tokens: int) -> list[Example]:
    """Segments without overlap, each predicted from the `context_tokens` tokens before it, or as many as there are.

    Loss on the segment alone (2401.11504). ValueError for a document shorter than one segment, or a context below 0.
    """
    if context_tokens < 0:
        raise ValueError(f"context_tokens = {context_tokens}: give the tokens before a segment, 0 for none")
    ids = _at_least_a_segment(document_ids(tokenizer, document), document, segment_tokens)
    made = []
    for start, end in segment_spans(len(ids), segment_tokens, segment_tokens):
        before, piece = ids[max(0, start - context_tokens) : start], tuple(ids[start:end])
        if before or len(piece) > 1:  # one token alone predicts nothing
            made.append(Example((*before, *piece), (IGNORED,) * len(before) + piece, "segment"))
    return made


def _at_least_a_segment(ids: list[int], document: Document, segment_tokens: int) -> list[int]:
    if len(ids) < segment_tokens:
        raise ValueError(
            f"document {document.name!r} has {len(ids)} tokens with its title, a segment has {segment_tokens}: "
            f"make segment_tokens at most {len(ids)} (and offset_tokens at most that), or give a longer document"
        )
    return ids


def _piece(rng: random.Random, ids: list[int], length: int) -> list[int]:
    start = rng.randint(0, len(ids) - length)
    return ids[start : start + length]


def end_of_turn(tokenizer) -> int:
    """The token with which the chat template ends an assistant's turn, as the template itself writes it."""
    turn = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "ANSWER"}]
    rendered = tokenizer.apply_chat_template(turn, tokenize=False)
    after = rendered[rendered.rindex("ANSWER") + len("ANSWER") :]
    ids = tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"]
    return ids[0] if ids else tokenizer.eos_token_id


def pair_examples(
    tokenizer, document: Document, pairs: Sequence[Pair], style: PromptStyle, context: str, window: int
) -> list[Example]:
    """Each pair as it will be asked, under `style` and `context`; loss on the answer, and its end of turn in chat."""
    if not pairs:
        return []
    end = [end_of_turn(tokenizer)] if style.chat else []
    answers = [(*ids, *end) for ids in token_ids(tokenizer, [pair.answer for pair in pairs])]
    prompts = _prompts(tokenizer, document, pairs, answers, style, context, window)
    return [_pair_example(*parts, window) for parts in zip(pairs, prompts, answers, strict=True)]


def _prompts(tokenizer, document, pairs, answers, style: PromptStyle, context: str, window: int) -> list:
    """Each pair's prompt, token ids, or None where the whole document does not fit."""
    if context == "none":
        return encode_prompts(tokenizer, [style.text(pair.question, document.title) for pair in pairs], style)
    cuts = Cuts(tokenizer, document.text)
    return [
        put(tokenizer, document, pair.question, context, window, len(answer), style, cuts)
        for pair, answer in zip(pairs, answers, strict=True)
    ]


def _pair_example(pair: Pair, prompt: list[int] | None, answer: tuple[int, ...], window: int) -> Example:
    if prompt is None or len(prompt) + len(answer) > window:
        raise ValueError(
            f"the pair {pair.question[:60]!r} does not fit a window of {window} tokens: shorten or drop it"
        )
    return Example((*prompt, *answer), (IGNORED,) * len(prompt) + answer, "pair")


def known_pairs(document: Document) -> list[Pair]:
    """The document's own one-hop facts as pairs, in trained wordings only."""
    return [Pair(question.text, question.answer) for question in document.asked("trained")]


def read_pairs(path: str | Path) -> list[Pair]:
    """Pairs from a JSONL file with "question" and "answer" a line. Errors name file and line; nothing is skipped."""
    return [_pair(row, place) for place, row in rows(path)]


def _pair(row: dict, place: str) -> Pair:
    fields: Sequence = [row.get(key) for key in ("question", "answer")]
    if not all(isinstance(field, str) and field.strip() for field in fields):
        raise ValueError(f'{place} needs "question" and "answer", both non-empty strings')
    return Pair(*fields)
