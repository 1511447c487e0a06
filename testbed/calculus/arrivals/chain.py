"""Finite Markov chains in continuous time: stationary law, reversal, and the growth of a tilted chain.

The tilted generator of a Markov-modulated flow is `M(theta) = Q + diag(d(theta))`; its largest eigenvalue is the growth
rate of `E exp(theta A(t))` and its positive eigenvectors give the constants. Nothing here knows what the states send.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from testbed.calculus.errors import CalculusError
from testbed.calculus.numeric import FloatArray

_REVERSIBLE_WITHIN = 1e-10
_ROUNDING_SHOWS_BELOW = 1e-6
_SWEEPS = 6


@dataclass(frozen=True)
class Chain:
    """An irreducible continuous-time Markov chain.

    Attributes:
        generator: Row per state: transition rates in 1/s off the diagonal; the diagonal is filled in.
    """

    generator: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        size = len(self.generator)
        if size == 0 or any(len(row) != size for row in self.generator):
            raise CalculusError(f"a generator must be square; found rows of {[len(row) for row in self.generator]}")
        rates = self.rates
        if not np.all(np.isfinite(rates)) or np.any(rates < 0.0):
            raise CalculusError("transition rates off the diagonal must be finite and at least 0")
        reach = np.linalg.matrix_power(np.eye(size) + (rates > 0.0), size)
        if not np.all(reach > 0.0):
            raise CalculusError("the chain is not irreducible: some state cannot be reached from some other")

    @cached_property
    def rates(self) -> FloatArray:
        """Transition rates with a zero diagonal, shape (states, states)."""
        table = np.array(self.generator, dtype=np.float64)
        np.fill_diagonal(table, 0.0)
        return table

    @cached_property
    def matrix(self) -> FloatArray:
        """The generator: rows add up to zero."""
        return self.rates - np.diag(self.rates.sum(axis=1))

    @cached_property
    def stationary(self) -> FloatArray:
        """Stationary probabilities, by the subtraction-free elimination of Grassmann, Taksar and Heyman (1985)."""
        table = self.rates.copy()
        size = len(table)
        for last in range(size - 1, 0, -1):
            table[:last, last] /= table[last, :last].sum()
            table[:last, :last] += np.outer(table[:last, last], table[last, :last])
        weights = np.ones(size)
        for state in range(1, size):
            weights[state] = weights[:state] @ table[:state, state]
        return np.asarray(weights / weights.sum())

    @cached_property
    def reversed_matrix(self) -> FloatArray:
        """Generator of the chain run backwards in time: diag(pi)^-1 Q^T diag(pi)."""
        weights = self.stationary
        return np.asarray(self.matrix.T * weights[None, :] / weights[:, None])

    @cached_property
    def reversible(self) -> bool:
        """Whether the chain run backwards is the same chain."""
        scale = np.abs(np.diag(self.matrix)).max()
        return bool(np.all(np.abs(self.reversed_matrix - self.matrix) <= _REVERSIBLE_WITHIN * scale))

    def growth(self, tilt: FloatArray) -> FloatArray:
        """Largest eigenvalue of Q + diag(tilt).

        Args:
            tilt: In 1/s, shape (..., states).

        Returns:
            In 1/s, shape (...).
        """
        if self.reversible:
            return np.asarray(np.linalg.eigvalsh(self._symmetric + _diagonals(tilt))[..., -1])
        return np.asarray(np.linalg.eigvals(self.matrix + _diagonals(tilt)).real.max(axis=-1))

    def log_start_cost(self, tilt: FloatArray) -> FloatArray:
        """The smallest known c with `E exp(integral of tilt) <= exp(c + growth t)` from a stationary start.

        0 for a reversible chain, whose tilted generator is self-adjoint. Otherwise the better of the bounds by the
        right eigenvector v, ln(pi.v / min v), and by the left one u, ln(max(pi / u) u.1).

        Args:
            tilt: In 1/s, shape (..., states).

        Returns:
            Shape (...), at least 0.
        """
        if self.reversible:
            return np.zeros(np.shape(tilt)[:-1])
        weights = self.stationary
        tilted = self.matrix + _diagonals(tilt)
        right = perron(tilted)
        left = perron(np.swapaxes(tilted, -1, -2))
        by_right = np.log(right @ weights / right.min(axis=-1))
        by_left = np.log((weights / left).max(axis=-1) * left.sum(axis=-1))
        return np.asarray(np.maximum(np.minimum(by_right, by_left), 0.0))

    @cached_property
    def _symmetric(self) -> FloatArray:
        root = np.sqrt(self.stationary)
        table = self.matrix * root[:, None] / root[None, :]
        return np.asarray(0.5 * (table + table.T))


def perron(matrix: FloatArray) -> FloatArray:
    """The positive right eigenvector of the largest eigenvalue, largest entry 1.

    Args:
        matrix: Non-negative off the diagonal and irreducible, shape (..., n, n).

    Returns:
        Shape (..., n).
    """
    values, vectors = np.linalg.eig(matrix)
    largest = np.argmax(values.real, axis=-1)
    vector = np.abs(np.take_along_axis(vectors.real, largest[..., None, None], axis=-1)[..., 0])
    vector = vector / vector.max(axis=-1, keepdims=True)
    small = vector < _ROUNDING_SHOWS_BELOW
    if not small.any():
        return np.asarray(vector)
    # Small entries carry the rounding of the large ones. Their own equations, which subtract nothing, restore the
    # digits, and a bound divides by them: an entry that is noise could make it too small.
    own = np.diagonal(matrix, axis1=-2, axis2=-1)
    others = matrix * (1.0 - np.eye(matrix.shape[-1]))
    room = np.take_along_axis(values.real, largest[..., None], axis=-1) - own
    for _ in range(_SWEEPS * matrix.shape[-1]):
        swept = (others @ vector[..., None])[..., 0] / np.where(small, room, 1.0)
        vector = np.where(small, swept, vector)
    return np.asarray(vector)


def _diagonals(values: FloatArray) -> FloatArray:
    """Diagonal matrices of the vectors on the last axis."""
    return np.asarray(values[..., None] * np.eye(np.shape(values)[-1]))
