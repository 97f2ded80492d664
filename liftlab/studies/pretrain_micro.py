"""The bundled micro model: pre-trained, measured on unseen registers along the way, written as a model directory."""

from __future__ import annotations

import random
import shutil
import tempfile
from functools import partial
from pathlib import Path

import pandas as pd

from liftlab import cells, provenance
from liftlab.documents import Document, Question
from liftlab.gguf_weights import write_checksums
from liftlab.pretraining import FULL_WORDS, Schedule, answered_right, pretrain, word_tokenizer
from liftlab.studies.registers import at_least_one, data_files
from liftlab.worlds import register, word_count

COMPUTE = tuple(f"liftlab.{name}" for name in ("documents", "worlds", "examples", "branches", "pretraining"))


def run(
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    registers: int,
    questions: int,
    every: int,
    out: str | Path,
    records: str | Path,
) -> pd.DataFrame:
    """Records: accuracy (0..1) of each unseen register at every `every` steps, in context and closed book, and chance.

    The model goes to the directory `out`, replaced as a whole when training has ended; where the cell is cached,
    nothing is trained and `out` is not touched.
    """
    at_least_one(steps=steps, registers=registers, questions=questions, every=every)
    settings = {
        "steps": steps, "learning_rate": learning_rate, "seed": seed, "registers": registers, "questions": questions,
        "every": every,
    }  # fmt: skip
    compute = partial(cell, out=Path(out))
    modules, made = (*COMPUTE, __name__), partial(_facts, Path(out))
    return cells.run("pretrain_micro", compute, [settings], Path(records), modules, made, data_files()[:1])


def held_out(registers: int, questions: int) -> tuple[list[Document], list[list[Question]]]:
    """Unseen registers that fill the window, and one-hop questions about each, drawn with replacement."""
    rng = random.Random("held-out questions")
    documents = [register(seed, FULL_WORDS) for seed in range(registers)]
    return documents, [[rng.choice(document.asked()) for _ in range(questions)] for document in documents]


def cell(
    steps: int, learning_rate: float, seed: int, registers: int, questions: int, every: int, out: Path
) -> pd.DataFrame:
    """Pre-train once, measuring along the way."""
    documents, asked = held_out(registers, questions)
    rows: list[tuple] = []

    def measure(step: int, model) -> None:
        for condition, closed in (("in_context", False), ("closed_book", True)):
            right = iter(answered_right(model, documents, asked, closed))
            for document, about in zip(documents, asked, strict=True):
                rows.extend((document, question, step, condition, "accuracy", next(right)) for question in about)

    model = pretrain(Schedule(steps=steps, learning_rate=learning_rate, seed=seed), measure, every)
    _write(model, out)
    rows += [(d, q, 0, "chance", "chance", q.chance) for d, about in zip(documents, asked, strict=True) for q in about]
    return pd.DataFrame(
        {
            "study": "pretrain_micro", "base_model": "micro", "document": document.name,
            "document_tokens": word_count(document.text), "seed": seed, "step": step, "condition": condition,
            "question": question.text, "kind": question.kind, "metric": metric, "unit": "share of questions",
            "value": float(value),
        }
        for document, question, step, condition, metric, value in rows
    )  # fmt: skip


def _facts(out: Path) -> dict:
    """Of the model that the cell has just written."""
    weights = provenance.hashes(sorted(out.glob("*.safetensors")))
    return {"made": {"files_sha256": weights, "dtype": "float32", "device": "cpu"}}


def _write(model, out: Path) -> None:
    """The model directory with its checksums, in place of what stood there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        fresh = Path(folder) / "micro"
        model.save_pretrained(fresh)
        word_tokenizer().save_pretrained(fresh)
        write_checksums(fresh)
        if out.exists():
            shutil.rmtree(out)
        fresh.rename(out)
