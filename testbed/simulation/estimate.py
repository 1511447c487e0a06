"""Quantiles and miss rates of a tally, with intervals that know how slow packets cling together.

A tally has no order of packets, but it has the counts of many equal parts of its windows: if slow packets came one by
one, those counts would scatter like independent trials; how much more they scatter is the design effect D, and n
packets say as much as n/D independent ones (Kish, "Survey Sampling", 1965). The parts, 32 to a window, must be longer
than a cluster of slow packets, which they are in a long window. With so few parts D itself is uncertain, so it is
raised by the square of Student's over the normal quantile. Everything else is as in `testbed.audit.quantile`, which
sees the packets themselves and is used wherever all of them are recorded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betainc, betaincc, ndtri, stdtrit

from testbed.audit.clusters import MIN_EXCEEDANCES, TAIL_LEVELS
from testbed.simulation.clock import NEVER, PS_PER_S
from testbed.simulation.tally import Tally, coarse_edges_ps, fine_edges_ps


@dataclass(frozen=True, slots=True)
class Estimate:
    """A quantile as far as a tally can say.

    Attributes:
        level: Fraction of packets that do not exceed it.
        estimate_s: Latency at that level, within 0.2 %; None where it is beyond every delivered packet.
        lower_s: Lower end of the two-sided interval; None where the counts cannot say.
        upper_s: Upper end.
        one_sided_lower_s: Lower limit alone.
    """

    level: float
    estimate_s: float | None
    lower_s: float | None
    upper_s: float | None
    one_sided_lower_s: float | None


def design_effect(tally: Tally, tenant: int, levels: tuple[float, ...] = TAIL_LEVELS) -> float | None:
    """Packets that say as much about the tail as one independent packet; None where too few are slow to tell.

    The largest over some levels and the deadline.
    """
    counts = tally.coarse[:, tenant, :]
    sizes = counts.sum(axis=1)
    beyond = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    n = int(sizes.sum())
    if n == 0:
        return None
    total = beyond.sum(axis=0)
    starts = {int(np.searchsorted(-total, -(1 - level) * n, side="right")) for level in levels}
    if tally.deadline_ps[tenant] < NEVER:
        starts.add(int(np.searchsorted(coarse_edges_ps(), float(tally.deadline_ps[tenant]))))
    seen = [s for s in starts if s < total.size and MIN_EXCEEDANCES <= total[s] < n]
    return max(1.0, *(scatter_effect(beyond[:, start], sizes) for start in seen)) if seen else None


def scatter_effect(counts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> float:
    """How much more the counts of some parts scatter than those of independent trials, with care for few parts.

    Args:
        counts: What is counted in each part, neither nothing nor everything in all of them, int64[parts].
        sizes: Trials of each part, int64[parts], parts >= 2.
    """
    parts, n = len(sizes), int(sizes.sum())
    p = counts.sum() / n
    scatter = counts - p * sizes
    caution = (stdtrit(parts - 1, 0.975) / ndtri(0.975)) ** 2
    return float(parts / (parts - 1) * (scatter @ scatter) / (n * p * (1 - p)) * caution)


def quantile(tally: Tally, tenant: int, level: float, effect: float | None, confidence: float = 0.95) -> Estimate:
    """One quantile of one tenant with its limits.

    Args:
        tally: The counts.
        tenant: Index of the tenant.
        level: Quantile in (0, 1).
        effect: Its design effect; None leaves the limits open.
        confidence: Of the two-sided interval and of the one-sided limit.
    """
    n, rate = int(tally.n[tenant]), 1 - level
    estimate = _exceeded_by(tally, tenant, math.floor(n * rate + 1e-9)) if n * rate >= 1 else None
    if effect is None:
        return Estimate(level, estimate, None, None, None)
    size, half = n / effect, (1 - confidence) / 2
    return Estimate(
        level=level,
        estimate_s=estimate,
        lower_s=_lower(tally, tenant, rate, size, half),
        upper_s=_upper(tally, tenant, rate, size, half),
        one_sided_lower_s=_lower(tally, tenant, rate, size, 1 - confidence),
    )


def beyond(tally: Tally, tenant: int, latency_s: float) -> int:
    """Packets of one tenant that were surely later than a latency, those that never arrived among them."""
    top = tally.top[tenant, : tally.top_count[tenant]]
    slow = int(np.count_nonzero(top > latency_s * PS_PER_S))
    if slow == top.size:
        # All extremes are slower, and so may be packets that only bins know of; the latency's own bin may be faster.
        above = fine_edges_ps()[:-1] > latency_s * PS_PER_S
        slow = max(slow, int(tally.fine[tenant, above].sum()))
    return slow + int(tally.lost[tenant].sum())


def _lower(tally: Tally, tenant: int, rate: float, size: float, alpha: float) -> float | None:
    k = np.arange(1, _plausible(rate, size))
    unlikely = betainc(k, np.maximum(size - k + 1, 1e-12), rate) <= alpha  # P(at least k of them above the quantile)
    if not unlikely.any():
        return None
    return _exceeded_by(tally, tenant, math.ceil(k[unlikely.argmax()] * tally.n[tenant] / size) - 1)


def _upper(tally: Tally, tenant: int, rate: float, size: float, alpha: float) -> float | None:
    k = np.arange(0, min(_plausible(rate, size), math.ceil(size)))
    unlikely = betaincc(k + 1, size - k, rate) <= alpha  # P(at most k of them above the quantile)
    fits = int(np.count_nonzero(unlikely))
    return _exceeded_by(tally, tenant, math.floor((fits - 1) * tally.n[tenant] / size)) if fits else None


def _plausible(rate: float, size: float) -> int:
    return math.ceil(size * rate + 12 * math.sqrt(size * rate) + 40)


def _exceeded_by(tally: Tally, tenant: int, beyond: int) -> float | None:
    """The latency that `beyond` packets exceed, lost ones among them; None if it is a lost packet's or nobody's."""
    place = beyond - int(tally.lost[tenant].sum())
    top = np.sort(tally.top[tenant, : tally.top_count[tenant]])[::-1]
    counts = tally.fine[tenant]
    if place < 0 or place >= counts.sum():
        return None
    if place < top.size:
        return float(top[place]) / PS_PER_S
    above = np.cumsum(counts[::-1])[::-1]
    where = int(np.searchsorted(-above, -place, side="left")) - 1
    edges = fine_edges_ps()
    inside = (above[where] - place - 0.5) / counts[where]
    return float(edges[where] + inside * (edges[where + 1] - edges[where])) / PS_PER_S
