"""The probes' drawings, on synthetic records with the shape of a real run's."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from liftlab import canvas, plots, probe_plots

BASE = {"base_model": "micro", "document_tokens": 512}
CHANCE = 0.09
RIGHT = {"metric": "exact_match", "unit": "share of questions"}
TEXT = ("adapter", "text", "wording", "place", "context", "question", "kind", "source", "would_be")
ADAPTERS = ("lora", "gated_memory")


def table_of(rows, study):
    """Rows as a record table: text that a row lacks is "", numbers are NaN."""
    frame = pd.DataFrame(rows).assign(study=study, **BASE)
    return frame.assign(**{name: frame[name].fillna("") for name in TEXT if name in frame})


def answers(rng, at, share, wordings=("held_out", "trained"), hops=(1, 2), count=10):
    """`count` answers a wording and hops; two hops are right half as often."""
    for wording in wordings:
        for hop in hops:
            for number in range(count):
                of = at | RIGHT | {"wording": wording, "hops": hop, "question": f"{hop} {wording} {number}"}
                yield of | {"value": float(rng.random() < share / hop)}


def chances(document, **more):
    at = {"document": document, "seed": 0, "condition": "chance", "metric": "chance", "unit": "share of questions"}
    return [at | more | {"wording": wording, "hops": hop, "value": CHANCE, "step": np.nan}
            for wording in ("held_out", "trained") for hop in (1, 2)]  # fmt: skip


def of_text(rng, at, learned, texts=("document", "paraphrase", "unseen")):
    """Bits and recited tokens: 9 bits before learning; recitation from a segment's middle lags behind."""
    for text, saved in zip(texts, (8, 5, 3), strict=False):
        value = 9 - saved * learned + rng.normal(0, 0.2)
        yield at | {"metric": "bits_per_token", "unit": "bits a token", "text": text, "value": value}
    for place, reach in (("segment_start", 20), ("segment_middle", 12)):
        recited = at | {"metric": "recited_tokens", "unit": "tokens", "place": place}
        for _ in range(3):
            yield recited | {"value": float(rng.integers(0, 4) + round(reach * learned))}


def memorization_records(documents=4, adapters=ADAPTERS):
    """Two seeds; register-3 takes four steps more than the others, so they share steps 0 to 40."""
    rng, rows = np.random.default_rng(0), []
    for number in range(documents):
        document, last = f"register-{number}", 50 + 4 * (number == 3)
        rows += chances(document, adapter="")
        for seed in (0, 1):
            at = {"document": document, "seed": seed, "adapter": "", "step": 0}
            if seed == 0:
                base = at | {"condition": "base"}
                rows += [*of_text(rng, base, 0), *answers(rng, base | {"context": "none"}, 0.05)]
                rows += answers(rng, base | {"context": "unseen_document"}, 0.95, hops=(1,))
                rows += answers(rng, base | {"context": "truncated"}, 0.6, hops=(1,))
            for adapter in adapters:
                for step in (0, 10, 20, 30, 40, last):
                    lift = at | {"condition": "lift", "adapter": adapter, "step": step}
                    learned = (1 - np.exp(-step / 15)) * (1 if adapter == "lora" else 0.8)
                    rows += [*of_text(rng, lift, learned), *answers(rng, lift | {"context": "none"}, learned)]
                    rows += answers(rng, lift | {"context": "unseen_document"}, 0.95 - 0.3 * learned, hops=(1,))
                    rows += answers(rng, lift | {"context": "truncated"}, 0.6 + 0.2 * learned, hops=(1,))
                for condition in ("other_document", "shuffled_answers"):
                    rows += answers(rng, lift | {"condition": condition, "context": "none"}, 0.06)
    return table_of(rows, "memorization_vs_icl")


def sources(rng, at, shares, count=10):
    for number in range(count):
        given = rng.choice(["context", "memory", "neither"], p=shares)
        asked = at | {"question": f"q {number}", "wording": "held_out", "unit": "share of questions"}
        for source in ("context", "memory", "neither"):
            yield asked | {"metric": "answered_from", "source": source, "value": float(source == given)}


def conflict_records(documents=4, adapters=ADAPTERS):
    rng, rows = np.random.default_rng(0), []
    for number in range(documents):
        document, last = f"register-{number}", 50 + 4 * (number == 3)
        for seed in (0, 1):
            at = {"document": document, "seed": seed, "adapter": "", "step": 0}
            if seed == 0:
                rows += sources(rng, at | {"condition": "base"}, (0.95, 0.0, 0.05))
                rows.append(at | {"condition": "base", "metric": "not_applicable", "unit": "questions", "value": 3.0})
            for adapter in adapters:
                for step in (0, 10, 20, 30, 40, last):
                    lift = at | {"condition": "lift", "adapter": adapter, "step": step}
                    learned = 1 - np.exp(-step / 15)
                    rows += sources(rng, lift, (0.95 - 0.6 * learned, 0.5 * learned, 0.05 + 0.1 * learned))
                    rows += answers(rng, lift, learned, ("held_out",), (1,))
                    if adapter == "gated_memory":
                        gate = lift | {"metric": "gate", "unit": "gate 0..1"}
                        rows += [gate | {"source": source, "value": 0.2 + high * learned + rng.normal(0, 0.02)}
                                 for source, high in (("context", 0.1), ("memory", 0.3), ("neither", 0.2))]  # fmt: skip
                rows += sources(rng, lift | {"condition": "other_document"}, (0.8, 0.05, 0.15))
    return table_of(rows, "conflict")


def place_of(depth, windows):
    """Head and tail fill a window; where the whole document fits, that is all of it."""
    kept = 0.5 / windows
    if windows <= 0.5:
        return "whole"
    return "head" if depth < kept else "tail" if depth > 1 - kept else "cut" if depth < kept + 0.05 else "middle"


def position_records(documents=4, lengths=(0.5, 1.5, 2.0, 4.0), questions=20):
    """In context, what is kept is known; a lift knows all places alike."""
    rng, rows = np.random.default_rng(0), []
    for number in range(documents):
        for windows in lengths:
            at = {"document": f"register-{number}", "seed": 0, "windows": windows, "wording": "held_out", "hops": 1}
            rows += [at | RIGHT | {"metric": "chance", "condition": "chance", "value": CHANCE, "would_be": ""}]
            for question in range(questions):
                depth = (question + 0.5) / questions
                of = at | RIGHT | {"depth": depth, "would_be": place_of(depth, windows), "question": f"q {question}"}
                kept = of["would_be"] in ("head", "tail", "whole")
                known = {"closed_book": 0.03, "truncated_icl": 0.97 * kept, "full_icl": 0.98, "lift": 0.9,
                         "lift_truncated_icl": 0.95 if kept else 0.5, "other_document": 0.05,
                         "shuffled_answers": 0.08}  # fmt: skip
                rows += [of | {"condition": name, "value": float(rng.random() < share)}
                         for name, share in known.items() if name != "full_icl" or windows < 1]  # fmt: skip
    return table_of(rows, "evidence_position")


RATIOS = (1.0, 0.75, 0.5, 0.375, 0.25)


def offset_records(documents=4, adapters=ADAPTERS):
    rng, rows = np.random.default_rng(0), []
    for number in range(documents):
        document = f"register-{number}"
        rows += chances(document, ratio=np.nan)
        for seed in (0, 1):
            at = {"document": document, "seed": seed, "adapter": "", "ratio": np.nan}
            if seed == 0:
                base = at | {"condition": "base"}
                rows += [*of_text(rng, base, 0, ("document", "paraphrase")), *answers(rng, base, 0.05, hops=(1,))]
            for place, adapter in enumerate(adapters):
                for ratio in RATIOS:
                    lift = at | {"condition": "lift", "adapter": adapter, "ratio": ratio}
                    learned = 0.95 - 0.3 * ratio - 0.1 * place
                    rows += of_text(rng, lift, learned, ("document", "paraphrase"))
                    rows += answers(rng, lift, learned, hops=(1,))
                    trained = 12000 / ratio + 100 * number + 900 * place
                    rows.append(lift | {"metric": "trained_tokens", "unit": "tokens", "value": trained})
                    if ratio == 0.375:
                        rows += answers(rng, lift | {"condition": "other_document"}, 0.06, hops=(1,))
    return table_of(rows, "segment_offset")


PROBES = {
    "memorization_vs_icl": memorization_records,
    "conflict": conflict_records,
    "evidence_position": position_records,
    "segment_offset": offset_records,
}


@pytest.fixture(scope="module")
def records():
    """The fake records by name, made once."""
    return {name: make() for name, make in PROBES.items()}


def drawn(name, frame):
    """The figure, and the table as its file gives it; nothing is rendered, which takes far longer."""
    figure, points = plots.DRAWINGS[name](frame)
    plt.close(figure)
    return figure, pd.read_csv(io.StringIO(points.to_csv(index=False, float_format="%.6g")))


def rows_of(table, **where):
    """The rows that hold these values; None: where nothing stands."""
    for column, value in where.items():
        table = table[table[column].isna() if value is None else table[column] == value]
    assert len(table), where
    return table


def heights(axis, label):
    """What is drawn under a label: the means of its line."""
    found = [container for container in axis.containers if container.get_label() == label]
    assert len(found) == 1, label
    return found[0].lines[0].get_ydata().astype(float)


def of_documents(frame, by):
    """Plain pandas: seeds averaged within a document, then documents."""
    return frame.groupby([*by, "document", "seed"])["value"].mean().groupby([*by, "document"]).mean().groupby(by).mean()


def test_steps_are_those_all_documents_share_and_each_one_s_last(records):
    """Last steps 50, 50, 50 and 54 stand at their mean, 51, so that no point has other documents than its neighbour."""
    frame = records["memorization_vs_icl"]
    _, table = drawn("memorization_vs_icl", frame)
    found = rows_of(table, panel="bits", line="document", condition="lift", adapter="lora").set_index("step")
    assert list(found.index) == [0, 10, 20, 30, 40, 51] and set(found["documents"]) == {4}
    rows = frame[(frame["text"] == "document") & (frame["adapter"] == "lora")]
    means = of_documents(rows, ["step"])
    np.testing.assert_allclose(found["mean"][:-1], means.loc[[0, 10, 20, 30, 40]], rtol=1e-5)
    last = rows[rows["step"] >= 50].groupby("document")["value"].mean()
    assert found.loc[51, "mean"] == pytest.approx(last.mean(), rel=1e-5)


def test_one_last_step_has_one_point(records):
    frame = records["memorization_vs_icl"]
    _, table = drawn("memorization_vs_icl", frame[frame["document"] != "register-3"])
    assert list(rows_of(table, panel="bits", line="unseen", adapter="lora")["step"]) == [0, 10, 20, 30, 40, 50]


def test_memorization_draws_the_table(records):
    figure, table = drawn("memorization_vs_icl", records["memorization_vs_icl"])
    assert list(table.columns) == [*probe_plots.LINE_COLUMNS, "step", *canvas.SUMMARY]
    for axis, (panel, lines) in zip(figure.axes, probe_plots.TRACES.items(), strict=False):
        for line in lines:
            for adapter in ADAPTERS:
                rows = rows_of(table, panel=panel, line=line, condition="lift", adapter=adapter)
                np.testing.assert_allclose(heights(axis, f"_{line} {adapter}"), rows["mean"], rtol=1e-5)
    for line in ("held_out", "two_hops"):
        rows = rows_of(table, panel="controls", line=line)
        assert list(rows_of(rows, adapter="lora")["condition"]) == ["lift", "other_document", "shuffled_answers"]
        of_lora = rows_of(rows, adapter="lora")["mean"]
        np.testing.assert_allclose(heights(figure.axes[4], f"_{line} lora"), of_lora, rtol=1e-5)
        assert set(rows_of(rows, adapter=None)["condition"]) == {"base", "chance"}


def test_controls_are_of_the_last_step_and_chosen_by_wording_and_hops(records):
    frame = records["memorization_vs_icl"]
    _, table = drawn("memorization_vs_icl", frame)
    right = frame[(frame["metric"] == "exact_match") & (frame["context"] == "none") & (frame["hops"] == 1)]
    right = right[(right["wording"] == "held_out") & ((right["step"] >= 50) | (right["condition"] == "base"))]
    means = of_documents(right, ["condition", "adapter"])
    for condition, adapter in (("lift", "lora"), ("other_document", "gated_memory"), ("base", None)):
        found = rows_of(table, panel="controls", line="held_out", condition=condition, adapter=adapter)
        assert found["mean"].item() == pytest.approx(means[condition, adapter or ""], rel=1e-5)
    closed = rows_of(table, panel="closed_book")
    assert set(closed["condition"]) == {"lift", "chance"}  # the base model is among the controls
    assert rows_of(closed, condition="chance", line="two_hops")["mean"].item() == pytest.approx(CHANCE)


def test_offset_draws_the_table(records):
    figure, table = drawn("segment_offset", records["segment_offset"])
    assert list(table.columns) == [*probe_plots.LINE_COLUMNS, "ratio", *canvas.SUMMARY]
    for axis, (panel, lines) in zip(figure.axes, probe_plots.OFFSETS.items(), strict=True):
        assert [text.get_text() for text in axis.get_xticklabels()] == ["1/4", "3/8", "1/2", "3/4", "1"]
        for line in lines:
            rows = rows_of(table, panel=panel, line=line, condition="lift", adapter="lora")
            assert list(rows["ratio"]) == sorted(RATIOS)
            np.testing.assert_allclose(heights(axis, f"_{line} lora"), rows["mean"], rtol=1e-5)
    assert set(rows_of(table, condition="base", ratio=None)["panel"]) == {"closed_book", "bits", "recited"}
    controls = rows_of(table, condition="other_document")
    assert set(controls["ratio"].dropna()) == {0.375} and set(controls.loc[controls["ratio"].isna(), "line"]) == {
        "held_out",
        "trained",
    }
    trained = rows_of(table, panel="trained_tokens", adapter="lora", ratio=1.0)["mean"].item()
    assert trained == 12150  # 12000 + the mean of 0, 100, 200, 300


@pytest.mark.parametrize("name", sorted(PROBES))
def test_answers_are_drawn_whatever_they_were_scored_by(records, name):
    scored = records[name].replace({"metric": {"exact_match": "contains"}})
    pd.testing.assert_frame_equal(drawn(name, scored)[1], drawn(name, records[name])[1])


@pytest.mark.parametrize("name", sorted(PROBES))
def test_equal_records_give_equal_tables(records, name):
    """Their table, whatever their order; test_plots compares the pictures."""
    tables = [drawn(name, frame)[1] for frame in (records[name], records[name].sample(frac=1, random_state=0))]
    assert tables[0].to_csv() == tables[1].to_csv()


@pytest.mark.parametrize("name", sorted(PROBES))
def test_no_legend_lies_over_a_panel_or_a_title(records, tmp_path, name):
    figure = plots.save(name, records[name], tmp_path)
    width = figure.get_window_extent().width
    for axis in figure.axes:
        assert axis.title.get_window_extent().x0 >= 0 and axis.title.get_window_extent().x1 <= width
        if (legend := axis.get_legend()) and axis.axison:
            box = legend.get_window_extent()
            assert box.y0 >= axis.get_window_extent().y1 and not box.overlaps(axis.title.get_window_extent())
        for legend in figure.legends:
            assert not legend.get_window_extent().overlaps(axis.get_tightbbox())
    said = figure.get_suptitle()
    assert "n = 4 documents" in said and plt.get_fignums() == []


@pytest.mark.parametrize("name", sorted(PROBES))
def test_records_that_cannot_be_drawn_are_refused(records, tmp_path, name):
    frame = records[name].iloc[::7]
    for change, words in (
        ({"base_model": ["a"] + ["b"] * (len(frame) - 1)}, r"mix several values of 'base_model' \(a, b\)"),
        ({"condition": "guess"}, "condition 'guess' has no place in this drawing"),
        ({"metric": "loss"}, "records hold no metric '.*': they have loss"),
        ({"condition": "other_document"}, "of condition 'lift': run the study's notebook again"),
    ):
        with pytest.raises(canvas.PlotError, match=words) as error:
            plots.save(name, frame.assign(**change), tmp_path)
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [] and plt.get_fignums() == []


NEEDED = {
    "memorization_vs_icl": ("adapter", "step", "text", "place", "context", "wording", "hops"),
    "conflict": ("adapter", "step", "source", "wording"),
    "evidence_position": ("windows", "depth", "would_be", "wording", "hops"),
    "segment_offset": ("adapter", "ratio", "text", "place", "wording", "hops"),
}


@pytest.mark.parametrize(("name", "column"), [(name, column) for name, of in NEEDED.items() for column in of])
def test_a_missing_column_is_named(records, tmp_path, name, column):
    with pytest.raises(canvas.PlotError, match=f"records lack column '{column}'") as error:
        plots.save(name, records[name].drop(columns=column), tmp_path)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_a_panel_that_would_stay_empty_and_an_unknown_adapter_are_named(records, tmp_path):
    frame = records["memorization_vs_icl"]
    with pytest.raises(canvas.PlotError, match="panel 'recited' stays empty: .* of condition 'lift'"):
        plots.save("memorization_vs_icl", frame[frame["metric"] != "recited_tokens"], tmp_path)
    with pytest.raises(canvas.PlotError, match="adapter 'dora' has no place .* lora, gated_memory"):
        plots.save("memorization_vs_icl", frame.assign(adapter="dora"), tmp_path)
