"""Markov on-off flows: the standard model of a bursty sender, as a fluid or cut into packets.

One flow alternates between silence and its peak rate, for exponential times. The kernels below take arrays, so that a
population of flows costs one call; the class puts them behind the interface of a flow.

Packets are cut out of the cumulative fluid: packet k leaves when the fluid reaches k L, and what is left when a burst
ends is carried over to the next one. Then the packets in [s, t) seen by a packet of the same flow at t, itself
excluded, are exactly the fluid between two packets, so a packet waits no longer than the bit at its own position
(docs/calculus.md, "On-off packets").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from testbed.calculus.arrivals.base import STATIONARY, Arrival, QueueMethod
from testbed.calculus.errors import CalculusError, require_positive, require_stable
from testbed.calculus.martingale import MarkovFactor
from testbed.calculus.numeric import FloatArray
from testbed.calculus.tails import ExponentialTail, Per, QueueBound

MARKOV_ON_OFF = "on and off times are exponential and independent"
INDEPENDENT_FLOWS = "the aggregated flows are independent"


def envelope_rate(theta: FloatArray, peak: FloatArray, up: FloatArray, down: FloatArray) -> FloatArray:
    """rho(theta) of one on-off fluid: the largest eigenvalue of the generator tilted by theta, over theta.

    Args:
        theta: In 1/bit; all arguments broadcast.
        peak: Peak rate, bits/s.
        up: Rate off to on, 1/s.
        down: Rate on to off, 1/s.
    """
    tilt = theta * peak - up - down
    root = np.sqrt(tilt * tilt + 4.0 * up * theta * peak)
    # The same root of the quadratic twice, each without cancellation where it is used.
    return np.where(tilt > 0.0, (tilt + root) / (2.0 * theta), 2.0 * up * peak / (root - np.minimum(tilt, 0.0)))


def decay_per_bit(share: FloatArray, peak: FloatArray, up: FloatArray, down: FloatArray) -> FloatArray:
    """theta* with rho(theta*) = share, the service rate per flow, between the mean and the peak (Anick et al. 1982)."""
    return down / (peak - share) - up / share


def log_martingale_prefactor(
    theta: FloatArray, share: FloatArray, *, peak: FloatArray, up: FloatArray, down: FloatArray, flows: FloatArray
) -> FloatArray:
    """Logarithm of K of `P_time(Q > q) <= K e^{-theta* q}` for independent on-off fluids in continuous time.

    `K = (p_on + p_off h)^n / h^{n - j*}` with h = up/(up + theta* share) and j* the fewest flows on that exceed the
    rate (docs/calculus.md, "Martingale").
    """
    p_on = up / (up + down)
    h_off = up / (up + theta * share)
    level = flows * share / peak
    nearest = np.round(level)
    # An integer level but for rounding counts as that integer: the state in balance builds no queue.
    whole = np.where(np.abs(level - nearest) <= 1e-9 * nearest, nearest, np.floor(level))
    fewest_on = whole + 1.0
    return flows * np.log(p_on + (1.0 - p_on) * h_off) - (flows - fewest_on) * np.log(h_off)


def log_phase_mgf(theta_bits: FloatArray | float) -> FloatArray:
    """Logarithm of E exp(theta V), V uniform on [0, L] (what a flow sent ahead of its fluid); argument theta L."""
    x = np.asarray(theta_bits, dtype=np.float64)
    # expm1(x)/x = e^{x/2} sinh(x/2)/(x/2), which does not overflow early.
    half = 0.5 * x
    with np.errstate(invalid="ignore", divide="ignore"):
        log_sinhc = half + np.log(-np.expm1(-x)) - np.log(x)
    return half + np.where(x > 1e-6, log_sinhc, x * x / 24.0)


def phase_burst(theta: FloatArray, packet_bits: float) -> FloatArray:
    """Sigma of one flow cut into packets, in bits: about theta L^2/8 while theta L is small, never above L.

    `A(s, t) = F + V_s - V_t` with V_s uniform on [0, L] and V_t = V_s + F mod L; this is the worst case over F.
    """
    x = np.maximum(theta * packet_bits, 1e-9)
    with np.errstate(over="ignore"):
        return np.asarray(np.maximum(log_phase_mgf(x) - 1.0 + x / np.expm1(x), 0.0) / theta)


@dataclass(frozen=True)
class MarkovOnOff(Arrival):
    """One or several independent on-off flows of the same kind.

    Attributes:
        peak_bps: Rate while on, of one flow.
        mean_on_s: Mean length of a burst.
        mean_off_s: Mean length of a silence.
        flows: How many independent flows.
        packet_bits: Size of the packets into which each flow's cumulative fluid is cut; None leaves it fluid.
    """

    peak_bps: float
    mean_on_s: float
    mean_off_s: float
    flows: int = 1
    packet_bits: float | None = None

    def __post_init__(self) -> None:
        require_positive("peak rate", self.peak_bps)
        require_positive("mean on time", self.mean_on_s)
        require_positive("mean off time", self.mean_off_s)
        if self.flows < 1:
            raise CalculusError(f"an on-off aggregate has {self.flows} flows; expected at least 1")
        if self.packet_bits is not None:
            require_positive("packet size", self.packet_bits)

    @property
    def _up(self) -> float:
        return 1.0 / self.mean_off_s

    @property
    def _down(self) -> float:
        return 1.0 / self.mean_on_s

    @property
    def mean_bps(self) -> float:
        return self.flows * self.peak_bps * self.mean_on_s / (self.mean_on_s + self.mean_off_s)

    @property
    def peak_rate_bps(self) -> float:
        return self.flows * self.peak_bps if self.packet_bits is None else math.inf

    @property
    def largest_packet_bits(self) -> float:
        return self.packet_bits or 0.0

    @property
    def theta_scale(self) -> float:
        return 1.0 / (self.peak_bps * self.mean_on_s)

    def envelope_rate(self, theta: FloatArray) -> FloatArray:
        one = envelope_rate(theta, np.asarray(self.peak_bps), np.asarray(self._up), np.asarray(self._down))
        return self.flows * one

    def envelope_burst(self, theta: FloatArray) -> FloatArray:
        if self.packet_bits is None:
            return np.zeros_like(theta)
        return self.flows * phase_burst(theta, self.packet_bits)

    def log_seen_factor(self) -> float:
        # Packets are points of the fluid, so they see what its bits see.
        return math.log((self.mean_on_s + self.mean_off_s) / self.mean_on_s)

    def theta_at_rate(self, rate_bps: float) -> float:
        share = rate_bps / self.flows
        if share >= self.peak_bps:
            return math.inf
        return float(
            decay_per_bit(np.asarray(share), np.asarray(self.peak_bps), np.asarray(self._up), np.asarray(self._down))
        )

    def factor(self, theta: float) -> MarkovFactor:
        # One flow's h solves the reversed tilted equation at its own growth rate: h_off = up/(up + theta rho).
        growth = theta * float(self.envelope_rate(np.asarray(theta))) / self.flows
        none = np.zeros(2)
        return MarkovFactor(
            stationary=np.array([self._down, self._up]) / (self._up + self._down),
            fluid_bps=np.array([0.0, self.peak_bps]),
            packets_per_s=none,
            packet_bits=none,
            log_h=np.array([math.log(self._up / (self._up + growth)), 0.0]),
            log_overshoot=none,
            copies=self.flows,
            phase_log_mgf=0.0 if self.packet_bits is None else float(log_phase_mgf(theta * self.packet_bits)),
        )

    def queue_methods(self) -> Mapping[str, QueueMethod]:
        return {"martingale": self.martingale, "chernoff": self.chernoff}

    def sure_burst_bits(self, per: Per) -> float:
        ahead = self.flows - 1 if per == "packet" else self.flows
        return ahead * self.largest_packet_bits

    def martingale(self, rate_bps: float, per: Per) -> QueueBound:
        """The exponential martingale's bound; for a single flow it is the distribution itself.

        Fluid: per time `K e^{-theta* q}`, per bit R/mean times that. Packets of this flow wait no longer than its bits;
        packets of the other flows run ahead of their fluid by an independent uniform part of a packet each.

        Raises:
            UnstableError: The mean rate reaches rate_bps.
        """
        require_stable(self.mean_bps, rate_bps)
        share = rate_bps / self.flows
        if share >= self.peak_bps:
            return self.no_queue(rate_bps, per)
        theta = self.theta_at_rate(rate_bps)
        log_k = float(
            log_martingale_prefactor(
                np.asarray(theta),
                np.asarray(share),
                peak=np.asarray(self.peak_bps),
                up=np.asarray(self._up),
                down=np.asarray(self._down),
                flows=np.asarray(self.flows),
            )
        )
        ahead = self.flows
        if per == "packet":
            log_k += self.log_packet_factor(rate_bps)
            ahead -= 1
        if self.packet_bits is not None:
            log_k += ahead * float(log_phase_mgf(theta * self.packet_bits))
        assumptions = (STATIONARY, MARKOV_ON_OFF, *((INDEPENDENT_FLOWS,) if self.flows > 1 else ()))
        exact = self.flows == 1 and self.packet_bits is None
        return QueueBound(ExponentialTail(log_k, theta * rate_bps), assumptions, exact)
