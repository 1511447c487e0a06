"""How strongly the slow samples of a series cling together, and what that costs.

A queue that is long now is long a moment later, so requests miss their deadline in clusters and a hundred misses may
be three events. This module finds the clusters of exceedances and the design effect D: n samples say as much about a
rate of exceedances as n/D independent ones. It neither counts misses against a promise (`testbed.audit.compliance`)
nor estimates quantiles.

Sources: Ferro and Segers, "Inference for clusters of extreme values", J. R. Stat. Soc. B 65 (2003), for the extremal
index and the gap that separates clusters; Kish, "Survey Sampling" (1965), for the design effect. The extremal index
alone is not enough: it gives the mean size of a cluster, while the variance of a count depends on the mean square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MIN_EXCEEDANCES = 10
"""Fewer exceedances of a level than this say nothing about how they cluster."""

TAIL_LEVELS = (0.99, 0.995, 0.998)
"""Quantiles over which the design effect is sought, beside the misses: with no miss there is no cluster of misses."""


@dataclass(frozen=True, slots=True)
class Clusters:
    """The clusters that the exceedances of one level form.

    Attributes:
        sizes: Exceedances in each cluster, in order.
        first: Position in the series of each cluster's first exceedance.
        extremal_index: Ferro-Segers intervals estimate, in (0, 1]: about one over the mean cluster size.
        gap: Exceedances more than this many samples apart belong to different clusters.
    """

    sizes: IntArray
    first: IntArray
    extremal_index: float
    gap: int

    @property
    def exceedances(self) -> int:
        """Number of exceedances in all clusters."""
        return int(self.sizes.sum())

    @property
    def design_effect(self) -> float:
        """Mean squared cluster size over mean cluster size, at least 1."""
        sizes = self.sizes.astype(np.float64)
        return float(np.dot(sizes, sizes) / sizes.sum())


@dataclass(frozen=True, slots=True)
class Dependence:
    """What the clustering of a series costs its estimates.

    Attributes:
        design_effect: Samples that say as much as one independent sample, at least 1.
        extremal_index: Of the level that set the design effect.
        exceedances: Of that level.
        clusters: Of that level.
    """

    design_effect: float
    extremal_index: float
    exceedances: int
    clusters: int


def as_series(latency_s: npt.ArrayLike) -> FloatArray:
    """Return latencies as one float array in which every sample that was never answered is +inf.

    Raises:
        ValueError: Not one-dimensional, empty, or a latency below zero.
    """
    series = np.array(latency_s, dtype=np.float64, copy=True)
    if series.ndim != 1 or series.size == 0:
        raise ValueError(f"latencies: found shape {series.shape}, expected one dimension and at least one sample")
    series[np.isnan(series)] = math.inf
    if series.min() < 0:
        position = int(series.argmin())
        raise ValueError(f"latency {position} is {series[position]} s: a latency cannot be negative")
    return series


def not_negative(latency_s: FloatArray) -> FloatArray:
    """Latencies of a run as they can be judged: a clock that is set back makes some negative, which a gate tells of."""
    return np.maximum(latency_s, 0.0)


def run_boundaries(runs: npt.ArrayLike | None, n: int) -> IntArray:
    """Positions at which a new run starts, without the first.

    Args:
        runs: Run id of each sample (any type that compares), equal ids contiguous; None for a single run.
        n: Number of samples.

    Raises:
        ValueError: Another number of ids than samples, or a run whose samples are not contiguous.
    """
    if runs is None:
        return np.empty(0, dtype=np.int64)
    ids = np.asarray(runs)
    if ids.shape != (n,):
        raise ValueError(f"run ids: found shape {ids.shape}, expected one id for each of {n} samples")
    starts = np.flatnonzero(ids[1:] != ids[:-1]) + 1
    if starts.size + 1 != np.unique(ids).size:
        raise ValueError("run ids: samples of one run are not contiguous; sort the samples by run, then by time")
    return starts.astype(np.int64)


def extremal_index(gaps: IntArray) -> float:
    """Ferro-Segers intervals estimate from the distances, in samples, between consecutive exceedances.

    Returns:
        A number in (0, 1]; 1 where exceedances come one by one.
    """
    t = gaps.astype(np.float64)
    if t.max() <= 2:
        numerator, denominator = 2 * t.sum() ** 2, t.size * np.dot(t, t)
    else:
        numerator, denominator = 2 * (t - 1).sum() ** 2, t.size * np.dot(t - 1, t - 2)
    return float(min(1.0, numerator / denominator)) if denominator > 0 else 1.0


def decluster(positions: IntArray, n: int, boundaries: IntArray | None = None) -> Clusters:
    """Split exceedances into clusters at the largest gaps between them.

    The series is closed to a ring, so that the silence before the first and after the last exceedance counts as a
    gap too: without it one tight clump in a long quiet series would look like independent exceedances.

    Args:
        positions: Increasing positions of the exceedances in the series, at least one.
        n: Length of the series.
        boundaries: Where new runs start; a cluster never crosses one.
    """
    gaps = np.diff(positions, append=positions[0] + n)
    index = extremal_index(gaps)
    wanted = min(gaps.size, math.ceil(index * gaps.size))
    # Equal gaps are not told apart: the cut lies strictly above the largest gap that is not wanted.
    gap = 0 if wanted == gaps.size else int(np.partition(gaps, gaps.size - wanted - 1)[gaps.size - wanted - 1])
    ends = gaps > gap
    if boundaries is not None and boundaries.size:
        run = np.searchsorted(boundaries, positions, side="right")
        ends |= np.append(run[1:] != run[:-1], True)
    last = np.flatnonzero(ends)
    if last.size == 0:
        return Clusters(np.array([positions.size]), positions[:1].copy(), index, gap)
    sizes = np.diff(last, prepend=last[-1] - positions.size)
    first = positions[(np.roll(last, 1) + 1) % positions.size]
    return Clusters(sizes.astype(np.int64), first, index, gap)


def tail_thresholds(series: FloatArray, levels: Sequence[float]) -> set[float]:
    """The latencies whose exceedances are the worst (1 - level) of a series, for each level.

    Where values tie (rounded data) the next smaller value is taken until enough samples lie strictly above it.

    Args:
        series: Latencies in seconds, +inf for never answered.
        levels: Quantiles in (0, 1).

    Returns:
        No latency for a level that fewer than `MIN_EXCEEDANCES` samples can lie above.
    """
    places = [series.size - 1 - int(series.size * (1 - level) + 1e-9) for level in levels]
    places = [place for place in places if series.size - 1 - place >= MIN_EXCEEDANCES]
    # All places in one pass, which takes no longer than one place.
    ordered = np.partition(series, places) if places else series
    found = set()
    for place in places:
        threshold = float(ordered[place])
        if np.count_nonzero(series > threshold) < MIN_EXCEEDANCES:
            below = series[series < threshold]
            if not below.size:
                continue
            threshold = float(below.max())
        found.add(threshold)
    return found


def measure_dependence(
    series: FloatArray,
    deadline_s: float | None = None,
    runs: npt.ArrayLike | None = None,
    levels: tuple[float, ...] = TAIL_LEVELS,
) -> Dependence | None:
    """The largest design effect over the tail levels and the misses of a deadline.

    Args:
        series: Latencies in seconds in order of intended sending, +inf for never answered (`as_series`).
        deadline_s: Adds the samples above it as one more level.
        runs: Run id of each sample if several independent runs are pooled; clusters never cross runs.
        levels: Quantiles to look at.

    Returns:
        None where no level has `MIN_EXCEEDANCES` exceedances: the dependence is then unknown, not absent.
    """
    boundaries = run_boundaries(runs, series.size)
    thresholds = tail_thresholds(series, levels) | ({deadline_s} if deadline_s is not None else set())
    seen = [np.flatnonzero(series > threshold).astype(np.int64) for threshold in thresholds]
    if not any(positions.size >= MIN_EXCEEDANCES for positions in seen):
        return None
    # A handful of misses can raise the design effect (one outage is one event) but never vouch for independence.
    found = [decluster(positions, series.size, boundaries) for positions in seen if positions.size]
    worst = max(found, key=lambda clusters: clusters.design_effect)
    return Dependence(worst.design_effect, worst.extremal_index, worst.exceedances, worst.sizes.size)
