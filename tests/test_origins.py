"""Each figure tells where it comes from: what makes it again, and what made its records."""

# ruff: noqa: F811  (fixtures of another test file)

import json

import pytest
from test_plots import lift_records
from test_verifying import BENCH, GRID, MADE_WITH, call, changed, drawn, keep, root  # noqa: F401

from liftlab import origins


@pytest.mark.parametrize(
    "name",
    ["lift_vs_icl", "lift_vs_icl.png", "lift_vs_icl.findings.md", "figures/micro/lift_vs_icl.csv", "micro/lift_vs_icl"],
)
def test_a_figure_is_known_by_its_name_its_file_or_a_path(root, name):
    found = origins.origin(root, name)
    assert (found.figure, found.profile) == ("lift_vs_icl", "micro")
    assert {path.suffix for path in found.files} == {".png", ".svg", ".csv", ".md"}
    (source,) = found.sources
    assert source.command == "liftlab run lift_vs_icl --profile micro"
    assert source.notebook == root / "notebooks/lift_vs_icl.ipynb" and source.parameters.is_file()
    assert source.whole and source.rows == len(lift_records()) and source.seeds == [0]
    assert source.settings == {"windows": 0.5, "recipe": {"rank": 8}} and source.varied == {"document_seed": [200, 201]}
    assert source.makers == [MADE_WITH]


def test_claims_come_from_every_notebook_that_they_compare(root):
    found = origins.origin(root, "claims")
    assert [source.path.stem for source in found.sources] == ["ablation_adapter"]
    assert found.command == "liftlab figures --profile micro" and len(found.files) == 4


def test_a_command_s_table_tells_that_command(root, call):
    code, out, err = call("provenance", "bench.md")
    assert (code, err) == (0, "")
    assert BENCH in out and "commit def" in out and "notebooks/" not in out


def test_what_is_printed_holds_all_that_is_known(root, call):
    code, out, err = call("provenance", "figures/micro/lift_vs_icl.png")
    assert (code, err) == (0, "")
    sha256 = json.loads((root / "papermill_runs/micro/records/lift_vs_icl.json").read_text())["sha256"]
    for words in (
        "liftlab run lift_vs_icl --profile micro", "liftlab figures --profile micro", "notebooks/lift_vs_icl.ipynb",
        "papermill_runs/micro/lift_vs_icl.yaml", f"{sha256} (matches)",
        "one of 200, 201", "rank 8", "commit abc, dirty no", "2 of 2 worked", f"{len(lift_records())}", "name m",
    ):  # fmt: skip
        assert words in out, words


def test_several_ways_of_making_are_all_told(root, call):
    other = MADE_WITH | {"git": {"commit": "fed", "dirty": True}}
    made = {"grid": GRID, "made_with": [MADE_WITH, other], "failed": [{"settings": GRID[0], "reason": "x"}]}
    keep(root, "lift_vs_icl", lift_records(), made)
    _, out, _ = call("provenance", "lift_vs_icl")
    assert "commit abc, dirty no" in out and "commit fed, dirty yes" in out and "1 of 2 worked" in out


def test_the_command_sets_what_the_profile_gives_otherwise_today(root):
    """A single value that the notebook's parameters share by name and type; others say nothing."""
    (root / "papermill_runs/micro/lift_vs_icl.yaml").write_text("windows: 2.0\n")
    assert origins.origin(root, "lift_vs_icl").sources[0].command.endswith("--profile micro --set windows=0.5")


def test_damaged_records_are_told_and_end_with_an_error(root, call):
    changed(root / "papermill_runs/micro/records/lift_vs_icl.csv", "0.123", "0.124")
    code, out, err = call("provenance", "lift_vs_icl")
    assert code == 2 and "DOES NOT MATCH" in out and "does not match its checksum" in err


def test_an_unknown_figure_is_answered_with_the_known_ones(call):
    code, out, err = call("provenance", "lift_vs_icm")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "'lift_vs_icm', did you mean 'lift_vs_icl'" in err
    assert "there are: ablation_adapter, bench, claims, lift_vs_icl, unfinished" in err


def test_a_figure_without_records_names_what_makes_them(root, call):
    code, out, err = call("provenance", "unfinished")
    assert (code, out) == (2, "") and "liftlab run unfinished --profile micro makes them" in err
    (root / "papermill_runs/micro/records/bench.csv").unlink()
    code, out, err = call("provenance", "bench")
    assert (code, out) == (2, "") and "restore them" in err


def test_a_path_and_a_profile_must_agree(call):
    assert call("provenance", "figures/micro/bench.csv", "--profile", "micro")[0] == 0
    code, _, err = call("provenance", "figures/micro/bench.csv", "--profile", "paper")
    assert code == 2 and "leave one out" in err
