"""How a document is lifted: the frozen, checked settings, and the published ones by name."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.resources import files

import yaml

from liftlab.prompts import CONTEXTS, STYLES

ADAPTERS = ("lora", "pissa", "gated_memory", "cartridge", "full")
_STREAMS = {  # what must hold where the number of pairs is not known before training
    "first_epoch_in_order": True,
    "step": "batch",
    "segment_epochs": 0,
    "segments_in_mixed": False,
    "schedule": "constant",
    "warmup_share": 0.0,
}
_SEGMENT_BY_SEGMENT = {"contextualized": False, "mixed_epochs": 0}  # what must hold with segment_by_segment


@dataclass(frozen=True)
class Recipe:
    """Settings of one lift. Two stages share one optimizer: segments alone, then segments and auxiliary pairs mixed.

    The published values are in paper/recipes.yaml; `Recipe.preset(name, field=...)` gives one, varied.
    """

    adapter: str = "lora"  # lora, pissa, gated_memory, cartridge, full
    rank: int = 16  # this and the next two: lora and pissa only
    alpha: float = 32.0
    target_modules: str | tuple[str, ...] = "all-linear"  # or the projections' names
    memory_width: int | None = None  # this and the next four: gated_memory only, see GatedMemoryConfig
    gate_width: int | None = None
    layers_to_transform: tuple[int, ...] | None = None
    init: str = "released"
    gate_penalty: float = 0.0
    prefix_tokens: int | None = None  # cartridge only, which needs it: tokens of the window that the prefix takes
    learning_rate: float = 1e-4
    segment_tokens: int = 2048
    offset_tokens: int = 768
    contextualized: bool = False  # predict each segment from a piece of the document
    context_tokens: int = 4096  # length of that piece, or with segment_by_segment of what stands before, at most
    segment_by_segment: bool = False  # every epoch of a segment before the next, predicted from what stands before it
    segment_epochs: int = 3  # stage 1
    mixed_epochs: int = 5  # stage 2
    segments_in_mixed: bool = True  # False: stage 2 trains on the pairs alone
    first_epoch_in_order: bool = False  # stage 2 begins in the given order, in consecutive batches
    pair_context: str = "none"  # what of the document stands in a pair's prompt: none, truncated, full
    pair_weight: float = 1.0  # gamma of 2412.13626: weight of a pair's token against a segment's
    style: str = "plain"  # prompt style of the pairs
    step: str = "epoch"  # one optimizer step per "epoch" or per "batch"
    batch_tokens: int = 4096  # padded tokens of one forward pass, at most (one example may exceed it)
    batch_examples: int | None = None  # examples of one forward pass, at most
    warmup_steps: int = 0
    warmup_share: float = 0.0  # warm-up as a share of all steps, instead of their number
    schedule: str = "constant"  # or "linear", "cosine": falls to 0 at the last step
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("target_modules", "betas", "layers_to_transform"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, (fits, bound) in _BOUNDS.items():
            value = getattr(self, name)
            if not fits(value):
                raise ValueError(f"recipe: {name} = {value!r}: must be {bound}")
        if self.offset_tokens > self.segment_tokens:
            raise ValueError(
                f"recipe: offset_tokens = {self.offset_tokens} is larger than segment_tokens = {self.segment_tokens}, "
                "so tokens between two segments would never be trained on: make it at most segment_tokens"
            )
        for name in ("memory_width", "gate_width", "layers_to_transform", "init", "gate_penalty"):
            if self.adapter != "gated_memory" and getattr(self, name) != getattr(Recipe, name):
                raise ValueError(
                    f"recipe: {name} = {getattr(self, name)!r} is for gated_memory, not {self.adapter}: leave it out"
                )
        self._check_prefix()
        if self.warmup_steps and self.warmup_share:
            raise ValueError(
                f"recipe: warmup_steps = {self.warmup_steps} and warmup_share = {self.warmup_share}: give one of them"
            )
        if self.segment_epochs + self.mixed_epochs == 0:
            raise ValueError("recipe: segment_epochs and mixed_epochs are both 0: nothing would be trained, raise one")
        if self.segment_by_segment:
            self._check_segment_by_segment()

    def _check_segment_by_segment(self) -> None:
        for name, needed in {**_SEGMENT_BY_SEGMENT, "offset_tokens": self.segment_tokens}.items():
            if (value := getattr(self, name)) != needed:
                raise ValueError(
                    f"recipe: {name} = {value!r}: with segment_by_segment the document is read once, each segment "
                    f"after the one before it and without pairs: set {name} = {needed!r}"
                )

    def _check_prefix(self) -> None:
        if (self.adapter == "cartridge") != (self.prefix_tokens is not None):
            raise ValueError(
                f"recipe: prefix_tokens = {self.prefix_tokens!r} with adapter {self.adapter}: give a cartridge the "
                "tokens of its prefix, at least 2, and leave prefix_tokens out of any other recipe"
            )
        if self.adapter == "cartridge" and self.gradient_checkpointing:
            raise ValueError(
                "recipe: gradient_checkpointing = True with adapter cartridge: its prefix is a key-value cache, which "
                "a checkpointed layer has not: set gradient_checkpointing to false"
            )

    @classmethod
    def preset(cls, name: str, /, **changes) -> Recipe:
        """The recipe called `name` in paper/recipes.yaml, with `changes`; ValueError lists what is known."""
        known = presets()
        if name not in known:
            raise ValueError(f"recipe {name!r} is unknown: choose one of {', '.join(known)}")
        unknown = set(changes) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(
                f"recipe has no field {sorted(unknown)[0]!r}: choose among {', '.join(asdict(known[name]))}"
            )
        return replace(known[name], **changes)

    @property
    def streams(self) -> bool:
        """Whether pairs can be trained on while others are still to come."""
        return all(getattr(self, name) == needed for name, needed in _STREAMS.items())

    def check_streams(self) -> None:
        """ValueError that names the field in the way where `streams` is false."""
        for name, needed in _STREAMS.items():
            if (value := getattr(self, name)) != needed:
                raise ValueError(
                    f"recipe: {name} = {value!r}: pairs that are trained on as they arrive need {name} = {needed!r}: "
                    "set it, or give the pairs as a list"
                )

    def as_dict(self) -> dict:
        """JSON values only, for records and adapters on disk."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@cache
def presets() -> dict[str, Recipe]:
    """Every named recipe."""
    raw = yaml.safe_load(files("liftlab").joinpath("paper/recipes.yaml").read_text("utf-8"))["recipes"]
    return {name: Recipe(**settings) for name, settings in raw.items()}


def chosen(name: str, model: str, changes: dict[str, str]) -> Recipe:
    """The recipe `name`, or where it is empty the one made for `model`; `changes` are JSON values, or plain text."""
    own = f"{model}/lora"
    values = {field: _value(text) for field, text in changes.items()}
    return Recipe.preset(name or (own if own in presets() else "smollm2/lora"), **values)


def _value(text: str):
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # too many digits, or brackets: no value of any field
        return text


def _whole(low: int):
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= low, f"a whole number, at least {low}"


def _number(low: float, strict: bool = False, high: float = float("inf")):
    fits = lambda v: (  # noqa: E731
        isinstance(v, int | float) and not isinstance(v, bool) and (low < v if strict else low <= v) and v < high
    )
    return fits, f"a number {'above' if strict else 'at least'} {low:g}" + (
        f" and below {high:g}" if high < 1e9 else ""
    )


def _one_of(*values):
    return lambda v: v in values, f"one of {', '.join(map(str, values))}"


def _or_nothing(bound):
    fits, words = bound
    return lambda v: v is None or fits(v), f"{words}, or nothing"


_BOUNDS = {
    "adapter": _one_of(*ADAPTERS),
    "rank": _whole(1),
    "alpha": _number(0, strict=True),
    "target_modules": (
        lambda v: v == "all-linear" or (isinstance(v, tuple) and v and all(isinstance(name, str) for name in v)),
        '"all-linear" or a list of module names',
    ),
    "memory_width": _or_nothing(_whole(1)),
    "gate_width": _or_nothing(_whole(1)),
    "layers_to_transform": _or_nothing(
        (
            lambda v: isinstance(v, tuple) and v and all(_whole(0)[0](index) for index in v),
            "a list of layer indices from 0",
        )
    ),
    "init": _one_of("released", "per_head", "neutral"),
    "gate_penalty": _number(0),
    "prefix_tokens": _or_nothing(_whole(2)),
    "learning_rate": _number(0, strict=True),
    "segment_tokens": _whole(2),
    "offset_tokens": _whole(1),
    "contextualized": _one_of(True, False),
    "context_tokens": _whole(1),
    "segment_by_segment": _one_of(True, False),
    "segment_epochs": _whole(0),
    "mixed_epochs": _whole(0),
    "segments_in_mixed": _one_of(True, False),
    "first_epoch_in_order": _one_of(True, False),
    "pair_context": _one_of(*CONTEXTS),
    "pair_weight": _number(0, strict=True),
    "style": _one_of(*STYLES),
    "step": _one_of("epoch", "batch"),
    "batch_tokens": _whole(2),
    "batch_examples": _or_nothing(_whole(1)),
    "warmup_steps": _whole(0),
    "warmup_share": _number(0, high=1),
    "schedule": _one_of("constant", "linear", "cosine"),
    "betas": (
        lambda v: isinstance(v, tuple) and len(v) == 2 and all(_number(0, high=1)[0](beta) for beta in v),
        "two numbers in 0..1 (1 excluded)",
    ),
    "epsilon": _number(0, strict=True),
    "weight_decay": _number(0),
    "clip_norm": _number(0, strict=True),
    "gradient_checkpointing": _one_of(True, False),
    "seed": _whole(0),
}
