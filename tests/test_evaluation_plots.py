"""Figures, tables and findings of the evaluation: measured numbers are plain means over documents, published beside."""

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from liftlab import comparisons, evaluation_plots, findings, plots, published, tables
from liftlab.canvas import PlotError
from liftlab.evaluation_plots import NOTEBOOKS, condition_label
from liftlab.evaluation_points import COLUMNS, LONG, points
from liftlab.statistics import interval, paired_test

TYPES = ("short_qa", "comprehension_and_reasoning", "multiple_information_retrieval", "timeline_reorder")
TASKS = ("musique", "narrativeqa", "qmsum", "gov_report", "passage_retrieval_en")
CONDITIONS = {name: tuple(dict.fromkeys(c for pair in pairs for c in pair))
              for name, pairs in comparisons.CONTRASTS.items()}  # fmt: skip
CHANCE = 1 / 32
SCORES = ("f1", "exact_match")
CT, QA = "lift_with_contextualized_training", "lift_30_auxiliary_qa"


def evaluation_records(notebook="table_loogle", kinds=TYPES, conditions=None, documents=4, scores=SCORES):
    """Two seeds of each lift; questions a kind and document differ in number; timelines have no chance level."""
    rng, rows = np.random.default_rng(0), []
    for document in range(documents):
        at = {"study": notebook, "base_model": "micro", "document": f"d{document}", "document_tokens": 300}
        for condition in conditions or CONDITIONS[notebook]:
            for seed in range(2 if "lift" in condition else 1):
                of = at | {"condition": condition, "seed": seed}
                for score in scores:
                    asked = of | {"metric": score, "unit": "share of questions", "answer": "x"}
                    for number, kind in enumerate(kinds):
                        count = 1 + (number + document) % 3
                        rows += [asked | {"kind": kind, "value": float(rng.random())} for _ in range(count)]
                if "lift" in condition:
                    rows.append(of | {"kind": "", "metric": "train_steps", "unit": "steps", "value": 8.0, "answer": ""})
        level = at | {"condition": "chance", "seed": 0, "metric": "chance", "unit": "share of questions", "answer": ""}
        rows += [level | {"kind": kind, "value": CHANCE} for kind in kinds if kind != "timeline_reorder"]
    return pd.DataFrame(rows)


def needle_records(conditions=("truncated_icl", "finetune_raw", "lift"), documents=3, scores=("needle_keys",)):
    kinds = [f"length_{length}w_depth_{depth}" for length in (1, 2.5) for depth in (0, 50, 100)]
    return evaluation_records("needle", kinds, conditions, documents, scores)


def records_of(notebook, **changes):
    if notebook == "needle":
        return needle_records(**changes)
    return evaluation_records(notebook, **{"kinds": TASKS if notebook == "table_longbench" else TYPES, **changes})


def drawn(notebook, records):
    figure, data = plots.DRAWINGS[notebook](records)
    plt.close(figure)
    return figure, data


def test_every_evaluation_notebook_has_a_drawing_a_table_and_findings():
    names = {*NOTEBOOKS, "needle"}
    assert names == set(evaluation_plots.DRAWINGS) == set(comparisons.CONTRASTS)
    assert names <= set(plots.DRAWINGS) & set(tables.TABLES) & set(comparisons.FINDINGS)
    assert names >= {item.notebook for item in published.items()} - {"", "efficiency"}


def test_a_measured_number_is_the_mean_over_documents_of_all_their_questions_and_seeds():
    records = evaluation_records()
    data = points(records, "table_loogle")
    assert list(data.columns) == COLUMNS
    measured = data[(data["source"] == "measured") & (data["metric"] != "chance")]
    scored = records[records["metric"].isin(["f1", "exact_match"])]
    assert len(measured) == 2 * (len(TYPES) + 1) * len(CONDITIONS["table_loogle"])
    for row in measured.itertuples():
        kinds = LONG if row.kind == "long_qa" else [row.kind]
        of = scored[(scored["metric"] == row.metric) & (scored["condition"] == row.condition)]
        of = of[of["kind"].isin(kinds)]
        means = of.groupby("document")["value"].mean()
        assert (row.mean, row.low, row.high) == pytest.approx(interval(means))
        assert (row.documents, row.questions, row.unit) == (4, len(of), "share of questions")
    chance = data[data["metric"] == "chance"].set_index("kind")["mean"]
    assert chance.to_dict() == dict.fromkeys([*TYPES[:3], "long_qa"], pytest.approx(CHANCE))


def test_one_type_of_long_questions_is_not_called_all_of_them():
    data = points(evaluation_records(kinds=("short_qa", "timeline_reorder")), "prompt_format")
    assert set(data["kind"]) == {"short_qa", "timeline_reorder"} and set(data["source"]) == {"measured"}


def test_rows_stand_in_the_order_of_types_and_of_what_was_recorded():
    data = points(evaluation_records(kinds=("own", *reversed(TYPES)), scores=("f1", "contains")), "prompt_format")
    scored = data[data["metric"] != "chance"]
    assert list(dict.fromkeys(scored["metric"])) == ["f1", "contains"]
    assert list(dict.fromkeys(scored["kind"])) == ["short_qa", "long_qa", *TYPES[1:], "own"]
    assert list(dict.fromkeys(scored["condition"])) == list(CONDITIONS["table_loogle"])


@pytest.mark.parametrize(
    ("notebook", "version", "item", "method", "task", "condition"),
    [
        ("table_loogle", "2502.14644v1-v3", "table2", "lift", "multiple_info_retrieval", "lift_truncated_icl"),
        ("table_loogle", "2502.14644v1-v3", "table2", "icl", "long_qa", "truncated_icl"),
        ("table_loogle", "2412.13626", "table1", "lift_only", "short_qa", "lift"),
        ("table_loogle", "2412.13626", "table2", "lift_icl", "computation", "lift_truncated_icl"),
        ("table_longbench", "2412.13626", "table3", "lift_only", "qmsum", "lift"),
        ("ablation_contextualized", "2502.14644v1-v3", "table4", CT, "long_qa", CT),
        ("ablation_auxiliary", "2502.14644v1-v3", "table5", QA, "short_qa", QA),
        ("ablation_adapter", "2502.14644v1-v3", "table6", "lift_gated_memory", "short_qa", "lift_gated_memory"),
        ("sentence_qa", "2502.14644v4", "loogle_llama3", "lift_10_qa_per_sentence", "short_qa", "lift_more_pairs"),
        ("sentence_qa", "2502.14644v4", "loogle_more_models", "icl", "short_qa", "truncated_icl"),
        ("evidence_in_prompt", "2412.13626", "table5", "icl_evidence", "long_qa", "truncated_icl_evidence"),
        ("needle", "2502.14644v4", "niah", "finetune_raw", "length_128k_depth_20", "finetune_raw"),
    ],
)  # fmt: skip
def test_a_published_number_stands_under_its_condition_as_a_share(notebook, version, item, method, task, condition):
    raw = published.numbers().query("version == @version and item == @item and method == @method and task == @task")
    kind = task.replace("multiple_info_", "multiple_information_")
    told = points(records_of(notebook), notebook).query("source == 'published' and version == @version")
    told = told[(told["kind"] == kind) & (told["condition"] == condition)]
    assert len(raw)
    for row in raw.itertuples():
        (mean,) = told.loc[(told["metric"] == row.metric) & (told["model"] == row.model), "mean"]
        assert mean == pytest.approx(row.value / 100)


@pytest.mark.parametrize("notebook", [*NOTEBOOKS, "needle"])
def test_all_that_was_published_for_a_notebook_stands_beside_it_once(notebook):
    told = points(records_of(notebook), notebook).query("source == 'published'")
    rows = published.of(notebook)
    assert sorted(told["mean"] * 100) == pytest.approx(sorted(rows["value"]))
    assert not told.duplicated(["version", "model", "metric", "kind", "condition"]).any()
    assert told[["low", "high", "documents", "questions"]].isna().all(axis=None)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_s_figure_and_table_are_written_and_name_every_condition(notebook, tmp_path):
    records = records_of(notebook)
    plots.save(notebook, records, tmp_path)
    assert plt.get_fignums() == []
    table = tables.save(notebook, tmp_path)
    text = (tmp_path / f"{notebook}.md").read_text("utf-8")
    assert set(map(condition_label, CONDITIONS[notebook])) <= set(table["condition"])
    assert "nan" not in text and "NaN" not in text and "None" not in text
    data = points(records, notebook)
    cells = {value for row in table.drop(columns=["questions of type", "condition"]).to_numpy() for value in row}
    for row in data[data["metric"] != "chance"].itertuples():
        measured = f"{row.mean:.2f} [{row.low:.2f}, {row.high:.2f}]"
        assert (measured if row.source == "measured" else f"{100 * row.mean:.2f}") in cells


@pytest.mark.parametrize(
    "changes",
    [
        {"kinds": ("musique",)},
        {"kinds": ("questions",), "conditions": ("my_own", "lift")},
        {"conditions": ("closed_book",), "documents": 1, "scores": ("judge",)},
        {"kinds": ("timeline_reorder",)},  # no chance level
    ],
    ids=["one_type", "own_names", "one_document", "no_chance"],
)
def test_records_of_less_are_drawn_as_well(changes, tmp_path):
    records = evaluation_records("table_loogle", **changes)
    figure = plots.save("table_loogle", records, tmp_path)
    told = {text.get_text() for text in figure.legends[0].get_texts()}
    assert ("chance" in told) == bool((records["metric"] == "chance").any())
    assert {condition_label(name) for name in records["condition"] if name != "chance"} <= told
    assert "nan" not in (tables.save("table_loogle", tmp_path).to_string())
    said = findings.of("table_loogle", records)
    assert said.startswith("- ") and "nan" not in said


def test_points_are_drawn_at_their_numbers_published_ones_in_the_first_panel_alone():
    figure, data = drawn("table_loogle", evaluation_records())
    measured = data[(data["source"] == "measured") & (data["metric"] == "f1")]
    for container in figure.axes[0].containers:
        rows = measured[measured["condition"].map(condition_label) == container.get_label()]
        np.testing.assert_allclose(container.lines[0].get_xdata().astype(float), rows["mean"])
    diamonds = [sorted(float(line.get_xdata()[0]) for line in axis.lines if line.get_marker() == "d")
                for axis in figure.axes]  # fmt: skip
    told = data[(data["source"] == "published") & data["model"].str.startswith("Llama-3")]
    told = told[told["kind"].isin(measured["kind"]) & told["condition"].isin(measured["condition"])]
    judged = told[told["metric"] == "gpt4_score_percent"]  # METEOR and BERTScore are other scales
    assert diamonds == [pytest.approx(sorted(judged["mean"])), []] and len(judged) < len(told)


def test_equal_records_give_equal_bytes_and_legend_and_panels_do_not_overlap(tmp_path):
    records = evaluation_records("table_longbench", TASKS[:2], scores=("longbench_score",))
    for folder in "ab":
        figure = plots.save("table_longbench", records, tmp_path / folder)
    for ending in ("png", "svg", "csv"):
        a, b = (tmp_path / folder / f"table_longbench.{ending}" for folder in "ab")
        assert a.read_bytes() == b.read_bytes()
    legend = figure.legends[0].get_window_extent()
    assert not any(legend.overlaps(axis.get_tightbbox()) for axis in figure.axes)


def test_the_needle_s_cells_are_the_means_of_their_records():
    records = needle_records(scores=("needle_keys", "f1"))
    figure, data = drawn("needle", records)
    first = records[records["metric"] == "needle_keys"]
    cells = first.groupby(["condition", "kind", "document"])["value"].mean().groupby(["condition", "kind"]).mean()
    measured = data[data["source"] == "measured"]
    assert set(measured["metric"]) == {"needle_keys"}
    assert measured.set_index(["condition", "kind"])["mean"].to_dict() == pytest.approx(cells.to_dict())
    maps = [axis for axis in figure.axes if axis.collections and axis.get_xlabel()]
    assert [axis.get_title() for axis in maps] == [
        "truncated ICL", "finetune raw", "LIFT, closed book", "published: finetune raw", "published: LIFT, closed book",
    ]  # fmt: skip
    for axis, condition in zip(maps[:3], ("truncated_icl", "finetune_raw", "lift"), strict=True):
        grid = np.asarray(axis.collections[0].get_array(), float).reshape(3, 2)
        for (line, depth), (column, length) in product(enumerate((0, 50, 100)), enumerate((1, 2.5))):
            assert grid[line, column] == pytest.approx(cells[condition, f"length_{length}w_depth_{depth}"])
    grid = np.asarray(maps[3].collections[0].get_array(), float)
    raw = published.numbers().query("item == 'niah' and method == 'finetune_raw'")
    assert grid.size == 48 and grid.mean() == pytest.approx(raw["value"].mean() / 100)


def test_the_needle_s_table_is_the_mean_and_the_lowest_of_the_depths(tmp_path):
    records = needle_records(("lift",), scores=("needle_keys", "f1"))
    plots.save("needle", records, tmp_path)
    table = tables.save("needle", tmp_path)
    first = records[records["metric"] == "needle_keys"]
    means = first.groupby(["kind", "document"])["value"].mean().groupby("kind").mean()
    for length in ("1", "2.5"):
        row = table[(table["source"] == "measured") & (table["length"] == f"{length} windows")].iloc[0]
        of = means[means.index.str.startswith(f"length_{length}w")]
        shown = (row["mean over depths"], row["lowest depth"], row["depths"])
        assert shown == (f"{of.mean():.2f}", f"{of.min():.2f}", 3)
    told = table[(table["source"] == "published") & (table["condition"] == "finetune raw")]
    assert list(told["length"]) == [f"{length} k tokens" for length in (1, 2, 4, 8, 16, 32, 64, 128)]
    assert "nan" not in (tmp_path / "needle.md").read_text("utf-8") and plt.get_fignums() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frame: frame.drop(columns="kind"), "records lack column 'kind'"),
        (lambda frame: frame[frame["metric"].isin(["chance", "train_steps"])], "records hold no score of a question"),
        (lambda frame: frame.assign(base_model=["a", *["b"] * (len(frame) - 1)]), "mix several values of 'base_model'"),
    ],
)
@pytest.mark.parametrize("notebook", ["table_loogle", "needle"])
def test_records_that_cannot_be_drawn_are_refused(notebook, change, words, tmp_path):
    with pytest.raises(PlotError, match=words):
        plots.save(notebook, change(records_of(notebook)), tmp_path)
    assert list(tmp_path.iterdir()) == [] and plt.get_fignums() == []


def test_a_needle_without_a_place_is_named():
    with pytest.raises(PlotError, match="kind 'short_qa' is no length_L_depth_D"):
        plots.DRAWINGS["needle"](evaluation_records("needle", ("short_qa",), ("lift",)))


def test_a_condition_s_label_changes_whole_words_alone():
    assert condition_label("lift_10_auxiliary_qa") == "LIFT 10 auxiliary QA"
    assert condition_label("particle_quality") == "particle quality"
    assert condition_label("lift_truncated_icl") == "LIFT + truncated ICL"


@pytest.mark.parametrize("notebook", [*NOTEBOOKS, "needle"])
def test_findings_are_the_paired_tests_of_the_first_score(notebook):
    records = records_of(notebook)
    score = records["metric"].iloc[0]
    first = records[records["metric"] == score]
    said = findings.of(notebook, records)
    assert said.count("\n- ") + 1 == len(comparisons.CONTRASTS[notebook]) and "nan" not in said
    for (a, b), bullet in zip(comparisons.CONTRASTS[notebook], said.split("\n- "), strict=True):
        kind = first["kind"].iloc[0]
        rows = first if notebook == "needle" else first[first["kind"] == kind]
        seeds = rows.groupby(["condition", "document", "seed"])["value"].mean()
        means = seeds.groupby(["condition", "document"]).mean()
        test = paired_test(means[a], means[b])
        assert f"{test.difference:+.2f} [{test.low:+.2f}, {test.high:+.2f}]".replace("-0.00", "+0.00") in bullet
        assert f"{condition_label(a)} minus {condition_label(b)}" in bullet
        assert ("long qa" in bullet) == (notebook not in ("needle", "table_longbench"))


def test_conditions_that_were_not_run_are_not_tested():
    said = findings.of("table_loogle", evaluation_records(conditions=("truncated_icl", "other")))
    assert said.count("not tested, 0 documents with both") == 2 * (len(TYPES) + 1)
