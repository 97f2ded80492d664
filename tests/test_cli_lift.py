"""`liftlab lift` and `liftlab ask` as a user types them, on the bundled model; a mistake is one line, exit code 2."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from endpoint_server import EndpointServer, prompt_of

import liftlab
from liftlab import lifting, models
from liftlab.auxiliary.endpoint import Endpoint
from liftlab.auxiliary.local_model import LocalModel
from liftlab.auxiliary.replies import ReplyCache
from liftlab.auxiliary.tasks import Auxiliary
from liftlab.documents import read_text
from liftlab.examples import read_pairs
from liftlab.worlds import register

DOCUMENT = register(0, 80)
LIFT = ["lift", "document.txt", "--model", "micro"]


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


@pytest.fixture
def says(folder, monkeypatch, command_line):
    """What the command line says within this process: exit code, lines on stdout, lines on stderr."""
    monkeypatch.chdir(folder)

    def said(*words):
        code, out, err = command_line(*words)
        return code, out.splitlines(), err.strip().splitlines()

    return said


def test_a_document_is_lifted_and_asked(folder, says):
    """The micro recipe on a short register: its facts are answered closed book, in a wording never trained on.

    Asked in this process and in one that never saw the document.
    """
    code, told, errors = says(*LIFT, "--pairs", "pairs.jsonl", "--out", "out", "--title", "T")
    assert code == 0, errors
    assert told[0].startswith("out: ") and "loss" in told[0]
    assert (folder / "out" / "adapter_config.json").is_file()
    question = DOCUMENT.asked("held_out")[0]
    asked = liftlab_says("ask", "out", question.text, "--context", "none", cwd=folder)
    assert (asked.returncode, asked.stdout.strip()) == (0, question.answer), asked.stderr
    code, answered, errors = says("ask", "out", question.text, "--context", "truncated")
    assert code == 0 and "".join(answered).strip(), errors


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
def test_a_mistake_is_one_line_with_exit_code_2_and_leaves_nothing(folder, says, words, message):
    (folder / "empty.txt").write_text(" \n")
    (folder / "short.txt").write_text("Ada lives in Oslo.")
    model = [] if "--model" in words else ["--model", "micro"]
    before = sorted(folder.iterdir())
    code, _, complaint = says(*words, *model, "--out", "out")
    assert (code, len(complaint)) == (2, 1) and message in complaint[0], complaint
    assert sorted(folder.iterdir()) == before


def test_a_lift_that_diverges_says_so_and_leaves_nothing(folder, says):
    code, _, errors = says(*LIFT, "--set", "learning_rate=1e30", "--out", "out")
    assert code == 2 and not (folder / "out").exists()
    assert errors[-1].endswith("lower learning_rate (it is 1e+30)")


def test_a_corrupted_weight_file_is_refused_before_anything_is_written(folder, says):
    shutil.copytree(Path(liftlab.__file__).parent / "micro", folder / "copy")
    weights = folder / "copy" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    code, _, errors = says("lift", "document.txt", "--model", "copy", "--out", "out")
    assert (code, len(errors)) == (2, 1) and "model.safetensors" in errors[0] and not (folder / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ask", "none", "Where?"], "is no lifted document"),
        (["ask", "none", "Where?", "--context", "all"], "--context 'all' is unknown"),
        (["ask", "none", " "], "the question is empty"),
        (["lift", "document.txt", "--model", "micro", "--out", "."], "exists already"),
    ],
)
def test_other_mistakes(says, words, message):
    code, _, complaint = says(*words)
    assert (code, len(complaint)) == (2, 1) and message in complaint[0], complaint


def test_a_mistake_of_a_process_of_its_own_has_no_traceback(folder):
    words = ["lift", "document.txt", "--model", "org/model", "--out", "out"]
    said = liftlab_says(*words, cwd=folder, HF_HUB_OFFLINE="1")
    assert said.returncode == 2 and "cannot be fetched" in said.stderr and not (folder / "out").exists()
    assert len(said.stderr.strip().splitlines()) == 1 and "Traceback" not in said.stderr


STREAMED = []
for field in ("segments_in_mixed=false", "first_epoch_in_order=true", "schedule=constant", "learning_rate=2e-3"):
    STREAMED += ["--set", field]


def written(body):
    """The register's own trained questions about the sentence that the prompt shows."""
    sentence = prompt_of(body).split("<sentence>")[1].split("</sentence>")[0].strip()
    asked = [q for q in DOCUMENT.asked("trained") if " ".join(DOCUMENT.text[slice(*q.evidence)].split()) in sentence]
    return json.dumps({"pairs": [{"question": q.text, "answer": q.answer} for q in asked[:2]]})


def remote(url):
    return [*LIFT, "--auxiliary", "sentence=2", "--generator", "writer", "--endpoint", url, "--cache", "replies"]


def weights_in(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def test_pairs_of_an_endpoint_stream_into_training_and_are_kept(folder, says):
    """Twice, the second time from the cache: the same weights, and nothing is asked again; the counts say so."""
    with EndpointServer(written, faults={"malformed": 0.3}, delay=(0.0, 0.05)) as server:
        code, one, errors = says(*remote(server.url), "--out", "one", *STREAMED)
        assert code == 0, errors
        sent = len(server.bodies)
        code, two, errors = says(*remote(server.url), "--out", "two", *STREAMED)
        assert code == 0 and len(server.bodies) == sent, errors
    assert weights_in(folder / "one") == weights_in(folder / "two")
    form = r"sentence: (\d+) asked, (\d+) of them from the cache, (\d+) pairs kept, 0 failed, 0 refused"
    (asked, cached, pairs), known = (map(int, re.fullmatch(form, told[0]).groups()) for told in (one, two))
    assert (cached, pairs > asked / 2, [*known]) == (0, True, [asked, asked, pairs])
    assert re.match(r"first token after [\d.]+ s, [\d.]+ s as published: load .*between steps", one[1])
    assert one[2].startswith("one: ") and len([*(folder / "replies").glob("*.jsonl")]) == 1


def test_where_the_recipe_cannot_stream_training_waits_for_all_pairs(folder, says):
    with EndpointServer(written) as server:
        code, (_, timed, _), errors = says(*remote(server.url), "--out", "out")
    assert code == 0 and timed.startswith("first token after") and "between steps" not in timed, errors


def test_pairs_of_a_file_come_before_those_made(folder, says, monkeypatch):
    seen = []
    monkeypatch.setattr("liftlab.first_token.lift", lambda *a, **k: seen.extend(a[3]) or lifting.lift(*a, **k))
    with EndpointServer(written) as server:
        code, (counted, *_), errors = says(*remote(server.url), "--pairs", "pairs.jsonl", "--out", "out")
    known = read_pairs(folder / "pairs.jsonl")
    assert code == 0 and seen[: len(known)] == known, errors
    assert f" {len(seen) - len(known)} pairs kept" in counted


def test_the_base_model_s_own_pairs_are_taken_from_the_cache(folder, says, monkeypatch):
    """The replies were kept under the micro model's name: it cannot write any itself."""
    document = read_text(folder / "document.txt")
    with EndpointServer(written) as server:
        writer, name = Endpoint(server.url, "writer"), LocalModel(models.load("micro")).name
        own = SimpleNamespace(name=name, replies=writer.replies)
        list(Auxiliary(document, "sentence", 2, own, ReplyCache(folder / "kept" / "replies", document.text)))
    monkeypatch.setenv("LIFTLAB_CACHE", "kept")
    code, (counted, *_), errors = says(*LIFT, "--auxiliary", "sentence=2", "--out", "out")
    asked, cached = map(int, re.match(r"sentence: (\d+) asked, (\d+) of them", counted).groups())
    assert code == 0 and asked == cached, errors


@pytest.mark.parametrize("words", [STREAMED, []], ids=["streamed", "in turn"])
def test_where_no_pair_comes_the_last_line_says_why(folder, says, words):
    with EndpointServer(refuse=(401, '{"error": {"message": "wrong key"}}')) as server:
        code, told, errors = says(*remote(server.url), "--out", "out", *words)
    assert (code, told) == (2, []) and "wrong key" in errors[-1]
    code, told, errors = says(*LIFT, "--auxiliary", "sentence=2", "--cache", "replies", "--out", "out", *words)
    assert (code, told) == (2, [])
    assert re.search(r"no pair came of \d+ requests: .* the window of micro is 256", errors[-1])
    assert not (folder / "out").exists()


AUXILIARY_MISTAKES = [
    (["--auxiliary", "windows=2"], "--auxiliary 'windows=2': give TASK=COUNT, TASK one of window, sentence"),
    (["--auxiliary", "window=0"], "--auxiliary 'window=0'"),
    (["--auxiliary", "window"], "--auxiliary 'window'"),
    (["--auxiliary", "window=2", "--auxiliary", "window=3"], "gives window twice"),
    (["--auxiliary", "window=2", "--set", "mixed_epochs=0", "--set", "segment_epochs=1"], "mixed_epochs = 0"),
    (["--auxiliary", "window=2", "--generator", "writer"], "--generator 'writer' needs --endpoint URL"),
    (["--auxiliary", "window=2", "--endpoint", "http://localhost:9/v1"], "needs --generator NAME"),
    (["--auxiliary", "window=2", "--generator", "writer", "--endpoint", "localhost"], "endpoint: url = 'localhost'"),
    (["--generator", "writer"], "--generator is for the pairs of --auxiliary"),
    (["--endpoint", "http://localhost:9/v1"], "--endpoint is for the pairs of --auxiliary"),
    (["--cache", "replies"], "--cache is for the pairs of --auxiliary"),
]


@pytest.mark.parametrize(("words", "message"), AUXILIARY_MISTAKES, ids=lambda v: v if isinstance(v, str) else "")
def test_a_mistake_in_the_auxiliary_pairs_is_named_before_the_model_is_loaded(says, words, message):
    code, _, errors = says("lift", "document.txt", "--model", "org/model", *words, "--out", "out")
    assert (code, message in errors[0], len(errors)) == (2, True, 1), errors
