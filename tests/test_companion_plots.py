"""Companions, drawn: the front is that of brute force, the numbers those of plain pandas, what cannot run is said."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liftlab import findings, plots, tables
from liftlab.canvas import PlotError
from liftlab.companion_points import COLUMNS, LABELS, front, points

KINDS = ("short_qa", "comprehension_and_reasoning")
COSTS = {  # training tokens, prompt tokens, bytes
    "closed_book": (0, 10, 0),
    "full_icl": (0, 200, 900),
    "retrieval": (0, 120, 900),
    "lift": (5000, 10, 40_000),
}
REASON = "a prompt with the whole document does not fit the window of 256 tokens"


def row(windows, document, condition, metric, value, unit="tokens", **more):
    at = {"study": "companions", "base_model": "micro", "document": f"register-{document}", "document_tokens": 100,
          "seed": 0, "windows": windows, "expected_questions": 50, "kind": "", "question": "", "answer": "",
          "reason": "", "context": ""}  # fmt: skip
    return at | {"condition": condition, "metric": metric, "unit": unit, "value": float(value)} | more


def records(documents=4, timed=False, seed=0):
    rng, rows = np.random.default_rng(seed), []
    for windows in (0.5, 2.0):
        for document in range(documents):
            for condition, costs in COSTS.items():
                at = windows, document, condition
                if condition == "full_icl" and (windows > 1 or document == 0):
                    rows.append(row(*at, "cannot_run", 1, "document", reason=REASON))
                    continue
                share = {"closed_book": 0.1, "full_icl": 0.9, "retrieval": 0.8, "lift": 0.7}[condition]
                for kind in KINDS:
                    rows += [row(*at, "f1", rng.random() < share, "share of questions", kind=kind, question=f"{number}")
                             for number in range(10 if kind == "short_qa" else 3)]  # fmt: skip
                for metric, cost in zip(("training_tokens", "prompt_tokens", "stored_bytes"), costs, strict=True):
                    unit = "bytes" if metric == "stored_bytes" else "tokens"
                    rows.append(row(*at, metric, cost * windows * (1 + 0.01 * document), unit))
                if timed:
                    rows.append(row(*at, "prepare_seconds", costs[0] / 1000 + 0.02 * (1 + document), "s"))
                    rows.append(row(*at, "question_seconds", costs[1] / 1e4, "s"))
                if condition in ("closed_book", "lift"):
                    rows += [row(*at, "perplexity", 5 + document, "perplexity", context=context)
                             for context in ("short", "long")]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


WHOLE = st.integers(0, 4)  # few values, so that there are ties
VALUES = st.lists(st.tuples(WHOLE, WHOLE), min_size=1, max_size=8)


@given(VALUES)
def test_the_front_is_that_of_brute_force(each):
    """Somebody beats a method iff it is weakly better in both and not the same point."""
    beaten = [any((a, c) != (b, d) and c >= d and a <= b for b, d in each) for a, c in each]
    assert front(*zip(*each, strict=True)) == [not worse for worse in beaten]


@given(VALUES)
def test_every_method_off_the_front_is_beaten_by_one_on_it(each):
    kept = [point for point, on in zip(each, front(*zip(*each, strict=True)), strict=True) if on]
    assert kept and all(any(b >= a and d <= c for b, d in kept) for a, c in each)


def test_numbers_are_those_of_plain_pandas():
    frame = records()
    data = points(frame)
    assert list(data.columns) == COLUMNS
    cost = data[data["panel"] == "cost"].set_index(["windows", "condition", "cost"])
    answers = frame[frame["metric"] == "f1"]
    for (windows, condition), rows in answers.groupby(["windows", "condition"]):
        right = rows.pivot_table(index="document", columns="kind", values="value").mean(axis=1)
        of = frame[(frame["windows"] == windows) & (frame["condition"] == condition)]
        each = of.pivot_table(index="document", columns="metric", values="value")
        for name, spent in {"total_tokens": each["training_tokens"] + 50 * each["prompt_tokens"],
                            "stored_bytes": each["stored_bytes"]}.items():  # fmt: skip
            drawn = cost.loc[(windows, condition, name)]
            assert drawn["mean"] == pytest.approx(right.mean()) and drawn["cost_mean"] == pytest.approx(spent.mean())
            assert drawn["documents"] == len(right)
            if spent.max() > 0:
                assert drawn["cost_low"] < drawn["cost_mean"] < drawn["cost_high"]
        drawn = data[(data["panel"] == "kind") & (data["windows"] == windows) & (data["condition"] == condition)]
        wanted = rows.groupby(["kind", "document"])["value"].mean().groupby("kind").mean()
        found = drawn.set_index("kind")["mean"]
        np.testing.assert_allclose(found.loc[list(KINDS)], wanted[list(KINDS)])


def test_only_what_ran_for_every_document_is_on_the_front():
    data = points(records())
    cost = data[(data["panel"] == "cost") & (data["windows"] == 0.5)]
    assert not cost[cost["condition"] == "full_icl"]["front"].any()
    assert cost[cost["condition"] == "closed_book"]["front"].all()  # the cheapest always is
    assert set(cost[cost["condition"] == "full_icl"]["documents"]) == {3}


def test_the_figure_draws_the_table():
    figure = None
    for timed, rows in ((False, 3), (True, 4)):
        figure, data = plots.DRAWINGS["companions"](records(timed=timed))
        axes = np.reshape(figure.axes, (rows, 2))
        assert [axis.get_title().split("\n")[0] for axis in axes[0]] == ["0.5 windows", "2 windows"]
        assert "full ICL (1 of 4)" in axes[0, 0].get_title() and "cannot run: full ICL" in axes[0, 1].get_title()
    for column, windows in enumerate((0.5, 2.0)):
        drawn = data[(data["panel"] == "cost") & (data["windows"] == windows)]
        for axis, name in zip(axes[:, column], ("total_tokens", "stored_bytes", "total_seconds"), strict=False):
            rows = drawn[drawn["cost"] == name].set_index("condition")
            for line in (lines := {box.get_label(): box.lines[0] for box in axis.containers}):
                condition = next(key for key, label in LABELS.items() if label == line)
                x, y = (values[0] for values in lines[line].get_data())
                assert y == pytest.approx(rows.loc[condition, "mean"])
                spent = rows.loc[condition, "cost_mean"]
                assert x == pytest.approx(spent) if spent else x < rows["cost_mean"][rows["cost_mean"] > 0].min()
            assert len(lines) == len(rows)


def test_the_table_says_what_cannot_run_and_stars_the_front(tmp_path):
    plots.save("companions", records(), tmp_path)
    table = tables.save("companions", tmp_path).set_index(["document", "method"])
    assert table.loc[("2 windows", "full ICL"), "accuracy"] == f"cannot run: {REASON}"
    assert table.loc[("0.5 windows", "full ICL"), "accuracy"].endswith(f"cannot run (1 of 4): {REASON}")
    assert set(table.loc[("2 windows", "full ICL")].drop("accuracy")) == {"-"}
    assert table.loc[("2 windows", "base, closed book"), "bytes kept"] == "0 *"
    assert table.loc[("2 windows", "LIFT, closed book"), "tokens in all"].split()[0] == "11,165"  # 2 * 1.015 * 5500
    assert "preparing (s)" not in table and table.loc[("2 windows", "LIFT, closed book"), "perplexity"] == "6.5"
    text = (tmp_path / "companions.md").read_text("utf-8")
    assert text.count("cannot run") == 2 and "nan" not in text


def test_the_table_of_a_timed_run_says_the_seconds_of_preparing_and_all_questions(tmp_path):
    frame = records(timed=True)
    plots.save("companions", frame, tmp_path)
    table = tables.save("companions", tmp_path).set_index(["document", "method"])
    lift = frame[(frame["condition"] == "lift") & (frame["windows"] == 2)]
    once, each = (lift[lift["metric"] == metric].groupby("document")["value"].mean()
                  for metric in ("prepare_seconds", "question_seconds"))  # fmt: skip
    row = table.loc[("2 windows", "LIFT, closed book")]
    assert row["preparing (s)"] == f"{once.mean():.2f}" and row["a question (s)"] == f"{each.mean():.4f}"
    spent = once + lift["expected_questions"].iloc[0] * each
    mean, low, high = (float(number) for number in re.findall(r"[\d.]+", row["seconds in all"]))
    assert mean == pytest.approx(spent.mean(), rel=5e-3)
    assert spent.min() <= low < spent.mean() < high <= spent.max() * (1 + 5e-3)
    assert table.loc[("2 windows", "base, closed book"), "seconds in all"].endswith("] *")


def test_many_seconds_have_three_digits_and_those_of_one_document_no_interval(tmp_path):
    frame = records(1, timed=True)
    frame.loc[frame["unit"] == "s", "value"] *= 20  # lift at 2 windows: 20 * (5.02 + 50 * 0.001)
    plots.save("companions", frame, tmp_path)
    table = tables.save("companions", tmp_path).set_index(["document", "method"])
    assert table.loc[("2 windows", "LIFT, closed book"), "seconds in all"].removesuffix(" *") == "101"
    assert all(re.fullmatch(r"[\d,]+(\.\d+)?( \*)?|-", said) for said in table["seconds in all"])


def test_findings_compare_lift_with_every_other_method_at_each_length():
    frame = records()
    said = findings.of("companions", frame)
    lines = [line for line in said.splitlines() if line.startswith("- Accuracy")]
    assert [line.split(",")[0] for line in lines] == ["- Accuracy at 0.5 windows", "- Accuracy at 2 windows"]
    right = frame[(frame["metric"] == "f1") & (frame["windows"] == 2)]
    each = right.groupby(["condition", "document", "kind"])["value"].mean().groupby(["condition", "document"]).mean()
    difference = (each["lift"] - each["retrieval"]).mean()
    assert f"retrieval (BM25) {difference:+.2f}" in lines[1] or f"found: {difference:+.2f}" in lines[1]
    assert f"full ICL cannot run on 1 document of 0.5 windows, 4 documents of 2 windows: {REASON}." in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="expected_questions"), "lack column 'expected_questions'"),
        (lambda frame: frame[frame["kind"] == ""], "no answered question"),
        (lambda frame: frame.replace({"condition": {"lift": "lora"}}), "'lora' has no place"),
        (lambda frame: pd.concat([frame, frame.assign(expected_questions=9)]), "several expected_questions"),
    ],
)
def test_records_that_cannot_be_drawn_are_named(change, message):
    with pytest.raises(PlotError, match=message):
        plots.DRAWINGS["companions"](change(records(2)))


def test_findings_need_lift():
    frame = records(2)
    with pytest.raises(PlotError, match="no answers of lift at 0.5 windows"):
        findings.of("companions", frame[frame["condition"] != "lift"])
