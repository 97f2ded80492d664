"""Same seed, machine and versions: the same bits, whatever process computes them."""

import os
import subprocess
import sys
from pathlib import Path

from liftlab import records
from liftlab.studies import lift_vs_icl

ROOT = Path(__file__).parents[1]
ANOTHER_ORDER = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
SETTINGS = {
    "base": "micro", "window_tokens": 0, "windows": [0.5], "documents": 2, "seeds": 1, "questions": 2,
    "recipe": "micro/lora", "recipe_changes": {"mixed_epochs": 1}, "filler": 0.1, "answer_tokens": 2,
    "conditions": ["closed_book", "truncated_icl", "lift"],
}  # fmt: skip
STUDY = f"import sys; from liftlab.studies import lift_vs_icl; lift_vs_icl.run(**{SETTINGS!r}, records=sys.argv[1])"


def test_two_processes_compute_the_same_bits(tmp_path):
    """On the CPU, this process and a new one where sets of text have another order; every cell's file."""
    folders = (tmp_path / "here", tmp_path / "there")
    environment = os.environ | {"PYTHONHASHSEED": ANOTHER_ORDER, "OMP_NUM_THREADS": "1"}
    there = subprocess.Popen([sys.executable, "-c", STUDY, str(folders[1])], cwd=ROOT, env=environment)
    lift_vs_icl.run(**SETTINGS, records=str(folders[0]))
    assert there.wait(600) == 0
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.csv")} for folder in folders
    )
    assert first == second and len(first) == 3
    table, made = records.read(folders[0] / "lift_vs_icl.csv")
    assert {"lift", "closed_book"} <= set(table["condition"])
    (maker,) = made["made_with"]
    assert (maker["torch"]["threads"], maker["cells"]) == (1, 2) and maker["start"] <= maker["end"]
