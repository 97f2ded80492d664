"""Questions answered under a condition: closed book, in context, lifted, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from liftlab.documents import Document, Question
from liftlab.models import BaseModel
from liftlab.prompts import PLAIN, PromptStyle, put


@dataclass(frozen=True)
class Condition:
    """What the model has when it is asked: an adapter of the document or none, and what of it stands in the prompt."""

    lifted: bool
    context: str  # none, truncated, full


CONDITIONS = {
    "closed_book": Condition(lifted=False, context="none"),
    "truncated_icl": Condition(lifted=False, context="truncated"),
    "full_icl": Condition(lifted=False, context="full"),
    "lift": Condition(lifted=True, context="none"),
    "lift_truncated_icl": Condition(lifted=True, context="truncated"),
}


def answer(
    base: BaseModel,
    document: Document,
    questions: Sequence[Question | str],
    context: str,
    *,
    answer_tokens: int = 8,
    style: PromptStyle = PLAIN,
    batch_tokens: int = 16384,
) -> list[str | None]:
    """Greedy answers in the order of `questions`; None where the whole document does not fit (context "full").

    `base` is a base model, or `Lifted.on(base)`. `batch_tokens` bounds the padded prompt tokens of one batch.
    """
    prompts = [put(base.tokenizer, document, q, context, base.window, answer_tokens, style) for q in questions]
    return answer_prompts(base, prompts, answer_tokens, batch_tokens)


@torch.no_grad()
def answer_prompts(
    base: BaseModel, prompts: Sequence[list[int] | None], answer_tokens: int = 8, batch_tokens: int = 16384
) -> list[str | None]:
    """Greedy answers to `prompts` (token ids each, see `prompts.put`), in batches of like length; None for None."""
    answers: list[str | None] = [None] * len(prompts)
    fitting = [i for i, prompt in enumerate(prompts) if prompt is not None]
    for rows in _batches(fitting, prompts, batch_tokens):
        for i, text in zip(rows, generate(base, [prompts[i] for i in rows], answer_tokens), strict=True):
            answers[i] = text
    return answers


def _batches(rows: list[int], prompts: list, batch_tokens: int) -> list[list[int]]:
    """Rows grouped by prompt length, longest first, each group's padded prompts within `batch_tokens`."""
    groups: list[list[int]] = []
    for row in sorted(rows, key=lambda i: -len(prompts[i])):
        if groups and len(prompts[groups[-1][0]]) * (len(groups[-1]) + 1) <= batch_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def generate(base: BaseModel, prompts: list[list[int]], answer_tokens: int) -> list[str]:
    """Greedy continuations of left-padded prompts, at most `answer_tokens` tokens, special tokens removed."""
    longest, pad = max(map(len, prompts)), base.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=base.model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=base.model.device)
    out = base.model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=answer_tokens, do_sample=False,
        repetition_penalty=1.0, pad_token_id=pad,
    )  # fmt: skip
    return [text.strip() for text in base.tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)]
