"""An inference server of c workers whose requests take turns by their tenants' shares, as `inference_server` has it.

The order is start-time fair queueing over expected work (`inference_server.scheduler`): the head of each queue carries
the virtual time at which a server of the tenant's share alone would begin it, and the smallest is taken. What a
computation really takes is nobody's to know beforehand. A request whose deadline has passed is dropped before it is
computed and costs its tenant nothing. Nothing is batched, as in the servers of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from testbed.simulation.clock import NEVER
from testbed.simulation.wave import IndexArray, TimeArray

FloatArray = npt.NDArray[np.float64]

# Positions in the array of a server's scalars.
_ADMITTED, _SINCE = 0, 1


class Jobs(NamedTuple):
    """Requests at a server, in the order of their arrival; n requests.

    Attributes:
        time_ps: Arrival, non-decreasing, int64[n].
        number: What the request is called, int64[n].
        place: Whose share it uses, int32[n].
        work_ps: What it takes of a worker, int64[n].
        deadline_ps: When nobody wants it any more, int64[n].
    """

    time_ps: TimeArray
    number: IndexArray
    place: npt.NDArray[np.int32]
    work_ps: TimeArray
    deadline_ps: TimeArray

    @classmethod
    def empty(cls) -> Jobs:
        """No requests."""
        nothing = np.empty(0, np.int64)
        return cls(nothing, nothing, np.empty(0, np.int32), nothing, nothing)

    def take(self, index: IndexArray | npt.NDArray[np.bool_]) -> Jobs:
        """The requests at some positions, in that order."""
        return Jobs(
            self.time_ps[index], self.number[index], self.place[index], self.work_ps[index], self.deadline_ps[index]
        )

    def then(self, later: Jobs) -> Jobs:
        """These and others that arrived after them."""
        return Jobs(
            np.concatenate((self.time_ps, later.time_ps)),
            np.concatenate((self.number, later.number)),
            np.concatenate((self.place, later.place)),
            np.concatenate((self.work_ps, later.work_ps)),
            np.concatenate((self.deadline_ps, later.deadline_ps)),
        )


class Served(NamedTuple):
    """What a server did with requests.

    Attributes:
        number: Requests computed, in the order of their start, int64[n].
        start_ps: When each began, int64[n].
        finish_ps: When each was done, int64[n].
        dropped: Numbers of requests whose deadline passed, int64[m].
    """

    number: IndexArray
    start_ps: TimeArray
    finish_ps: TimeArray
    dropped: IndexArray


class SharedServer:
    """A server.

    Args:
        workers: Requests computed at the same time.
        shares: Part of the server of each tenant.
        expected_s: What a computation of each is expected to take.
    """

    def __init__(self, workers: int, shares: Sequence[float], expected_s: Sequence[float]) -> None:
        self._turn_s = np.array(expected_s, dtype=np.float64) / np.array(shares, dtype=np.float64)
        self._begin_s = np.zeros(len(shares))
        self._virtual_s = np.zeros(1)
        self._free_ps = np.full(workers, -NEVER, dtype=np.int64)
        self._rested = np.zeros(workers, np.bool_)
        self._scalars = np.array([0, -NEVER], dtype=np.int64)
        self._held = Jobs.empty()

    def push(self, jobs: Jobs, horizon_ps: int) -> Served:
        """Begin what begins before `horizon_ps`, up to which every arrival is among these or earlier ones."""
        jobs = self._held.then(jobs)
        n = jobs.time_ps.size
        order, dropped = np.empty(n, np.int64), np.empty(n, np.int64)
        start, finish = np.empty(n, np.int64), np.empty(n, np.int64)
        pending = np.ones(n, np.bool_)
        served, lost = _take_turns(
            horizon_ps,
            jobs.time_ps,
            jobs.place,
            jobs.work_ps,
            jobs.deadline_ps,
            self._turn_s,
            self._begin_s,
            self._virtual_s,
            self._free_ps,
            self._rested,
            self._scalars,
            order,
            start,
            finish,
            dropped,
            pending,
        )
        admitted = int(self._scalars[_ADMITTED])
        self._scalars[_ADMITTED] = np.count_nonzero(pending[:admitted])
        self._held = jobs.take(pending)
        return Served(jobs.number[order[:served]], start[:served], finish[:served], jobs.number[dropped[:lost]])


@numba.njit(cache=True)
def _take_turns(  # noqa: C901, PLR0912, PLR0915, PLR0917 - one loop; compiled functions take no keywords
    horizon: int,
    time: TimeArray,
    place: npt.NDArray[np.int32],
    work: TimeArray,
    deadline: TimeArray,
    turn: FloatArray,
    tag: FloatArray,
    virtual: FloatArray,
    free: TimeArray,
    rested: npt.NDArray[np.bool_],
    scalars: TimeArray,
    order: IndexArray,
    begun: TimeArray,
    done: TimeArray,
    dropped: IndexArray,
    pending: npt.NDArray[np.bool_],
) -> tuple[int, int]:
    """Serve until the next decision lies at or beyond the horizon; returns how many were computed and dropped."""
    n, places = time.size, turn.size
    head, tail = np.full(places, -1, np.int64), np.full(places, -1, np.int64)
    follows = np.full(n, -1, np.int64)
    admitted, since = scalars[_ADMITTED], scalars[_SINCE]
    for i in range(admitted):
        k = place[i]
        if head[k] < 0:
            head[k] = i
        else:
            follows[tail[k]] = i
        tail[k] = i
    waiting, served, lost = admitted, 0, 0
    while True:
        worker = np.argmin(free)
        start = max(free[worker], since)
        if admitted < n and (waiting == 0 or time[admitted] <= start):
            if waiting == 0:
                for w in range(free.size):
                    if time[admitted] > free[w] and not rested[w]:
                        # This one found nothing to do, once: who comes next owes nothing to those before.
                        rested[w] = True
                        virtual[0] = max(virtual[0], tag.max())
                since = max(since, time[admitted])
            k = place[admitted]
            if head[k] < 0:
                head[k] = admitted
                tag[k] = max(tag[k], virtual[0])
            else:
                follows[tail[k]] = admitted
            tail[k] = admitted
            admitted += 1
            waiting += 1
            continue
        if waiting == 0 or start >= horizon:
            break
        best = -1
        for k in range(places):
            while head[k] >= 0 and deadline[head[k]] <= start:
                dropped[lost] = head[k]
                pending[head[k]] = False
                lost += 1
                waiting -= 1
                head[k] = follows[head[k]]
            if head[k] >= 0 and (best < 0 or tag[k] < tag[best]):
                best = k
        if best < 0:
            continue
        i = head[best]
        virtual[0] = tag[best]
        tag[best] += turn[best]
        head[best] = follows[i]
        waiting -= 1
        pending[i] = False
        free[worker], rested[worker] = start + work[i], False
        order[served], begun[served], done[served] = i, start, free[worker]
        served += 1
    scalars[_ADMITTED], scalars[_SINCE] = admitted, since
    return served, lost
