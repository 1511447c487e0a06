"""A tandem of rate servers as a simulator sees it: arrivals, service with stalls, and the stamps that result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from testbed.telemetry.samples import TenantSamples

FloatArray = npt.NDArray[np.float64]


def server(arrival_s: FloatArray, work_s: FloatArray, stall: tuple[float, float] | None = None) -> FloatArray:
    """Start times in a FIFO server that starts nothing during `stall` = (begin, length)."""
    free, start = -np.inf, np.empty_like(arrival_s)
    begin, end = (np.inf, np.inf) if stall is None else (stall[0], stall[0] + stall[1])
    for i, (arrival, work) in enumerate(zip(arrival_s.tolist(), work_s.tolist(), strict=True)):
        at = max(arrival, free)
        if begin <= at < end:
            at = end
        start[i] = at
        free = at + work
    return start


def on_off(
    rng: np.random.Generator, *, packets: int, peak_bps: float, mean_on_s: float, mean_off_s: float, size_bits: int
) -> FloatArray:
    """Arrival times of a Markov on-off fluid cut into packets, the remainder carried over."""
    spacing = size_bits / peak_bps
    work = spacing * np.arange(1, packets + 1)
    bursts = rng.exponential(mean_on_s, int(2 * work[-1] / mean_on_s) + 50)
    gaps = rng.exponential(mean_off_s, bursts.size)
    on_time = np.concatenate([[0.0], np.cumsum(bursts)])
    burst = np.searchsorted(on_time, work, side="left") - 1
    return np.asarray(work + np.cumsum(gaps)[burst])


def window(
    intended_s: FloatArray,
    border_s: FloatArray,
    *,
    sent_s: FloatArray | None = None,
    size_bits: int | npt.NDArray[np.int32] = 11_200,
    domains: Sequence[str] | None = None,
) -> TenantSamples:
    n = intended_s.size
    return TenantSamples(
        tenant="a",
        number=1,
        domains=tuple(domains or (f"d{d}" for d in range(border_s.shape[1] - 1))),
        window_start_ns=1_764_000_000_000_000_000,
        sequence=np.arange(n),
        intended_s=intended_s,
        sent_s=intended_s if sent_s is None else sent_s,
        size_bits=np.broadcast_to(np.asarray(size_bits, np.int32), (n,)).copy(),
        border_s=border_s,
    )
