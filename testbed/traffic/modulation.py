"""The hidden state that makes traffic bursty: when a source is on, and when it is off.

A path of the state is drawn apart from the packets, because tenants that misbehave together share one. Paths start in
equilibrium, so a window that opens at time zero sees the process as it always is. Packets are cut from a path by
`testbed.traffic.arrivals`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class OnOffPath:
    """The on periods of a source that begin within a window.

    Attributes:
        start_s: Start of each on period; the first is 0 where the window opens during a burst. float64[n].
        end_s: End of each on period; the last may lie beyond the window. float64[n].
        mean_on_s: Mean on period of the process the path was drawn from.
        mean_off_s: Mean off period of that process.
    """

    start_s: FloatArray
    end_s: FloatArray
    mean_on_s: float
    mean_off_s: float


def on_off_path(mean_on_s: float, mean_off_s: float, *, rng: np.random.Generator, duration_s: float) -> OnOffPath:
    """Draw a stationary path of a two-state Markov process with exponential periods.

    A longer window from the same generator state begins with the shorter one.
    """
    starts_on = rng.random() < mean_on_s / (mean_on_s + mean_off_s)
    means = np.array([mean_on_s, mean_off_s] if starts_on else [mean_off_s, mean_on_s])
    block = 2 * (int(duration_s / (mean_on_s + mean_off_s)) + 8)
    periods = np.empty(0)
    edges = np.zeros(1)
    while edges[-1] < duration_s:
        drawn = rng.standard_exponential(block).reshape(-1, 2) * means
        periods = np.concatenate((periods, drawn.ravel()))
        edges = np.concatenate(([0.0], np.cumsum(periods)))
    first = 0 if starts_on else 1
    start_s, end_s = edges[first:-1:2], edges[first + 1 :: 2]
    within = start_s[: end_s.size] < duration_s
    return OnOffPath(start_s[: end_s.size][within], end_s[within], mean_on_s, mean_off_s)
