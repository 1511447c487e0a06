"""What a host takes for packets beside what a domain is meant to do to them, from moment to moment, as a run showed it.

A software switch answers late by what its processor does at that moment, so the time is a process and no law: packets
of one moment are held up alike, and a pause lets a burst through the meters that it held up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from testbed.simulation.clock import NEVER
from testbed.simulation.fifo import Int32Array, Passed
from testbed.simulation.wave import TimeArray, Wave, merge


@dataclass(frozen=True, eq=False)
class HostTimes:
    """What packets were held up that arrived at some moments; m of them.

    Attributes:
        at_ps: Moments, non-decreasing, int64[m]; at least one.
        taken_ps: What a packet that arrived then was held up, not negative, int64[m].
    """

    at_ps: TimeArray
    taken_ps: TimeArray


class Host:
    """Holds packets up for as long as the host held up those of the moment at which they arrive.

    Between two moments the time changes in proportion, before the first and after the last it is theirs. A tenant's
    packets keep their order; others may overtake them, as a switch that reads its ports in turn lets them.

    Args:
        times: Of the domain.
    """

    def __init__(self, times: HostTimes) -> None:
        self._at, self._taken = times.at_ps.astype(np.float64), times.taken_ps.astype(np.float64)
        # When the last packet of each tenant left.
        self._last_ps = np.empty(0, np.int64)
        self._held = Wave.empty()

    def push(self, wave: Wave, horizon_ps: int) -> Passed:
        """Hold up a wave; what the host still has at the horizon waits for the next one."""
        taken_ps = np.rint(np.interp(wave.time_ps, self._at, self._taken)).astype(np.int64)
        leaves_ps = wave.time_ps + taken_ps
        unknown = max(0, int(wave.tenant.max(initial=-1)) + 1 - self._last_ps.size)
        self._last_ps = np.append(self._last_ps, np.full(unknown, -NEVER, np.int64))
        _keep_order(leaves_ps, wave.tenant, self._last_ps)
        late = merge((self._held, wave.at(leaves_ps)))
        gone = int(np.searchsorted(late.time_ps, horizon_ps))
        self._held = late.take(np.arange(gone, len(late)))
        return Passed(late.take(np.arange(gone)), Wave.empty())


@numba.njit(cache=True)
def _keep_order(leaves: TimeArray, tenant: Int32Array, last: TimeArray) -> None:
    """Lets nobody leave before the packet of its tenant in front of it, in place."""
    for i in range(leaves.size):
        k = tenant[i]
        last[k] = max(last[k], leaves[i])
        leaves[i] = last[k]
