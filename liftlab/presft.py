"""Pre-LIFT fine-tuning: a base model is fine-tuned on other documents first, so that it takes lifting better.

Source: 2412.13626. Its loss is the mean over the corpus of L_segments + gamma * L_auxiliary; here a batch's loss is the
mean over its scored tokens, a pair's token weighing gamma, as in a lift.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import safetensors.torch

from liftlab import adapters, lifting, locks, provenance, records
from liftlab.auxiliary.sentences import sentences
from liftlab.documents import Document
from liftlab.examples import Pair, known_pairs
from liftlab.lifting import make_examples
from liftlab.models import BaseModel
from liftlab.recipes import Recipe

ADAPTERS = ("lora", "full")  # those that can become part of the weights
ENDING = ".safetensors"
SHOWN = 120  # characters of a sentence in an error

Pairs = Callable[[Document], Sequence[Pair]]
Taught = Sequence[tuple[Document, list[Pair]]]


class Unseen:
    """The documents that nothing may be learned about before they are lifted: their names and their sentences."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self._names = {document.name for document in documents}
        self._told = {key: document.name for document in documents for key in _sentences(document)}

    def cannot(self, document: Document) -> str:
        """Why `document` must not be trained on, "" if it may be.

        It has a test document's name, or shares a sentence with one: case and white space do not count. Titles are
        headings and may be the same.
        """
        if document.name in self._names:
            return f"document {document.name!r} of the corpus has the name of a test document"
        for key, sentence in _sentences(document).items():
            if key in self._told:
                said = sentence if len(sentence) <= SHOWN else f"{sentence[:SHOWN]}..."
                return (
                    f"document {document.name!r} of the corpus shares the sentence {said!r} with the test document "
                    f"{self._told[key]!r}"
                )
        return ""


def _sentences(document: Document) -> dict[str, str]:
    """Each sentence, single spaces between its words, by itself in lower case."""
    found = [" ".join(document.text[start:end].split()) for start, end in sentences(document.text)]
    return {sentence.casefold(): sentence for sentence in found}


def presft(
    base: BaseModel,
    corpus: Sequence[Document],
    recipe: Recipe,
    tests: Sequence[Document],
    pairs: Pairs = known_pairs,
    *,
    folder: Path | None = None,
    code: str = "",
    progress: bool = True,
) -> BaseModel:
    """A copy of `base` fine-tuned on the segments of `corpus` and on `pairs(document)`; `base` stays bit for bit.

    It is asked and lifted like any base model; provenance, presft says what was trained on. An adapter "lora" is added
    to the weights. `folder`: the weights are kept there for other processes and runs, by the base model, the corpus and
    its pairs, the recipe and `code`, a text that changes where the training program does.

    ValueError for a corpus that shares a sentence or a name with a test document, an empty one, four-bit weights,
    another adapter, and whatever lifting raises.
    """
    _check(base, corpus, recipe, Unseen(tests))
    taught = [(document, list(pairs(document))) for document in corpus]
    told = {
        "base": dict(base.provenance), "corpus_sha256": _corpus_sha256(taught), "documents": len(taught),
        "pairs": sum(len(of) for _, of in taught), "recipe": recipe.as_dict(),
    }  # fmt: skip
    if folder is None:
        return _read(base, *_trained(base, taught, recipe, told, progress))
    key = hashlib.sha256(json.dumps([told, base.window, code], sort_keys=True).encode()).hexdigest()[:16]
    return _kept(base, Path(folder) / f"presft-{key}{ENDING}", lambda: _trained(base, taught, recipe, told, progress))


def _check(base: BaseModel, corpus: Sequence[Document], recipe: Recipe, tests: Unseen) -> None:
    if not corpus:
        raise ValueError("the corpus is empty: give at least one document to fine-tune on")
    if recipe.adapter not in ADAPTERS:
        raise ValueError(
            f"recipe: adapter {recipe.adapter} cannot become part of the base model's weights: "
            f"choose one of {', '.join(ADAPTERS)}"
        )
    if base.provenance.get("quantization"):
        raise ValueError(f"{base.name} is packed in 4 bits, which cannot be fine-tuned: load it with four_bit = false")
    for document in corpus:
        if reason := tests.cannot(document):
            raise ValueError(f"{reason}: leave it out, or its test would be trained on")


def _corpus_sha256(taught: Taught) -> str:
    rows = [[d.name, d.title, d.text, [[pair.question, pair.answer] for pair in of]] for d, of in taught]
    return hashlib.sha256(json.dumps(rows).encode("utf-8")).hexdigest()


def _trained(base: BaseModel, taught: Taught, recipe: Recipe, told: dict, progress: bool) -> tuple[bytes, dict]:
    """The tuned weights as the bytes of a safetensors file, and `told` with the training's steps, tokens and losses."""
    cut, answered = [], []
    for document, pairs in taught:
        segments, examples = make_examples(base, document, recipe, pairs)
        cut += segments
        answered += examples
    adapter, state, history = lifting.train(base, recipe, cut, answered, progress=progress)
    if not history:
        raise ValueError("nothing to train on: the recipe takes no segments and the corpus came with no pairs")
    weights = safetensors.torch.save(adapters.merged(base.model, adapter, state))
    last = history[-1]
    measured = {"steps": last.step, "tokens": last.tokens, "first_loss": history[0].loss, "last_loss": last.loss}
    return weights, {"sha256": hashlib.sha256(weights).hexdigest(), "presft": told | measured}


def _kept(base: BaseModel, file: Path, train: Callable[[], tuple[bytes, dict]]) -> BaseModel:
    """The model of `file`, trained if it is not there whole; what another process trains is waited for."""
    waiting = f"liftlab: waiting for another process to fine-tune {base.name} before the lifts"
    with locks.held(file.with_name(f".{file.name}.lock"), waiting=waiting):
        found = _whole(file)
        if found is None:
            for left in file.parent.glob(f".{file.stem}.*.tmp"):  # of a killed process: the lock is ours
                left.unlink(missing_ok=True)
            found = weights, facts = train()
            records.replace_file(file, weights)
            records.replace_file(file.with_suffix(".json"), provenance.as_json(facts))
    return _read(base, *found)


def _whole(file: Path) -> tuple[bytes, dict] | None:
    """The weights' bytes and what is said of them; None where they are not there, damaged or cut short."""
    try:
        facts = json.loads(file.with_suffix(".json").read_text("utf-8"))
        weights = file.read_bytes()
        if hashlib.sha256(weights).hexdigest() == facts["sha256"] and isinstance(facts["presft"], dict):
            return weights, facts
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pass
    print(f"warning: {file} is damaged, the base model will be fine-tuned again", file=sys.stderr, flush=True)
    return None


def _read(base: BaseModel, weights: bytes, facts: dict) -> BaseModel:
    """A copy of `base` with these weights."""
    model = deepcopy(base.model)
    adapters.load(model, safetensors.torch.load(weights))
    name = f"{base.name} after pre-LIFT fine-tuning"
    own = {"name": name, "revision": None, "weights_sha256": facts["sha256"], "presft": facts["presft"]}
    return replace(base, name=name, model=model, provenance={**base.provenance, **own})
