import pytest

from liftlab.scoring import exact_match, f1


@pytest.mark.parametrize(
    ("answer", "reference", "em", "overlap"),
    [
        ("Oslo", "oslo.", 1.0, 1.0),
        ("The baker", "a baker", 1.0, 1.0),
        ("Oslo Oslo", "Oslo", 0.0, 2 / 3),
        ("in Oslo city", "Oslo", 0.0, 0.5),
        ("", "Oslo", 0.0, 0.0),
        ("Bergen", "Oslo", 0.0, 0.0),
        ("the", "a", 1.0, 1.0),
    ],
)
def test_hand_worked_cases(answer, reference, em, overlap):
    assert exact_match(answer, reference) == em
    assert f1(answer, reference) == pytest.approx(overlap)
