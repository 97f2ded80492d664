"""Several lifted documents: groups without clashes, what each condition trains and keeps, and what is drawn of it."""

import numpy as np
import pandas as pd
import pytest

from liftlab import findings, plots, tables
from liftlab.canvas import PlotError
from liftlab.many_documents_plots import COLUMNS
from liftlab.studies import many_documents
from liftlab.studies.registers import base_model

SETTINGS = dict(
    base="micro", window_tokens=0, windows=0.3, groups=2, sizes=[1, 2], seeds=1, questions=2, recipe="micro/lora",
    recipe_changes={"mixed_epochs": 2, "segment_tokens": 48, "offset_tokens": 18}, same_start=True,
    conditions=list(many_documents.CONDITIONS), filler=0.1, answer_tokens=2, score="exact_match",
)  # fmt: skip


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return many_documents.run(**SETTINGS, records=tmp_path_factory.mktemp("records"))


def test_no_two_registers_of_a_group_name_the_same_person():
    base, drawn = base_model("micro", 0), []
    for group in range(3):
        documents = many_documents.group_of(base, group, 8, 0.3, 0.1)
        named = [many_documents.people(document) for document in documents]
        assert len(set.union(*named)) == sum(map(len, named)) and all(named)
        assert all(q.answer in of for document, of in zip(documents, named, strict=True)
                   for q in document.questions if q.kind == "mentor")  # fmt: skip
        asked = [question.text for document in documents for question in document.questions]
        assert len(set(asked)) == len(asked)  # so no question has two right answers
        drawn += [document.name for document in documents]
    assert len(set(drawn)) == 24 and min(drawn) == "register-1200" and "register-200" in drawn
    assert [d.name for d in many_documents.group_of(base, 0, 4, 0.3, 0.1)] == drawn[:4]


def test_more_people_than_the_world_has_are_refused(monkeypatch):
    monkeypatch.setattr(many_documents, "SEEDS", 3)
    with pytest.raises(ValueError, match=r"windows = 2.0: only \d of registers 200 to 202 name different people, 8 "):
        many_documents.group_of(base_model("micro", 0), 0, 8, 2.0, 0.1)


def test_every_condition_is_asked_the_same_questions(records):
    answers = records[records["metric"] == "exact_match"]
    assert set(answers["wording"]) == {"held_out"} and set(answers["document"].value_counts()) == {len(answers) / 2}
    for (document, size), rows in answers[answers["together"] > 0].groupby(["document", "together"]):
        asked = rows.groupby("condition")["question"].agg(tuple)
        assert set(asked.index) == set(many_documents.CONDITIONS) - {"closed_book"}
        assert asked.nunique() == 1 and rows["register"].nunique() == size, document
    base = answers[answers["together"] == 0]
    assert set(base["condition"]) == {"closed_book"} and len(base) == 8


def test_one_document_is_the_same_lift_in_every_condition(records):
    one = records[(records["together"] == 1) & (records["condition"] != "routed_wrong")]
    for _, rows in one.groupby(["document", "metric"]):
        values = rows.groupby("condition")["value"].agg(tuple)
        assert values.nunique() == 1 and len(values) == 6


def test_what_is_kept_and_trained(records):
    """Sizes by hand: an adapter each, k times a lift's; means of deltas are as large, those of weights as one lift."""
    two = records[records["together"] == 2]
    frame = two.pivot_table(index="document", columns=["metric", "condition"], values="value")
    stored, tokens = frame["stored_kib"], frame["train_tokens"]
    one = records.loc[(records["metric"] == "stored_kib") & (records["together"] == 1), "value"].iloc[0]
    for name in ("routed", "averaged_deltas", "summed_deltas"):
        assert (stored[name] == 2 * one).all()
    for name in ("joint", "joint_equal_tokens", "averaged_weights"):
        assert (stored[name] == one).all()
    assert (tokens["joint"] == 2 * tokens["joint_equal_tokens"]).all()
    for name in ("averaged_deltas", "summed_deltas", "averaged_weights"):
        assert (tokens[name] == tokens["routed"]).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sizes": [1, 1, 2]}, r"sizes = \[1, 1, 2\]: give numbers of documents from 1, each once"),
        ({"sizes": [0, 2]}, r"sizes = \[0, 2\]"),
        ({"sizes": [1]}, "the largest at least 2"),
        ({"sizes": []}, "sizes = 0: must be at least 1"),
        (
            {"sizes": [1, 4]},
            "joint_equal_tokens trains 4 documents for 1/4 of .* mixed_epochs = 2: make both multiples",
        ),
        ({"conditions": ["together"]}, "condition 'together' is unknown"),
        ({"recipe": "micro/gated_memory", "recipe_changes": {"mixed_epochs": 2}}, "'averaged_deltas' needs adapter"),
        ({"windows": 0.0}, "windows = 0.0: a document's length"),
        ({"groups": 0}, "groups = 0: must be at least 1"),
        ({"score": "taste"}, "score 'taste' is unknown"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_computed(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        many_documents.run(**{**SETTINGS, **change}, records=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_drawn_is_what_the_records_say(records, tmp_path):
    figure = plots.save("many_documents", records, tmp_path)
    data = pd.read_csv(tmp_path / "many_documents.csv")
    assert list(data.columns) == COLUMNS and "n = 2 groups" in figure.get_suptitle()
    of = {"accuracy": "exact_match", "stored_kib": "stored_kib", "train_tokens": "train_tokens"}
    for (panel, condition, size), rows in data[data["condition"] != "chance"].groupby(
        ["panel", "condition", "together"]
    ):
        chosen = records[(records["metric"] == of[panel]) & (records["condition"] == condition)]
        mean = chosen[chosen["together"] == size].groupby("document")["value"].mean().mean()
        np.testing.assert_allclose(rows["mean"], mean, rtol=1e-5)
    lines = [line for axis in figure.axes for line in axis.containers]
    assert len(lines) == 7 + 6 + 6  # six ways and the wrong route; sizes and tokens of the six
    heights = {line.get_label(): np.asarray(line.lines[0].get_ydata(), float) for line in figure.axes[0].containers}
    joint = data[(data["panel"] == "accuracy") & (data["condition"] == "joint")]
    np.testing.assert_allclose(heights["one adapter, trained on all"], joint["mean"], rtol=1e-5)


def test_the_table_and_the_findings_say_the_same(records, tmp_path):
    plots.save("many_documents", records, tmp_path)
    table = tables.save("many_documents", tmp_path).set_index("condition")
    assert list(table.columns[:3]) == ["1 document", "2 documents", "the whole group"]
    assert table.index[0] == "an adapter each, routed" and table.index[-1] == "chance"
    said = findings.of("many_documents", records)
    rows = records[(records["metric"] == "exact_match") & (records["together"] == 2)]
    means = rows.groupby(["condition", "document"])["value"].mean().unstack().mean(axis=1)
    shown = findings.signed(means["routed"] - means["averaged_weights"])
    line = next(line for line in said.splitlines() if "An adapter each minus mean of the weights" in line)
    assert shown in line and "groups" in said


def test_a_strange_condition_and_mixed_scores_are_not_drawn(records, tmp_path):
    with pytest.raises(PlotError, match="condition 'more' has no place"):
        plots.save("many_documents", records.assign(condition="more"), tmp_path)
    other = records[records["metric"] == "exact_match"].assign(metric="f1")
    with pytest.raises(PlotError, match="hold the scores .*'exact_match', 'f1'"):
        plots.save("many_documents", pd.concat([records, other]), tmp_path)
