"""What does LIFT cost in seconds and memory, against in-context learning, and how near is it to the machine's peak?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from liftlab import cells, machine
from liftlab.lifting import lift
from liftlab.models import BaseModel
from liftlab.recipes import Recipe
from liftlab.studies.efficiency_parts import PARTS, Setting, Task
from liftlab.studies.inputs import MOST_PAIRS
from liftlab.studies.registers import COMPUTE, at_least_one, base_model, data_files, known
from liftlab.studies.timings import token_seconds

MODULES = (  # beside those of every study: a change in any of them makes a record stale
    "streaming", "first_token", "costs", "machine", "studies.inputs", "studies.timings", "studies.efficiency_parts",
    "studies.efficiency",
)  # fmt: skip
UNITS = {
    "seconds": "s",
    "peak_memory": "GiB",
    "tokens_per_second": "tokens/s",
    "share_of_peak": "share of peak_flops",
    "share_of_bandwidth": "share of peak_bandwidth",
    "documents_per_hour": "documents/h",
    "peak_flops": "FLOP/s",
    "peak_bandwidth": "bytes/s",
}
WARM_TOKENS = 1000  # the untimed run before the first timed one reads at most so many, or 2 segments


def run(
    *,
    base: str,
    window_tokens: int,
    recipe: str,
    recipe_changes: dict,
    input_tokens: list[int],
    output_tokens: list[int],
    long_input_tokens: int,
    pairs_per_sentence: int,
    generation_seconds_per_pair: float,
    parts: list[str],
    at_once: list[int],
    repeats: int,
    memory_gib: float,
    records: str | Path,
) -> pd.DataFrame:
    """Records of `parts`, each repeated; the conditions of a part take turns, and begin with another in every repeat.

    A cell of the cache is one length of input (or number of documents at once) of one part in one repeat, all parts in
    the first repeat before any in the second: what a stopped run has measured is kept, for more or fewer lengths too.

    first_token: seconds to the first token at each of `input_tokens`, from a loaded model: icl (prompt with the
    document), lift (all pairs made, then trained, then asked closed book), lift_streamed (trained while they come). The
    pairs are played back: one every `generation_seconds_per_pair` (column pair_seconds), 0 = there at once.
    output_length: seconds until each of `output_tokens` at `long_input_tokens`; an answer is made once, to the longest.
    memory: GiB at the peak of loading, taking in an input and one token (column method says of what).
    throughput, at `long_input_tokens`: tokens a second, and their share of the machine's peak, measured in each repeat:
    prefill, training (as the recipe says), training_segments (segments of the recipe's length alone, not overlapping),
    decode (bytes of weights a token). Operations: see `timings.Operations`.
    documents_at_once: documents lifted an hour, of the shortest of `input_tokens`, one by one or stacked within
    `memory_gib`.
    What cannot be measured has a row with outcome "beyond window" or "out of memory" and value 0. The seconds are this
    machine's, so these records differ from run to run.
    """
    asked = Recipe.preset(recipe, **recipe_changes)
    at_least_one(pairs_per_sentence=pairs_per_sentence, repeats=repeats, long_input_tokens=long_input_tokens)
    known(parts, PARTS, "part")
    for name, values in {"input_tokens": input_tokens, "output_tokens": output_tokens, "at_once": at_once}.items():
        _rising(name, values)
    if "throughput" in parts and output_tokens[-1] < 2:
        raise ValueError(f"output_tokens = {output_tokens}: decoding is timed from the first token on, give 2 or more")
    _check(parts, pairs_per_sentence, generation_seconds_per_pair, memory_gib)
    if "first_token" in parts:
        asked.check_streams()
    common = {"base": base, "window_tokens": window_tokens, "recipe": recipe, "recipe_changes": recipe_changes,
              "pairs_per_sentence": pairs_per_sentence}  # fmt: skip
    every = {
        "input_tokens": input_tokens, "output_tokens": output_tokens, "long_input_tokens": long_input_tokens,
        "generation_seconds_per_pair": float(generation_seconds_per_pair), "at_once": at_once,
        "memory_gib": float(memory_gib),
    }  # fmt: skip
    grid = [{**common, **settings, "part": part, "repeat": repeat}
            for repeat in range(repeats) for part in parts for settings in _places(part, every, repeat)]  # fmt: skip
    facts = lambda: {"base_model": base_model(base, window_tokens).provenance}  # noqa: E731
    files = (*data_files(), Path(__file__).parents[1] / "data" / "architectures.yaml")
    modules = tuple(dict.fromkeys((*COMPUTE, *(f"liftlab.{name}" for name in MODULES))))
    return cells.run("efficiency", cell, grid, Path(records), modules, facts, files, alone=True)


def _places(part: str, every: dict, repeat: int) -> list[dict]:
    """The settings of a part's cells: one for each value of the list that it goes through, another first each time."""
    _, names, through = PARTS[part]
    settings = {name: every[name] for name in names}
    if part == "documents_at_once":
        settings["input_tokens"] = every["input_tokens"][:1]
    if not through:
        return [settings]
    values = every[through]
    first = repeat % len(values)
    return [{**settings, through: [value]} for value in (*values[first:], *values[:first])]


def _rising(name: str, values: Sequence[int]) -> None:
    if not values or values[0] < 1 or any(b <= a for a, b in zip(values, values[1:], strict=False)):
        raise ValueError(f"{name} = {values}: give whole numbers from 1 on, each once, in rising order")


def _check(parts: Sequence[str], pairs_per_sentence: int, pair_seconds: float, memory_gib: float) -> None:
    if not parts or len(set(parts)) < len(parts):
        raise ValueError(f"parts = {parts}: name at least one of {', '.join(PARTS)}, each once")
    if pairs_per_sentence > MOST_PAIRS:
        raise ValueError(
            f"pairs_per_sentence = {pairs_per_sentence}: a sentence has {MOST_PAIRS} pairs, give at most that"
        )
    if not 0 <= pair_seconds < float("inf"):
        raise ValueError(f"generation_seconds_per_pair = {pair_seconds}: give seconds, 0 for pairs that are there")
    if not 0 < memory_gib < float("inf"):
        raise ValueError(f"memory_gib = {memory_gib}: give the memory for training in GiB, above 0")


def cell(
    base: str,
    window_tokens: int,
    recipe: str,
    recipe_changes: dict,
    pairs_per_sentence: int,
    part: str,
    repeat: int,
    **lengths,
) -> pd.DataFrame:
    """One repeat of one part; `lengths`: the settings that only this part has."""
    model, asked = base_model(base, window_tokens), Recipe.preset(recipe, **recipe_changes)
    setting = Setting(model, base, window_tokens, asked, pairs_per_sentence, repeat)
    tasks = PARTS[part][0](setting, **lengths)
    if part != "memory":
        _warm(setting, min(task.row["input_tokens"] for task in tasks))
    first = repeat % len(tasks)
    rows = [row for task in (*tasks[first:], *tasks[:first]) for row in _measured(task, model)]
    units = [UNITS[row["metric"]] for row in rows]
    return pd.DataFrame(rows).assign(unit=units, device=machine.device_words(model.model.device))


_warmed: set[tuple] = set()


def _warm(setting: Setting, shortest: int) -> None:
    """A lift and a prompt that nobody times, once a process: what the first run prepares is no part of its cost."""
    key = setting.base, setting.window_tokens, setting.recipe
    if key in _warmed:
        return
    base = setting.model
    given = setting.input(min(shortest, max(WARM_TOKENS, 2 * setting.recipe.segment_tokens)))
    token_seconds(base, given.prompt(base, setting.form, with_document=True)[1 - base.window :], 1)
    lift(base, given.document, setting.recipe, given.pairs, progress=False)
    _warmed.add(key)


def _measured(task: Task, base: BaseModel) -> list[dict]:
    """The task's records, or those that say why there are none."""
    if task.beyond:
        return task.failed("beyond window")
    machine.free(base.model.device)
    try:
        with machine.memory_errors():
            return [task.row | row for row in task.measure()]
    except machine.OutOfMemory:
        return task.failed("out of memory")
