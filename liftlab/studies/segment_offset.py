"""How far segments overlap, at equal training tokens: the papers take an offset of 3/8 and print no ablation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from liftlab import cells
from liftlab.documents import Document, Question
from liftlab.examples import known_pairs
from liftlab.lifted import Lifted
from liftlab.lifting import lift, make_examples
from liftlab.models import BaseModel
from liftlab.probes.memorization import probe
from liftlab.prompts import style
from liftlab.recipes import Recipe
from liftlab.studies.registers import (
    COMPUTE,
    FIRST_DOCUMENT,
    about,
    ask_facts,
    at_least_one,
    base_model,
    data_files,
    other_document_of,
    paraphrase_of,
    register_of,
)

PROBES = ("liftlab.probes.gates", "liftlab.probes.memorization")
PUBLISHED = 0.375  # offset / segment length of 2502.14644v1-v3; the wrong-document control has it
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
    answer_tokens: int,
    records: str | Path,
) -> pd.DataFrame:
    """Records: what probes.memorization measures, for each of `ratios` (offset / segment length; 1 = no overlap).

    Each lift has two stages, segments alone and then pairs alone, the pairs for the recipe's mixed_epochs. The smallest
    ratio gets `segment_epochs` epochs of segments, each other as many as come nearest to that one's segment tokens:
    within half an epoch of its own, so more than 10 % off only where these are fewer than 6. `trained_tokens`, a column
    and a metric, is what was trained on, pairs included. Equal tokens are equal steps only with step "batch" and many
    batches an epoch. The pairs, which come last, undo some of what the segments stored.

    `place`: cues stand at starts and in middles of the ratio's own segments; for the controls, of those of ratio 3/8:
    "base" (ratio empty) and "other_document", the adapter of another register. A cell of the cache is one document of
    `windows` windows; `questions` facts of it are asked, each in a trained and in a held-out wording. Source: ratio 3/8
    (2048 and 768 tokens) in 2502.14644v1-v3, 1/2 (2048 and 1024) in 2412.13626; neither prints an ablation.
    """
    at_least_one(documents=documents, seeds=seeds, questions=questions, segment_epochs=segment_epochs, cues=cues,
                 answer_tokens=answer_tokens)  # fmt: skip
    if not windows > 0:
        raise ValueError(f"windows = {windows}: a document's length in windows, give a number above 0")
    _check_ratios(_plan(recipe, recipe_changes), ratios)
    fixed = {
        "base": base, "window_tokens": window_tokens, "windows": float(windows), "seeds": seeds,
        "questions": questions, "ratios": [float(ratio) for ratio in ratios], "segment_epochs": segment_epochs,
        "recipe": recipe, "recipe_changes": recipe_changes, "cues": cues, "filler": filler,
        "answer_tokens": answer_tokens,
    }  # fmt: skip
    grid = [{**fixed, "document_seed": seed} for seed in range(FIRST_DOCUMENT, FIRST_DOCUMENT + documents)]
    facts = lambda: {"base_model": base_model(base, window_tokens).provenance}  # noqa: E731
    return cells.run("segment_offset", cell, grid, Path(records), (*COMPUTE, *PROBES, __name__), facts, data_files())


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
    answer_tokens: int,
    document_seed: int,
) -> pd.DataFrame:
    """One document, lifted at every ratio with each seed, and another one at the published ratio."""
    model = base_model(base, window_tokens)
    document = register_of(model, document_seed, windows, filler)
    other = register_of(model, other_document_of(document_seed), windows, filler)
    paraphrase = paraphrase_of(model, document_seed, windows, filler)
    asked = ask_facts(document, questions, document_seed)
    plan = _plan(recipe, recipe_changes)

    def look(on: BaseModel, offset_tokens: int) -> pd.DataFrame:
        return probe(on, document, asked, paraphrase=paraphrase, cues=cues, segment_tokens=plan.segment_tokens,
                     offset_tokens=offset_tokens, answer_tokens=answer_tokens, style=style(plan.style))  # fmt: skip

    nothing = {"seed": 0, "ratio": np.nan, "trained_tokens": np.nan, "adapter": ""}
    frames = [_chance(asked).assign(condition="chance", **nothing)]
    frames.append(look(model, _at(plan, PUBLISHED).offset_tokens).assign(condition="base", **nothing))
    wanted = [("lift", document, ratio) for ratio in ratios] + [("other_document", other, PUBLISHED)]
    for seed in range(seeds):
        for condition, source, ratio in wanted:
            lifted = _lifted(model, source, replace(plan, seed=seed), ratio, min(ratios), segment_epochs)
            with lifted.on(model) as on:
                rows = look(on, lifted.recipe.offset_tokens)
            tokens = float(lifted.history[-1].tokens)
            told = {"condition": condition, "seed": seed, "ratio": ratio, "trained_tokens": tokens,
                    "adapter": plan.adapter}  # fmt: skip
            trained = pd.DataFrame([{"metric": "trained_tokens", "unit": "tokens", "value": tokens}])
            frames += [rows.assign(**told), trained.assign(**told)]
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


def _lifted(
    model: BaseModel, document: Document, plan: Recipe, ratio: float, smallest: float, segment_epochs: int
) -> Lifted:
    """The document lifted at `ratio`, for as many tokens as whole epochs allow of those at the `smallest` ratio."""
    tokens = [
        sum(len(segment.ids) for segment in make_examples(model, document, _at(plan, each), [])[0])
        for each in (smallest, ratio)
    ]
    epochs = max(1, round(segment_epochs * tokens[0] / tokens[1]))
    return lift(model, document, _at(plan, ratio, epochs), known_pairs(document), progress=False)


def _chance(asked: Sequence[Question]) -> pd.DataFrame:
    """A row a question: the probability of a right guess."""
    return pd.DataFrame(
        {"metric": "chance", "unit": "share of questions", "value": float(q.chance), "question": q.text,
         "kind": q.kind, "wording": q.wording, "hops": q.hops}
        for q in asked
    )  # fmt: skip
