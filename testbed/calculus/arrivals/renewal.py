"""Packets with independent gaps of any distribution (renewal): on-off with a geometric burst, Gamma, Erlang, periodic.

Seen by its packets such a flow makes a GI/GI/1 queue, and Kingman's inequality bounds the wait of a packet directly,
without a detour over time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from testbed.calculus.amounts import Amount, Gamma
from testbed.calculus.arrivals.base import LIGHT_TAIL, STATIONARY, QueueMethod
from testbed.calculus.arrivals.sizes import IndependentSizes
from testbed.calculus.errors import CalculusError, NotApplicableError, require_positive, require_stable
from testbed.calculus.numeric import FloatArray, largest_below
from testbed.calculus.tails import ExponentialTail, Per, QueueBound, SureTail

_NEWTON_STEPS = 50

RENEWAL = "gaps between packets are independent and alike, and independent of the sizes"


class Gap(ABC):
    """The time from one packet to the next."""

    @property
    @abstractmethod
    def mean_s(self) -> float:
        """Mean gap."""

    @property
    @abstractmethod
    def shortest_s(self) -> float:
        """The shortest possible gap."""

    @abstractmethod
    def log_laplace(self, s: FloatArray) -> FloatArray:
        """Logarithm of E exp(-s tau), s >= 0 in 1/s."""

    @abstractmethod
    def inverse_log_laplace(self, level: FloatArray) -> FloatArray:
        """The s with -ln E exp(-s tau) = level, any shape."""

    @abstractmethod
    def log_residual(self, s: FloatArray) -> FloatArray:
        """A lower bound, whatever time has passed since the last packet, on ln E exp(-s (time to the next))."""


@dataclass(frozen=True)
class GammaGap(Gap):
    """Gamma distributed gaps; shape 1 is Poisson, an integer shape Erlang, a shape below 1 bursty."""

    mean_value_s: float
    shape: float

    def __post_init__(self) -> None:
        require_positive("mean gap", self.mean_value_s)
        require_positive("shape of the gap", self.shape)

    @property
    def mean_s(self) -> float:
        return self.mean_value_s

    @property
    def shortest_s(self) -> float:
        return 0.0

    def log_laplace(self, s: FloatArray) -> FloatArray:
        return -self.shape * np.log1p(s * self.mean_value_s / self.shape)

    def inverse_log_laplace(self, level: FloatArray) -> FloatArray:
        return np.asarray(np.expm1(level / self.shape) * self.shape / self.mean_value_s)

    def log_residual(self, s: FloatArray) -> FloatArray:
        # Shape above 1: a fresh gap is the longest to wait for. Below 1: the longer the silence, the longer it lasts,
        # in the limit exponentially with the rate of the tail.
        return self.log_laplace(s) / min(self.shape, 1.0)


@dataclass(frozen=True)
class ConstantGap(Gap):
    """Periodic packets, with a uniformly random phase."""

    value_s: float

    def __post_init__(self) -> None:
        require_positive("gap", self.value_s)

    @property
    def mean_s(self) -> float:
        return self.value_s

    @property
    def shortest_s(self) -> float:
        return self.value_s

    def log_laplace(self, s: FloatArray) -> FloatArray:
        return -s * self.value_s

    def inverse_log_laplace(self, level: FloatArray) -> FloatArray:
        return level / self.value_s

    def log_residual(self, s: FloatArray) -> FloatArray:
        return -s * self.value_s


@dataclass(frozen=True)
class OnOffGap(Gap):
    """A geometric number of equally spaced packets, then an exponential silence.

    Attributes:
        spacing_s: Gap inside a burst.
        mean_packets: Mean number of packets in a burst, at least 1.
        mean_off_s: Mean silence, added to the spacing after the last packet of a burst.
    """

    spacing_s: float
    mean_packets: float
    mean_off_s: float

    def __post_init__(self) -> None:
        require_positive("packet spacing", self.spacing_s)
        require_positive("mean silence", self.mean_off_s)
        if not self.mean_packets >= 1.0:
            raise CalculusError(f"mean packets in a burst >= 1 fails: {self.mean_packets:g}; use larger bursts")

    @property
    def mean_s(self) -> float:
        return self.spacing_s + self.mean_off_s / self.mean_packets

    @property
    def shortest_s(self) -> float:
        return self.spacing_s

    def log_laplace(self, s: FloatArray) -> FloatArray:
        # 1 - (1 - 1/(1 + s off))/N, written so that the small s keep their digits.
        x = s * self.mean_off_s
        return -s * self.spacing_s + np.log1p(-x / (1.0 + x) / self.mean_packets)

    def inverse_log_laplace(self, level: FloatArray) -> FloatArray:
        # Concave and increasing: Newton's method climbs to the root from below without overshooting.
        s = level / self.mean_s
        for _ in range(_NEWTON_STEPS):
            stretch = 1.0 + s * self.mean_off_s
            ends = 1.0 - (1.0 - 1.0 / stretch) / self.mean_packets
            slope = self.spacing_s + self.mean_off_s / (self.mean_packets * stretch * stretch * ends)
            step = (level + self.log_laplace(s)) / slope
            s = s + step
            if np.all(step <= 1e-14 * s):
                break
        return s

    def log_residual(self, s: FloatArray) -> FloatArray:
        return np.minimum(self.log_laplace(s), -np.log1p(s * self.mean_off_s))


@dataclass(frozen=True)
class Renewal(IndependentSizes):
    """Packets with independent, identically distributed gaps.

    Attributes:
        gap: Distribution of the time between packets.
        packet_bits: Bits in a packet: a number, or a distribution.
    """

    gap: Gap
    packet_bits: float | Amount

    def __post_init__(self) -> None:
        self.require_sizes()

    @classmethod
    def on_off(cls, peak_bps: float, mean_on_s: float, mean_off_s: float, packet_bits: float) -> Renewal:
        """Bursts at a peak rate with a geometric number of packets and the given mean length."""
        spacing = packet_bits / peak_bps
        return cls(OnOffGap(spacing, mean_on_s / spacing, mean_off_s), packet_bits)

    @classmethod
    def gamma(cls, packets_per_s: float, shape: float, packet_bits: float | Amount) -> Renewal:
        """Gamma distributed gaps; an integer shape is Erlang."""
        return cls(GammaGap(1.0 / packets_per_s, shape), packet_bits)

    @classmethod
    def periodic(cls, packets_per_s: float, packet_bits: float | Amount) -> Renewal:
        """Equally spaced packets."""
        return cls(ConstantGap(1.0 / packets_per_s), packet_bits)

    @property
    def mean_bps(self) -> float:
        return self.amount.mean / self.gap.mean_s

    def envelope_rate(self, theta: FloatArray) -> FloatArray:
        """s/theta, where s solves E e^{theta L} E e^{-s tau} = 1."""
        return self.gap.inverse_log_laplace(self.amount.log_mgf(theta)) / theta

    def envelope_burst(self, theta: FloatArray) -> FloatArray:
        """By Wald's identity stopped at the first packet after t (docs/calculus.md, "Renewal")."""
        s = theta * self.envelope_rate(theta)
        first = np.log(-np.expm1(self.gap.log_laplace(s)) / (s * self.gap.mean_s))
        return np.maximum(first - self.gap.log_residual(s), 0.0) / theta

    def sure_burst_bits(self, per: Per) -> float:
        return 0.0 if per == "packet" else self.amount.largest

    def queue_methods(self) -> Mapping[str, QueueMethod]:
        return {"kingman": self.kingman, "chernoff": self.chernoff}

    def theta_at_rate(self, rate_bps: float) -> float:
        def drift(theta: float) -> float:
            argument = np.asarray(theta)
            return float(self.amount.log_mgf(argument) + self.gap.log_laplace(argument * rate_bps))

        # The function starts at 0 with a negative slope, so its positive root is the end of {drift <= 0}.
        return largest_below(drift, 0.0, self.theta_scale, self.theta_pole)

    def kingman(self, rate_bps: float, per: Per) -> QueueBound:
        """Kingman's inequality: `P_packet(W >= w) <= C e^{-theta* R w}`, `E e^{theta* (L - R tau)} = 1` (Kingman 1970).

        C is 1 or, where the overshoot is known, smaller (Ross 1974); for exponential sizes the bound is the
        distribution itself.

        Raises:
            NotApplicableError: The bound is asked per time.
            UnstableError: The mean rate reaches rate_bps.
        """
        if per != "packet":
            raise NotApplicableError("Kingman's inequality is about packets; per time use chernoff")
        require_stable(self.mean_bps, rate_bps)
        if self.amount.largest <= rate_bps * self.gap.shortest_s:
            return QueueBound(SureTail(0.0), (RENEWAL,))
        theta = self.theta_at_rate(rate_bps)
        exact = isinstance(self.amount, Gamma) and self.amount.shape == 1.0
        prefactor = math.log(self.amount.excess_factor(theta))
        return QueueBound(
            ExponentialTail(prefactor, theta * rate_bps),
            (STATIONARY, LIGHT_TAIL, RENEWAL),
            exact,
            ExponentialTail(prefactor + float(self.amount.log_mgf(theta)), theta * rate_bps),
        )
