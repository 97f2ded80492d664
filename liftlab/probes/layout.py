"""Where each token of a prompt comes from: the document, its evidence, the question, or the wording around them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from liftlab.documents import Document, Question
from liftlab.prompts import PLAIN, SEPARATOR, PromptStyle, fit, joined, render

ROLES = ("document", "question", "answer", "template")
PLACES = ("kept", "cut", "dropped", "absent", "unknown")
Ends = tuple[int, int] | None  # the characters at which head ends and tail starts, None where nothing was cut


@dataclass(frozen=True)
class Layout:
    """One prompt with its answer (teacher forced), a row a token.

    `ids`: the prompt, then the answer's tokens but the last. `roles`: "answer" = where the answer is read off (the last
    prompt token and the answer's tokens), "template" = what is neither document nor question. `evidence`: the token
    overlaps the evidence or the bridge. `evidence_place`: these two are whole in the prompt ("kept"), in part ("cut"),
    not at all ("dropped"); "absent" = closed book; "unknown" = the question names no evidence.
    """

    ids: list[int]
    roles: list[str]
    evidence: list[bool]
    evidence_place: str


def layout(
    tokenizer,
    document: Document,
    question: Question,
    context: str,
    window: int,
    answer_tokens: int,
    style: PromptStyle = PLAIN,
) -> Layout | None:
    """The layout of what `prompts.put` gives for these arguments; None where it gives None.

    Raises put's ValueErrors, and one where prompt and answer exceed the window or the chat template rewrites its text.
    """
    fitted = fit(tokenizer, document, question, context, window, answer_tokens, style)
    if fitted is None:
        return None
    prompt, ends = fitted
    shown = None if context == "none" else joined(document.text, ends)
    answer = tokenizer(question.answer, add_special_tokens=False)["input_ids"][:-1]
    if len(prompt) + len(answer) > window:
        raise ValueError(f"prompt and answer take {len(prompt) + len(answer)} tokens, the window is {window} tokens")
    origin, asked = _characters(tokenizer, document, question, shown, ends, style)
    told = _told(document, question)
    spans = _spans(tokenizer, render(tokenizer, style.text(question.text, document.title, shown), style))
    roles = ["document" if (origin[s] >= 0).any() else "question" if asked[s].any() else "template" for s in spans]
    evidence = [bool(told[origin[s][origin[s] >= 0]].any()) for s in spans]
    return Layout(
        ids=[*prompt, *answer],
        roles=[*roles[:-1], *["answer"] * (len(answer) + 1)],
        evidence=[*evidence, *[False] * len(answer)],
        evidence_place="absent" if context == "none" else _place(told, ends),
    )


def _told(document: Document, question: Question) -> np.ndarray:
    """Per character of the document: it belongs to the evidence or the bridge."""
    told = np.zeros(len(document.text), bool)
    for span in (question.evidence, question.bridge):
        if span is not None:
            told[slice(*span)] = True
    return told


def _place(told: np.ndarray, ends: Ends) -> str:
    shown = told.copy()
    if ends is not None:
        shown[slice(*ends)] = False
    if not told.any():
        return "unknown"
    return "kept" if (shown == told).all() else "cut" if shown.any() else "dropped"


def _characters(
    tokenizer, document: Document, question: Question, shown: str | None, ends: Ends, style: PromptStyle
) -> tuple[np.ndarray, np.ndarray]:
    """Per character of the rendered prompt: its index in the document (-1 = not from it), and whether it is asked."""
    origins, asked = [], []
    for field, text in style.pieces(question.text, document.title, shown):
        origins.append(_origin(len(document.text), ends) if field == "context" else np.full(len(text), -1))
        asked.append(np.full(len(text), field == "question"))
    text = style.text(question.text, document.title, shown)
    rendered = render(tokenizer, text, style)
    start, stripped = _start(tokenizer, rendered, text, style)
    left = len(text) - len(text.lstrip()) if stripped else 0
    length = len(text.strip()) if stripped else len(text)
    origin, ask = np.full(len(rendered), -1), np.zeros(len(rendered), bool)
    origin[start : start + length] = np.concatenate(origins)[left : left + length]
    ask[start : start + length] = np.concatenate(asked)[left : left + length]
    return origin, ask


def _origin(characters: int, ends: Ends) -> np.ndarray:
    """Per character of the context: its index in the document, -1 for the separator between head and tail."""
    every = np.arange(characters)
    if ends is None:
        return every
    return np.concatenate([every[: ends[0]], np.full(len(f"\n{SEPARATOR}\n"), -1), every[ends[1] :]])


def _start(tokenizer, rendered: str, text: str, style: PromptStyle) -> tuple[int, bool]:
    """The character of `rendered` at which `text` begins, and whether the chat template stripped it."""
    mark = "MARK"
    start = render(tokenizer, mark, style).rindex(mark)
    for candidate, stripped in ((text, False), (text.strip(), True)):
        if rendered.startswith(candidate, start):
            return start, stripped
    raise ValueError("the chat template rewrites the prompt's text: its tokens cannot be placed, use a raw style")


def _spans(tokenizer, rendered: str) -> list[slice]:
    """The characters of each token; one of spaces alone, which some tokenizers trim to nothing, gets them back."""
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans, last = [], 0
    for start, end in encoded["offset_mapping"]:
        spans.append(slice(last if start == end else start, end))
        last = end
    return spans
