"""Does a model recite a document's text, know its facts, or is it damaged? Three measurements that come apart.

Read against the base model's own numbers. Bits saved on the document beyond those saved on its paraphrase, and recited
tokens: the text is memorised. Right answers: the facts are known. Bits saved on unseen text of the same kind: the kind
is learned; bits lost there: the model is damaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from math import log

import pandas as pd
import torch
from torch.nn import functional

from liftlab.documents import Document, Question
from liftlab.examples import document_ids, segment_spans
from liftlab.models import BaseModel
from liftlab.probes.answers import scored
from liftlab.probes.gates import at_rest
from liftlab.prompts import PLAIN, PromptStyle
from liftlab.token_losses import scored_logits

COLUMNS = [
    "metric", "unit", "value", "text", "tokens", "place", "position", "depth", "limit", "question", "kind", "wording",
    "hops",
]  # fmt: skip
BATCH_TOKENS = 4096  # tokens of one forward pass (one window may exceed it): bounds the memory of its logits


def probe(
    base: BaseModel,
    document: Document,
    questions: Sequence[Question] = (),
    *,
    paraphrase: Document | None = None,
    unseen: Document | None = None,
    cue_tokens: int = 8,
    cues: int = 12,
    recite_tokens: int = 32,
    segment_tokens: int | None = None,
    offset_tokens: int | None = None,
    answer_tokens: int = 8,
    style: PromptStyle = PLAIN,
    score: str = "exact_match",
) -> pd.DataFrame:
    """Three kinds of row; a column that a kind does not have is empty there. Positions count from the title's start.

    bits_per_token: mean -log2 p of a text (`text`: document, paraphrase, unseen), over `tokens` tokens; see `bits`.
    recited_tokens, a row a cue: given `cue_tokens` tokens alone, how many of the `limit` that follow the model says
    greedily before its first mistake. `limit` is `recite_tokens`, or what a shorter document leaves; the same for all
    cues. `position` of the cue's first token; `depth` 0 = it begins the document, 1 = it ends it. `place`: "anywhere",
    or, where segment and offset are given as trained with, "segment_start" and "segment_middle" (half an offset
    further), up to `cues` cues of each.
    `score` (see `scoring.SCORES`), a row a question: of its greedy closed-book answer, 0..1; `depth` of its evidence.
    """
    ids = document_ids(base.tokenizer, document)
    _check(base, document, len(ids), cue_tokens, cues, recite_tokens, segment_tokens, offset_tokens)
    limit = min(recite_tokens, len(ids) - cue_tokens)
    starts = cue_starts(len(ids) - cue_tokens - limit, cues, segment_tokens, offset_tokens)
    texts = {"document": document, "paraphrase": paraphrase, "unseen": unseen}
    with at_rest(base.model):
        rows = [_bits_row(base, name, text) for name, text in texts.items() if text is not None]
        recited = _recited(base, ids, [position for _, position in starts], cue_tokens, limit)
        for (place, position), value in zip(starts, recited, strict=True):
            depth = position / (len(ids) - cue_tokens)
            row = {"metric": "recited_tokens", "unit": "tokens", "value": float(value), "place": place}
            rows.append({**row, "position": position, "depth": depth, "limit": limit})
    if questions:
        found = scored(base, document, questions, "none", answer_tokens=answer_tokens, style=style, score=score)
        rows += found.to_dict("records")
    return pd.DataFrame(rows, columns=COLUMNS)


def bits(base: BaseModel, ids: Sequence[int]) -> float:
    """Mean -log2 p of every token but the first, each scored once; float32 logits, summed in float64.

    A text beyond the window is read in full windows that overlap by half, the last one by more: a token scored after
    the first window has at least half a window before it. `load(window=...)` lowers the window and the memory it takes.
    """
    length = min(len(ids), base.window)
    last = len(ids) - length
    starts = torch.tensor([*range(0, last, base.window // 2), last])
    positions = starts[:, None] + torch.arange(length)  # (windows, length)
    done = torch.cat([torch.tensor([1]), starts[:-1] + length])  # per window: the first token not yet scored
    windows, new = torch.tensor(ids)[positions], positions[:, 1:] >= done[:, None]
    nats = 0.0
    for part in torch.arange(len(starts)).split(max(1, BATCH_TOKENS // length)):
        read, scored = windows[part].to(base.model.device), new[part].to(base.model.device)
        logits = scored_logits(base.model, read, scored)
        nats += functional.cross_entropy(logits, read[:, 1:][scored], reduction="none").double().sum().item()
    return nats / (len(ids) - 1) / log(2)


def cue_starts(last: int, cues: int, segment_tokens: int | None, offset_tokens: int | None) -> list[tuple[str, int]]:
    """(place, token) of every cue, within 0..last, spread evenly; fewer than `cues` of a place where it has fewer."""
    if segment_tokens is None:
        return [("anywhere", position) for position in _spread(range(last + 1), cues)]
    starts = [start for start, _ in segment_spans(last + 1, segment_tokens, offset_tokens)]
    half = offset_tokens // 2  # 0 where every token starts a segment, so that none lies between
    middles = [start + half for start in starts if half and start + half <= last]
    places = {"segment_start": starts, "segment_middle": middles}
    return [(place, position) for place, among in places.items() for position in _spread(among, cues)]


def _spread(among: Sequence[int], count: int) -> list[int]:
    """Up to `count` of `among`, evenly, the first and the last included."""
    count = min(count, len(among))
    return [among[i * (len(among) - 1) // max(1, count - 1)] for i in range(count)]


def _bits_row(base: BaseModel, name: str, document: Document) -> dict:
    ids = document_ids(base.tokenizer, document)
    row = {"metric": "bits_per_token", "unit": "bits a token", "value": bits(base, ids)}
    return {**row, "text": name, "tokens": len(ids) - 1}


def _recited(base: BaseModel, ids: list[int], starts: list[int], cue_tokens: int, limit: int) -> Iterator[int]:
    """Per cue, the tokens said before the first mistake; whatever the model's own settings of generation are."""
    size = max(1, BATCH_TOKENS // (cue_tokens + limit))
    for batch in (starts[i : i + size] for i in range(0, len(starts), size)):
        cues = torch.tensor([ids[start : start + cue_tokens] for start in batch], device=base.model.device)
        out = base.model.generate(
            input_ids=cues,
            attention_mask=torch.ones_like(cues),
            max_new_tokens=limit,
            do_sample=False,
            repetition_penalty=1.0,
            pad_token_id=base.tokenizer.pad_token_id,
        )
        for start, said in zip(batch, out[:, cue_tokens:].tolist(), strict=True):
            pairs = zip(said, ids[start + cue_tokens :], strict=False)  # the shorter ends the comparison
            yield sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _check(base: BaseModel, document: Document, tokens: int, cue_tokens, cues, recite_tokens, segment, offset) -> None:
    for name, value in {"cue_tokens": cue_tokens, "cues": cues, "recite_tokens": recite_tokens}.items():
        if value < 1:
            raise ValueError(f"{name} = {value}: must be at least 1")
    if cue_tokens + recite_tokens > base.window:
        raise ValueError(
            f"cue_tokens = {cue_tokens} and recite_tokens = {recite_tokens} take {cue_tokens + recite_tokens} tokens, "
            f"the window of {base.name} is {base.window}: make them smaller"
        )
    if tokens <= cue_tokens:
        raise ValueError(
            f"document {document.name!r} has {tokens} tokens with its title, a cue has {cue_tokens} and one more must "
            f"be left to recite: make cue_tokens at most {tokens - 1}, or give a longer document"
        )
    if (segment is None) != (offset is None):
        raise ValueError(
            f"segment_tokens = {segment} and offset_tokens = {offset}: give both, as trained with, or neither"
        )
