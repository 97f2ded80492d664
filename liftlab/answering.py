"""Questions answered under a condition: closed book, in context, lifted, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from liftlab.documents import Document, Question
from liftlab.models import BaseModel
from liftlab.prompts import PLAIN, PromptStyle, put
from liftlab.shared_prefixes import Shared, can_share, found, padded, read


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
    """Greedy answers to `prompts` (token ids each, see `prompts.put`), in batches of like length; None for None.

    What prompts of one batch begin with is read once.
    """
    answers: list[str | None] = [None] * len(prompts)
    fitting = [i for i, prompt in enumerate(prompts) if prompt is not None]
    for rows in _batches(fitting, prompts, batch_tokens):
        some = [prompts[i] for i in rows]
        shared = found(some) if can_share(base.model) else None
        for i, text in zip(rows, generate(base, some, answer_tokens, shared), strict=True):
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


def generate(base: BaseModel, prompts: list[list[int]], answer_tokens: int, shared: Shared | None = None) -> list[str]:
    """Greedy continuations of `prompts`, at most `answer_tokens` tokens, special tokens removed.

    With `shared`, of the same prompts, each prefix is read once.
    """
    pad = base.tokenizer.pad_token_id
    ids, mask, *cache = read(base.model, shared, pad) if shared else padded(prompts, pad, base.model.device)
    out = base.model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=answer_tokens, do_sample=False, repetition_penalty=1.0,
        pad_token_id=pad, **({"past_key_values": cache[0]} if cache else {}),
    )  # fmt: skip
    return [text.strip() for text in base.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)]
