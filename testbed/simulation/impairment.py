"""What a domain does to packets beyond its servers: random excess latency and random loss.

A domain's stall holds up everyone behind it, so excess latency keeps the order of a wave: a packet leaves at its own
time plus its excess, and not before the packet in front of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numba
import numpy as np
import numpy.typing as npt

from testbed.simulation.clock import NEVER, PS_PER_S
from testbed.simulation.fifo import Passed
from testbed.simulation.wave import TimeArray, Wave


class Draw(Protocol):
    """A law of non-negative values; calls in a row draw what one longer call would."""

    def __call__(self, rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
        """Draw n values."""


@dataclass(frozen=True)
class Constant:
    """Always the same value."""

    value: float

    def __call__(self, rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
        """Draw n values."""
        del rng
        return np.full(n, self.value)


@dataclass(frozen=True)
class Exponential:
    """Exponential values."""

    mean: float

    def __call__(self, rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
        """Draw n values."""
        return rng.standard_exponential(n) * self.mean


@dataclass(frozen=True)
class Lognormal:
    """Lognormal values of the given mean and coefficient of variation."""

    mean: float
    cv: float

    def __call__(self, rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
        """Draw n values."""
        variance = np.log1p(self.cv**2)
        return np.asarray(self.mean * np.exp(np.sqrt(variance) * rng.standard_normal(n) - variance / 2))


@dataclass(frozen=True)
class Measured:
    """Values drawn from a measured sample, with replacement."""

    values: tuple[float, ...]

    def __call__(self, rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
        """Draw n values."""
        sample = np.array(self.values)
        return sample[(rng.random(n) * sample.size).astype(np.int64)]


@dataclass(frozen=True)
class AtMost:
    """Values of another law, those above a limit replaced by it."""

    law: Draw
    most: float

    def __call__(self, rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
        """Draw n values."""
        return np.minimum(self.law(rng, n), self.most)


@dataclass(frozen=True)
class Excess:
    """Random excess latency.

    Attributes:
        share: Share of the packets that have any.
        seconds: How much those have.
    """

    share: float
    seconds: Draw

    @classmethod
    def exponential(cls, mean_s: float, share: float = 1.0) -> Excess:
        """Exponential excess; nobody has any where its mean is 0."""
        return cls(share if mean_s > 0 else 0.0, Exponential(mean_s))


class Delayer:
    """Adds a domain's random excess latency.

    Args:
        excess: Its law.
        seed: Of this domain in this window.
    """

    def __init__(self, excess: Excess, seed: np.random.SeedSequence) -> None:
        self._excess = excess
        hits, values = seed.spawn(2)
        self._hit = np.random.default_rng(hits)
        self._value = np.random.default_rng(values)
        self._last_ps = -NEVER

    def push(self, wave: Wave, horizon_ps: int) -> Passed:
        """Delay a wave."""
        del horizon_ps
        hit = np.flatnonzero(self._hit.random(len(wave)) < self._excess.share)
        extra = np.zeros(len(wave), np.int64)
        extra[hit] = np.rint(self._excess.seconds(self._value, hit.size) * PS_PER_S)
        self._last_ps = _in_order(wave.time_ps, extra, self._last_ps)
        return Passed(wave.at(extra), Wave.empty())


class Loser:
    """Loses packets independently of each other.

    Args:
        probability: Of losing a packet.
        seed: Of this domain in this window.
    """

    def __init__(self, probability: float, seed: np.random.SeedSequence) -> None:
        self._probability = probability
        self._rng = np.random.default_rng(seed)

    def push(self, wave: Wave, horizon_ps: int) -> Passed:
        """Lose some of a wave."""
        del horizon_ps
        kept = self._rng.random(len(wave)) >= self._probability
        return Passed(wave.where(kept), wave.where(~kept))


@numba.njit(cache=True)
def _in_order(time: TimeArray, extra: TimeArray, last: int) -> int:
    """Turns excess into departure times, in place."""
    for i in range(time.size):
        last = max(last, time[i] + extra[i])
        extra[i] = last
    return last
