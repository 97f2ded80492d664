"""Means with their doubt. The unit of sampling is the document: its questions and seeds are averaged first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

Interval = tuple[float, float, float]  # mean, low, high


def interval(
    values_by_document: pd.Series | Mapping[str, float] | Sequence[float],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean over documents and its percentile-bootstrap interval, in the unit of the values.

    A Series is indexed by document; several values of one document are averaged before documents are resampled. In a
    plain sequence each value is a document. One document: low = high = nan. All equal: low = high = mean.
    """
    series = pd.Series(values_by_document, dtype=float)
    if series.empty or not np.isfinite(series.to_numpy()).all():
        raise ValueError(f"interval of {len(series)} values: needs at least one, all finite")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}: give a number between 0 and 1, such as 0.95")
    means = series.groupby(level=0, sort=True).mean().to_numpy()
    mean = float(means.mean())
    if len(means) == 1:
        return mean, math.nan, math.nan
    if np.ptp(means) == 0:
        return float(means[0]), float(means[0]), float(means[0])
    drawn = stats.bootstrap(
        (means,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return mean, float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def summarise(frame: pd.DataFrame, by: list[str], confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """One row per group of `by` (sorted): mean, low, high, documents (n), questions (rows averaged).

    `frame` holds records of one metric: columns `by`, document, value.
    """
    absent = [name for name in (*by, "document", "value") if name not in frame.columns]
    if absent:
        raise ValueError(f"cannot summarise: column {absent[0]!r} is missing; the table has {', '.join(frame.columns)}")
    rows = []
    for key, group in frame.groupby(by, sort=True, dropna=False):
        values = group.set_index("document")["value"]
        counts = (values.index.nunique(), len(values))
        rows.append((*key, *interval(values, confidence, seed=seed), *counts))
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "documents", "questions"])
