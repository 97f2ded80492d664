"""What an evaluation would take, told without running it: documents, training, prompts, requests, and their cost.

Exact where the documents can be read and the tokenizer is known; else from sizes (paper/benchmarks.yaml, or the
settings). Nothing is trained, generated or written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from liftlab import costs
from liftlab.judge import DIMENSIONS
from liftlab.models import Configuration
from liftlab.studies import evaluation, tuning
from liftlab.studies.document_sizes import absent, documents, known
from liftlab.studies.run_counts import Counts

BYTES = {"torch.float32": 4, "torch.float16": 2, "torch.bfloat16": 2}  # a weight on disk
COLUMNS = (
    "documents", "questions", "lifts", "steps", "train_tokens", "pairs", "requests", "request_tokens", "reply_tokens",
    "prompt_tokens", "answer_tokens", "operations", "gpu_hours",
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """`table`: a row a condition, and "total"; a lift that conditions share stands in the first one's row.

    The fine-tuning before the lifts has a row of its own. `lines` say what was counted and assumed, `problems` what
    would stop the run. `weights`: bytes on disk by base.
    """

    table: pd.DataFrame
    lines: tuple[str, ...]
    problems: tuple[str, ...]
    weights: dict[str, float]
    disk: float  # bytes, without the weights

    @property
    def gpu_hours(self) -> float:
        return float(self.table["gpu_hours"].iloc[-1])

    @property
    def text(self) -> str:
        shown = {name: "{:,.0f}".format for name in COLUMNS} | {"operations": "{:.2e}".format,
                                                                "gpu_hours": "{:.3g}".format}  # fmt: skip
        weights = sum(self.weights.values())
        disk = f"  disk: {weights / 1e9:.2f} GB of weights, {self.disk / 1e6:.1f} MB of records and replies"
        problems = [f"  ! the run would stop: {problem}" for problem in self.problems]
        return "\n".join(
            [self.table.to_string(formatters=shown), *(f"  {line}" for line in self.lines), disk, *problems]
        )


def of(parameters: dict[str, Any]) -> Estimate:
    """The estimate of an evaluation's notebook with `parameters`. ValueError or FileNotFoundError as the run itself.

    A needle's folder may be missing: its counts come from the settings.
    """
    settings = {name: value for name, value in parameters.items() if name != "profile"}
    return _joined([_of(part) for part in evaluation.split(settings)])


def _of(settings: dict[str, Any]) -> Estimate:
    given = settings["benchmark"]
    plans = evaluation.checked(**settings | ({"benchmark": {**given, "path": ""}} if absent(given) else {}))
    base, (sized, told) = known(settings["base"], settings["window_tokens"]), documents(settings)
    return _estimate(Counts(settings, base, plans, sized), told)


def _joined(parts: Sequence[Estimate]) -> Estimate:
    """The estimates of a benchmark's tasks, which have the same conditions, as one."""
    lines, problems = (
        tuple(dict.fromkeys(said for part in parts for said in getattr(part, what))) for what in ("lines", "problems")
    )
    weights = {name: size for part in parts for name, size in part.weights.items()}
    return Estimate(sum(part.table for part in parts), lines, problems, weights, sum(part.disk for part in parts))


def configured(parameters: dict[str, Any]) -> str:
    """What can be said of a notebook that is no evaluation."""
    if "base" not in parameters:
        return "the parameters alone were checked"
    base = known(parameters["base"], parameters.get("window_tokens", 0))
    return f"{_model(base)}; parameters and configuration alone were checked"


def total(estimates: Sequence[Estimate]) -> str:
    """One line for several notebooks; the weights of each base model once."""
    weights = {name: size for estimate in estimates for name, size in estimate.weights.items()}
    disk = sum(weights.values()) + sum(estimate.disk for estimate in estimates)
    spent = sum(estimate.gpu_hours for estimate in estimates)
    return (
        f"total of {len(estimates)} notebooks, an estimate: {spent:.3g} GPU hours, {disk / 1e9:.2f} GB on disk "
        "(pairs that several notebooks generate alike are made once, but are counted in each)"
    )


def _model(known: Configuration) -> str:
    where = known.source + (f" ({known.reason})" if known.reason else "")
    return f"{known.name}: {known.parameters:,} parameters, window {known.window}, configuration: {where}"


def _besides(settings: dict, counts: Counts, answers: float) -> list[str]:
    """What GPU hours do not tell: what is asked of other machines, and the memory that full fine-tuning takes."""
    places = {(of["generator"], of["endpoint"]) for plan in counts.plans.values() if plan.recipe
              for of in [dict(plan.auxiliary)] if of["endpoint"] and of["count"]}  # fmt: skip
    said = [f"pairs by {model} at {url}: its own GPU hours are not counted" for model, url in sorted(places)]
    if settings["judge"]:
        requests = answers * sum(len(DIMENSIONS) if score == "longreward" else score == "judge"
                                 for score in settings["scores"])  # fmt: skip
        name = settings["judge"]["model"]
        said.append(f"{requests:,.0f} requests to the judge {name}: its GPU hours are not counted")
    recipes = [plan.recipe_for(0) for plan in counts.plans.values() if plan.recipe]
    if settings.get("presft"):
        recipes.append(tuning.chosen(settings["presft"], settings["style"]).recipe)
    if any(recipe.adapter == "full" for recipe in recipes):
        said.append(f"full fine-tuning: {costs.full_bytes(counts.size) / 1e9:.1f} GB on the GPU before activations")
    return said


def _estimate(counts: Counts, told: str) -> Estimate:
    known, settings = counts.known, counts.settings
    for row in counts.rows.values():
        row["gpu_hours"] = costs.hours(counts.size, row["operations"], row["decoded"], settings["four_bit"])
    table = pd.DataFrame([{name: row[name] for name in COLUMNS} for row in counts.rows.values()], index=[*counts.rows])
    table.loc["total"] = table.sum()
    whole = table.loc["total"]
    table.loc["total", ["documents", "questions"]] = table[["documents", "questions"]].iloc[0]
    answers = whole["answer_tokens"] / settings["answer_tokens"]
    disk = costs.record_bytes(answers * len(settings["scores"]), settings["answer_tokens"])
    disk += costs.reply_bytes(whole["requests"], whole["reply_tokens"])
    weights = known.parameters * BYTES.get(str(known.config.dtype), 2)
    lines = [f"base {_model(known)}", f"documents: {told}", "an estimate, not a measurement, under what is assumed:",
             costs.ASSUMED_LENGTHS, costs.ASSUMED,
             *_besides(settings, counts, answers)]  # fmt: skip
    return Estimate(table, tuple(lines), tuple(counts.problems), {known.name: weights}, disk)
