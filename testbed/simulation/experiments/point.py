"""One point of an experiment: what was varied, and what it did to the tenants that the point is about."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from testbed.audit.compliance import lower_limit, upper_limit
from testbed.simulation.estimate import design_effect, quantile
from testbed.simulation.tally import Tally

CONFIDENCE = 0.95

Interval = tuple[float | None, float | None]


@dataclass(frozen=True)
class ExperimentPoint:
    """A point; intervals are two-sided at 95 %.

    Attributes:
        varied: Name of what is on the horizontal axis, `load` or `correlation`.
        value: Its value.
        contender: Name of what is compared, `rule` or `scheduler`.
        name: Which one this is.
        p999_s: p99.9 of all packets of the tenants in question, lost ones included; None where more than that is lost.
        p999_interval_s: Its limits.
        compliance: Share of their packets that arrive by the deadline; NaN where there are none.
        compliance_interval: Its limits.
        admitted: Share of tenants that were admitted.
        admitted_interval: Its limits, from the scatter of replications.
        utilisation: Share of the first link's capacity that carried their packets.
        utilisation_interval: Its limits, from the scatter of replications; 0 and 1 where there is one.
        bound_s: What holds for all but epsilon of the packets: promised by reservations, or in a shared queue whatever
            its tenants' dependence; None where nothing does.
        packets: How many packets this rests on.
        on: Where it was found, `simulation` or `network`.
        invalid: Gates that failed, so that this says nothing about the theory; empty where none did.
        run: Folder of the run it was found in; None where there is none.
    """

    varied: str
    value: float
    contender: str
    name: str
    p999_s: float | None
    p999_interval_s: Interval
    compliance: float
    compliance_interval: tuple[float, float]
    admitted: float
    admitted_interval: tuple[float, float]
    utilisation: float
    bound_s: float | None
    packets: int
    utilisation_interval: tuple[float, float] = (0.0, 1.0)
    on: str = "simulation"
    invalid: tuple[str, ...] = ()
    run: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form: what is varied and what is compared are keys of their own."""
        return {
            self.varied: self.value,
            self.contender: self.name,
            "p999_s": self.p999_s,
            "p999_interval_s": self.p999_interval_s,
            "compliance": self.compliance if self.packets else None,
            "compliance_interval": self.compliance_interval,
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
        }


def pooled(tally: Tally) -> Tally:
    """The tally of all tenants as if they were one."""
    top = np.sort(np.concatenate([row[:count] for row, count in zip(tally.top, tally.top_count, strict=True)]))[::-1]
    width = tally.top.shape[1]
    # Of many tenants' extremes only as many are the whole's extremes as each tenant is sure to have kept.
    kept = top[: width // 2]
    whole = Tally.of([int(tally.deadline_ps[0])])
    whole.fine[:] = tally.fine.sum(axis=0)
    whole.top[0, : kept.size] = kept
    whole.top_count[0] = kept.size
    whole.n[0], whole.late[0] = tally.n.sum(), tally.late.sum()
    whole.lost[0] = tally.lost.sum(axis=0)
    whole.smallest_ps[0] = tally.smallest_ps.min()
    whole.sum_ps[0] = tally.sum_ps.sum()
    return whole.with_coarse(tally.coarse.sum(axis=1, keepdims=True))


def quality(tally: Tally) -> tuple[float | None, Interval, float, tuple[float, float]]:
    """p99.9 and compliance of a pooled tally, each with its limits."""
    n = int(tally.n[0])
    missed = int(tally.lost[0].sum() + tally.late[0])
    effect = design_effect(tally, 0)
    found = quantile(tally, 0, 0.999, effect, CONFIDENCE)
    if effect is None:
        limits = (0.0, 1.0)
    else:
        side = (1 + CONFIDENCE) / 2
        limits = (
            1 - upper_limit(math.ceil(missed / effect), n / effect, side),
            1 - lower_limit(math.floor(missed / effect), n / effect, side),
        )
    return found.estimate_s, (found.lower_s, found.upper_s), 1 - missed / n, limits


def mean_limits(values: npt.ArrayLike) -> tuple[float, float]:
    """Student's limits of the mean of a share over replications, within 0 and 1."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.size < 2:
        return 0.0, 1.0
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, sample.size - 1) * sample.std(ddof=1) / math.sqrt(sample.size))
    return max(0.0, float(sample.mean()) - half), min(1.0, float(sample.mean()) + half)
