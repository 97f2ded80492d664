"""How measured curves grow and where two of them cross. A curve holds a row per repeat and a column per x."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.polynomial import polynomial
from scipy import stats

from liftlab.statistics import Interval, expanded, interval

DEGREES = {"linear": 1, "quadratic": 2}
LEAST = 2  # places x that a law or a crossing needs


@dataclass(frozen=True)
class Law:
    """y = sum of coefficients[i] x^i; a coefficient is its mean, low and high, in the unit of y over that of x^i."""

    name: str
    coefficients: tuple[Interval, ...]
    rms: float  # residual of the medians, in the unit of y
    largest: float  # largest residual of a median, as a share of that median
    aicc: float  # lower is better; comparable between laws of one curve only

    def at(self, x: np.ndarray) -> np.ndarray:
        """y at `x`."""
        return polynomial.polyval(x, [mean for mean, _, _ in self.coefficients])


@dataclass(frozen=True)
class Crossing:
    """Where the medians of two curves first change order; nan where they do not between the first and the last x.

    A bound is -inf or inf where it lies before the first x or beyond the last one, nan for a single repeat.
    """

    at: float
    low: float
    high: float
    lower_first: str  # "a" or "b": the curve that is lower at the first x; "" where they are equal at all
    share: float  # 0..1, of the resampled repeats that cross between the first and the last x


def median_interval(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """Median, and the narrowest range that holds the true one with `confidence`, however the values scatter.

    Its ends are values with equally many beyond either. Too few values for that give the smallest and the largest: of
    n, these cover 1 - 2^(1 - n) (5: 94 %). One: nan. ValueError for no values, or one that is not finite.
    """
    values = np.asarray(values, dtype=float)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"median of {len(values)} values: needs at least one, all finite")
    if len(values) == 1:
        return float(values[0]), math.nan, math.nan
    ordered = np.sort(values)
    place = max(int(stats.binom.ppf((1 - confidence) / 2, len(values), 0.5)), 1) - 1
    return float(np.median(values)), float(ordered[place]), float(ordered[-1 - place])


def fits(curve: pd.DataFrame) -> list[Law]:
    """The laws that `curve` has enough x for, the one of the lowest AICc first.

    Least squares of all values, each residual relative to the median at its x, since times scatter in proportion to
    their length. The AICc takes these as independent and normal. A coefficient's interval is over repeats: each alone
    gives one, and their mean is that of all. With 2 x only the line is fitted. ValueError: fewer x, a hole, or a median
    that is not above 0.
    """
    values = _whole(curve)
    medians = np.median(values, axis=0)
    if (medians <= 0).any():
        raise ValueError(f"a curve with a median of {medians.min()}: laws are fitted to values above 0")
    x = curve.columns.to_numpy(float)
    laws = [_fit(name, degree, x, values, medians) for name, degree in DEGREES.items() if len(x) > degree]
    return sorted(laws, key=lambda law: law.aicc)


def _fit(name: str, degree: int, x: np.ndarray, values: np.ndarray, medians: np.ndarray) -> Law:
    each = polynomial.polyfit(x, values.T, degree, w=1 / medians)  # (degree + 1, repeats)
    mean = each.mean(axis=1)
    left = medians - polynomial.polyval(x, mean)
    squares = (((values - polynomial.polyval(x, mean)) / medians) ** 2).sum()
    rms, largest = float(np.sqrt((left**2).mean())), float((np.abs(left) / medians).max())
    coefficients = tuple(interval(of_repeats) for of_repeats in each)
    return Law(name, coefficients, rms, largest, _aicc(squares, values.size, degree + 2))


def _aicc(squares: float, count: int, free: int) -> float:
    """Of `count` values with `free` parameters, the scatter among them; inf where there are too few to tell.

    Residuals of rounding alone count as rounding, so that an exact line is not called a parabola.
    """
    if count <= free + 1:
        return math.inf
    scatter = max(squares / count, 1e-20)
    return count * math.log(scatter) + 2 * free + 2 * free * (free + 1) / (count - free - 1)


def crossing(
    a: pd.DataFrame, b: pd.DataFrame, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Crossing:
    """Where the medians of `a` and `b` over repeats first change order, x by linear interpolation between measured x.

    Only the x and the repeats of both count. The interval resamples repeats, both curves' together, as they were
    measured in turn (percentile bootstrap, widened for few repeats as in `statistics.expanded`). ValueError: fewer than
    2 shared x, no shared repeat, or a hole.
    """
    a, b = a.align(b, join="inner")
    first, second, x = _whole(a), _whole(b), a.columns.to_numpy(float)
    at, sign = (found[0] for found in _first_change(x, (np.median(first, axis=0) - np.median(second, axis=0))[None]))
    at, lower_first = at if np.isfinite(at) else math.nan, {-1: "a", 1: "b"}.get(sign, "")
    if len(a) == 1:
        return Crossing(float(at), math.nan, math.nan, lower_first, math.nan)
    drawn = np.random.default_rng(seed).integers(len(a), size=(resamples, len(a)))
    others, signs = _first_change(x, np.median(first[drawn], axis=1) - np.median(second[drawn], axis=1))
    others = np.where(signs == sign, others, -np.inf)  # the order had changed before the first x
    tail = (1 - expanded(confidence, len(a))) / 2
    low, high = np.quantile(others, [tail, 1 - tail], method="inverted_cdf")
    return Crossing(float(at), float(low), float(high), lower_first, float(np.isfinite(others).mean()))


def _first_change(x: np.ndarray, differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row of `differences` (rows, x): where its sign first changes, inf if nowhere; the sign that it has first.

    A difference of 0 has the sign of the one before it; zeros at the start have that of what follows.
    """
    signs = pd.DataFrame(np.sign(differences)).replace(0, np.nan).ffill(axis=1).bfill(axis=1).to_numpy()
    changes = signs[:, 1:] * signs[:, :-1] < 0
    rows, place = np.arange(len(signs)), changes.argmax(axis=1)
    before, after = differences[rows, place], differences[rows, place + 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        at = x[place] + (x[place + 1] - x[place]) * before / (before - after)
    return np.where(changes.any(axis=1), at, np.inf), signs[:, 0]


def _whole(curve: pd.DataFrame) -> np.ndarray:
    """The values (repeats, x), or ValueError."""
    values = curve.to_numpy(float)
    if curve.shape[1] < LEAST or not len(curve):
        raise ValueError(f"a curve of {curve.shape[1]} x and {len(curve)} repeats: needs at least {LEAST} x, 1 repeat")
    if not np.isfinite(values).all():
        raise ValueError("a curve with a hole: leave out the x that was not measured in every repeat")
    if (np.diff(curve.columns.to_numpy(float)) <= 0).any():
        raise ValueError(f"a curve at x = {list(curve.columns)}: give each x once, in rising order")
    return values
