"""The README's numbers are the figures' numbers, and what it names exists."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from liftlab import bench_tables, claims, comparisons, evaluation_plots, tables
from liftlab.probe_plots import ADAPTERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
NUMBERS = sorted((ROOT / "figures").glob("*/*.csv"))
BENCHES = [path for path in NUMBERS if path.stem.startswith("bench")]  # `liftlab bench`: a table without a figure
FAULTS = ROOT / "figures/micro/faults.csv"  # `make faults`
DATA = [path for path in NUMBERS if path not in (*BENCHES, FAULTS)]


@pytest.mark.parametrize("path", DATA, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_each_figure_s_table_stands_in_the_readme_as_its_data_gives_it(path):
    table = tables.markdown({**tables.TABLES, "claims": claims.table}[path.stem](pd.read_csv(path)))
    assert path.with_suffix(".md").read_text("utf-8") == table + "\n"
    linked = path.stem in evaluation_plots.DRAWINGS  # wide, with every published column: linked
    assert (f"]({path.with_suffix('.md').relative_to(ROOT).as_posix()})" if linked else table) in README


@pytest.mark.parametrize("path", BENCHES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_each_bench_stands_in_the_readme_as_its_data_gives_it(path):
    data = pd.read_csv(path)
    text = f"{tables.markdown(bench_tables.table(data))}\n\n{bench_tables.notes(data)}"
    assert path.with_suffix(".md").read_text("utf-8") == text
    assert text in README


def test_the_readme_says_how_the_kills_ended():
    kills = pd.read_csv(FAULTS)
    whole = (kills["repeated"] == 0) & (kills["left_behind"] == 0) & (kills["exit_code"] == 0)
    survived = (whole & (kills["records"] == "same")).sum()
    assert f"{survived} of {len(kills)} kills at random moments" in README
    assert f"{kills['cells_finished'].sum()} cells were finished by then, {kills['repeated'].sum()} of them" in README


@pytest.mark.parametrize(
    "path", sorted((ROOT / "figures").glob("*/*.findings.md")), ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_each_figure_s_findings_stand_in_the_readme(path):
    assert path.read_text("utf-8") in README


def test_every_figure_with_findings_has_them():
    named = [path for path in DATA if path.stem in comparisons.FINDINGS]
    assert named and all(path.with_suffix(".findings.md").is_file() for path in named)


MEANS = {  # a sentence's start: what it subtracts, as columns of the figure's numbers
    "Closed book, held-out wordings, lift minus base": {"panel": "controls", "line": "held_out"},
    "Closed book, two hops, lift minus base": {"panel": "controls", "line": "two_hops"},
    "Answered from memory, lift minus base": {"panel": "answers", "line": "memory"},
    "Answered from the context, lift minus base": {"panel": "answers", "line": "context"},
}


@pytest.mark.parametrize("path", [p for p in DATA if p.stem in ("memorization_vs_icl", "conflict")],
                         ids=lambda p: f"{p.parent.name}/{p.stem}")  # fmt: skip
def test_a_finding_s_difference_is_that_of_the_means_drawn(path):
    """Paired or not, a mean difference over the same documents is the difference of the means."""
    data, said = pd.read_csv(path), path.with_suffix(".findings.md").read_text("utf-8")
    checked = 0
    for start, values in MEANS.items():
        rows = data[(data[list(values)] == pd.Series(values)).all(axis=1)]
        for adapter, label in ADAPTERS.items():
            found = re.search(rf"- {start}: (?:.*; )?(?:{label}) (?:no difference found: )?([+-][\d.]+) \[", said)
            if found:
                lift = rows[(rows["condition"] == "lift") & (rows["adapter"] == adapter)]
                last = lift.loc[lift["step"].fillna(0).idxmax(), "mean"]
                base = rows.loc[rows["condition"] == "base", "mean"].item()
                assert float(found[1]) == pytest.approx(last - base, abs=0.006)
                checked += 1
    assert checked >= 2


def intervals(data):
    """Mean, low and high of each row of a figure's numbers, and those of its costs, where it has them."""
    parts = [data.reindex(columns=[f"{of}{name}" for name in ("mean", "low", "high")]) for of in ("", "cost_")]
    return np.concatenate([part.dropna().to_numpy(float) for part in parts])


def test_each_line_on_when_to_use_lift_says_what_its_figure_s_data_say():
    """Each mean with its interval, and each number of tokens or bytes, stands in the data that the line links."""
    advice = README.partition("## When to use LIFT")[2].partition("\n## ")[0]
    lines = re.split(r"^\d+\. ", advice, flags=re.MULTILINE)[1:]
    assert len(lines) == 10
    for line in lines:
        data = [pd.read_csv(ROOT / name) for name in re.findall(r"\]\((figures/[^)]+\.csv)\)", line)]
        known = {tuple(f"{x:.2f}" for x in row) for each in data for row in intervals(each)}
        said = re.findall(r"(\d\.\d\d)\s\[(\d\.\d\d), (\d\.\d\d)\]", line)
        costs = {f"{cost:,.0f}" for each in data if "cost_mean" in each for cost in each["cost_mean"].dropna()}
        counted = re.findall(r"\b\d{1,3}(?:,\d{3})+\b", line)
        assert (said or counted) and set(said) <= known and set(counted) <= costs


ROUNDED = "### Time to the first token, length of the answer, memory"  # in fewer digits than in its table
MEASURED = re.compile(r"[-+]?[\d.,]*\d \[[-+\d.,]+ [-+\d.,]+\]")  # a number with its interval
SECTIONS = [part for part in re.split(r"(?m)^(?=##)", README) if MEASURED.search(part) and not part.startswith(ROUNDED)]


def stated(section):
    """What its figures, or all where it names none, say: their tables and findings, and the rows of their data."""
    named = {ROOT / path for path in re.findall(r"figures/\w+/\w+(?=\.)", section)}
    files = [path for path in NUMBERS if not named or path.with_suffix("") in named]
    said = {number for path in files for text in path.parent.glob(f"{path.stem}*.md")
            for number in MEASURED.findall(text.read_text("utf-8"))}  # fmt: skip
    for path in files:
        rows = intervals(pd.read_csv(path))
        said |= {f"{mean:.{n}f} [{low:.{n}f}, {high:.{n}f}]" for mean, low, high in rows for n in (2, 3)}
    return {number.replace("+", "") for number in said}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.split("\n")[0].strip("# "))
def test_each_measured_number_of_the_prose_stands_in_its_figure_s_data(section):
    prose = " ".join(" ".join(line for line in section.splitlines() if not line.startswith("|")).split())
    assert {number.replace("+", "") for number in MEASURED.findall(prose)} <= stated(section)


def test_every_figure_is_there_in_three_forms_and_shown():
    assert DATA
    for path in DATA:
        assert path.with_suffix(".png").is_file() and path.with_suffix(".svg").is_file()
        assert f"figures/{path.parent.name}/{path.stem}.png" in README


def test_files_and_modules_named_in_the_readme_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    modules = re.findall(r"^\| `([\w./]+)`", README, flags=re.MULTILINE)
    assert links and modules
    for name in links:
        assert (ROOT / name).exists(), name
    for name in modules:
        assert (ROOT / "liftlab" / f"{name}.py").exists() or (ROOT / "liftlab" / name).is_dir(), name


def test_the_module_table_is_the_import_order():
    from test_layers import NAMED

    named = [name.replace("/", ".") for name in re.findall(r"^\| `([\w/]+)`", README, flags=re.MULTILINE)]
    assert named == NAMED


def test_make_targets_in_the_readme_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make (\w+)", README, flags=re.MULTILINE))
    assert {"reproduce", "test", "lab"} <= named <= targets
