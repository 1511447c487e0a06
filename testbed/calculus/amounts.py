"""Distributions of non-negative amounts: bits in a packet, seconds between packets, work in a request.

A distribution is known here through its transform only, which is all a bound needs. Not a sampler: the simulators have
their own, so that an error here cannot hide in both.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import logsumexp

from testbed.calculus.errors import CalculusError, require_positive
from testbed.calculus.numeric import FloatArray


class Amount(ABC):
    """A non-negative random amount with a finite mean."""

    @property
    @abstractmethod
    def mean(self) -> float:
        """Mean amount."""

    @property
    @abstractmethod
    def largest(self) -> float:
        """The largest possible amount; infinite when there is none."""

    @property
    def pole(self) -> float:
        """Where the moment generating function stops being finite."""
        return math.inf

    @abstractmethod
    def log_mgf(self, theta: FloatArray | float) -> FloatArray:
        """Logarithm of E exp(theta X); theta of either sign and any shape, below `pole`."""

    @abstractmethod
    def tilted_mean(self, theta: float) -> float:
        """E[X exp(theta X)] / E exp(theta X): the derivative of `log_mgf`."""

    def excess_factor(self, theta: float) -> float:
        """An upper bound on 1 / inf over x of E[exp(theta (X - x)) | X > x], at most 1.

        The overshoot of a level by a jump; it sharpens Lundberg's inequality (Ross 1974).
        """
        del theta
        return 1.0


@dataclass(frozen=True, slots=True)
class Constant(Amount):
    """Always the same amount."""

    value: float

    def __post_init__(self) -> None:
        require_positive("constant amount", self.value)

    @property
    def mean(self) -> float:
        return self.value

    @property
    def largest(self) -> float:
        return self.value

    def log_mgf(self, theta: FloatArray | float) -> FloatArray:
        return np.asarray(theta, dtype=np.float64) * self.value

    def tilted_mean(self, theta: float) -> float:
        del theta
        return self.value


@dataclass(frozen=True, slots=True)
class Gamma(Amount):
    """Gamma distributed; shape 1 is exponential, an integer shape is Erlang."""

    mean_value: float
    shape: float

    def __post_init__(self) -> None:
        require_positive("mean of a gamma amount", self.mean_value)
        require_positive("shape of a gamma amount", self.shape)

    @property
    def mean(self) -> float:
        return self.mean_value

    @property
    def largest(self) -> float:
        return math.inf

    @property
    def pole(self) -> float:
        return self.shape / self.mean_value

    def log_mgf(self, theta: FloatArray | float) -> FloatArray:
        argument = -np.asarray(theta, dtype=np.float64) / self.pole
        with np.errstate(invalid="ignore", divide="ignore"):
            value = -self.shape * np.log1p(argument)
        return np.where(argument > -1.0, value, np.inf)

    def tilted_mean(self, theta: float) -> float:
        return self.mean_value / (1.0 - theta / self.pole)

    def excess_factor(self, theta: float) -> float:
        # Increasing failure rate (shape >= 1): the overshoot is smallest far out, where it is exponential with the
        # rate of the pole. Decreasing failure rate: it is smallest at the start, where it is the amount itself.
        if self.shape >= 1.0:
            return 1.0 - theta / self.pole
        return math.exp(-float(self.log_mgf(theta)))


def exponential(mean: float) -> Gamma:
    """An exponential amount of the given mean."""
    return Gamma(mean, 1.0)


@dataclass(frozen=True)
class Empirical(Amount):
    """Finitely many values with their probabilities, such as the sizes seen in a trace."""

    values: tuple[float, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.values or min(self.values) < 0.0 or max(self.values) <= 0.0:
            raise CalculusError("an empirical amount needs values of at least 0, one of them above 0")
        if self.weights and (len(self.weights) != len(self.values) or min(self.weights) <= 0.0):
            raise CalculusError(f"{len(self.values)} values need as many weights above 0, found {len(self.weights)}")

    @classmethod
    def of(cls, samples: Sequence[float] | FloatArray) -> Empirical:
        """Collapse samples into distinct values with their frequencies."""
        values, counts = np.unique(np.asarray(samples, dtype=np.float64), return_counts=True)
        return cls(tuple(values.tolist()), tuple((counts / counts.sum()).tolist()))

    @cached_property
    def _table(self) -> tuple[FloatArray, FloatArray]:
        values = np.asarray(self.values, dtype=np.float64)
        weights = np.asarray(self.weights, dtype=np.float64) if self.weights else np.ones_like(values)
        return values, weights / weights.sum()

    @property
    def mean(self) -> float:
        values, weights = self._table
        return float(values @ weights)

    @property
    def largest(self) -> float:
        return max(self.values)

    def log_mgf(self, theta: FloatArray | float) -> FloatArray:
        values, weights = self._table
        exponent = np.asarray(theta, dtype=np.float64)[..., None] * values
        return np.asarray(logsumexp(exponent, axis=-1, b=weights), dtype=np.float64)

    def tilted_mean(self, theta: float) -> float:
        values, weights = self._table
        return float(values @ (weights * np.exp(theta * values - float(self.log_mgf(theta)))))


@dataclass(frozen=True, slots=True)
class PoissonCount(Amount):
    """A Poisson number of units of equal size.

    Attributes:
        mean_count: Mean number of units.
        unit: Size of one.
    """

    mean_count: float
    unit: float = 1.0

    def __post_init__(self) -> None:
        require_positive("mean of a Poisson count", self.mean_count)
        require_positive("unit of a Poisson count", self.unit)

    @property
    def mean(self) -> float:
        return self.mean_count * self.unit

    @property
    def largest(self) -> float:
        return math.inf

    def log_mgf(self, theta: FloatArray | float) -> FloatArray:
        with np.errstate(over="ignore"):
            return self.mean_count * np.expm1(np.asarray(theta, dtype=np.float64) * self.unit)

    def tilted_mean(self, theta: float) -> float:
        return self.mean * math.exp(theta * self.unit)


def as_amount(value: float | Amount) -> Amount:
    """A plain number means a constant amount."""
    return value if isinstance(value, Amount) else Constant(float(value))
