"""How many documents are lifted an hour: by the authors' loop, one by one, and many at once, in one interleaved run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from liftlab import adapters, models, provenance, records, reference
from liftlab.examples import document_ids, known_pairs
from liftlab.lifted import Step
from liftlab.machine import device_words
from liftlab.models import BaseModel
from liftlab.recipes import Recipe
from liftlab.stacked_layers import trains
from liftlab.studies.registers import FIRST_DOCUMENT, QUESTION_TOKENS, at_least_one, register_of
from liftlab.studies.ways import Load, Outcome, Way, Work, check_same_work, lift_all, reloading

V4 = "2502.14644v4/lora/quality"  # in paper/recipes.yaml
V4_FIELDS = (
    "segment_epochs", "segments_in_mixed", "first_epoch_in_order", "pair_context", "step", "batch_examples",
    "batch_tokens",
)  # fmt: skip
FILLER = 0.1  # probability of an idle sentence before a fact
UNITS = {
    "training_seconds": "s",
    "load_seconds": "s",
    "documents_per_hour": "documents/h",
    "documents_per_hour_without_load": "documents/h",
    "steps": "steps",
    "tokens": "tokens",
    "tokens_per_second": "tokens/s",
    "last_epoch_loss": "nats a token",
    "loss_difference": "relative difference",
    "peak_memory": "GiB",
}


@dataclass(frozen=True)
class Comparison:
    """What is compared, checked before a base model is loaded: ValueError says what to change.

    A document has `windows` windows of tokens or, where `tokens` is not 0, that many; of its pairs the first `pairs`
    are trained on (0: all). The fast loop is always measured; the sizes above 1 in `at_once` are stacked, within
    `memory_gib`, and with `processes` also divided among as many processes as there are cores. The authors' loop lifts
    the first `reference_documents` (0: it is left out).
    """

    base: str
    recipe: Recipe
    documents: int
    windows: float
    tokens: int
    pairs: int
    rounds: int
    at_once: tuple[int, ...]
    reference_documents: int
    memory_gib: float
    processes: bool = False

    def __post_init__(self) -> None:
        at_least_one(documents=self.documents, rounds=self.rounds)
        for name in ("windows", "memory_gib"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)}: must be a number above 0")
        for name in ("tokens", "pairs", "reference_documents"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 0")
        self._check_sizes()
        if max(self.at_once, default=1) > 1 and not trains(adapters.config(self.recipe)):
            raise ValueError(
                f"recipe: adapter = {self.recipe.adapter!r} is lifted one document at a time: leave out the sizes "
                "above 1, or choose another adapter"
            )
        if self.processes and torch.cuda.is_available():
            raise ValueError("processes: a GPU is shared by all documents of one process, leave this out")
        if self.reference_documents:
            reference.check(self.recipe, ())

    def _check_sizes(self) -> None:
        for size in self.at_once:
            if not 1 <= size <= self.documents:
                raise ValueError(
                    f"{size} at once of {self.documents} documents: give sizes from 1 to {self.documents}, or more "
                    "documents"
                )
            if self.at_once.count(size) > 1:
                raise ValueError(f"{size} at once is asked for twice: give each size once")
        if self.reference_documents > self.documents:
            raise ValueError(
                f"reference_documents = {self.reference_documents} of {self.documents} documents: "
                f"give at most {self.documents}"
            )

    @property
    def ways(self) -> list[Way]:
        """The ways to lift, in the order of the first round."""
        known = [Way("reference", 1, self.reference_documents)] if self.reference_documents else []
        known.append(Way("fast", 1, self.documents))
        names = ("stacked", "processes") if self.processes else ("stacked",)
        return known + [Way(name, size, self.documents) for name in names for size in sorted(self.at_once) if size > 1]


def v4_style() -> dict[str, str]:
    """What 2502.14644v4 does with its examples, as changes to a recipe (JSON): pairs alone, batches of four."""
    published = Recipe.preset(V4)
    return {name: json.dumps(getattr(published, name)) for name in V4_FIELDS}


def run(comparison: Comparison, path: str | Path, command: str, progress: bool = True) -> pd.DataFrame:
    """Measure, and write the records to `path`; `command` is the command line that asked for it."""
    start, base = provenance.now(), models.load(comparison.base)
    work, load, facts = work_of(base, comparison), reloading(base), records.provenance(base_model=base.provenance)
    lengths = [len(document_ids(base.tokenizer, document)) for document, _ in work]
    shared = {
        "study": "bench",
        "base_model": comparison.base,
        "document": f"{work[0][0].name} to {work[-1][0].name}" if len(work) > 1 else work[0][0].name,
        "document_tokens": round(sum(lengths) / len(lengths)),
        "seed": comparison.recipe.seed,
        "device": f"{device_words(base.model.device)}, {str(base.model.dtype).removeprefix('torch.')}",
        "command": command,
    }
    del base  # each way loads its own
    frame = measure(load, work, comparison, progress).assign(**shared)
    frame = frame[[*records.COLUMNS, *frame.columns.difference(records.COLUMNS, sort=False)]]
    facts |= {"settings": asdict(comparison) | {"recipe": comparison.recipe.as_dict()}, "command": command}
    facts |= {"start": start, "end": provenance.now()}
    records.write(frame, path, facts)
    return frame


def work_of(base: BaseModel, comparison: Comparison) -> Work:
    """The registers, each with the pairs that it is lifted with."""
    windows = comparison.tokens / (base.window - QUESTION_TOKENS) if comparison.tokens else comparison.windows
    seeds = range(FIRST_DOCUMENT, FIRST_DOCUMENT + comparison.documents)
    documents = [register_of(base, seed, windows, FILLER) for seed in seeds]
    return [(document, known_pairs(document)[: comparison.pairs or None]) for document in documents]


def measure(load: Load, work: Work, comparison: Comparison, progress: bool = True) -> pd.DataFrame:
    """A row a way, round and metric, after a round that does not count; each round begins with the next way.

    Every way has the base model loaded within its time. ValueError where two ways did not do the same work.
    """
    ways, rows = comparison.ways, []
    with tqdm(total=len(ways) * (1 + comparison.rounds), disable=not progress, unit="way") as bar:
        _round(ways, load, work, _one_epoch(comparison), bar, warming=True)
        for number in range(comparison.rounds):
            turn = number % len(ways)
            outcomes = _round(ways[turn:] + ways[:turn], load, work, comparison, bar)
            rows += [row | {"round": number + 1} for row in _rows(outcomes)]
    return pd.DataFrame(rows)


def _one_epoch(comparison: Comparison) -> Comparison:
    """Enough to have everything imported and allocated."""
    recipe = comparison.recipe
    epochs = {name: min(1, getattr(recipe, name)) for name in ("segment_epochs", "mixed_epochs")}
    return replace(comparison, recipe=replace(recipe, **epochs))


def _round(
    ways: Sequence[Way], load: Load, work: Work, comparison: Comparison, bar: tqdm, *, warming: bool = False
) -> dict[Way, Outcome]:
    """What each way took, in the order of `ways`; to warm up, one document or one group of documents is enough."""
    outcomes: dict[Way, Outcome] = {}
    for way in ways:
        bar.set_description(f"bench {comparison.base}: {way.label}")
        share = work[: way.at_once if warming else way.documents]
        outcomes[way] = lift_all(way, load, share, comparison.recipe, comparison.memory_gib)
        bar.update()
    check_same_work(outcomes)
    return outcomes


def _rows(outcomes: Mapping[Way, Outcome]) -> list[dict]:
    """A row per way and metric of one round; `place` is the way's place in the round."""
    fast = next(outcome for way, outcome in outcomes.items() if way.name == "fast")
    rows = []
    for place, (way, outcome) in enumerate(outcomes.items(), start=1):
        shared = {"condition": way.name, "at_once": way.at_once, "documents": way.documents, "place": place}
        values = _values(outcome)
        if way.name in ("stacked", "processes"):
            values["loss_difference"] = _loss_difference(outcome, fast)
        rows += [shared | {"metric": name, "unit": UNITS[name], "value": float(v)} for name, v in values.items()]
    return rows


def _values(outcome: Outcome) -> dict[str, float]:
    documents = len(outcome.histories)
    tokens = sum(history[-1].tokens for history in outcome.histories)
    values = {
        "training_seconds": outcome.training,
        "load_seconds": outcome.load,
        "documents_per_hour": 3600 * documents / (outcome.load + outcome.training),
        "documents_per_hour_without_load": 3600 * documents / outcome.training,
        "steps": sum(len(history) for history in outcome.histories),
        "tokens": tokens,
        "tokens_per_second": tokens / outcome.training,
        "last_epoch_loss": sum(map(_last_epoch_loss, outcome.histories)) / documents,
    }
    return values if outcome.peak is None else values | {"peak_memory": outcome.peak}


def _last_epoch_loss(history: Sequence[Step]) -> float:
    losses = [step.loss for step in history if step.epoch == history[-1].epoch]
    return sum(losses) / len(losses)


def _loss_difference(outcome: Outcome, fast: Outcome) -> float:
    """The largest relative difference of a document's last loss from the fast loop's."""
    ends = ((a[-1].loss, b[-1].loss) for a, b in zip(outcome.histories, fast.histories, strict=True))
    return max(abs(ours - theirs) / abs(theirs) for ours, theirs in ends)
