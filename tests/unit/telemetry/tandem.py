"""A tandem of rate servers as a simulator sees it: arrivals, service with stalls, and the stamps that result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
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


@numba.njit(cache=True)
def token_bucket(
    arrival_s: FloatArray, size_bits: int, rate_bps: float, burst_bits: float, stall: tuple[float, float]
) -> FloatArray:
    """Departures from a shaper that sends at tokens >= 0 (HTB) and sends nothing during `stall` = (begin, length)."""
    out, tokens, last = np.empty_like(arrival_s), burst_bits, 0.0
    for i in range(arrival_s.size):
        at = max(arrival_s[i], last)
        at += max(0.0, -(tokens + (at - last) * rate_bps) / rate_bps)
        if stall[0] <= at < stall[0] + stall[1]:
            at = stall[0] + stall[1]
        tokens = min(burst_bits, tokens + (at - last) * rate_bps) - size_bits
        last = out[i] = at
    return out


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


@dataclass(frozen=True)
class Tenant:
    """A reserved on-off tenant of a three-domain tandem."""

    mean_on_s: float
    mean_off_s: float
    peak_bps: float
    rate_bps: float
    duration_s: float = 60.0
    burst_bits: float = 51_200.0
    size_bits: int = 11_200


NOWHERE = (np.inf, 0.0)


def measured(tenant: Tenant, seed: int, stall: tuple[float, float] = NOWHERE, where: str = "machine") -> TenantSamples:
    """What captures see of one window: the same noise for the same seed, and possibly one stall on top of it.

    Args:
        tenant: The tenant.
        seed: Of arrivals and noise.
        stall: Begin and length.
        where: `machine` (nothing runs), `sender`, or `domain` (the second one's switch).
    """
    rng, size = np.random.default_rng(seed), tenant.size_bits
    mean_bps = tenant.peak_bps * tenant.mean_on_s / (tenant.mean_on_s + tenant.mean_off_s)
    n = int(mean_bps * tenant.duration_s / size)
    intended = on_off(
        rng,
        packets=n,
        peak_bps=tenant.peak_bps,
        mean_on_s=tenant.mean_on_s,
        mean_off_s=tenant.mean_off_s,
        size_bits=size,
    )
    sent = _held(intended + rng.gamma(2, 20e-6, n), stall if where in {"machine", "sender"} else NOWHERE)
    borders = [np.maximum.accumulate(sent + rng.gamma(2, 40e-6, n))]
    for d in range(3):
        hiccups = np.where(rng.random(n) < 0.002, rng.exponential(1e-3, n), 0.0)
        stalled = stall if where == "machine" or (where == "domain" and d == 1) else NOWHERE
        arrival = _held(borders[-1] + rng.gamma(2, 50e-6, n) + hiccups, stalled)
        departure = token_bucket(arrival, size, tenant.rate_bps, tenant.burst_bits, stalled)
        borders.append(np.maximum.accumulate(departure + rng.gamma(2, 30e-6, n)))
    return window(intended, np.stack(borders, axis=1), sent_s=sent, size_bits=size)


def _held(time_s: FloatArray, stall: tuple[float, float]) -> FloatArray:
    begin, length = stall
    held = np.where((time_s >= begin) & (time_s < begin + length), begin + length, time_s)
    return np.asarray(np.maximum.accumulate(held))


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
