"""A system with a bound to check, and how that bound compares with what a simulation of the system sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from testbed.calculus import delay_bound

BATCHES = 64
FALSE_ALARM = 1e-6
LONG = 50.0

Simulate = Callable[[float], np.ndarray]


@dataclass(frozen=True)
class System:
    """One random system.

    `late(bound_s)` simulates it once and returns the fraction that is later than the bound in each batch.
    `span_s` is how long the simulation is, in the system's own time.
    """

    kind: str
    arrival: object
    servers: list
    epsilon: float
    late: Simulate
    scenario: str
    span_s: float
    per: str = "packet"
    exact: bool = False


@dataclass(frozen=True)
class Verdict:
    """How a bound compares with the simulation: t is the distance from epsilon in standard errors of a batch mean."""

    system: System
    bound_s: float
    method: str
    fraction: float
    t: float

    @property
    def critical(self) -> float:
        return float(student.isf(FALSE_ALARM, BATCHES - 1))

    @property
    def broken(self) -> bool:
        return self.t > self.critical

    @property
    def two_sided(self) -> bool:
        """Whether the form is exact and each batch is so long that its share of late packets is no matter of luck."""
        return self.system.exact and self.system.span_s >= LONG * BATCHES * self.bound_s

    @property
    def loose(self) -> bool:
        """Whether an exact form lies above the truth."""
        return self.two_sided and self.t < -self.critical

    def __str__(self) -> str:
        return (
            f"{self.system.kind}: {self.method} promises that at most {self.system.epsilon:g} exceed "
            f"{self.bound_s:.6g} s, simulated {self.fraction:.4g} "
            f"(t = {self.t:.1f}, critical {self.critical:.1f})\n{self.system.scenario}"
        )


def judge(system: System, scale: float = 1.0) -> Verdict:
    """Compare the bound, times a scale that a test may set to see the oracle fail, with the simulation."""
    bound = delay_bound(system.arrival, system.servers, system.epsilon, system.per)
    late = system.late(scale * bound.delay_s)
    error = late.std(ddof=1) / math.sqrt(len(late))
    skew = ((late - late.mean()) ** 3).mean() / late.var(ddof=1) if error > 0.0 else 0.0
    # Johnson's correction keeps the lower side honest for skewed counts; it is small where there are many.
    shifted = (
        late.mean()
        - system.epsilon
        + max(0.0, skew) / (6.0 * len(late)) * (system.exact and late.mean() < system.epsilon)
    )
    t = shifted / error if error > 0.0 else (-math.inf if late.mean() <= system.epsilon else math.inf)
    return Verdict(system, bound.delay_s, bound.method, float(late.mean()), float(t))


def by_batch(late: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """Fractions late in consecutive batches, each weighted as its share of the counted packets."""
    counted = np.ones(len(late)) if counted is None else counted
    edges = np.linspace(0, len(late), BATCHES + 1).astype(np.int64)
    misses = np.add.reduceat(late * counted, edges[:-1])
    return misses / (counted.sum() / BATCHES)
