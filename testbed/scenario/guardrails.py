"""Meter rate, burst and queue limit of a reservation whose scenario leaves them out.

The choices are open and fixed, so that two readers of a file derive the same numbers:

* The meter's rate r is half-way between the tenant's mean and its reserved rate R: below R, or nothing would ever
  drain; above the mean, or conforming packets would be dropped.
* The burst b holds what conforming arrivals pile up at rate r with probability 1 - 1e-7. The backlog's tail decays at
  least as fast as e^{-theta b}, with theta from Lundberg's inequality for independent gaps (a Poisson process has
  them) and the exact decay of the fluid queue for Markov on-off arrivals; a policer drops less than such a queue
  overflows. Two packets are added, for the packet itself and for the cutting of fluid into packets, and 1 ms of r for
  the meter's refill grain. A trace gets the largest backlog of its own endless repetition.
* The queue holds b and 50 ms of R, room for what a late scheduler leaves behind.

Nothing here judges whether a reservation makes sense; `testbed.scenario.rules` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from testbed.scenario.model import Arrivals, OnOffArrivals, PoissonArrivals, RenewalArrivals, TraceArrivals
from testbed.traffic.traces import Requests, read_requests

OVERFLOW = 1e-7
REFILL_GRAIN_S = 1e-3
QUEUE_HEADROOM_S = 0.05
LEAST_PACKETS = 10
_KBIT = 1000


def meter_rate_bps(mean_bps: float, rate_bps: int) -> int:
    """Half-way between `mean_bps` and `rate_bps`, in whole kbit/s."""
    return round((mean_bps + rate_bps) / 2 / _KBIT) * _KBIT


def burst_bits(arrivals: Arrivals, meter_bps: int) -> int:
    """Bucket that conforming `arrivals` overflow with at most `OVERFLOW` of their packets, in whole kbit.

    Args:
        arrivals: The declared process, with a mean below `meter_bps`.
        meter_bps: Rate of the meter.

    Raises:
        ScenarioError: A trace that cannot be read.
    """
    if isinstance(arrivals, TraceArrivals):
        backlog_bits = _largest_backlog_bits(read_requests(arrivals), meter_bps)
    else:
        backlog_bits = -math.log(OVERFLOW) / decay_per_bit(arrivals, meter_bps)
    packet_bits = arrivals.size_bits
    needed = backlog_bits + 2 * packet_bits + REFILL_GRAIN_S * meter_bps
    return _whole_kbit(max(needed, LEAST_PACKETS * packet_bits))


def queue_bits(burst: int, rate_bps: int) -> int:
    """Queue limit for a bucket of `burst` bits, in whole kbit."""
    return _whole_kbit(burst + QUEUE_HEADROOM_S * rate_bps)


def decay_per_bit(arrivals: PoissonArrivals | OnOffArrivals | RenewalArrivals, rate_bps: float) -> float:
    """Theta such that P(backlog found by a packet >= q) <= e^{-theta q} at a server of `rate_bps`, in 1/bit.

    Infinite where packets never find a backlog.
    """
    match arrivals:
        case OnOffArrivals(peak_bps=peak, mean_on_s=on, mean_off_s=off):
            return math.inf if peak <= rate_bps else 1 / (on * (peak - rate_bps)) - 1 / (off * rate_bps)
        case PoissonArrivals(rate_per_s=rate, size_bits=size):
            return _lundberg(lambda s: math.log1p(s / rate), size, rate_bps)
        case RenewalArrivals(gap="deterministic"):
            return math.inf
        case RenewalArrivals(gap="hyperexponential", rate_per_s=rate, cv=cv, size_bits=size):
            often = (1 + math.sqrt((cv**2 - 1) / (cv**2 + 1))) / 2
            phases = ((often, 2 * often * rate), (1 - often, 2 * (1 - often) * rate))
            return _lundberg(lambda s: -math.log(sum(p * mu / (mu + s) for p, mu in phases)), size, rate_bps)
        case RenewalArrivals(rate_per_s=rate, cv=cv, size_bits=size):
            shape = 1 / cv**2
            return _lundberg(lambda s: shape * math.log1p(s / (shape * rate)), size, rate_bps)


def _lundberg(exponent: Callable[[float], float], size_bits: int, rate_bps: float) -> float:
    """Positive root of E e^{theta (L - R tau)} = 1, where E e^{-s tau} = e^{-exponent(s)}.

    theta L is linear and exponent(theta R) concave with the larger slope at 0, so there is exactly one.
    """

    def excess(theta: float) -> float:
        return theta * size_bits - exponent(theta * rate_bps)

    high = 1 / size_bits
    while excess(high) < 0:
        high *= 2
    low = high
    while excess(low) >= 0:
        low /= 2
        if low * size_bits < 1e-12:
            return low
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return low


def _largest_backlog_bits(requests: Requests, rate_bps: int) -> float:
    """Largest backlog at `rate_bps` just before the last packet of any request, over endless repetition."""
    time_s = np.concatenate((requests.time_s, requests.time_s + requests.period_s))
    size_bits = np.tile(requests.size_bits, 2)
    spare = np.cumsum(size_bits) - rate_bps * time_s
    before = np.minimum.accumulate(spare - size_bits)
    return float(np.max(spare - before))


def _whole_kbit(bits: float) -> int:
    return math.ceil(bits / _KBIT) * _KBIT
