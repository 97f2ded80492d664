import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from liftlab import plots
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


RECORDS = {"lift_vs_icl": lift_records, "pretrain_micro": pretraining_records}


@pytest.fixture(params=sorted(plots.DRAWINGS))
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
    assert set(RECORDS) == set(plots.DRAWINGS)


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
    assert "n = 4 documents" in svg and "chance" in svg and "<dc:date>" not in svg
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
