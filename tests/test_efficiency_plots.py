"""The efficiency figure and table, on synthetic records whose laws, crossings and failures are known."""

from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from liftlab import efficiency_plots, efficiency_tables, plots, published, tables
from liftlab.canvas import PlotError
from liftlab.efficiency_points import COLUMNS, CONDITIONS, PLACE, points

LENGTHS = (250, 500, 1000, 1500, 2000, 3000, 4000)
OUTPUTS = (1, 64, 256, 512)
WHOLE_AT = {  # seconds at x thousand tokens: LIFT overtakes ICL at 2,000 tokens, with pairs streamed at 1,500
    "icl": lambda x: 0.1 + 0.2 * x**2,
    "lift": lambda x: 0.1 + 0.4 * x,
    "lift_streamed": lambda x: 0.1 + 0.3 * x,
}
DEVICE = "some CPU, 2 cores"


def row(part, condition, component, metric, value, repeat, **more):
    """A record in the shape of the study's."""
    unit = {"seconds": "s", "peak_memory": "GiB", "tokens_per_second": "tokens/s", "documents_per_hour": "documents/h",
            "peak_flops": "FLOP/s", "peak_bandwidth": "bytes/s"}.get(metric, "share")  # fmt: skip
    at = {
        "study": "efficiency",
        "document": "register-200",
        "document_tokens": 4000,
        "seed": 0,
        "outcome": "measured",
        "device": DEVICE,
        "pair_seconds": 0.0,
        "method": "",
        "base_model": "random:micro-long",
        "input_tokens": 1000,
        "output_tokens": 1,
        "documents": 1,
    }
    of = {"part": part, "condition": condition, "component": component, "metric": metric, "unit": unit}
    return at | of | {"value": float(value), "repeat": repeat} | more


def first_token(rng, repeat, noise):
    for tokens in LENGTHS:
        for condition, law in WHOLE_AT.items():
            of = ("first_token", condition), {"repeat": repeat, "input_tokens": tokens}
            whole = law(tokens / 1000) * (1 + noise * rng.standard_normal())
            shares = {"prefill": 1.0} if condition == "icl" else {"generation": 0.3, "waiting": 0.2, "training": 0.6,
                                                                  "decode": 0.2}  # fmt: skip
            for component, share in {"whole": 1.0, **shares}.items():
                yield row(*of[0], component, "seconds", share * whole, **of[1])


def output_length(rng, repeat, noise):
    for tokens in OUTPUTS:
        for condition, (start, each) in {"icl": (1, 0.02), "lift": (3, 0.01)}.items():  # cross at 200 tokens
            value = (start + each * tokens) * (1 + noise * rng.standard_normal())
            yield row("output_length", condition, "whole", "seconds", value, repeat, input_tokens=4000,
                      output_tokens=tokens)  # fmt: skip


def memory(rng, repeat, noise):
    for tokens in LENGTHS:
        for condition, each in (("icl", 0.5), ("lift", 0.1)):
            failed = condition == "icl" and tokens == 4000
            yield row("memory", condition, "whole", "peak_memory", 0 if failed else 0.5 + each * tokens / 1000, repeat,
                      input_tokens=tokens, outcome="out of memory" if failed else "measured")  # fmt: skip


def throughput(rng, repeat, noise):
    for component, rate, share in (("prefill", 9000, 0.4), ("training", 3000, 0.5), ("decode", 150, 0.7)):
        of = "share_of_bandwidth" if component == "decode" else "share_of_peak"
        condition = "icl" if component == "prefill" else "lift"
        for metric, value in ((of, share), ("tokens_per_second", rate)):
            yield row("throughput", condition, component, metric, value * (1 + noise * rng.standard_normal()), repeat)
    for metric, value in (("peak_flops", 5.25e10), ("peak_bandwidth", 1.5e10)):
        yield row("throughput", "machine", metric.split("_")[1], metric, value, repeat)


def documents_at_once(rng, repeat, noise):
    for count in (1, 4, 16):
        yield row(
            "documents_at_once", "lift", "whole", "documents_per_hour", 1000 * count**0.7, repeat, documents=count
        )


MAKERS = (first_token, output_length, memory, throughput, documents_at_once)


def efficiency_records(makers=MAKERS, repeats=5, noise=0.02, **changes):
    rng = np.random.default_rng(0)
    rows = [one for repeat in range(repeats) for make in makers for one in make(rng, repeat, noise)]
    return pd.DataFrame(rows).assign(**changes)


@cache
def usual():
    """What is drawn of the usual records."""
    return drawn(efficiency_records())


def drawn(records):
    figure, data = efficiency_plots.efficiency(records)
    plt.close(figure)
    return figure, data


def at_published_size(**changes):
    """The same times at 8B, the answer's about an input of the published length."""
    records = efficiency_records(base_model="random:llama-3.1-8b", **changes)
    long = records["part"] == "output_length"
    return records.assign(input_tokens=records["input_tokens"].mask(long, 127_000))


def chosen(data, part, condition):
    laws = data[(data["row"] == "law") & (data["part"] == part) & (data["condition"] == condition)]
    return laws[laws["outcome"] == "chosen"].set_index("term")


def test_every_number_that_was_measured_is_a_median_over_the_repeats():
    records = efficiency_records()
    data = points(records)
    ours = data[(data["row"] == "point") & (data["outcome"] == "measured")]
    groups = records[records["outcome"] == "measured"].groupby(PLACE)["value"]
    assert list(data.columns) == COLUMNS and len(ours) == groups.ngroups
    medians, lowest, highest = groups.median(), groups.min(), groups.max()
    for row in ours.itertuples():
        key = tuple(getattr(row, name) for name in PLACE)
        assert (row.value, row.low, row.high) == pytest.approx((medians[key], lowest[key], highest[key]))
        assert row.repeats == 5


def test_several_values_of_one_repeat_are_averaged_before_the_median():
    records = efficiency_records((memory,), repeats=3)
    twice = pd.concat([records, records.assign(value=records["value"] + 1)], ignore_index=True)
    assert list(points(twice)["value"].dropna())[0] == pytest.approx(points(records)["value"].dropna().iloc[0] + 0.5)
    assert set(points(twice).loc[lambda rows: rows["row"] == "point", "repeats"]) == {3}


@pytest.mark.parametrize(
    ("part", "condition", "law", "terms"),
    [
        ("first_token", "icl", "quadratic", {"constant": 0.1, "quadratic": 0.2}),
        ("first_token", "lift", "linear", {"constant": 0.1, "linear": 0.4}),
        ("first_token", "lift_streamed", "linear", {"constant": 0.1, "linear": 0.3}),
        ("output_length", "icl", "linear", {"constant": 1, "linear": 20}),
        ("output_length", "lift", "linear", {"constant": 3, "linear": 10}),
        ("memory", "lift", "linear", {"constant": 0.5, "linear": 0.1}),
    ],
)
def test_the_law_that_made_the_records_is_found_per_1000_tokens(part, condition, law, terms):
    found = chosen(points(efficiency_records(noise=0.005)), part, condition)
    assert set(found["law"]) == {law} and set(found.index) >= {*terms, "rms", "largest"}
    for term, value in terms.items():
        assert found["value"][term] == pytest.approx(value, rel=0.05)
        assert found["low"][term] <= found["value"][term] <= found["high"][term]
    assert found["value"]["largest"] < 0.02
    unit = "GiB" if part == "memory" else "s"
    assert found["unit"]["constant"] == found["unit"]["rms"] == unit
    assert set(found["repeats"]) == {5}


@pytest.mark.parametrize(
    ("part", "condition", "place"),
    [("first_token", "lift", 2000), ("first_token", "lift_streamed", 1500), ("output_length", "lift", 200)],
)
def test_a_crossing_stands_where_the_laws_that_made_the_records_meet(part, condition, place):
    _, data = usual()
    (row,) = data[(data["row"] == "crossing") & (data["part"] == part) & (data["condition"] == condition)].itertuples()
    assert row.low <= place <= row.high and row.value == pytest.approx(place, rel=0.05)
    assert (row.term, row.outcome, row.unit) == ("icl", "measured", "tokens")


def test_no_crossing_is_said_and_not_drawn():
    figure, data = drawn(efficiency_records((memory,)))
    (row,) = data[data["row"] == "crossing"].itertuples()
    assert np.isnan(row.value) and (row.outcome, row.term, row.input_tokens) == ("no crossing", "lift", 3000)
    assert not [label for axis in figure.axes for label in axis.get_legend_handles_labels()[1] if "crosses" in label]


def test_what_failed_is_marked_where_it_failed_and_left_out_of_the_law():
    records = efficiency_records()
    beyond = (records["condition"] == "icl") & (records["input_tokens"] == 4000) & (records["part"] == "first_token")
    once = records["repeat"] == 0
    figure, data = drawn(records.assign(outcome=records["outcome"].mask(beyond & once, "beyond window")))
    failed = data[data["outcome"].isin(["out of memory", "beyond window"])]
    memory_row, first_row = (failed[failed["part"] == part].iloc[0] for part in ("memory", "first_token"))
    assert np.isnan(memory_row["value"]) and (memory_row["repeats"], first_row["repeats"]) == (5, 1)
    assert (chosen(data, "first_token", "icl")["input_tokens"] == 3000).all()  # 4,000: not in every repeat
    for panel, label in ((3, "ICL: out of memory"), (0, "ICL: beyond window")):
        handles = dict(zip(*reversed(figure.axes[panel].get_legend_handles_labels()), strict=True))
        assert list(handles[label].get_xdata()) == [4000.0]


def test_published_seconds_stand_beside_a_base_model_of_their_size_alone():
    assert set(usual()[1]["source"]) == {"measured"}
    data = points(at_published_size())
    told = data[data["source"] != "measured"]
    assert len(told) == len(published.of("efficiency")) == 16 + 10 + 18
    by = told.set_index(["source", "part", "condition", "input_tokens", "output_tokens"])["value"]
    assert by["published 2502.14644v4", "first_token", "lift_streamed", 8000, 1] == 9.5
    assert by["published 2502.14644v4", "first_token", "lift", 8000, 1] == 13.63
    assert by["published 2502.14644v4", "output_length", "icl", 128000, 4000] == 1060
    assert by["published 2412.13626", "first_token", "lift", 100000, 1] == 37.69
    only_memory = points(at_published_size(makers=(memory,)))
    assert set(only_memory["source"]) == {"measured"}  # nothing of theirs without ours


@pytest.mark.parametrize(
    "base", ["NousResearch/Meta-Llama-3-8B-Instruct", "random:llama-3-8b", "meta-llama/Llama-3.1-8B"]
)
def test_a_llama_3_of_8b_is_known_by_its_name(base):
    assert "published 2412.13626" in set(points(efficiency_records(base_model=base))["source"])


def test_a_published_answer_is_drawn_beside_an_input_of_its_length_alone():
    labels = [[label for label in drawn(records)[0].axes[2].get_legend_handles_labels()[1] if "published" in label]
              for records in (at_published_size(), efficiency_records(base_model="random:llama-3-8b"))]  # fmt: skip
    assert labels == [["ICL, published v4", "LIFT, published v4"], []]


def test_the_curves_drawn_are_the_numbers_of_the_table():
    figure, data = usual()
    for panel, part, x in ((0, "first_token", "input_tokens"), (2, "output_length", "output_tokens")):
        handles = dict(zip(*reversed(figure.axes[panel].get_legend_handles_labels()), strict=True))
        for condition, label in CONDITIONS.items():
            rows = data[(data["part"] == part) & (data["condition"] == condition) & (data["component"] == "whole")]
            rows = rows[rows["row"] == "point"]
            if len(rows):
                line = handles[label].lines[0]
                assert list(line.get_xdata()) == list(rows[x]) and list(line.get_ydata()) == list(rows["value"])
        (crossing,) = data[(data["row"] == "crossing") & (data["part"] == part) & (data["condition"] == "lift")][
            "value"
        ]
        assert handles[f"crosses ICL at {crossing:,.0f}"].get_xdata()[0] == crossing


def test_stacked_bars_reach_the_sum_of_a_condition_s_parts():
    figure, data = usual()
    tops = {}
    for bar in figure.axes[1].patches:
        tops[round(bar.get_x(), 6)] = max(tops.get(round(bar.get_x(), 6), 0), bar.get_y() + bar.get_height())
    parts = data[(data["part"] == "first_token") & data["component"].isin(efficiency_plots.SPLIT)]
    expected = parts.groupby(["input_tokens", "condition"])["value"].sum()
    assert sorted(tops.values()) == pytest.approx(sorted(expected)) and len(expected) == 3 * len(LENGTHS)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_part_alone_is_drawn_and_the_others_are_said_to_be_unmeasured(make):
    figure, data = drawn(efficiency_records((make,), repeats=2))
    missing = [axis for axis in figure.axes if "not measured" in [text.get_text() for text in axis.texts]]
    assert len(missing) == (4 if make is first_token else 5)
    table = efficiency_tables.efficiency(data)
    assert (table["found (x: 1,000 tokens)"] == "not measured").sum() == 4
    assert set(table["measured"]) == set(efficiency_tables.NAMES.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.drop(columns="outcome"), "records lack column 'outcome'"),
        (lambda r: r.assign(metric="accuracy"), "records hold none of seconds.*run the notebook efficiency first"),
        (lambda r: r.assign(part="warmth"), "part 'warmth' has no place in this drawing"),
        (lambda r: r.assign(condition="rag"), "condition 'rag' has no place in this drawing"),
        (lambda r: r.assign(device=[*["a"] * (len(r) - 1), "b"]), r"mix several values of 'device' \(a, b\)"),
    ],
    ids=["column", "metric", "part", "condition", "device"],
)
def test_records_that_cannot_be_drawn_are_one_error(change, message):
    with pytest.raises(PlotError, match=message):
        drawn(change(efficiency_records()))
    assert plt.get_fignums() == []


def test_equal_records_give_equal_files_and_the_table_follows_from_the_csv(tmp_path, monkeypatch):
    monkeypatch.setitem(plots.DRAWINGS, "efficiency", efficiency_plots.efficiency)
    monkeypatch.setitem(tables.TABLES, "efficiency", efficiency_tables.efficiency)
    for folder in ("a", "b"):
        plots.save("efficiency", efficiency_records(), tmp_path / folder)
        tables.save("efficiency", tmp_path / folder)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [f"efficiency.{end}" for end in ("csv", "md", "png", "svg")]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    assert "nan" not in (tmp_path / "a/efficiency.md").read_text("utf-8")
