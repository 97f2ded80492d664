import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from liftlab.statistics import AT_ONCE, interval, summarise


def reference(means, confidence=0.95, resamples=10_000, seed=0):
    """Percentile bootstrap of the mean in plain numpy, its tails as far out as those of a t interval."""
    rng = np.random.default_rng(seed)
    drawn = means[rng.integers(0, len(means), (resamples, len(means)))].mean(axis=1)
    n = len(means)
    tail = 100 * stats.norm.cdf(stats.t.ppf((1 - confidence) / 2, n - 1) * math.sqrt(n / (n - 1)))
    return means.mean(), *np.percentile(drawn, [tail, 100 - tail])


@pytest.mark.parametrize(("count", "confidence"), [(5, 0.95), (40, 0.95), (40, 0.5)])
def test_interval_agrees_with_plain_numpy(count, confidence):
    """Two bootstraps of 10 000 resamples agree to their Monte Carlo error."""
    means = np.random.default_rng(1).random(count)
    found = interval(pd.Series(means), confidence)
    assert found == pytest.approx(reference(means, confidence, seed=7), abs=0.01)
    assert found[0] == means.mean()


def test_interval_is_scipy_s_own_bootstrap_with_a_fixed_seed():
    means = np.random.default_rng(2).random(8)
    wanted = stats.norm.cdf(math.sqrt(8 / 7) * stats.t.ppf(0.975, 7)) * 2 - 1
    alone = stats.bootstrap((means,), np.mean, confidence_level=wanted, n_resamples=5000, method="percentile",
                            rng=np.random.default_rng(3)).confidence_interval  # fmt: skip
    assert interval(means, resamples=5000, seed=3) == pytest.approx((means.mean(), alone.low, alone.high), rel=1e-12)


def test_interval_is_deterministic_and_follows_its_seed():
    values = pd.Series(np.random.default_rng(1).random(9))
    assert interval(values) == interval(values)
    assert interval(values, seed=1) != interval(values)


@pytest.mark.parametrize("documents", [5, 7, 10, 20, 40])
@pytest.mark.parametrize("law", ["normal", "accuracy"])
def test_interval_covers_the_mean_about_as_often_as_it_says(documents, law):
    """Simulated studies: documents are normal, or the share right of 5 questions with each its own difficulty."""
    rng, shape = np.random.default_rng(documents), (1000 if documents == 5 else 600, documents)
    drawn = rng.normal(0.6, 0.2, shape)
    if law == "accuracy":
        drawn = rng.binomial(5, rng.beta(3, 2, shape)) / 5  # mean 0.6
    hits = [low <= 0.6 <= high for _, low, high in (interval(study, resamples=1000) for study in drawn)]
    at_least = 0.90 if documents == 5 else 0.92  # 6,000 simulations give 0.9225 for 5 documents: two standard errors
    assert at_least <= np.mean(hits) <= 0.97


def test_one_document_has_a_mean_and_no_interval():
    mean, low, high = interval(pd.Series([0.0, 1.0], index=["a", "a"]))
    assert mean == 0.5 and math.isnan(low) and math.isnan(high)


def test_equal_documents_have_an_interval_of_no_width():
    assert interval([0.7, 0.7, 0.7]) == (0.7, 0.7, 0.7)


def test_a_document_counts_once_however_many_questions_it_has():
    values = pd.Series([0.0] * 99 + [1.0], index=["long"] * 99 + ["short"])
    assert interval(values)[0] == 0.5


def test_order_of_rows_does_not_matter():
    values = pd.Series(np.random.default_rng(2).random(12), index=list("aabbccddeeff"))
    assert interval(values) == interval(values.sample(frac=1, random_state=0))


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 1.0]])
def test_nothing_and_not_a_number_are_refused(values):
    with pytest.raises(ValueError, match="at least one, all finite"):
        interval(values)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_confidence_is_a_share(confidence):
    with pytest.raises(ValueError, match=f"confidence = {confidence}"):
        interval([0.0, 1.0], confidence)


def records(seed=0):
    rng = np.random.default_rng(seed)
    keys = pd.MultiIndex.from_product([["lift", "icl"], [1, 2], list("vwxyz"), range(3)])
    frame = keys.to_frame(index=False, name=["condition", "windows", "document", "seed"])
    return frame.assign(value=rng.random(len(frame)))


def test_summarise_agrees_with_pandas():
    frame = records()
    found = summarise(frame, ["condition", "windows"])
    by_document = frame.groupby(["condition", "windows", "document"])["value"].mean()
    expected = by_document.groupby(["condition", "windows"]).mean().reset_index(name="mean")
    pd.testing.assert_frame_equal(found[["condition", "windows", "mean"]], expected)
    assert set(found["documents"]) == {5} and set(found["questions"]) == {15}
    assert (found["low"] < found["mean"]).all() and (found["mean"] < found["high"]).all()


def test_summarise_gives_each_group_its_own_interval():
    frame = records()
    group = frame[(frame["condition"] == "lift") & (frame["windows"] == 2)]
    found = summarise(frame, ["condition", "windows"]).query("condition == 'lift' and windows == 2").iloc[0]
    assert tuple(found[["mean", "low", "high"]]) == interval(group.set_index("document")["value"])


def test_groups_resampled_together_have_each_the_interval_of_a_call_of_its_own():
    """More groups than one call takes, of 1 to 12 documents, some the same in all of them, one with a missing key."""
    rng, parts = np.random.default_rng(3), []
    for place in range(3 * AT_ONCE):
        documents = [1, 2, 6, 12][place % 4]
        values = rng.random(documents) if place % 5 else np.full(documents, 0.1)
        group = float(place) if place else math.nan
        parts.append(pd.DataFrame({"group": group, "document": [f"d{n}" for n in range(documents)], "value": values}))
    frame = pd.concat([*parts, parts[3]]).sample(frac=1, random_state=0)
    found = summarise(frame, ["group"]).set_index("group")[["mean", "low", "high"]]
    for part in parts:
        alone = interval(part.set_index("document")["value"])
        np.testing.assert_array_equal(found.loc[part["group"].iloc[0]], alone)


def test_summarise_refuses_a_value_that_is_not_finite_with_the_size_of_its_group():
    frame = records()
    frame.loc[frame.index[0], "value"] = math.nan
    with pytest.raises(ValueError, match="interval of 15 values: needs at least one, all finite"):
        summarise(frame, ["condition", "windows"])


def test_summarise_by_one_column_and_by_a_missing_one():
    assert list(summarise(records(), ["condition"])["condition"]) == ["icl", "lift"]
    with pytest.raises(ValueError, match="column 'adapter' is missing"):
        summarise(records(), ["adapter"])
