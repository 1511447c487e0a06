"""A compute stage: c workers that serve requests first come first served, alone or in batches.

A worker takes a batch as soon as it is idle and either enough requests wait or the oldest has waited long enough. A
batch of k takes (setup + k each) times a random factor of mean 1. A packet that does not complete a request has arrived
when it arrives; its request's last packet carries the request through the stage.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numba
import numpy as np
import numpy.typing as npt

from testbed.errors import ScenarioError
from testbed.simulation.clock import NEVER, PS_PER_S, to_ps
from testbed.simulation.fifo import Passed
from testbed.simulation.impairment import Constant, Draw
from testbed.simulation.wave import IndexArray, TimeArray, Wave, join


@dataclass(frozen=True)
class Compute:
    """How requests are computed.

    Attributes:
        workers: Batches served at the same time.
        each_s: Time that each request adds to its batch.
        setup_s: Time of a batch whatever its size.
        batch: Most requests in a batch.
        patience_s: How long the oldest request waits for its batch to fill.
        factor: Draws the random factor of each batch's time, of mean 1: `Exponential(1)`, `Lognormal(1, cv)`, or
            `Measured` values over their mean.
    """

    workers: int
    each_s: float
    setup_s: float = 0.0
    batch: int = 1
    patience_s: float = 0.0
    factor: Draw = field(default_factory=lambda: Constant(1.0))

    def __post_init__(self) -> None:
        if self.workers < 1 or self.batch < 1 or min(self.each_s, self.setup_s, self.patience_s) < 0:
            raise ScenarioError(
                f"compute stage: found {self.workers} workers, batches of {self.batch}, times {self.each_s}, "
                f"{self.setup_s} and {self.patience_s} s; expected at least one of each and no negative time"
            )


class ComputeStage:
    """A stage behind the last domain; what leaves it is in the order of its packets' departure from a worker.

    Args:
        compute: What it is.
        seed: Of this stage in this window.
    """

    def __init__(self, compute: Compute, seed: np.random.SeedSequence) -> None:
        self._compute = compute
        self._rng = np.random.default_rng(seed)
        self._factors = np.empty(0)
        self._free_ps = np.full(compute.workers, -NEVER, dtype=np.int64)
        self._held = Wave.empty()

    def push(self, wave: Wave, horizon_ps: int) -> Passed:
        """Serve the batches that start before `horizon_ps`, up to which every arrival is known."""
        parts = wave.where(~wave.ends)
        requests = join((self._held, wave.where(wave.ends)))
        missing = len(requests) - self._factors.size
        if missing > 0:
            self._factors = np.concatenate((self._factors, self._compute.factor(self._rng, missing)))
        out = np.empty(len(requests), np.int64)
        served, batches = _batches(
            horizon_ps,
            requests.time_ps,
            self._factors,
            self._compute.setup_s * PS_PER_S,
            self._compute.each_s * PS_PER_S,
            self._compute.batch,
            to_ps(self._compute.patience_s),
            self._free_ps,
            out,
        )
        self._factors = self._factors[batches:]
        done = requests.take(np.arange(served)).at(out[:served])
        self._held = requests.take(np.arange(served, len(requests)))
        return Passed(join((parts, done)), Wave.empty())


@numba.njit(cache=True)
def _batches(  # noqa: PLR0917 - compiled functions take no keywords
    horizon: int,
    time: TimeArray,
    factors: npt.NDArray[np.float64],
    setup: float,
    each: float,
    most: int,
    patience: int,
    free: TimeArray,
    out: IndexArray,
) -> tuple[int, int]:
    """Returns how many requests were served and in how many batches; `out` gets their finish times."""
    n, first, batches = time.size, 0, 0
    while first < n:
        worker = np.argmin(free)
        ripe = time[first] + patience
        if first + most - 1 < n:
            ripe = min(ripe, max(time[first], time[first + most - 1]))
        start = max(free[worker], ripe)
        if start >= horizon:
            break
        last = first
        while last < n and last - first < most and time[last] <= start:
            last += 1
        free[worker] = start + np.int64(np.rint((setup + each * (last - first)) * factors[batches]))
        out[first:last] = free[worker]
        first = last
        batches += 1
    return first, batches
