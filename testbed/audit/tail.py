"""Quantiles beyond the data by peaks over threshold, behind gates that refuse more often than they answer.

Above a threshold that is high enough the exceedances of almost any law follow a generalised Pareto distribution. The
threshold is the lowest from which on every higher one passes a test of fit, and a fit that the order statistics
contradict anywhere is refused. The clustering of exceedances divides the log likelihood, so that intervals are as wide
as that many independent samples would give; they come from the profile likelihood, for the quantile's own law is
skewed. A rare hiccup that the data hardly show cannot be seen by any
of this: on such tails the limit covers 1 % of the time. So a model never overrules an order statistic
(`testbed.audit.quantile`), and an extrapolation says that it is one.

Sources: Coles, "An Introduction to Statistical Modeling of Extreme Values" (2001), chapters 4 and 5; Fawcett and
Walshaw, "Improved estimation for temporally clustered extremes", Environmetrics 18 (2007), for all exceedances with
corrected uncertainty instead of cluster peaks alone, whose law is not that of a request; Bader, Yan and Zhang,
"Automated threshold selection for extreme value analysis", Ann. Appl. Stat. 12 (2018), for tests at ordered thresholds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import chdtri

from testbed.audit.clusters import Clusters, FloatArray, as_series, decluster, run_boundaries
from testbed.audit.gpd import anderson_darling, critical_value, fit, log_likelihood
from testbed.audit.quantile import Quantile, quantiles

THRESHOLD_LEVELS = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995)
"""Quantiles tried as thresholds."""

_CHECKED = (0.99, 0.995, 0.998, 0.999, 0.9995)
"""Quantiles at which a fitted tail must agree with the order statistics."""

_CHECK_CONFIDENCE = 0.8
"""Of the limits it must lie within: narrow, because a wrong tail costs more than a refused one."""

MIN_CLUSTERS = 50
"""Fewer independent exceedances than this carry no fit."""

CLINGS = 2.0
"""Design effect from which on an interval may be too short and says so: exceedances come in twos, and rate and scale
err together, for where many exceed at a time they exceed by more. The likelihood takes their errors for independent."""

_MOST_EXCEEDANCES = 5000
_ANGLES = 48
_RADII = 8
_HALVINGS = 14


@dataclass(frozen=True, slots=True)
class Threshold:
    """One threshold and what the exceedances above it say.

    Attributes:
        level: Quantile at which the threshold lies.
        threshold_s: The threshold, seconds.
        exceedances: Samples above it.
        design_effect: Exceedances that say as much as one independent one.
        clusters: Clusters they form.
        shape: Of the fitted distribution.
        shape_error: Its standard error.
        scale_s: Of the fitted distribution.
        statistic: Anderson-Darling statistic of the fit, per independent exceedance.
        critical: What the statistic exceeds in 10 % of good fits.
    """

    level: float
    threshold_s: float
    exceedances: int
    design_effect: float
    clusters: int
    shape: float
    shape_error: float
    scale_s: float
    statistic: float
    critical: float

    @property
    def fits(self) -> bool:
        """Whether the test of fit passes."""
        return self.statistic <= self.critical


@dataclass(frozen=True, slots=True)
class TailModel:
    """A quantile read off a fitted tail, or why there is none.

    Attributes:
        level: Quantile.
        confidence: Of the two-sided profile-likelihood interval.
        estimate_s: Quantile of the fitted tail; None if refused.
        lower_s: Lower end of the interval; None if refused.
        upper_s: Upper end of the interval; None if refused.
        extrapolated: Whether fewer than ten samples are expected beyond the quantile: then the tail's shape, not the
            data, says what lies there.
        threshold: The threshold used; None if refused.
        refused: Why there is no answer, in one sentence; None if there is one.
    """

    level: float
    confidence: float
    estimate_s: float | None
    lower_s: float | None
    upper_s: float | None
    extrapolated: bool
    threshold: Threshold | None
    refused: str | None


@dataclass(frozen=True, slots=True)
class MeanExcess:
    """Mean of how far samples above a threshold exceed it, a straight line in the threshold for a Pareto tail.

    Attributes:
        threshold_s: Thresholds, increasing.
        mean_s: Mean excess above each.
        error_s: Its standard error, clustering included.
    """

    threshold_s: FloatArray
    mean_s: FloatArray
    error_s: FloatArray


def thresholds(latency_s: npt.ArrayLike, runs: npt.ArrayLike | None = None) -> tuple[Threshold, ...]:
    """Fit a tail above every threshold that leaves enough independent exceedances, lowest first.

    Args:
        latency_s: Latencies in seconds in order of intended sending, all of them answered.
        runs: Run id of each sample if several independent runs are pooled.
    """
    series = as_series(latency_s)
    boundaries = run_boundaries(runs, series.size)
    found = (_threshold(series, level, boundaries) for level in THRESHOLD_LEVELS)
    return tuple(threshold for threshold in found if threshold is not None)


def tail_quantile(
    latency_s: npt.ArrayLike, level: float = 0.999, confidence: float = 0.95, runs: npt.ArrayLike | None = None
) -> TailModel:
    """Read one quantile off a fitted tail; see `tail_quantiles`."""
    return tail_quantiles(latency_s, (level,), confidence, runs)[0]


def tail_quantiles(
    latency_s: npt.ArrayLike,
    levels: tuple[float, ...] = (0.999, 0.9999),
    confidence: float = 0.95,
    runs: npt.ArrayLike | None = None,
) -> tuple[TailModel, ...]:
    """Read quantiles off a fitted tail, or refuse.

    Args:
        latency_s: Latencies in seconds in order of intended sending; NaN or inf: never answered.
        levels: Quantiles in (0, 1).
        confidence: Of the two-sided intervals.
        runs: Run id of each sample if several independent runs are pooled.
    """
    if not (all(0 < level < 1 for level in levels) and 0 < confidence < 1):
        raise ValueError(f"quantile levels {levels} and confidence {confidence}: expected numbers between 0 and 1")
    series = as_series(latency_s)
    unanswered = int(np.count_nonzero(np.isinf(series)))
    if unanswered:
        return _refuse(levels, confidence, f"{unanswered} samples were never answered: no tail holds them.")
    tried = thresholds(series, runs)
    if not tried:
        return _refuse(levels, confidence, f"No threshold leaves {MIN_CLUSTERS} independent exceedances.")
    bad = [i for i, threshold in enumerate(tried) if not threshold.fits]
    chosen = bad[-1] + 1 if bad else 0
    if chosen == len(tried):
        last = tried[-1]
        return _refuse(
            levels, confidence,
            f"The tail follows no Pareto law even above the {last.level:g} quantile "
            f"(Anderson-Darling {last.statistic:.2f}, at most {last.critical:.2f} expected).",
        )  # fmt: skip
    threshold = tried[chosen]
    for seen in quantiles(series, _CHECKED, _CHECK_CONFIDENCE, runs):
        if _contradicts(seen, found := _estimate(series.size, threshold, 1 - seen.level)):
            return _refuse(
                levels, confidence,
                f"The fitted tail contradicts the data: it puts the {seen.level:g} quantile at {found:.4g} s, outside "
                f"its {_CHECK_CONFIDENCE:.0%} order-statistic limits.",
            )  # fmt: skip
    region = _plausible(series, threshold, confidence)
    return tuple(_model(series.size, threshold, region, level, confidence) for level in levels)


def mean_excess(latency_s: npt.ArrayLike, points: int = 40) -> MeanExcess:
    """Mean excess above thresholds from the median up to the largest with ten samples above.

    Args:
        latency_s: Latencies in seconds; those never answered are left out.
        points: Number of thresholds.
    """
    series = as_series(latency_s)
    series = series[np.isfinite(series)]
    ordered = np.sort(series)
    above = np.unique(np.geomspace(10, max(10, ordered.size // 2), points).astype(np.int64))[::-1]
    at = np.unique(ordered[ordered.size - 1 - above[above < ordered.size]])
    means, errors = np.empty(at.size), np.empty(at.size)
    for i, threshold in enumerate(at):
        positions = np.flatnonzero(series > threshold).astype(np.int64)
        excess = series[positions] - threshold
        means[i] = excess.mean()
        errors[i] = excess.std() * math.sqrt(decluster(positions, series.size).design_effect / positions.size)
    return MeanExcess(at, means, errors)


def _contradicts(seen: Quantile, estimate_s: float | None) -> bool:
    """Whether the model's estimate lies outside what the data say alone."""
    if estimate_s is None:
        return False
    return (seen.upper_s is not None and estimate_s > seen.upper_s) or (
        seen.lower_s is not None and estimate_s < seen.lower_s
    )


def _refuse(levels: tuple[float, ...], confidence: float, why: str) -> tuple[TailModel, ...]:
    return tuple(TailModel(level, confidence, None, None, None, False, None, why) for level in levels)


def _threshold(series: FloatArray, level: float, boundaries: npt.NDArray[np.int64]) -> Threshold | None:
    wanted = int(series.size * (1 - level))
    if wanted < MIN_CLUSTERS:
        return None
    threshold_s = float(np.partition(series, series.size - wanted - 1)[series.size - wanted - 1])
    positions = np.flatnonzero(series > threshold_s).astype(np.int64)
    if positions.size < MIN_CLUSTERS:
        return None
    clusters = decluster(positions, series.size, boundaries)
    if positions.size / clusters.design_effect < MIN_CLUSTERS:
        return None
    y = _exceedances(series, positions, threshold_s)
    fitted = fit(y)
    # Dependence inflates the statistic as it inflates the variance of counts.
    statistic = anderson_darling(y, fitted) * _share(clusters, y.size)
    shape_error = (1 + fitted.shape) * math.sqrt(clusters.design_effect / positions.size)
    return Threshold(
        level=level,
        threshold_s=threshold_s,
        exceedances=positions.size,
        design_effect=clusters.design_effect,
        clusters=clusters.sizes.size,
        shape=fitted.shape,
        shape_error=shape_error,
        scale_s=fitted.scale,
        statistic=statistic,
        critical=critical_value(fitted.shape),
    )


def _exceedances(series: FloatArray, positions: npt.NDArray[np.int64], threshold_s: float) -> FloatArray:
    """Excesses over a threshold, thinned evenly where there are more than a fit needs."""
    step = math.ceil(positions.size / _MOST_EXCEEDANCES)
    y: FloatArray = series[positions[::step]] - threshold_s
    return y


def _share(clusters: Clusters, used: int) -> float:
    """Independent exceedances that each of the used ones is worth, at most 1."""
    return min(1.0, clusters.exceedances / clusters.design_effect / used)


@dataclass(frozen=True, slots=True)
class _Region:
    """Tails whose likelihood is so little below the best that they stay plausible, arrays of shape [k].

    Attributes:
        shape: Shapes.
        scale_s: Scales.
        rate_low: For each, the smallest plausible rate of exceedances.
        rate_high: For each, the largest.
    """

    shape: FloatArray
    scale_s: FloatArray
    rate_low: FloatArray
    rate_high: FloatArray


def _model(n: int, threshold: Threshold, region: _Region, level: float, confidence: float) -> TailModel:
    tail = 1 - level
    estimate_s = _estimate(n, threshold, tail)
    if estimate_s is None:
        why = f"The {level:g} quantile lies below the threshold; the data say it alone."
        return _refuse((level,), confidence, why)[0]
    low, high = (
        threshold.threshold_s + _excess(region.shape, region.scale_s, np.maximum(rate / tail, 1.0))
        for rate in (region.rate_low, region.rate_high)
    )
    return TailModel(
        level, confidence, estimate_s, float(low.min()), float(high.max()), n * tail < 10, threshold, None
    )  # fmt: skip


def _estimate(n: int, threshold: Threshold, tail: float) -> float | None:
    """The quantile that is exceeded with probability `tail`; None below the threshold."""
    ratio = threshold.exceedances / n / tail
    if ratio <= 1:
        return None
    excess = _excess(np.array([threshold.shape]), np.array([threshold.scale_s]), np.array([ratio]))
    return threshold.threshold_s + float(excess[0])


def _plausible(series: FloatArray, threshold: Threshold, confidence: float) -> _Region:
    """The region in which the likelihood has fallen by less than a chi-squared limit allows.

    The extremes of a quantity over that region are the ends of its profile-likelihood interval. Shape and logarithm of
    the scale are searched along rays from the estimate; the exceedance rate takes what is left of the allowed fall.
    """
    positions = np.flatnonzero(series > threshold.threshold_s).astype(np.int64)
    y = _exceedances(series, positions, threshold.threshold_s)
    worth = min(1.0, threshold.exceedances / threshold.design_effect / y.size)
    allowed = float(chdtri(1, 1 - confidence)) / 2
    centre = np.array([threshold.shape, math.log(threshold.scale_s)])
    top = log_likelihood(y, centre[:1], np.exp(centre[1:]))[0]

    def fall(shape: FloatArray, log_scale: FloatArray) -> FloatArray:
        lost: FloatArray = worth * (top - log_likelihood(y, shape, np.exp(log_scale)))
        return lost

    angle = np.linspace(0, 2 * math.pi, _ANGLES, endpoint=False)
    # Asymptotic covariance of shape and log scale: (1 + shape) [[1 + shape, -1], [-1, 2]] / n.
    one = 1 + max(threshold.shape, -0.45)
    root = np.linalg.cholesky(np.array([[one * one, -one], [-one, 2 * one]]) / (y.size * worth))
    step = root @ np.stack([np.cos(angle), np.sin(angle)])
    inside, outside = np.zeros(_ANGLES), np.full(_ANGLES, 16.0)
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        within = fall(*(centre[:, None] + middle * step)) < allowed
        inside, outside = np.where(within, middle, inside), np.where(within, outside, middle)
    radius = inside * np.linspace(0, 1, _RADII)[:, None]
    shape, log_scale = ((c + radius * direction).ravel() for c, direction in zip(centre, step, strict=True))
    left = np.maximum(allowed - fall(shape, log_scale), 0.0)
    low, high = _rates(threshold.exceedances, series.size, threshold.design_effect, left)
    return _Region(shape, np.exp(log_scale), low, high)


def _excess(shape: FloatArray, scale: FloatArray, ratio: FloatArray) -> FloatArray:
    """Excess that is exceeded 1 / ratio times as often as the threshold."""
    safe = np.where(np.abs(shape) < 1e-6, 1.0, shape)
    excess: FloatArray = np.where(np.abs(shape) < 1e-6, scale * np.log(ratio), scale * (ratio**safe - 1) / safe)
    return excess


def _rates(exceedances: int, n: int, effect: float, fall: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Smallest and largest exceedance rate whose binomial likelihood has fallen by no more than so much."""
    rate = exceedances / n
    grid = np.exp(np.linspace(-3, 3, 6001)) * rate
    grid = grid[grid < 1]
    drop = (
        exceedances * (math.log(rate) - np.log(grid)) + (n - exceedances) * (math.log1p(-rate) - np.log1p(-grid))
    ) / effect
    below, above = grid <= rate, grid >= rate
    low = np.interp(fall, drop[below][::-1], grid[below][::-1])
    return low, np.interp(fall, drop[above], grid[above])
