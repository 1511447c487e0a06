"""One source's requests as an endless stream, read in pieces: when each is due, how large it is, what it will cost.

Times and sizes are those that `testbed.traffic.request_schedules` draws for a whole window from the same seed, so the
simulator asks what the senders of a run ask; computations have a generator of their own.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from testbed.scenario.model import Arrivals, Misbehaviour, TraceArrivals
from testbed.simulation.asking import Asking, IntArray, Wire
from testbed.simulation.clock import PS_PER_S
from testbed.simulation.streams import Given, Packets, Rows, Stream, stream
from testbed.simulation.wave import TimeArray
from testbed.traffic.workloads import read_workload

SEEDS_OF_CALLS = 4
"""Children of a source's seed that decide its requests: times, sizes, images and computations."""


class Calls(NamedTuple):
    """Some requests of one source, in the order they are due.

    Attributes:
        time_ps: Intended times, int64[n].
        request_bytes: Sizes of the messages, int64[n].
        work_ps: What each takes of a worker, int64[n].
    """

    time_ps: TimeArray
    request_bytes: IntArray
    work_ps: TimeArray

    def part(self, chosen: slice) -> Calls:
        """Some of them."""
        return Calls(*(values[chosen] for values in self))


class GivenCalls:
    """Requests that are given rather than drawn.

    Args:
        calls: All of them.
        wire: What they are on the wire.

    Attributes:
        drawn: The requests whose packets were read last.
    """

    def __init__(self, calls: Calls, wire: Wire) -> None:
        self._calls, self._wire, self._given = calls, wire, Given(calls.time_ps)
        self.drawn = calls.part(slice(0, 0))

    def until(self, time_ps: int) -> Packets:
        """Packets of the next requests."""
        self.drawn = self._calls.part(self._given.until(time_ps))
        return _packets(self.drawn, self._wire)


class CallStream:
    """A source's requests, drawn and read as packets.

    Args:
        arrivals: The declared process, one arrival a request.
        asking: What is asked.
        seed: Of this source in this window, `testbed.traffic.arrivals.tenant_seed`.
        misbehaviour: How the source departs from the process.
        group: As of `testbed.simulation.streams.stream`.
        strength: As of `testbed.simulation.streams.stream`.

    Attributes:
        drawn: The requests whose packets were read last.
    """

    def __init__(
        self,
        arrivals: Arrivals,
        asking: Asking,
        seed: np.random.SeedSequence,
        *,
        misbehaviour: Misbehaviour | None = None,
        group: np.random.SeedSequence | None = None,
        strength: float | None = None,
    ) -> None:
        # Which images are sent costs nobody anything.
        times, sizes, _, work = seed.spawn(SEEDS_OF_CALLS)
        self._asking = asking
        self._sizes, self._work = np.random.default_rng(sizes), np.random.default_rng(work)
        self._bytes = np.array(asking.request_bytes, dtype=np.int64)
        self._due: _Due = (
            _Replayed(arrivals, times)
            if isinstance(arrivals, TraceArrivals)
            else _Drawn(stream(arrivals, times, misbehaviour=misbehaviour, group=group, strength=strength))
        )
        self.drawn = Calls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64))

    def until(self, time_ps: int) -> Packets:
        """Packets of the next requests."""
        time, row = self._due.until(time_ps)
        work_ps = np.rint(self._asking.work(self._work, time.size) * PS_PER_S).astype(np.int64)
        self.drawn = Calls(time, self._sizes_of(row), work_ps)
        return _packets(self.drawn, self._asking.out)

    def _sizes_of(self, row: IntArray) -> IntArray:
        if self._asking.by_row:
            return self._bytes[row]
        if self._bytes.size == 1:
            return np.full(row.size, self._bytes[0])
        share = np.array(self._asking.weights or np.ones(self._bytes.size))
        return self._sizes.choice(self._bytes, size=row.size, p=share / share.sum())


def _packets(calls: Calls, wire: Wire) -> Packets:
    cut = wire.cut(calls.request_bytes)
    return Packets(np.repeat(calls.time_ps, cut.packets), cut.size_bits, cut.ends)


class _Due(Protocol):
    def until(self, time_ps: int) -> tuple[TimeArray, IntArray]:
        """Times of the next requests, and the row of the trace that each is; 0 where there is no trace."""


class _Drawn:
    def __init__(self, arrivals: Stream) -> None:
        self._arrivals = arrivals

    def until(self, time_ps: int) -> tuple[TimeArray, IntArray]:
        time = self._arrivals.until(time_ps).time_ps
        return time, np.zeros(time.size, np.int64)


class _Replayed:
    def __init__(self, arrivals: TraceArrivals, seed: np.random.SeedSequence) -> None:
        trace = read_workload(arrivals)
        self._rows = Rows(
            trace.time_s / arrivals.speed_up, trace.period_s / arrivals.speed_up, np.random.default_rng(seed)
        )

    def until(self, time_ps: int) -> tuple[TimeArray, IntArray]:
        rows, times_s = self._rows.until(time_ps)
        return np.rint(times_s * PS_PER_S).astype(np.int64), rows
