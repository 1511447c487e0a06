"""What is left of a server when other traffic shares it: strict priority, FIFO, fair sharing, or nothing known.

Cross traffic bounded surely leaves a rate-latency service. Cross traffic known in distribution leaves a random service,
`E exp(-theta S(s, t)) <= exp(-theta (R(theta) (t - s) - sigma(theta)))` with R = C - rho_cross: also the model of a
server whose capacity fluctuates (what it lacks is the cross traffic).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from testbed.calculus.arrivals.base import Arrival
from testbed.calculus.arrivals.bucket import TokenBucket
from testbed.calculus.arrivals.slotted import Slotted
from testbed.calculus.errors import CalculusError, UnstableError, require_not_negative, require_positive
from testbed.calculus.numeric import FloatArray
from testbed.calculus.service.promised import RateLatency

Scheduler: TypeAlias = Literal["blind", "priority", "fifo"]


@dataclass(frozen=True)
class LeftOver:
    """A server of constant capacity shared with cross traffic that is independent of everything else.

    Attributes:
        capacity_bps: C.
        cross: The cross traffic; fresh and independent at each server.
        scheduler: "priority" when the cross traffic goes first, "fifo", or "blind" when nothing is known. The bound is
            the same for the first and the last; it is tight for priority and loose for FIFO.
        name: The domain, for reports.
    """

    capacity_bps: float
    cross: Arrival
    scheduler: Scheduler = "blind"
    name: str = ""

    def __post_init__(self) -> None:
        require_positive(f"capacity of server {self.name!r}", self.capacity_bps)

    @property
    def slot_s(self) -> float | None:
        """Length of a slot when the cross traffic is slotted, else None."""
        return self.cross.slot_s if isinstance(self.cross, Slotted) else None

    @property
    def mean_bps(self) -> float:
        """Mean left-over rate."""
        return self.capacity_bps - self.cross.mean_bps

    def service_rate(self, theta: FloatArray) -> FloatArray:
        """R(theta) in bits/s, negative where the cross traffic's envelope exceeds the capacity."""
        return self.capacity_bps - self.cross.envelope_rate(theta)

    def service_burst(self, theta: FloatArray) -> FloatArray:
        """sigma(theta) in bits, at least 0.

        FIFO in continuous time: the left-over service `[C (t - s) - A_cross(s, t - x)]` after a time x holds for any x,
        and x = sigma/(C + rho) is the best (docs/calculus.md, "Left-over service").
        """
        sigma = self.cross.envelope_burst(theta)
        if self.scheduler == "fifo" and self.slot_s is None:
            return sigma * self.capacity_bps / (self.capacity_bps + self.cross.envelope_rate(theta))
        return sigma

    def first_slot_burst(self, theta: FloatArray) -> FloatArray:
        """sigma(theta) in bits where at least one slot is served; may be negative in slotted time."""
        return self.cross.first_slot_burst(theta) if isinstance(self.cross, Slotted) else self.service_burst(theta)


def left_over(capacity: RateLatency, cross: TokenBucket, scheduler: Scheduler = "blind") -> RateLatency:
    """The sure left-over service beside a token bucket: rate C - r, and a latency that depends on the scheduler.

    Blind multiplexing and lower priority: `(b + r T)/(C - r) + T`. FIFO: `b/C + T` (Le Boudec & Thiran, section 6.2).

    Raises:
        UnstableError: The cross traffic's rate reaches the capacity.
    """
    rate = capacity.rate_bps - cross.rate_bps
    if rate <= 0.0:
        raise UnstableError(
            f"cross rate < capacity fails: {cross.rate_bps:g} against {capacity.rate_bps:g} bit/s; nothing is left over"
        )
    if scheduler == "fifo":
        return RateLatency(rate, capacity.latency_s + cross.burst_bits / capacity.rate_bps, capacity.name)
    waiting = (cross.burst_bits + capacity.rate_bps * capacity.latency_s) / rate
    return RateLatency(rate, waiting, capacity.name)


def priority_share(capacity: RateLatency, lower_packet_bits: float) -> RateLatency:
    """The service of the highest priority: everything, after at most one packet of a lower class already in service."""
    require_not_negative("largest packet of a lower class", lower_packet_bits)
    return RateLatency(capacity.rate_bps, capacity.latency_s + lower_packet_bits / capacity.rate_bps, capacity.name)


def gps_share(
    capacity: RateLatency, weight: float, other_weights: list[float], packet_bits: float = 0.0
) -> RateLatency:
    """The guaranteed share under generalised processor sharing, and under its packet version with one packet more.

    Args:
        capacity: The shared server.
        weight: The flow's weight.
        other_weights: Weights of all other flows.
        packet_bits: Largest packet of any flow, for packet-by-packet GPS (weighted fair queueing); 0 for the fluid.

    Raises:
        CalculusError: A weight is not above zero.
    """
    if weight <= 0.0 or min(other_weights, default=1.0) <= 0.0:
        raise CalculusError(f"weights must be above 0; found {weight:g} among {other_weights}")
    share = weight / (weight + math.fsum(other_weights))
    latency = capacity.latency_s + packet_bits / capacity.rate_bps
    return RateLatency(share * capacity.rate_bps, latency, capacity.name)
