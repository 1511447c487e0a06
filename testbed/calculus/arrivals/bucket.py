"""Flows that are known by a contract only: a token bucket, with or without a limit on the peak rate.

A meter enforces such a contract, so it holds surely and needs no assumption about the sender.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from testbed.calculus.arrivals.base import Arrival, QueueMethod
from testbed.calculus.errors import (
    CalculusError,
    UnstableError,
    require_not_negative,
    require_positive,
)
from testbed.calculus.numeric import FloatArray
from testbed.calculus.tails import Per, QueueBound, SureTail


@dataclass(frozen=True)
class TokenBucket(Arrival):
    """At most `rate_bps t + burst_bits` in any interval of length t, and at most `peak_bps t + packet_bits`.

    Attributes:
        rate_bps: Token rate.
        burst_bits: Bucket depth.
        peak_bps: Rate at which the burst can come, or None when it can come at once.
        packet_bits: Largest packet, the burst of the peak limit; 0 for a fluid.
    """

    rate_bps: float
    burst_bits: float
    peak_bps: float | None = None
    packet_bits: float = 0.0

    def __post_init__(self) -> None:
        require_positive("token rate", self.rate_bps)
        require_not_negative("token bucket burst", self.burst_bits)
        require_not_negative("largest packet of a token bucket", self.packet_bits)
        if self.peak_bps is not None and not self.peak_bps >= self.rate_bps:
            raise CalculusError(f"peak rate >= token rate fails: {self.peak_bps:g} against {self.rate_bps:g} bit/s")
        if self.packet_bits > self.burst_bits:
            raise CalculusError(
                f"largest packet <= burst fails: {self.packet_bits:g} against {self.burst_bits:g} bits; "
                "such a packet would never pass"
            )

    @property
    def mean_bps(self) -> float:
        return self.rate_bps

    @property
    def under_contract(self) -> bool:
        return True

    @property
    def peak_rate_bps(self) -> float:
        return math.inf if self.peak_bps is None else self.peak_bps

    @property
    def largest_packet_bits(self) -> float:
        return self.packet_bits

    @property
    def theta_scale(self) -> float:
        return 1.0 / max(self.burst_bits, self.packet_bits, 1e-300)

    def envelope_rate(self, theta: FloatArray) -> FloatArray:
        return np.full_like(theta, self.rate_bps)

    def envelope_burst(self, theta: FloatArray) -> FloatArray:
        return np.full_like(theta, self.burst_bits)

    def log_packet_factor(self, rate_bps: float) -> float:
        del rate_bps  # The contract holds whatever else is known of the path, so each packet has the bound of time.
        return 0.0

    def log_seen_factor(self) -> float:
        return 0.0

    @property
    def packet_view(self) -> tuple[str, ...]:
        return ()

    def sure_burst_bits(self, per: Per) -> float:
        del per
        return self.burst_bits

    def backlog_bits(self, rate_bps: float) -> float:
        """The largest backlog at a constant-rate server: the vertical distance between the two curves.

        Raises:
            UnstableError: The token rate exceeds the service rate.
        """
        if self.rate_bps > rate_bps:
            raise UnstableError(
                f"token rate <= service rate fails: {self.rate_bps:g} against {rate_bps:g} bit/s; "
                "reserve more rate or lower the contract"
            )
        peak = self.peak_rate_bps
        if math.isinf(peak):
            return self.burst_bits
        if peak <= rate_bps:
            return self.packet_bits
        growing = (self.burst_bits - self.packet_bits) / (peak - self.rate_bps)
        return self.packet_bits + growing * (peak - rate_bps)

    def queue_methods(self) -> Mapping[str, QueueMethod]:
        return {"deterministic": self.deterministic}

    def deterministic(self, rate_bps: float, per: Per) -> QueueBound:
        """b/R without a peak; [L + (b - L)(P - R)/(P - r)]/R with one (Le Boudec & Thiran, section 1.4)."""
        del per
        return QueueBound(SureTail(self.backlog_bits(rate_bps) / rate_bps), ("the contract is enforced by a meter",))


class HasWorstLatency(Protocol):
    """Anything that delays a packet by at most a known time beyond its own rate."""

    @property
    def worst_latency_s(self) -> float:
        """Latency plus the largest excess that is not counted as a loss."""


def burst_after(bucket: TokenBucket, upstream: Sequence[HasWorstLatency], refill_grain_s: float = 1e-3) -> float:
    """The burst, in bits, that a meter must allow behind other domains so that it drops no conforming packet.

    Deconvolution of the token bucket with rate-latency service gives `b + r sum (T_i + Xcap_i)`, and a meter that
    refills its bucket every `refill_grain_s` needs one grain of rate more. The serving rates do not enter.

    Args:
        bucket: The contract at the first domain.
        upstream: The services of the domains already crossed, in any order.
        refill_grain_s: How often the meter adds tokens; 0 for an ideal one.

    Raises:
        CalculusError: An upstream domain bounds its excess in probability only, so no burst is sure.
    """
    latency = math.fsum(service.worst_latency_s for service in upstream)
    if math.isinf(latency):
        raise CalculusError(
            "a burst behind the upstream domains needs a cap on the excess of each: give cap_s, "
            "and count what exceeds it as a loss of that domain"
        )
    return bucket.burst_bits + bucket.rate_bps * (latency + refill_grain_s)
