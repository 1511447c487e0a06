"""Servers that keep the order of arrival, whose departures follow from each arrival at once: links and lone buckets.

`D_n = max(A_n, D_{n-1}) + size/rate` (Lindley, "The theory of queues with a single server", 1952) for a link; a token
bucket lets a packet start as soon as it owes nothing and charges it then, as Linux's HTB does: it sends at tokens >= 0
and goes negative (`sch_htb.c`). Servers that choose among tenants are
`testbed.simulation.link`'s and `testbed.simulation.reserved`'s.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from testbed.simulation.clock import NEVER, ps_per_bit
from testbed.simulation.wave import IndexArray, TimeArray, Wave

Int32Array = npt.NDArray[np.int32]


class Passed(NamedTuple):
    """What a server made of a wave.

    Attributes:
        on: Packets that leave it, in the order in which they arrive at the next server.
        lost: Packets it dropped, at the time of their arrival.
    """

    on: Wave
    lost: Wave


class FifoLink:
    """A link that serialises whatever comes, in the order of arrival.

    Args:
        rate_bps: Rate of the link.
        delay_ps: Propagation delay behind it.
        limit_packets: Packets that may wait, the one being sent not counted; None for any number. A packet that
            arrives at the instant at which another one starts still finds it waiting.
    """

    def __init__(self, rate_bps: float, delay_ps: int = 0, limit_packets: int | None = None) -> None:
        self._ps_per_bit = ps_per_bit(rate_bps)
        self._delay_ps = delay_ps
        self._waiting = _Waiting(limit_packets)
        self._free_ps = -NEVER

    def push(self, wave: Wave, horizon_ps: int) -> Passed:
        """Send a wave; every departure is known at once, whatever the horizon."""
        del horizon_ps
        out = np.empty(len(wave), np.int64)
        if self._waiting.limit is None:
            self._free_ps = _send(wave.time_ps, wave.size_bits, out, self._ps_per_bit, self._delay_ps, self._free_ps)
            return Passed(wave.at(out), Wave.empty())
        self._free_ps = _send_or_drop(
            wave.time_ps, wave.size_bits, out, self._ps_per_bit, self._delay_ps, self._free_ps, *self._waiting.state
        )
        return _split(wave, out)


class Bucket:
    """One tenant's token bucket and nothing shared behind it: HTB's class with rate = ceil on a port never busy.

    Args:
        rate_bps: Rate of the bucket.
        burst_bits: Its depth.
        delay_ps: Propagation delay behind it.
        limit_packets: Packets that may wait; None for any number.
    """

    def __init__(self, rate_bps: float, burst_bits: float, delay_ps: int = 0, limit_packets: int | None = None) -> None:
        self._ps_per_bit = ps_per_bit(rate_bps)
        self._depth_ps = round(burst_bits * self._ps_per_bit)
        self._delay_ps = delay_ps
        self._waiting = _Waiting(limit_packets)
        self._due_ps = -NEVER

    def push(self, wave: Wave, horizon_ps: int) -> Passed:
        """Shape a wave; every departure is known at once, whatever the horizon."""
        del horizon_ps
        out = np.empty(len(wave), np.int64)
        if self._waiting.limit is None:
            self._due_ps = _shape(
                wave.time_ps, wave.size_bits, out, self._ps_per_bit, self._depth_ps, self._delay_ps, self._due_ps
            )
            return Passed(wave.at(out), Wave.empty())
        self._due_ps = _shape_or_drop(
            wave.time_ps,
            wave.size_bits,
            out,
            self._ps_per_bit,
            self._depth_ps,
            self._delay_ps,
            self._due_ps,
            *self._waiting.state,
        )
        return _split(wave, out)


class _Waiting:
    """Start times of the packets that wait, in a ring, so that a limit can be kept without looking at all of them."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.state: tuple[TimeArray, IndexArray] = (np.empty((limit or 0) + 1, np.int64), np.zeros(2, np.int64))


def _split(wave: Wave, out: TimeArray) -> Passed:
    """Packets that were given a time go on, the others are lost."""
    sent = out >= 0
    if sent.all():
        return Passed(wave.at(out), Wave.empty())
    return Passed(wave.at(out).where(sent), wave.where(~sent))


@numba.njit(cache=True)
def _send(  # noqa: PLR0917 - compiled functions take no keywords
    time: TimeArray, size: Int32Array, out: TimeArray, bit_ps: float, delay: int, free: int
) -> int:
    for i in range(time.size):
        free = max(time[i], free) + np.int64(size[i] * bit_ps + 0.5)
        out[i] = free + delay
    return free


@numba.njit(cache=True)
def _send_or_drop(  # noqa: PLR0917 - compiled functions take no keywords
    time: TimeArray,
    size: Int32Array,
    out: TimeArray,
    bit_ps: float,
    delay: int,
    free: int,
    ring: TimeArray,
    ends: IndexArray,
) -> int:
    first, number = ends[0], ends[1]
    for i in range(time.size):
        while number > 0 and ring[first] < time[i]:
            first = first + 1 if first + 1 < ring.size else 0
            number -= 1
        if number >= ring.size - 1:
            out[i] = -1
            continue
        start = max(time[i], free)
        free = start + np.int64(size[i] * bit_ps + 0.5)
        out[i] = free + delay
        last = first + number
        ring[last if last < ring.size else last - ring.size] = start
        number += 1
    ends[0], ends[1] = first, number
    return free


@numba.njit(cache=True)
def _shape(  # noqa: PLR0917 - compiled functions take no keywords
    time: TimeArray, size: Int32Array, out: TimeArray, bit_ps: float, depth: int, delay: int, due: int
) -> int:
    for i in range(time.size):
        start = max(time[i], due)
        due = max(due, start - depth) + np.int64(size[i] * bit_ps + 0.5)
        out[i] = start + delay
    return due


@numba.njit(cache=True)
def _shape_or_drop(  # noqa: PLR0917 - compiled functions take no keywords
    time: TimeArray,
    size: Int32Array,
    out: TimeArray,
    bit_ps: float,
    depth: int,
    delay: int,
    due: int,
    ring: TimeArray,
    ends: IndexArray,
) -> int:
    first, number = ends[0], ends[1]
    for i in range(time.size):
        while number > 0 and ring[first] < time[i]:
            first = first + 1 if first + 1 < ring.size else 0
            number -= 1
        if number >= ring.size - 1:
            out[i] = -1
            continue
        start = max(time[i], due)
        due = max(due, start - depth) + np.int64(size[i] * bit_ps + 0.5)
        out[i] = start + delay
        last = first + number
        ring[last if last < ring.size else last - ring.size] = start
        number += 1
    ends[0], ends[1] = first, number
    return due
