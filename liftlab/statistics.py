"""Means with their doubt. The unit of sampling is the document: its questions and seeds are averaged first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import special  # not scipy.stats, whose import takes as long as a figure

Interval = tuple[float, float, float]  # mean, low, high
RESAMPLES = 10_000


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
    _require_finite(series)
    means = series.groupby(level=0, sort=True).mean().to_numpy()
    return _bootstrapped(means, confidence, resamples, seed)


def _require_finite(values: pd.Series) -> None:
    if values.empty or not np.isfinite(values.to_numpy(float)).all():
        raise ValueError(f"interval of {len(values)} values: needs at least one, all finite")


def _bootstrapped(means: np.ndarray, confidence: float, resamples: int, seed: int) -> Interval:
    """`interval` of the documents' means (documents,), sorted by document."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}: give a number between 0 and 1, such as 0.95")
    mean = float(means.mean())
    if len(means) == 1:
        return mean, math.nan, math.nan
    if np.ptp(means) == 0:
        return float(means[0]), float(means[0]), float(means[0])
    tail = (1 - expanded(confidence, len(means))) / 2
    low, high = _quantiles(means[_drawn(len(means), resamples, seed)].mean(axis=1), np.array([tail, 1 - tail]))
    return mean, float(low), float(high)


@lru_cache(maxsize=4)  # the groups of one figure have mostly the same number of documents
def _drawn(documents: int, resamples: int, seed: int) -> np.ndarray:
    """Which documents each resample holds (resamples, documents)."""
    return np.random.default_rng(seed).integers(documents, size=(resamples, documents))


def _quantiles(values: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Linear between neighbours, as `numpy.quantile`, but to the last digit those of scipy's own bootstrap."""
    place = shares * len(values) + (1 - shares)  # counted from 1
    below, part = np.floor(place).astype(int) - 1, place % 1
    above = np.minimum(below + 1, len(values) - 1)
    ordered = np.partition(values, [*below, *above])
    return (1 - part) * ordered[below] + part * ordered[above]


def expanded(confidence: float, documents: int) -> float:
    """The confidence to ask of a percentile bootstrap of n documents, so that it covers `confidence` for small n.

    A plain one is too narrow by sqrt((n - 1) / n) and knows nothing of the t distribution's heavier tails.
    Source: Hesterberg, "What teachers should know about the bootstrap", https://arxiv.org/abs/1411.5279
    (expanded percentile interval).
    """
    wider = -math.sqrt(documents / (documents - 1)) * special.stdtrit(documents - 1, (1 - confidence) / 2)
    return float(2 * special.ndtr(wider) - 1)


def summarise(frame: pd.DataFrame, by: list[str], confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """One row per group of `by` (sorted): mean, low, high, documents (n), questions (rows averaged).

    `frame` holds records of one metric: columns `by`, document, value.
    """
    absent = [name for name in (*by, "document", "value") if name not in frame.columns]
    if absent:
        raise ValueError(f"cannot summarise: column {absent[0]!r} is missing; the table has {', '.join(frame.columns)}")
    _require_finite(frame["value"])
    documents = frame.groupby([*by, "document"], sort=True, dropna=False)["value"].agg(["mean", "size"]).reset_index()
    rows = []
    for key, group in documents.groupby(by, sort=True, dropna=False):
        found = _bootstrapped(group["mean"].to_numpy(float), confidence, RESAMPLES, seed)
        rows.append((*key, *found, len(group), group["size"].sum()))
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
        means.append(series.groupby(level=0, sort=True).mean())
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
    signs, more = _signs(len(scaled), resamples, seed)
    means, found = (signs * scaled).mean(axis=1).round(12), scaled.mean().round(12)
    fewest = min((means >= found).sum(), (means <= found).sum())
    return float(min(1.0, 2 * (fewest + more) / (len(means) + more)))


def _signs(documents: int, resamples: int, seed: int) -> tuple[np.ndarray, int]:
    """Every pattern of signs (patterns, documents), and 0; or `resamples` drawn ones, and 1: the observed pattern."""
    if 2**documents <= resamples:
        return 1.0 - 2 * (np.arange(2**documents)[:, None] >> np.arange(documents) & 1), 0
    pairs = np.tile([1.0, -1.0], (resamples, documents, 1))
    return np.random.default_rng(seed).permuted(pairs, axis=-1)[..., 0], 1


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
    differences = paired_differences(a, b)
    mean, low, high = interval(differences, resamples=resamples, seed=seed)
    return Paired(mean, low, high, sign_flip_p(differences.to_numpy(), resamples, seed), len(differences))


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
    means = series.groupby(level=0, sort=True).mean().to_numpy()
    n = len(means)
    if n < 2 or not np.isfinite(series.to_numpy()).all():
        raise ValueError(f"minimum detectable effect of {n} documents: needs at least 2, all values finite")
    if not 0 < alpha < power < 1:
        raise ValueError(f"alpha = {alpha}, power = {power}: give 0 < alpha < power < 1")
    return 0.0 if np.ptp(means) == 0 else float(noncentrality(n - 1, power, alpha) * means.std(ddof=1) / math.sqrt(n))


def noncentrality(freedom: int, power: float, alpha: float) -> float:
    """Mean over standard error at which a two-sided t-test with `freedom` degrees of freedom has `power`.

    Solved on the square of t, a noncentral F: scipy's lower tail of the noncentral t is nan for many arguments.
    """
    from scipy import optimize

    critical = -special.stdtrit(freedom, alpha / 2)
    miss = (1 - power) / 2  # at `most`, too wide a spread and too low a mean together are as rare as 1 - power
    most = critical * math.sqrt(special.chdtri(freedom, miss) / freedom) - special.ndtri(miss)
    return optimize.brentq(lambda nc: 1 - special.ncfdtr(1, freedom, nc**2, critical**2) - power, 0.0, most)
