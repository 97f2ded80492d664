"""Claims against records: a verdict follows from the interval alone, and every claim points at what exists."""

import ast
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import yaml

from liftlab import claims, comparisons, published, records, register_tasks
from liftlab.canvas import PlotError
from liftlab.claims import NOT_SUPPORTED, OPPOSITE, SUPPORTED, UNTESTED
from liftlab.evaluation_points import LONG, LONG_QA, published_task
from liftlab.statistics import paired_test

ROOT = Path(__file__).parents[1]
CLAIMS = yaml.safe_load((ROOT / "liftlab/paper/claims.yaml").read_text("utf-8"))
TESTS = [(claim["version"], test) for claim in CLAIMS for test in claim.get("tests", [])]
HIGH, LOW = [0.9, 0.8, 0.7, 0.9, 0.8], [0.1, 0.3, 0.2, 0.1, 0.2]


def scored(values, metric="f1", kind="short_qa"):
    """{condition: its value in each document}, None for a document without it."""
    at = {"study": "s", "base_model": "micro", "document_tokens": 300, "seed": 0, "unit": "share of questions"}
    return pd.DataFrame(
        at | {"condition": condition, "document": f"d{n}", "kind": kind, "metric": metric, "value": value}
        for condition, of in values.items() for n, value in enumerate(of) if value is not None
    )  # fmt: skip


def kept(folder, notebook, *parts):
    records.write(pd.concat(parts, ignore_index=True), folder / f"{notebook}.csv", {})
    return claims.against(folder)


def found(data, notebook, kind, a):
    (row,) = data[(data["notebook"] == notebook) & (data["kind"] == kind) & (data["a"] == a)].itertuples()
    return row


def short_qa(folder, a, b, **changes):
    data = kept(folder, "ablation_adapter", scored({"lift_gated_memory": a, "lift_pissa": b}, **changes))
    return found(data, "ablation_adapter", "short_qa", "lift_gated_memory")


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (HIGH, LOW, SUPPORTED),
        (LOW, HIGH, OPPOSITE),
        (HIGH, [0.8, 0.9, 0.9, 0.7, 0.8], NOT_SUPPORTED),
        (HIGH, HIGH, NOT_SUPPORTED),
        ([0.0] * 5, [0.0, 0.0, 0.0, 0.0, 0.1], NOT_SUPPORTED),
    ],
    ids=["above_0", "below_0", "around_0", "equal", "nearly_nothing"],
)
def test_the_verdict_is_where_the_paired_interval_lies(tmp_path, a, b, verdict):
    row = short_qa(tmp_path, a, b)
    test = paired_test(dict(enumerate(a)), dict(enumerate(b)))
    assert (row.verdict, row.why, row.documents, row.score, row.base_model) == (verdict, "", 5, "f1", "micro")
    assert (row.difference, row.low, row.high, row.p) == pytest.approx((test.difference, test.low, test.high, test.p))
    assert {SUPPORTED: row.low > 0, OPPOSITE: row.high < 0, NOT_SUPPORTED: row.low <= 0 <= row.high}[verdict]


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        ([0.0] * 5, [0.0] * 5, "neither condition answers any question of this type"),
        ([0.9], [0.1], "documents with both: 1"),
        ([0.9, None, 0.8], [None, 0.1], "documents with both: 0"),
        ([None], HIGH, "no lift_gated_memory of this type"),
    ],
    ids=["floor", "one", "none_shared", "no_condition"],
)
def test_what_cannot_be_tested_says_why(tmp_path, a, b, why):
    row = short_qa(tmp_path, a, b)
    assert (row.verdict, row.why) == (UNTESTED, why) and pd.isna(row.difference) and pd.isna(row.p)
    assert row.published_difference == pytest.approx(47.51 - 42.03)  # told all the same


def test_without_records_nothing_is_tested_and_nothing_is_drawn(tmp_path):
    data = claims.against(tmp_path)
    assert set(data["verdict"]) == {UNTESTED} and list(data.columns) == claims.COLUMNS
    assert set(data.loc[data["notebook"].notna(), "why"]) == {"its notebook has not run"}
    assert list(data.loc[data["notebook"].isna(), "why"]) == [c["untested"] for c in CLAIMS if "tests" not in c]
    with pytest.raises(PlotError, match="no claim could be tested: run the evaluation's notebooks"):
        claims.save(tmp_path, tmp_path / "figures")
    assert list(tmp_path.iterdir()) == [] and plt.get_fignums() == []
    rows = scored({"chance": HIGH}, metric="chance")
    row = found(kept(tmp_path, "needle", rows), "needle", "all", "lift")
    assert (row.verdict, row.why) == (UNTESTED, "its records hold no score of a question")


def test_the_first_score_counts_long_types_are_pooled_and_a_needle_s_places_averaged(tmp_path):
    """By hand: long_qa of d0 is the mean of its three questions, not of its two types."""
    a = scored({"lift_truncated_icl": HIGH}, kind="timeline_reorder")
    a = pd.concat([a, a, scored({"lift_truncated_icl": LOW}, kind="comprehension_and_reasoning")])
    b = pd.concat([scored({"truncated_icl": LOW}, kind=kind) for kind in ("timeline_reorder", "computation")])
    other = scored({"lift_truncated_icl": LOW, "truncated_icl": HIGH}, metric="exact_match", kind="timeline_reorder")
    data = kept(tmp_path, "table_loogle", a, b, other)
    data = data[(data["notebook"] == "table_loogle") & (data["kind"] == LONG_QA) & (data["b"] == "truncated_icl")]
    row = data.iloc[0]
    expected = {n: (2 * high + low) / 3 - low for n, (high, low) in enumerate(zip(HIGH, LOW, strict=True))}
    assert row["difference"] == pytest.approx(sum(expected.values()) / 5) and row["score"] == "f1"
    places = [scored({"lift": of, "finetune_raw": LOW}, kind=kind) for kind, of in
              (("length_1w_depth_0", HIGH), ("length_1w_depth_50", LOW))]  # fmt: skip
    row = found(kept(tmp_path, "needle", *places), "needle", "all", "lift")
    assert row.difference == pytest.approx((sum(HIGH) - sum(LOW)) / 10) and row.documents == 5


def test_published_differences_are_the_papers_numbers(tmp_path):
    """Looked up by hand in the papers' tables; the needle's raw fine-tuning found 51.7 % on average."""
    data = claims.against(tmp_path).set_index(["version", "notebook", "kind", "a", "b"])["published_difference"]
    v1, v4, first = "2502.14644v1-v3", "2502.14644v4", "2412.13626"
    both, icl = "lift_truncated_icl", "truncated_icl"
    for key, difference in {
        (v1, "table_loogle", "short_qa", both, icl): 47.51 - 44.49,
        (v1, "table_loogle", "long_qa", both, icl): 29.97 - 15.44,
        (v1, "table_loogle", "multiple_information_retrieval", both, icl): 27.89 - 15.26,
        (v1, "table_longbench", "musique", both, icl): 21.19 - 26.89,
        (first, "table_loogle", "computation", icl, both): 24.0 - 22.0,
        (first, "table_loogle", "long_qa", icl, "lift"): 30.88 - 27.34,
        (first, "table_loogle", "short_qa", both, "lift"): 50.44 - 35.83,
        (v1, "ablation_contextualized", "long_qa", "lift_with_contextualized_training",
         "lift_without_contextualized_training"): 29.97 - 27.07,
        (v1, "ablation_auxiliary", "long_qa", "lift_30_auxiliary_qa", "lift_10_auxiliary_qa"): 30.7 - 29.97,
        (v1, "ablation_adapter", "long_qa", "lift_gated_memory", "lift_pissa"): 29.97 - 29.06,
        (v4, "sentence_qa", "short_qa", "lift_more_pairs", "finetune_raw"): 52.69 - 33.93,
        (first, "table_loogle", "timeline_reorder", both, icl): 26.51 - 22.33,
        (first, "table_loogle", "long_qa", both, icl): 33.42 - 30.88,
        (first, "timeline", "timeline_reorder", both, icl): 21.04 - 19.97,
        (first, "timeline", "timeline_reorder", "lift_timeline_tasks_truncated_icl", both): 21.14 - 21.04,
        (first, "pre_lift_sft", "timeline_reorder", "sft_lift_truncated_icl", both): 23.52 - 21.04,
        (first, "pre_lift_sft", "timeline_reorder", "sft_truncated_icl", icl): 24.11 - 19.97,
        (first, "pre_lift_sft", "timeline_reorder", "sft_lift_truncated_icl",
         "sft_lift_auxiliary_truncated_icl"): 23.52 - 22.13,
        (first, "evidence_in_prompt", "long_qa", "truncated_icl_evidence", both): 53.77 - 33.42,
    }.items():  # fmt: skip
        assert data[key] == pytest.approx(difference), key
    assert data[v4, "needle", "all", "lift", "finetune_raw"] == pytest.approx(100 - 51.7, abs=0.05)


def parameters(notebook):
    """The literals of a notebook's parameters cell."""
    cells = json.loads((ROOT / f"notebooks/{notebook}.ipynb").read_text("utf-8"))["cells"]
    (cell,) = (cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse("".join(cell["source"])).body}


@pytest.mark.parametrize(
    ("version", "test"), TESTS, ids=lambda value: value if isinstance(value, str) else value["kind"]
)
def test_every_claim_compares_conditions_of_its_notebook_on_questions_that_exist(version, test):
    known = parameters(test["notebook"])
    assert {test["a"], test["b"]} <= set(known["conditions"]) and test["a"] != test["b"]
    kinds = {*known["benchmark"].get("tasks", []), *published.of(test["notebook"])["task"].map(published_task), "all"}
    assert test["kind"] in kinds | ({LONG_QA} if kinds & set(LONG) else set())
    if said := test.get("published"):
        rows = published.numbers()
        rows = rows[(rows["version"] == version) & (rows["item"] == said["item"])]
        rows = rows[rows["model"].str.startswith("Llama-3")]
        rows = rows[rows["metric"] == said.get("metric", rows["metric"].iloc[0])]
        assert "metric" in said or published.numbers().loc[rows.index, "metric"].nunique() == 1
        for side in "ab":
            of = rows[rows["method"] == said.get(side, test[side])]
            of = of if test["kind"] == "all" else of[of["task"].map(published_task) == test["kind"]]
            assert len(of) == (48 if test["kind"] == "all" else 1)


def test_every_claim_has_tests_or_a_reason_and_a_version_that_was_published():
    versions = {*published.numbers()["version"], "liftlab"}
    for claim in CLAIMS:
        assert claim["version"] in versions and ("tests" in claim) != ("untested" in claim)
    assert claims.notebooks() == {test["notebook"] for _, test in TESTS}


@pytest.mark.parametrize("notebook", comparisons.CONTRASTS)
def test_findings_contrast_conditions_of_their_notebook(notebook):
    known = parameters(notebook)
    assert {name for pair in comparisons.CONTRASTS[notebook] for name in pair} <= set(known["conditions"])
    assert known["benchmark"]["source"] != "register" or set(known["benchmark"]["tasks"]) <= set(register_tasks.TASKS)


def test_every_number_of_the_table_stands_in_the_data_and_figure_and_table_are_written(tmp_path):
    kept(tmp_path, "ablation_adapter", scored({"lift_gated_memory": HIGH, "lift_pissa": LOW}),
         scored({"gated_memory_matched_steps": LOW, "pissa_matched_steps": HIGH}))  # fmt: skip
    kept(tmp_path, "needle", scored({"lift": [1.0] * 3, "finetune_raw": [0.5] * 3}, "needle_keys", "length_1w_depth_0"))
    figure, shown = claims.save(tmp_path, tmp_path / "figures")
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == ["claims.csv", "claims.md", "claims.png", "claims.svg"] and plt.get_fignums() == []
    data = pd.read_csv(tmp_path / "figures/claims.csv")
    lines = (tmp_path / "figures/claims.md").read_text("utf-8").splitlines()
    assert len(lines) == len(shown) + 2 == len(data) + 2 and "nan" not in "".join(lines)
    numbers = ["published_difference", "difference", "low", "high", "documents"]
    for line, row in zip(lines[2:], data.itertuples(), strict=True):
        said = re.findall(r"[+-]\d+\.\d\d|\d+(?= documents)", line)
        known = [getattr(row, name) for name in numbers if pd.notna(getattr(row, name))]
        assert sorted(map(float, said)) == pytest.approx(sorted(known), abs=0.0051)
        assert row.verdict in line and (pd.isna(row.why) or row.why in line)
    legend = zip(*figure.axes[0].get_legend_handles_labels(), strict=True)
    drawn = {label: len(handle.lines[0].get_xdata()) for handle, label in legend if label in set(data["verdict"])}
    assert drawn == {SUPPORTED: 2, OPPOSITE: 1}


def test_a_claim_without_published_rows_is_an_error_in_the_data():
    test = {"kind": "short_qa", "a": "x", "b": "icl", "published": {"item": "table2"}}
    with pytest.raises(PlotError, match="published.csv has no .*: correct paper/claims.yaml"):
        claims._printed("2502.14644v1-v3", test)
