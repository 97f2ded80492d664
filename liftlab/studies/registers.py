"""What the studies on registers share: the base model, registers sized in its windows, questions drawn from them."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib.resources import files
from pathlib import Path

import pandas as pd

from liftlab import cells
from liftlab.documents import Document, Question
from liftlab.examples import document_ids, known_pairs
from liftlab.lifted import Lifted
from liftlab.models import BaseModel, load
from liftlab.recipes import Recipe
from liftlab.stacked import Job
from liftlab.studies.together import Cell, grouped
from liftlab.worlds import ENGLISH, register

Look = Callable[[BaseModel, bool], pd.DataFrame]  # (the model, whether the lift is finished) to rows
COMPUTE = tuple(  # a change in any of these modules makes a record stale
    f"liftlab.{name}"
    for name in (
        "documents", "register_fluent", "worlds", "prompts", "examples", "gguf_weights", "hub_weights", "weights",
        "models", "gated_layer", "gated_memory", "recipes", "adapters", "adapter_files", "lifted", "batches",
        "token_losses", "encoding", "history", "stacked_products", "stacked_prefix", "packing", "rotary",
        "packed_attention", "lifting", "shared_prefixes", "answering", "stacked_lora", "stacked_layers", "fused_layers",
        "last_layer", "stacked_memory", "stacked_training", "stacked", "text_overlap", "scoring", "probes.layout",
        "probes.gates", "probes.answers", "studies.together", "studies.registers",
    )
)  # fmt: skip
FIRST_DOCUMENT = 200  # studies lift registers from this seed on; smaller ones are for choosing settings
QUESTION_TOKENS = 24  # a prompt keeps these free for the question and its answer; a document of 1 window fills the rest


def data_files() -> tuple[Path, ...]:
    """The data that computing reads: the world's words, the recipes and prompts, the bundled model."""
    package = Path(str(files("liftlab")))
    weights = sorted((package / "micro").glob("*.safetensors"))
    paper = [package / "paper" / f"{name}.yaml" for name in ("recipes", "prompts")]
    words = [package / "data" / f"{name}.yaml" for name in ("register", "register_fluent")]
    return (*words, *paper, *weights)


def over_registers(
    cell: Callable[..., pd.DataFrame | Cell],
    settings: dict,
    documents: int,
    windows: Sequence[float],
    records: str | Path,
    *,
    recipes: Sequence[Recipe] = (),
    probes: Sequence[str] = (),
    alone: bool = False,
) -> pd.DataFrame:
    """The records of a study's `cell`: one cell a register, `documents` registers of each length of `windows`.

    `settings` are the same for all cells; `recipes` and `probes` are those that the study uses. Cells ask to be
    computed together (see studies.together), but those that time things: `alone`, see `cells.run`.
    """
    check_english(settings["base"], settings["english"])
    seeds = range(FIRST_DOCUMENT, FIRST_DOCUMENT + documents)
    grid = [{**settings, "windows": float(length), "document_seed": seed} for length in windows for seed in seeds]
    load = partial(base_model, settings["base"], settings["window_tokens"])
    facts = lambda: {"base_model": load().provenance}  # noqa: E731
    modules = (*COMPUTE, *(f"liftlab.probes.{name}" for name in probes), cell.__module__)
    study = cell.__module__.rpartition(".")[2]
    how = {"alone": True} if alone else grouped(load, recipes)
    return cells.run(study, cell, grid, Path(records), modules, facts, data_files(), **how)


@cache
def base_model(name: str, window_tokens: int, four_bit: bool = False) -> BaseModel:
    """The base model, loaded once a process; `window_tokens` 0 = its own window."""
    return load(name, window=window_tokens or None, four_bit=four_bit)


def check_english(base: str, english: str) -> None:
    """ValueError for an English that there is not, or that the base model's tokenizer has no words for."""
    known([english], ENGLISH, "english")
    if english != "plain" and (base == "micro" or base.startswith("random:")):
        raise ValueError(
            f"english = {english!r}: base model {base!r} cannot read it, its tokenizer holds the plain register's "
            "words alone: set english to plain, or choose another base, such as smollm2"
        )


def register_of(base: BaseModel, seed: int, windows: float, filler: float, english: str = "plain") -> Document:
    """A register of `windows` times the tokens that the model's window leaves beside a question and its answer.

    ValueError where the model's tokenizer does not know a word of the fluent one: it would be trained on as unknown.
    """
    document = register(seed, _words(base, seed, windows, filler, english), filler, english=english)
    if english != "plain" and base.tokenizer.unk_token_id in document_ids(base.tokenizer, document):
        raise ValueError(
            f"english = {english!r}: the tokenizer of base model {base.name!r} does not know all words of "
            f"{document.name}: set english to plain, or choose a base with a subword tokenizer, such as smollm2"
        )
    return document


def paraphrase_of(base: BaseModel, seed: int, windows: float, filler: float, english: str = "plain") -> Document:
    """The facts of `register_of` told in other words: of 30 wordings the first that tells the same facts, or nearly.

    A wording with longer sentences may lack the last facts, one with shorter sentences may tell more.
    """
    words = _words(base, seed, windows, filler, english)
    told = _told(register(seed, words, filler, english=english))
    others = (register(seed, words, filler, wording_seed, english) for wording_seed in range(30))
    return min(others, key=lambda other: len(told ^ _told(other)))


def other_document_of(seed: int) -> int:
    """The seed of the other register in the wrong-document control of register `seed`."""
    return seed + 1


def _words(base: BaseModel, seed: int, windows: float, filler: float, english: str) -> int:
    """The words whose register has nearly, and at most, `windows` windows of tokens."""

    def tokens_of(words: int) -> int:
        return len(document_ids(base.tokenizer, register(seed, words, filler, english=english)))

    target = words = round(windows * (base.window - QUESTION_TOKENS))
    for _ in range(5):  # words to tokens: one to one for micro, fewer words than tokens for subword tokenizers
        tokens = tokens_of(words)
        if target - 24 <= tokens <= target:
            return words
        words = int(words * target / tokens) - 4 * (tokens > target)
    while english == "fluent" and tokens_of(words) > target:  # its sentences are longer: five steps may not do
        words -= 4
    return words


def _told(document: Document) -> set[tuple[str, str]]:
    return {(question.text, question.answer) for question in document.asked()}


def ask_facts(document: Document, count: int, seed: int, hops: int = 1) -> list[Question]:
    """Up to `count` of the document's facts, each in one trained and one held-out wording, drawn by `seed`.

    With 2 hops, a fact of somebody's mentor, asked by way of the pupil; a document may have fewer of these, or none.
    """
    rng = random.Random(f"questions {seed}")
    facts: dict[tuple, dict[str, list[Question]]] = {}
    for question in document.asked(hops=hops):
        fact = question.evidence, question.bridge, question.answer
        facts.setdefault(fact, {}).setdefault(question.wording, []).append(question)
    chosen = rng.sample(list(facts.values()), min(count, len(facts)))
    return [rng.choice(wordings[use]) for wordings in chosen for use in ("trained", "held_out")]


def shuffled(document: Document, questions: Sequence[Question]) -> list[Question]:
    """Each question with the answer of another fact, to score answers against: what knowing the answers alone earns.

    A fixed permutation of the document's facts, each to another of its kind (relation), or, for one that is alone of
    its kind, to one of another kind: scored across kinds, a right answer would be a matter of the kind.
    """
    facts = sorted({(question.kind, question.evidence, question.answer) for question in document.asked()})
    random.Random("shuffled").shuffle(facts)
    answers = {}
    for fact in facts:
        alike = [other for other in facts if other[0] == fact[0]]
        among = alike if len(alike) > 1 else facts
        answers[fact] = among[(among.index(fact) + 1) % len(among)][2]
    return [replace(q, answer=answers[q.kind, q.evidence, q.answer]) for q in questions]


def about(study: str, base: str, model: BaseModel, document: Document) -> dict:
    """The columns that every record of one document shares."""
    tokens = len(document_ids(model.tokenizer, document))
    return {"study": study, "base_model": base, "document": document.name, "document_tokens": tokens}


def gated_recipe(name: str, changes: dict) -> Recipe:
    """The recipe; ValueError where its adapter has no gates to probe."""
    recipe = Recipe.preset(name, **changes)
    if recipe.adapter != "gated_memory":
        raise ValueError(
            f"recipe {name!r} trains adapter {recipe.adapter}, which has no gates: "
            "choose a recipe with adapter gated_memory, such as micro/gated_memory"
        )
    return recipe


def recipes_of(names: dict[str, str], changes: dict) -> dict[str, Recipe]:
    """The recipes by adapter, all changed alike; ValueError where there is none, or two cut or ask differently."""
    at_least_one(recipes=len(names))
    recipes = {adapter: Recipe.preset(name, **changes) for adapter, name in names.items()}
    for field in ("segment_tokens", "offset_tokens", "style"):
        values = {adapter: getattr(recipe, field) for adapter, recipe in recipes.items()}
        if len(set(values.values())) > 1:
            raise ValueError(
                f"the recipes differ in {field} ({values}): the base model is measured once for all of them, "
                "make it the same with recipe_changes"
            )
    return recipes


def watched(
    base: BaseModel, document: Document, recipe: Recipe, every: int, look: Look
) -> Generator[Job, Lifted, pd.DataFrame]:
    """The rows of `look(model, last)` at step 0, every `every`-th step and the last of one lift; column step."""
    seen: dict[int, pd.DataFrame] = {}

    def watch(step: int, on: BaseModel) -> None:
        seen[step] = look(on, False)

    lifted = yield Job(document, recipe, known_pairs(document), watch, every)
    with lifted.on(base) as on:
        seen[len(lifted.history)] = look(on, True)
    return pd.concat([frame.assign(step=step) for step, frame in seen.items()], ignore_index=True)


def at_least_one(**counts: int) -> None:
    """ValueError naming the first count below 1."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} = {value}: must be at least 1")


def known(values: Sequence[str], names: Sequence[str], what: str) -> None:
    """ValueError naming the first of `values` that is none of `names`."""
    for value in values:
        if value not in names:
            raise ValueError(f"{what} {value!r} is unknown: choose among {', '.join(names)}")
