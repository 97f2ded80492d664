"""Same seed, machine and versions: the same bits, whatever process computes them."""

import os
import subprocess
import sys
from pathlib import Path

from liftlab import records

ROOT = Path(__file__).parents[1]
STUDY = """
import sys
from liftlab.studies import lift_vs_icl
lift_vs_icl.run(
    base="micro", window_tokens=0, windows=[0.5], documents=2, seeds=1, questions=2, recipe="micro/lora",
    recipe_changes={"mixed_epochs": 1}, filler=0.1, answer_tokens=2,
    conditions=["closed_book", "truncated_icl", "lift"], records=sys.argv[1],
)
"""


def study(folder, hash_seed):
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", STUDY, str(folder)], cwd=ROOT, env=environment)


def test_two_processes_compute_the_same_bits(tmp_path):
    """On the CPU, also where sets of text have another order; every cell's file, not only the joined one."""
    folders = {tmp_path / seed: seed for seed in ("0", "1")}
    running = [study(folder, seed) for folder, seed in folders.items()]
    assert [process.wait(600) for process in running] == [0, 0]
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.csv")} for folder in folders
    )
    assert first == second and len(first) == 3
    table, made = records.read(tmp_path / "0/lift_vs_icl.csv")
    assert {"lift", "closed_book"} <= set(table["condition"])
    (maker,) = made["made_with"]
    assert (maker["torch"]["threads"], maker["cells"]) == (1, 2) and maker["start"] <= maker["end"]
