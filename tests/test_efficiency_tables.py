"""The efficiency table says in words and three digits what its figure's numbers are."""

import numpy as np
import pytest
from test_efficiency_plots import efficiency_records, usual

from liftlab import efficiency_tables
from liftlab.efficiency_points import points
from liftlab.probe_tables import digits


def test_the_table_gives_laws_crossings_failures_and_single_numbers():
    table = efficiency_tables.efficiency(points(efficiency_records(noise=0)))
    found = {(row.measured, row.of): row for row in table.set_axis(
        ["measured", "of", "at", "found", "rms", "largest", "repeats"], axis=1).itertuples()}  # fmt: skip
    law = found["total time by output", "ICL, linear law, chosen"]
    assert (law.found, law.at, law.repeats) == ("s: 1 [1, 1] + 20 [20, 20] x", "512 output tokens", "5")
    assert law.largest == "0.0 %" and law.rms.endswith(" s")
    assert found["time to the first token", "ICL, quadratic law, chosen"].found.endswith("0.2 [0.2, 0.2] x^2")
    assert found["time to the first token", "LIFT against ICL"].found == (
        "ICL is lower up to 2,000 [2,000, 2,000] tokens, then LIFT"
    )
    assert found["peak memory", "LIFT against ICL"].found == "no crossing, LIFT is lower throughout"
    assert found["peak memory", "ICL"][3:5] == ("4,000 input tokens", "out of memory")
    assert found["throughput", "decode"].found == "150 [150, 150] tokens/s"
    assert found["throughput", "the machine"].at == "-"
    assert found["documents an hour", "LIFT"].at == "16 at once"


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0"), (0.012345, "0.0123"), (12.34, "12.3"), (12345.0, "12,300"), (-2.5, "-2.5"), (5.25e10, "5.25e+10"),
     (1.2e-9, "1.2e-09")],
)  # fmt: skip
def test_numbers_have_three_digits(value, said):
    assert digits(value) == said


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(-np.inf, 900.0, "[before the first, 900]"), (700.0, np.inf, "[700, beyond the last]"), (np.nan, np.nan, "800 t")],
)
def test_a_bound_outside_the_measured_lengths_is_said_in_words(low, high, said):
    data = usual()[1].copy()
    crossing = (data["row"] == "crossing") & (data["part"] == "output_length")
    data.loc[crossing, ["value", "low", "high"]] = 800.0, low, high
    (found,) = efficiency_tables.efficiency(data).set_index("of").loc[["LIFT against ICL"]].iloc[1:2, 2]
    assert said in found
