import pandas as pd
import pytest
from test_plots import RECORDS

from liftlab import plots, tables

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


def gate_points():
    rows = [
        ("evidence", "lift_truncated_icl", "answer", False, "dropped", 0.4),
        ("evidence", "lift_truncated_icl", "question", False, "dropped", 0.3),
        ("evidence", "lift_truncated_icl", "answer", False, "kept", 0.35),
        ("evidence", "lift", "answer", False, "absent", 0.5),
        ("evidence", "lift", "question", False, "absent", 0.25),
        ("roles", "lift", "answer", False, "absent", 0.5),
        ("roles", "lift_truncated_icl", "document", False, None, 0.1),
        ("roles", "lift_truncated_icl", "document", True, None, 0.2),
        ("roles", "lift_truncated_icl", "answer", False, None, 0.36),
        ("difference", "lift_truncated_icl", "answer", False, "dropped - kept", 0.05),
        ("layers_heads", "lift", "answer", False, "absent", 0.7),
    ]
    columns = ["panel", "condition", "role", "evidence", "evidence_place", "mean"]
    data = pd.DataFrame(rows, columns=columns)
    return data.assign(low=data["mean"] - 0.02, high=data["mean"] + 0.02, documents=4)


def test_gates_by_token_prompt_and_evidence(tmp_path):
    gate_points().to_csv(tmp_path / "gate_values.csv", index=False)
    tables.save("gate_values", tmp_path)
    assert (tmp_path / "gate_values.md").read_text().splitlines() == [
        "| tokens | prompt | evidence | gate | documents |",
        "| --- | --- | --- | --- | --- |",
        "| question | closed book | not in the prompt | 0.25 [0.23, 0.27] | 4 |",
        "| answer | closed book | not in the prompt | 0.50 [0.48, 0.52] | 4 |",
        "| answer | with head and tail of the document | in the prompt | 0.35 [0.33, 0.37] | 4 |",
        "| question | with head and tail of the document | dropped from the prompt | 0.30 [0.28, 0.32] | 4 |",
        "| answer | with head and tail of the document | dropped from the prompt | 0.40 [0.38, 0.42] | 4 |",
        "| document, evidence | with head and tail of the document | - | 0.20 [0.18, 0.22] | 4 |",
        "| document, other | with head and tail of the document | - | 0.10 [0.08, 0.12] | 4 |",
        "| answer | with head and tail of the document | dropped minus in the prompt | +0.050 [+0.030, +0.070] | 4 |",
    ]


def test_layers_then_all_layers_and_a_dash_for_what_does_not_exist():
    rows = [("gate_exact", 1, 0.6), ("gate_exact", 0, 0.5), ("gate_exact", None, 0.55), ("gate_learned", 0, 0.1)]
    data = pd.DataFrame(rows, columns=["metric", "layer", "mean"]).assign(low=0.0, high=1.0)
    table = tables.oracle_gate(data)
    assert list(table["layer"]) == ["0", "1", "all layers"]
    assert list(table["exact gate"].str[:4]) == ["0.50", "0.60", "0.55"]
    assert list(table["learned gate"]) == ["0.10 [0.00, 1.00]", "-", "-"] and set(table["best constant"]) == {"-"}
    assert list(table.columns) == ["layer", *tables.ORACLE_NAMES.values()]


def test_recipes_in_order_with_weights_in_full():
    rows = [
        ("accuracy", "lora_equal_time", "held_out", 0.75),
        ("accuracy", "lora_equal_time", "trained", 0.9),
        ("accuracy", "gated_memory", "trained", 0.8),
        ("accuracy", "gated_memory", "held_out", 0.7),
        ("accuracy", "chance", "held_out", 0.03),
        ("seconds", "gated_memory", None, 41.0),
        ("seconds", "lora_equal_time", None, 40.5),
    ]
    data = pd.DataFrame(rows, columns=["panel", "condition", "wording", "mean"])
    data = data.assign(low=data["mean"] - 0.1, high=data["mean"] + 0.1, steps=120.4, trained_weights=1234567)
    assert tables.markdown(tables.adapters(data)).splitlines() == [
        "| recipe | trained weights | steps | seconds | trained wordings | held-out wordings |",
        "| --- | --- | --- | --- | --- | --- |",
        "| Gated Memory, own recipe | 1,234,567 | 120 | 41.00 [40.90, 41.10] | 0.80 [0.70, 0.90] | 0.70 [0.60, 0.80] |",
        "| LoRA, equal time | 1,234,567 | 120 | 40.50 [40.40, 40.60] | 0.90 [0.80, 1.00] | 0.75 [0.65, 0.85] |",
    ]


@pytest.mark.parametrize("name", ["gate_values", "oracle_gate", "adapters"])
def test_a_drawing_s_own_file_becomes_a_table(tmp_path, name):
    """Also with one document, whose numbers have no interval."""
    records = RECORDS[name]()
    for chosen in (records, records[records["document"] == "register-0"]):
        plots.save(name, chosen, tmp_path)
        table = tables.save(name, tmp_path)
        assert len(table) == {"gate_values": 10, "oracle_gate": 4, "adapters": 6}[name]
        assert "nan" not in (tmp_path / f"{name}.md").read_text()
