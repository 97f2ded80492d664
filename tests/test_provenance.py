import hashlib
import json
import subprocess
import sys
from datetime import datetime, timedelta

import pandas as pd
import pytest
import torch

from liftlab import provenance, records
from liftlab.provenance import ProvenanceError


def test_it_tells_versions_machine_and_facts():
    known = records.provenance(gpu="H100", settings={"rank": 8})
    assert known["packages"]["pandas"] == pd.__version__
    assert known["python"] == sys.version.split()[0]
    assert known["hardware"]["cpu"] and known["hardware"]["cpus"] >= 1
    assert (known["gpu"], known["settings"]) == ("H100", {"rank": 8})
    assert json.loads(json.dumps(known)) == known


def test_it_tells_the_settings_of_torch_on_which_bits_depend():
    assert records.provenance()["torch"]["threads"] == torch.get_num_threads()
    assert records.provenance()["torch"]["deterministic"] is False
    torch.use_deterministic_algorithms(True)
    try:
        assert records.provenance()["torch"]["deterministic"] is True
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_process_without_torch_says_so_and_stays_without():
    code = "import sys; from liftlab import records; print(records.provenance()['torch'], 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "None False\n"


@pytest.mark.parametrize("name", ["git", "torch", "packages"])
def test_a_fact_may_not_hide_what_provenance_finds(name):
    with pytest.raises(ProvenanceError, match=f"'{name}'"):
        records.provenance(**{name: "mine"})


def test_now_is_utc_and_sorts_as_time_does():
    before, after = provenance.now(), provenance.now()
    assert before <= after and len(before) == len(after)
    assert datetime.fromisoformat(before).utcoffset() == timedelta(0)


def test_files_are_known_by_their_hash(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc")
    assert provenance.hashes([tmp_path / "a.txt"]) == {"a.txt": hashlib.sha256(b"abc").hexdigest()}


def test_joined_cells_tell_each_way_of_making_once():
    """Cells of one run make one entry, from its first start to its last end; another commit makes another."""
    made = [{"git": "a", "settings": {"n": n}, "key": str(n), "start": f"{n}0", "end": f"{n}5"} for n in (2, 1, 3)]
    other = {"git": "b", "settings": {"n": 4}, "key": "4", "start": "40", "end": "45"}
    assert provenance.joined([*made, other]) == [
        {"git": "a", "cells": 3, "start": "10", "end": "35"},
        {"git": "b", "cells": 1, "start": "40", "end": "45"},
    ]


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path):
    """The folder of a package in a repository with a notebook, a profile and a result."""
    for name in ("package/a.py", "notebooks/a.ipynb", "papermill_runs/micro/a.yaml", "pyproject.toml", "figures/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a = 1\n")
    return tmp_path / "package"


def test_git_state_is_the_commit_and_whether_the_source_differs(package):
    """None outside git and where git does not track the package."""
    root = package.parent
    assert provenance._git(package) is None
    git(root, "init", "-q")
    assert provenance._git(package) is None
    git(root, "add", ".")
    assert provenance._git(package) == {"commit": None, "dirty": True}
    git(root, "commit", "-qm", "first")
    assert provenance._git(package) == {"commit": git(root, "rev-parse", "HEAD"), "dirty": False}


SOURCES = ["package/a.py", "package/new.py", "notebooks/a.ipynb", "papermill_runs/micro/a.yaml",
           "papermill_runs/new/b.yaml", "pyproject.toml", "requirements.lock"]  # fmt: skip
RESULTS = [
    "figures/a.png",
    "figures/b.png",
    "papermill_runs/micro/a.ipynb",
    "papermill_runs/micro/records/a.csv",
    "b.txt",
]


@pytest.mark.parametrize(("name", "dirty"), [(n, True) for n in SOURCES] + [(n, False) for n in RESULTS])
def test_dirty_means_the_source_not_its_results(package, name, dirty):
    root = package.parent
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("changed")
    assert provenance._git(package)["dirty"] is dirty
