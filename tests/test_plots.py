import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from test_gate_plots import gate_records, oracle_records
from test_probe_plots import PROBES

from liftlab import evaluation_plots, plots
from liftlab.statistics import summarise

BASE = {"study": "s", "base_model": "micro", "document_tokens": 512, "seed": 0, "unit": "share of questions"}
CHANCE = 0.09


def lift_records(conditions=tuple(plots.LABELS), wordings=("trained", "held_out"), documents=4):
    """Two questions a document and condition; one document lacks an answer to full ICL at 2 windows."""
    rng, rows = np.random.default_rng(0), []
    for wording in wordings:
        for windows in (0.5, 2.0):
            for document in range(documents):
                at = BASE | {"wording": wording, "windows": windows, "document": f"register-{document}"}
                for condition in conditions:
                    if (condition, windows) != ("full_icl", 2.0):
                        row = at | {"condition": condition, "metric": "exact_match"}
                        rows += [row | {"value": float(rng.random() < 0.6)} for _ in range(2)]
                        rows.append(row | {"metric": "f1", "value": 0.123})
                rows += [at | {"condition": "chance", "metric": "chance", "value": CHANCE}] * 2
    return pd.DataFrame(rows)


def pretraining_records():
    rng, rows = np.random.default_rng(0), []
    for step in (0, 100, 200):
        for document in range(4):
            at = BASE | {"step": step, "document": f"register-{document}", "metric": "accuracy"}
            rows += [at | {"condition": name, "value": rng.random()} for name in plots.PRETRAINING_LABELS]
            rows.append(at | {"condition": "closed_book", "metric": "chance", "value": CHANCE})
    return pd.DataFrame(rows)


def adapter_records(seconds=(40.0, 30.0, 12.0, 13.0, 40.0, 41.0)):
    """Two seeds and questions a document and recipe; `seconds`, steps and weights differ by recipe."""
    rng, rows = np.random.default_rng(0), []
    for document in range(4):
        at = BASE | {"document": f"register-{document}", "wording": "", "question": ""}
        for wording in ("trained", "held_out"):
            rows += [at | {"condition": "chance", "metric": "chance", "value": CHANCE, "wording": wording}]
        for seed in (0, 1):
            for place, (condition, spent) in enumerate(zip(plots.ADAPTER_LABELS, seconds, strict=False)):
                row = at | {"seed": seed, "condition": condition}
                for wording in ("trained", "held_out"):
                    asked = row | {"metric": "exact_match", "wording": wording}
                    rows += [asked | {"question": str(q), "value": float(rng.random() < 0.6)} for q in range(2)]
                rows.append(row | {"metric": "steps", "unit": "steps", "value": 100.0 + place + document % 2})
                rows.append(row | {"metric": "train_seconds", "unit": "s", "value": spent + document + seed})
                rows.append(row | {"metric": "trained_weights", "unit": "weights", "value": 1234567.0 + place})
    return pd.DataFrame(rows)


RECORDS = {
    "lift_vs_icl": lift_records,
    "pretrain_micro": pretraining_records,
    "gate_values": gate_records,
    "oracle_gate": oracle_records,
    "adapters": adapter_records,
    **PROBES,
}


@pytest.fixture(params=sorted(RECORDS))
def name(request):
    return request.param


def drawn(figure):
    """Every data line of a figure: axis number, label, heights."""
    return {
        (number, container.get_label()): container.lines[0].get_ydata().astype(float)
        for number, axis in enumerate(figure.axes)
        for container in axis.containers
    }


def test_every_drawing_has_a_test():
    elsewhere = {*evaluation_plots.DRAWINGS, "efficiency", "companions", "many_documents"}  # in their own tests
    assert set(RECORDS) | elsewhere == set(plots.DRAWINGS)


def test_the_table_holds_exactly_the_numbers_drawn(tmp_path):
    records = lift_records()
    figure = plots.save("lift_vs_icl", records, tmp_path)
    table = pd.read_csv(tmp_path / "lift_vs_icl.csv")
    lines = drawn(figure)
    assert len(lines) == 2 * len(plots.LABELS)
    for number, wording in enumerate(plots.WORDINGS):
        for condition, label in plots.LABELS.items():
            rows = table[(table["wording"] == wording) & (table["condition"] == condition)]
            np.testing.assert_allclose(lines[number, label], rows["mean"], rtol=1e-5)


def test_the_numbers_are_the_summary_of_the_records(tmp_path):
    """Other metrics do not leak in; documents and questions are counted; chance is one number a wording."""
    records = lift_records()
    _, table = plots.lift_vs_icl(records)
    plt.close("all")
    by = ["wording", "condition", "windows"]
    expected = summarise(records[records["metric"] == "exact_match"], by).set_index(by)
    measured = table[table["condition"] != "chance"].set_index(by)
    pd.testing.assert_frame_equal(measured[expected.columns].sort_index(), expected.sort_index())
    chance = table[table["condition"] == "chance"]
    np.testing.assert_allclose(chance["mean"], [CHANCE, CHANCE])
    assert chance["low"].isna().all() and set(table["unit"]) == {"share of questions"}
    assert list(table.columns) == [*by, *plots.NUMBERS]


def test_rows_stand_in_drawing_order():
    _, table = plots.lift_vs_icl(lift_records())
    plt.close("all")
    assert list(dict.fromkeys(table["wording"])) == list(plots.WORDINGS)
    assert list(dict.fromkeys(table["condition"])) == [*plots.LABELS, "chance"]


def test_equal_records_give_equal_bytes_whatever_their_order(tmp_path, name):
    records = RECORDS[name]()
    plots.save(name, records, tmp_path / "a")
    plots.save(name, records.sample(frac=1, random_state=0), tmp_path / "b")
    for ending in ("png", "svg", "csv"):
        assert (tmp_path / f"a/{name}.{ending}").read_bytes() == (tmp_path / f"b/{name}.{ending}").read_bytes()


def test_save_leaves_three_files_no_open_figure_and_searchable_text(tmp_path, name):
    figure = plots.save(name, RECORDS[name](), tmp_path / "micro")
    assert plt.get_fignums() == []
    assert sorted(path.name for path in (tmp_path / "micro").iterdir()) == [f"{name}.csv", f"{name}.png", f"{name}.svg"]
    svg = (tmp_path / "micro" / f"{name}.svg").read_text()
    assert "n = 4 documents" in svg and "<dc:date>" not in svg
    assert ("chance" in svg) == ("chance" in set(RECORDS[name]()["metric"]))
    assert b"\r" not in (tmp_path / "micro" / f"{name}.csv").read_bytes()
    assert figure.axes


def test_legend_and_title_cover_no_panel(tmp_path):
    figure = plots.save("lift_vs_icl", lift_records(), tmp_path)
    legend = figure.legends[0].get_window_extent()
    for axis in figure.axes:
        assert not legend.overlaps(axis.get_tightbbox())
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {*plots.LABELS.values(), "chance"}


def test_one_wording_one_panel_and_no_chance_no_line(tmp_path):
    records = lift_records(("lift",), ("held_out",))
    records = records[records["metric"] != "chance"]
    figure = plots.save("lift_vs_icl", records, tmp_path)
    assert len(figure.axes) == 1
    assert set(pd.read_csv(tmp_path / "lift_vs_icl.csv")["condition"]) == {"lift"}


def test_one_document_is_drawn_without_an_interval(tmp_path, name):
    records = RECORDS[name]()
    plots.save(name, records[records["document"] == "register-0"], tmp_path)
    table = pd.read_csv(tmp_path / f"{name}.csv")
    assert table["low"].isna().all() and table["mean"].notna().all()


def test_recipes_stand_in_order_with_their_steps_weights_and_seconds(tmp_path):
    """Hand-computed: seconds 40 + mean(0..3) + mean(0, 1); weights are written in full; a recipe not run has no row."""
    records = adapter_records()
    plots.save("adapters", records, tmp_path)
    text = (tmp_path / "adapters.csv").read_text()
    table = pd.read_csv(tmp_path / "adapters.csv")
    present = list(plots.ADAPTER_LABELS)[:6]
    assert list(dict.fromkeys(table["condition"])) == [*present, "chance"] and "lora_own" not in text
    assert "1234567" in text and "1.23457e+06" not in text
    first = table[(table["panel"] == "seconds") & (table["condition"] == "gated_memory")].iloc[0]
    assert (first["mean"], first["steps"], first["documents"]) == (42.0, 100.5, 4)
    measured = table[(table["panel"] == "accuracy") & (table["condition"] != "chance")]
    right = records[records["metric"] == "exact_match"].groupby(["condition", "wording", "document"])["value"].mean()
    expected = right.groupby(["condition", "wording"]).mean()
    means = measured.set_index(["condition", "wording"])["mean"]
    np.testing.assert_allclose(means, expected.loc[means.index], rtol=1e-5)
    assert set(measured["questions"]) == {4 * 2 * 2}
    np.testing.assert_allclose(table.loc[table["condition"] == "chance", "mean"], CHANCE)


def test_recipes_are_drawn_at_their_numbers_held_out_filled_and_trained_open(tmp_path):
    figure = plots.save("adapters", adapter_records(), tmp_path)
    table = pd.read_csv(tmp_path / "adapters.csv").query("condition != 'chance'")
    held_out, trained = (container.lines[0] for container in figure.axes[0].containers)
    assert trained.get_markerfacecolor() == "white" and held_out.get_markerfacecolor() != "white"
    np.testing.assert_allclose(
        held_out.get_xdata().astype(float), table.loc[table["wording"] == "held_out", "mean"], rtol=1e-5
    )
    np.testing.assert_allclose(
        trained.get_xdata().astype(float), table.loc[table["wording"] == "trained", "mean"], rtol=1e-5
    )
    seconds = figure.axes[1].containers[0].lines[0].get_xdata().astype(float)
    np.testing.assert_allclose(seconds, table.loc[table["panel"] == "seconds", "mean"], rtol=1e-5)
    top = figure.axes[0].get_ylim()
    assert top[0] > top[1]  # the first recipe is at the top


@pytest.mark.parametrize(("seconds", "scale"), [((40.0, 30.0), "linear"), ((40.0, 1.0), "log")])
def test_seconds_that_differ_tenfold_are_on_a_log_scale(tmp_path, seconds, scale):
    figure = plots.save("adapters", adapter_records(seconds), tmp_path)
    assert figure.axes[1].get_xscale() == scale


@pytest.mark.parametrize("drawing", ["gate_values", "oracle_gate", "adapters"])
def test_new_drawings_refuse_mixed_models_and_unknown_conditions(tmp_path, drawing):
    records = RECORDS[drawing]()
    for change, words in (
        ({"base_model": ["a"] + ["b"] * (len(records) - 1)}, r"mix several values of 'base_model' \(a, b\)"),
        ({"condition": "guess"}, "condition 'guess' has no place in this drawing"),
        ({"metric": "f1"}, "records hold no metric '.*': they have f1"),
    ):
        with pytest.raises(plots.PlotError, match=words) as error:
            plots.save(drawing, records.assign(**change), tmp_path)
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [] and plt.get_fignums() == []


@pytest.mark.parametrize(
    ("drawing", "column"),
    [*(("gate_values", name) for name in ("step", "layer", "head", "role", "tokens", "evidence_place", "wording")),
     ("oracle_gate", "layer"), ("oracle_gate", "role"), ("adapters", "wording")],
)  # fmt: skip
def test_a_missing_column_is_named(tmp_path, drawing, column):
    with pytest.raises(plots.PlotError, match=f"records lack column '{column}'"):
        plots.save(drawing, RECORDS[drawing]().drop(columns=column), tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frame: frame.drop(columns="wording"), "lack column 'wording'"),
        (lambda frame: frame.assign(condition="guess"), "condition 'guess' has no place"),
        (lambda frame: frame.assign(metric="f1"), "no metric 'exact_match': they have f1"),
        (lambda frame: frame.assign(unit=["points"] + ["share"] * (len(frame) - 1)), "mix several values of 'unit'"),
        (lambda frame: frame.assign(base_model=["a"] + ["b"] * (len(frame) - 1)), "'base_model' .a, b."),
    ],
)
def test_records_that_cannot_be_drawn_are_refused(tmp_path, change, words):
    with pytest.raises(plots.PlotError, match=words):
        plots.save("lift_vs_icl", change(lift_records()), tmp_path)
    assert list(tmp_path.iterdir()) == [] and plt.get_fignums() == []


def test_an_unknown_drawing_is_named(tmp_path):
    with pytest.raises(plots.PlotError, match="no drawing is called 'gates'"):
        plots.save("gates", lift_records(), tmp_path)


def test_drawing_needs_no_torch():
    source = (
        "import sys, liftlab.plots, liftlab.cells; sys.exit(bool({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-W", "error", "-c", source]).returncode == 0
