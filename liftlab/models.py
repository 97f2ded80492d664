"""Base models: a frozen model and its tokenizer by name, with the provenance that records carry."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from liftlab import gguf_weights, hub_weights, weights
from liftlab.gguf_weights import ModelError
from liftlab.hub_weights import HubError, HubGated, HubUnreachable, first_line
from liftlab.weights import UNREADABLE

__all__ = ["BaseModel", "Configuration", "ModelError", "architectures", "configuration", "load"]

MICRO = Path(__file__).parent / "micro"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class BaseModel:
    """A frozen base model: eval mode, no parameter requires a gradient.

    `tokenizer` pads on the left and has a pad token (the end token where the model brings none); its chat_template may
    be None. `window` counts tokens, prompt and answer together. `provenance` holds name, source, revision (hub commit),
    weights_sha256 (all safetensors bytes, files in the order of their names; None for hub and random), dtype, device,
    attention, quantization (None or nf4), parameters (count, tied weights once) and random_weights.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    window: int
    provenance: dict


@dataclass(frozen=True)
class Configuration:
    """What is known of a base model without its weights; sizes of its parts are in `config`.

    `source` is bundled, hub, wheel, directory, gguf or random, or "published": the configuration in this package, for
    `reason`, as the hub did not give its own (then there is no tokenizer). `window` is in tokens, `parameters` a count
    with tied weights once, `revision` the hub's commit.
    """

    name: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase | None
    window: int
    parameters: int
    source: str
    revision: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Found:
    """A model directory and what identifies its weights; `remedy` says what to do if its files are damaged."""

    directory: Path
    source: str  # bundled, hub, wheel, directory, gguf or random
    revision: str | None = None  # hub commit
    remedy: str = "restore the file from where it came from"


def load(
    name: str,
    *,
    window: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    four_bit: bool = False,
) -> BaseModel:
    """Load a base model.

    `name` is "micro" (bundled); "smollm2" (SmolLM2-135M-Instruct from the hub or its cache, else de-quantised from a
    registry wheel); "random:ARCHITECTURE" (see `architectures`; random weights and the micro tokenizer, for timing);
    a directory; a .gguf file; or a hub id "org/name" or "org/name@revision". A directory wins over a hub id.
    `window` (tokens) lowers the model's own. `dtype` is float32, bfloat16 or float16 (default: float32 on the CPU,
    bfloat16 on CUDA), `device` as torch spells it (default: cuda where there is one). `four_bit` (CUDA and bitsandbytes
    only) quantises the frozen weights to NF4, as 2502.14644v1-v3 does. Only safetensors are read, and no code from a
    model repository is run. Kernels: see `weights.choose_kernels`. Raises ModelError.
    """
    weights.choose_kernels()
    place = weights.place(device)
    precision = weights.precision(dtype, place)
    logging.disable_progress_bar()
    try:
        found, config = _located(name)
    except HubError as error:
        raise ModelError(str(error)) from error
    limit = _window(name, config, window)
    if four_bit:
        weights.check_four_bit(found.source, precision, place)
    tokenizer = _tokenizer(found.directory)
    if found.source == "random":
        model = weights.at_random(config, tokenizer, precision, place)
    else:
        model = weights.read(found.directory, config, precision, place, four_bit)
    _freeze(name, model, tokenizer)
    return BaseModel(name, model, tokenizer, limit, _provenance(name, found, model, four_bit))


def configuration(name: str, *, window: int | None = None) -> Configuration:
    """What is known of a base model without its weights: name and window as for `load`.

    Weights are neither fetched nor read, but a .gguf file is converted first. Where the hub is unreachable, or gives
    the files only under a licence, the published configuration serves for the models of `architectures`. Raises
    ModelError.
    """
    try:
        found, config = _located(name, whole=False)
    except HubError as error:
        config = _published(name, error)
        return Configuration(
            name, config, None, _window(name, config, window), weights.count(config), "published", reason=str(error)
        )
    limit, tokenizer = _window(name, config, window), _tokenizer(found.directory)
    return Configuration(name, config, tokenizer, limit, weights.count(config), found.source, found.revision)


def architectures() -> dict[str, dict]:
    """The architectures of "random:NAME": published (hub id), same (further ones), parameters, model_type, config."""
    return yaml.safe_load((Path(__file__).parent / "data" / "architectures.yaml").read_text(encoding="utf-8"))


def _located(name: str, whole: bool = True) -> tuple[_Found, PreTrainedConfig]:
    """Where a model is and its configuration; if it must be `whole`, its files are known to be there and undamaged."""
    if isinstance(name, str) and name.startswith("random:"):
        return _Found(_bundled(), "random"), _architecture(name)
    found = _find(name, whole)
    if whole:
        _check_files(found)
    return found, _config(found)


def _find(name: str, whole: bool) -> _Found:
    if name == "micro":
        return _Found(_bundled(), "bundled", remedy="reinstall liftlab")
    if name == "smollm2":
        return _smollm2(whole)
    path = Path(str(name)).expanduser()
    if path.suffix == ".gguf":
        return _converted(gguf_weights.from_file(path), "gguf")
    if path.is_dir() and str(name):
        return _Found(path, "directory")
    if isinstance(name, str) and (hub_id := HUB_ID.fullmatch(name)):
        return _from_hub(hub_id["repository"], hub_id["revision"], whole)
    raise ModelError(
        f"unknown base model {name!r}: give micro, smollm2, {', '.join(f'random:{a}' for a in architectures())}, "
        "an existing model directory, a .gguf file or a hub id org/name"
    )


def _bundled() -> Path:
    if not MICRO.is_dir():
        raise ModelError(f"the bundled model micro is missing from this installation ({MICRO}): reinstall liftlab")
    return MICRO


def _smollm2(whole: bool) -> _Found:
    try:
        return _from_hub(SMOLLM2, None, whole)
    except HubUnreachable:
        if not whole and not gguf_weights.cached_directory(gguf_weights.WHEEL_GGUF_SHA256).exists():
            raise  # a configuration is not worth the wheel's 98 MB
        return _converted(gguf_weights.from_wheel(), "wheel")


def _converted(directory: Path, source: str) -> _Found:
    return _Found(directory, source, remedy=f"delete the folder {directory} and load again")


def _from_hub(repository: str, revision: str | None, whole: bool) -> _Found:
    directory = hub_weights.fetch(repository, revision, weights=whole)
    return _Found(directory, "hub", directory.name, "delete the file from the hub's cache and load again")


def _check_files(found: _Found) -> None:
    directory = found.directory
    if not (directory / "config.json").is_file():
        raise ModelError(f"{directory} holds no config.json: give a directory written by save_pretrained")
    if not any(directory.glob("*.safetensors")):
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
        raise ModelError(
            f"{directory} holds no .safetensors weights (pickled ones there: {', '.join(pickled) or 'none'}); pickled "
            "weights such as pytorch_model.bin can run code and are not read: save them again as safetensors"
        )
    if found.source in ("wheel", "gguf") or (directory / gguf_weights.CHECKSUMS).exists():
        gguf_weights.verify_checksums(directory, found.remedy)


def _config(found: _Found) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(found.directory, trust_remote_code=False, local_files_only=True)
    except UNREADABLE as error:
        path = found.directory / "config.json"
        raise ModelError(f"cannot use {path} ({first_line(error)}): {found.remedy}") from error


def _architecture(name: str) -> PreTrainedConfig:
    known = architectures()
    chosen = known.get(name.removeprefix("random:"))
    if chosen is None:
        raise ModelError(f"unknown architecture {name!r}: give {', '.join(f'random:{a}' for a in known)}")
    return AutoConfig.for_model(chosen["model_type"], **chosen["config"])


def _published(name: str, error: HubError) -> PreTrainedConfig:
    """The configuration in this package of a hub model that the hub does not give; else the hub's error."""
    repository = (SMOLLM2 if name == "smollm2" else name).partition("@")[0]
    for known, stated in architectures().items():
        if isinstance(error, HubUnreachable | HubGated) and repository in (stated["published"], *stated["same"]):
            return _architecture(known)
    raise ModelError(str(error)) from error


def _window(name: str, config: PreTrainedConfig, window: int | None) -> int:
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest is None and window is None:
        raise ModelError(f"the configuration of {name!r} gives no max_position_embeddings: set window (tokens)")
    if window is None:
        return longest
    whole = isinstance(window, int) and not isinstance(window, bool)
    if not whole or window < 1 or (longest is not None and window > longest):
        raise ModelError(f"window {window!r} of {name!r} is out of bounds: give 1..{longest or 'any'} tokens, or None")
    return window


def _tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    if not any((directory / file).is_file() for file in TOKENIZER_FILES):
        raise ModelError(f"{directory} holds no tokenizer (one of {', '.join(TOKENIZER_FILES)}): save it there too")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, padding_side="left", trust_remote_code=False, local_files_only=True
        )
    except UNREADABLE as error:
        raise ModelError(f"cannot read the tokenizer in {directory} ({first_line(error)}): save it again") from error
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise ModelError(f"the tokenizer in {directory} has neither pad nor eos token: set one and save it again")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _freeze(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ModelError(f"the tokenizer of {name!r} has {len(tokenizer)} tokens, its embedding {rows}: not a pair")
    model.eval().requires_grad_(False)
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def _provenance(name: str, found: _Found, model: PreTrainedModel, four_bit: bool) -> dict:
    local = found.source in ("bundled", "wheel", "directory", "gguf")
    return {
        "name": name,
        "source": found.source,
        "revision": found.revision,
        "weights_sha256": gguf_weights.sha256(*sorted(found.directory.glob("*.safetensors"))) if local else None,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "attention": model.config._attn_implementation,
        "quantization": "nf4" if four_bit else None,
        "parameters": model.num_parameters(),
        "random_weights": found.source == "random",
    }
