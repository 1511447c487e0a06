"""Laws of times on a grid, for bounds: each value as the next larger point of it, so that nothing is underrated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_STEPS = np.geomspace(0.02, 1.0, 80)
"""The grid, in parts of the largest value: 5 % from one to the next."""


@dataclass(frozen=True)
class Law:
    """A law of non-negative values.

    Attributes:
        atoms: Values, and the probability of each; together 1.
    """

    atoms: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, largest: float, below: Callable[[FloatArray], FloatArray]) -> Law:
        """A law on the grid.

        Args:
            largest: Largest value.
            below: Probability of a value of at most this, for each of an array.
        """
        edges = largest * _STEPS
        often = np.diff(np.append(below(edges[:-1]), 1.0), prepend=0.0)
        return cls(tuple((float(edge), float(share)) for edge, share in zip(edges, often, strict=True) if share > 0))

    @classmethod
    def of_sample(cls, values: FloatArray) -> Law:
        """The law of a draw from a sample, float64[n]."""
        ordered = np.sort(values)
        return cls.of(float(ordered[-1]), lambda edges: np.searchsorted(ordered, edges, side="right") / ordered.size)

    def times(self, factor: float) -> Law:
        """Of a multiple."""
        return Law(tuple((factor * value, share) for value, share in self.atoms))

    def sometimes(self, probability: float) -> Law:
        """Of a value that occurs with this probability, and is 0 otherwise."""
        if probability >= 1.0:
            return self
        return Law(((0.0, 1.0 - probability), *((value, probability * share) for value, share in self.atoms)))

    def plus(self, other: Law) -> Law:
        """Of the sum with an independent value, on the grid."""
        own, others = np.array(self.atoms), np.array(other.atoms)
        sums = np.add.outer(own[:, 0], others[:, 0]).ravel()
        order = np.argsort(sums)
        share = np.cumsum(np.multiply.outer(own[:, 1], others[:, 1]).ravel()[order])
        ordered = sums[order]

        def below(edges: FloatArray) -> FloatArray:
            return np.asarray(np.append(0.0, share)[np.searchsorted(ordered, edges, side="right")])

        return Law.of(float(ordered[-1]), below)
