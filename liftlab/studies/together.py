"""Cells of a study computed together: what they ask for at the same time is done in one for all of them.

Such a cell is a generator. It yields a `Job` and is sent the lifted document, yields an `Ask` and is sent the answers,
and returns its records. What it gets does not depend on the cells beside it, but for rounding (1e-5 in the weights).
Nor does it fail with them: what cannot be done for several is done for fewer, in halves down to one, and the error that
is left then is raised in that cell alone.
"""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

import pandas as pd

from liftlab import adapters, answering, machine, scoring, stacked
from liftlab.cells import whole_number
from liftlab.documents import Document, Question
from liftlab.failures import CellError, ends_run
from liftlab.lifted import Lifted
from liftlab.models import BaseModel
from liftlab.probes import answers
from liftlab.prompts import PLAIN, PromptStyle, put
from liftlab.recipes import Recipe
from liftlab.stacked import Job

DOCUMENTS_AT_ONCE = 8
BATCH_TOKENS = {"cpu": 16384, "cuda": 131072}  # padded prompt tokens of one batch of questions, by the device's type
AT_ONCE = "LIFTLAB_AT_ONCE"  # environment variable: documents lifted at once
MEMORY = "LIFTLAB_MEMORY_GIB"  # environment variable: the memory that lifting them may take


@dataclass(frozen=True)
class Ask:
    """Prompts (token ids each, see `prompts.put`; None is answered None) for greedy answers of at most `answer_tokens`.

    They are put to a lifted document, or where there is none to the base model: `base`, None = the one of all cells.
    """

    prompts: Sequence[list[int] | None]
    answer_tokens: int
    lifted: Lifted | None = None
    base: BaseModel | None = None


Answers = list[str | None]
Cell = Generator[Job | Ask, Lifted | Answers, pd.DataFrame]
Done = TypeVar("Done", Lifted, Answers)


def together(base: BaseModel, cells: Sequence[Cell], memory_gib: float | None = None) -> list[pd.DataFrame | Exception]:
    """What each of `cells` returns, or the error that ended it, in it or in doing what it asked for.

    Documents are lifted when no cell has anything to ask, so that no lift goes alone for want of a few answers. A
    `watch` is called again from step 0 where a document is lifted again. An error that is the whole run's (see
    `failures.ends_run`), or an interrupt, is raised, and closes all cells.
    """
    done: dict[int, pd.DataFrame | Exception] = {}
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
    """What one cell returns; the error that ended it is raised."""
    (done,) = together(base, [cell])
    if isinstance(done, Exception):
        raise done
    return done


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
    """As `answering.answer`, asked together: `said = yield from asking(...)`. `lifted` None asks `base` as it is.

    The prompts of a lifted document fit what its adapter leaves of the window.
    """
    window = adapters.beside_prefix(base, lifted.recipe).window if lifted else base.window
    prompts = [put(base.tokenizer, document, q, context, window, answer_tokens, style) for q in questions]
    return (yield Ask(prompts, answer_tokens, lifted, base))


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


def _on_loaded(
    load: Callable[[], BaseModel], memory_gib: float | None, cells: Sequence[Cell]
) -> list[pd.DataFrame | Exception]:
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


def _requests(
    cells: Sequence[Cell], sent: dict[int, Any], done: dict[int, pd.DataFrame | Exception]
) -> dict[int, Job | Ask]:
    """What the cells ask for next; how the others ended is put into `done`. An error among `sent` is raised there."""
    requests: dict[int, Job | Ask] = {}
    for place, given in sent.items():
        cell = cells[place]
        try:
            request = cell.throw(given) if isinstance(given, Exception) else cell.send(given)
            if not isinstance(request, Job | Ask):
                raise TypeError(f"a cell yielded {request!r:.60}: it may ask for a Job or an Ask")
            requests[place] = request
        except StopIteration as end:
            done[place] = end.value
        except Exception as error:
            done[place] = _kept(error)
    return requests


def _kept(error: Exception) -> Exception:
    """The error, without what the calls in its trace hold: tensors, of which the next try has need."""
    if ends_run(error):
        raise error
    for each in (error, error.__cause__, error.__context__):
        if each is not None:
            traceback.clear_frames(each.__traceback__)
    return error


def _in_halves(
    base: BaseModel, places: Sequence[int], do: Callable[[Sequence[int]], Sequence[Done]]
) -> dict[int, Done | Exception]:
    """What `do` gives, by place: for all of `places`, else for each half of them, and so on; an error for one alone."""
    try:
        with machine.memory_errors():
            return dict(zip(places, do(places), strict=True))
    except Exception as error:
        _kept(error)
        if len(places) == 1:
            return {places[0]: _too_large(error) if isinstance(error, machine.OutOfMemory) else error}
    machine.free(base.model.device)  # out of the handler, which holds the error
    half = (len(places) + 1) // 2
    return _in_halves(base, places[:half], do) | _in_halves(base, places[half:], do)


def _too_large(error: machine.OutOfMemory) -> machine.OutOfMemory:
    """The error as a cell gets it."""
    told = " ".join(str(error).split())
    return machine.OutOfMemory(
        f"one document alone needs more memory than there is{f' ({told})' if told else ''}: "
        "free some, or choose a smaller rank, shorter segments or gradient_checkpointing"
    )


def _lifted(base: BaseModel, jobs: dict[int, Job], memory_gib: float | None) -> dict[int, Lifted | Exception]:
    found: dict[int, Lifted | Exception] = {}
    for on, places in _by_base(base, jobs):

        def lift(some: Sequence[int], on: BaseModel = on) -> list[Lifted]:
            return stacked.lift(on, [jobs[place] for place in some], memory_gib=memory_gib, progress=False)

        found |= _in_halves(on, places, lift)
    return found


def _by_base(base: BaseModel, requests: dict[int, Job | Ask]) -> list[tuple[BaseModel, list[int]]]:
    """Each base model, told apart by its weights, and the places of the requests put to it; `base` for None."""
    bases = {id(base.model): base}
    groups: dict[int, list[int]] = {}
    for place in sorted(requests):
        on = requests[place].base or base
        bases.setdefault(id(on.model), on)
        groups.setdefault(id(on.model), []).append(place)
    return [(bases[model], places) for model, places in groups.items()]


def _said(base: BaseModel, asks: dict[int, Ask]) -> dict[int, Answers | Exception]:
    """Asks of one answer length are answered together: those of lifted documents, and those of each base model."""
    found: dict[int, Answers | Exception] = {}
    for on, of in _by_base(base, asks):
        groups: dict[tuple[int, bool], list[int]] = {}
        for place in of:
            groups.setdefault((asks[place].answer_tokens, asks[place].lifted is None), []).append(place)
        for places in groups.values():

            def answer(some: Sequence[int], on: BaseModel = on) -> list[Answers]:
                return _answered(on, [asks[place] for place in some])

            found |= _in_halves(on, places, answer)
    return {place: found[place] for place in asks}


def _answered(base: BaseModel, asks: Sequence[Ask], batch_tokens: int = 0) -> list[Answers]:
    """In batches of `batch_tokens` (0: what the device is given at first), halved where memory runs out.

    That ends where one holds no more than a prompt of each document.
    """
    batch_tokens = batch_tokens or BATCH_TOKENS.get(base.model.device.type, BATCH_TOKENS["cpu"])
    prompts, lifted, tokens = [ask.prompts for ask in asks], [ask.lifted for ask in asks], asks[0].answer_tokens
    try:
        with machine.memory_errors():
            if lifted[0] is None:
                return _of_base(base, prompts, tokens, batch_tokens)
            return stacked.answer(base, lifted, prompts, tokens, batch_tokens)
    except machine.OutOfMemory as error:
        longest = max((len(prompt) for of in prompts for prompt in of if prompt is not None), default=0)
        if batch_tokens <= longest * len(asks):
            raise
        _kept(error)
    machine.free(base.model.device)
    return _answered(base, asks, batch_tokens // 2)


def _of_base(
    base: BaseModel, prompts: Sequence[Sequence[list[int] | None]], answer_tokens: int, batch_tokens: int
) -> list[Answers]:
    flat = list(chain.from_iterable(prompts))
    said = iter(answering.answer_prompts(base, flat, answer_tokens, batch_tokens))
    return [list(islice(said, len(of))) for of in prompts]
