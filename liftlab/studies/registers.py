"""What the studies on registers share: the base model, registers sized in its windows, questions drawn from them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from liftlab.documents import Document, Question
from liftlab.examples import document_ids
from liftlab.models import BaseModel, load
from liftlab.recipes import Recipe
from liftlab.worlds import register

COMPUTE = tuple(  # a change in any of these modules makes a record stale
    f"liftlab.{name}"
    for name in (
        "documents", "worlds", "prompts", "examples", "gguf_weights", "hub_weights", "models", "gated_layer",
        "gated_memory", "recipes", "adapters", "lifted", "lifting", "answering", "scoring", "studies.registers",
    )
)  # fmt: skip
FIRST_DOCUMENT = 200  # studies lift registers from this seed on; smaller ones are for choosing settings
QUESTION_TOKENS = 24  # a prompt keeps these free for the question and its answer; a document of 1 window fills the rest


def data_files() -> tuple[Path, ...]:
    """The data that computing reads: the world's words, the recipes, the bundled model."""
    package = Path(str(files("liftlab")))
    weights = sorted((package / "micro").glob("*.safetensors"))
    return (package / "data" / "register.yaml", package / "paper" / "recipes.yaml", *weights)


@cache
def base_model(name: str, window_tokens: int) -> BaseModel:
    """The base model, loaded once a process; `window_tokens` 0 = its own window."""
    return load(name, window=window_tokens or None)


def register_of(base: BaseModel, seed: int, windows: float, filler: float) -> Document:
    """A register of `windows` times the tokens that the model's window leaves beside a question and its answer."""
    target = round(windows * (base.window - QUESTION_TOKENS))
    words = target
    for _ in range(6):  # words to tokens: one to one for micro, fewer words than tokens for subword tokenizers
        document = register(seed, words, filler)
        tokens = len(document_ids(base.tokenizer, document))
        if target - 24 <= tokens <= target:
            break
        words = int(words * target / tokens) - 4 * (tokens > target)
    return document


def ask_facts(document: Document, count: int, seed: int) -> list[Question]:
    """Up to `count` of the document's one-hop facts, each in one trained and one held-out wording, drawn by `seed`."""
    rng = random.Random(f"questions {seed}")
    facts: dict[tuple, dict[str, list[Question]]] = {}
    for question in document.asked():
        facts.setdefault((question.evidence, question.answer), {}).setdefault(question.wording, []).append(question)
    chosen = rng.sample(list(facts.values()), min(count, len(facts)))
    return [rng.choice(wordings[use]) for wordings in chosen for use in ("trained", "held_out")]


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
