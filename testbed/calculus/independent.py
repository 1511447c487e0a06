"""The sum of independent exponentially bounded delays, computed as a phase-type distribution without cancellation.

A part with `P(Y > x) <= M e^{-a x}` from x_min on is no longer than `s + B E`: a shift s, a coin B of probability
`p = min(1, M e^{-a s})`, and an exponential E of rate a. Independent parts then add up to a walk through phases, whose
tail decays with the smallest a instead of the 1/sum(1/a) that a union bound leaves.
"""

from __future__ import annotations

import math

import numpy as np

from testbed.calculus.errors import CalculusError
from testbed.calculus.numeric import FloatArray

_TAYLOR_TERMS = 14


class IndependentSum:
    """The tail of a sum of independent parts."""

    def __init__(self, log_m: FloatArray, decay: FloatArray, floor: FloatArray) -> None:
        """Take the parts.

        Args:
            log_m: ln of the prefactors, shape (parts,).
            decay: Decays in 1/s, shape (parts,).
            floor: Where each bound starts to hold, in s, shape (parts,).
        """
        shift = np.maximum(floor, np.maximum(log_m, 0.0) / decay)
        coin = np.exp(np.minimum(0.0, log_m - decay * shift))
        self.shift_s = float(shift.sum())
        self._decay = decay
        parts = len(decay)
        # enter[i, j]: probability that phase j is the next one after part i (-1: from the start) has ended.
        enter = np.zeros((parts + 1, parts))
        for i in range(parts + 1):
            skipped = 1.0
            for j in range(i, parts):
                enter[i, j] = skipped * coin[j]
                skipped *= 1.0 - coin[j]
        self._start = enter[0]
        self._jump = decay[:, None] * enter[1:]

    def probability(self, delay_s: float) -> float:
        """The bound on P(sum > delay_s)."""
        time = delay_s - self.shift_s
        if time < 0.0:
            return 1.0
        fastest = float(self._decay.max(initial=0.0))
        halvings = max(0, math.ceil(math.log2(max(fastest * time, 1e-9) * 4.0)))
        step = time / 2.0**halvings
        # exp(T step) = exp(-fastest step) exp((T + fastest) step): every term of the series is non-negative.
        growth = step * (self._jump + np.diag(fastest - self._decay))
        term = np.eye(len(self._decay))
        total = term.copy()
        for n in range(1, _TAYLOR_TERMS):
            term = term @ growth / n
            total += term
        total *= math.exp(-fastest * step)
        for _ in range(halvings):
            total = total @ total
        return min(1.0, float((self._start @ total).sum()))

    def delay(self, epsilon: float) -> float:
        """The smallest delay exceeded with probability at most epsilon."""
        if self.probability(self.shift_s) <= epsilon:
            return self.shift_s
        low, high = 0.0, 1.0 / float(self._decay.min())
        while self.probability(self.shift_s + high) > epsilon:
            low, high = high, 2.0 * high
            if not math.isfinite(high):
                raise CalculusError("no finite delay is exceeded with so small a probability")
        while high - low > 1e-12 * high:
            middle = 0.5 * (low + high)
            low, high = (low, middle) if self.probability(self.shift_s + middle) <= epsilon else (middle, high)
        return self.shift_s + high
