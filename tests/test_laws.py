"""Laws and crossings: known ones are found again under noise, by independent solvers, and doubt is what it says."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from liftlab.laws import Law, crossing, fits, median_interval
from liftlab.statistics import interval

X = np.array([0.25, 0.5, 1, 2, 3, 4])


def curve(law, repeats=5, noise=0.03, x=X, seed=0):
    """`law` at `x`, every value scattered in proportion to itself."""
    scatter = 1 + noise * np.random.default_rng(seed).standard_normal((repeats, len(x)))
    return pd.DataFrame(law(x) * scatter, columns=x)


def line(x):
    return 0.5 + 0.1 * x


def parabola(x):
    return 0.05 + 0.3 * x + 0.1 * x**2


def named(laws):
    return {law.name: law for law in laws}


def test_a_law_without_noise_is_found_exactly_and_called_by_its_name():
    for law, name, truth in ((line, "linear", (0.5, 0.1)), (parabola, "quadratic", (0.05, 0.3, 0.1))):
        found = fits(curve(law, noise=0))[0]
        assert found.name == name and found.rms < 1e-12 and found.largest < 1e-12
        for (mean, low, high), value in zip(found.coefficients, truth, strict=True):
            assert (mean, low, high) == pytest.approx((value, value, value))
        assert found.at(X) == pytest.approx(law(X))


@pytest.mark.parametrize(("law", "name"), [(line, "linear"), (parabola, "quadratic")])
def test_the_law_is_recognised_under_noise(law, name):
    """AICc calls a line a parabola in about one curve of eight, whatever the noise; it misses no clear parabola."""
    chosen = [fits(curve(law, seed=seed))[0].name for seed in range(60)]
    assert chosen.count(name) >= (60 if name == "quadratic" else 45)


@pytest.mark.parametrize("name", ["linear", "quadratic"])
def test_coefficients_are_those_of_weighted_least_squares_over_all_values(name):
    """scipy's solver on all values, scattered in proportion to the median at their x."""
    values = curve(parabola, noise=0.1)
    model = {"linear": lambda x, a, b: a + b * x, "quadratic": lambda x, a, b, c: a + b * x + c * x**2}[name]
    spread = np.tile(np.median(values, axis=0), len(values))
    expected, _ = optimize.curve_fit(model, np.tile(X, len(values)), values.to_numpy().ravel(), sigma=spread)
    found = named(fits(values))[name]
    assert [mean for mean, _, _ in found.coefficients] == pytest.approx(list(expected), rel=1e-6)
    left = values.median() - model(X, *expected)
    assert found.rms == pytest.approx(math.sqrt((left**2).mean()), rel=1e-6)
    assert found.largest == pytest.approx((left.abs() / values.median()).max(), rel=1e-6)


def test_the_aicc_is_that_of_the_normal_likelihood():
    """From the density's logarithm at its maximum, plus the correction; a constant shared by both laws aside."""
    values = curve(parabola, noise=0.1)
    count, offsets = values.size, []
    for law in fits(values):
        left = ((values - law.at(X)) / values.median()).to_numpy().ravel()
        free = len(law.coefficients) + 1
        likelihood = stats.norm.logpdf(left, scale=math.sqrt((left**2).mean())).sum()
        offsets.append(2 * free - 2 * likelihood + 2 * free * (free + 1) / (count - free - 1) - law.aicc)
    assert offsets[0] == pytest.approx(offsets[1])


def test_a_coefficient_s_interval_is_over_the_repeats_fitted_alone():
    values = curve(line, noise=0.1)
    weights = 1 / np.median(values, axis=0)
    slopes = [np.polyfit(X, row, 1, w=weights)[0] for row in values.to_numpy()]
    assert named(fits(values))["linear"].coefficients[1] == pytest.approx(interval(slopes))


def test_two_places_give_a_line_and_too_few_values_choose_none():
    (law,) = fits(curve(line, repeats=1, x=X[:2]))
    assert (law.name, law.aicc) == ("linear", math.inf) and math.isnan(law.coefficients[0][1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pd.DataFrame([[1.0]], columns=[1]), "a curve of 1 x and 1 repeats: needs at least 2 x"),
        (pd.DataFrame([[1.0, np.nan]], columns=[1, 2]), "a hole: leave out the x"),
        (pd.DataFrame([[1.0, 2.0]], columns=[2, 1]), "give each x once, in rising order"),
        (pd.DataFrame([[0.0, 2.0]], columns=[1, 2]), "a median of 0.0: laws are fitted to values above 0"),
    ],
    ids=["one", "hole", "order", "zero"],
)
def test_a_curve_that_cannot_be_fitted_is_one_error(values, message):
    with pytest.raises(ValueError, match=message):
        fits(values)


def test_a_crossing_of_lines_is_where_they_are_equal():
    """0.5 + 0.1 x meets 0.1 + 0.3 x at 2; linear interpolation between measured x is exact for lines."""
    other = curve(lambda x: 0.1 + 0.3 * x, noise=0)
    found = crossing(other, curve(line, noise=0))
    assert (found.at, found.low, found.high, found.lower_first, found.share) == pytest.approx((2, 2, 2, "a", 1))
    assert crossing(curve(line, noise=0), other).lower_first == "b"


def test_of_several_crossings_the_first_counts_and_touching_is_none():
    flat = pd.DataFrame([[1.0] * 5], columns=range(5))
    assert crossing(pd.DataFrame([[0.0, 2, 0, 2, 2]], columns=range(5)), flat).at == 0.5
    assert crossing(pd.DataFrame([[0.0, 1, 1, 2, 2]], columns=range(5)), flat).at == 2  # last of the equal places
    touching = crossing(pd.DataFrame([[0.0, 1, 0, 1, 0]], columns=range(5)), flat)
    assert math.isnan(touching.at) and touching.lower_first == "a"
    equal = crossing(flat, flat)
    assert math.isnan(equal.at) and equal.lower_first == ""


def test_a_crossing_s_interval_holds_the_true_one_as_often_as_it_says():
    """400 experiments of 6 repeats: 95 % of the intervals, 2.4 standard errors of the count allowed below."""
    held = 0
    for seed in range(400):
        a = curve(lambda x: 0.1 + 0.3 * x, repeats=6, noise=0.05, seed=seed)
        b = curve(line, repeats=6, noise=0.05, seed=10_000 + seed)
        found = crossing(a, b, resamples=300)
        held += found.low <= 2 <= found.high
    assert held / 400 >= 0.95 - 2.4 * math.sqrt(0.95 * 0.05 / 400)


def test_without_a_crossing_the_interval_says_on_which_side_it_may_lie():
    low, high = curve(lambda x: 0.1 * x, noise=0.01), curve(lambda x: 0.4 + 0.01 * x, noise=0.01)
    beyond = crossing(low, high, resamples=500)  # at 4.4, after the last x
    assert math.isnan(beyond.at) and beyond.lower_first == "a"
    assert (beyond.low, beyond.high, beyond.share) == (math.inf, math.inf, 0)


@pytest.mark.parametrize(("rows", "open_end"), [(((0.9, 2.0), (1.1, 2.0)), "low"), (((0.5, 1.1), (0.5, 0.9)), "high")])
def test_draws_that_change_order_outside_the_measured_x_open_a_bound(rows, open_end):
    """Two of five repeats start above, or end below: three or more of these are drawn in 32 % of the resamples."""
    a = pd.DataFrame([rows[0]] * 3 + [rows[1]] * 2, columns=[1, 2])
    found = crossing(a, pd.DataFrame([[1.0, 1.0]] * 5, columns=[1, 2]))
    assert math.isinf(getattr(found, open_end)) and 1 < found.at < 2 and found.lower_first == "a"
    assert (found.low == -math.inf, found.high == math.inf) == (open_end == "low", open_end == "high")
    assert found.share == pytest.approx(stats.binom.cdf(2, 5, 0.4), abs=0.02)


def test_only_shared_lengths_and_repeats_are_compared():
    a, b = curve(lambda x: 0.1 + 0.3 * x, noise=0), curve(line, noise=0)
    assert crossing(a, b.drop(columns=[4.0]).drop(index=0)) == crossing(a.drop(columns=[4.0]).drop(index=0), b)
    alone = crossing(a.head(1), b)
    assert alone.at == pytest.approx(2) and math.isnan(alone.low) and math.isnan(alone.share)
    with pytest.raises(ValueError, match="a curve of 1 x and 5 repeats"):
        crossing(a[[1.0]], b)


def test_equal_input_gives_equal_bounds():
    a, b = curve(lambda x: 0.1 + 0.3 * x), curve(line, seed=1)
    assert crossing(a, b) == crossing(a, b) and crossing(a, b).low < crossing(a, b).at < crossing(a, b).high


@pytest.mark.parametrize("count", [5, 6, 9, 20])
def test_a_median_s_interval_covers_what_the_binomial_says(count):
    """It goes by rank: which ones, then how often these hold the median of 100,000 samples of a skewed law."""
    _, low, high = median_interval(np.arange(count))
    samples = np.sort(np.random.default_rng(count).exponential(size=(100_000, count)), axis=1)
    held = ((samples[:, int(low)] <= math.log(2)) & (samples[:, int(high)] >= math.log(2))).mean()
    assert held >= min(0.95, 1 - 2.0 ** (1 - count)) - 0.002  # 2.5 standard errors
    assert (low, high) == pytest.approx(stats.quantile_test(np.arange(count), q=count / 2, p=0.5)
                                        .confidence_interval(0.95)) or count < 6  # fmt: skip
    values = samples[0]
    assert median_interval(values[::-1]) == pytest.approx((np.median(values), values[int(low)], values[int(high)]))


def test_a_median_of_few_values_or_none():
    assert median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert median_interval([3.0])[0] == 3.0 and math.isnan(median_interval([3.0])[1])
    assert median_interval([2.0] * 8) == (2.0, 2.0, 2.0)
    for values in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="needs at least one, all finite"):
            median_interval(values)


def test_a_law_counts_in_the_unit_of_x():
    law = Law("quadratic", ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (3.0, 3.0, 3.0)), 0.0, 0.0, 0.0)
    assert list(law.at(np.array([0.0, 1.0, 2.0]))) == [1.0, 6.0, 17.0]
