"""What the command line costs before it does anything, and what it does without torch."""

import os
import subprocess
import sys

import pytest
from test_cli import keep_records, repository  # noqa: F401
from test_runner import root  # noqa: F401

HEAVY = ("torch", "transformers", "peft", "pandas", "numpy", "scipy", "papermill", "matplotlib", "seaborn", "joblib")
SECONDS = 0.5  # of the processor, for `liftlab --help`


@pytest.fixture
def without_torch(tmp_path, monkeypatch):
    """In every process that is started, importing torch, transformers or peft fails."""
    for name in ("torch", "transformers", "peft"):
        (tmp_path / "blocked" / name).mkdir(parents=True)
        (tmp_path / "blocked" / name / "__init__.py").write_text("raise ImportError(f'{__name__} is blocked')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "blocked"))


def program(*words):
    return subprocess.run([sys.executable, "-W", "error", *words], capture_output=True, text=True)


def test_the_command_line_starts_without_the_libraries_that_compute():
    done = program("-c", f"import sys, liftlab.cli; sys.exit(', '.join(set({HEAVY}) & set(sys.modules)) or 0)")
    assert (done.returncode, done.stderr) == (0, "")


def test_help_takes_under_half_a_second():
    """Processor time, the best of several: what else the machine does counts as little as it can."""
    assert any(processor_seconds("--help") < SECONDS for _ in range(20))


def processor_seconds(*words):
    before = os.times()
    subprocess.run([sys.executable, "-m", "liftlab.cli", *words], capture_output=True, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_figures_are_redrawn_in_several_processes_where_torch_cannot_be_imported(repository, without_torch):  # noqa: F811
    assert "torch is blocked" in program("-c", "import torch").stderr
    keep_records(repository)
    keep_records(repository, name="another")
    done = program("-m", "liftlab.cli", "figures")
    assert (done.returncode, done.stderr) == (0, "no drawing for papermill_runs/micro/records/another.csv\n")
    assert (repository / "figures/micro/lift_vs_icl.png").is_file()
