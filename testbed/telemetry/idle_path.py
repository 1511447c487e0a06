"""What a real path takes of whoever waits for nobody, which no queue explains: a ping's time without load.

Senders' stacks, every switch and every link forward once whatever is queued. An ideal queue knows nothing of it, so an
ideal replay counts it beside its waits. It is known from a warm-up, from those that found the ideal queue empty, and
so says nothing about how anybody waits in the window that it is used for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

FENCE = 1.5
"""Tukey's: what lies this many interquartile ranges above the upper quartile is an outlier."""

NONE: FloatArray = np.zeros(1)
"""The law of a path that takes nothing."""


def law_s(beyond_s: FloatArray, wait_s: FloatArray) -> FloatArray:
    """What each of those that wait for nobody took beyond its ideal time, [k]; one 0 if every one waited.

    Outliers by Tukey's fence are pauses of the host, which are no part of the path.

    Args:
        beyond_s: Measured time less the ideal one, NaN where unknown, [n].
        wait_s: Wait in the ideal queue, NaN where unknown, [n].
    """
    alone = beyond_s[(wait_s == 0.0) & np.isfinite(beyond_s)]
    if not alone.size:
        return NONE
    low, high = np.quantile(alone, [0.25, 0.75])
    return np.asarray(np.maximum(0.0, alone[alone <= high + FENCE * (high - low)]))


def drawn_s(law: FloatArray, n: int) -> FloatArray:
    """One time of the law for each of n, the same whenever asked; [n].

    Their median for all of them would put quantiles off where most wait for nobody: a quantile of a sum is no sum of
    quantiles.
    """
    return np.asarray(np.random.default_rng(0).choice(law, n))
