"""What a bound needs to know about a flow, and the one bound that every flow with an envelope has.

An arrival model is stationary and is described by its envelope
`E exp(theta A(s, t)) <= exp(theta (rho(theta) (t - s) + sigma(theta)))`. Models with more structure offer sharper
theorems through `queue_methods`. Units: seconds, bits, bits/s; theta in 1/bit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from testbed.calculus.errors import NotApplicableError, require_stable
from testbed.calculus.martingale import MarkovFactor
from testbed.calculus.numeric import FloatArray, largest_below
from testbed.calculus.tails import Per, QueueBound, SureTail, TailFamily

QueueMethod: TypeAlias = Callable[[float, Per], QueueBound]

STATIONARY = "the flow is stationary"
LIGHT_TAIL = "the flow has a light tail (its moment generating function exists)"
SIZE_INDEPENDENT = "packet sizes are equal, or independent of the backlog they find"


class Arrival(ABC):
    """A flow of bits."""

    @property
    @abstractmethod
    def mean_bps(self) -> float:
        """Long-run rate; for a contract, the largest it allows."""

    @property
    def under_contract(self) -> bool:
        """Whether `mean_bps` is only what a contract allows, and the flow may send less."""
        return False

    @property
    def peak_rate_bps(self) -> float:
        """The rate that no instant exceeds; infinite when whole packets arrive at once."""
        return math.inf

    @property
    def largest_packet_bits(self) -> float:
        """The largest packet; 0 for a fluid, infinite when sizes have no bound."""
        return 0.0

    @property
    def theta_pole(self) -> float:
        """Where the envelope stops being finite, in 1/bit."""
        return math.inf

    @property
    @abstractmethod
    def theta_scale(self) -> float:
        """A theta of the right order of magnitude, in 1/bit, from which searches start."""

    @abstractmethod
    def envelope_rate(self, theta: FloatArray) -> FloatArray:
        """rho(theta) in bits/s, same shape as theta."""

    def envelope_burst(self, theta: FloatArray) -> FloatArray:
        """sigma(theta) in bits, same shape as theta."""
        return np.zeros_like(theta)

    def theta_at_rate(self, rate_bps: float) -> float:
        """The largest theta with rho(theta) <= rate_bps; infinite when every theta has."""
        return largest_below(
            lambda theta: float(self.envelope_rate(np.asarray(theta))), rate_bps, self.theta_scale, self.theta_pole
        )

    def factor(self, theta: float) -> MarkovFactor:
        """The flow's part in the martingale of an aggregate, at theta.

        Raises:
            NotApplicableError: The flow is not modulated by a Markov chain.
        """
        del theta
        raise NotApplicableError(f"a {type(self).__name__} is not modulated by a Markov chain")

    def log_packet_factor(self, rate_bps: float) -> float:
        """Logarithm of how much more often packets see a backlog than time does, at a constant-rate server.

        Rate conservation for a FIFO queue drained at R: E[r 1{Q > q}] = R P_time(Q > q), hence R/mean for bits, and
        for packets weighted by size (docs/calculus.md, "Packets see bursts").
        """
        return math.log(rate_bps / self.mean_bps)

    def log_seen_factor(self) -> float:
        """Logarithm of how much more often packets see an event than time does, when the server is random.

        Nothing is conserved there, so it is the largest ratio of the rate to its mean: peak/mean.

        Raises:
            NotApplicableError: The rate has no largest value.
        """
        if math.isinf(self.peak_rate_bps):
            raise NotApplicableError(
                f"packets of a {type(self).__name__} can come at any rate, so a random server's bound per time "
                "says nothing per packet; ask per time"
            )
        return math.log(self.peak_rate_bps / self.mean_bps)

    @property
    def packet_view(self) -> tuple[str, ...]:
        """What the conversion of a bound per time into one per packet assumes."""
        return (SIZE_INDEPENDENT,)

    def queue_methods(self) -> Mapping[str, QueueMethod]:
        """Every theorem that bounds this flow's wait at a constant rate, by name."""
        return {"chernoff": self.chernoff}

    def chernoff(self, rate_bps: float, per: Per) -> QueueBound:
        """Chernoff's bound in continuous time with the discretisation step optimised out.

        `P(W > w) <= e^{theta sigma} R/(R - rho) (R/rho)^{rho/(R - rho)} e^{-theta R w}` for every theta with
        rho(theta) < R. The result does not depend on any unit (docs/calculus.md, "Chernoff").

        Raises:
            UnstableError: The mean rate reaches rate_bps.
        """
        require_stable(self.mean_bps, rate_bps)
        limit = self.theta_at_rate(rate_bps)
        if math.isinf(limit):
            return self.no_queue(rate_bps, per)
        extra = self.log_packet_factor(rate_bps) if per == "packet" else 0.0

        def member(theta: FloatArray) -> tuple[FloatArray, FloatArray]:
            rho = self.envelope_rate(theta)
            spare = rate_bps - rho
            with np.errstate(divide="ignore", invalid="ignore"):
                log_prefactor = np.log(rate_bps / spare) + np.log(rate_bps / rho) * (rho / spare)
                log_prefactor += theta * self.envelope_burst(theta) + extra
            return np.where(spare > 0.0, log_prefactor, np.inf), theta * rate_bps

        views = self.packet_view if per == "packet" else ()
        return QueueBound(TailFamily(member, limit), (STATIONARY, LIGHT_TAIL, *views))

    def sure_burst_bits(self, per: Per) -> float:
        """The most bits by which the flow can surely be ahead of its largest sustained rate.

        Args:
            per: For time, or as a packet of this flow finds it, itself excluded.

        Raises:
            NotApplicableError: Nothing is sure.
        """
        del per
        raise NotApplicableError(f"a {type(self).__name__} has no sure burst although its rate stays below the service")

    def no_queue(self, rate_bps: float, per: Per) -> QueueBound:
        """The bound of a flow whose sustained rate never exceeds the service rate: only its burst can wait."""
        assumption = "the flow's sustained rate never exceeds the service rate"
        return QueueBound(SureTail(self.sure_burst_bits(per) / rate_bps), (assumption,))
