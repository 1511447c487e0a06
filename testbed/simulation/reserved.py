"""A port with one HTB class per tenant, each with a rate of its own, on a link that they share.

A class's token bucket lets its head go from some instant on, as HTB does with rate = ceil: at tokens >= 0, charged when
the packet really starts, tokens never above the burst. A class that waits for the link longer than its burst lasts
therefore loses rate, as it does in the kernel. Best effort borrows: it goes when no reserved class may and the root's
bucket owes nothing; every packet is charged to it, but reserved classes do not obey it.

Among reserved classes that may go at the same time the kernel takes turns, as many bytes a turn as its quantum says;
this port takes turns packet by packet: it takes the class whose head has been allowed to go for longest.

From when on a head may go is known before it has arrived, so arrivals are no events here: packets are sorted by class
once, and every decision sends one. A tournament tree says which class is next, so a decision costs log2 of the
number of classes. A decision taken at t needs every arrival up to t; what cannot be decided yet waits for
the next wave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from testbed.simulation.clock import NEVER, PS_PER_S, ps_per_bit
from testbed.simulation.fifo import Int32Array, Passed
from testbed.simulation.tournament import settle, tournament
from testbed.simulation.wave import IndexArray, TimeArray, Wave, join

UNLIMITED = 2**62

# Positions in the array of a port's scalars: when it is free, and when the root's bucket owes nothing.
_FREE, _ROOT = 0, 1


@dataclass(frozen=True)
class Reserved:
    """One class of a reserved link.

    Attributes:
        rate_bps: Its rate and ceiling; None for best effort, of which there may be several that share one queue.
        burst_bits: Depth of its bucket.
        limit_packets: Packets that may wait; None for any number.
    """

    rate_bps: float | None
    burst_bits: float = 0.0
    limit_packets: int | None = None


class ReservedLink:
    """The port.

    Args:
        rate_bps: Rate at which the port drains.
        classes: One per tenant; best-effort ones share one queue, whose limit is the first one's.
        root_bps: Rate of the root class, which best effort borrows from; None: the rate at which the port drains.
        delay_ps: Propagation delay behind it.
    """

    def __init__(
        self, rate_bps: float, classes: Sequence[Reserved], *, root_bps: float | None = None, delay_ps: int = 0
    ) -> None:
        reserved = [index for index, one in enumerate(classes) if one.rate_bps is not None]
        borrowers = [one for one in classes if one.rate_bps is None]
        place = {tenant: number for number, tenant in enumerate(reserved)}
        kept = [classes[index] for index in reserved]
        limits = [one.limit_packets for one in kept] + [borrowers[0].limit_packets if borrowers else None]
        self._link_bit_ps = ps_per_bit(rate_bps)
        self._delay_ps = delay_ps
        # The last class is best effort's.
        self._class_of = np.array([place.get(tenant, len(kept)) for tenant in range(len(classes))], dtype=np.int32)
        self._limit = np.array([UNLIMITED if limit is None else limit for limit in limits], dtype=np.int64)
        self._bit_ps = np.array([PS_PER_S / one.rate_bps for one in kept if one.rate_bps is not None])
        self._depth_ps = np.array(
            [round(one.burst_bits * bit) for one, bit in zip(kept, self._bit_ps, strict=True)], dtype=np.int64
        )
        self._root_bit_ps = ps_per_bit(rate_bps if root_bps is None else root_bps)
        self._root_depth_ps = round(max((one.burst_bits for one in borrowers), default=0.0) * self._root_bit_ps)
        # When each class's bucket owes nothing, and when it last sent.
        self._mark = np.full(len(kept), -NEVER, dtype=np.int64)
        self._since = self._mark.copy()
        self._scalars = np.array([-NEVER, -NEVER], dtype=np.int64)
        self._held = Wave.empty()

    def push(self, wave: Wave, horizon_ps: int) -> Passed:
        """Send what can be decided before `horizon_ps`, up to which every arrival is in this wave or an earlier one."""
        wave = join((self._held, wave))
        n = len(wave)
        order, lost = np.empty(n, np.int64), np.empty(n, np.int64)
        out = np.empty(n, np.int64)
        pending = np.ones(n, np.bool_)
        served, dropped = _send(
            horizon_ps,
            wave.time_ps,
            wave.size_bits,
            wave.tenant,
            self._class_of,
            self._link_bit_ps,
            self._delay_ps,
            self._limit,
            self._bit_ps,
            self._depth_ps,
            self._root_bit_ps,
            self._root_depth_ps,
            self._mark,
            self._since,
            self._scalars,
            order,
            out,
            lost,
            pending,
        )
        self._held = wave.where(pending)
        return Passed(wave.take(order[:served]).at(out[:served]), wave.take(np.sort(lost[:dropped])))


@numba.njit(cache=True, inline="always")
def _look(  # noqa: PLR0917 - compiled functions take no keywords
    until: int,
    k: int,
    end: int,
    limit: int,
    time: TimeArray,
    packet: IndexArray,
    head: IndexArray,
    seen: IndexArray,
    ahead: IndexArray,
    pending: npt.NDArray[np.bool_],
    lost: IndexArray,
    dropped: int,
) -> int:
    """Queue or drop class k's packets that come up to an instant before which none of it goes; how many are dropped."""
    while ahead[k] < end and time[packet[ahead[k]]] <= until:
        i = packet[ahead[k]]
        ahead[k] += 1
        if seen[k] - head[k] < limit:
            packet[seen[k]] = i
            seen[k] += 1
        else:
            lost[dropped] = i
            dropped += 1
            pending[i] = False
    return dropped


@numba.njit(cache=True)
def _send(  # noqa: C901, PLR0912, PLR0915, PLR0917 - one loop; calls inside it would cost what is measured
    horizon: int,
    time: TimeArray,
    size: Int32Array,
    tenant: Int32Array,
    class_of: Int32Array,
    link_bit_ps: float,
    delay: int,
    limit: TimeArray,
    bit_ps: npt.NDArray[np.float64],
    depth: TimeArray,
    root_bit_ps: float,
    root_depth: int,
    mark: TimeArray,
    since: TimeArray,
    scalars: TimeArray,
    order: IndexArray,
    out: TimeArray,
    lost: IndexArray,
    pending: npt.NDArray[np.bool_],
) -> tuple[int, int]:
    """Send until the next decision lies at or beyond the horizon; returns how many were sent and dropped."""
    n, borrower = time.size, mark.size
    classes = borrower + 1
    # Class k's packets stand at first[k] up to first[k + 1]. Its queue is those from head[k] up to seen[k], one of
    # which may still have to come and will find it empty; whether those from ahead[k] on find room is not known yet.
    first = np.zeros(classes + 1, np.int64)
    for i in range(n):
        first[class_of[tenant[i]] + 1] += 1
    for k in range(classes):
        first[k + 1] += first[k]
    head, seen = first[:-1].copy(), first[:-1].copy()
    ahead = first[:-1].copy()
    packet = np.empty(n, np.int64)
    for i in range(n):
        k = class_of[tenant[i]]
        packet[seen[k]] = i
        seen[k] += 1
    for k in range(classes):
        if first[k + 1] - first[k] <= limit[k]:
            ahead[k] = first[k + 1]
        elif limit[k] > 0:
            seen[k] = ahead[k] = first[k] + 1
        else:
            seen[k] = first[k]

    key, winner = tournament(borrower)
    for k in range(borrower):
        if head[k] < seen[k]:
            settle(key, winner, k, max(since[k], mark[k], time[packet[head[k]]]))
    free, root = scalars[_FREE], scalars[_ROOT]
    served, dropped = 0, 0
    # At NEVER there is nothing left to send.
    horizon = min(horizon, NEVER)
    while True:
        k = int(winner[1])
        start = max(free, key[1])
        if head[borrower] < seen[borrower]:
            borrowed = max(free, root, time[packet[head[borrower]]])
            if borrowed < start:
                k, start = borrower, borrowed
        if start >= horizon:
            break
        end = first[k + 1]
        if ahead[k] < end:
            dropped = _look(start, k, end, limit[k], time, packet, head, seen, ahead, pending, lost, dropped)
        sent = packet[head[k]]
        head[k] += 1
        bits = float(size[sent])
        free = start + np.int64(bits * link_bit_ps + 0.5)
        order[served] = sent
        out[served] = free + delay
        served += 1
        pending[sent] = False
        if head[k] == seen[k] and ahead[k] < end:
            # Nobody waits, so the next to come finds room.
            packet[seen[k]] = packet[ahead[k]]
            seen[k] += 1
            ahead[k] += 1
        root = max(root, start - root_depth) + np.int64(bits * root_bit_ps + 0.5)
        if k != borrower:
            mark[k] = max(mark[k], start - depth[k]) + np.int64(bits * bit_ps[k] + 0.5)
            since[k] = start
            at = NEVER
            if head[k] < seen[k]:
                at = max(start, mark[k], time[packet[head[k]]])
            settle(key, winner, k, at)
    # No class sends before `start` any more, so what found its queue full by then is known.
    for k in range(classes):
        dropped = _look(start, k, first[k + 1], limit[k], time, packet, head, seen, ahead, pending, lost, dropped)
    scalars[_FREE], scalars[_ROOT] = free, root
    return served, dropped
