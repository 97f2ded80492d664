"""Context against memory: what is drawn is what the records say, by hand and by plain pandas."""

import numpy as np
import pandas as pd
import pytest
from test_probe_plots import (
    ADAPTERS,
    RIGHT,
    conflict_records,
    drawn,
    heights,
    of_documents,
    place_of,
    position_records,
    rows_of,
    table_of,
)

from liftlab import canvas, context_plots, plots


@pytest.fixture(scope="module")
def conflicts():
    return conflict_records()


@pytest.fixture(scope="module")
def positions():
    return position_records()


def test_conflict_draws_the_table(conflicts):
    figure, table = drawn("conflict", conflicts)
    assert [axis.get_title() for axis in figure.axes] == ["LoRA", "Gated Memory", "Gated Memory's gate, by source"]
    for axis, adapter in zip(figure.axes, ADAPTERS, strict=False):
        for source in ("context", "memory", "neither"):
            rows = rows_of(table, panel="answers", line=source, condition="lift", adapter=adapter)
            np.testing.assert_allclose(heights(axis, source), rows["mean"], rtol=1e-5)
            rows = rows_of(table, line=source, condition="other_document", adapter=adapter, step=None)
            np.testing.assert_allclose(heights(axis, f"_other_document {source}"), rows["mean"], rtol=1e-5)
            rows = rows_of(table, line=source, condition="base", adapter=None)
            np.testing.assert_allclose(heights(axis, f"_base {source}"), rows["mean"], rtol=1e-5)
    for source in ("context", "memory", "neither"):
        rows = rows_of(table, panel="gate", line=source)
        np.testing.assert_allclose(heights(figure.axes[2], source), rows["mean"], rtol=1e-5)
    sums = rows_of(table, panel="answers").groupby(["condition", "adapter", "step"], dropna=False)["mean"].sum()
    np.testing.assert_allclose(sums, 1, rtol=1e-5)  # every answer has one source


def test_conflict_without_gates_has_no_gate_panel():
    figure, table = drawn("conflict", conflict_records(2, ("lora",)))
    assert [axis.get_title() for axis in figure.axes] == ["LoRA"] and "gate" not in set(table["panel"])


def test_a_gate_s_documents_are_those_that_answered_from_its_source(conflicts):
    frame = conflicts
    gone = (frame["metric"] == "gate") & (frame["source"] == "memory") & (frame["document"] != "register-0")
    figure, table = drawn("conflict", frame[~gone])
    assert set(rows_of(table, panel="gate", line="memory")["documents"]) == {1}
    assert "n = 1 to 4 documents" in figure.get_suptitle()


def position_rows(depths, right, condition="lift", windows=2.0):
    """One document; a question per depth."""
    at = {"document": "d", "seed": 0, "windows": windows, "wording": "held_out", "hops": 1, "condition": condition}
    return [at | RIGHT | {"depth": depth, "would_be": place_of(depth, windows), "value": float(value)}
            for depth, value in zip(depths, right, strict=True)]  # fmt: skip


def test_depths_are_binned_and_edges_found_by_hand():
    """Five bins of 0.2, the last with depth 1; kept: a quarter at each end, of which 0.1, 0.19 and 0.9, 1 are asked."""
    rows = position_rows([0.1, 0.19, 0.5, 0.9, 1.0], [1, 0, 1, 1, 0])
    _, table = drawn("evidence_position", table_of(rows, "evidence_position"))
    found = rows_of(table, panel="depth").set_index("depth")["mean"]
    assert {round(depth, 6): mean for depth, mean in found.items()} == {0.1: 0.5, 0.5: 1.0, 0.9: 0.5}
    assert rows_of(table, panel="edges", would_be="head")["mean"].item() == 0.19
    assert rows_of(table, panel="edges", would_be="tail")["mean"].item() == 0.9
    places = rows_of(table, panel="would_be").set_index("would_be")["mean"]
    assert dict(places) == {"head": 0.5, "middle": 1.0, "tail": 0.5, "all": 0.6}


def test_many_questions_are_binned_finer():
    depths = (np.arange(40) + 0.5) / 40
    _, table = drawn("evidence_position", table_of(position_rows(depths, depths > 0.5), "s"))
    np.testing.assert_allclose(rows_of(table, panel="depth")["depth"], np.arange(10) / 10 + 0.05)


def test_position_draws_the_table(positions):
    frame = positions
    figure, table = drawn("evidence_position", frame)
    assert list(table.columns) == context_plots.POSITION_COLUMNS
    titles = ["0.5 windows", "1.5 windows", "2 windows", "4 windows", "4 windows, by place", ""]
    assert [axis.get_title() for axis in figure.axes] == titles
    for axis, windows in zip(figure.axes, (0.5, 1.5, 2.0, 4.0), strict=False):
        depth = rows_of(table, panel="depth", windows=windows)
        for condition in set(depth["condition"]) - {"chance"}:
            label = context_plots.POSITION_LABELS[condition]
            np.testing.assert_allclose(heights(axis, label), rows_of(depth, condition=condition)["mean"], rtol=1e-5)
    assert "full_icl" not in set(rows_of(table, panel="depth", windows=2.0)["condition"])
    longest = frame[(frame["windows"] == 4) & (frame["metric"] == "exact_match")]
    means = of_documents(longest, ["condition", "would_be"])
    shown = rows_of(table, panel="would_be").set_index(["condition", "would_be"])["mean"]
    np.testing.assert_allclose(shown.loc[means.index], means, rtol=1e-5)
    lift = of_documents(longest, ["condition"])["lift"]
    assert shown["lift", "all"] == pytest.approx(lift, rel=1e-5)


def test_only_held_out_wordings_and_one_hop_are_drawn_by_depth(positions):
    frame = positions
    more = [frame, frame.assign(wording="trained", value=1.0), frame.assign(hops=2, value=1.0)]
    (_, few), (_, same) = (drawn("evidence_position", each) for each in (frame, pd.concat(more)))
    pd.testing.assert_frame_equal(few, same)


def test_six_lengths_are_too_many(tmp_path):
    with pytest.raises(canvas.PlotError, match="6 document lengths: draw at most 5"):
        plots.save("evidence_position", position_records(1, (1.0, 1.5, 2.0, 3.0, 4.0, 5.0), 5), tmp_path)
