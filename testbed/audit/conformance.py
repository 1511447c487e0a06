"""Whether a tenant kept its own contract: its captured arrivals against the token bucket it bought.

A tenant that offers more than its bucket holds is excused from nothing by its domains: the verdict EXCUSED rests on the
count made here, from arrivals captured before the first meter, never on what a meter says about itself.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

METER_GRAIN_S = 1e-3
"""Open vSwitch refills its buckets once a millisecond, so a conforming arrival curve is larger by one grain of rate."""


def nonconforming(
    arrival_s: NDArray[np.float64],
    size_bits: NDArray[np.integer],
    *,
    rate_bps: float,
    burst_bits: float,
    grain_s: float = METER_GRAIN_S,
) -> int:
    """Packets that a token bucket (rate, burst plus a grain of it), full at the start, would drop.

    Args:
        arrival_s: float64[n], arrivals in increasing order, seconds.
        size_bits: int[n], L2 frames without FCS.
        rate_bps: Token rate.
        burst_bits: Bucket size.
        grain_s: What the rate gives in this time is added to it, and taken from it if negative.

    Returns:
        How many of the n packets exceed the contract.
    """
    bucket = burst_bits + rate_bps * grain_s
    return int(_excess(arrival_s, np.asarray(size_bits, dtype=np.float64), float(rate_bps), float(bucket)))


@numba.njit(cache=True)
def _excess(arrival_s: NDArray[np.float64], size_bits: NDArray[np.float64], rate_bps: float, bucket: float) -> int:
    tokens = bucket
    dropped = 0
    last = arrival_s[0] if arrival_s.size else 0.0
    for i in range(arrival_s.size):
        tokens = min(bucket, tokens + rate_bps * (arrival_s[i] - last))
        last = arrival_s[i]
        if size_bits[i] <= tokens:
            tokens -= size_bits[i]
        else:
            dropped += 1
    return dropped
