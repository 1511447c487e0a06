"""Flows known by an envelope alone, in slotted time: exponentially bounded burstiness, and buckets of random phase."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from testbed.calculus.arrivals.slotted import Slotted
from testbed.calculus.errors import CalculusError, NotApplicableError, require_positive
from testbed.calculus.numeric import FloatArray


class _EnvelopeOnly(Slotted):
    """So many independent flows, each of one envelope rate at every theta, also taken for its mean.

    No law of the increments is known, so nothing can be said about what packets see.
    """

    rate_bps: float
    flows: int

    @property
    def mean_bps(self) -> float:
        return self.flows * self.rate_bps

    def envelope_rate(self, theta: FloatArray) -> FloatArray:
        return np.full_like(theta, self.flows * self.rate_bps)

    def log_packet_factor(self, rate_bps: float) -> float:
        del rate_bps
        raise NotApplicableError(f"a {type(self).__name__} says nothing about packets; ask per time")


@dataclass(frozen=True)
class BoundedBurstiness(_EnvelopeOnly):
    """`P(A(s, t) > rate (t - s) + b) <= prefactor e^{-decay b}` for each flow (Yaron & Sidi 1993).

    Attributes:
        slot_s: Length of a slot.
        rate_bps: Envelope rate of one flow, also taken for its mean.
        prefactor: M, at least 1 to say anything at b = 0.
        decay_per_bit: Decay in 1/bit.
        flows: How many independent flows.
    """

    slot_s: float
    rate_bps: float
    prefactor: float
    decay_per_bit: float
    flows: int = 1

    def __post_init__(self) -> None:
        require_positive("slot", self.slot_s)
        require_positive("envelope rate", self.rate_bps)
        require_positive("prefactor of the burstiness", self.prefactor)
        require_positive("decay of the burstiness", self.decay_per_bit)
        if self.flows < 1:
            raise CalculusError(f"an aggregate has {self.flows} flows; expected at least 1")

    @property
    def theta_pole(self) -> float:
        return self.decay_per_bit

    @property
    def theta_scale(self) -> float:
        return self.decay_per_bit

    def theta_at_rate(self, rate_bps: float) -> float:
        del rate_bps
        return self.decay_per_bit

    def first_slot_burst(self, theta: FloatArray) -> FloatArray:
        # E e^{theta (A - rho t)} <= 1 + integral of theta e^{theta b} M e^{-decay b}.
        with np.errstate(divide="ignore", invalid="ignore"):
            grown = np.log1p(self.prefactor * theta / (self.decay_per_bit - theta)) / theta
        return np.where(theta < self.decay_per_bit, self.flows * grown, np.inf)


@dataclass(frozen=True)
class RandomPhaseBuckets(_EnvelopeOnly):
    """Independent stationary flows, each in a token bucket: sigma is `n ln cosh(theta b)/theta` (Massoulie & Busson).

    With V the tokens that are missing from a bucket, stationary and within [0, b], what arrives beyond the token rate
    is at most V at the end less V at the start: mean zero and at most b either way, so its moment generating function
    is at most cosh(theta b). Many flows then burst far less than n b.

    Attributes:
        slot_s: Length of a slot.
        rate_bps: Token rate of one flow, also taken for its mean.
        burst_bits: Burst of one flow.
        flows: How many independent flows.
    """

    slot_s: float
    rate_bps: float
    burst_bits: float
    flows: int = 1

    def __post_init__(self) -> None:
        require_positive("slot", self.slot_s)
        require_positive("token rate", self.rate_bps)
        require_positive("token bucket burst", self.burst_bits)
        if self.flows < 1:
            raise CalculusError(f"an aggregate has {self.flows} flows; expected at least 1")

    @property
    def theta_scale(self) -> float:
        return 1.0 / self.burst_bits

    def theta_at_rate(self, rate_bps: float) -> float:
        # Every theta is stable; beyond this one the bound has long reached its deterministic limit.
        del rate_bps
        return 200.0 / self.burst_bits

    def first_slot_burst(self, theta: FloatArray) -> FloatArray:
        x = theta * self.burst_bits
        return np.asarray(self.flows * (x + np.log1p(np.expm1(-2.0 * x) / 2.0)) / theta)
