"""Points whose gaps are independent: the laws that gaps can have, and stationary sequences of points made of them.

Every law here has mean 1 and knows its equilibrium, the law of the wait for the first point when nobody knows when
the last one was: what is left of a length-biased gap (Cox, "Renewal Theory", 1962, chapter 5). What the points are,
packets or requests, is for callers to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from testbed.errors import ScenarioError

FloatArray = npt.NDArray[np.float64]

_CV_TOLERANCE = 0.01
"""An Erlang gap can only have a coefficient of variation of 1/sqrt(k); this much rounding is forgiven."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A law of gaps with mean 1.

    Attributes:
        first: Draws the wait for the first point.
        draw: Draws n gaps; calls in a row draw what one longer call would.
    """

    first: Callable[[np.random.Generator], float]
    draw: Callable[[np.random.Generator, int], FloatArray]


def points(gap: Gap, mean_s: float, *, rng: np.random.Generator, duration_s: float) -> FloatArray:
    """Points of a stationary renewal process in [0, duration_s), float64[n].

    Args:
        gap: Law of the gaps.
        mean_s: Their mean.
        rng: A longer window from the same state begins with the shorter one.
        duration_s: Length of the window.
    """
    expected = duration_s / mean_s
    block = int(expected + 5 * math.sqrt(expected)) + 16
    gaps = np.array([gap.first(rng)])
    times_s = gaps * mean_s
    while times_s[-1] < duration_s:
        gaps = np.concatenate((gaps, gap.draw(rng, block)))
        times_s = np.cumsum(gaps) * mean_s
    return np.asarray(times_s[times_s < duration_s])


EXPONENTIAL = Gap(lambda rng: rng.standard_exponential(), lambda rng, n: rng.standard_exponential(n))
DETERMINISTIC = Gap(lambda rng: rng.random(), lambda _, n: np.ones(n))


def gamma(shape: float) -> Gap:
    """Gamma gaps; length-biased, they are Gamma with a shape larger by 1."""
    return Gap(
        lambda rng: rng.random() * rng.standard_gamma(shape + 1) / shape,
        lambda rng, n: rng.standard_gamma(shape, n) / shape,
    )


def weibull(shape: float) -> Gap:
    """Weibull gaps; a length-biased one to the power of its shape is Gamma(1 + 1/shape)."""
    mean = math.gamma(1 + 1 / shape)
    return Gap(
        lambda rng: float(rng.random() * rng.standard_gamma(1 + 1 / shape) ** (1 / shape) / mean),
        lambda rng, n: rng.weibull(shape, n) / mean,
    )


def hyperexponential(cv: float) -> Gap:
    """Two exponential phases that carry half the time each (balanced means), so either is met first equally often."""
    often = (1 + math.sqrt((cv**2 - 1) / (cv**2 + 1))) / 2

    def first(rng: np.random.Generator) -> float:
        chosen = often if rng.random() < 0.5 else 1 - often
        return rng.standard_exponential() / (2 * chosen)

    def draw(rng: np.random.Generator, n: int) -> FloatArray:
        phase, chance = rng.random((n, 2)).T
        mean = np.where(phase < often, 1 / (2 * often), 1 / (2 * (1 - often)))
        return np.asarray(-np.log1p(-chance) * mean)

    return Gap(first, draw)


def gap_law(name: str, cv: float) -> Gap:
    """The law a scenario names.

    Raises:
        ScenarioError: No such law, or it cannot have this coefficient of variation.
    """
    match name:
        case "deterministic":
            return DETERMINISTIC
        case "erlang":
            stages = max(1, round(1 / cv**2))
            if abs(cv * math.sqrt(stages) - 1) > _CV_TOLERANCE:
                raise ScenarioError(
                    f"gap erlang: found cv {cv:g}, expected 1/sqrt(k) for a whole k, such as {stages**-0.5:.4g}; "
                    "choose that, or gap gamma"
                )
            return gamma(stages)
        case "gamma":
            return gamma(1 / cv**2)
        case "hyperexponential":
            if cv < 1:
                raise ScenarioError(f"gap hyperexponential: found cv {cv:g}, expected at least 1; use erlang or gamma")
            return hyperexponential(cv)
    raise ScenarioError(
        f"gap: found {name!r}, expected deterministic, erlang, gamma or hyperexponential; choose one of them"
    )
