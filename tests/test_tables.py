import pandas as pd
import pytest

from liftlab import tables

POINTS = pd.DataFrame(
    [
        ("held_out", "lift", 2.0, 0.9, 0.8, 1.0),
        ("held_out", "lift", 1.0, 1.0, 1.0, 1.0),
        ("held_out", "full_icl", 1.0, 0.75, 0.5, 1.0),
        ("held_out", "chance", None, 0.03, None, None),
    ],
    columns=["wording", "condition", "windows", "mean", "low", "high"],
)


def test_lengths_stand_in_order_and_what_does_not_fit_says_so(tmp_path):
    POINTS.to_csv(tmp_path / "lift_vs_icl.csv", index=False)
    tables.save("lift_vs_icl", tmp_path)
    assert (tmp_path / "lift_vs_icl.md").read_text().splitlines() == [
        "| condition | questions | 1 window | 2 windows |",
        "| --- | --- | --- | --- |",
        "| full ICL | questions in held-out wordings | 0.75 [0.50, 1.00] | does not fit |",
        "| LIFT, closed book | questions in held-out wordings | 1.00 [1.00, 1.00] | 0.90 [0.80, 1.00] |",
    ]


def test_the_last_measurement_stands_in_the_pre_training_table():
    rows = [("in_context", 1, 0.5), ("in_context", 2, 0.9), ("closed_book", 2, 0.02), ("chance", None, 0.03)]
    data = pd.DataFrame(rows, columns=["condition", "step", "mean"]).assign(
        low=0.0, high=1.0, documents=5, questions=10
    )
    assert list(tables.pretrain_micro(data)["accuracy"].str[:4]) == ["0.90", "0.02", "0.03"]


def test_markdown_keeps_bars_inside_cells():
    assert tables.markdown(pd.DataFrame({"a": ["x|y"]})).splitlines()[-1] == "| x\\|y |"


def test_an_unknown_table_is_an_error(tmp_path):
    (tmp_path / "gates.csv").write_text("a\n1\n")
    with pytest.raises(KeyError):
        tables.save("gates", tmp_path)
