"""The parts of the study `efficiency`: which conditions are measured where, and how each is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from time import perf_counter

from liftlab import first_token, machine, stacked
from liftlab.examples import document_ids
from liftlab.lifted import Lifted
from liftlab.lifting import lift
from liftlab.models import BaseModel
from liftlab.prompts import PromptStyle, style
from liftlab.recipes import Recipe
from liftlab.studies.inputs import Input, input_of, paced
from liftlab.studies.registers import about
from liftlab.studies.timings import decoded_bytes, occupy, operations, token_seconds, trained_operations

STREAMED = "lift_streamed"
MOST_DECODED = 256  # tokens over which the rate of decoding is taken
SEGMENT_EPOCHS = 4  # of training at long sequences: the first step also makes room for what all steps need
Rows = Iterable[dict]  # what of each record a measurement adds: value, and what differs from the task's row


@dataclass(frozen=True)
class Task:
    """One condition at one place. `row` is what is known of its records beforehand, `measure` gives what is not.

    `beyond`: prompt and answer do not fit the window, so there is nothing to measure. `places` are what tells its
    records apart where one run measures several.
    """

    row: dict
    measure: Callable[[], Rows]
    beyond: bool = False
    places: Sequence[dict] = ({},)

    def failed(self, outcome: str) -> list[dict]:
        """Records of why there is no value: they hold 0."""
        return [self.row | place | {"value": 0.0, "outcome": outcome} for place in self.places]


@dataclass(frozen=True)
class Setting:
    """What all parts share: the base model, its name and window, the recipe, pairs a sentence, the repeat's number."""

    model: BaseModel
    base: str
    window_tokens: int
    recipe: Recipe
    pairs_per_sentence: int
    repeat: int

    @property
    def form(self) -> PromptStyle:
        return style(self.recipe.style)

    def input(self, tokens: int, number: int = 0) -> Input:
        return input_of(self.model, tokens, self.form, self.pairs_per_sentence, number)

    def row(self, part: str, condition: str, given: Input, tokens: int, **more) -> dict:
        """Columns of a task's records; `tokens` of input as asked for (document_tokens: as they are)."""
        pairs = 0 if condition in ("icl", "machine") else len(given.pairs)
        return {
            **about("efficiency", self.base, self.model, given.document), "seed": self.recipe.seed, "part": part,
            "condition": condition, "component": "whole", "input_tokens": tokens, "output_tokens": 1, "documents": 1,
            "repeat": self.repeat, "pairs": pairs, "pair_seconds": 0.0, "method": "", "outcome": "measured",
            "metric": "seconds", **more,
        }  # fmt: skip

    def prompt(self, given: Input) -> list[int]:
        """The question with the whole document."""
        return given.prompt(self.model, self.form, with_document=True)

    def fits(self, given: Input, outputs: int) -> bool:
        return len(self.prompt(given)) + outputs <= self.model.window


def first_token_part(setting: Setting, input_tokens: list[int], generation_seconds_per_pair: float) -> list[Task]:
    tasks = []
    for tokens in input_tokens:
        given = setting.input(tokens)
        row = partial(setting.row, "first_token", given=given, tokens=tokens)
        tasks.append(Task(row("icl"), partial(_prefill, setting, given), not setting.fits(given, 1)))
        for condition in ("lift", STREAMED):
            how = {"pair_seconds": generation_seconds_per_pair, "streaming": condition == STREAMED}
            paid = row(condition, pair_seconds=generation_seconds_per_pair)
            tasks.append(Task(paid, partial(_lift_first_token, setting, given, **how)))
    return tasks


def _prefill(setting: Setting, given: Input) -> Rows:
    """From the text of the prompt to the token."""
    began = perf_counter()
    token_seconds(setting.model, setting.prompt(given), 1)
    seconds = perf_counter() - began
    return [{"component": component, "value": seconds} for component in ("prefill", "whole")]


def _lift_first_token(setting: Setting, given: Input, pair_seconds: float, streaming: bool) -> Rows:
    """The parts from the loaded model to the token; `whole` does not count generation that training hides."""
    seconds = first_token.measure(
        lambda: setting.model, given.document, setting.recipe, lambda *_: paced(given.pairs, pair_seconds),
        given.question, streaming=streaming, answer_tokens=1,
    )[2]  # fmt: skip
    parts = ("generation", "waiting", "training", "decode")
    each = [{"component": part, "value": getattr(seconds, f"{part}_seconds")} for part in parts]
    return [*each, {"component": "whole", "value": seconds.whole}]


def output_length_part(
    setting: Setting, long_input_tokens: int, output_tokens: list[int], generation_seconds_per_pair: float
) -> list[Task]:
    given = setting.input(long_input_tokens)
    row = partial(setting.row, "output_length", given=given, tokens=long_input_tokens)
    closed = len(given.prompt(setting.model, setting.form, with_document=False))
    tasks = []
    for condition, prompt, seconds in (
        ("icl", len(setting.prompt(given)), 0.0),
        ("lift", closed, generation_seconds_per_pair),
    ):
        fitting = [count for count in output_tokens if prompt + count <= setting.model.window]
        known = row(condition, pair_seconds=seconds)
        for count in output_tokens[len(fitting) :]:
            tasks.append(Task(known | {"output_tokens": count}, tuple, beyond=True))
        if fitting:
            places = [{"output_tokens": count} for count in fitting]
            tasks.append(Task(known, partial(_answer, setting, given, condition, fitting, seconds), places=places))
    return tasks


def _answer(setting: Setting, given: Input, condition: str, outputs: list[int], pair_seconds: float) -> Rows:
    """Seconds until each number of tokens was there: one answer to the longest, a lift's making and training before."""
    began = perf_counter()
    if condition == "icl":
        prompt, before = setting.prompt(given), perf_counter() - began
        seconds = token_seconds(setting.model, prompt, outputs[-1])
    else:
        pairs = list(paced(given.pairs, pair_seconds))
        with lift(setting.model, given.document, setting.recipe, pairs, progress=False).on(setting.model) as on:
            prompt, before = given.prompt(on, setting.form, with_document=False), perf_counter() - began
            seconds = token_seconds(on, prompt, outputs[-1])
    return [{"output_tokens": count, "value": before + seconds[count - 1]} for count in outputs]


def memory_part(setting: Setting, input_tokens: list[int]) -> list[Task]:
    tasks = []
    for tokens in input_tokens:
        given = setting.input(tokens)
        for condition in ("icl", "lift"):
            row = setting.row("memory", condition, given, tokens, metric="peak_memory")
            beyond = condition == "icl" and not setting.fits(given, 1)
            tasks.append(Task(row, partial(_memory, setting, condition, tokens), beyond))
    return tasks


def _memory(setting: Setting, condition: str, tokens: int) -> Rows:
    how = (condition, setting.base, setting.window_tokens, setting.recipe, setting.pairs_per_sentence, tokens)
    taken = machine.peak_memory(setting.model.model.device, occupy, *how)
    return [{"value": taken.bytes / 2**30, "method": taken.method}]


def throughput_part(setting: Setting, long_input_tokens: int, output_tokens: list[int]) -> list[Task]:
    given = setting.input(long_input_tokens)
    peak = cache(lambda: machine.peak(setting.model.model.device, setting.model.model.dtype))  # once a repeat
    row = partial(setting.row, "throughput", given=given, tokens=long_input_tokens, metric="tokens_per_second")
    outputs = min(output_tokens[-1], MOST_DECODED)
    return [
        Task(row("machine", output_tokens=0), lambda: _peaks(peak())),
        Task(
            row("icl", component="prefill"), lambda: _reading_rate(setting, given, peak()), not setting.fits(given, 1)
        ),
        Task(row("lift", component="training", output_tokens=0), lambda: _lift_rates(setting, given, outputs, peak())),
        Task(
            row("lift", component="training_segments", output_tokens=0), lambda: _segment_rate(setting, given, peak())
        ),
    ]


def _peaks(peak: machine.Peak) -> Rows:
    for component in ("flops", "bandwidth"):
        yield {"component": component, "metric": f"peak_{component}", "value": getattr(peak, component)}


def _reading_rate(setting: Setting, given: Input, peak: machine.Peak) -> Rows:
    tokens, seconds = len(setting.prompt(given)), token_seconds(setting.model, setting.prompt(given), 1)[0]
    done = operations(setting.model, setting.recipe, 0).forward(tokens, tokens**2, 1)
    return _rates(tokens / seconds, "share_of_peak", done / seconds / peak.flops)


def _lift_rates(setting: Setting, given: Input, outputs: int, peak: machine.Peak) -> Rows:
    lifted, rates = _training_rate(setting, given, setting.recipe, peak)
    yield from rates
    adapter = sum(weight.nbytes for weight in lifted.state.values()) if lifted.adapter else 0
    with lifted.on(setting.model) as on:
        prompt = given.prompt(on, setting.form, with_document=False)
        count = min(outputs, on.window - len(prompt))
        seconds = token_seconds(on, prompt, count)
    rate = (count - 1) / (seconds[-1] - seconds[0])
    share = rate * decoded_bytes(setting.model, adapter) / peak.bandwidth
    for one in _rates(rate, "share_of_bandwidth", share):
        yield one | {"component": "decode", "output_tokens": count}


def _segment_rate(setting: Setting, given: Input, peak: machine.Peak) -> Rows:
    """Training at long sequences: the document's segments alone, which do not overlap."""
    longest = min(setting.recipe.segment_tokens, setting.model.window)
    segment = min(longest, len(document_ids(setting.model.tokenizer, given.document)))
    changes = {"segment_tokens": segment, "offset_tokens": segment, "segment_epochs": SEGMENT_EPOCHS, "mixed_epochs": 0}
    alone = replace(setting.recipe, contextualized=False, segment_by_segment=False, **changes)
    return _training_rate(setting, given, alone, peak)[1]


def _training_rate(setting: Setting, given: Input, recipe: Recipe, peak: machine.Peak) -> tuple[Lifted, Rows]:
    counts: list[int] = []

    def count(step: int, on: BaseModel) -> None:
        counts.append(sum(weight.numel() for weight in on.model.parameters() if weight.requires_grad))

    how = {"watch": count, "every": sys.maxsize, "progress": False}  # before the first step alone
    lifted = lift(setting.model, given.document, recipe, given.pairs, **how)
    tokens, done = trained_operations(setting.model, given, recipe, counts[0])
    seconds = lifted.history[-1].seconds
    return lifted, _rates(tokens / seconds, "share_of_peak", done / seconds / peak.flops)


def _rates(tokens_per_second: float, metric: str, share: float) -> Iterator[dict]:
    yield {"metric": "tokens_per_second", "value": tokens_per_second}
    yield {"metric": metric, "value": share}


def documents_at_once_part(
    setting: Setting, input_tokens: list[int], at_once: list[int], memory_gib: float
) -> list[Task]:
    tokens = input_tokens[0]
    inputs = [setting.input(tokens, number) for number in range(at_once[-1])]
    row = partial(setting.row, "documents_at_once", "lift", inputs[0], tokens, metric="documents_per_hour")
    return [
        Task(row(documents=count, output_tokens=0), partial(_documents, setting, inputs[:count], memory_gib))
        for count in at_once
    ]


def _documents(setting: Setting, inputs: Sequence[Input], memory_gib: float) -> Rows:
    began = perf_counter()
    if len(inputs) == 1:
        lift(setting.model, inputs[0].document, setting.recipe, inputs[0].pairs, progress=False)
    else:
        jobs = [stacked.Job(given.document, setting.recipe, given.pairs) for given in inputs]
        stacked.lift(setting.model, jobs, memory_gib=memory_gib, progress=False)
    return [{"value": 3600 * len(inputs) / (perf_counter() - began)}]


PARTS = {  # part: its tasks, the settings that it alone needs, and the list among them of which each value is a cell
    "first_token": (first_token_part, ("input_tokens", "generation_seconds_per_pair"), "input_tokens"),
    "output_length": (output_length_part, ("long_input_tokens", "output_tokens", "generation_seconds_per_pair"), ""),
    "memory": (memory_part, ("input_tokens",), "input_tokens"),
    "throughput": (throughput_part, ("long_input_tokens", "output_tokens"), ""),
    "documents_at_once": (documents_at_once_part, ("input_tokens", "at_once", "memory_gib"), "at_once"),
}
