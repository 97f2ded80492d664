"""The laws of the paired tests: permutation p, Holm, minimum detectable effect."""

from dataclasses import astuple
from fractions import Fraction
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from liftlab.statistics import AT_ONCE, holm, interval, minimum_detectable_effect, paired_test, paired_tests


def enumerated_p(differences):
    """Share of the sign patterns whose sum is as far from 0 as the observed one, in exact fractions."""
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in product((-1, 1), repeat=5)]
    return sum(total >= abs(sum(differences)) for total in sums) / len(sums)


@pytest.mark.parametrize("seed", range(12))
def test_p_is_the_exact_enumeration_of_signs(seed):
    """Accuracies in tenths have many ties that floats miss: fractions do not."""
    tenths = np.random.default_rng(seed).integers(0, 11, (2, 5))
    a, b = (pd.Series(row / 10, index=list("vwxyz")) for row in tenths)
    exact = [Fraction(int(x), 10) - Fraction(int(y), 10) for x, y in tenths.T]
    assert paired_test(a, b).p == pytest.approx(enumerated_p(exact), rel=1e-12)


@pytest.mark.parametrize(
    ("differences", "p"),
    [((1, 2, 3), 2 / 8), ((1, 2, -3), 1), ((3, 2, -1), 4 / 8), ((0, 0, 0), 1), ((0.3,) * 5, 2 / 32)],
)
def test_p_by_hand(differences, p):
    """All signs alike: 2 / 2**n. 3 + 2 - 1 = 4: reached by 6 and 4 of the sums 6, 4, 2, 0 and their negatives."""
    found = paired_test(dict(enumerate(differences)), dict.fromkeys(range(len(differences)), 0.0))
    assert found.p == pytest.approx(p) and found.documents == len(differences)


@pytest.mark.parametrize("unit", [1.0, 1e-12, 1e12])
def test_p_has_no_unit_and_knows_equal_means(unit):
    """Thirds that sum to the same 12 / 3: in floats they differ by about 1e-17, and p without rounding is 0.86."""
    a, b = np.array([[0, 2, 2, 2, 1, 0, 3, 2], [1, 1, 3, 1, 3, 3, 0, 0]]) / 3 * unit
    assert paired_test(dict(enumerate(a)), dict(enumerate(b))).p == 1
    assert paired_test(dict(enumerate(a + unit)), dict(enumerate(b))).p == pytest.approx(4 / 256)


def test_p_of_many_documents_is_near_the_exact_one():
    """14 documents: drawn signs (2**14 > 10 000) agree with all 16 384 to three Monte Carlo errors."""
    values = dict(enumerate(np.random.default_rng(4).normal(0.5, 1, 14)))
    zero = dict.fromkeys(values, 0.0)
    drawn, exact = (paired_test(values, zero, resamples).p for resamples in (10_000, 2**14))
    assert drawn != exact and drawn == pytest.approx(exact, abs=3 * np.sqrt(exact / 10_000) * np.sqrt(2))


def test_p_is_about_uniform_where_nothing_differs():
    """300 cases of 8 documents without an effect: p below 0.05 in about 5 %, below 0.5 in about half."""
    draws = np.random.default_rng(0).normal(size=(300, 2, 8))
    p = np.array([paired_test(dict(enumerate(a)), dict(enumerate(b)), resamples=256).p for a, b in draws])
    assert 0.01 < np.mean(p < 0.05) < 0.09 and 0.4 < np.mean(p < 0.5) < 0.6


@pytest.mark.parametrize("count", [8, 20])
def test_swapping_the_conditions_negates_the_difference_and_keeps_p(count):
    a, b = (dict(enumerate(row)) for row in np.random.default_rng(3).random((2, count)))
    one, other = paired_test(a, b), paired_test(b, a)
    assert (one.difference, one.p) == (-other.difference, other.p)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-12)


def test_only_shared_documents_count_and_each_once():
    """Questions of a document are averaged first; the interval is that of the differences."""
    a = pd.Series([1.0, 0.0, 0.75, 9.0, 0.5], index=["x", "x", "y", "alone", "z"])
    found = paired_test(a, {"z": 0.25, "y": 0.5, "x": 0.0, "elsewhere": 7.0}, seed=5)
    differences = pd.Series({"x": 0.5, "y": 0.25, "z": 0.25})
    assert astuple(found) == (*interval(differences, seed=5), pytest.approx(2 / 8), 3)
    assert paired_test(a, a).difference == 0


@pytest.mark.parametrize(
    ("b", "message"),
    [
        ({"x": 1.0, "z": 0.0}, "share 1 documents .a has 2, b has 2."),
        ({"x": 1.0, "y": np.nan}, "b holds .* 'y'"),
        ({"x": 1.0, "y": 0.0, "alone": np.inf}, "b holds .* 'alone'"),
    ],
)
def test_too_few_documents_and_not_a_number_are_refused(b, message):
    with pytest.raises(ValueError, match=message):
        paired_test({"x": 0.0, "y": 1.0}, b)


def test_holm_by_hand():
    """0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1 raised to the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2]) == [0.2] and holm([]) == [] and holm([0.6, 0.7]) == [1.0, 1.0]


@pytest.mark.parametrize("count", [2, 7, 30])
def test_holm_keeps_its_laws(count):
    """Never below the raw p or above 1, in the same order, whatever the order given; at most Bonferroni."""
    rng = np.random.default_rng(count)
    p = np.round(rng.random(count) ** 3, 2)  # with ties
    adjusted, order = np.array(holm(p)), rng.permutation(count)
    assert (adjusted >= p).all() and (adjusted <= np.minimum(count * p, 1)).all()
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all() and adjusted[p.argmin()] == min(1, count * p.min())
    assert holm(p[order]) == adjusted[order].tolist()


@pytest.mark.parametrize("p", [-0.01, 1.01, np.nan])
def test_holm_refuses_what_is_no_probability(p):
    with pytest.raises(ValueError, match=f"p = {p}"):
        holm([0.5, p])


@pytest.mark.parametrize(("count", "power", "alpha"), [(2, 0.8, 0.05), (5, 0.8, 0.05), (20, 0.8, 0.05), (8, 0.5, 0.01)])
def test_the_minimum_detectable_effect_is_found_with_its_power(count, power, alpha):
    """t-tests of 40 000 simulated samples with that mean and spread: power to a hundredth."""
    rng = np.random.default_rng(count)
    sample = rng.normal(size=count)
    effect = minimum_detectable_effect(sample, power, alpha)
    found = stats.ttest_1samp(rng.normal(effect, sample.std(ddof=1), (40_000, count)), 0, axis=1).pvalue < alpha
    assert found.mean() == pytest.approx(power, abs=0.01)


def test_the_minimum_detectable_effect_follows_spread_documents_and_power():
    """Same unit as the values, blind to their mean; less for more documents, more for more power."""
    values = np.random.default_rng(0).random(12)
    effect = minimum_detectable_effect(values)
    assert minimum_detectable_effect(100 * values + 3) == pytest.approx(100 * effect)
    assert minimum_detectable_effect(np.tile(values, 4)) < effect < minimum_detectable_effect(values, power=0.9)
    doubled = pd.Series(np.repeat(values, 2), index=np.repeat(range(12), 2))
    assert minimum_detectable_effect(doubled) == effect and minimum_detectable_effect([0.3] * 3) == 0


@pytest.mark.parametrize("values", [[], [1.0], [1.0, np.nan]])
def test_the_minimum_detectable_effect_needs_two_documents(values):
    with pytest.raises(ValueError, match="needs at least 2"):
        minimum_detectable_effect(values)


@pytest.mark.parametrize(("power", "alpha"), [(1, 0.05), (0.05, 0.05), (0.8, 0), (80, 5)])
def test_power_and_alpha_are_shares(power, alpha):
    with pytest.raises(ValueError, match=f"alpha = {alpha}, power = {power}"):
        minimum_detectable_effect([0.0, 1.0], power, alpha)


@pytest.mark.parametrize("documents", ["normal", "accuracy"])
def test_interval_covers_the_mean_of_20_to_30_documents(documents):
    """300 simulations; `accuracy` is the share of 5 questions right, each document with its own difficulty."""
    rng = np.random.default_rng(1)
    hits = []
    for count in rng.integers(20, 31, 300):
        values = rng.normal(0.5, 1, count) if documents == "normal" else rng.binomial(5, rng.beta(2, 2, count)) / 5
        _, low, high = interval(values, resamples=1000)
        hits.append(low <= 0.5 <= high)
    assert 0.88 <= np.mean(hits) <= 0.97


def test_differences_tested_together_are_each_tested_as_alone():
    """More than one call resamples, of 2 to 7 documents, some of them equal to others or the same in all documents."""
    rng = np.random.default_rng(5)
    each = [pd.Series(rng.normal(size=2 + place % 6)) for place in range(2 * AT_ONCE)]
    each += [each[3], -each[3], pd.Series([0.25] * 4)]
    assert paired_tests(each) == [paired_test(values, 0 * values) for values in each]
    assert paired_tests([]) == []
