"""`liftlab lift` and `liftlab ask`: a document into an adapter, auxiliary pairs made for it if wanted, and answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from liftlab.parameters import assignments

if TYPE_CHECKING:
    from liftlab.auxiliary.endpoint import Endpoint
    from liftlab.auxiliary.tasks import Auxiliary
    from liftlab.documents import Document
    from liftlab.examples import Pair
    from liftlab.first_token import FirstToken
    from liftlab.lifted import Lifted
    from liftlab.models import BaseModel
    from liftlab.recipes import Recipe

OWN = "model"  # --generator: the base model itself
KNOWN = ("micro", "smollm2")  # base models that ask loads because an adapter names them
TIMED = "What is this document about?"  # asked to time the first token


def lift(
    file: Annotated[Path, typer.Argument(help="The document: a UTF-8 text or Markdown file.")],
    out: Annotated[Path, typer.Option(help="The adapter's directory, which must not exist yet.")],
    title: Annotated[str | None, typer.Option(help="Heads the document; the file's name if not given.")] = None,
    model: Annotated[str, typer.Option(help="micro, smollm2, a hub id, a directory or a .gguf file.")] = "smollm2",
    pairs: Annotated[
        Path | None, typer.Option(help="JSONL with a question and an answer a line, trained on too.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="A name in liftlab/paper/recipes.yaml; by default the model's own.")] = "",
    sets: Annotated[list[str] | None, typer.Option("--set", help="field=value, in place of the recipe's.")] = None,
    auxiliary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK=COUNT",
            help="Pairs made for the document and trained on too, after those of --pairs: window, passage_retrieval or "
            "timeline, COUNT in all; sentence, at most COUNT a sentence.",
        ),
    ] = None,
    generator: Annotated[
        str, typer.Option(help="Who writes them: the base model itself, or the name that --endpoint knows a model by.")
    ] = OWN,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="An OpenAI-compatible server, such as http://localhost:8000/v1; its key in OPENAI_API_KEY. Training "
            "begins while its pairs arrive, where the recipe can.",
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="The folder that replies are kept in; by default in liftlab's cache.")
    ] = None,
) -> None:
    """Fine-tune a document into an adapter, kept as a PEFT adapter directory."""
    from liftlab import documents, examples, lifting, models
    from liftlab.lifted import check_free
    from liftlab.recipes import chosen

    plan = chosen(recipe, model, assignments(sets or []))
    wanted = _wanted(auxiliary or [], plan)
    remote = _remote(wanted, generator, endpoint, cache)
    document = documents.read_text(file, title)
    known = examples.read_pairs(pairs) if pairs else []
    check_free(out)
    with _enough_memory(plan):
        if wanted:
            lifted = _with_auxiliary(model, document, plan, known, wanted, remote, cache)
        else:
            lifted = lifting.lift(models.load(model), document, plan, known)
    lifted.save(out)
    first, last = lifted.history[0], lifted.history[-1]
    told = f"{last.step} steps, {last.tokens} tokens, {last.seconds:.0f} s, loss {first.loss:.2f} to {last.loss:.2f}"
    typer.echo(f"{documents.shown(out)}: {told}")


@contextmanager
def _enough_memory(plan: Recipe) -> Iterator[None]:
    """Memory that runs out is a mistake in what was asked, and told as one."""
    from liftlab.machine import OutOfMemory, memory_errors

    try:
        with memory_errors():
            yield
    except OutOfMemory as error:
        raise ValueError(
            f"the memory does not hold this lift (rank {plan.rank}, batch_tokens {plan.batch_tokens}, segment_tokens "
            f"{plan.segment_tokens}): lower them with --set, or choose a smaller --model"
        ) from error


def _wanted(auxiliary: list[str], plan: Recipe) -> dict[str, int]:
    """{task: count} from the words of --auxiliary, checked before anything is loaded."""
    if not auxiliary:
        return {}
    from liftlab.auxiliary.tasks import TASKS

    wanted: dict[str, int] = {}
    for words in auxiliary:
        task, _, count = (part.strip() for part in words.partition("="))
        if task not in TASKS or not count.isdecimal() or int(count) < 1:
            raise ValueError(f"--auxiliary {words!r}: give TASK=COUNT, TASK one of {', '.join(TASKS)}, COUNT from 1")
        if task in wanted:
            raise ValueError(f"--auxiliary gives {task} twice: give it once")
        wanted[task] = int(count)
    if not plan.mixed_epochs:
        raise ValueError("--auxiliary with mixed_epochs = 0: the recipe trains on no pairs, raise mixed_epochs")
    return wanted


def _remote(wanted: dict[str, int], generator: str, url: str | None, cache: Path | None) -> Endpoint | None:
    """The endpoint that writes the pairs; None: the base model does, or there are none to write."""
    if cache is not None and cache.exists() and not cache.is_dir():
        raise ValueError(f"--cache {str(cache)!r} is no folder: give one, which need not exist yet")
    if not wanted:
        given = {"--generator": generator != OWN, "--endpoint": url is not None, "--cache": cache is not None}
        if any(given.values()):
            name = next(name for name in given if given[name])
            raise ValueError(
                f"{name} is for the pairs of --auxiliary, which is not given: give it, or leave {name} out"
            )
        return None
    if url is None and generator != OWN:
        raise ValueError(f"--generator {generator!r} needs --endpoint URL, the server that knows this model")
    if url is not None and generator == OWN:
        raise ValueError(f"--endpoint {url} needs --generator NAME, the name that the server knows its model by")
    if url is None:
        return None
    from liftlab.auxiliary.endpoint import Endpoint

    return Endpoint(url, generator)


def _with_auxiliary(
    model: str,
    document: Document,
    plan: Recipe,
    known: list[Pair],
    wanted: dict[str, int],
    remote: Endpoint | None,
    cache: Path | None,
) -> Lifted:
    """Lift with the pairs of `wanted` after `known`, and tell what came of them and when the first token came."""
    from liftlab import first_token, models
    from liftlab.auxiliary.replies import ReplyCache
    from liftlab.auxiliary.tasks import Auxiliary
    from liftlab.gguf_weights import cache_root

    asked: dict[str, Auxiliary] = {}

    def pairs(base: BaseModel, document: Document) -> Iterator[Pair]:
        kept = ReplyCache(cache or cache_root() / "replies", document.text)
        writer = remote or _own(base)
        for task, count in wanted.items():
            asked[task] = Auxiliary(document, task, count, writer, kept, plan.seed)
        return _chained(known, list(asked.values()))

    streaming = remote is not None and plan.streams
    lifted, _, seconds = first_token.measure(
        lambda: models.load(model), document, plan, pairs, TIMED, streaming=streaming, answer_tokens=1, progress=True
    )
    for task, made in asked.items():
        typer.echo(_counted(task, made))
    typer.echo(_timed(seconds, streaming))
    return lifted


def _own(base: BaseModel):
    from liftlab.auxiliary.local_model import LocalModel

    return LocalModel(base)


def _chained(known: list[Pair], asked: Sequence[Auxiliary]) -> Iterator[Pair]:
    """ValueError where the generator gave no pair at all, with the first reason."""
    yield from known
    for made in asked:
        yield from made
    if not any(made.counts.pairs for made in asked):
        reasons = [reason for made in asked for reason in made.failures] or ["every reply held none"]
        raise ValueError(f"--auxiliary: no pair came of {sum(m.counts.requests for m in asked)} requests: {reasons[0]}")


def _counted(task: str, made: Auxiliary) -> str:
    counts = made.counts
    first = f"; the first of these: {' '.join(made.failures[0].split())}" if made.failures else ""
    return (
        f"{task}: {counts.requests} asked, {counts.cached} of them from the cache, {counts.pairs} pairs kept, "
        f"{counts.failed} failed, {counts.refused} refused{first}"
    )


def _timed(seconds: FirstToken, streaming: bool) -> str:
    overlap = f" ({seconds.waiting_seconds:.1f} of them before or between steps)" if streaming else ""
    return (
        f"first token after {seconds.whole:.1f} s, {seconds.as_published:.1f} s as published: "
        f"load {seconds.load_seconds:.1f}, split {seconds.split_seconds:.1f}, "
        f"generation {seconds.generation_seconds:.1f}{overlap}, training {seconds.training_seconds:.1f}, "
        f"decoding {seconds.decode_seconds:.1f}"
    )


def ask(
    folder: Annotated[Path, typer.Argument(help="A directory that `liftlab lift` wrote.")],
    question: Annotated[str, typer.Argument(help="The question.")],
    context: Annotated[
        str, typer.Option(help="What of the document stands in the prompt: none or truncated.")
    ] = "none",
    answer_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the answer, at most.")] = 64,
    model: Annotated[
        str,
        typer.Option(
            help="The base model that the document was lifted on; micro, smollm2 and random: ones are known by the "
            "adapter."
        ),
    ] = "",
) -> None:
    """Ask a lifted document."""
    from liftlab import models, prompts
    from liftlab.answering import answer
    from liftlab.documents import check_characters
    from liftlab.lifted import Lifted

    if context not in ("none", "truncated"):
        raise ValueError(f"--context {context!r} is unknown: choose none or truncated")
    if not question.strip():
        raise ValueError("the question is empty: ask something")
    check_characters(question, "the question")
    lifted = Lifted.load(folder)
    style = prompts.style(lifted.recipe.style)
    with lifted.on(models.load(_base_of(lifted, model))) as base:
        typer.echo(answer(base, lifted.document, [question], context, answer_tokens=answer_tokens, style=style)[0])


def _base_of(lifted: Lifted, model: str) -> str:
    """The base model to load: one that the folder alone names is not looked for on the hub or the disk."""
    named = lifted.base["name"]
    if not model and named not in KNOWN and not named.startswith("random:"):
        raise ValueError(
            f"the adapter names the base model {named!r}, which is not loaded on a folder's word: give --model, the "
            "model that the document was lifted on"
        )
    return model or named
