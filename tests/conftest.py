"""Tiny models built in memory: real transformers models and tokenizers, no mocks, no files."""

import signal
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from liftlab import cli
from liftlab.models import BaseModel
from liftlab.pretraining import word_tokenizer

for number, usual in {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}.items():
    if signal.getsignal(number) is signal.SIG_IGN:  # in the background, under nohup; inherited by what tests start
        signal.signal(number, usual)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)  # tiny matrices: a second thread only costs


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setenv("LIFTLAB_WORKERS", "1")  # the tests themselves run side by side


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")  # matplotlib warns of more than 20


@pytest.fixture
def tiny():
    """A base model of about 60,000 random weights that reads the register world's words; window 256 tokens."""
    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return BaseModel("tiny", model, tokenizer, 256, {"name": "tiny", "weights_sha256": "tiny-0"})


@pytest.fixture
def command_line(monkeypatch, capsys):
    """liftlab as a user calls it, in the working directory: (exit code, stdout, stderr)."""

    def called(*words):
        monkeypatch.setattr(sys, "argv", ["liftlab", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code, *capsys.readouterr()

    return called
