"""Two numerical tools that every bound shares: the largest theta below a level, and the smallest value on an interval.

Both work on whole grids of theta, so that one call costs a few array operations whatever the number of systems in the
leading axes. Neither needs to be exact for a bound to be sound: every theta gives a valid bound, a better theta a
smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from testbed.calculus.errors import CalculusError

FloatArray = NDArray[np.float64]

_GRID = 64
_ROUNDS = 2


def minimum(
    f: Callable[[FloatArray], FloatArray], low: FloatArray | float, high: FloatArray | float, points: int = _GRID
) -> FloatArray:
    """Where a unimodal function is smallest inside (low, high): a grid, a finer one, and a parabola through the best.

    Args:
        f: Takes an array of shape (..., n) and returns the same shape; infinities are allowed.
        low: Lower ends, shape (...); never evaluated.
        high: Upper ends, shape (...); never evaluated.
        points: Steps of each grid; fewer for a function that costs more than its smoothness is worth.

    Returns:
        The minimisers, shape (...), to about six digits of the interval; the minimum itself is then good to ten.
    """
    left = np.asarray(low, dtype=np.float64)
    width = np.asarray(high, dtype=np.float64) - left
    steps = _inner(points)
    for _ in range(_ROUNDS):
        values = f(left[..., None] + width[..., None] * steps)
        best = np.argmin(values, axis=-1)
        left = left + width * (best / points)
        width = width * (2.0 / points)
    # The vertex lies within half a step of the best point, which is in the middle.
    middle = np.clip(best, 1, points - 3)
    before, at, after = (pick(values, middle + step) for step in (-1, 0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = 0.25 * (before - after) / (before - 2.0 * at + after)
    usable = np.isfinite(shift) & (np.abs(shift) <= 0.25) & (middle == best)
    return left + width * (0.5 + np.where(usable, shift, 0.0))


@cache
def _inner(points: int) -> FloatArray:
    """The inner points of a grid on (0, 1)."""
    return np.arange(1, points, dtype=np.float64) / points


def pick(values: FloatArray, index: NDArray[np.intp]) -> FloatArray:
    """One entry of the last axis for each of the others: values of shape (..., n), index of shape (...)."""
    flat = values.reshape(-1, values.shape[-1])
    return np.asarray(flat[np.arange(len(flat)), index.ravel()].reshape(index.shape))


def reorder(values: FloatArray, order: NDArray[np.intp]) -> FloatArray:
    """The last axis in the given order: both of shape (..., n)."""
    flat = values.reshape(-1, values.shape[-1])
    rows = np.arange(len(flat))[:, None]
    return np.asarray(flat[rows, order.reshape(flat.shape)].reshape(values.shape))


def largest_below(f: Callable[[float], float], level: float, scale: float, limit: float = math.inf) -> float:
    """The largest argument at which an increasing function is still at or below a level.

    Args:
        f: Increasing on (0, limit); may overflow to infinity or be undefined (nan) beyond its pole.
        level: The level that must not be exceeded.
        scale: An argument of the right order of magnitude, so that the search does not depend on units.
        limit: End of the domain of f.

    Returns:
        A value x with f(x) <= level, within 1e-13 relative of the largest; `limit` (possibly infinite) when f never
        reaches the level.

    Raises:
        CalculusError: The function exceeds the level however small its argument.
    """
    low, high = 0.0, min(scale, limit)
    while high < limit and f(high) <= level:
        low, high = high, 2.0 * high
        if high > 1e12 * scale:
            return math.inf
    high = min(high, limit)
    while low == 0.0:
        middle = 0.5 * high
        if middle < 1e-15 * scale:
            raise CalculusError(f"no theta keeps the envelope rate at or below {level:g}: the system is critical")
        if f(middle) <= level:
            low = middle
        else:
            high = middle
    return _bisect_secant(f, level, low, high)


def _bisect_secant(f: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Illinois' variant of regula falsi, falling back on bisection while the upper value is not finite."""
    below, above = f(low) - level, f(high) - level
    side = 0
    for _ in range(200):
        if high - low <= 1e-13 * high:
            break
        if math.isfinite(above) and above > below:
            middle = low - below * (high - low) / (above - below)
            if not low < middle < high:
                middle = 0.5 * (low + high)
        else:
            middle = 0.5 * (low + high)
        value = f(middle) - level
        if value <= 0.0:
            low, below = middle, value
            if side == -1 and math.isfinite(above):
                above *= 0.5
            side = -1
            if value == 0.0:
                break
        else:
            high, above = middle, value
            if side == 1:
                below *= 0.5
            side = 1
    return low
