"""`liftlab lift` and `liftlab ask` as a user types them, on the bundled model; a mistake is one line, exit code 2."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import liftlab
from liftlab.worlds import register

DOCUMENT = register(0, 80)


def liftlab_says(*words, cwd, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-m", "liftlab.cli", *words],
        cwd=cwd, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "document.txt").write_text(DOCUMENT.text)
    pairs = [json.dumps({"question": q.text, "answer": q.answer}) for q in DOCUMENT.asked("trained")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(pairs))
    return tmp_path


def test_a_document_is_lifted_and_asked(folder):
    """The micro recipe on a short register: its facts are answered closed book, in a wording never trained on."""
    lifted = liftlab_says(
        "lift", "document.txt", "--model", "micro", "--pairs", "pairs.jsonl", "--out", "out", "--title", "T", cwd=folder
    )
    assert lifted.returncode == 0, lifted.stderr
    assert lifted.stdout.startswith("out: ") and "loss" in lifted.stdout
    assert (folder / "out" / "adapter_config.json").is_file()
    question = DOCUMENT.asked("held_out")[0]
    for context in ("none", "truncated"):
        asked = liftlab_says("ask", "out", question.text, "--context", context, cwd=folder)
        assert asked.returncode == 0 and asked.stdout.strip()
        assert context != "none" or asked.stdout.strip() == question.answer


GATED = ["--set", "adapter=gated_memory"]
MISTAKES = [
    (["lift", "none.txt"], "no such document"),
    (["lift", "empty.txt"], "is empty"),
    (["lift", "short.txt"], "has 6 tokens with its title, a segment has 64"),
    (["lift", "document.txt", "--pairs", "none.jsonl"], "no such file"),
    (["lift", "document.txt", "--pairs", "document.txt"], "is not JSON"),
    (["lift", "document.txt", "--set", "offset_tokens=200"], "offset_tokens = 200 is larger than segment_tokens = 64"),
    (["lift", "document.txt", "--set", "rnak=2"], "no field 'rnak'"),
    (["lift", "document.txt", "--set", "learning_rate=fast"], "learning_rate = 'fast': must be a number above 0"),
    (["lift", "document.txt", "--set", "pair_weight=0"], "pair_weight = 0: must be a number above 0"),
    (["lift", "document.txt", "--model", "nothing"], "unknown base model 'nothing'"),
    (["lift", "document.txt", "--model", "org/model"], "cannot be fetched"),
    (["lift", "document.txt", "--recipe", "best"], "recipe 'best' is unknown"),
    (
        ["lift", "document.txt", "--set", "adapter=gated_memory", "--set", "layers_to_transform=[9]"],
        "layer 9 does not exist",
    ),
    (["lift", "document.txt", *GATED, "--set", "gate_width=0"], "gate_width = 0: must be"),
    (["lift", "document.txt", "--set", "gate_width=4"], "gate_width = 4 is for gated_memory, not lora"),
    (["lift", "document.txt", "--set", "adapter=dora"], "adapter = 'dora': must be one of lora, pissa, gated_memory"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=lambda v: v[1] if isinstance(v, list) else "")
def test_a_mistake_is_one_line_with_exit_code_2_and_leaves_nothing(folder, words, message):
    (folder / "empty.txt").write_text(" \n")
    (folder / "short.txt").write_text("Ada lives in Oslo.")
    model = [] if "--model" in words else ["--model", "micro"]
    before = sorted(folder.iterdir())
    said = liftlab_says(*words, *model, "--out", "out", cwd=folder, HF_HUB_OFFLINE="1")
    assert (said.returncode, message in said.stderr) == (2, True), said.stderr
    assert len(said.stderr.strip().splitlines()) == 1 and "Traceback" not in said.stderr
    assert sorted(folder.iterdir()) == before


def test_a_lift_that_diverges_says_so_and_leaves_nothing(folder):
    said = liftlab_says(
        "lift", "document.txt", "--model", "micro", "--set", "learning_rate=1e30", "--out", "out", cwd=folder
    )
    assert said.returncode == 2 and "Traceback" not in said.stderr and not (folder / "out").exists()
    assert said.stderr.strip().splitlines()[-1].endswith("lower learning_rate (it is 1e+30)")


def test_a_corrupted_weight_file_is_refused_before_anything_is_written(folder):
    shutil.copytree(Path(liftlab.__file__).parent / "micro", folder / "copy")
    weights = folder / "copy" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    said = liftlab_says("lift", "document.txt", "--model", "copy", "--out", "out", cwd=folder)
    assert said.returncode == 2 and "model.safetensors" in said.stderr and not (folder / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ask", "none", "Where?"], "is no lifted document"),
        (["ask", "none", "Where?", "--context", "all"], "--context 'all' is unknown"),
        (["ask", "none", " "], "the question is empty"),
        (["lift", "document.txt", "--model", "micro", "--out", "."], "exists already"),
    ],
)
def test_other_mistakes(folder, words, message):
    said = liftlab_says(*words, cwd=folder)
    assert said.returncode == 2 and message in said.stderr and len(said.stderr.strip().splitlines()) == 1
