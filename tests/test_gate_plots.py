import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from liftlab import canvas, gate_plots, plots
from liftlab.statistics import summarise

BASE = {"base_model": "micro", "document_tokens": 512}
HEADS = [(layer, head) for layer in (0, 1) for head in (0, 1, 2)]
ROWS = [  # condition, role, evidence, place
    *(("lift", role, False, "absent") for role in ("question", "answer", "template")),
    *(("lift_truncated_icl", role, False, place) for role in ("question", "answer", "template", "document")
      for place in ("kept", "cut", "dropped")),
    *(("lift_truncated_icl", "document", True, place) for place in ("kept", "cut")),
]  # fmt: skip


def gate_records(documents=4):
    """Two seeds a document; register-3 takes two steps more than the others, so they share steps 0 and 20."""
    rng, rows = np.random.default_rng(0), []
    for document in range(documents):
        last = 40 + 2 * (document == 3)
        for seed in (0, 1):
            about = BASE | {"study": "gate_values", "document": f"register-{document}", "seed": seed}
            for step in (0, 20, last):
                at = about | {"step": step, "wording": "", "metric": "gate", "unit": "gate"}
                for condition, role, evidence, place in ROWS:
                    of = {"condition": condition, "role": role, "evidence": evidence, "evidence_place": place}
                    of |= {"tokens": int(rng.integers(5, 50))}
                    for layer, head in [(np.nan, np.nan), *(HEADS if step == last else [])]:
                        rows.append(at | of | {"layer": layer, "head": head, "value": rng.random()})
                answer = {"condition": "lift", "role": "answer", "evidence": False, "evidence_place": "absent"}
                right = {"metric": "accuracy", "unit": "share of questions", "wording": "held_out", "tokens": 20}
                rows.append(at | answer | right | {"layer": np.nan, "head": np.nan, "value": rng.random()})
    return pd.DataFrame(rows)


UNITS = {"gate_exact": "softmax mass 0..1", "gate_learned": "gate 0..1", "gate_spearman": "correlation -1..1",
         "gate_pearson": "correlation -1..1", "memory_cosine": "cosine -1..1"}  # fmt: skip


def oracle_records(documents=4, layers=3):
    rng, rows = np.random.default_rng(0), []
    for document in range(documents):
        for seed in (0, 1):
            at = BASE | {"study": "oracle_gate", "document": f"register-{document}", "seed": seed, "condition": "lift"}
            for layer in range(layers):
                for role in ("both", "question", "answer"):
                    for metric in [name for names in gate_plots.ORACLE.values() for name in names]:
                        unit = UNITS.get(metric, "relative error")
                        of = {"layer": layer, "role": role, "metric": metric, "unit": unit, "value": rng.random()}
                        rows.append(at | of)
    return pd.DataFrame(rows)


def drawn(name, records, folder):
    figure = plots.save(name, records, folder)
    return figure, pd.read_csv(folder / f"{name}.csv")


def point(table, **where):
    """The one row of a table that has these values."""
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1, where
    return table.iloc[0]


def test_rows_are_weighted_by_tokens_then_seeds_then_documents_averaged():
    """(10 * 0.2 + 30 * 0.6) / 40 = 0.5; with a seed of 0.7: 0.6; with a document of 0.2: 0.4."""
    rows = pd.DataFrame(
        [("a", 0, 0.2, 10), ("a", 0, 0.6, 30), ("a", 1, 0.7, 5), ("b", 0, 0.2, 1000)],
        columns=["document", "seed", "value", "tokens"],
    ).assign(role="answer", unit="gate")
    assert list(canvas.by_document(rows, ["role"], "tokens")["value"]) == pytest.approx([0.6, 0.2])
    assert list(canvas.by_document(rows, ["role"])["value"]) == pytest.approx([0.55, 0.2])
    summary = canvas.over_documents(rows, ["role"], "tokens").iloc[0]
    assert (summary["mean"], summary["documents"]) == (pytest.approx(0.4), 2)


def test_tokens_weigh_where_places_are_pooled():
    """The role's gate with truncated context, in plain pandas: places pooled by tokens, seeds, documents."""
    records = gate_records()
    _, table = gate_plots.gate_values(records)
    plt.close("all")
    rows = records[(records["metric"] == "gate") & records["layer"].isna() & (records["step"] >= 40)]
    rows = rows[(rows["condition"] == "lift_truncated_icl") & (rows["role"] == "document") & ~rows["evidence"]]
    seeds = rows.assign(total=rows["value"] * rows["tokens"]).groupby(["document", "seed"])[["total", "tokens"]].sum()
    documents = (seeds["total"] / seeds["tokens"]).groupby("document").mean()
    found = point(table, panel="roles", condition="lift_truncated_icl", role="document", evidence=False)
    assert found["mean"] == pytest.approx(documents.mean()) and found["documents"] == 4
    assert found["low"] < found["mean"] < found["high"] and pd.isna(found["evidence_place"])


def test_the_heat_map_holds_the_last_step_s_closed_book_answer_gates(tmp_path):
    records = gate_records()
    figure, table = drawn("gate_values", records, tmp_path)
    rows = records[records["layer"].notna() & (records["condition"] == "lift") & (records["role"] == "answer")]
    expected = rows.groupby(["layer", "head", "document"])["value"].mean().groupby(["layer", "head"]).mean()
    cells = table[table["panel"] == "layers_heads"].set_index(["layer", "head"])["mean"]
    np.testing.assert_allclose(cells, expected.loc[cells.index], rtol=1e-5)
    coloured = figure.axes[0].collections[0].get_array()
    np.testing.assert_allclose(np.asarray(coloured)[::-1].flatten(), cells, rtol=1e-5)  # layer 0 is the lowest row
    assert [text.get_text() for text in figure.axes[0].texts][-3:] == [f"{cells[0, head]:.2f}" for head in (0, 1, 2)]


def test_many_heads_are_not_annotated(tmp_path):
    records = gate_records(1)
    more = records[records["layer"] == 1]
    figure, _ = drawn("gate_values", pd.concat([records, *(more.assign(layer=n) for n in range(2, 10))]), tmp_path)
    assert not figure.axes[0].texts


def test_the_trajectory_holds_the_steps_that_all_documents_share(tmp_path):
    """One document's last step is another: no point mixes other documents than its neighbour."""
    records = gate_records()
    figure, table = drawn("gate_values", records, tmp_path)
    training = table[table["panel"] == "training"]
    assert set(training["step"]) == {0, 20} and set(training["documents"]) == {4}
    of_three = records[records["document"] != "register-3"]
    _, table = gate_plots.gate_values(of_three)
    plt.close("all")
    training = table[table["panel"] == "training"]
    assert set(training["step"]) == {0, 20, 40}
    right = of_three[(of_three["metric"] == "accuracy") & (of_three["step"] == 40)]
    found = point(training, unit="share of questions", step=40)
    assert found["mean"] == pytest.approx(right.groupby("document")["value"].mean().mean())
    assert "accuracy, held-out wordings (0..1)" in {axis.get_ylabel() for axis in figure.axes}


def test_evidence_that_is_cut_is_left_out_and_the_difference_is_paired():
    """By hand: 0.7 - 0.4 and 0.6 - 0.5 a document; the third document has no dropped evidence, so no difference."""
    records = gate_records(3)
    asked = (records["role"] == "answer") & (records["condition"] == "lift_truncated_icl") & (records["step"] == 40)
    means = {("register-0", "kept"): 0.4, ("register-0", "dropped"): 0.7, ("register-1", "kept"): 0.5,
             ("register-1", "dropped"): 0.6, ("register-2", "kept"): 0.9}  # fmt: skip
    keys = pd.Series(list(zip(records["document"], records["evidence_place"], strict=True)), records.index)
    records.loc[asked, "value"] = keys.map(means).fillna(0.0)
    records = records[~(asked & (keys == ("register-2", "dropped")))]
    _, table = gate_plots.gate_values(records)
    plt.close("all")
    difference = point(table, panel="difference", role="answer")
    assert (difference["mean"], difference["documents"]) == (pytest.approx(0.2), 2)
    assert (difference["low"], difference["high"]) == (pytest.approx(0.1), pytest.approx(0.3))
    assert point(table, panel="evidence", role="answer", evidence_place="kept")["mean"] == pytest.approx(0.6)
    dropped = point(table, panel="evidence", role="answer", evidence_place="dropped")
    assert (dropped["mean"], dropped["documents"]) == (pytest.approx(0.65), 2)
    assert set(table.loc[table["panel"] == "evidence", "evidence_place"]) == {"absent", "kept", "dropped"}


def test_the_points_of_the_gate_panels_are_the_table_s(tmp_path):
    figure, table = drawn("gate_values", gate_records(), tmp_path)
    axes = {axis.get_title(): axis for axis in figure.axes}
    roles = [container.lines[0].get_ydata().astype(float) for container in axes["by token"].containers]
    for condition, heights in zip(gate_plots.PROMPTS, roles, strict=True):
        rows = table[(table["panel"] == "roles") & (table["condition"] == condition)]
        np.testing.assert_allclose(heights, rows["mean"], rtol=1e-5)
    for container, role in zip(axes["by where the evidence is"].containers, gate_plots.ASKED, strict=True):
        rows = table[(table["panel"] == "evidence") & (table["role"] == role)]
        np.testing.assert_allclose(container.lines[0].get_ydata().astype(float), rows["mean"], rtol=1e-5)
    said = axes["by where the evidence is"].get_xlabel()
    for role, label in gate_plots.ASKED.items():
        row = point(table, panel="difference", role=role)
        assert f"{label} {gate_plots.signed(row)}, n = 4" in said
    assert list(table.columns) == gate_plots.GATE_COLUMNS


def test_no_document_with_both_places_has_no_difference(tmp_path):
    records = gate_records()
    figure, table = drawn("gate_values", records[records["evidence_place"] != "dropped"], tmp_path)
    assert "difference" not in set(table["panel"])
    assert any("no document has both" in axis.get_xlabel() for axis in figure.axes)


@pytest.mark.parametrize("part", ["heads", "whole"])
def test_gates_without_heads_or_without_their_mean_are_refused(tmp_path, part):
    records = gate_records()
    kept = records["layer"].notna() if part == "whole" else records["layer"].isna()
    with pytest.raises(plots.PlotError, match="records lack gates at answer tokens, closed book"):
        plots.save("gate_values", records[kept | (records["metric"] == "accuracy")], tmp_path)


def test_oracle_numbers_are_those_of_both_roles_seeds_averaged_first(tmp_path):
    records = oracle_records()
    figure, table = drawn("oracle_gate", records, tmp_path)
    rows = records[records["role"] == "both"]
    expected = summarise(rows, ["metric", "layer"]).set_index(["metric", "layer"])
    layers = table[table["layer"].notna()].set_index(["metric", "layer"])
    columns = ["mean", "low", "high", "documents"]
    pd.testing.assert_frame_equal(layers[columns].sort_index(), expected[columns].sort_index(), rtol=1e-5,
                                  check_index_type=False)  # fmt: skip
    every = table[table["layer"].isna()].set_index("metric")["mean"]
    means = rows.groupby(["metric", "document", "layer"])["value"].mean().groupby(["metric", "document"]).mean()
    np.testing.assert_allclose(every, means.groupby("metric").mean().loc[every.index], rtol=1e-5)
    assert point(table[table["layer"] == 0], metric="gate_exact")["unit"] == "softmax mass 0..1"
    assert list(table.columns) == gate_plots.ORACLE_COLUMNS
    heights = [container.lines[0].get_ydata().astype(float) for container in figure.axes[0].containers]
    np.testing.assert_allclose(heights[0], layers.loc["gate_exact", "mean"], rtol=1e-5)


def test_correlations_that_do_not_exist_are_left_out_and_counted(tmp_path):
    """Two documents of four have no Spearman at layer 1, none has Pearson; the rest of the figure stands."""
    records = oracle_records()
    none = (records["layer"] == 1) & records["document"].isin(["register-0", "register-1"])
    records.loc[none & (records["metric"] == "gate_spearman"), "value"] = np.nan
    _, table = drawn("oracle_gate", records[records["metric"] != "gate_pearson"], tmp_path)
    assert point(table, metric="gate_spearman", layer=1)["documents"] == 2
    assert point(table, metric="gate_spearman", layer=0)["documents"] == 4
    assert "gate_pearson" not in set(table["metric"]) and table["mean"].notna().all()
    _, table = drawn("oracle_gate", records[~records["metric"].str.contains("pearson|spearman")], tmp_path)
    assert "correlation" not in set(table["panel"])


def test_a_missing_oracle_metric_is_named(tmp_path):
    records = oracle_records()
    with pytest.raises(plots.PlotError, match="no metric 'memory_error'"):
        plots.save("oracle_gate", records[records["metric"] != "memory_error"], tmp_path)
    with pytest.raises(plots.PlotError, match="no 'gate_exact' at role 'both'"):
        plots.save("oracle_gate", records[records["role"] != "both"], tmp_path)


@pytest.mark.parametrize(("factor", "scale"), [(1, "linear"), (100, "log")])
def test_errors_that_differ_tenfold_are_on_a_log_scale(tmp_path, factor, scale):
    records = oracle_records(2).assign(value=0.5)
    records.loc[(records["metric"] == "output_error_learned") & (records["layer"] == 2), "value"] *= factor
    figure, _ = drawn("oracle_gate", records, tmp_path)
    assert [axis.get_yscale() for axis in figure.axes] == ["linear"] * 3 + [scale]


def test_ticks_of_many_layers_are_thinned(tmp_path):
    figure, _ = drawn("oracle_gate", oracle_records(2, 30), tmp_path)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == [*map(str, range(0, 30, 4)), "all"]


@pytest.mark.parametrize(("name", "records"), [("gate_values", gate_records), ("oracle_gate", oracle_records)])
def test_no_legend_lies_over_a_point_or_a_title(tmp_path, name, records):
    figure = plots.save(name, records(), tmp_path)
    for axis in figure.axes:
        if legend := axis.get_legend():
            box = legend.get_window_extent()
            assert box.y0 >= axis.get_window_extent().y1 and not box.overlaps(axis.title.get_window_extent())
