"""Flows in slotted time: independent increments, and on-off flows that switch at slot boundaries.

What arrives in a slot can be served in that slot; a delay of w slots means that the slot's last bit leaves at the end
of the w-th slot after its own. "Per time" counts slots, "per packet" bits, each with its slot's last bit. Most of the
literature, and every reference value of the MGF toolbox, is in this model; a real network is not.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from testbed.calculus.amounts import Amount, Gamma, as_amount
from testbed.calculus.arrivals.base import LIGHT_TAIL, SIZE_INDEPENDENT, STATIONARY, Arrival, QueueMethod
from testbed.calculus.arrivals.onoff import MARKOV_ON_OFF
from testbed.calculus.errors import (
    CalculusError,
    NotApplicableError,
    require_positive,
    require_probability,
    require_stable,
)
from testbed.calculus.numeric import FloatArray
from testbed.calculus.tails import ExponentialTail, Per, QueueBound, SureTail, TailFamily

SLOTTED = "traffic arrives in slots, whole slots at a time"


class Slotted(Arrival):
    """A flow in slotted time.

    `E exp(theta A(u slots)) <= exp(theta (rho u slot + sigma))` for u >= 1 holds with `first_slot_burst`, which may be
    negative; `envelope_burst` is never negative and holds for u = 0 too.
    """

    slot_s: float

    @abstractmethod
    def first_slot_burst(self, theta: FloatArray) -> FloatArray:
        """Sigma in bits for intervals of at least one slot."""

    def envelope_burst(self, theta: FloatArray) -> FloatArray:
        return np.maximum(self.first_slot_burst(theta), 0.0)

    def no_queue(self, rate_bps: float, per: Per) -> QueueBound:
        """At the end of a slot nothing is left of it."""
        del rate_bps, per
        return QueueBound(SureTail(0.0), ("no slot brings more than the service takes away",))

    def chernoff(self, rate_bps: float, per: Per) -> QueueBound:
        """The sum over slots, from the first: `e^{theta sigma}/(e^{theta (R - rho) slot} - 1) e^{-theta R w}`.

        Raises:
            UnstableError: The mean rate reaches rate_bps.
        """
        require_stable(self.mean_bps, rate_bps)
        limit = self.theta_at_rate(rate_bps)
        if math.isinf(limit):
            return self.no_queue(rate_bps, per)
        extra = self.log_packet_factor(rate_bps) if per == "packet" else 0.0

        def member(theta: FloatArray) -> tuple[FloatArray, FloatArray]:
            spare = np.maximum(rate_bps - self.envelope_rate(theta), 0.0)
            with np.errstate(divide="ignore", over="ignore"):
                log_prefactor = theta * self.first_slot_burst(theta) - np.log(np.expm1(theta * spare * self.slot_s))
            return np.where(spare > 0.0, log_prefactor + extra, np.inf), theta * rate_bps

        views = (SIZE_INDEPENDENT,) if per == "packet" else ()
        return QueueBound(TailFamily(member, limit), (STATIONARY, LIGHT_TAIL, SLOTTED, *views))


@dataclass(frozen=True)
class IndependentIncrements(Slotted):
    """Independent, identically distributed amounts in every slot, of one or several independent flows.

    Attributes:
        slot_s: Length of a slot.
        amount: Bits of one flow in one slot: a number or a distribution.
        flows: How many independent flows.
    """

    slot_s: float
    amount: float | Amount
    flows: int = 1

    def __post_init__(self) -> None:
        require_positive("slot", self.slot_s)
        if self.flows < 1:
            raise CalculusError(f"an aggregate has {self.flows} flows; expected at least 1")

    @cached_property
    def increment(self) -> Amount:
        """The amount as a distribution."""
        return as_amount(self.amount)

    @property
    def mean_bps(self) -> float:
        return self.flows * self.increment.mean / self.slot_s

    @property
    def peak_rate_bps(self) -> float:
        return self.flows * self.increment.largest / self.slot_s

    @property
    def theta_pole(self) -> float:
        return self.increment.pole

    @property
    def theta_scale(self) -> float:
        return 1.0 / self.increment.mean

    def theta_at_rate(self, rate_bps: float) -> float:
        return math.inf if self.peak_rate_bps <= rate_bps else super().theta_at_rate(rate_bps)

    def envelope_rate(self, theta: FloatArray) -> FloatArray:
        return self.flows * self.increment.log_mgf(theta) / (theta * self.slot_s)

    def first_slot_burst(self, theta: FloatArray) -> FloatArray:
        return np.zeros_like(theta)

    def log_packet_factor(self, rate_bps: float) -> float:
        del rate_bps
        if math.isinf(self.peak_rate_bps):
            raise NotApplicableError("a slot has no largest amount; per packet use lundberg")
        return math.log(self.peak_rate_bps / self.mean_bps)

    def queue_methods(self) -> Mapping[str, QueueMethod]:
        return {"lundberg": self.lundberg, "chernoff": self.chernoff}

    def lundberg(self, rate_bps: float, per: Per) -> QueueBound:
        """Lundberg's inequality for a random walk: `P(Q >= q) <= C e^{-theta* q}` with rho(theta*) = R.

        Q is the backlog at the end of a slot. For one flow of exponential amounts the bound per slot is the
        distribution itself (D/M/1).

        Raises:
            UnstableError: The mean rate reaches rate_bps.
        """
        require_stable(self.mean_bps, rate_bps)
        theta = self.theta_at_rate(rate_bps)
        if math.isinf(theta):
            return self.no_queue(rate_bps, per)
        if per == "packet":
            # A bit sees its own slot size-biased, on top of what the slots before have left.
            log_k = math.log(self.increment.tilted_mean(theta) / self.increment.mean)
            return QueueBound(ExponentialTail(log_k, theta * rate_bps), (STATIONARY, LIGHT_TAIL, SLOTTED))
        log_k = math.log(self.increment.excess_factor(theta)) if self.flows == 1 else 0.0
        exact = self.flows == 1 and isinstance(self.increment, Gamma) and self.increment.shape == 1.0
        return QueueBound(ExponentialTail(log_k, theta * rate_bps), (STATIONARY, LIGHT_TAIL, SLOTTED), exact)


@dataclass(frozen=True)
class SlottedOnOff(Slotted):
    """One or several independent on-off flows that may switch at every slot boundary.

    Attributes:
        slot_s: Length of a slot.
        peak_bits: Bits of one flow in a slot while on.
        stay_on: Probability that a flow that is on stays on.
        stay_off: Probability that a flow that is off stays off.
        flows: How many independent flows.
    """

    slot_s: float
    peak_bits: float
    stay_on: float
    stay_off: float
    flows: int = 1

    def __post_init__(self) -> None:
        require_positive("slot", self.slot_s)
        require_positive("bits in a slot", self.peak_bits)
        require_probability("probability to stay on", self.stay_on)
        require_probability("probability to stay off", self.stay_off)
        if self.flows < 1:
            raise CalculusError(f"an on-off aggregate has {self.flows} flows; expected at least 1")

    @property
    def on_fraction(self) -> float:
        """Probability of being on."""
        return (1.0 - self.stay_off) / (2.0 - self.stay_on - self.stay_off)

    @property
    def mean_bps(self) -> float:
        return self.flows * self.peak_bits * self.on_fraction / self.slot_s

    @property
    def peak_rate_bps(self) -> float:
        return self.flows * self.peak_bits / self.slot_s

    @property
    def theta_scale(self) -> float:
        return 1.0 / self.peak_bits

    def log_growth(self, theta: FloatArray) -> FloatArray:
        """Ln of the spectral radius of one flow's tilted transition matrix."""
        x = theta * self.peak_bits
        # Scaled by e^{-x} so that nothing overflows: trace and determinant of [[q e^-x, 1 - q], [(1 - p) e^-x, p]].
        shrink = np.exp(-x)
        trace = self.stay_on + self.stay_off * shrink
        determinant = (self.stay_on + self.stay_off - 1.0) * shrink
        return np.asarray(x + np.log(0.5 * (trace + np.sqrt(trace * trace - 4.0 * determinant))))

    def envelope_rate(self, theta: FloatArray) -> FloatArray:
        return self.flows * self.log_growth(theta) / (theta * self.slot_s)

    def first_slot_burst(self, theta: FloatArray) -> FloatArray:
        # E e^{theta A(u)} <= E e^{theta a_1} lambda^{u-1}: the tilted operator is self-adjoint with norm lambda.
        x = theta * self.peak_bits
        log_first = x + np.log(self.on_fraction + (1.0 - self.on_fraction) * np.exp(-x))
        return self.flows * (log_first - self.log_growth(theta)) / theta

    def log_packet_factor(self, rate_bps: float) -> float:
        del rate_bps  # A bit sees the delay of its slot's last bit: at most peak/mean as often as a slot does.
        return math.log(self.peak_rate_bps / self.mean_bps)

    def theta_at_rate(self, rate_bps: float) -> float:
        return math.inf if self.peak_rate_bps <= rate_bps else super().theta_at_rate(rate_bps)

    def queue_methods(self) -> Mapping[str, QueueMethod]:
        return {"martingale": self.martingale, "chernoff": self.chernoff}

    def martingale(self, rate_bps: float, per: Per) -> QueueBound:
        """The exponential martingale in slotted time (docs/calculus.md, "Slotted on-off flows").

        Raises:
            UnstableError: The mean rate reaches rate_bps.
        """
        require_stable(self.mean_bps, rate_bps)
        theta = self.theta_at_rate(rate_bps)
        if math.isinf(theta):
            return self.no_queue(rate_bps, per)
        log_growth = float(self.log_growth(np.asarray(theta)))
        up = theta * self.peak_bits
        log_off = math.log1p(-self.stay_off) + up
        log_on = log_growth + math.log1p(-self.stay_off * math.exp(-log_growth))
        level = rate_bps * self.slot_s / self.peak_bits
        nearest = round(level)
        fewest_on = (nearest if abs(level - nearest) <= 1e-9 * nearest else math.floor(level)) + 1
        if log_on < log_off:
            fewest_on = self.flows
        crossing = fewest_on * log_on + (self.flows - fewest_on) * log_off
        log_mean = float(np.logaddexp(math.log(self.on_fraction) + log_on, math.log1p(-self.on_fraction) + log_off))
        if per == "packet":
            log_k = (self.flows - 1) * log_mean + log_on + up - log_growth - crossing
        else:
            log_k = self.flows * log_mean - crossing
        return QueueBound(ExponentialTail(log_k, theta * rate_bps), (STATIONARY, MARKOV_ON_OFF, SLOTTED))
