"""Figures must follow from records, and records from the code."""

import shutil

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from test_bench import measured
from test_claims import HIGH, LOW, scored
from test_plots import lift_records

from liftlab import drawing, records, verifying
from liftlab.parameters import RunError

MADE_WITH = {
    "git": {"commit": "abc", "dirty": False},
    "start": "1",
    "end": "2",
    "cells": 2,
    "base_model": {"name": "m"},
}
GRID = [{"windows": 0.5, "document_seed": seed, "recipe": {"rank": 8}} for seed in (200, 201)]
ONE_CORE = ("LOKY_MAX_CPU_COUNT", "1")  # everything is drawn in this process
BENCH = "liftlab bench --rounds 5"


def notebook(root, name, *codes, **metadata):
    """A notebook under profile micro."""
    first = new_code_cell(
        'profile = "none"  # a profile\nwindows = 0.5  # windows\n', metadata={"tags": ["parameters"]}
    )
    made = new_notebook(cells=[first, *(new_code_cell(code) for code in codes)])
    made.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
    made.metadata.liftlab = metadata
    nbformat.write(made, root / "notebooks" / f"{name}.ipynb")
    (root / f"papermill_runs/micro/{name}.yaml").write_text("")


def keep(root, name, frame, provenance=None):
    made = {"study": name, "grid": GRID, "keys": ["a", "b"], "made_with": [MADE_WITH]}
    return records.write(frame, root / f"papermill_runs/micro/records/{name}.csv", provenance or made)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A repository with a figure from a notebook, one that compares claims, one of a command, and what reads them."""
    root = tmp_path_factory.mktemp("repository")
    for folder in ("notebooks", "papermill_runs/micro", "papermill_runs/empty", "figures/micro"):
        (root / folder).mkdir(parents=True)
    for name in ("lift_vs_icl", "ablation_adapter", "unfinished"):
        notebook(root, name)
    notebook(root, "claims", reads="records")
    shares = scored({"lift_gated_memory": HIGH, "lift_pissa": LOW, "gated_memory_matched_steps": HIGH,
                     "pissa_matched_steps": LOW})  # fmt: skip
    keep(root, "lift_vs_icl", lift_records())
    keep(root, "ablation_adapter", shares.assign(study="ablation_adapter"))
    keep(root, "bench", measured()[0], {"command": BENCH, "settings": {"rounds": 5}, "git": {"commit": "def"}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*ONE_CORE)
        drawing.redrawn(sorted((root / "papermill_runs/micro/records").glob("*.csv")), root / "figures/micro", True)
    return root


@pytest.fixture
def root(drawn, tmp_path, monkeypatch):
    copy = tmp_path / "with [brackets] {braces}"
    shutil.copytree(drawn, copy)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv(*ONE_CORE)
    return copy


@pytest.fixture
def call(root, command_line):
    return command_line


def changed(path, old, new):
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


def test_nothing_differs_where_nothing_was_changed_and_no_stored_byte_is_touched(root, call):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*.*") if path.is_file()}
    code, out, err = call("verify")
    assert (code, err) == (0, "")
    files = len(list((root / "figures/micro").iterdir())) + 3
    assert out == f"recomputed from records: 0 differences in {files} files " + (
        "(tolerance 1e-06, largest relative difference of two numbers 0)\n"
    )
    assert {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*.*") if path.is_file()
    } == before


def test_a_changed_number_is_found_with_its_place(root, call):
    path = root / "figures/micro/lift_vs_icl.csv"
    table = pd.read_csv(path)
    stored = str(table.loc[2, "mean"])
    table.loc[2, "mean"] *= 1 + 1e-4
    table.to_csv(path, index=False)
    (difference,) = verifying.from_records(root, "micro").differences
    assert (difference.file, difference.row, difference.column) == ("figures/micro/lift_vs_icl.csv", 3, "mean")
    assert float(difference.recomputed) == pytest.approx(float(stored))
    code, out, _ = call("verify")
    assert code == 1 and "1 difference in" in out
    assert all(word in out for word in ("figures/micro/lift_vs_icl.csv", difference.stored, difference.recomputed))


def test_a_difference_within_the_tolerance_counts_as_none(root, call):
    table = pd.read_csv(root / "figures/micro/lift_vs_icl.csv")
    table["mean"] *= 1 + 1e-4
    table.to_csv(root / "figures/micro/lift_vs_icl.csv", index=False)
    code, out, _ = call("verify", "--tolerance", "1e-3")
    assert code == 0 and "0 differences in" in out and "numbers 0.0001)" in out


def test_failed_cells_are_counted_below_the_table_that_lacks_them(root, tmp_path):
    whole = lift_records()
    failure = whole.iloc[[0]].assign(metric="failed", unit="cell", value=1.0, condition="unknown", document="cell a")
    path = keep(root, "lift_vs_icl", pd.concat([whole, failure], ignore_index=True))
    assert drawing.drawn(path, tmp_path) == ["lift_vs_icl.png .svg .csv", "lift_vs_icl.md"]
    assert (tmp_path / "lift_vs_icl.csv").read_bytes() == (root / "figures/micro/lift_vs_icl.csv").read_bytes()
    table, before = ((folder / "lift_vs_icl.md").read_text() for folder in (tmp_path, root / "figures/micro"))
    assert table.startswith(before) and table.endswith("\n1 of 2 cells failed and are not in these numbers\n")


def test_changed_texts_a_missing_and_a_left_over_file_are_found(root):
    """A text may differ in no letter, whatever the tolerance for numbers."""
    (root / "figures/micro/claims.csv").unlink()
    (root / "figures/micro/lift_vs_icl.findings.md").write_text("- once drawn\n")
    names = ["ablation_adapter.findings.md", "ablation_adapter.md", "bench.md", "claims.md", "lift_vs_icl.md"]
    for name in names:
        path = root / "figures/micro" / name
        path.write_text(path.read_text("utf-8").rstrip("\n") + "!\n", "utf-8")
    missing, left, *texts = sorted(
        verifying.from_records(root, "micro", tolerance=0.5).differences, key=lambda d: d.row != ""
    )
    assert (missing.file, missing.stored, missing.recomputed) == ("figures/micro/claims.csv", "no file", "a file")
    assert (left.file, left.stored, left.recomputed) == (
        "figures/micro/lift_vs_icl.findings.md", "a file", "no file",
    )  # fmt: skip
    assert [text.file for text in texts] == [f"figures/micro/{name}" for name in names]
    assert all(text.stored == text.recomputed + "!" and text.column == "line" for text in texts)


def test_damaged_records_are_found_and_what_they_draw_is_said_to_be_unchecked(root, call):
    changed(root / "papermill_runs/micro/records/ablation_adapter.csv", "0.9", "0.8")
    code, out, _ = call("verify")
    assert code == 1 and "1 difference in" in out and "damaged" in out
    for name in ("ablation_adapter.csv", "claims.md"):
        assert f"note: figures/micro/{name} was not recomputed: records are damaged\n" in out
    assert "lift_vs_icl" not in out


def test_another_picture_and_a_file_that_no_records_draw_are_notes(root, call):
    (root / "figures/micro/lift_vs_icl.png").write_bytes(b"other fonts")
    (root / "figures/micro/photo.csv").write_text("a\n1\n")
    code, out, _ = call("verify")
    assert code == 0 and "0 differences in" in out
    assert "note: figures/micro/lift_vs_icl.png: the picture differs" in out
    assert "note: figures/micro/photo.csv is not drawn from records: not compared" in out


def test_a_figure_or_a_profile_without_records_is_an_error_that_says_what_makes_them(root, call):
    (root / "papermill_runs/micro/records/lift_vs_icl.csv").unlink()
    code, out, err = call("verify")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "without records (lift_vs_icl): liftlab run lift_vs_icl --profile micro" in err
    code, out, err = call("verify", "--profile", "empty")
    assert (code, out) == (2, "") and "liftlab run --profile empty makes them" in err
    code, out, err = call("verify", "--profile", "micr")
    assert (code, out) == (2, "") and "did you mean 'micro'" in err


@pytest.mark.parametrize("tolerance", ["-1e-9", "1", "nan", "inf"])
def test_a_tolerance_out_of_bounds_is_refused(call, tolerance):
    code, out, err = call("verify", f"--tolerance={tolerance}")
    assert (code, out) == (2, "") and "tolerance" in err and "0..1" in err


def rows(value, **columns):
    """Two rows of records."""
    row = {"study": "s", "base_model": "m", "document": "d", "document_tokens": 9, "seed": 0, "condition": "lift",
           "metric": "f1", "unit": "share", "value": value}  # fmt: skip
    return pd.DataFrame([row, row | {"document": "e"}]).assign(**columns)


def without_notebooks(root):
    """The repository with the records of its command alone."""
    made = [*(root / "notebooks").iterdir(), *(root / "papermill_runs/micro").glob("*.yaml")]
    for path in [*made, *(root / "papermill_runs/micro/records").glob("[!b]*.*")]:
        path.unlink()


def test_records_from_scratch_are_compared_row_by_row(root, monkeypatch):
    """Equal ones, changed ones, some that are timed, that are new or not made again, and that no notebook makes."""
    without_notebooks(root)
    stored = {"same": 0.25 * (1 + 1e-9), "other": 0.5, "timed": 0.7, "failing": 0.25}
    for name in (*stored, "new"):
        notebook(root, name, **({"times": True} if name == "timed" else {}))
    for name, value in stored.items():
        keep(root, name, rows(value))

    def run(again, profile, found):
        assert again != root and profile == "micro" and not list(again.rglob("*.csv"))
        for name in ("same", "other", "timed", "new"):
            keep(again, name, rows(0.25, document=["d", "f"] if name == "timed" else ["d", "e"]))

    monkeypatch.setattr(verifying, "_run", run)
    found = verifying.from_scratch(root, "micro")
    at = "papermill_runs/micro/records"
    assert [(d.file, d.row, d.column, d.stored, d.recomputed) for d in found.differences] == [
        (f"{at}/failing.csv", "", "", "a file", "no file"),
        (f"{at}/new.csv", "", "", "no file", "a file"),
        (f"{at}/other.csv", 1, "value", "0.5", "0.25"),
        (f"{at}/other.csv", 2, "value", "0.5", "0.25"),
        (f"{at}/timed.csv", 2, "document", "e", "f"),
    ]
    assert found.files == 3 and found.largest == 0.5
    assert found.notes == [
        f"{at}/bench.csv is made by {BENCH}: not computed again",
        f"{at}/timed.csv: its notebook times what it does, so values are not compared",
    ]


MEASURE = """
from liftlab import records, runner
import pandas as pd
row = {"study": "s", "base_model": "m", "document": "d", "document_tokens": 9, "seed": 0, "condition": "lift",
       "metric": "f1", "unit": "share", "value": windows / 2}
records.write(pd.DataFrame([row, row | {"document": "e"}]), runner.records_folder(profile) / "same.csv", {})
"""


def test_a_run_from_scratch_is_a_real_one_in_another_place(root, capfd):
    """The notebook is executed with the profile's parameters; that it fails after it has recorded is told."""
    without_notebooks(root)
    notebook(root, "same", MEASURE, "1 / 0")
    (root / "papermill_runs/micro/same.yaml").write_text("windows: 0.25\n")
    keep(root, "same", rows(0.125))
    before = sorted(root.rglob("*"))
    found = verifying.from_scratch(root, "micro")
    assert (found.differences, found.files) == ([], 1)
    assert found.notes[0] == "a notebook failed in the run from scratch: what it said stands above"
    said = capfd.readouterr()
    assert said.out == "" and "division by zero" in said.err
    assert sorted(root.rglob("*")) == before


def test_a_run_from_scratch_that_cannot_start_is_an_error(root):
    (root / "papermill_runs/micro/claims.yaml").write_text("unknown: 1\n")
    with pytest.raises(RunError, match="could not be run again"):
        verifying.from_scratch(root, "micro")
