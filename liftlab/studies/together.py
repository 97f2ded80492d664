"""Cells of a study computed together: what they ask for at the same time is done in one for all of them.

Such a cell is a generator. It yields a `Job` and is sent the lifted document, yields an `Ask` and is sent the answers,
and returns its records. What it gets does not depend on the cells beside it, but for rounding (1e-5 in the weights).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import pandas as pd

from liftlab import answering, scoring, stacked
from liftlab.cells import CellError, whole_number
from liftlab.documents import Document, Question
from liftlab.lifted import Lifted
from liftlab.models import BaseModel
from liftlab.probes import answers
from liftlab.prompts import PLAIN, PromptStyle, put
from liftlab.recipes import Recipe
from liftlab.stacked import Job

DOCUMENTS_AT_ONCE = 8
AT_ONCE = "LIFTLAB_AT_ONCE"  # environment variable: documents lifted at once
MEMORY = "LIFTLAB_MEMORY_GIB"  # environment variable: the memory that lifting them may take


@dataclass(frozen=True)
class Ask:
    """Prompts (token ids each, see `prompts.put`; None is answered None) for greedy answers of at most `answer_tokens`.

    They are put to a lifted document, or where there is none to the base model.
    """

    prompts: Sequence[list[int] | None]
    answer_tokens: int
    lifted: Lifted | None = None


Answers = list[str | None]
Cell = Generator[Job | Ask, Lifted | Answers, pd.DataFrame]


def together(base: BaseModel, cells: Sequence[Cell], memory_gib: float | None = None) -> list[pd.DataFrame]:
    """What each of `cells` returns. Whatever is raised, in a cell or in doing what it asked for, closes all others.

    Documents are lifted when no cell has anything to ask, so that no lift goes alone for want of a few answers.
    """
    done: dict[int, pd.DataFrame] = {}
    jobs: dict[int, Job] = {}  # waiting; by the cell's place, as all here
    sent: dict[int, Any] = dict.fromkeys(range(len(cells)))
    with ExitStack() as closing:
        for cell in cells:
            closing.callback(cell.close)
        while sent:
            requests = _requests(cells, sent, done)
            asks = {place: request for place, request in requests.items() if isinstance(request, Ask)}
            jobs |= {place: request for place, request in requests.items() if place not in asks}
            if asks:
                sent = _said(base, asks)
            else:
                sent, jobs = _lifted(base, jobs, memory_gib), {}
    return [done[place] for place in range(len(cells))]


def alone(base: BaseModel, cell: Cell) -> pd.DataFrame:
    """What one cell returns."""
    return together(base, [cell])[0]


def grouped(load: Callable[[], BaseModel], recipes: Iterable[Recipe]) -> dict[str, Any]:
    """How `cells.run` computes cells together, as its keywords: on the base model that `load` gives, in each process.

    As many at once as LIFTLAB_AT_ONCE says, in at most LIFTLAB_MEMORY_GIB of memory; one, where one of `recipes` trains
    every weight, since each lifted document then is a whole model. CellError where either of the two is wrong.
    """
    count = whole_number(AT_ONCE, "documents to lift at once") or DOCUMENTS_AT_ONCE
    whole = any(recipe.adapter == "full" for recipe in recipes)
    return {"together": partial(_on_loaded, load, _memory_gib()), "at_once": 1 if whole else count}


def asking(
    base: BaseModel,
    lifted: Lifted | None,
    document: Document,
    questions: Sequence[Question | str],
    context: str,
    *,
    answer_tokens: int,
    style: PromptStyle = PLAIN,
) -> Generator[Ask, Answers, Answers]:
    """As `answering.answer`, asked together: `said = yield from asking(...)`. `lifted` None asks the base model."""
    prompts = [put(base.tokenizer, document, q, context, base.window, answer_tokens, style) for q in questions]
    return (yield Ask(prompts, answer_tokens, lifted))


def scored(
    base: BaseModel,
    lifted: Lifted | None,
    document: Document,
    questions: Sequence[Question],
    context: str,
    *,
    answer_tokens: int,
    style: PromptStyle,
    score: str,
) -> Generator[Ask, Answers, pd.DataFrame]:
    """The rows of `probes.answers.scored`, asked together; a whole document in the prompt must fit."""
    if not questions:
        raise ValueError(f"no question was given about document {document.name!r}: ask at least one")
    said = yield from asking(base, lifted, document, questions, context, answer_tokens=answer_tokens, style=style)
    right = scoring.score(score)
    values = [right(text, question.answer) for text, question in zip(said, questions, strict=True)]
    return answers.rows(document, questions, values, score)


def _on_loaded(load: Callable[[], BaseModel], memory_gib: float | None, cells: Sequence[Cell]) -> list[pd.DataFrame]:
    return together(load(), cells, memory_gib)


def _memory_gib() -> float | None:
    given = os.environ.get(MEMORY)
    if given is None:
        return None
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise CellError(f"{MEMORY} = {given!r}: give the memory for lifting documents together in GiB, above 0")
    return value


def _requests(cells: Sequence[Cell], sent: dict[int, Any], done: dict[int, pd.DataFrame]) -> dict[int, Job | Ask]:
    """What the cells ask for next; those that have returned instead are put into `done`."""
    requests: dict[int, Job | Ask] = {}
    for place, given in sent.items():
        try:
            requests[place] = cells[place].send(given)
        except StopIteration as end:
            done[place] = end.value
        else:
            if not isinstance(requests[place], Job | Ask):
                raise TypeError(f"a cell yielded {requests[place]!r:.60}: it may ask for a Job or an Ask")
    return requests


def _lifted(base: BaseModel, jobs: dict[int, Job], memory_gib: float | None) -> dict[int, Lifted]:
    places = sorted(jobs)
    if not places:
        return {}
    found = stacked.lift(base, [jobs[place] for place in places], memory_gib=memory_gib, progress=False)
    return dict(zip(places, found, strict=True))


def _said(base: BaseModel, asks: dict[int, Ask]) -> dict[int, Answers]:
    """Asks of one answer length are answered together: those of lifted documents, and those of the base model."""
    groups: dict[tuple[int, bool], list[int]] = {}
    for place, ask in asks.items():
        groups.setdefault((ask.answer_tokens, ask.lifted is None), []).append(place)
    found: dict[int, Answers] = {}
    for (answer_tokens, bare), places in groups.items():
        prompts = [asks[place].prompts for place in places]
        if bare:
            said = _of_base(base, prompts, answer_tokens)
        else:
            said = stacked.answer(base, [asks[place].lifted for place in places], prompts, answer_tokens)
        found |= zip(places, said, strict=True)
    return {place: found[place] for place in asks}


def _of_base(base: BaseModel, prompts: Sequence[Sequence[list[int] | None]], answer_tokens: int) -> list[Answers]:
    said = iter(answering.answer_prompts(base, list(chain.from_iterable(prompts)), answer_tokens))
    return [list(islice(said, len(of))) for of in prompts]
