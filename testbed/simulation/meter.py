"""Meters: one token bucket per tenant that drops what does not conform and delays nothing.

Tokens refill continuously; Open vSwitch refills once a millisecond, so at the edge its meters decide up to a
millisecond's tokens differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from testbed.simulation.clock import NEVER, ps_per_bit
from testbed.simulation.fifo import Int32Array, Passed
from testbed.simulation.wave import TimeArray, Wave


@dataclass(frozen=True)
class Policy:
    """One tenant's meter.

    Attributes:
        rate_bps: Rate at which tokens come.
        burst_bits: Tokens that the bucket holds; it starts full.
    """

    rate_bps: float
    burst_bits: float


class Meter:
    """The meters of one domain.

    Args:
        policies: One per tenant; None lets everything of that tenant pass.
    """

    def __init__(self, policies: Sequence[Policy | None]) -> None:
        bits = [0.0 if policy is None else ps_per_bit(policy.rate_bps) for policy in policies]
        self._bit_ps = np.array(bits)
        self._depth_ps = np.array(
            [
                0 if policy is None else round(policy.burst_bits * bit)
                for policy, bit in zip(policies, bits, strict=True)
            ],
            dtype=np.int64,
        )
        # The time at which the bucket would have been empty had it always refilled: GCRA's theoretical arrival time.
        self._empty_ps = np.full(len(policies), -NEVER, dtype=np.int64)

    def push(self, wave: Wave, horizon_ps: int) -> Passed:
        """Let through what conforms."""
        del horizon_ps
        conforms = np.empty(len(wave), np.bool_)
        excess = _police(
            wave.time_ps, wave.size_bits, wave.tenant, self._bit_ps, self._depth_ps, self._empty_ps, conforms
        )
        if excess == 0:
            return Passed(wave, Wave.empty())
        return Passed(wave.where(conforms), wave.where(~conforms))


@numba.njit(cache=True)
def _police(  # noqa: PLR0917 - compiled functions take no keywords
    time: TimeArray,
    size: Int32Array,
    tenant: Int32Array,
    bit_ps: npt.NDArray[np.float64],
    depth: TimeArray,
    empty: TimeArray,
    conforms: npt.NDArray[np.bool_],
) -> int:
    excess = 0
    for i in range(time.size):
        k = tenant[i]
        since = max(empty[k], time[i] - depth[k])
        cost = np.int64(size[i] * bit_ps[k] + 0.5)
        fits = time[i] - since >= cost
        conforms[i] = fits
        if fits:
            empty[k] = since + cost
        else:
            excess += 1
    return excess
