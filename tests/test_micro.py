"""The bundled model: what the package promises of it, on registers it has never seen."""

from pathlib import Path

import pytest

import liftlab
from liftlab.answering import answer
from liftlab.examples import known_pairs
from liftlab.lifting import lift
from liftlab.models import load
from liftlab.recipes import Recipe
from liftlab.scoring import exact_match
from liftlab.studies.pretrain_micro import held_out
from liftlab.studies.registers import ask_facts, register_of

FOLDER = Path(liftlab.__file__).parent / "micro"


@pytest.fixture(scope="module")
def asked():
    """500 questions about 50 unseen registers that fill the window, other ones than pre-training measured on."""
    documents, questions = held_out(100, 10)
    return documents[50:], questions[50:]


def accuracy(base, asked, context):
    right = [
        exact_match(text or "", q.answer)
        for document, about in zip(*asked, strict=True)
        for text, q in zip(answer(base, document, about, context, answer_tokens=4), about, strict=True)
    ]
    return sum(right) / len(right), len(right)


def test_it_answers_from_a_full_window(asked):
    share, count = accuracy(load("micro"), asked, "full")
    assert count >= 500 and share >= 0.95


def test_without_the_document_it_only_guesses(asked):
    share, count = accuracy(load("micro"), asked, "none")
    chance = sum(q.chance for about in asked[1] for q in about) / count
    assert count >= 500 and share <= chance + 0.03


@pytest.mark.parametrize("recipe", ["micro/lora", "micro/gated_memory", "micro/pissa"])
def test_a_register_of_two_windows_is_answered_closed_book_once_lifted(recipe):
    base = load("micro")
    document = register_of(base, 7, 2, 0.1)
    questions = ask_facts(document, 20, 7)
    with lift(base, document, Recipe.preset(recipe), known_pairs(document), progress=False).on(base) as on:
        said = answer(on, document, questions, "none", answer_tokens=4)
    right = [exact_match(text, q.answer) for text, q in zip(said, questions, strict=True) if q.wording == "held_out"]
    assert len(right) == 20 and sum(right) / len(right) >= 0.8


def test_it_is_an_ordinary_small_model_directory():
    names = {path.name for path in FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "checksums.json"} <= names
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8_000_000
    base = load("micro")
    assert type(base.model).__name__ == "LlamaForCausalLM" and base.window <= 512
    assert base.tokenizer.chat_template
