"""What a real path takes of whoever waits for nobody, which no queue explains: a ping's time without load.

Senders' stacks, every switch and every link forward once whatever is queued. An ideal queue knows nothing of it, so an
ideal replay counts it beside its waits. It is known from those that found the ideal queue empty.

A host is not equally fast all the time: within two minutes an idle path was seen to become 6 % slower, which is more
than a median may be off. So its law is followed through a window, in stretches: whoever was sent in one of them is
given what was seen in those next to it, the first of which is the warm-up. No stretch is held to itself, and none of
this says how long anybody waits. A gate holds every stretch to what the path declares, so that no queue can hide in it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

FENCE = 1.5
"""Tukey's: what lies this many interquartile ranges above the upper quartile is an outlier."""

STRETCH_S = 10.0
"""Hundreds wait for nobody in it at the usual rates, and a host drifts more slowly."""

_ENOUGH = 30
"""Fewer tell no law: then all the rest of the window and the warm-up do."""

NONE: FloatArray = np.zeros(1)
"""The law of a path that takes nothing."""


def law_s(beyond_s: FloatArray, wait_s: FloatArray) -> FloatArray:
    """What each of those that wait for nobody took beyond its ideal time, [k]; one 0 if every one waited.

    Outliers by Tukey's fence are pauses of the host, which are no part of the path.

    Args:
        beyond_s: Measured time less the ideal one, NaN where unknown, [n].
        wait_s: Wait in the ideal queue, NaN where unknown, [n].
    """
    alone = beyond_s[_alone(beyond_s, wait_s)]
    return _without_pauses(alone) if alone.size else NONE


def followed_s(warm_up: FloatArray, beyond_s: FloatArray, wait_s: FloatArray, time_s: FloatArray) -> FloatArray:
    """What the path takes of each one in a window: a time drawn from the law around its own stretch; [n].

    One that is typical for all of them would put quantiles off where most wait for nobody: a quantile of a sum is no
    sum of quantiles. The same is drawn whenever asked.

    Args:
        warm_up: The law before the window, [k].
        beyond_s: As for `law_s`, NaN also for those that are not to be believed, [n].
        wait_s: As for `law_s`, [n].
        time_s: When each was sent, finite, seconds since the window's start, [n].
    """
    generator = np.random.default_rng(0)
    alone, stretch = _alone(beyond_s, wait_s), _stretch(time_s)
    found = np.empty(time_s.size)
    for own in np.unique(stretch):
        near = beyond_s[alone & (np.abs(stretch - own) == 1)]
        if own == 0:
            near = np.concatenate((warm_up, near))
        if near.size < _ENOUGH:
            near = np.concatenate((warm_up, beyond_s[alone & (stretch != own)]))
        here = stretch == own
        found[here] = generator.choice(_without_pauses(near), np.count_nonzero(here))
    return found


def course_s(warm_up: FloatArray, beyond_s: FloatArray, wait_s: FloatArray, time_s: FloatArray) -> FloatArray:
    """What half of those that waited for nobody took at most, in the warm-up and in each stretch that tells; [m].

    Args:
        warm_up: As for `followed_s`.
        beyond_s: As for `followed_s`.
        wait_s: As for `followed_s`.
        time_s: As for `followed_s`.
    """
    alone, stretch = _alone(beyond_s, wait_s), _stretch(time_s)
    within = [beyond_s[alone & (stretch == own)] for own in np.unique(stretch[alone])]
    return np.array([np.median(warm_up), *(np.median(each) for each in within if each.size >= _ENOUGH)])


def _alone(beyond_s: FloatArray, wait_s: FloatArray) -> BoolArray:
    return np.asarray((wait_s == 0.0) & np.isfinite(beyond_s))


def _stretch(time_s: FloatArray) -> npt.NDArray[np.int64]:
    return np.floor(time_s / STRETCH_S).astype(np.int64)


def _without_pauses(alone_s: FloatArray) -> FloatArray:
    low, high = np.quantile(alone_s, [0.25, 0.75])
    return np.asarray(np.maximum(0.0, alone_s[alone_s <= high + FENCE * (high - low)]))
