"""How far behind its promise each stage was with a tenant's requests, as far as whole requests can tell.

Envelopes promise packets, and of requests only the first byte at the client's border and the last byte at every border
are known. So a network domain is credited with all that may have been before a request: its bits count from the moment
its last byte came, with those of every request that was on its way at the same time. What lags behind even that lags in
truth, and by at least as much; what does not may lag all the same. The compute stage serves whole requests, so there
nothing has to be guessed. Whether an excess is too large is decided in `testbed.audit.contracts`; packets are
`testbed.telemetry.lag`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from testbed.audit.clusters import FloatArray
from testbed.audit.conformance import METER_GRAIN_S
from testbed.telemetry.lag import fifo, lag_s, lingering_s
from testbed.telemetry.request_samples import RequestSamples


@dataclass(frozen=True, slots=True)
class StageExcess:
    """Requests in one stage, NaN where a request was not seen to enter and to leave it; [n] each.

    Attributes:
        excess_s: By how much at least the stage lagged behind what it promised.
        lag_s: How far behind its ideal server, the promised latency not taken off; below zero for one that left before.
    """

    excess_s: FloatArray
    lag_s: FloatArray


def domain_excess(samples: RequestSamples, d: int, rate_bps: float, latency_s: float) -> StageExcess:
    """The least by which domain d lagged behind an ideal server plus its latency, on the way out.

    A request that waited for lost bytes to be sent again is not held against a lag; losses are promised on their own.

    Args:
        samples: One window.
        d: Place of the domain on the path.
        rate_bps: Smallest rate promised on the path.
        latency_s: Promised latency of the domain.
    """
    entered, left = samples.out_s[:, d], samples.out_s[:, d + 1]
    resent_s = 0.0 if samples.resent_s is None else samples.resent_s[:, d]
    known = np.isfinite(entered)
    order = np.flatnonzero(known)[np.argsort(entered[known], kind="stable")]
    ideal = np.full(len(samples), np.nan)
    ideal[order] = fifo(entered[order], samples.out_bits[order], rate_bps).finish_s
    ideal += _abreast_bits(samples) / rate_bps
    behind = left - resent_s - ideal
    return StageExcess(np.maximum(0.0, behind - latency_s), behind)


def compute_excess(samples: RequestSamples, rate_bps: float, largest_bits: float, latency_s: float) -> StageExcess:
    """The lingering excess of the server that computes the requests.

    Every request counts as the largest, whatever its size, as in the promise: padding costs the network, not the
    server.

    Args:
        samples: One window.
        rate_bps: Rate at which the server promises to work off requests.
        largest_bits: Largest request it promises that for.
        latency_s: Promised latency of the server.
    """
    received, finished = samples.server_s[:, 0], samples.server_s[:, 3]
    known = np.isfinite(received) & np.isfinite(finished)
    order = np.flatnonzero(known)[np.argsort(received[known], kind="stable")]
    server = fifo(received[order], np.full(order.size, float(largest_bits)), rate_bps)
    excess, lag = np.full(len(samples), np.nan), np.full(len(samples), np.nan)
    excess[order] = lingering_s(lag_s(finished[order], server.start_s, latency_s), server.idle_s)
    lag[order] = lag_s(finished[order], server.start_s, 0.0)
    return StageExcess(excess, lag)


def requests_beyond(samples: RequestSamples, *, rate_bps: float, burst_bits: float) -> int:
    """Requests by which a tenant is proved to have sent more than its token bucket holds.

    Between the first byte of one request and the last byte of another lie all bits of both and of those between them;
    only such sums count, so a tenant that kept its contract is never said to have broken it.

    Args:
        samples: One window.
        rate_bps: Token rate of its meter.
        burst_bits: Bucket size.
    """
    known = np.isfinite(samples.first_s) & np.isfinite(samples.out_s[:, 0])
    order = np.flatnonzero(known)[np.argsort(samples.out_s[known, 0], kind="stable")]
    # Whatever ends later may not have begun earlier, else its bits would not all lie in between.
    first = np.minimum.accumulate(samples.first_s[order][::-1])[::-1]
    bucket = burst_bits + rate_bps * METER_GRAIN_S
    return int(_beyond(first, samples.out_s[order, 0], samples.out_bits[order], float(rate_bps), float(bucket)))


def _abreast_bits(samples: RequestSamples) -> FloatArray:
    """Bits of requests whose first byte was sent before a request's last one, and whose last byte after it; [n]."""
    begun, ended = samples.first_s, samples.out_s[:, 0]
    known = np.isfinite(begun) & np.isfinite(ended)
    bits, moments = samples.out_bits[known], ended[known]
    abreast = np.full(len(samples), np.nan)
    abreast[known] = _total_until(begun[known], bits, moments) - _total_until(moments, bits, moments)
    return np.asarray(np.maximum(abreast, 0.0))


def _total_until(time_s: FloatArray, bits: FloatArray, moments_s: FloatArray) -> FloatArray:
    """Sum of the bits whose time is at most each of some moments."""
    order = np.argsort(time_s, kind="stable")
    total = np.concatenate(([0.0], np.cumsum(bits[order])))
    return np.asarray(total[np.searchsorted(time_s[order], moments_s, side="right")])


@numba.njit(cache=True)
def _beyond(first_s: FloatArray, last_s: FloatArray, bits: FloatArray, rate_bps: float, bucket: float) -> int:
    """How many requests do not fit, in the order of their ends; one that does not is left out of what follows."""
    level, end, dropped = 0.0, -np.inf, 0
    for i in range(bits.size):
        # Either the bits before count on, or the sum begins anew with this request's own first byte.
        carried = level - rate_bps * (last_s[i] - end)
        filled = max(carried, -rate_bps * (last_s[i] - first_s[i])) + bits[i]
        if filled <= bucket:
            level, end = filled, last_s[i]
        else:
            dropped += 1
    return dropped
