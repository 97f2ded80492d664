"""Weights of a model: read from a directory or drawn at random, on which device and in which precision."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_bitsandbytes_available

from liftlab.gguf_weights import ModelError
from liftlab.hub_weights import first_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DETERMINISTIC = "LIFTLAB_DETERMINISTIC"  # environment variable: 1 for kernels that give the same bits each time
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError, SafetensorError)


def place(device: str | None) -> torch.device:
    """The device by torch's name for it; by default cuda where there is one. Raises ModelError."""
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"unknown device {device!r}: give cpu, cuda or cuda:0") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"device {device!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; give cpu"
        )
    return chosen


def choose_kernels() -> None:
    """Deterministic kernels where LIFTLAB_DETERMINISTIC is 1, slower on CUDA; torch's own choice where it is not.

    To be called before anything is computed on CUDA. Records say which in provenance, torch, deterministic. Raises
    ModelError.
    """
    given = os.environ.get(DETERMINISTIC, "0")
    if given not in ("0", "1"):
        raise ModelError(f"{DETERMINISTIC} = {given!r}: give 1 for deterministic kernels, or 0")
    if given == "1":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
        torch.use_deterministic_algorithms(True)


def precision(dtype: str | None, device: torch.device) -> torch.dtype:
    """The dtype by name; by default bfloat16 on CUDA, else float32. Raises ModelError."""
    chosen = dtype or ("bfloat16" if device.type == "cuda" else "float32")
    if chosen not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: give {', '.join(DTYPES)}, or None for the device's default")
    return DTYPES[chosen]


def quantization() -> BitsAndBytesConfig:
    """Four bits a weight as 2502.14644v1-v3 has its frozen base: NF4, computing in bfloat16, scales not quantised."""
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def check_four_bit(source: str, dtype: torch.dtype, device: torch.device) -> None:
    """Raise ModelError where a model of this source cannot be had in 4 bits here."""
    if source == "random":
        raise ModelError("four_bit is for weights that are read, random ones are not quantised: leave four_bit out")
    if device.type != "cuda" or not is_bitsandbytes_available():
        raise ModelError(
            f"four_bit needs CUDA and bitsandbytes (device {device}, bitsandbytes "
            f"{'' if is_bitsandbytes_available() else 'not '}installed): on a machine with a GPU, pip install "
            "'liftlab[four_bit]', or leave four_bit out"
        )
    if dtype != torch.bfloat16:
        raise ModelError(f"four_bit computes in bfloat16, not {dtype}: leave dtype out, or four_bit")


def read(
    directory: Path, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device, four_bit: bool
) -> PreTrainedModel:
    """The model of a directory.

    transformers only logs weights that a file lacks, and draws them at random: here that is an error.
    """
    quantised = {"quantization_config": quantization(), "device_map": {"": device}} if four_bit else {}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            attn_implementation=attention(config),
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **quantised,
        )
    except torch.OutOfMemoryError:
        raise
    except UNREADABLE as error:
        raise ModelError(f"cannot read the weights in {directory} ({first_line(error)}): fetch them again") from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{directory} lacks {len(missing)} weights, the first is {missing[0]}: fetch them again")
    return model if four_bit else model.to(device)


def at_random(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """A model with weights drawn from seed 0 on `device` itself; the caller's random state is left as it was."""
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, token, getattr(tokenizer, token))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention(config), trust_remote_code=False
        )


def count(config: PreTrainedConfig) -> int:
    """Parameters of the model that a configuration describes, tied weights once; no memory is taken for them."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention(config), trust_remote_code=False)
    return model.num_parameters()


def attention(config: PreTrainedConfig) -> str | None:
    """None: transformers takes sdpa, or eager where a class refuses it.

    sdpa cannot soft-cap attention logits (Gemma-2); transformers 5.17 takes it nevertheless, 5.23 refuses.
    """
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None
