# ruff: noqa: F811 (fixtures are imported)
"""Bad inputs: each ends with one line that names what is wrong, its value, the bound and the remedy; exit code 2.

No traceback, and nothing is written: the folder is after the command what it was before. Adapters: test_adapter_files.
"""

import json
import subprocess
import sys

import pytest
from bad_inputs import LIFT, adapters, check_refused, listing, place, says  # noqa: F401

from liftlab.documents import read_text


def run(name, given, *fragments, profile="micro"):
    return pytest.param(["run", name, "--profile", profile, "--set", given], fragments, id=f"run {name} {given:.60}")


def line(words, *fragments):
    return pytest.param(words, fragments, id=" ".join(words)[:80])


def table(words):
    return json.dumps(words)


REGISTER = {"source": "register", "tasks": ["short_qa"]}
TYPED = [
    # parameters of notebooks
    run("lift_vs_icl", "windows=[0.5, -1]", "windows[1] = -1.0", "above 0", "of the base model", "leave it out"),
    run("lift_vs_icl", "windows=[]", "windows = []", "must not be empty", "give at least one"),
    run("lift_vs_icl", "windows=[1.0, 1.0]", "must hold each item once", "correct it"),
    run("lift_vs_icl", "windows=[NaN]", "'[NaN]'", "must be list of float", "such as"),
    run("lift_vs_icl", "seeds=0", "seeds = 0", "at least 1", "training seeds", "correct it"),
    run("lift_vs_icl", "seeds=99999999999999999999", "at most 1000000", "correct it"),
    run("lift_vs_icl", "seeds=" + "9" * 5000, "'seeds' = '999", "must be int", "such as 1"),
    run("lift_vs_icl", "seeds=1.5", "1.5", "must be int", "such as"),
    run("lift_vs_icl", "filler=0.9", "filler = 0.9", "below 0.9", "a probability", "correct it"),
    run("lift_vs_icl", "filler=1e-1x", "'1e-1x'", "must be float", "such as 0.1"),
    run("lift_vs_icl", "documents=0", "documents = 0", "at least 1", "correct it"),
    run("lift_vs_icl", "window_tokens=-1", "window_tokens = -1", "at least 0", "tokens, 0 for the model's own"),
    run("lift_vs_icl", "base= ", "base = ''", "a text that is not blank", "'micro'"),
    run("lift_vs_icl", "recipe=best", "'best'", "unknown", "choose one of", "micro/lora"),
    run("lift_vs_icl", 'recipe_changes={"rnak": 3}', "'rnak'", "did you mean 'rank'", "choose among"),
    run("lift_vs_icl", 'recipe_changes={"rank": 0}', "rank = 0", "a whole number, at least 1"),
    run("lift_vs_icl", 'recipe_changes={"betas": 5}', "betas = 5", "two numbers in 0..1"),
    run("lift_vs_icl", 'conditions=["lift", "lfit"]', "'lfit'", "must be one of", "did you mean 'lift'"),
    run("lift_vs_icl", "windows=" + "[" * 60 + "]" * 60, "nested deeper than 20 levels", "flatten it"),
    run("lift_vs_icl", "windows=" + "[" * 100000, "'windows'", "must be list of float"),
    run("lift_vs_icl", "sedes=3", "'sedes' = 3", "did you mean 'seeds'", "valid:"),
    run("lift_vs_icl", "profile=paper", "'profile' = 'paper'", "for --profile to set", "leave it out"),
    run("lift_vs_icl", "=3", "--set '=3'", "not of the form key=value"),
    run("conflict", "windows=1.5", "windows = 1.5", "at most 1", "correct it"),
    run("conflict", "score=best", "'best'", "must be one of exact_match", "correct it"),
    run("conflict", 'recipes={"lora": "x"}', "recipes.lora = 'x'", "choose one of"),
    run("conflict", "recipes={}", "recipes = {}", "must not be empty"),
    run("table_loogle", "benchmark={}", "lacks 'source'", "add it"),
    run("table_loogle", 'benchmark={"source": "web"}', "'web'", "must be one of register"),
    run("table_loogle", 'benchmark={"source": "loogle"}', "lacks 'tasks'", "add it"),
    run("table_loogle", f"benchmark={table(REGISTER | {'windows': 0})}", "benchmark.windows = 0", "above 0"),
    run("table_loogle", f"benchmark={table(REGISTER | {'tasks': ['qa']})}", "benchmark.tasks[0] = 'qa'", "one of"),
    run("table_loogle", f"benchmark={table(REGISTER | {'path': 'x'})}", "the name 'path'", "one of source, tasks"),
    run("table_loogle", 'benchmark={"source": "questions", "path": 3}', "benchmark.path = 3", "a text"),
    run("table_loogle", "conditions={}", "conditions = {}", "give at least one"),
    run("table_loogle", 'conditions={"a": {"context": "all"}}', "'all'", "one of none, truncated, full"),
    run("table_loogle", 'conditions={"a": {"recpe": ""}}', "'recpe'", "did you mean 'recipe'", "choose among"),
    run("table_loogle", 'conditions={"chance": {}}', "'chance'", "must be a name, not chance"),
    run("table_loogle", 'conditions={"a": {"auxiliary": {"count": 1}}}', "auxiliary but no recipe", "give its recipe"),
    run("table_loogle", 'auxiliary={"task": "known", "count": -1}', "auxiliary.count = -1", "at least 0 (pairs)"),
    run("table_loogle", 'auxiliary={"task": "window", "count": 1.0}', "1.0", "a whole number"),
    run("table_loogle", 'judge={"model": "x"}', "lacks 'endpoint'", "add it"),
    run("table_loogle", 'judge={"model": "x", "endpoint": "ftp://a"}', "'ftp://a'", "an http or https URL"),
    run("table_loogle", "style=fancy", "'fancy'", "choose one of plain"),
    run("table_loogle", 'by_task={"a": {"seeds": 2}}', "by_task.a", "'seeds'", "choose among documents"),
    run("efficiency", "at_once=[0]", "at_once[0] = 0", "at least 1 (documents)", profile="micro_timed"),
    run("efficiency", "memory_gib=0", "memory_gib = 0.0", "above 0 (GiB)", profile="micro_timed"),
    run("efficiency", "pairs_per_sentence=13", "at most 12 (pairs)", profile="micro_timed"),
    run("adapters", "recipe=micro/lora", "'micro/lora'", "no gates", "gated_memory", profile="micro_timed"),
    # notebooks and profiles
    line(["run", "../b"], "'../b'", "there are: adapters"),
    line(["run", "--profile", "../../etc"], "'../../etc'", "there are: empty, micro"),
    line(["run", "--profile", "empty"], "'empty'", "holds no NAME.yaml"),
    line(["run", "lift_vs_icl", "--workers", "-1"], "--workers", "greater than or equal to 0"),
    line(["run", "lift_vs_icl", "--set", "seeds=1", "--set", "seeds=2"], "'seeds' twice", "give it once"),
    line(["run", "lift\x1b[31m"], r"lift\x1b[31m", "no notebook is called"),
    line(["figures", "--profile", "mirco"], "'mirco'", "did you mean 'micro'"),
    line(["figures"], "'micro'", "no records to draw", "liftlab run --profile micro"),
    line(["list", "--all"], "--all"),
    # bench
    line(["bench", "--name", "../x"], "--name '../x'", "letters, digits, _ and -"),
    line(["bench", "--name", "efficiency"], "'efficiency'", "a notebook's", "choose another"),
    line(["bench", "--tokens", "0"], "--tokens 0", "at least 1"),
    line(["bench", "--windows", "1", "--tokens", "9"], "--windows 1", "--tokens 9", "give one"),
    line(["bench", "--at-once", "1;4"], "'1;4'", "whole numbers with commas"),
    line(["bench", "--rounds", "x"], "--rounds", "integer"),
    # lift
    line([*LIFT, "--title", "a\nb"], r"title 'a\nb'", "control character", "give another title"),
    line([*LIFT, "--title", "a\x00b"], r"title 'a\x00b'", "control character", "give another title"),
    line([*LIFT, "--title", "\udcff"], "half of a surrogate pair", "remove it"),
    line(["lift", "caf\udce9.txt", "--out", "out"], r"caf\udce9.txt", "give"),
    line([*LIFT, "--set", "betas=5"], "betas = 5", "two numbers in 0..1"),
    line([*LIFT, "--set", "name=5"], "no field 'name'", "choose among"),
    line([*LIFT, "--set", "target_modules=[1]"], "target_modules = (1,)", "a list of module names"),
    line([*LIFT, "--set", "rank=" + "9" * 5000], "rank = '999", "a whole number"),
    line([*LIFT, "--set", "rank=1000000000000"], "rank 1000000000000", "memory does not hold", "lower them"),
    line([*LIFT, "--cache", "document.txt"], "--cache 'document.txt'", "no folder", "give one"),
    line([*LIFT[:4], "--out", "document.txt/out"], "document.txt/out", "cannot be made", "choose an --out"),
    line([*LIFT[:4], "--out", "adapters"], "adapters exists already", "choose another --out"),
    line(["lift", "adapters", "--model", "micro", "--out", "out"], "no such document: adapters", "give the path"),
    # ask
    line(["ask", "adapters/lora", "who " * 300], "the question takes", "the window is 256", "ask a shorter question"),
    line(["ask", "adapters/lora", "Where?", "--answer-tokens", "0"], "--answer-tokens", "greater than or equal to 1"),
    line(["ask", "adapters/lora", "Where?", "--answer-tokens", "999"], "the answer 999", "the window is 256"),
    line(["ask", "adapters/lora", "\udcff"], "the question", "half of a surrogate pair", "remove it"),
    line(["ask", "adapters/lora", "Where?", "--model", "random:micro-long"], "lifted on micro", "ask it on the model"),
    line(["ask", "adapters", "Where?"], "no lifted document", "give a folder that lift wrote"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "fragments"), TYPED)
def test_what_is_typed_wrong_is_refused(place, says, words, fragments):
    check_refused(place, says, words, fragments)


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nwindows: [*b, *b]\n"
PARAMETER_FILES = [
    (b"seeds: [0]\nseeds: 2\n", ["'seeds' is given twice", "give it once", "line 2"]),
    (BOMB.encode(), ["an alias", "write the value itself", "line 2"]),
    (b"seeds: !!python/object/apply:os.getcwd []\n", ["python/object/apply:os.getcwd", "line 1"]),
    (b"seeds: !mine 3\n", ["'!mine'", "line 1"]),
    ("seeds: 2\n".encode("utf-16"), ["UTF-16", "byte 0", "convert it to UTF-8"]),
    (b"base: caf\xe9\n", ["byte 9", "convert it to UTF-8"]),
    (b"seeds: 2\0\n", ["NUL byte", "byte 8", "give UTF-8 text"]),
    (b"recipe_changes: {learning_rate: .nan}\n", ["recipe_changes.learning_rate = nan", "finite numbers"]),
    (b"recipe_changes: {seed: 2024-01-01}\n", ["(date)", "put a date in quotes"]),
    (b"recipe_changes: {1: 2}\n", ["{1: 2}", "dicts with text keys"]),
    (b"filler: 1e-3\n", ["'1e-3'", "write 1.0e-3"]),
    (b"seeds: 2024-99-99\n", ["month must be in 1..12"]),
    (b"windows: " + b"[" * 5000, ["nested too deep", "flatten it"]),
    (b"#" * 1_000_001, ["1000001 bytes", "at most 1000000", "shorten it"]),
    (b"- seeds\n", ["`parameter: value` lines", "a list"]),
]


@pytest.mark.parametrize(("data", "fragments"), PARAMETER_FILES, ids=lambda v: repr(v)[:40])
def test_a_bad_parameter_file_is_refused_by_name(place, says, data, fragments):
    (place / "papermill_runs/micro/lift_vs_icl.yaml").write_bytes(data)
    check_refused(place, says, ["run", "lift_vs_icl"], ["lift_vs_icl.yaml", *fragments])


NOTEBOOK_FILES = [
    (b"{", ["is not a notebook"]),
    (b'{"cells": 3}', ["format 4", "has no cells"]),
    (b'{"cells": [{}]}', ["cell 1 has no cell_type and source"]),
    (b"[" * 100000, ["is not a notebook"]),
]


@pytest.mark.parametrize(("data", "fragments"), NOTEBOOK_FILES, ids=lambda v: repr(v)[:40])
def test_a_bad_notebook_is_refused_by_name(place, says, data, fragments):
    (place / "notebooks/conflict.ipynb").write_bytes(data)
    check_refused(place, says, ["run", "conflict"], ["conflict.ipynb", *fragments])


ENVIRONMENTS = [
    ("LIFTLAB_WORKERS", "0", "at least 1 (processes)"),
    ("LIFTLAB_WORKERS", "", "a whole number (processes)"),
    ("LIFTLAB_WORKERS", "two", "a whole number (processes)"),
    ("LIFTLAB_AT_ONCE", "-4", "at least 1 (documents)"),
    ("LIFTLAB_AT_ONCE", "2.5", "a whole number (documents)"),
    ("LIFTLAB_MEMORY_GIB", "nan", "a finite number (GiB)"),
    ("LIFTLAB_MEMORY_GIB", "0", "above 0 (GiB)"),
    ("LIFTLAB_MEMORY_GIB", "8GB", "a finite number (GiB)"),
]


@pytest.mark.parametrize(("name", "value", "bound"), ENVIRONMENTS)
def test_a_bad_environment_variable_is_refused_before_a_run(place, says, monkeypatch, name, value, bound):
    monkeypatch.setenv(name, value)
    check_refused(place, says, ["run", "lift_vs_icl"], [name, bound, "unset it"])


DOCUMENTS = [
    ("a.txt", "Ada lives in Oslo.".encode("utf-16"), ["UTF-16", "byte 0", "iconv -f UTF-16 -t UTF-8"]),
    ("a.txt", "Ada lives in Oslo.".encode("utf-16-le"), ["NUL byte", "byte 1"]),
    ("a.txt", "Ada lives in Oslo.".encode("utf-32"), ["UTF-32", "byte 0", "convert"]),
    ("a.txt", "Café".encode("latin-1"), ["not UTF-8 text", "byte 3", "convert it to UTF-8"]),
    ("a.txt", b"Ada\0lives", ["NUL byte", "byte 3"]),
    ("a.txt", b"", ["is empty", "at least one word"]),
    ("a.txt", b"\xef\xbb\xbf \n", ["is empty", "at least one word"]),
    ("a.txt", b"Ada", ["a segment has 64", "give a longer document"]),
    ("a\nb.txt", b"Ada lives.", [r"'a\nb'", "control character", "give another title"]),
    ("\x1b[31m.txt", b"", [r"\x1b[31m.txt", "is empty"]),
]


@pytest.mark.parametrize(("name", "data", "fragments"), DOCUMENTS, ids=lambda v: repr(v)[:40])
def test_a_bad_document_is_refused_by_name(place, says, name, data, fragments):
    (place / name).write_bytes(data)
    check_refused(place, says, ["lift", name, "--model", "micro", "--out", "out"], fragments)


GOOD = b'{"question": "Where?", "answer": "Oslo"}\n'
PAIRS = [
    (GOOD + b'{"question": "Where?", "answer": "Os\n', ["pairs.jsonl:2", "not JSON", "one object a line"]),
    (GOOD + b'{"question": "How many?", "answer": 42}\n', ["pairs.jsonl:2", '"answer"']),
    (GOOD + b'{"question": " ", "answer": "Oslo"}\n', ["pairs.jsonl:2", '"question"', "non-empty"]),
    (GOOD + b'["Where?", "Oslo"]\n', ["pairs.jsonl:2", "a list", "one JSON object a line"]),
    (GOOD + b'{"question": "\\ud800", "answer": "Oslo"}\n', ["pairs.jsonl:2", "half of a surrogate pair", "remove it"]),
    (GOOD + b'{"question": "\\u0000", "answer": "Oslo"}\n', ["pairs.jsonl:2", "NUL character", "remove it"]),
    (GOOD + b"[" * 100000, ["pairs.jsonl:2", "not JSON"]),
    (GOOD + b'{"question": ' + b"9" * 5000 + b"}", ["pairs.jsonl:2", "not JSON", "5000 digits"]),
    (GOOD + b'{"question": "Caf\xe9", "answer": "Oslo"}\n', ["pairs.jsonl:2", "not UTF-8", "convert it"]),
    (GOOD.decode().encode("utf-16"), ["pairs.jsonl:1", "UTF-16", "convert it"]),
    (b"\n \n", ["pairs.jsonl is empty", "at least one JSON object"]),
]  # fmt: skip


@pytest.mark.parametrize(("data", "fragments"), PAIRS, ids=lambda v: repr(v)[:40])
def test_a_bad_question_file_is_refused_by_its_line(place, says, data, fragments):
    (place / "pairs.jsonl").write_bytes(data)
    check_refused(place, says, [*LIFT, "--pairs", "pairs.jsonl"], fragments)


def test_there_are_at_least_60_bad_inputs():
    count = sum(map(len, (TYPED, PARAMETER_FILES, NOTEBOOK_FILES, ENVIRONMENTS, DOCUMENTS, PAIRS)))
    assert count >= 60


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["run", "lift_vs_icl", "--set", "seeds=0"], "at least 1"),
        (["run", b"caf\xe9"], r"caf\udce9"),
    ],
)
def test_so_it_is_in_a_process_of_its_own(place, words, fragment):
    before = listing(place)
    done = subprocess.run([sys.executable, "-m", "liftlab.cli", *words], cwd=place, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and fragment in done.stderr, done.stderr
    assert done.stderr.startswith("liftlab: ") and done.stderr.count("\n") == 1
    assert listing(place) == before


def test_a_link_at_out_is_not_followed(place, says):
    (place / "out").symlink_to(place.parent / "elsewhere")
    check_refused(place, says, LIFT, ["out exists already", "choose another --out"])
    assert not (place.parent / "elsewhere").exists()


def test_ten_megabytes_are_read_and_more_than_the_bound_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "long.txt"
    path.write_text("\ufeff" + "Ada lives in Oslo. " * 530_000, "utf-8")
    document = read_text(path)
    assert path.stat().st_size > 10_000_000 and document.text.startswith("Ada") and len(document.text) > 10_000_000
    monkeypatch.setattr("liftlab.documents.MOST_BYTES", 10_000_000)
    with pytest.raises(ValueError, match=r"long.txt has 10070003 bytes, at most 10000000 are read: split it"):
        read_text(path)
