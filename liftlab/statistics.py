"""Means with their doubt. The unit of sampling is the document: its questions and seeds are averaged first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from scipy import optimize, stats

Interval = tuple[float, float, float]  # mean, low, high
RESAMPLES = 10_000
AT_ONCE = 8  # groups of documents resampled by one call; of more, the resamples do not stay in a core's cache


@dataclass(frozen=True)
class Paired:
    """Mean difference a - b over documents with its interval, in the unit of the values."""

    difference: float
    low: float
    high: float
    p: float  # two-sided, 0..1
    documents: int


def interval(
    values_by_document: pd.Series | Mapping[str, float] | Sequence[float],
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean over documents and its bootstrap interval (expanded percentile), in the unit of the values.

    A Series is indexed by document; several values of one document are averaged before documents are resampled. In a
    plain sequence each value is a document. One document: low = high = nan. All equal: low = high = mean. With fewer
    than 5 documents the interval, which never leaves the range of the data, covers less than it says.
    """
    series = pd.Series(values_by_document, dtype=float)
    if series.empty or not np.isfinite(series.to_numpy()).all():
        raise ValueError(f"interval of {len(series)} values: needs at least one, all finite")
    return _intervals([_means(series).to_numpy()], confidence, resamples, seed)[0]


def _means(values: pd.Series) -> pd.Series:
    """The mean of each document's values, sorted by document."""
    return values.sort_index() if values.index.is_unique else values.groupby(level=0, sort=True).mean()


def _intervals(groups: Sequence[np.ndarray], confidence: float, resamples: int, seed: int) -> list[Interval]:
    """`interval` of each group of document means; every group has the resamples of a call for it alone."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}: give a number between 0 and 1, such as 0.95")
    found: list[Interval] = [(float(means.mean()), math.nan, math.nan) for means in groups]
    of_size: dict[int, dict[bytes, list[int]]] = {}  # of as many documents: equal values, and where they stand
    for place, means in enumerate(groups):
        if len(means) > 1 and np.ptp(means) == 0:
            found[place] = (float(means[0]),) * 3
        elif len(means) > 1:
            of_size.setdefault(len(means), {}).setdefault(means.tobytes(), []).append(place)
    for equal in map(list, map(dict.values, of_size.values())):
        for some in (equal[start : start + AT_ONCE] for start in range(0, len(equal), AT_ONCE)):
            bounds = _bootstrapped(np.stack([groups[places[0]] for places in some]), confidence, resamples, seed)
            for places, (low, high) in zip(some, bounds, strict=True):
                for place in places:
                    found[place] = (found[place][0], low, high)
    return found


def _bootstrapped(means: np.ndarray, confidence: float, resamples: int, seed: int) -> list[list[float]]:
    """Low and high of each row of `means` (groups, documents); resampled in memory order, a row's sums are its own."""
    drawn = stats.bootstrap(
        (means,),
        lambda of, axis: np.mean(np.ascontiguousarray(of), axis=axis),
        axis=-1,
        vectorized=True,
        confidence_level=expanded(confidence, means.shape[1]),
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return np.stack([drawn.low, drawn.high], axis=1).tolist()


@cache
def expanded(confidence: float, documents: int) -> float:
    """The confidence to ask of a percentile bootstrap of n documents, so that it covers `confidence` for small n.

    A plain one is too narrow by sqrt((n - 1) / n) and knows nothing of the t distribution's heavier tails.
    Source: Hesterberg, "What teachers should know about the bootstrap", https://arxiv.org/abs/1411.5279
    (expanded percentile interval).
    """
    wider = math.sqrt(documents / (documents - 1)) * stats.t.isf((1 - confidence) / 2, documents - 1)
    return float(2 * stats.norm.cdf(wider) - 1)


def summarise(frame: pd.DataFrame, by: list[str], confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """One row per group of `by` (sorted): mean, low, high, documents (n), questions (rows averaged).

    `frame` holds records of one metric: columns `by`, document, value.
    """
    absent = [name for name in (*by, "document", "value") if name not in frame.columns]
    if absent:
        raise ValueError(f"cannot summarise: column {absent[0]!r} is missing; the table has {', '.join(frame.columns)}")
    group = frame.groupby(by, sort=True, dropna=False).ngroup().to_numpy()
    counts, wrong = np.bincount(group), group[~np.isfinite(frame["value"].to_numpy(float))]
    if len(wrong):
        raise ValueError(f"interval of {counts[wrong[0]]} values: needs at least one, all finite")
    means = frame["value"].groupby([group, frame["document"].to_numpy()], sort=True).mean()
    documents = np.bincount(means.index.get_level_values(0))
    parts = np.split(means.to_numpy(float), np.cumsum(documents)[:-1]) if len(counts) else []
    keys = frame[by].iloc[np.unique(group, return_index=True)[1]].itertuples(index=False, name=None)
    of = zip(keys, _intervals(parts, confidence, RESAMPLES, seed), documents.tolist(), counts.tolist(), strict=True)
    rows = [(*key, *numbers, *both) for key, numbers, *both in of]
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "documents", "questions"])


def paired_differences(a: pd.Series | Mapping[str, float], b: pd.Series | Mapping[str, float]) -> pd.Series:
    """a - b of each document that both hold (documents,), sorted; several values of one document are averaged first.

    ValueError: a value that is not finite, or fewer than 2 shared documents.
    """
    means = []
    for name, values in (("a", a), ("b", b)):
        series = pd.Series(values, dtype=float)
        wrong = series.index[~np.isfinite(series.to_numpy())]
        if len(wrong):
            raise ValueError(f"{name} holds a value that is not finite for document {wrong[0]!r}: leave it out of both")
        means.append(_means(series))
    first, second = means[0].align(means[1], join="inner")
    if len(first) < 2:
        counts = f"a has {len(means[0])}, b has {len(means[1])}"
        raise ValueError(f"a and b share {len(first)} documents ({counts}): a paired comparison needs at least 2")
    return first - second


def sign_flip_p(differences: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p of the mean of `differences` (documents,) when each sign is as likely as its opposite.

    Exact where 2**n <= resamples, else Monte Carlo. Means that differ by rounding alone count as ties.
    """
    scaled = differences / (np.abs(differences).max() or 1.0)  # p has no unit; 12 decimals are then 12 digits
    found = stats.permutation_test(
        (scaled,),
        lambda flipped, axis: np.mean(flipped, axis=axis).round(12),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def paired_test(
    a: pd.Series | Mapping[str, float],
    b: pd.Series | Mapping[str, float],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Paired:
    """Sign-flip permutation test of a against b, measured on the same documents; the interval is `interval`'s.

    Indexed by document; only documents in both count. The smallest p that n documents can give is 2 / 2**n (0.0625 for
    5: never below 0.05), and 2 / (resamples + 1) where 2**n > resamples. Errors: see `paired_differences`.
    """
    return paired_tests([paired_differences(a, b)], resamples, seed)[0]


def paired_tests(each: Sequence[pd.Series], resamples: int = RESAMPLES, seed: int = 0) -> list[Paired]:
    """`paired_test` of each of what `paired_differences` returned, resampled together."""
    values = [differences.to_numpy() for differences in each]
    found = zip(values, _intervals(values, 0.95, resamples, seed), strict=True)
    return [Paired(*numbers, sign_flip_p(of, resamples, seed), len(of)) for of, numbers in found]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p, in the order given. ValueError for a p outside 0..1."""
    p = np.asarray(p_values, dtype=float)
    wrong = p[~((p >= 0) & (p <= 1))]
    if len(wrong):
        raise ValueError(f"p = {wrong[0]}: give numbers from 0 to 1")
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    return adjusted.tolist()


def minimum_detectable_effect(
    differences: pd.Series | Mapping[str, float] | Sequence[float], power: float = 0.8, alpha: float = 0.05
) -> float:
    """Smallest true mean difference, in the unit of the values, found with `power` by a two-sided paired t-test.

    For as many documents as `differences` has and its standard deviation, taken as the true one; solved on the
    noncentral t distribution, not by its usual approximation. All equal: 0. ValueError for fewer than 2 documents.
    """
    series = pd.Series(differences, dtype=float)
    means = _means(series).to_numpy()
    n = len(means)
    if n < 2 or not np.isfinite(series.to_numpy()).all():
        raise ValueError(f"minimum detectable effect of {n} documents: needs at least 2, all values finite")
    if not 0 < alpha < power < 1:
        raise ValueError(f"alpha = {alpha}, power = {power}: give 0 < alpha < power < 1")
    return 0.0 if np.ptp(means) == 0 else float(noncentrality(n - 1, power, alpha) * means.std(ddof=1) / math.sqrt(n))


@cache
def noncentrality(freedom: int, power: float, alpha: float) -> float:
    """Mean over standard error at which a two-sided t-test with `freedom` degrees of freedom has `power`.

    Solved on the square of t, a noncentral F: scipy's lower tail of the noncentral t is nan for many arguments.
    """
    critical = stats.t.isf(alpha / 2, freedom)
    miss = (1 - power) / 2  # at `most`, too wide a spread and too low a mean together are as rare as 1 - power
    most = critical * math.sqrt(stats.chi2.isf(miss, freedom) / freedom) + stats.norm.isf(miss)
    return optimize.brentq(lambda nc: stats.ncf.sf(critical**2, 1, freedom, nc**2) - power, 0.0, most)
