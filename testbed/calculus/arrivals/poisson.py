"""Packets that arrive independently of each other (compound Poisson), of any light-tailed size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import lambertw

from testbed.calculus.amounts import Amount, Constant, Gamma
from testbed.calculus.arrivals.base import LIGHT_TAIL, STATIONARY, QueueMethod
from testbed.calculus.arrivals.sizes import IndependentSizes
from testbed.calculus.errors import require_positive, require_stable
from testbed.calculus.martingale import MarkovFactor
from testbed.calculus.numeric import FloatArray
from testbed.calculus.tails import ExponentialTail, Per, QueueBound

POISSON = "packets arrive as a Poisson process, with sizes independent of it and of each other"


@dataclass(frozen=True)
class CompoundPoisson(IndependentSizes):
    """Poisson packets.

    Attributes:
        packets_per_s: Intensity.
        packet_bits: Bits in a packet: a number for a constant size, or a distribution.
    """

    packets_per_s: float
    packet_bits: float | Amount

    def __post_init__(self) -> None:
        require_positive("packet rate", self.packets_per_s)
        self.require_sizes()

    @property
    def mean_bps(self) -> float:
        return self.packets_per_s * self.amount.mean

    def envelope_rate(self, theta: FloatArray) -> FloatArray:
        with np.errstate(over="ignore"):
            return self.packets_per_s * np.expm1(self.amount.log_mgf(theta)) / theta

    def theta_at_rate(self, rate_bps: float) -> float:
        size = self.amount
        if isinstance(size, Gamma) and size.shape == 1.0:
            return 1.0 / size.mean - self.packets_per_s / rate_bps
        if isinstance(size, Constant):
            load = self.mean_bps / rate_bps
            if load < 0.999:
                # (e^x - 1) load = x, the branch of Lambert's function that is not x = 0.
                return (-float(lambertw(-load * math.exp(-load), -1).real) - load) / size.mean
        return super().theta_at_rate(rate_bps)

    def factor(self, theta: float) -> MarkovFactor:
        one = np.ones(1)
        return MarkovFactor(
            stationary=one,
            fluid_bps=np.zeros(1),
            packets_per_s=one * self.packets_per_s,
            packet_bits=one * self.amount.mean,
            log_h=np.zeros(1),
            log_overshoot=-np.log(one * self.amount.excess_factor(theta)),
        )

    def log_packet_factor(self, rate_bps: float) -> float:
        del rate_bps  # Poisson arrivals see time averages.
        return 0.0

    def log_seen_factor(self) -> float:
        return 0.0

    @property
    def packet_view(self) -> tuple[str, ...]:
        return ()

    def queue_methods(self) -> Mapping[str, QueueMethod]:
        return {"lundberg": self.lundberg, "chernoff": self.chernoff}

    def lundberg(self, rate_bps: float, per: Per) -> QueueBound:
        """Lundberg's inequality, `P(Q > q) <= C e^{-theta* q}` with rho(theta*) = R.

        C is 1 or, where the overshoot is known, smaller (Ross 1974); for exponential sizes the bound is the
        distribution itself. The same for packets and for time.

        Raises:
            UnstableError: The mean rate reaches rate_bps.
        """
        del per
        require_stable(self.mean_bps, rate_bps)
        theta = self.theta_at_rate(rate_bps)
        prefactor = math.log(self.amount.excess_factor(theta))
        exact = isinstance(self.amount, Gamma) and self.amount.shape == 1.0
        return QueueBound(
            ExponentialTail(prefactor, theta * rate_bps),
            (STATIONARY, LIGHT_TAIL, POISSON),
            exact,
            ExponentialTail(prefactor + float(self.amount.log_mgf(theta)), theta * rate_bps),
        )
