"""How a question is put to a model: chat or raw, with the document, with its head and tail, or closed book.

Everything here maps to token ids, with only a tokenizer at hand; no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import cached_property
from importlib.resources import files
from string import Formatter
from typing import Any

import yaml

from liftlab.documents import Document, Question

CONTEXTS = ("none", "truncated", "full")  # what of the document stands in the prompt
SEPARATOR = "..."
_MAY_HOLD = {  # the {fields} of each template
    "question": ("question", "title"),
    "with_context": ("question", "title", "context"),
    "evidence": ("evidence",),
}
_MUST_HOLD = {"with_context": "context", "evidence": "evidence"}  # or it would be lost from the prompt
_TYPES = {"str": (str, "a text"), "bool": (bool, "true or false")}


@dataclass(frozen=True)
class PromptStyle:
    """The wording around a question.

    `question` (closed book) may hold {question} and {title}, `with_context` also {context}; `evidence` words what
    `with_evidence` puts before the question, as {evidence}. Braces inside a document or a question are plain text; a
    template's own brace is doubled. `chat` puts the whole through the tokenizer's chat template (with `system`, if
    given), which decides about BOS; else it is raw text without BOS, as in the papers' LooGLE runs, or with the
    tokenizer's BOS first if `bos`. ValueError for a template that does not hold to this, or settings that exclude each
    other.
    """

    question: str
    with_context: str
    chat: bool = True
    system: str = ""
    bos: bool = False
    evidence: str = "Evidence: {evidence}\n"

    def __post_init__(self) -> None:
        for field in fields(self):
            kind, words = _TYPES[field.type]
            if not isinstance(value := getattr(self, field.name), kind):
                raise ValueError(f"prompt style: {field.name} = {value!r}: must be {words}")
        for name in _MAY_HOLD:
            _check_template(name, getattr(self, name))
        if self.chat and self.bos:
            raise ValueError("prompt style: bos with chat: the chat template decides about BOS, leave bos out")
        if self.system and not self.chat:
            raise ValueError("prompt style: system without chat: a raw prompt has no system message, leave system out")

    def text(self, question: str, title: str = "", context: str | None = None) -> str:
        """The prompt's text before the chat template, or the BOS."""
        return "".join(text for _, text in self.pieces(question, title, context))

    def pieces(self, question: str, title: str = "", context: str | None = None) -> list[tuple[str, str]]:
        """`text` in pieces: (question, title, context, or "" for the style's own wording; the piece's text).

        ValueError where a question is asked that the template has no place for.
        """
        template = self.question if context is None else self.with_context
        filled = _fill(template, {"question": question, "title": title, "context": context or ""})
        if question and "question" not in {name for name, _ in filled}:
            raise ValueError(
                f"the prompt style {template[:60]!r} has no {{question}}, so {question[:60]!r} would not be asked: "
                "put {question} into the style, or ask an empty question"
            )
        return filled


def _check_template(name: str, template: str) -> None:
    allowed = ", ".join(f"{{{field}}}" for field in _MAY_HOLD[name])
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"prompt style: {name} = {template!r}: {error}: double a brace that is plain text, fields are {allowed}"
        ) from error
    for _, field, form, conversion in parts:
        if field is not None and (field not in _MAY_HOLD[name] or form or conversion):
            written = field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise ValueError(
                f"prompt style: {name} holds the field {{{written}}}, allowed are {allowed}: "
                "rename it, or double a brace that is plain text"
            )
    if (must := _MUST_HOLD.get(name)) and must not in {field for _, field, _, _ in parts}:
        raise ValueError(f"prompt style: {name} = {template!r} lacks {{{must}}}, which would be lost: put it in")


def _fill(template: str, values: dict[str, str]) -> list[tuple[str, str]]:
    """The filled template in pieces: (the field's name or "", the piece's text)."""
    parts = Formatter().parse(template)
    return [piece for literal, name, _, _ in parts for piece in (("", literal), (name or "", values.get(name, "")))]


def style(named: str | Mapping[str, Any]) -> PromptStyle:
    """The prompt style called so in paper/prompts.yaml, or one of your own from PromptStyle's fields.

    ValueError names the known styles, or the field that is unknown or missing.
    """
    if isinstance(named, Mapping):
        return _own(named)
    if not isinstance(named, str) or named not in STYLES:
        raise ValueError(f"prompt style {named!r} is unknown: choose one of {', '.join(STYLES)}, or give its fields")
    return STYLES[named]


def _own(settings: Mapping[str, Any]) -> PromptStyle:
    known = {field.name: field.default is MISSING for field in fields(PromptStyle)}  # name -> it must be given
    for name in settings:
        if name not in known:
            raise ValueError(f"prompt style has no field {name!r}: choose among {', '.join(known)}")
    if missing := [name for name, needed in known.items() if needed and name not in settings]:
        raise ValueError(f"prompt style lacks {' and '.join(missing)}: give the template, such as '{{question}}'")
    return PromptStyle(**settings)


def _read_styles() -> dict[str, PromptStyle]:
    raw = yaml.safe_load(files("liftlab").joinpath("paper/prompts.yaml").read_text("utf-8"))
    return {name: _own(settings) for name, settings in raw.items()}


STYLES = _read_styles()  # every named style, read once
PLAIN = STYLES["plain"]


def with_evidence(document: Document, question: Question, style: PromptStyle) -> Question:
    """`question` with its evidence before it, in the words of `style`: ask this one instead.

    As it belongs to the question, truncating the document leaves room for it (2412.13626, tables 5 and 6). The answer
    and the evidence's place stay. ValueError for a question without evidence.
    """
    told = document.evidence_of(question)
    if not told:
        raise ValueError(
            f"question {question.text!r} of document {document.name!r} has no evidence to give: "
            "ask it without, or give its evidence as a span or a quotation"
        )
    before = "".join(text for _, text in _fill(style.evidence, {"evidence": "\n".join(told)}))
    return replace(question, text=before + question.text)


def encode_prompt(tokenizer, text: str, style: PromptStyle) -> list[int]:
    """Token ids that the answer is appended to: those of `render`'s text, and no others."""
    return encode_prompts(tokenizer, [text], style)[0]


def encode_prompts(tokenizer, texts: Sequence[str], style: PromptStyle) -> list[list[int]]:
    """`encode_prompt` of each of `texts`, all in one call."""
    return token_ids(tokenizer, _rendered(tokenizer, texts, style))


def token_ids(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each of `texts`, with no special tokens but those that stand in it, all in one call."""
    if not texts:
        return []  # transformers takes an empty list for a mistake
    settings = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    return tokenizer(list(texts), **settings, verbose=False)["input_ids"]


def render(tokenizer, text: str, style: PromptStyle) -> str:
    """The prompt's whole text: through the chat template with the assistant's turn opened; or raw, BOS first if asked.

    ValueError where the tokenizer has no chat template, or no BOS, that `style` asks for.
    """
    return _rendered(tokenizer, [text], style)[0]


def _rendered(tokenizer, texts: Sequence[str], style: PromptStyle) -> list[str]:
    if not texts:
        return []  # as above
    if not style.chat:
        before = _bos(tokenizer) if style.bos else ""
        return [before + text for text in texts]
    if not tokenizer.chat_template:
        raise ValueError("this tokenizer has no chat template: choose a raw prompt style such as loogle_v1")
    system = [{"role": "system", "content": style.system}] if style.system else []
    chats = [[*system, {"role": "user", "content": text}] for text in texts]
    return tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)


def _bos(tokenizer) -> str:
    if tokenizer.bos_token is None:
        raise ValueError("this tokenizer has no BOS: choose a prompt style without bos, such as loogle_v1 or plain_raw")
    return tokenizer.bos_token


def head_and_tail(tokenizer, text: str, budget_tokens: int) -> str:
    """`text` if it has at most `budget_tokens` tokens, else its head, "..." and its tail, each half of the budget.

    The head gives up the separator's tokens (paper, "Asking"): head = budget/2 - separator, tail = budget/2.
    """
    return joined(text, Cuts(tokenizer, text).within(budget_tokens))


def joined(text: str, ends: tuple[int, int] | None) -> str:
    """Head, "..." and tail of `text`, where `Cuts.within` says; `text` where that is None."""
    return text if ends is None else f"{text[: ends[0]]}\n{SEPARATOR}\n{text[ends[1] :]}"


class Cuts:
    """Where a text is cut for a budget; it is tokenized at the first cut, once for all budgets and questions."""

    def __init__(self, tokenizer, text: str) -> None:
        self._tokenizer, self._text = tokenizer, text

    @cached_property
    def _offsets(self) -> list[tuple[int, int]]:
        """The characters of each token, end exclusive."""
        encoded = self._tokenizer(self._text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return encoded["offset_mapping"]

    def within(self, budget_tokens: int) -> tuple[int, int] | None:
        """The characters at which the head ends and the tail starts (see head_and_tail), None where the text fits."""
        if len(self._offsets) <= budget_tokens:
            return None
        separator = len(token_ids(self._tokenizer, [f"\n{SEPARATOR}\n"])[0])
        head, tail = budget_tokens // 2 - separator, budget_tokens // 2
        if head < 1:
            raise ValueError(
                f"a budget of {budget_tokens} tokens leaves no room for head and tail: "
                "use a model with a larger window or ask a shorter question"
            )
        return self._offsets[head - 1][1], self._offsets[-tail][0]


def put(
    tokenizer,
    document: Document,
    question: Question | str,
    context: str,
    window: int,
    answer_tokens: int,
    style: PromptStyle = PLAIN,
    cuts: Cuts | None = None,
) -> list[int] | None:
    """Token ids of the prompt for `question`, at most `window - answer_tokens` long.

    `context`: "none" = closed book; "truncated" = head and tail of the document fill what the window leaves;
    "full" = the whole document, or None where it does not fit. `cuts`: those of the document's text, for several
    questions to share.
    """
    fitted = fit(tokenizer, document, question, context, window, answer_tokens, style, cuts)
    return None if fitted is None else fitted[0]


def fit(
    tokenizer,
    document: Document,
    question: Question | str,
    context: str,
    window: int,
    answer_tokens: int,
    style: PromptStyle = PLAIN,
    cuts: Cuts | None = None,
) -> tuple[list[int], tuple[int, int] | None] | None:
    """What `put` gives, and where the document was cut for it (see `Cuts`); None for the latter where it was not."""
    if context not in CONTEXTS:
        raise ValueError(f"context {context!r} is unknown: choose one of {', '.join(CONTEXTS)}")
    asked = question if isinstance(question, str) else question.text
    room = window - answer_tokens
    ends = None

    def ids(text: str | None) -> list[int]:
        return encode_prompt(tokenizer, style.text(asked, document.title, text), style)

    if context == "none":
        prompt = ids(None)
    elif context == "full":
        prompt = ids(document.text)
        return (prompt, None) if len(prompt) <= room else None
    else:
        prompt = ids(document.text)
        budget = room - len(ids(""))
        cuts = cuts or Cuts(tokenizer, document.text)
        while (
            len(prompt) > room and budget > 0
        ):  # cutting text can change how its edges tokenize: take it off the budget
            ends = cuts.within(budget)
            prompt = ids(joined(document.text, ends))
            budget -= max(1, len(prompt) - room)
    if len(prompt) > room:
        bare = len(ids(None if context == "none" else ""))
        raise ValueError(
            f"the question takes {bare} tokens and the answer {answer_tokens}, the window is {window} tokens: "
            "ask a shorter question or use a model with a larger window"
        )
    return prompt, ends
