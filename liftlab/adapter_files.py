"""The files of a lifted document, read as a stranger may have written them: nothing there is run, fetched or believed.

Weights are safetensors only. Of the PEFT configuration no more than the modules' names is taken; the rest must be what
the recipe gives.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import peft
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from liftlab import adapters
from liftlab.documents import decoded, file_bytes
from liftlab.recipes import Recipe

CONFIG = "adapter_config.json"
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
DTYPES = ("F32", "BF16", "F16")  # of weights, as safetensors calls them
SIZES = ("r", "memory_width", "gate_width")  # fields of a configuration that are dimensions of weights
_IGNORED = (  # never read, whatever they say; the second line is a cartridge's, which the base model decides
    "base_model_name_or_path", "revision", "peft_version", "base_shape",
    "num_layers", "token_dim", "num_attention_heads", "num_transformer_submodules",
)  # fmt: skip
_NEEDED = {
    "LORA": ("r", "lora_alpha", "target_modules"),
    "CARTRIDGE": ("num_virtual_tokens", "num_frozen_tokens"),
}
_MODULE = re.compile(r"\w+(\.\w+)*", re.ASCII)

Form = TypeVar("Form", bound=BaseModel)


class BaseFacts(BaseModel):
    """What lift.json says of the base model, as far as anything depends on it."""

    model_config = ConfigDict(strict=True, extra="allow")

    name: str = Field(min_length=1)
    revision: str | None = None
    weights_sha256: str | None = None


class Made(BaseModel):
    """The provenance in lift.json."""

    model_config = ConfigDict(strict=True, extra="allow")

    base_model: BaseFacts


def text_in(folder: Path, name: str) -> str:
    """A file of `folder` itself as text. ValueError for a link, a missing file, or one that is no UTF-8 text."""
    return decoded(file_bytes(_own_file(folder, name), "file", "a folder that lift wrote"), name)


def object_in(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of `folder`, made of JSON values alone."""
    try:
        found = json.loads(text_in(folder, name), parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deep") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} holds a {type(found).__name__}, not an object")
    return found


def parsed(form: type[Form], content: dict[str, Any], name: str) -> Form:
    """`content` of the file `name` in the form wanted; ValueError names the first field that differs, and its value."""
    try:
        return form.model_validate_json(json.dumps(content))  # strict, as JSON has types
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        held = "" if first["type"] == "missing" else f" = {first['input']!r:.80}"
        raise ValueError(f"{name}: {field}{held}: {first['msg']}") from error


def config(folder: Path, recipe: Recipe) -> peft.PeftConfig | None:
    """The configuration of a recipe's adapter, None for "full"; ValueError where the file holds another one."""
    if recipe.adapter == "full":
        return None
    if recipe.adapter == "pissa":  # kept as a LoRA: see adapters.as_plain_lora
        recipe = replace(recipe, adapter="lora", rank=2 * recipe.rank, alpha=2 * recipe.alpha)
    written, expected = object_in(folder, CONFIG), adapters.config(recipe)
    known = expected.to_dict()
    for field in ("peft_type", *_NEEDED.get(known["peft_type"], ())):
        if field not in written:
            raise ValueError(f"{CONFIG} lacks {field}")
    for field, value in written.items():
        says_nothing = field not in known and not value
        if field not in (*_IGNORED, "target_modules") and not says_nothing and value != known.get(field):
            raise ValueError(f"{CONFIG}: {field} = {value!r:.80}: the recipe in lift.json needs {known.get(field)!r}")
    if known["peft_type"] == "LORA":
        expected.target_modules = _modules(written["target_modules"], recipe.target_modules)
    return expected


def _modules(given: Any, asked: str | tuple[str, ...]) -> set[str]:
    """The names of the modules that have an adapter; a text would be a pattern, which may be made to run for ever."""
    plain = isinstance(given, list) and given and all(isinstance(n, str) and _MODULE.fullmatch(n) for n in given)
    if not plain or len(set(given)) < len(given):
        raise ValueError(f"{CONFIG}: target_modules = {given!r:.80}: must be a list of module names, each once")
    if not isinstance(asked, str) and set(given) != set(asked):
        raise ValueError(f"{CONFIG}: target_modules = {given!r:.80}: the recipe in lift.json needs {list(asked)}")
    return set(given)


def weights(folder: Path, name: str) -> adapters.State:
    """The weights in a safetensors file of `folder`: floating point and finite, or ValueError that names one."""
    if not (folder / name).exists():
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
        held = f"; {', '.join(pickled)} there is pickled, can run code and is not read" if pickled else ""
        raise ValueError(f"{name} is missing{held}")
    path = _own_file(folder, name)
    try:
        _check_types(path)
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{name} is no whole safetensors file: {error}") from error
    for key, value in state.items():
        if not value.isfinite().all():
            raise ValueError(f"{name}: weight {key!r:.200} holds a number that is not finite")
    return state


def _check_types(path: Path) -> None:
    """From the file's header alone."""
    with safe_open(path, framework="pt") as file:
        types = {key: file.get_slice(key).get_dtype() for key in sorted(file.keys())}
    if not types:
        raise ValueError(f"{path.name} holds no weights")
    for key, dtype in types.items():
        if dtype not in DTYPES:
            raise ValueError(f"{path.name}: weight {key!r:.200} is of {dtype}: must be one of {', '.join(DTYPES)}")


def check_fits(model: torch.nn.Module, adapter: peft.PeftConfig | None, state: adapters.State) -> None:
    """ValueError for a weight that the adapter on `model` lacks, has not, or has in another shape.

    Compared with a fresh adapter on the meta device: whatever sizes a file names, no memory is taken for them.
    """
    largest = max(max(value.shape, default=1) for value in state.values())
    for field in SIZES:
        if (size := getattr(adapter, field, None) or 0) > largest:
            raise ValueError(f"{field} = {size}, but no weight has more than {largest} numbers in a row")
    if adapter is None:
        places = {key: value.shape for key, value in model.state_dict().items()}
    elif adapter.is_prompt_learning:
        places = {adapters.PREFIX: adapters.prefix_shape(model, adapter)}
    else:
        with torch.device("meta"), adapters.attached(model, adapter) as wrapped:
            places = {key: value.shape for key, value in peft.get_peft_model_state_dict(wrapped).items()}
    for key in sorted(places.keys() | state.keys()):
        given = state[key].shape if key in state else None
        if given != places.get(key):
            raise ValueError(f"weight {key!r:.200} is {_size(given)} in the file and {_size(places.get(key))} there")


def _size(shape: torch.Size | None) -> str:
    return "absent" if shape is None else str(tuple(shape))


def _own_file(folder: Path, name: str) -> Path:
    path = folder / name
    if path.is_symlink():
        raise ValueError(f"{name} is a link, which may lead anywhere: put the file itself there")
    if not path.is_file():
        raise ValueError(f"{name} is missing")
    return path


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
