"""Aggregates: independent flows, flows that depend on each other in any way, and flows that move as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from testbed.calculus.arrivals.base import LIGHT_TAIL, STATIONARY, Arrival, QueueMethod
from testbed.calculus.arrivals.onoff import INDEPENDENT_FLOWS
from testbed.calculus.arrivals.slotted import Slotted
from testbed.calculus.errors import CalculusError, NotApplicableError, require_stable
from testbed.calculus.martingale import log_prefactor_bit, log_prefactor_packet, log_prefactor_time
from testbed.calculus.numeric import FloatArray
from testbed.calculus.tails import ExponentialTail, Per, QueueBound, later

_NEWTON_STEPS = 12

COUNTED_BY_BITS = "packets are counted by their bits"


def _smallest(flow: Arrival, rate_bps: float) -> float:
    """The smallest known factor by which a flow's packets see more of a server shared with independent flows."""
    factors = [flow.log_packet_factor(rate_bps)]
    with suppress(NotApplicableError):
        factors.append(flow.log_seen_factor())
    return min(factors)


@dataclass(frozen=True)
class _Sum(Arrival):
    """What aggregates of several flows share.

    A probability per packet counts the packets of one flow, the observer, or the bits of all flows: packets of several
    sizes have no common count that a backlog would not bias.
    """

    flows: tuple[Arrival, ...]
    observer: int | None = None

    def __post_init__(self) -> None:
        if not self.flows:
            raise CalculusError("an aggregate has 0 flows; expected at least 1")
        if any(isinstance(flow, Slotted) for flow in self.flows):
            raise CalculusError("slotted flows add up by their own `flows`, not in an aggregate")
        if self.observer is not None and not 0 <= self.observer < len(self.flows):
            raise CalculusError(f"observer {self.observer} is not one of {len(self.flows)} flows")

    @property
    def mean_bps(self) -> float:
        return math.fsum(flow.mean_bps for flow in self.flows)

    @property
    def peak_rate_bps(self) -> float:
        return math.fsum(flow.peak_rate_bps for flow in self.flows)

    @property
    def largest_packet_bits(self) -> float:
        if self.observer is None:
            return max(flow.largest_packet_bits for flow in self.flows)
        return self.flows[self.observer].largest_packet_bits

    @property
    def theta_scale(self) -> float:
        return 1.0 / math.fsum(1.0 / flow.theta_scale for flow in self.flows)

    @property
    def under_contract(self) -> bool:
        return any(flow.under_contract for flow in self.flows)

    @property
    def packet_view(self) -> tuple[str, ...]:
        return (COUNTED_BY_BITS,) if self.observer is None else self.flows[self.observer].packet_view

    def sure_burst_bits(self, per: Per) -> float:
        return math.fsum(
            flow.sure_burst_bits(per if index == self.observer else "time") for index, flow in enumerate(self.flows)
        )


@dataclass(frozen=True)
class IndependentSum(_Sum):
    """Independent flows of any kinds.

    Attributes:
        flows: The flows.
        observer: Index of the flow whose packets are counted; None counts the bits of all.
    """

    @property
    def theta_pole(self) -> float:
        return min(flow.theta_pole for flow in self.flows)

    def envelope_rate(self, theta: FloatArray) -> FloatArray:
        return np.asarray(sum(flow.envelope_rate(theta) for flow in self.flows))

    def envelope_burst(self, theta: FloatArray) -> FloatArray:
        return np.asarray(sum(flow.envelope_burst(theta) for flow in self.flows))

    def log_packet_factor(self, rate_bps: float) -> float:
        if self.observer is not None:
            return _smallest(self.flows[self.observer], rate_bps)
        if self.under_contract:
            raise NotApplicableError("the mean of a contract is unknown; name an observer, or ask per time")
        return super().log_packet_factor(rate_bps)

    def log_seen_factor(self) -> float:
        if self.observer is not None:
            return self.flows[self.observer].log_seen_factor()
        return max(flow.log_seen_factor() for flow in self.flows)

    def queue_methods(self) -> Mapping[str, QueueMethod]:
        return {"martingale": self.martingale, "chernoff": self.chernoff}

    def chernoff(self, rate_bps: float, per: Per) -> QueueBound:
        found = super().chernoff(rate_bps, per)
        return QueueBound(found.tail, (*found.assumptions, INDEPENDENT_FLOWS))

    def martingale(self, rate_bps: float, per: Per) -> QueueBound:
        """The product of the flows' martingales at the common theta* with sum rho(theta*) = R.

        Raises:
            NotApplicableError: A flow is not modulated by a Markov chain.
            UnstableError: The mean rate reaches rate_bps.
        """
        require_stable(self.mean_bps, rate_bps)
        theta = self.theta_at_rate(rate_bps)
        if math.isinf(theta):
            raise NotApplicableError("the flows together never exceed the service rate; use chernoff")
        factors = [flow.factor(theta) for flow in self.flows]
        if per == "time":
            log_k = log_prefactor_time(factors, rate_bps)
        elif self.observer is not None:
            log_k = log_prefactor_packet(factors, rate_bps, self.observer)
        else:
            shares = np.array([factor.copies * factor.mean_bps for factor in factors])
            logs = [log_prefactor_bit(factors, rate_bps, index) for index in range(len(factors))]
            log_k = float(np.logaddexp.reduce(np.log(shares / shares.sum()) + logs))
        views = (COUNTED_BY_BITS,) if per == "packet" and self.observer is None else ()
        assumptions = (STATIONARY, LIGHT_TAIL, INDEPENDENT_FLOWS, "each flow is Markov modulated", *views)
        return QueueBound(ExponentialTail(log_k, theta * rate_bps), assumptions)


@dataclass(frozen=True)
class DependentSum(_Sum):
    """Flows that may depend on each other in any way, by Hoelder's inequality with the best exponents.

    `E e^{theta sum A_i} <= prod (E e^{p_i theta A_i})^{1/p_i}` with sum 1/p_i = 1: the rates rho_i(p_i theta) add up.
    The exponents minimise the sum of the rates, a convex problem in the weights 1/p_i; any weights are sound.

    Attributes:
        flows: The flows.
        observer: Index of the flow whose bits are counted; None counts the bits of all.
    """

    @property
    def theta_pole(self) -> float:
        return 1.0 / math.fsum(1.0 / flow.theta_pole for flow in self.flows) if self._has_pole else math.inf

    @property
    def _has_pole(self) -> bool:
        return any(math.isfinite(flow.theta_pole) for flow in self.flows)

    def envelope_rate(self, theta: FloatArray) -> FloatArray:
        theta = np.asarray(theta, dtype=np.float64)
        return self._total(theta, self.weights(theta), lambda flow, tilted: flow.envelope_rate(tilted))

    def envelope_burst(self, theta: FloatArray) -> FloatArray:
        theta = np.asarray(theta, dtype=np.float64)
        return self._total(theta, self.weights(theta), lambda flow, tilted: flow.envelope_burst(tilted))

    def _total(
        self, theta: FloatArray, weights: FloatArray, of: Callable[[Arrival, FloatArray], FloatArray]
    ) -> FloatArray:
        return np.asarray(sum(of(flow, theta / weights[..., i]) for i, flow in enumerate(self.flows)))

    @property
    def packet_view(self) -> tuple[str, ...]:
        return (COUNTED_BY_BITS,)

    def _counted(self) -> tuple[Arrival, ...]:
        counted = self.flows if self.observer is None else (self.flows[self.observer],)
        if any(flow.under_contract for flow in counted):
            raise NotApplicableError("how often packets under a contract see a dependent flow is unknown; ask per time")
        return counted

    def log_packet_factor(self, rate_bps: float) -> float:
        # Rate conservation holds path by path, so no dependence can break it.
        counted = self._counted()
        peak = math.fsum(flow.peak_rate_bps for flow in counted)
        return math.log(min(peak, rate_bps) / math.fsum(flow.mean_bps for flow in counted))

    def log_seen_factor(self) -> float:
        counted = self._counted()
        if any(flow.largest_packet_bits > 0.0 for flow in counted):
            raise NotApplicableError("a dependent flow can time its bursts to whole packets; ask per time")
        return max(flow.log_seen_factor() for flow in counted)

    def weights(self, theta: FloatArray) -> FloatArray:
        """The reciprocal exponents 1/p_i, shape (..., flows), each row adding up to 1.

        Newton's method on the simplex. The objective is separable, so each step is a division; rho_i(theta/w) is
        convex in w because w Lambda_i(theta/w) is the perspective of a convex function.
        """
        theta = np.asarray(theta, dtype=np.float64)
        count = len(self.flows)
        least = theta[..., None] * np.array([1.0 / flow.theta_pole for flow in self.flows])
        weights = least + (1.0 - least.sum(axis=-1, keepdims=True)) / count
        if all(flow == self.flows[0] for flow in self.flows):
            return np.asarray(weights)
        for _ in range(_NEWTON_STEPS):
            step = 1e-4 * (weights - least)
            at, above, below = (
                np.stack([f.envelope_rate(theta / w[..., i]) for i, f in enumerate(self.flows)], axis=-1)
                for w in (weights, weights + step, weights - step)
            )
            slope = (above - below) / (2.0 * step)
            bend = np.maximum((above - 2.0 * at + below) / (step * step), 1e-9 * np.abs(slope) / weights)
            bend = np.maximum(bend, 1e-300)
            balance = (slope / bend).sum(axis=-1, keepdims=True) / (1.0 / bend).sum(axis=-1, keepdims=True)
            move = (balance - slope) / bend
            with np.errstate(divide="ignore", invalid="ignore"):
                room = np.where(move < 0.0, 0.8 * (weights - least) / -move, np.inf).min(axis=-1, keepdims=True)
            weights = weights + np.minimum(room, 1.0) * move
            if np.all(np.abs(move) <= 1e-6 * weights):
                break
        return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


@dataclass(frozen=True)
class Copies(Arrival):
    """Several flows that send the same at the same time: one flow, magnified.

    Attributes:
        flow: One of them.
        count: How many.
    """

    flow: Arrival
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise CalculusError(f"an aggregate has {self.count} flows; expected at least 1")

    @property
    def mean_bps(self) -> float:
        return self.count * self.flow.mean_bps

    @property
    def peak_rate_bps(self) -> float:
        return self.count * self.flow.peak_rate_bps

    @property
    def largest_packet_bits(self) -> float:
        return self.flow.largest_packet_bits

    @property
    def theta_pole(self) -> float:
        return self.flow.theta_pole / self.count

    @property
    def theta_scale(self) -> float:
        return self.flow.theta_scale / self.count

    def envelope_rate(self, theta: FloatArray) -> FloatArray:
        return self.count * self.flow.envelope_rate(self.count * theta)

    def envelope_burst(self, theta: FloatArray) -> FloatArray:
        return self.count * self.flow.envelope_burst(self.count * theta)

    @property
    def under_contract(self) -> bool:
        return self.flow.under_contract

    def sure_burst_bits(self, per: Per) -> float:
        ahead = self.flow.largest_packet_bits * (self.count - 1) if per == "packet" else 0.0
        return self.count * self.flow.sure_burst_bits(per) + ahead

    def log_packet_factor(self, rate_bps: float) -> float:
        if self.under_contract:
            raise NotApplicableError("how often copies under a contract see each other is unknown; ask per time")
        return super().log_packet_factor(rate_bps)

    def log_seen_factor(self) -> float:
        if self.largest_packet_bits > 0.0:
            raise NotApplicableError("copies of a packet wait for each other; ask per time")
        return self.flow.log_seen_factor()

    def queue_methods(self) -> Mapping[str, QueueMethod]:
        return {name: self._magnified(method) for name, method in self.flow.queue_methods().items()}

    def _magnified(self, method: QueueMethod) -> QueueMethod:
        def bound(rate_bps: float, per: Per) -> QueueBound:
            # n flows as one at rate R wait as one of them at R/n; of n packets sent together, n - 1 may go first.
            found = method(rate_bps / self.count, per)
            if per == "time":
                return found
            largest = self.flow.largest_packet_bits
            if math.isfinite(largest):
                return QueueBound(later(found.tail, (self.count - 1) * largest / rate_bps), found.assumptions)
            if found.sojourn is None:
                raise NotApplicableError("packet sizes have no bound, and copies of a packet wait for each other")
            return QueueBound(found.sojourn, found.assumptions)

        return bound
