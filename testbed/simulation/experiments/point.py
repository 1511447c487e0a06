"""One point of an experiment: what was varied, and what it did to the tenants that the point is about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from testbed.audit.compliance import lower_limit, upper_limit
from testbed.simulation.estimate import design_effect, quantile, scatter_effect
from testbed.simulation.tally import FloatArray, IntArray, Tally, extremes

CONFIDENCE = 0.95

TWO_SIDED, UNBOUNDED_ABOVE = "two-sided", "unbounded above"

_ROUNDING = 1e-9

Interval = tuple[float | None, float | None]


@dataclass(frozen=True)
class Kept:
    """Of how many tenants the promise was kept, each by its own packets.

    A promise "at most epsilon of the packets miss the deadline" is one tenant's: packets of all tenants together may
    keep it while one of them has lost everything.

    Attributes:
        tenants: Tenants that sent at least 1/epsilon packets in a window, counted in every window; fewer packets can
            show no such share.
        share: Share of them of whose own packets at most epsilon missed; None where there are none.
        interval: Its two-sided limits.
        refuted: Tenants whose own packets show, one-sided at 95 %, that more than epsilon miss in the long run. Stays
            are short: where at most epsilon miss in the long run, more do in some stays.
        worst_miss: Largest share of a tenant's own packets that missed; None where there are none. A largest value has
            no limits of its own: it grows with the number of tenants.
    """

    tenants: int
    share: float | None
    interval: tuple[float, float]
    refuted: int
    worst_miss: float | None


@dataclass(frozen=True, eq=False)
class Fates:
    """What became of the packets of K tenants in one window.

    Attributes:
        sent: Packets of each, int64[K].
        missed: Those of them that were late or lost, int64[K].
        effect: Packets that say as much about its tail as one independent packet, float64[K].
    """

    sent: IntArray
    missed: IntArray
    effect: FloatArray

    def among(self, tenants: npt.NDArray[np.bool_]) -> Fates:
        """Some of the tenants, bool[K]."""
        return Fates(self.sent[tenants], self.missed[tenants], self.effect[tenants])


@dataclass(frozen=True)
class ExperimentPoint:
    """A point; intervals are two-sided at 95 %.

    Attributes:
        varied: Name of what is on the horizontal axis, `load` or `correlation`.
        value: Its value.
        contender: Name of what is compared, `rule` or `scheduler`.
        name: Which one this is.
        p999_s: p99.9 of all packets of the tenants in question, lost ones included; None where more than that is lost.
        p999_interval_s: Its limits, order statistics; None on a side on which no packet that arrived is one.
        compliance: Share of all their packets together that arrive by the deadline; NaN where there are none.
        compliance_interval: Its limits.
        kept: Of how many of them the promise was kept, each by its own packets.
        admitted: Share of tenants that were admitted.
        admitted_interval: Its limits, from the scatter of replications.
        utilisation: Share of a link's capacity in the window that carried their packets; those that arrive only behind
            it count for nothing.
        bound_s: What holds for all but epsilon of the packets: promised by reservations, or in a shared queue whatever
            its tenants' dependence; None where nothing does.
        packets: How many packets this rests on.
        utilisation_interval: Limits of the utilisation, from the scatter of replications; 0 and 1 where there is one.
        on: Where it was found, `simulation` or `network`.
        invalid: Gates that failed, so that this says nothing about the theory; empty where none did.
        run: Folder of the run it was found in; None where there is none.
        away_s: How long some core of the host was away meanwhile, all together; None where no host was involved.
        slowest_stalled: Share of the slowest 0.1 % of the packets that were on their way while a core was away; None as
            before.
    """

    varied: str
    value: float
    contender: str
    name: str
    p999_s: float | None
    p999_interval_s: Interval
    compliance: float
    compliance_interval: tuple[float, float]
    kept: Kept
    admitted: float
    admitted_interval: tuple[float, float]
    utilisation: float
    bound_s: float | None
    packets: int
    utilisation_interval: tuple[float, float] = (0.0, 1.0)
    on: str = "simulation"
    invalid: tuple[str, ...] = ()
    run: str | None = None
    away_s: float | None = None
    slowest_stalled: float | None = None

    @property
    def p999_limits(self) -> str:
        """`two-sided`, or `unbounded above` where the packets say of no latency that p99.9 lies below it."""
        return UNBOUNDED_ABOVE if self.p999_interval_s[1] is None else TWO_SIDED

    def to_dict(self) -> dict[str, Any]:
        """JSON form: what is varied and what is compared are keys of their own."""
        return {
            self.varied: self.value,
            self.contender: self.name,
            "p999_s": self.p999_s,
            "p999_interval_s": self.p999_interval_s,
            "p999_limits": self.p999_limits,
            "compliance": self.compliance if self.packets else None,
            "compliance_interval": self.compliance_interval,
            "tenants": self.kept.tenants,
            "tenant_compliance": self.kept.share,
            "tenant_compliance_interval": self.kept.interval,
            "tenants_refuted": self.kept.refuted,
            "worst_tenant_miss": self.kept.worst_miss,
            "admitted": self.admitted,
            "admitted_interval": self.admitted_interval,
            "utilisation": self.utilisation,
            "utilisation_interval": self.utilisation_interval,
            "bound_s": self.bound_s,
            "packets": self.packets,
            "on": self.on,
            "valid": not self.invalid,
            "invalid": self.invalid,
            "run": self.run,
            "away_s": self.away_s,
            "slowest_stalled": self.slowest_stalled,
        }


def pooled(tally: Tally) -> Tally:
    """The tally of all tenants as if they were one."""
    kept = extremes(row[:count] for row, count in zip(tally.top, tally.top_count, strict=True))
    whole = Tally.of([int(tally.deadline_ps[0])])
    whole.fine[:] = tally.fine.sum(axis=0)
    whole.top[0, : kept.size] = kept
    whole.top_count[0] = kept.size
    whole.n[0], whole.late[0], whole.within[0] = tally.n.sum(), tally.late.sum(), tally.within.sum()
    whole.lost[0] = tally.lost.sum(axis=0)
    whole.smallest_ps[0] = tally.smallest_ps.min()
    whole.sum_ps[0] = tally.sum_ps.sum()
    return whole.with_coarse(tally.coarse.sum(axis=1, keepdims=True))


def fates(tally: Tally) -> Fates:
    """What a tally says of each tenant."""
    missed = tally.late + tally.lost.sum(axis=1)
    return Fates(tally.n, missed, np.array([_own_effect(tally, k) for k in range(tally.n.size)]))


def _own_effect(tally: Tally, tenant: int) -> float:
    """By the parts of the window in which the tenant was there; where they cannot tell, each is one observation."""
    own = tally.only(tenant)
    there = own.coarse[own.coarse.sum(axis=(1, 2)) > 0]
    parts = len(there)
    effect = design_effect(own.with_coarse(there), 0) if parts > 1 else None
    return max(1.0, int(own.n[0]) / max(parts, 1)) if effect is None else effect


def quality(tally: Tally) -> tuple[float | None, Interval, float, tuple[float, float]]:
    """p99.9 and compliance of a pooled tally, each with its limits."""
    n = int(tally.n[0])
    missed = int(tally.late[0] + tally.lost[0].sum())
    effect = design_effect(tally, 0)
    found = quantile(tally, 0, 0.999, effect, CONFIDENCE)
    limits = (0.0, 1.0) if effect is None else share_limits(missed, n, effect)
    return found.estimate_s, (found.lower_s, found.upper_s), 1 - missed / n, limits


def keeping(windows: Sequence[Fates], epsilon: float, *, apart: bool) -> Kept:
    """Count the tenants whose promise was kept.

    Tenants of one window may fare alike, so the limits are exact binomial ones on counts divided by how much more the
    windows' counts scatter than independent tenants' (`testbed.simulation.estimate.scatter_effect`). Where that cannot
    be seen, for want of windows or because all of them kept or all broke, tenants that reservations keep apart
    count one by one, and otherwise a window counts for no more than one tenant. One tenant a window is independent.

    Args:
        windows: The tenants of each window; windows are independent.
        epsilon: Share of a tenant's packets that may miss.
        apart: Whether reservations keep the tenants apart.
    """
    told = [window.among(window.sent * epsilon >= 1 - _ROUNDING) for window in windows]
    sizes = np.array([one.sent.size for one in told])
    tenants = int(sizes.sum())
    if not tenants:
        return Kept(0, None, (0.0, 1.0), 0, None)
    broken = [one.among(one.missed > epsilon * one.sent + _ROUNDING) for one in told]
    counts = np.array([one.sent.size for one in broken])
    total = int(counts.sum())
    if sizes.max() == 1:
        effect = 1.0
    elif len(windows) > 1 and 0 < total < tenants:
        effect = max(1.0, scatter_effect(counts, sizes))
    else:
        effect = 1.0 if apart else tenants / np.count_nonzero(sizes)
    return Kept(
        tenants=tenants,
        share=1 - total / tenants,
        interval=share_limits(total, tenants, effect),
        refuted=sum(
            lower_limit(math.floor(missed / effect + _ROUNDING), sent / effect, CONFIDENCE) > epsilon
            for one in broken
            for sent, missed, effect in zip(one.sent, one.missed, one.effect, strict=True)
        ),
        worst_miss=max(float((one.missed / one.sent).max()) for one in told if one.sent.size),
    )


def share_limits(misses: int, n: int, effect: float) -> tuple[float, float]:
    """Two-sided Clopper-Pearson limits of the share of n that are no misses, on counts divided by a design effect."""
    side, size = (1 + CONFIDENCE) / 2, n / effect
    most = upper_limit(math.ceil(misses / effect - _ROUNDING), size, side)
    least = lower_limit(math.floor(misses / effect + _ROUNDING), size, side)
    return 1 - most, 1 - least


def mean_limits(values: npt.ArrayLike) -> tuple[float, float]:
    """Student's limits of the mean of a share over replications, within 0 and 1."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.size < 2:
        return 0.0, 1.0
    half = float(stdtrit(sample.size - 1, (1 + CONFIDENCE) / 2) * sample.std(ddof=1) / math.sqrt(sample.size))
    return max(0.0, float(sample.mean()) - half), min(1.0, float(sample.mean()) + half)
