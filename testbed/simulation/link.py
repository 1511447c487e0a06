"""One link shared by classes of packets, each a queue of its own: strict priority, HTB reservations, weighted sharing.

The three differ only in the key that orders the heads of the queues, and the link always serves the smallest key:

* priority: the class's rank;
* weighted: the head's finish tag of self-clocked fair queueing (Golestani, "A self-clocked fair queueing scheme for
  broadband applications", INFOCOM 1994), work-conserving and within one packet per competitor of ideal sharing;
* reserved: the instant from which the class's token bucket lets the head go, as HTB does with rate = ceil: at tokens
  >= 0, charged when the packet really starts, tokens never above the burst. A class that waits for the link longer
  than its burst lasts therefore loses rate, as it does in the kernel. Best effort borrows: it goes when no reserved
  class may and the root's bucket owes nothing; every packet is charged to it, but reserved classes do not obey it.

Among reserved classes that may go at the same time the kernel takes turns, as many bytes a turn as its quantum says;
this link takes turns packet by packet: it takes the class whose head has been allowed to go for longest. Keys sit in a
tournament tree, so a decision costs log2 of the number of classes. A decision taken at t needs every arrival up to t;
what cannot be decided yet waits for the next wave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from testbed.errors import ScenarioError
from testbed.simulation.clock import NEVER, PS_PER_S, ps_per_bit
from testbed.simulation.fifo import Int32Array, Passed
from testbed.simulation.wave import IndexArray, TimeArray, Wave, join

_PRIORITY, _WEIGHTED, _RESERVED = 0, 1, 2
_UNLIMITED = 2**62
_REBASE_AT = 2**60

# Positions in the array of a link's scalars.
_FREE, _ADMITTED, _VIRTUAL, _ROOT, _BORROWER = 0, 1, 2, 3, 4


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


class SharedLink:
    """A link that chooses among classes; built by `priority_link`, `weighted_link` and `reserved_link`."""

    def __init__(  # noqa: PLR0917 - only the three builders below call it
        self,
        discipline: int,
        rate_bps: float,
        delay_ps: int,
        class_of: Sequence[int],
        classes: int,
        limits: Sequence[int | None],
        bit_ps: npt.NDArray[np.float64],
        depth_ps: TimeArray,
        rank: TimeArray,
        root_bit_ps: float = 0.0,
        root_depth_ps: int = 0,
    ) -> None:
        width = 1 << max(1, (classes - 1).bit_length())
        self._discipline = discipline
        self._link_bit_ps = ps_per_bit(rate_bps)
        self._delay_ps = delay_ps
        self._class_of = np.array(class_of, dtype=np.int32)
        self._limit = np.array([_UNLIMITED if limit is None else limit for limit in limits], dtype=np.int64)
        self._bit_ps, self._depth_ps, self._rank = bit_ps, depth_ps, rank
        self._root_bit_ps, self._root_depth_ps = root_bit_ps, root_depth_ps
        self._mark = np.full(classes, -NEVER if discipline == _RESERVED else 0, dtype=np.int64)
        self._key = np.full(width, NEVER, dtype=np.int64)
        self._tree = np.zeros(2 * width, dtype=np.int32)
        self._tree[width:] = np.arange(width)
        for node in range(width - 1, 0, -1):
            self._tree[node] = self._tree[2 * node]
        self._scalars = np.array([-NEVER, 0, 0, -NEVER, classes - 1], dtype=np.int64)
        self._held = Wave.empty()

    def push(self, wave: Wave, horizon_ps: int) -> Passed:
        """Send what can be decided before `horizon_ps`, up to which every arrival is in this wave or an earlier one."""
        wave = join((self._held, wave))
        if self._discipline == _WEIGHTED:
            self._rebase()
        n = len(wave)
        order, lost = np.empty(n, np.int64), np.empty(n, np.int64)
        out = np.empty(n, np.int64)
        pending = np.ones(n, np.bool_)
        served, dropped = _serve(
            self._discipline,
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
            self._rank,
            self._root_bit_ps,
            self._root_depth_ps,
            self._mark,
            self._key,
            self._tree,
            self._scalars,
            order,
            out,
            lost,
            pending,
        )
        admitted = int(self._scalars[_ADMITTED])
        self._held = wave.where(pending)
        self._scalars[_ADMITTED] = np.count_nonzero(pending[:admitted])
        return Passed(wave.take(order[:served]).at(out[:served]), wave.take(lost[:dropped]))

    def _rebase(self) -> None:
        """Only differences of finish tags matter; keep them far from the end of the integers."""
        past = self._scalars[_VIRTUAL]
        if past > _REBASE_AT:
            np.maximum(self._mark - past, 0, out=self._mark)
            self._key[self._key < NEVER] -= past
            self._scalars[_VIRTUAL] = 0


def priority_link(
    rate_bps: float, rank_of: Sequence[int], *, delay_ps: int = 0, limits: Sequence[int | None] = ()
) -> SharedLink:
    """A link with strict, non-preemptive priority.

    Args:
        rate_bps: Rate of the link.
        rank_of: Rank of each tenant, 0 the first to be served; tenants of a rank share a queue.
        delay_ps: Propagation delay behind it.
        limits: Packets that may wait in each rank's queue, None for any number; empty where all are without limit.
    """
    ranks = max(rank_of) + 1
    nothing = np.zeros(ranks, np.int64)
    limits = limits or [None] * ranks
    rank = np.arange(ranks, dtype=np.int64)
    return SharedLink(_PRIORITY, rate_bps, delay_ps, rank_of, ranks, limits, np.zeros(ranks), nothing, rank)


def weighted_link(
    rate_bps: float, weights: Sequence[float], *, delay_ps: int = 0, limits: Sequence[int | None] = ()
) -> SharedLink:
    """A link that backlogged tenants share in proportion to their weights, and that never idles while one has a packet.

    Args:
        rate_bps: Rate of the link.
        weights: Weight of each tenant, positive.
        delay_ps: Propagation delay behind it.
        limits: Packets that may wait in each tenant's queue, None for any number; empty where all are without limit.

    Raises:
        ScenarioError: A weight that is not positive.
    """
    if not min(weights) > 0:
        raise ScenarioError(f"weights of a link: found {min(weights)}, expected positive weights; correct them")
    classes = len(weights)
    share = np.array(weights, dtype=np.float64) / sum(weights)
    nothing = np.zeros(classes, np.int64)
    return SharedLink(
        _WEIGHTED,
        rate_bps,
        delay_ps,
        range(classes),
        classes,
        limits or [None] * classes,
        ps_per_bit(rate_bps) / share,
        nothing,
        nothing,
    )


def reserved_link(
    rate_bps: float, classes: Sequence[Reserved], *, root_bps: float | None = None, delay_ps: int = 0
) -> SharedLink:
    """A port with one HTB class per tenant.

    Args:
        rate_bps: Rate at which the port drains.
        classes: One per tenant; best-effort ones share one queue, whose limit is the first one's.
        root_bps: Rate of the root class, which best effort borrows from; None: the rate at which the port drains.
        delay_ps: Propagation delay behind it.
    """
    reserved = [index for index, one in enumerate(classes) if one.rate_bps is not None]
    borrowers = [one for one in classes if one.rate_bps is None]
    place = {tenant: number for number, tenant in enumerate(reserved)}
    kept = [classes[index] for index in reserved]
    root_bps = rate_bps if root_bps is None else root_bps
    bit_ps = np.array([PS_PER_S / (one.rate_bps or root_bps) for one in kept] + [0.0])
    depth_ps = np.array([round(one.burst_bits * bit) for one, bit in zip(kept, bit_ps, strict=False)] + [0], np.int64)
    limits = [one.limit_packets for one in kept] + [borrowers[0].limit_packets if borrowers else None]
    root_bit_ps = ps_per_bit(root_bps)
    return SharedLink(
        _RESERVED,
        rate_bps,
        delay_ps,
        [place.get(tenant, len(kept)) for tenant in range(len(classes))],
        len(kept) + 1,
        limits,
        bit_ps,
        depth_ps,
        np.zeros(len(kept) + 1, np.int64),
        root_bit_ps,
        round(max((one.burst_bits for one in borrowers), default=0.0) * root_bit_ps),
    )


@numba.njit(cache=True, inline="always")
def _replay(key: TimeArray, tree: Int32Array, k: int) -> None:
    """Play class k's matches again, up to the root; the lower class wins a draw."""
    node = (key.size + k) >> 1
    while node >= 1:
        left, right = tree[2 * node], tree[2 * node + 1]
        tree[node] = left if key[left] <= key[right] else right
        node >>= 1


@numba.njit(cache=True)
def _serve(  # noqa: C901, PLR0912, PLR0915, PLR0917 - one loop; calls inside it would cost what is measured
    discipline: int,
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
    rank: TimeArray,
    root_bit_ps: float,
    root_depth: int,
    mark: TimeArray,
    key: TimeArray,
    tree: Int32Array,
    scalars: TimeArray,
    order: IndexArray,
    out: TimeArray,
    lost: IndexArray,
    pending: npt.NDArray[np.bool_],
) -> tuple[int, int]:
    """Serve until the next decision lies at or beyond the horizon; returns how many were served and dropped."""
    n, classes = time.size, mark.size
    head, tail = np.full(classes, -1, np.int64), np.full(classes, -1, np.int64)
    follows = np.full(n, -1, np.int64)
    queued = np.zeros(classes, np.int64)
    borrower = scalars[_BORROWER]
    free, admitted, virtual, root = scalars[_FREE], scalars[_ADMITTED], scalars[_VIRTUAL], scalars[_ROOT]
    for i in range(admitted):
        k = class_of[tenant[i]]
        if head[k] < 0:
            head[k] = i
        else:
            follows[tail[k]] = i
        tail[k] = i
        queued[k] += 1
    waiting = admitted
    served, dropped = 0, 0
    while True:
        k = tree[1]
        if discipline == _RESERVED:
            start = max(free, key[k])
            if head[borrower] >= 0:
                borrowed = max(free, root)
                if borrowed < start:
                    k, start = np.int32(borrower), borrowed
        else:
            start = free if waiting > 0 else NEVER
        if admitted < n and (waiting == 0 or time[admitted] <= start):
            i = admitted
            admitted += 1
            free = max(free, time[i])
            k = class_of[tenant[i]]
            if queued[k] >= limit[k]:
                lost[dropped] = i
                dropped += 1
                pending[i] = False
                continue
            queued[k] += 1
            waiting += 1
            if head[k] >= 0:
                follows[tail[k]] = i
            else:
                head[k] = i
                if discipline == _PRIORITY:
                    key[k] = rank[k]
                    _replay(key, tree, k)
                elif discipline == _WEIGHTED:
                    key[k] = max(virtual, mark[k]) + np.int64(size[i] * bit_ps[k] + 0.5)
                    _replay(key, tree, k)
                elif k != borrower:
                    key[k] = max(time[i], mark[k])
                    _replay(key, tree, k)
            tail[k] = i
            continue
        if waiting == 0 or start >= horizon:
            break
        i = head[k]
        free = start + np.int64(size[i] * link_bit_ps + 0.5)
        order[served] = i
        out[served] = free + delay
        served += 1
        pending[i] = False
        queued[k] -= 1
        waiting -= 1
        i_next = follows[i]
        head[k] = i_next
        if discipline == _PRIORITY:
            if i_next < 0:
                key[k] = NEVER
                _replay(key, tree, k)
        elif discipline == _WEIGHTED:
            virtual = key[k]
            mark[k] = virtual
            key[k] = virtual + np.int64(size[i_next] * bit_ps[k] + 0.5) if i_next >= 0 else NEVER
            _replay(key, tree, k)
        else:
            root = max(root, start - root_depth) + np.int64(size[i] * root_bit_ps + 0.5)
            if k != borrower:
                mark[k] = max(mark[k], start - depth[k]) + np.int64(size[i] * bit_ps[k] + 0.5)
                key[k] = max(start, mark[k]) if i_next >= 0 else NEVER
                _replay(key, tree, k)
    scalars[_FREE], scalars[_ADMITTED], scalars[_VIRTUAL], scalars[_ROOT] = free, admitted, virtual, root
    return served, dropped
