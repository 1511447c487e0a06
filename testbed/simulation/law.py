"""Laws of times on a grid, for bounds: each value as the next larger point of it, so that nothing is underrated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def power(self, number: int) -> Law:
        """Of the sum of so many independent values, on the grid."""
        found, square = _NOTHING, self
        while number:
            found = found.plus(square) if number % 2 else found
            number //= 2
            square = square.plus(square) if number else square
        return found

    def plus(self, other: Law) -> Law:
        """Of the sum with an independent value, on the grid."""
        if _NOTHING in {self, other}:
            return other if self == _NOTHING else self
        own, others = np.array(self.atoms), np.array(other.atoms)
        sums = np.add.outer(own[:, 0], others[:, 0]).ravel()
        order = np.argsort(sums)
        share = np.cumsum(np.multiply.outer(own[:, 1], others[:, 1]).ravel()[order])
        ordered = sums[order]

        def below(edges: FloatArray) -> FloatArray:
            return np.asarray(np.append(0.0, share)[np.searchsorted(ordered, edges, side="right")])

        return Law.of(float(ordered[-1]), below)


_NOTHING = Law(((0.0, 1.0),))

EVENED = 3
"""Longest turns of each of the others that a latency must allow for where `evened_turns` stands for theirs."""


def turns(each: Sequence[tuple[float, Law]]) -> Law:
    """The law of whole turns that others take during one of a tenant's (docs/calculus.md, "Turns of others").

    Of n turns on average the whole ones are taken each time, and one more with the probability that is left over: by
    everybody who has so much left at the same times, which is the worst that their patterns can do together. Turns that
    always take the same need not be whole.

    Args:
        each: Average number of turns of each of the others, and the law of one.
    """
    found = _NOTHING
    extra: list[tuple[float, Law]] = []
    for number, law in each:
        if len(law.atoms) == 1:
            found = found.plus(law.times(number))
            continue
        whole = int(number)
        found = found.plus(law.power(whole)) if whole else found
        extra.append((number - whole, law))
    together, often = _NOTHING, 0.0
    for probability, law in sorted((one for one in extra if one[0] > 0), key=lambda one: one[0]):
        together, often = law.plus(together.sometimes(often / probability)), probability
    return found.plus(together.sometimes(often)) if often else found


def evened_turns(each: Sequence[tuple[float, Law]]) -> Law:
    """The same where turns are evened out over a tenant's own, at the price of `EVENED` turns of each of the others.

    Args:
        each: As for `turns`.
    """
    found = _NOTHING
    for number, law in each:
        even = number >= 1.0 or len(law.atoms) == 1
        found = found.plus(law.times(number) if even else law.sometimes(number))
    return found
