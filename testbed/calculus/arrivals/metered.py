"""A flow behind a meter: it obeys the contract surely and its own model as far as the meter lets it through."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from testbed.calculus.arrivals.base import Arrival, QueueMethod
from testbed.calculus.arrivals.bucket import TokenBucket
from testbed.calculus.errors import CalculusError
from testbed.calculus.numeric import FloatArray
from testbed.calculus.tails import Per, QueueBound, more_likely


@dataclass(frozen=True)
class Metered(Arrival):
    """What a meter lets through of a flow: the smaller of the two envelopes.

    A meter only drops, so the queue behind it is never longer than without it and every bound per time of `flow` stays
    valid. Per packet the misses are the same or fewer, but they are counted among the packets that passed.

    Attributes:
        flow: The model of what is sent.
        bucket: The contract that the meter enforces.
        passed_fraction: Lower bound on the fraction of packets that pass. With the default 1 a probability per packet
            is to be read as late packets among all packets *sent*.
    """

    flow: Arrival
    bucket: TokenBucket
    passed_fraction: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.passed_fraction <= 1.0:
            raise CalculusError(f"passed fraction is {self.passed_fraction!r}; expected above 0 and at most 1")

    @property
    def mean_bps(self) -> float:
        return min(self.flow.mean_bps, self.bucket.mean_bps)

    @property
    def under_contract(self) -> bool:
        return True

    @property
    def peak_rate_bps(self) -> float:
        return min(self.flow.peak_rate_bps, self.bucket.peak_rate_bps)

    @property
    def largest_packet_bits(self) -> float:
        return self.flow.largest_packet_bits

    @property
    def theta_pole(self) -> float:
        return self.flow.theta_pole

    @property
    def theta_scale(self) -> float:
        return self.flow.theta_scale

    def envelope_rate(self, theta: FloatArray) -> FloatArray:
        return np.minimum(self.flow.envelope_rate(theta), self.bucket.envelope_rate(theta))

    def envelope_burst(self, theta: FloatArray) -> FloatArray:
        own = self.flow.envelope_rate(theta) <= self.bucket.envelope_rate(theta)
        return np.where(own, self.flow.envelope_burst(theta), self.bucket.envelope_burst(theta))

    def sure_burst_bits(self, per: Per) -> float:
        sustained = float(self.flow.envelope_rate(np.asarray(1e6 * self.theta_scale)))
        return (self.flow if sustained <= self.bucket.rate_bps else self.bucket).sure_burst_bits(per)

    def log_packet_factor(self, rate_bps: float) -> float:
        return self.flow.log_packet_factor(rate_bps) - math.log(self.passed_fraction)

    def log_seen_factor(self) -> float:
        return self.flow.log_seen_factor() - math.log(self.passed_fraction)

    @property
    def packet_view(self) -> tuple[str, ...]:
        return self.flow.packet_view

    def queue_methods(self) -> Mapping[str, QueueMethod]:
        own = {name: self._behind_meter(method) for name, method in self.flow.queue_methods().items()}
        return {**self.bucket.queue_methods(), **own}

    def _behind_meter(self, method: QueueMethod) -> QueueMethod:
        def bound(rate_bps: float, per: Per) -> QueueBound:
            found = method(rate_bps, per)
            lost = -math.log(self.passed_fraction) if per == "packet" else 0.0
            note = "late packets are counted among all packets sent, those dropped by the meter included"
            assumptions = (*found.assumptions, *((note,) if per == "packet" and self.passed_fraction == 1.0 else ()))
            sojourn = None if found.sojourn is None else more_likely(found.sojourn, lost)
            return QueueBound(more_likely(found.tail, lost), assumptions, sojourn=sojourn)

        return bound
