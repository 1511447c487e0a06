"""Bounds on the distribution of a delay, in the three shapes that theorems give them.

An exponential, a family of exponentials of which every member holds (Chernoff: take the best), or a delay that is never
exceeded. Pure data with two questions: the probability beyond a delay, and the delay for a probability.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from testbed.calculus.numeric import FloatArray, minimum

Per: TypeAlias = Literal["packet", "time"]


@dataclass(frozen=True, slots=True)
class SureTail:
    """The delay never exceeds `limit_s`."""

    limit_s: float

    def log_probability(self, delay_s: FloatArray | float) -> FloatArray:
        """Logarithm of the bound on P(W > delay_s): 0 below the limit, minus infinity from it on."""
        return np.where(np.asarray(delay_s) >= self.limit_s, -np.inf, 0.0)

    def delay(self, epsilon: FloatArray | float) -> FloatArray:
        """The limit, whatever epsilon."""
        return np.full(np.shape(epsilon), self.limit_s)


@dataclass(frozen=True, slots=True)
class ExponentialTail:
    """P(W > w) <= exp(log_prefactor - decay_per_s w)."""

    log_prefactor: float
    decay_per_s: float

    def log_probability(self, delay_s: FloatArray | float) -> FloatArray:
        """Logarithm of the bound on P(W > delay_s), at most 0."""
        return np.minimum(0.0, self.log_prefactor - self.decay_per_s * np.asarray(delay_s, dtype=np.float64))

    def delay(self, epsilon: FloatArray | float) -> FloatArray:
        """The delay exceeded with probability at most epsilon."""
        return np.maximum(0.0, (self.log_prefactor - np.log(epsilon)) / self.decay_per_s)


@dataclass(frozen=True, slots=True)
class TailFamily:
    """P(W > w) <= exp(log_prefactor(theta) - decay(theta) w) for every theta below a limit.

    Attributes:
        member: Maps an array of thetas to the log-prefactors and the decays (1/s) of that shape.
        theta_limit: Exclusive upper end of theta.
    """

    member: Callable[[FloatArray], tuple[FloatArray, FloatArray]]
    theta_limit: float

    def at(self, theta: float) -> ExponentialTail:
        """The member of one theta."""
        log_prefactor, decay = self.member(np.asarray(theta, dtype=np.float64))
        return ExponentialTail(float(log_prefactor), float(decay))

    def log_probability(self, delay_s: FloatArray | float) -> FloatArray:
        """Logarithm of the best member's bound on P(W > delay_s), at most 0."""
        delay = np.asarray(delay_s, dtype=np.float64)

        def value(theta: FloatArray) -> FloatArray:
            log_prefactor, decay = self.member(theta)
            return log_prefactor - decay * delay[..., None]

        theta = minimum(value, np.zeros_like(delay), np.full_like(delay, self.theta_limit))
        return np.minimum(0.0, value(theta[..., None])[..., 0])

    def delay(self, epsilon: FloatArray | float) -> FloatArray:
        """The delay that the best member gives for epsilon."""
        log_prefactor, decay = self.member(self.theta(epsilon))
        return np.maximum(0.0, (log_prefactor - np.log(epsilon)) / decay)

    def theta(self, epsilon: FloatArray | float) -> FloatArray:
        """The theta of that member, shape of epsilon."""
        log_epsilon = np.log(np.asarray(epsilon, dtype=np.float64))

        def value(theta: FloatArray) -> FloatArray:
            log_prefactor, decay = self.member(theta)
            return (log_prefactor - log_epsilon[..., None]) / decay

        return minimum(value, np.zeros_like(log_epsilon), np.full_like(log_epsilon, self.theta_limit))


Tail: TypeAlias = SureTail | ExponentialTail | TailFamily


def more_likely(tail: Tail, log_factor: float) -> Tail:
    """The tail with every probability multiplied by exp(log_factor)."""
    match tail:
        case SureTail():
            return tail
        case ExponentialTail(log_prefactor, decay):
            return ExponentialTail(log_prefactor + log_factor, decay)
        case TailFamily(member, limit):

            def shifted(theta: FloatArray) -> tuple[FloatArray, FloatArray]:
                log_prefactor, decay = member(theta)
                return log_prefactor + log_factor, decay

            return TailFamily(shifted, limit)


def later(tail: Tail, seconds: float) -> Tail:
    """The tail of the same delay with a constant added."""
    match tail:
        case SureTail(limit):
            return SureTail(limit + seconds)
        case ExponentialTail(log_prefactor, decay):
            return ExponentialTail(log_prefactor + decay * seconds, decay)
        case TailFamily(member, limit):

            def shifted(theta: FloatArray) -> tuple[FloatArray, FloatArray]:
                log_prefactor, decay = member(theta)
                return log_prefactor + decay * seconds, decay

            return TailFamily(shifted, limit)


@dataclass(frozen=True, slots=True)
class QueueBound:
    """One theorem applied to one flow at one rate: how long a packet waits, itself excluded.

    Attributes:
        tail: Bound on the distribution of the wait.
        assumptions: What the theorem needs, each a short clause.
        exact: Whether the tail is the distribution itself and not only a bound.
        sojourn: The same with the packet's own transmission at the same rate added, where sizes have no bound.
    """

    tail: Tail
    assumptions: tuple[str, ...]
    exact: bool = False
    sojourn: Tail | None = None
