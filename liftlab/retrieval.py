"""Retrieval beside lifting: the passages of a document that fit a question best, by BM25, stand in the prompt.

BM25 is that of the library bm25s: the Lucene variant with k1 = 1.5 and b = 0.75 (https://arxiv.org/abs/2407.03618),
over the words in lower case, stop words among them, without stemming. A tokenizer is needed, no model.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import pairwise

import bm25s
import numpy as np

from liftlab.auxiliary.sentences import sentences
from liftlab.documents import Document, Question
from liftlab.prompts import PLAIN, SEPARATOR, PromptStyle, encode_prompt

WORD = r"\w+"


class Passages:
    """A document's passages, indexed once for all questions.

    `spans`: the (start, end) characters of each passage, end exclusive; each begins where the one before ends. A
    passage has at most `passage_tokens` tokens, unless one character alone has more, and ends after a sentence where
    one ends in it.
    """

    def __init__(self, tokenizer, document: Document, passage_tokens: int) -> None:
        if not isinstance(passage_tokens, int) or isinstance(passage_tokens, bool) or passage_tokens < 1:
            raise ValueError(f"passage_tokens = {passage_tokens!r}: a passage has 1 token or more, give a whole number")
        self._tokenizer, self._document = tokenizer, document
        encoded = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        begins = [start for start, _ in encoded["offset_mapping"]]
        self._tokens = len(begins)
        self.spans = _cut(document.text, begins, passage_tokens)
        self._index = _indexed([_words(document.text[start:end]) for start, end in self.spans])

    def scores(self, question: Question | str) -> np.ndarray:
        """The BM25 score of each passage, in the order of the document; 0 for one without a word of the question."""
        words = _words(_asked(question))
        if self._index is None or not words:
            return np.zeros(len(self.spans))
        return self._index.get_scores(words)

    def ranked(self, question: Question | str) -> list[int]:
        """The numbers of the passages, best first; those with the same score in the order of the document."""
        return np.argsort(-self.scores(question), kind="stable").tolist()

    def put(self, question: Question | str, window: int, answer_tokens: int, style: PromptStyle = PLAIN) -> list[int]:
        """Token ids of the prompt for `question`, at most `window - answer_tokens` long.

        The context is the whole document where that fits, else the best passages up to the first that does not, in the
        order of the document, "..." between those that were apart. ValueError where not even the best passage fits.
        """
        return self.fit(question, window, answer_tokens, style)[0]

    def fit(
        self, question: Question | str, window: int, answer_tokens: int, style: PromptStyle = PLAIN
    ) -> tuple[list[int], tuple[int, ...]]:
        """What `put` gives, and the numbers of the passages in it, in the order of the document."""
        asked, room = _asked(question), window - answer_tokens

        def ids(context: str) -> list[int]:
            return encode_prompt(self._tokenizer, style.text(asked, self._document.title, context), style)

        if self._tokens <= window and len(whole := ids(self._document.text)) <= room:
            return whole, tuple(range(len(self.spans)))
        prompt, chosen = None, []
        for number in self.ranked(question):
            longer = ids(self._joined(sorted([*chosen, number])))
            if len(longer) > room:
                break
            prompt, chosen = longer, [*chosen, number]
        if prompt is None:
            raise ValueError(_too_long(len(ids("")), len(longer), answer_tokens, window))
        return prompt, tuple(sorted(chosen))

    def _joined(self, numbers: list[int]) -> str:
        """The passages of these rising numbers as one context."""
        runs: list[tuple[int, int]] = []
        for start, end in (self.spans[number] for number in numbers):
            if runs and runs[-1][1] == start:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((start, end))
        return f"\n{SEPARATOR}\n".join(self._document.text[start:end].strip() for start, end in runs)


def _asked(question: Question | str) -> str:
    return question if isinstance(question, str) else question.text


def _too_long(bare: int, least: int, answer_tokens: int, window: int) -> str:
    """What is wrong where a prompt of `bare` tokens has `least` with the best passage."""
    if bare > window - answer_tokens:
        return (
            f"the question takes {bare} tokens and the answer {answer_tokens}, the window is {window} tokens: "
            "ask a shorter question or use a model with a larger window"
        )
    return (
        f"the question takes {least} tokens with the best passage and the answer {answer_tokens}, the window is "
        f"{window} tokens: make passage_tokens smaller, ask a shorter question or use a model with a larger window"
    )


def _cut(text: str, begins: list[int], passage_tokens: int) -> list[tuple[int, int]]:
    """The characters of each passage; `begins`: the character that each token begins with, the tokens of one alike.

    White space between two passages belongs to the first, unless the tokenizer has it in a token of the second.
    """
    ends = sorted({bisect_left(begins, end) for _, end in sentences(text)})  # the token after each sentence
    cuts, first = [0], 0
    while (first := _next(begins, ends, first, passage_tokens)) < len(begins):
        cuts.append(begins[first])
    return list(pairwise([*cuts, len(text)]))


def _next(begins: list[int], ends: list[int], first: int, passage_tokens: int) -> int:
    """The token with which the passage after that of token `first` begins."""
    limit = first + passage_tokens
    if limit >= len(begins):
        return len(begins)
    ended = bisect_right(ends, limit)
    if ended and ends[ended - 1] > first:
        return ends[ended - 1]
    whole = bisect_left(begins, begins[limit])  # no character is cut
    return whole if whole > first else bisect_right(begins, begins[limit])


def _words(text: str) -> list[str]:
    return bm25s.tokenize([text], token_pattern=WORD, stopwords=[], return_ids=False, show_progress=False)[0]


def _indexed(passages: list[list[str]]) -> bm25s.BM25 | None:
    """The index of the passages' words; None where no passage has any, which the library does not take."""
    if not any(passages):
        return None
    index = bm25s.BM25(dtype="float64")
    index.index(passages, create_empty_token=False, show_progress=False)
    return index
