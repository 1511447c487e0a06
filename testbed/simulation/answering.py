"""Requests of one company of sources, from their first packet to the last one of their answers.

Packets know nothing of requests: here is which numbers of packets are which request's, what each is to cost the server,
and what became of it. A request is lost with the first of its packets that is lost, because nothing is sent again, and
with the patience of its client. The way out is the window's; the servers at its end and the way back, through the same
domains in the other direction and past no meter, are here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from testbed.simulation.asking import Asking
from testbed.simulation.calls import Calls
from testbed.simulation.domain import SimulatedDomain
from testbed.simulation.shares import Jobs, SharedServer
from testbed.simulation.system import System
from testbed.simulation.tally import TIMEOUT, Tally
from testbed.simulation.wave import IndexArray, TimeArray, Wave
from testbed.traffic.request_demand import EMPTY_BITS

ANSWERED, UNDER_WAY = -1, -2
"""What became of a request, where nothing lost it."""

_STARTED, _FINISHED, _BACK = 0, 1, 2


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Recorded requests in the order of their sending; r requests.

    Attributes:
        tenant: Index of the source, int32[r].
        last: Number of the packet that completes each, int64[r].
        request_bytes: Size of the message, int64[r].
        moments_ps: When a worker began with it and was done, and when its answer was back, -1 where that did not
            happen, int64[r, 3].
        outcome: `ANSWERED`, or what lost it (`testbed.simulation.tally`), int8[r].
    """

    tenant: npt.NDArray[np.int32]
    last: IndexArray
    request_bytes: IndexArray
    moments_ps: TimeArray
    outcome: npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True, eq=False)
class _Open:
    """Requests that something may still be heard of, arrays over them in the order of their sending."""

    first: IndexArray
    last: IndexArray
    tenant: npt.NDArray[np.int32]
    born_ps: TimeArray
    request_bytes: IndexArray
    work_ps: TimeArray
    outcome: npt.NDArray[np.int8]

    @classmethod
    def empty(cls) -> _Open:
        nothing = np.empty(0, np.int64)
        return cls(nothing, nothing, np.empty(0, np.int32), nothing, nothing, nothing, np.empty(0, np.int8))

    def then(self, later: _Open) -> _Open:
        columns: dict[str, Any] = {
            item.name: np.concatenate((getattr(self, item.name), getattr(later, item.name))) for item in fields(self)
        }
        return _Open(**columns)

    def take(self, index: IndexArray | slice) -> _Open:
        columns: dict[str, Any] = {item.name: getattr(self, item.name)[index] for item in fields(self)}
        return _Open(**columns)


class Answering:
    """The requests of a company.

    Args:
        system: All sources and domains.
        members: Indices of the company's sources.
        tally: Counts them: latencies in the sources' rows, ways to the server in those behind (`System.way_out`).
        batch_ps: Length of a part of the window, for the tally.
        recorded_ps: Requests due before this are recorded.
        seeds: Of the impairments of each domain on the way back.
    """

    def __init__(
        self,
        system: System,
        members: Sequence[int],
        tally: Tally,
        *,
        batch_ps: int,
        recorded_ps: int,
        seeds: Sequence[np.random.SeedSequence],
    ) -> None:
        asked: Mapping[int, Asking] = {k: one for k in members if (one := system.sources[k].asking) is not None}
        self._asked = asked
        self._tally, self._batch_ps, self._recorded_ps = tally, batch_ps, recorded_ps
        self.asks = np.zeros(len(system.sources), np.bool_)
        self._way_out, self._timeout_ps = np.zeros((2, len(system.sources)), np.int64)
        self._place = np.zeros(len(system.sources), np.int32)
        self._servers: dict[int, SharedServer] = {}
        self._arrived: dict[int, Jobs] = {}
        for border in sorted({system.sources[k].hops for k in asked}):
            here = [k for k in asked if system.sources[k].hops == border]
            self._place[here] = np.arange(len(here))
            self._servers[border] = SharedServer(
                system.hops[border - 1].workers,
                [asked[k].share for k in here],
                [asked[k].expected_s for k in here],
            )
            self._arrived[border] = Jobs.empty()
        for k, one in asked.items():
            self.asks[k], self._way_out[k], self._timeout_ps[k] = True, system.way_out(k), one.timeout_ps
        self._back = {
            border: SimulatedDomain(
                replace(system.hops[border - 1], meters=(), compute=None),
                members,
                seeds[border - 1],
                computes=False,
                first=False,
            )
            for border in range(max(self._servers), 0, -1)
        }
        self._waiting = {border: Wave.empty() for border in self._back}
        self._open, self._gone = _Open.empty(), 0
        self._kept: list[_Open] = []
        self._moments = np.empty((0, 3), np.int64)
        self._outcome = np.empty(0, np.int8)
        self.packet_hops = 0

    def send(self, wave: Wave, calls: Sequence[tuple[int, Calls]]) -> None:
        """Requests whose packets are sent in `wave`, by source."""
        sent = []
        for k, drawn in calls:
            cut = self._asked[k].out.cut(drawn.request_bytes)
            number = wave.number[wave.tenant == k]
            n = drawn.time_ps.size
            sent.append(
                _Open(
                    first=number[np.cumsum(cut.packets) - cut.packets],
                    last=number[cut.last],
                    tenant=np.full(n, k, np.int32),
                    born_ps=drawn.time_ps,
                    request_bytes=drawn.request_bytes,
                    work_ps=drawn.work_ps,
                    outcome=np.full(n, UNDER_WAY, np.int8),
                )
            )
        fresh = _Open.empty()
        for one in sent:
            fresh = fresh.then(one)
        fresh = fresh.take(np.argsort(fresh.first, kind="stable"))
        recorded = int(np.searchsorted(fresh.born_ps, self._recorded_ps))
        if recorded:
            self._kept.append(fresh.take(slice(recorded)))
            self._moments = np.concatenate((self._moments, np.full((recorded, 3), -1, np.int64)))
            self._outcome = np.concatenate((self._outcome, np.full(recorded, UNDER_WAY, np.int8)))
        self._open = self._open.then(fresh)

    def lose(self, wave: Wave, cause: int) -> None:
        """Packets on the way out that were dropped; the first of a request's takes the request with it."""
        if len(wave):
            at = self._of_packets(wave.number[_carries(wave)])
            self._end(np.unique(at[at >= 0]), cause)

    def first_of_each(self, wave: Wave) -> Wave:
        """Packets on the way out, of each request no more than the first that carries something of it."""
        asked = self.asks[wave.tenant]
        carrying = np.flatnonzero(asked & _carries(wave))
        _, first = np.unique(self._of_packets(wave.number[carrying]), return_index=True)
        return wave.take(np.sort(np.concatenate((np.flatnonzero(~asked), carrying[first]))))

    def arrive(self, border: int, wave: Wave) -> None:
        """Packets that reach the server behind `border`."""
        done, at = self._under_way(wave.where(wave.ends), self._of_packets(wave.number[wave.ends]))
        row = self._way_out[done.tenant].astype(np.int32)
        self._tally.deliver(replace(done, tenant=row), self._batch_ps)
        self._arrived[border] = self._arrived[border].then(
            Jobs(
                time_ps=done.time_ps,
                number=at + self._gone,
                place=self._place[done.tenant],
                work_ps=self._open.work_ps[at],
                deadline_ps=done.born_ps + self._timeout_ps[done.tenant],
            )
        )

    def carry(self, horizons_ps: Sequence[int]) -> None:
        """Serve and send back what can be known.

        Args:
            horizons_ps: Behind each domain on the way out, up to when every arrival was told, in path order.
        """
        returned = Wave.empty()
        for border, domain in self._back.items():
            horizon_ps = horizons_ps[border - 1]
            coming = [self._waiting[border], returned, *self._serve(border, horizon_ps)]
            ready, self._waiting[border] = _in_order(coming, horizon_ps)
            self.packet_hops += len(ready)
            returned = domain.carry(ready, horizon_ps, self._lose_back)
        self._deliver(returned)
        self._forget()

    def answers(self) -> Answers:
        """Everything recorded."""
        kept = _Open.empty()
        for one in self._kept:
            kept = kept.then(one)
        return Answers(kept.tenant, kept.last, kept.request_bytes, self._moments, self._outcome)

    def _serve(self, border: int, horizon_ps: int) -> list[Wave]:
        """Answers of the server behind a border as packets, a wave for each tenant."""
        if border not in self._servers:
            return []
        served = self._servers[border].push(self._arrived[border], horizon_ps)
        self._arrived[border] = Jobs.empty()
        self._end(served.dropped - self._gone, TIMEOUT)
        self._note(served.number, _STARTED, served.start_ps)
        self._note(served.number, _FINISHED, served.finish_ps)
        at = served.number - self._gone
        return [self._answers_of(k, at[own], served.finish_ps[own]) for k, own in self._by_tenant(at)]

    def _answers_of(self, k: int, at: IndexArray, finish_ps: TimeArray) -> Wave:
        """Answers of one tenant's open requests, as packets."""
        cut = self._asked[k].back.cut(np.full(at.size, self._asked[k].answer_bytes))
        return Wave(
            time_ps=np.repeat(finish_ps, cut.packets),
            born_ps=np.repeat(self._open.born_ps[at], cut.packets),
            number=np.repeat(at + self._gone, cut.packets),
            size_bits=cut.size_bits,
            tenant=np.full(cut.size_bits.size, k, np.int32),
            ends=cut.ends,
        )

    def _by_tenant(self, at: IndexArray) -> list[tuple[int, npt.NDArray[np.bool_]]]:
        tenant = self._open.tenant[at]
        return [(k, tenant == k) for k in np.unique(tenant).tolist()]

    def _lose_back(self, wave: Wave, cause: int) -> None:
        """Packets of answers that were dropped; as on the way out."""
        if len(wave):
            at = wave.number[_carries(wave)] - self._gone
            self._end(np.unique(at[at >= 0]), cause)

    def _deliver(self, wave: Wave) -> None:
        """Packets that are back at their client."""
        done, at = self._under_way(wave.where(wave.ends), wave.number[wave.ends] - self._gone)
        in_time = done.time_ps - done.born_ps <= self._timeout_ps[done.tenant]
        self._end(at[~in_time], TIMEOUT)
        answered = done.where(in_time)
        self._open.outcome[at[in_time]] = ANSWERED
        self._note(answered.number, _BACK, answered.time_ps)
        self._note_outcome(answered.number, ANSWERED)
        self._tally.deliver(answered, self._batch_ps)

    def _under_way(self, wave: Wave, at: IndexArray) -> tuple[Wave, IndexArray]:
        """The packets whose requests, at those places, are not lost yet, and the places."""
        known = np.flatnonzero(at >= 0)
        known = known[self._open.outcome[at[known]] == UNDER_WAY]
        return wave.take(known), at[known]

    def _end(self, at: IndexArray, cause: int) -> None:
        """Open requests that are lost, unless they are already."""
        at = at[self._open.outcome[at] == UNDER_WAY]
        if at.size:
            self._open.outcome[at] = cause
            self._note_outcome(at + self._gone, cause)
            born_ps, tenant = self._open.born_ps[at], self._open.tenant[at]
            lost = Wave(born_ps, born_ps, at, np.zeros(at.size, np.int32), tenant, np.ones(at.size, np.bool_))
            self._tally.lose(lost, self._batch_ps, cause)

    def _note(self, number: IndexArray, what: int, time_ps: TimeArray) -> None:
        known = number < len(self._moments)
        self._moments[number[known], what] = time_ps[known]

    def _note_outcome(self, number: IndexArray, outcome: int) -> None:
        self._outcome[number[number < self._outcome.size]] = outcome

    def _of_packets(self, number: IndexArray) -> IndexArray:
        """Place among the open requests of the one that each packet belongs to; below 0 for one that is over."""
        return np.searchsorted(self._open.first, number, side="right") - 1

    def _forget(self) -> None:
        """Drop the oldest requests that are over."""
        under_way = np.flatnonzero(self._open.outcome == UNDER_WAY)
        over = int(under_way[0]) if under_way.size else self._open.outcome.size
        self._open = self._open.take(slice(over, None))
        self._gone += over


def _carries(wave: Wave) -> npt.NDArray[np.bool_]:
    """Which packets carry something of a message; what follows its last packet does not."""
    return np.asarray(wave.ends | (wave.size_bits > EMPTY_BITS))


def _in_order(waves: Sequence[Wave], horizon_ps: int) -> tuple[Wave, Wave]:
    """Waves merged by time, requests in the order of their sending at one instant, and cut at the horizon."""
    arrays = [np.concatenate(columns) for columns in zip(*(wave.arrays() for wave in waves), strict=True)]
    together = Wave(*arrays)
    ordered = together.take(np.lexsort((together.number, together.time_ps)))
    now = int(np.searchsorted(ordered.time_ps, horizon_ps))
    return ordered.take(np.arange(now)), ordered.take(np.arange(now, len(ordered)))
