"""Quantiles and tail probabilities of a latency series, with intervals that know how the series clings together.

A quantile's limits are order statistics: the latencies between which the count of slower samples agrees with the
quantile's own rate. No model of the tail is fitted, so nothing is said beyond what the data hold (that is for
`testbed.audit.tail`). Requests that were never answered count as +inf and stay in.

Sources: David and Nagaraja, "Order Statistics" (2003), section 7.1, on the effective counts of
`testbed.audit.clusters` in place of the counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betainc, betaincc, betaincinv

from testbed.audit.clusters import TAIL_LEVELS, FloatArray, as_series, measure_dependence

_BODY_LEVELS = (0.5, 0.9)
"""Where dependence is sought for a band outside the tail."""


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile as far as the data can say; every latency may be +inf where requests were never answered.

    Attributes:
        level: Fraction of samples that do not exceed it.
        confidence: Of the two-sided interval and, separately, of the one-sided lower limit.
        estimate_s: Order statistic; None if fewer than one sample is expected beyond it.
        lower_s: Lower end of the two-sided interval; None where the data cannot say.
        upper_s: Upper end of the two-sided interval; None where the data cannot say.
        one_sided_lower_s: Lower limit alone, what a bound is judged against; None where the data cannot say.
        n_effective: Independent samples that the series is worth; None where the data cannot say.
    """

    level: float
    confidence: float
    estimate_s: float | None
    lower_s: float | None
    upper_s: float | None
    one_sided_lower_s: float | None
    n_effective: float | None


@dataclass(frozen=True, slots=True)
class Ccdf:
    """Fraction of samples slower than each of some latencies, with a pointwise confidence band.

    Attributes:
        x_s: Latencies in seconds, increasing.
        p: Fraction of samples above each.
        lower: Lower confidence limit of that probability.
        upper: Upper confidence limit.
        confidence: Of the two-sided band at each point.
    """

    x_s: FloatArray
    p: FloatArray
    lower: FloatArray
    upper: FloatArray
    confidence: float


def quantile(
    latency_s: npt.ArrayLike,
    level: float = 0.999,
    confidence: float = 0.95,
    runs: npt.ArrayLike | None = None,
) -> Quantile:
    """Estimate one quantile with its limits.

    Args:
        latency_s: Latencies in seconds in order of intended sending; NaN or inf: never answered.
        level: Quantile in (0, 1).
        confidence: Of the two-sided interval and of the one-sided limit.
        runs: Run id of each sample if several independent runs are pooled.

    Raises:
        ValueError: Level or confidence outside (0, 1), or latencies that are not one series of non-negative numbers.
    """
    return quantiles(latency_s, (level,), confidence, runs)[0]


def quantiles(
    latency_s: npt.ArrayLike,
    levels: tuple[float, ...] = (0.99, 0.999, 0.9999),
    confidence: float = 0.95,
    runs: npt.ArrayLike | None = None,
) -> tuple[Quantile, ...]:
    """Estimate several quantiles of one series; see `quantile`."""
    if not (all(0 < level < 1 for level in levels) and 0 < confidence < 1):
        raise ValueError(f"quantile levels {levels} and confidence {confidence}: expected numbers between 0 and 1")
    series = as_series(latency_s)
    ordered = np.sort(series)
    return tuple(_quantile(series, ordered, level, confidence, runs) for level in levels)


def ccdf(
    latency_s: npt.ArrayLike,
    points: int | npt.ArrayLike = 200,
    confidence: float = 0.95,
    runs: npt.ArrayLike | None = None,
) -> Ccdf:
    """Tail probabilities for plotting, with a pointwise band.

    Args:
        latency_s: Latencies in seconds in order of intended sending; NaN or inf: never answered.
        points: Latencies at which to evaluate, or how many to choose, evenly spread over the logarithm of p.
        confidence: Of the band at each point.
        runs: Run id of each sample if several independent runs are pooled.

    Returns:
        Points, probabilities and band; the band is [0, 1] where the data cannot say.

    Raises:
        ValueError: Latencies that are not one series of non-negative numbers.
    """
    series = as_series(latency_s)
    ordered = np.sort(series)
    n = series.size
    if isinstance(points, int):
        answered = ordered[np.isfinite(ordered)]
        above = np.unique(np.geomspace(1, max(1, answered.size), points).astype(np.int64)) - 1
        x = np.unique(answered[answered.size - 1 - above]) if answered.size else answered
    else:
        x = np.unique(np.asarray(points, dtype=np.float64))
    p = 1 - np.searchsorted(ordered, x, side="right") / n
    tail = measure_dependence(series, None, runs)
    body = measure_dependence(series, None, runs, (*_BODY_LEVELS, *TAIL_LEVELS))
    if tail is None or body is None:
        return Ccdf(x, p, np.zeros_like(p), np.ones_like(p), confidence)
    size = n / np.where(p <= 1 - TAIL_LEVELS[0], tail.design_effect, body.design_effect)
    half = (1 - confidence) / 2
    k = p * size
    lower = np.where(k > 0, betaincinv(np.maximum(k, 1e-300), size - k + 1, half), 0.0)
    upper = np.where(k < size, betaincinv(k + 1, np.maximum(size - k, 1e-300), 1 - half), 1.0)
    return Ccdf(x, p, lower, upper, confidence)


def _quantile(
    series: FloatArray, ordered: FloatArray, level: float, confidence: float, runs: npt.ArrayLike | None
) -> Quantile:
    n, rate = series.size, 1 - level
    beyond = math.floor(n * rate + 1e-9)
    estimate = float(ordered[n - 1 - beyond]) if beyond >= 1 else None
    dependence = measure_dependence(series, None, runs, tuple(sorted({*TAIL_LEVELS, level})))
    if dependence is None:
        return Quantile(level, confidence, estimate, None, None, None, None)
    effect = dependence.design_effect
    half = (1 - confidence) / 2
    return Quantile(
        level=level,
        confidence=confidence,
        estimate_s=estimate,
        lower_s=_lower(ordered, rate, effect, half),
        upper_s=_upper(ordered, rate, effect, half),
        one_sided_lower_s=_lower(ordered, rate, effect, 1 - confidence),
        n_effective=n / effect,
    )


def _lower(ordered: FloatArray, rate: float, effect: float, alpha: float) -> float | None:
    """Largest sample that exceeds the quantile with probability at most alpha, None if no sample does."""
    size = ordered.size / effect
    k = np.arange(1, _plausible(rate, size))
    unlikely = betainc(k, np.maximum(size - k + 1, 1e-12), rate) <= alpha  # P(at least k samples above the quantile)
    if not unlikely.any():
        return None
    above = math.ceil(k[unlikely.argmax()] * effect) - 1
    return float(ordered[ordered.size - 1 - above]) if above < ordered.size else None


def _upper(ordered: FloatArray, rate: float, effect: float, alpha: float) -> float | None:
    """Smallest sample that falls below the quantile with probability at most alpha, None if no sample does."""
    size = ordered.size / effect
    k = np.arange(0, min(_plausible(rate, size), math.ceil(size)))
    unlikely = betaincc(k + 1, size - k, rate) <= alpha  # P(at most k samples above the quantile)
    fits = int(np.count_nonzero(unlikely))
    return float(ordered[ordered.size - 1 - math.floor((fits - 1) * effect)]) if fits else None


def _plausible(rate: float, size: float) -> int:
    """A count of exceedances that a series of so many independent samples never reaches."""
    return math.ceil(size * rate + 12 * math.sqrt(size * rate) + 40)
