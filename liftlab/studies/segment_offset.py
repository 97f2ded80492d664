"""How far segments overlap, at equal training tokens: the papers take an offset of 3/8 and print no ablation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from liftlab.documents import Document
from liftlab.examples import known_pairs
from liftlab.lifting import make_examples
from liftlab.models import BaseModel
from liftlab.probes.answers import chances
from liftlab.probes.memorization import probe
from liftlab.prompts import style
from liftlab.recipes import Recipe
from liftlab.scoring import SCORES
from liftlab.stacked import Job
from liftlab.studies.registers import (
    about,
    ask_facts,
    at_least_one,
    base_model,
    known,
    other_document_of,
    over_registers,
    paraphrase_of,
    register_of,
    shuffled,
)
from liftlab.studies.together import Cell, scored

PROBES = ("answers", "gates", "memorization")
PUBLISHED = 0.375  # offset / segment length of 2502.14644v1-v3; the base model is cued at its segments
VARIED = ("offset_tokens", "segment_epochs", "segments_in_mixed", "seed")  # recipe fields that this study sets


def run(
    *,
    base: str,
    window_tokens: int,
    windows: float,
    documents: int,
    seeds: int,
    questions: int,
    ratios: Sequence[float],
    segment_epochs: int,
    recipe: str,
    recipe_changes: dict,
    cues: int,
    filler: float,
    english: str = "plain",
    answer_tokens: int,
    score: str,
    records: str | Path,
) -> pd.DataFrame:
    """Records: what probes.memorization measures, for each of `ratios` (offset / segment length; 1 = no overlap).

    Each lift has two stages, segments alone and then pairs alone, the pairs for the recipe's mixed_epochs. The smallest
    ratio gets `segment_epochs` epochs of segments, each other as many as come nearest to that one's segment tokens:
    within half an epoch of its own, so more than 10 % off only where these are fewer than 6. `trained_tokens`, a column
    and a metric, is what was trained on, pairs included. Equal tokens are equal steps only with step "batch" and many
    batches an epoch. The pairs, which come last, undo some of what the segments stored.

    `place`: cues stand at starts and in middles of the ratio's own segments; for the control "base" (ratio empty), of
    those of ratio 3/8. The other controls, closed book: "other_document", each adapter asked about another register,
    and "shuffled_answers", its answers scored against those of other facts. A cell of the cache is one document of
    `windows` windows; `questions` facts of it are asked, each in a trained and in a held-out wording. Source: ratio 3/8
    (2048 and 768 tokens) in 2502.14644v1-v3, 1/2 (2048 and 1024) in 2412.13626; neither prints an ablation.
    """
    at_least_one(documents=documents, seeds=seeds, questions=questions, segment_epochs=segment_epochs, cues=cues,
                 answer_tokens=answer_tokens)  # fmt: skip
    if not windows > 0:
        raise ValueError(f"windows = {windows}: a document's length in windows, give a number above 0")
    known([score], tuple(SCORES), "score")
    plan = _plan(recipe, recipe_changes)
    _check_ratios(plan, ratios)
    settings = {
        "base": base, "window_tokens": window_tokens, "seeds": seeds,
        "questions": questions, "ratios": [float(ratio) for ratio in ratios], "segment_epochs": segment_epochs,
        "recipe": recipe, "recipe_changes": recipe_changes, "cues": cues, "filler": filler, "english": english,
        "answer_tokens": answer_tokens, "score": score,
    }  # fmt: skip
    return over_registers(cell, settings, documents, [windows], records, recipes=[plan], probes=PROBES)


def cell(
    base: str,
    window_tokens: int,
    windows: float,
    seeds: int,
    questions: int,
    ratios: Sequence[float],
    segment_epochs: int,
    recipe: str,
    recipe_changes: dict,
    cues: int,
    filler: float,
    english: str,
    answer_tokens: int,
    score: str,
    document_seed: int,
) -> Cell:
    """One document, lifted at every ratio with each seed."""
    model = base_model(base, window_tokens)
    document, other = (
        register_of(model, seed, windows, filler, english) for seed in (document_seed, other_document_of(document_seed))
    )
    asked = ask_facts(document, questions, document_seed)
    controls = {
        "other_document": (other, ask_facts(other, questions, other_document_of(document_seed))),
        "shuffled_answers": (document, shuffled(document, asked)),
    }
    paraphrase = paraphrase_of(model, document_seed, windows, filler, english)
    plan = _plan(recipe, recipe_changes)
    prompt = {"answer_tokens": answer_tokens, "style": style(plan.style), "score": score}
    cut = {"cues": cues, "segment_tokens": plan.segment_tokens}

    def look(on: BaseModel, offset_tokens: int, **told) -> pd.DataFrame:
        rows = probe(on, document, asked, paraphrase=paraphrase, offset_tokens=offset_tokens, **cut, **prompt)
        return rows.assign(**told)

    nothing = {"seed": 0, "ratio": np.nan, "trained_tokens": np.nan, "adapter": ""}
    frames = [chances(document, asked).assign(condition="chance", **nothing)]
    frames.append(look(model, _at(plan, PUBLISHED).offset_tokens, condition="base", **nothing))
    for seed, ratio in product(range(seeds), ratios):
        lifted = yield _job(model, document, replace(plan, seed=seed), ratio, min(ratios), segment_epochs)
        tokens = float(lifted.history[-1].tokens)
        told = {"seed": seed, "ratio": ratio, "trained_tokens": tokens, "adapter": plan.adapter}
        trained = pd.DataFrame([{"metric": "trained_tokens", "unit": "tokens", "value": tokens}])
        frames.append(trained.assign(condition="lift", **told))
        with lifted.on(model) as on:
            frames.append(look(on, lifted.recipe.offset_tokens, condition="lift", **told))
        for condition, of in controls.items():
            rows = yield from scored(model, lifted, *of, "none", **prompt)
            frames.append(rows.assign(condition=condition, **told))
    return pd.concat(frames, ignore_index=True).assign(**about("segment_offset", base, model, document))


def _plan(recipe: str, changes: dict) -> Recipe:
    """The recipe in two stages; its offset and segment epochs are set by `_at`."""
    for name in VARIED:
        if name in changes:
            raise ValueError(f"recipe_changes sets {name}, which this study sets itself: leave it out")
    return Recipe.preset(recipe, **changes, offset_tokens=1, segment_epochs=1, segments_in_mixed=False)


def _at(plan: Recipe, ratio: float, segment_epochs: int = 1) -> Recipe:
    """`plan` with segments that start every `ratio` of their length."""
    return replace(plan, offset_tokens=round(ratio * plan.segment_tokens), segment_epochs=segment_epochs)


def _check_ratios(plan: Recipe, ratios: Sequence[float]) -> None:
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise ValueError(f"ratios: {ratio}: an offset lies above 0 and is at most 1 segment length")
    offsets = [_at(plan, ratio).offset_tokens for ratio in (*ratios, PUBLISHED)][:-1]
    if not offsets or len(set(offsets)) < len(offsets):
        raise ValueError(
            f"ratios = {list(ratios)} are offsets of {offsets} tokens in segments of {plan.segment_tokens}: "
            "give at least one ratio, and none whose offset another has"
        )


def _job(model: BaseModel, document: Document, plan: Recipe, ratio: float, smallest: float, segment_epochs: int) -> Job:
    """The lift at `ratio`, for as many tokens as whole epochs allow of those at the `smallest` ratio."""
    tokens = [
        sum(len(segment.ids) for segment in make_examples(model, document, _at(plan, each), [])[0])
        for each in (smallest, ratio)
    ]
    epochs = max(1, round(segment_epochs * tokens[0] / tokens[1]))
    return Job(document, _at(plan, ratio, epochs), known_pairs(document))
