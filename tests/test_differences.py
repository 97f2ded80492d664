"""Two numbers are equal within a relative tolerance, texts only when they are the same, whichever side is which."""

import math

import pandas as pd
import pytest

from liftlab.differences import Comparison, Difference

TABLE = "condition,mean,n\nlift,0.123456,20\nicl,,20\n"


def compared(stored, recomputed, file="a.csv", tolerance=1e-6):
    found = Comparison(tolerance)
    found.of_files(file, stored.encode(), recomputed.encode())
    assert found.files == 1
    return found


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (1.0, 1.0, True),
        (math.nan, math.nan, True),
        (1.0, 1.0 + 0.9e-6, True),
        (1.0, 1.0 + 1.1e-6, False),
        (-1e9, -1e9 * (1 + 0.9e-6), True),
        (1e-9, 1.1e-9, False),
        (0.0, 1e-17, True),
        (0.0, 1e-9, False),
        (1.0, -1.0, False),
        (1.0, math.nan, False),
        (1.0, math.inf, False),
        (math.inf, -math.inf, False),
        (math.inf, math.inf, True),
    ],
)
def test_numbers_are_equal_within_a_relative_tolerance_from_either_side(a, b, equal):
    assert Comparison(1e-6).equal(a, b) is Comparison(1e-6).equal(b, a) is equal


def test_with_tolerance_0_only_what_is_rounding_is_left():
    assert not Comparison(0).equal(1.0, 1.0 + 1e-9)
    assert Comparison(0).equal(1.0, 1.0 + 1e-15)


def test_the_largest_relative_difference_is_told_whether_or_not_it_counts():
    found = compared(TABLE, TABLE.replace("0.123456", "0.123457").replace("20\nicl", "21\nicl"))
    assert found.largest == pytest.approx(1 / 21)
    assert compared(TABLE, TABLE.replace("0.123456", "0.123457"), tolerance=1e-4).largest == pytest.approx(
        1e-6 / 0.123457
    )


def test_equal_files_have_no_difference():
    found = compared(TABLE, TABLE)
    assert (found.differences, found.notes, found.largest) == ([], [], 0)


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("0.123456", "0.123466", (1, "mean", "0.123456", "0.123466")),
        ("icl,,", "icl,0.5,", (2, "mean", "", "0.5")),
        ("icl,,", "full,,", (2, "condition", "icl", "full")),
        ("mean", "median", ("", "header", "condition,mean,n", "condition,median,n")),
        ("icl,,20\n", "", ("", "number of rows", "2", "1")),
        ("icl,,20\n", "icl,20\n", (2, "number of cells", "icl,,20", "icl,20")),
    ],
)
def test_a_table_differs_where_a_cell_a_column_or_a_row_does(old, new, place):
    assert compared(TABLE, TABLE.replace(old, new)).differences == [Difference("a.csv", *place)]


def test_text_must_be_the_same_to_the_letter():
    found = compared("| a |\n| 0.50 |\n", "| a |\n| 0.51 |\n", file="a.md", tolerance=0.5)
    assert found.differences == [Difference("a.md", 2, "line", "| 0.50 |", "| 0.51 |")]
    (longer,) = compared("- a\n", "- a\n- b\n", file="a.findings.md").differences
    assert (longer.column, longer.stored, longer.recomputed) == ("number of lines", "1", "2")


@pytest.mark.parametrize("file", ["a.png", "a.svg"])
def test_a_picture_that_differs_is_a_note(file):
    found = compared("pixels", "other pixels", file=file)
    assert not found.differences and found.notes[0].startswith(f"{file}: the picture differs")


def test_records_are_compared_row_by_row_but_for_what_is_left_out():
    stored = pd.DataFrame({"condition": ["lift", "icl"], "rank": [8, 8], "value": [0.5, math.nan]})
    recomputed = stored.assign(condition=["lift", "base"], value=[0.6, math.nan])
    found = Comparison(1e-6)
    found.of_records("r.csv", stored, recomputed, [])
    assert found.differences == [
        Difference("r.csv", 2, "condition", "icl", "base"),
        Difference("r.csv", 1, "value", "0.5", "0.6"),
    ]
    left = Comparison(1e-6)
    left.of_records("r.csv", stored, recomputed, ["condition", "value"])
    assert (left.differences, left.files) == ([], 1)


def test_records_of_another_shape_are_one_difference():
    stored = pd.DataFrame({"condition": ["lift", "icl"], "value": [0.5, 0.6]})
    found = Comparison(1e-6)
    found.of_records("r.csv", stored, stored.iloc[:1], [])
    found.of_records("r.csv", stored, stored.rename(columns={"value": "score"}), [])
    assert [difference.column for difference in found.differences] == ["number of rows", "header"]
