"""Feeds measured arrivals to an ideal FIFO server and says how far a domain lagged behind it.

The ideal server of rate R starts packet n at `G_n = max(a_n, F_{n-1})` and finishes it at `F_n = G_n + L_n / R`
(Lindley's recursion). A domain that released the packet at d_n with declared latency T lagged by
`X_n = max(0, d_n - G_n - T)`. Old lag is still in the system until the ideal server has been idle for as long, hence
the lingering excess `Y_n = max(X_n, Y_{n-1} - idle_n)`, idle_n = max(0, a_n - F_{n-1}). With R the smallest rate that
the tenant holds anywhere on its path, every packet obeys `W_n <= W0_n + sum_d (T_d + Y_{d,n})`; with X in place of Y it
does not. Whether an excess is too large is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from testbed.telemetry.idle_path import NONE, IdlePath
from testbed.telemetry.samples import BoolArray, FloatArray, Replay, TenantSamples


@dataclass(frozen=True)
class Fifo:
    """An ideal FIFO server's schedule, arrays of shape [n].

    Attributes:
        start_s: Start of service G_n; also when a server that owes no serialisation (HTB) releases the packet.
        finish_s: End of service F_n.
        idle_s: How long the server was idle before the packet.
    """

    start_s: FloatArray
    finish_s: FloatArray
    idle_s: FloatArray


def fifo(arrival_s: FloatArray, size_bits: npt.NDArray[np.int32] | FloatArray, rate_bps: float) -> Fifo:
    """Serves packets at a constant rate in the order of arrival.

    Args:
        arrival_s: Arrival times, non-decreasing and finite, [n].
        size_bits: Packet sizes, [n].
        rate_bps: Rate of the server.

    Raises:
        ValueError: Arrival times that decrease or a rate that is not positive.
    """
    if not rate_bps > 0:
        raise ValueError(f"rate of an ideal server: found {rate_bps} bit/s, expected a positive rate")
    if not np.all(arrival_s[1:] >= arrival_s[:-1]):
        raise ValueError("arrivals at a FIFO server must be finite and sorted by time")
    return Fifo(*_lindley(arrival_s, size_bits, rate_bps))


def lag_s(departure_s: FloatArray, start_s: FloatArray, latency_s: float) -> FloatArray:
    """X_n: how much later than the ideal start plus the declared latency each packet left; [n]."""
    return np.maximum(0.0, departure_s - start_s - latency_s)


def lingering_s(lag: FloatArray, idle_s: FloatArray) -> FloatArray:
    """Y_n: the largest earlier lag that the ideal server's idle time has not yet absorbed; [n], in order of arrival."""
    return np.asarray(_linger(lag, idle_s))


def replay(
    samples: TenantSamples,
    rate_bps: float,
    latency_s: Sequence[float],
    *,
    burst_bits: float = 0.0,
    links_s: float = 0.0,
    idle: IdlePath = NONE,
) -> Replay:
    """Replays a tenant's window through ideal servers, one for the whole path and one for each domain.

    A packet that a domain lost does not consume its ideal server's time. The servers of the whole path are fed the
    packets that left the first domain: no more can be served by an ideal path, and what is lost further on was served
    before.

    Args:
        samples: The measured window.
        rate_bps: Smallest rate the tenant holds on its path, as read back from the data plane.
        latency_s: Declared latency T of each domain, [D].
        burst_bits: Burst of the tenant's slowest queue, as read back: what it sends at once after a pause.
        links_s: Propagation delay of all links of the path together.
        idle: What the path takes of packets that wait for nobody, links not counted.
    """
    if len(latency_s) != len(samples.domains):
        raise ValueError(f"{len(samples.domains)} domains, found {len(latency_s)} declared latencies")
    lag = np.full((len(samples), len(samples.domains)), np.nan)
    excess = lag.copy()
    for d, latency in enumerate(latency_s):
        entry, leave = samples.border_s[:, d], samples.border_s[:, d + 1]
        crossed = _in_order(entry, np.isfinite(entry) & np.isfinite(leave))
        server = fifo(entry[crossed], samples.size_bits[crossed], rate_bps)
        lag[crossed, d] = lag_s(leave[crossed], server.start_s, latency)
        excess[crossed, d] = lingering_s(lag[crossed, d], server.idle_s)
    served = np.isfinite(samples.border_s[:, 0]) & np.isfinite(samples.border_s[:, 1])
    return Replay(
        rate_bps=rate_bps,
        latency_s=tuple(latency_s),
        credit_s=burst_bits / rate_bps,
        ideal_s=ideal_wait_s(samples.border_s[:, 0], samples.size_bits, rate_bps, served),
        ideal_intended_s=ideal_wait_s(samples.intended_s, samples.size_bits, rate_bps, served),
        lag_s=lag,
        excess_s=excess,
        idle_s=idle.drawn_s(samples.intended_s),
        links_s=links_s,
    )


def ideal_wait_s(
    arrival_s: FloatArray, size_bits: npt.NDArray[np.int32] | FloatArray, rate_bps: float, served: BoolArray
) -> FloatArray:
    """W0: each served packet's wait, itself excluded, in an ideal server; NaN for the others; [n].

    Also the whole wait in a tandem of such servers with no serialisation of their own: only the smallest rate counts.
    """
    order = _in_order(arrival_s, served)
    wait = np.full(arrival_s.size, np.nan)
    wait[order] = fifo(arrival_s[order], size_bits[order], rate_bps).start_s - arrival_s[order]
    return wait


def _in_order(time_s: FloatArray, chosen: BoolArray) -> npt.NDArray[np.intp]:
    index = np.flatnonzero(chosen)
    return index[np.argsort(time_s[index], kind="stable")]


@numba.njit(cache=True)
def _lindley(
    arrival_s: FloatArray, size_bits: npt.NDArray[np.int32], rate_bps: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    n = arrival_s.size
    start, finish, idle = np.empty(n), np.empty(n), np.zeros(n)
    free = -np.inf
    for i in range(n):
        start[i] = max(arrival_s[i], free)
        if i > 0:
            idle[i] = max(0.0, arrival_s[i] - free)
        free = start[i] + size_bits[i] / rate_bps
        finish[i] = free
    return start, finish, idle


@numba.njit(cache=True)
def _linger(lag: FloatArray, idle_s: FloatArray) -> FloatArray:
    excess = np.empty(lag.size)
    current = 0.0
    for i in range(lag.size):
        current = max(lag[i], current - idle_s[i])
        excess[i] = current
    return excess
