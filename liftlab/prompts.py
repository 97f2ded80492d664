"""How a question is put to a model: chat or raw, with the document, with its head and tail, or closed book.

Everything here maps to token ids, with only a tokenizer at hand; no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter

from liftlab.documents import Document, Question

CONTEXTS = ("none", "truncated", "full")  # what of the document stands in the prompt
SEPARATOR = "..."


@dataclass(frozen=True)
class PromptStyle:
    """The wording around a question.

    `question` and `with_context` may hold {question}, {title} and {context}; braces inside a document or a question are
    plain text. `chat` puts the whole through the tokenizer's chat template (with `system`, if given), else it is raw
    text without BOS, as in the papers' LooGLE runs.
    """

    question: str
    with_context: str
    chat: bool = True
    system: str = ""

    def text(self, question: str, title: str = "", context: str | None = None) -> str:
        """The prompt's text before the chat template."""
        return "".join(text for _, text in self.pieces(question, title, context))

    def pieces(self, question: str, title: str = "", context: str | None = None) -> list[tuple[str, str]]:
        """`text` in pieces: (question, title, context, or "" for the style's own wording; the piece's text)."""
        template = self.question if context is None else self.with_context
        fields = {"question": question, "title": title, "context": context or ""}
        parts = Formatter().parse(template)
        return [piece for literal, name, _, _ in parts for piece in (("", literal), (name or "", fields.get(name, "")))]


PLAIN = PromptStyle("{question}", "{context}\n{question}")
STYLES = {
    "plain": PLAIN,
    # 2502.14644v1-v3: raw, no BOS, no chat template
    "loogle_v1": PromptStyle(
        "Please answer the question based on {title}.\nQuestion: {question}\nAnswer: ",
        "The article {title}: \n{context}\n"
        "Please answer the question based on {title}.\nQuestion: {question}\nAnswer: ",
        chat=False,
    ),
    # 2502.14644v4: chat template
    "loogle_v4": PromptStyle(
        'Please answer the question based on "{title}".\nQuestion: {question}\nAnswer:',
        '{context}\nPlease answer the question based on "{title}".\nQuestion: {question}\nAnswer:',
    ),
}


def style(name: str) -> PromptStyle:
    """The prompt style called `name`; ValueError names the known ones."""
    if name not in STYLES:
        raise ValueError(f"prompt style {name!r} is unknown: choose one of {', '.join(STYLES)}")
    return STYLES[name]


def encode_prompt(tokenizer, text: str, style: PromptStyle) -> list[int]:
    """Token ids that the answer is appended to: chat template with the assistant's turn opened, or raw without BOS."""
    return tokenizer(render(tokenizer, text, style), add_special_tokens=False, verbose=False)["input_ids"]


def render(tokenizer, text: str, style: PromptStyle) -> str:
    """The prompt's whole text, that its token ids are made from."""
    if not style.chat:
        return text
    if not tokenizer.chat_template:
        raise ValueError("this tokenizer has no chat template: choose a raw prompt style such as loogle_v1")
    messages = [{"role": "system", "content": style.system}] if style.system else []
    messages.append({"role": "user", "content": text})
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def head_and_tail(tokenizer, text: str, budget_tokens: int) -> str:
    """`text` if it has at most `budget_tokens` tokens, else its head, "..." and its tail, each half of the budget.

    The head gives up the separator's tokens (paper, "Asking"): head = budget/2 - separator, tail = budget/2.
    """
    return joined(text, cut(tokenizer, text, budget_tokens))


def joined(text: str, ends: tuple[int, int] | None) -> str:
    """Head, "..." and tail of `text`, where `cut` says; `text` where that is None."""
    return text if ends is None else f"{text[: ends[0]]}\n{SEPARATOR}\n{text[ends[1] :]}"


def cut(tokenizer, text: str, budget_tokens: int) -> tuple[int, int] | None:
    """The characters at which the head ends and the tail starts (see head_and_tail), None where `text` fits."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = encoded["offset_mapping"]
    if len(offsets) <= budget_tokens:
        return None
    separator = len(tokenizer(f"\n{SEPARATOR}\n", add_special_tokens=False)["input_ids"])
    head, tail = budget_tokens // 2 - separator, budget_tokens // 2
    if head < 1:
        raise ValueError(
            f"a budget of {budget_tokens} tokens leaves no room for head and tail: "
            "use a model with a larger window or ask a shorter question"
        )
    return offsets[head - 1][1], offsets[-tail][0]


def put(
    tokenizer,
    document: Document,
    question: Question | str,
    context: str,
    window: int,
    answer_tokens: int,
    style: PromptStyle = PLAIN,
) -> list[int] | None:
    """Token ids of the prompt for `question`, at most `window - answer_tokens` long.

    `context`: "none" = closed book; "truncated" = head and tail of the document fill what the window leaves;
    "full" = the whole document, or None where it does not fit.
    """
    fitted = fit(tokenizer, document, question, context, window, answer_tokens, style)
    return None if fitted is None else fitted[0]


def fit(
    tokenizer,
    document: Document,
    question: Question | str,
    context: str,
    window: int,
    answer_tokens: int,
    style: PromptStyle = PLAIN,
) -> tuple[list[int], tuple[int, int] | None] | None:
    """What `put` gives, and where the document was cut for it (see `cut`); None for the latter where it was not."""
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
        while (
            len(prompt) > room and budget > 0
        ):  # cutting text can change how its edges tokenize: take it off the budget
            ends = cut(tokenizer, document.text, budget)
            prompt = ids(joined(document.text, ends))
            budget -= max(1, len(prompt) - room)
    if len(prompt) > room:
        raise ValueError(
            f"the question takes {len(prompt)} tokens and the answer {answer_tokens}, the window is {window} tokens: "
            "ask a shorter question or use a model with a larger window"
        )
    return prompt, ends
