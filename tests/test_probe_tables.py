import pandas as pd
import pytest
from test_probe_plots import PROBES, drawn

from liftlab import tables


@pytest.fixture(scope="module")
def records():
    """The fake records by name, made once."""
    return {name: make() for name, make in PROBES.items()}


@pytest.mark.parametrize("name", sorted(PROBES))
def test_a_drawing_s_own_file_becomes_a_short_table(records, name):
    """Also with one document, whose numbers have no interval."""
    rows = {"memorization_vs_icl": 12, "conflict": 5, "evidence_position": 7, "segment_offset": 14}[name]
    for frame in (records[name], records[name][records[name]["document"] == "register-0"]):
        _, points = drawn(name, frame)
        table = tables.TABLES[name](points)
        assert len(table) == rows and "nan" not in tables.markdown(table)
        assert set(table["documents"]) == {str(frame["document"].nunique())}
    assert points["low"].isna().all() and points["mean"].notna().all()


def test_the_table_of_the_steps_by_hand():
    """First, middle and last step of four; a control's accuracy is closed book; a dash where nothing was measured."""
    rows = [("bits", "document", "base", None, 0, 9.0), ("controls", "held_out", "base", None, None, 0.05),
            *(("bits", "document", "lift", "lora", step, 9 - step / 10) for step in (0, 10, 20, 31)),
            ("closed_book", "held_out", "lift", "lora", 31, 0.75), ("controls", "held_out", "lift", "lora", None, 0.75),
            ("controls", "held_out", "other_document", "lora", None, 0.25),
            ("closed_book", "held_out", "chance", None, None, 0.1)]  # fmt: skip
    data = pd.DataFrame(rows, columns=["panel", "line", "condition", "adapter", "step", "mean"])
    data = data.assign(low=data["mean"] - 0.05, high=data["mean"] + 0.05, documents=4)
    assert tables.markdown(tables.memorization_vs_icl(data)).splitlines() == [
        "| condition | document, bits a token | closed book, held-out | documents |",
        "| --- | --- | --- | --- |",
        "| base | 9.00 [8.95, 9.05] | 0.05 [0.00, 0.10] | 4 |",
        "| LoRA, step 0 | 9.00 [8.95, 9.05] | - | 4 |",
        "| LoRA, step 20 | 7.00 [6.95, 7.05] | - | 4 |",
        "| LoRA, step 31 | 5.90 [5.85, 5.95] | 0.75 [0.70, 0.80] | 4 |",
        "| LIFT of another document, LoRA | - | 0.25 [0.20, 0.30] | 4 |",
        "| chance | - | 0.10 [0.05, 0.15] | 4 |",
    ]


def test_the_tables_name_conditions_places_and_ratios(records):
    shown = {name: tables.TABLES[name](drawn(name, frame)[1]) for name, frame in records.items()}
    assert list(shown["conflict"]["condition"])[:3] == ["base", "LoRA, step 51", "Gated Memory, step 51"]
    assert list(shown["evidence_position"].columns) == ["condition", "head (kept)", "middle (dropped)", "tail (kept)",
                                                        "cut", "all", "documents"]  # fmt: skip
    assert list(shown["segment_offset"]["condition"])[:3] == ["base", "LoRA, offset 1/4", "LoRA, offset 3/8"]
    assert shown["segment_offset"]["tokens trained on"][2] == "32,150"
