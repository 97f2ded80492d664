"""How many documents an evaluation has, of which length, with how many questions: read, or from published sizes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from liftlab import published
from liftlab.costs import RECITE_TOKENS, WORD_TOKENS
from liftlab.documents import Document
from liftlab.examples import Example, document_ids, segment_spans
from liftlab.hub_weights import HubUnreachable
from liftlab.models import Configuration, configuration
from liftlab.recipes import Recipe
from liftlab.studies import sources, tuning

_RATIO = f"{WORD_TOKENS} tokens a word (assumed)"


@dataclass(frozen=True)
class Sized:
    """`number` documents of `tokens` tokens with `questions` questions each; `document`: itself, where it is read."""

    number: int
    tokens: int
    questions: float
    document: Document | None = None


def documents(settings: dict) -> tuple[list[Sized], str]:
    """The documents of an evaluation's settings (see `evaluation.checked`), and a text: where their sizes are from.

    ValueError for documents that the run could not read either, or that cannot be sized without the tokenizer.
    """
    if absent(settings["benchmark"]):
        told = f"no folder {settings['benchmark']['path']} here, counted from the settings, {_RATIO}"
        return _places(settings["benchmark"], settings["documents"]), told
    asked = (settings[name] for name in ("documents", "questions", "base", "window_tokens"))
    return _read(json.dumps(settings["benchmark"]), *asked)


@cache
def known(base: str, window_tokens: int) -> Configuration:
    return configuration(base, window=window_tokens or None)


def absent(benchmark: dict) -> bool:
    """Whether a needle's folder of texts is missing: its documents can be counted without."""
    path = benchmark.get("path")
    return benchmark.get("source") == "needle" and isinstance(path, str) and not Path(path).expanduser().exists()


def _places(plan: dict, count: int) -> list[Sized]:
    """A needle's documents by the settings alone."""
    return [Sized(count * len(plan["depths"]), round(words * WORD_TOKENS), 1) for words in plan["words"]]


@cache
def _read(benchmark: str, count: int, questions: int, name: str, window_tokens: int) -> tuple[list[Sized], str]:
    plan, base = sources.checked(json.loads(benchmark)), known(name, window_tokens)
    if base.tokenizer is None and plan["source"].startswith("register"):
        raise ValueError(f"registers are sized by the tokenizer of {name}, which is not known here: {base.reason}")
    try:
        found = sources.documents(plan, count, base, questions)
    except HubUnreachable as error:
        return _published(plan, count, questions), f"from published sizes, {_RATIO} ({error})"
    sized = [_sized(document, base) for document in found]
    if base.tokenizer is not None:
        return sized, "counted on the documents themselves"
    same = Counter(replace(one, document=None) for one in sized)
    return [replace(one, number=n) for one, n in same.items()], (
        f"counted on the documents, {_RATIO}, as the tokenizer is not known"
    )


def corpus(chosen: tuning.Tuning, benchmark: dict, base: Configuration, tests: Sequence[Sized]) -> list[Sized]:
    """The documents of a pre-LIFT fine-tuning; of the tests' mean size, where these were not read."""
    read = [one.document for one in tests if one.document is not None]
    if len(read) == len(tests):
        return [_sized(document, base) for document in tuning.corpus(chosen, benchmark, base, read)]
    tokens = sum(one.number * one.tokens for one in tests) / sum(one.number for one in tests)
    return [Sized(1, round(tokens), 0)] * chosen.documents


def _sized(document: Document, base: Configuration) -> Sized:
    asked = sum(question.wording != "trained" for question in document.questions)
    if base.tokenizer is None:
        return Sized(1, round(WORD_TOKENS * len(document.text.split())), asked)
    return Sized(1, len(document_ids(base.tokenizer, document)), asked, document)


def _published(plan: dict, count: int, questions: int) -> list[Sized]:
    """Each task's documents at their mean size. ValueError for more documents than a task has."""
    of = published.benchmarks()[{"loogle": "LooGLE", "longbench": "LongBench"}[plan["source"]]]
    made = []
    for task in plan["tasks"]:
        facts = of["tasks"][sources.PART_OF.get(task, task)]
        if task in sources.PART_OF:  # every document may hold some of them: how many do is not published
            facts = {**facts, "questions": facts["kinds"][task], "kinds": [task]}
        if count > facts["documents"]:
            raise ValueError(f"documents = {count}: {task} has {facts['documents']}, give at most that, or 0 for all")
        tokens = of.get("mean_document_tokens") or WORD_TOKENS * facts["mean_document_words"]
        asked = facts["questions"] / facts["documents"]
        most = questions * len(facts.get("kinds", [task])) or asked
        made.append(Sized(count or facts["documents"], round(tokens), min(asked, most)))
    return made


def segments_of(tokens: int, recipe: Recipe, window: int) -> list[Example]:
    """Segments of a document of `tokens` tokens, as `lifting.make_examples` has them cut for a `window` of tokens."""
    if not (recipe.segment_epochs or recipe.segments_in_mixed):
        return []
    if tokens < recipe.segment_tokens:
        raise ValueError(f"a document of {tokens} tokens is shorter than a segment ({recipe.segment_tokens} tokens): "
                         "make segment_tokens (and offset_tokens) smaller")  # fmt: skip
    spans = segment_spans(tokens, recipe.segment_tokens, recipe.offset_tokens)
    before = [min(recipe.context_tokens, tokens) + RECITE_TOKENS if recipe.contextualized else 0] * len(spans)
    if recipe.segment_by_segment:
        room = max(0, window - recipe.segment_tokens)
        before = [min(start, recipe.context_tokens, room) for start, _ in spans]
    lengths = [(context, end - start) for context, (start, end) in zip(before, spans, strict=True)]
    return [blank(context + own, "segment") for context, own in lengths if context or own > 1]


def blank(tokens: int, kind: str) -> Example:
    """An example of so many tokens, for counting."""
    return Example((0,) * tokens, (0,) * tokens, kind)
