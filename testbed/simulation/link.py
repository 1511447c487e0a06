"""One link shared by classes of packets, each a queue of its own: strict priority and weighted sharing.

The two differ only in the key that orders the heads of the queues, and the link always serves the smallest key:

* priority: the class's rank;
* weighted: the head's finish tag of self-clocked fair queueing (Golestani, "A self-clocked fair queueing scheme for
  broadband applications", INFOCOM 1994), work-conserving and within one packet per competitor of ideal sharing.

A tournament tree says whose key is the smallest, so a decision costs log2 of the number of classes. A decision taken at
t needs every arrival up to t; what cannot be decided yet waits for the next wave. Reservations, whose heads may have to
wait for themselves, are `testbed.simulation.reserved`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import numpy.typing as npt

from testbed.errors import ScenarioError
from testbed.simulation.clock import NEVER, ps_per_bit
from testbed.simulation.fifo import Int32Array, Passed
from testbed.simulation.reserved import UNLIMITED
from testbed.simulation.tournament import settle, tournament
from testbed.simulation.wave import IndexArray, TimeArray, Wave, join

_PRIORITY, _WEIGHTED = 0, 1
_REBASE_AT = 2**60

# Positions in the array of a link's scalars.
_FREE, _ADMITTED, _VIRTUAL = 0, 1, 2


class SharedLink:
    """A link that chooses among classes; built by `priority_link` and `weighted_link`."""

    def __init__(  # noqa: PLR0917 - only the two builders below call it
        self,
        discipline: int,
        rate_bps: float,
        delay_ps: int,
        class_of: Sequence[int],
        classes: int,
        limits: Sequence[int | None],
        bit_ps: npt.NDArray[np.float64],
    ) -> None:
        self._discipline = discipline
        self._link_bit_ps = ps_per_bit(rate_bps)
        self._delay_ps = delay_ps
        self._class_of = np.array(class_of, dtype=np.int32)
        self._limit = np.array([UNLIMITED if limit is None else limit for limit in limits], dtype=np.int64)
        self._bit_ps = bit_ps
        self._mark = np.zeros(classes, dtype=np.int64)
        self._key, self._winner = tournament(classes)
        self._scalars = np.array([-NEVER, 0, 0], dtype=np.int64)
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
            self._mark,
            self._key,
            self._winner,
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
    return SharedLink(_PRIORITY, rate_bps, delay_ps, rank_of, ranks, limits or [None] * ranks, np.zeros(ranks))


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
    return SharedLink(
        _WEIGHTED,
        rate_bps,
        delay_ps,
        range(classes),
        classes,
        limits or [None] * classes,
        ps_per_bit(rate_bps) / share,
    )


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
    mark: TimeArray,
    key: TimeArray,
    winner: Int32Array,
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
    free, admitted, virtual = scalars[_FREE], scalars[_ADMITTED], scalars[_VIRTUAL]
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
        if admitted < n and (waiting == 0 or time[admitted] <= free):
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
                    settle(key, winner, k, np.int64(k))
                else:
                    settle(key, winner, k, max(virtual, mark[k]) + np.int64(size[i] * bit_ps[k] + 0.5))
            tail[k] = i
            continue
        if waiting == 0 or free >= horizon:
            break
        k = winner[1]
        i = head[k]
        free += np.int64(size[i] * link_bit_ps + 0.5)
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
                settle(key, winner, k, NEVER)
        else:
            virtual = key[1]
            mark[k] = virtual
            at = NEVER
            if i_next >= 0:
                at = virtual + np.int64(size[i_next] * bit_ps[k] + 0.5)
            settle(key, winner, k, at)
    scalars[_FREE], scalars[_ADMITTED], scalars[_VIRTUAL] = free, admitted, virtual
    return served, dropped
