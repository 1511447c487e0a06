"""What a real path takes of whoever waits for nobody, which no queue explains: a ping's time without load.

Senders' stacks, every switch and every link forward once whatever is queued. An ideal queue knows nothing of it, so an
ideal replay counts it beside its waits. It is known from a warm-up, from those that found the ideal queue empty, and
so says nothing about how anybody waits in the window that it is used for.

A host drifts: within two minutes an idle path was seen to become 6 % slower. A cool-down behind the window brackets
that, as an instrument is calibrated before and after: what happens in the window itself is still told by neither.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

FENCE = 1.5
"""Tukey's: what lies this many interquartile ranges above the upper quartile is an outlier."""


@dataclass(frozen=True, eq=False)
class IdlePath:
    """What a path takes of whoever waits for nobody, before a window and, where there is a cool-down, behind it.

    Attributes:
        before_s: Law of the warm-up, [k]; empty where it says nothing.
        after_s: Law of the cool-down, [m]; empty where it says nothing or there is none.
        window_s: Length of the window between them.
    """

    before_s: FloatArray = field(default_factory=lambda: np.empty(0))
    after_s: FloatArray = field(default_factory=lambda: np.empty(0))
    window_s: float = 0.0

    @property
    def typical_s(self) -> float:
        """What half of them took at most, before or after, whichever is longer; 0 where nothing is known."""
        return max((float(np.median(law)) for law in (self.before_s, self.after_s) if law.size), default=0.0)

    @property
    def size(self) -> int:
        """How many it is known from."""
        return self.before_s.size + self.after_s.size

    def drawn_s(self, time_s: FloatArray) -> FloatArray:
        """One time of the law for each of n, the same whenever asked, 0 where nothing is known; [n].

        Their median for all of them would put quantiles off where most wait for nobody: a quantile of a sum is no sum
        of quantiles. Every quantile of the law moves in a straight line from the warm-up's to the cool-down's.

        Args:
            time_s: Seconds since the window's start, [n].
        """
        if not self.size:
            return np.zeros(time_s.size)
        level = np.random.default_rng(0).random(time_s.size)
        before_s = self.before_s if self.before_s.size else self.after_s
        after_s = self.after_s if self.after_s.size else self.before_s
        first, last = (np.quantile(law, level, method="inverted_cdf") for law in (before_s, after_s))
        through = np.clip(time_s / self.window_s, 0.0, 1.0) if self.window_s else 0.0
        return np.asarray(first + through * (last - first))


NONE = IdlePath()
"""A path that takes nothing."""


def law_s(beyond_s: FloatArray, wait_s: FloatArray) -> FloatArray:
    """What each of those that wait for nobody took beyond its ideal time, [k]; empty if every one waited.

    Outliers by Tukey's fence are pauses of the host, which are no part of the path.

    Args:
        beyond_s: Measured time less the ideal one, NaN where unknown, [n].
        wait_s: Wait in the ideal queue, NaN where unknown, [n].
    """
    alone = beyond_s[(wait_s == 0.0) & np.isfinite(beyond_s)]
    if not alone.size:
        return np.empty(0)
    low, high = np.quantile(alone, [0.25, 0.75])
    return np.asarray(np.maximum(0.0, alone[alone <= high + FENCE * (high - low)]))
