import json
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from liftlab import runner
from liftlab.runner import NotebookFailed, RunError

PARAMETERS = 'seeds = [0, 1]  # a list\nprofile = "none"\n'
SHOW = """
import os, sys
import matplotlib.pyplot as plt
from pathlib import Path
from liftlab import plots
Path("seen.txt").write_text(f"{seeds} {profile} {os.environ.get('MPLBACKEND')} {sys.executable}")
figure, _ = plt.subplots(figsize=(1, 1))
plt.close(figure)
figure
"""


def write(root, name, *codes, metadata=None):
    cells = [new_markdown_cell("Intro\n\n# What does " + name + " ask?\nmore"), new_markdown_cell("## Later")]
    cells.append(new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}))
    notebook = new_notebook(cells=cells + [new_code_cell(code) for code in codes])
    notebook.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook.metadata.liftlab = metadata or {}
    nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")


@pytest.fixture
def root(tmp_path):
    """A repository with notebooks b (micro, paper) and a (micro)."""
    tmp_path = tmp_path / "with {braces}"
    for folder in ("notebooks", "papermill_runs/micro", "papermill_runs/paper"):
        (tmp_path / folder).mkdir(parents=True)
    write(tmp_path, "b", SHOW, metadata={"reproduces": "Table 1"})
    write(tmp_path, "a", "1 / 0  # a mistake")
    for run in ("micro/a", "micro/b", "paper/b"):
        (tmp_path / "papermill_runs" / f"{run}.yaml").write_text("")
    return tmp_path


def test_the_root_holds_notebooks_and_runs(root, monkeypatch):
    monkeypatch.chdir(root)
    assert runner.root() == runner.root(root) == root
    monkeypatch.chdir(root / "notebooks")  # where JupyterLab runs a notebook
    assert runner.root() == root
    assert runner.records_folder("micro") == root / "papermill_runs/micro/records"
    assert runner.figures_folder("micro") == root / "figures/micro"
    with pytest.raises(RunError, match="is in no liftlab repository"):
        runner.root(root.parent)


def test_notebooks_are_described_by_their_heading_and_metadata(root):
    a, b = runner.notebooks(root)
    assert (a.name, a.question, a.reproduces) == ("a", "What does a ask?", "")
    assert (b.name, b.question, b.reproduces) == ("b", "What does b ask?", "Table 1")
    assert b.parameters == {"seeds": [0, 1], "profile": "none"}


def test_a_notebook_runs_under_the_profiles_that_have_its_parameter_file(root):
    assert runner.profiles(root) == ["micro", "paper"]
    assert runner.runs_under(root, "micro") == ["a", "b"]
    assert runner.runs_under(root, "paper") == ["b"]


def test_set_beats_yaml_beats_default(root):
    file = root / "papermill_runs/micro/b.yaml"
    assert runner.parameters(root, "b", "micro", {}) == {"seeds": [0, 1], "profile": "micro"}
    file.write_text("seeds: [2]\n")
    assert runner.parameters(root, "b", "micro", {})["seeds"] == [2]
    assert runner.parameters(root, "b", "micro", {"seeds": "[3, 4]"})["seeds"] == [3, 4]


@pytest.mark.parametrize(
    ("name", "profile", "sets", "words"),
    [
        (
            "b",
            "micro",
            {"sedes": "3"},
            "'sedes' = 3 .int, from --set. .*did you mean 'seeds'.; valid: seeds .list of int.",
        ),
        ("b", "micro", {"seeds": "abc"}, "'seeds' = 'abc' .str, from --set. .*must be list of int"),
        ("b", "micro", {"profile": "paper"}, "'profile' = 'paper' .* is for --profile to set"),
        ("c", "micro", {}, "no notebook is called 'c'; there are: a, b"),
        ("a", "paper", {}, "notebook 'a' has no profile 'paper' .no papermill_runs/paper/a.yaml.; it runs: b"),
        ("a", "papre", {}, "no profile is called 'papre', did you mean 'paper'"),
    ],
)
def test_a_wrong_request_fails_before_papermill_executes(root, monkeypatch, name, profile, sets, words):
    monkeypatch.setattr(runner, "_execute", lambda *_: pytest.fail("a kernel would have started"))
    with pytest.raises(RunError, match=words):
        runner.run(root, name, profile, sets)


def test_a_wrong_value_in_the_profile_names_the_file(root):
    (root / "papermill_runs/micro/b.yaml").write_text("seeds: 3\n")
    with pytest.raises(RunError, match="'seeds' = 3 .int, from papermill_runs/micro/b.yaml"):
        runner.parameters(root, "b", "micro", {})


def test_a_notebook_is_executed_in_the_root_with_this_interpreter(root, monkeypatch):
    """One kernel: parameters arrive, a figure is shown once whatever MPLBACKEND says, the outcome is on record."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    (root / "papermill_runs/micro/b.failed.ipynb").write_text("{}")
    path = runner.run(root, "b", "micro", {"seeds": "[5]"})
    backend = "module://matplotlib_inline.backend_inline"
    assert (root / "seen.txt").read_text() == f"[5] micro {backend} {sys.executable}"
    done = json.loads(path.read_text())
    shown = [output["data"] for output in done["cells"][-1]["outputs"] if "data" in output]
    assert len(shown) == 1 and "image/png" in shown[0]
    provenance = done["metadata"]["liftlab"]["provenance"]
    assert provenance["parameters"] == {"seeds": [5], "profile": "micro"}
    assert done["metadata"]["liftlab"]["reproduces"] == "Table 1"
    last = runner.last_run(root, "b", "micro")
    assert last.status == "done" and last.seconds > 0 and last.end[:2] == "20"
    assert sorted(p.name for p in (root / "papermill_runs/micro").iterdir()) == ["a.yaml", "b.ipynb", "b.yaml"]


def test_a_failing_notebook_leaves_itself_and_the_last_good_one(root):
    good = root / "papermill_runs/micro/a.ipynb"
    good.write_text('{"cells": []}')
    with pytest.raises(NotebookFailed, match="notebook a failed in cell .3.: ZeroDivisionError: division by zero; see"):
        runner.run(root, "a", "micro", {})
    assert good.read_text() == '{"cells": []}'
    assert runner.last_run(root, "a", "micro").status == "failed"
    assert not (root / "papermill_runs/micro/a.running.ipynb").exists()


def test_the_environment_is_as_before_afterwards(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    before = dict(runner.os.environ)
    with pytest.raises(KeyError), runner._clean_environment():
        assert "MPLBACKEND" not in runner.os.environ
        raise KeyError
    assert dict(runner.os.environ) == before


def test_no_run_is_no_last_run(root):
    assert runner.last_run(root, "a", "micro") is None


def test_an_interrupted_run_leaves_nothing_half_written(root, monkeypatch):
    def interrupted(source, output, values, root):
        output.write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run(root, "b", "micro", {})
    assert sorted(p.name for p in (root / "papermill_runs/micro").iterdir()) == ["a.yaml", "b.yaml"]
