"""What is remembered of a packet: one count in a histogram. Tallies of chunks, windows and machines add up.

Latencies fall into bins whose width is 1/512 of an octave's start (0.2 %) from 1.024 ns on, and into exact order
statistics where the histogram would be least sure: the smallest, the largest, and the `EXTREMES` largest of each
tenant. A second, coarse histogram per `BATCHES` equal parts of the window says how strongly slow packets cling together
(`testbed.simulation.estimate`). A tally is some 300 kB a tenant whatever the number of packets, and a hundredth of that
on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from testbed.simulation.clock import NEVER
from testbed.simulation.wave import TimeArray, Wave
from testbed.traffic.schedules import load_arrays, save_arrays

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

BATCHES = 32
EXTREMES = 1024

_FINE_BITS, _COARSE_BITS = 9, 3
_FIRST_OCTAVE, _OCTAVES = 10, 53
FIRST_BIN = (1023 + _FIRST_OCTAVE) << _FINE_BITS
FINE_BINS = _OCTAVES << _FINE_BITS
COARSE_BINS = (_OCTAVES << _COARSE_BITS) + 1
"""The last coarse bin counts packets that never arrived."""

_BY_PART = ("coarse", "metered")
_ADDED = ("fine", "n", "lost", "passed_beyond", "late", "within", "sum_ps")
_ARRAYS = (*_BY_PART, *_ADDED, "top", "top_count", "smallest_ps")

RANDOM, METER, QUEUE, TIMEOUT, LATER_METER = 0, 1, 2, 3, 4
"""What lost a packet, or a request: `METER` is that of the first domain, which drops what breaks the contract, and
`LATER_METER` that of any other, which should drop nothing; `TIMEOUT` ends only a request, answered too late."""
CAUSES = 5


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """Counts of K tenants; mutable arrays, so that a chunk costs no allocation.

    Of a tenant that asks requests are counted, and in rows behind those of all tenants their ways to the server.

    Attributes:
        deadline_ps: Deadline of each tenant, int64[K]; a packet above it is late.
        fine: Delivered packets by latency, int64[K, FINE_BINS].
        coarse: All packets by part of the window and latency, int64[B, K, COARSE_BINS].
        metered: Those that the first domain's meter dropped by part of the window, int64[B, K].
        top: Largest latencies, unordered, int64[K, 2 EXTREMES], of which `top_count` are filled: those of all delivered
            packets, or no fewer than the `EXTREMES` largest.
        top_count: int64[K].
        n: Packets, lost ones included, int64[K].
        lost: Packets that never arrived, by what lost them (`RANDOM` to `LATER_METER`), int64[K, CAUSES].
        passed_beyond: Packets, or requests, beyond the contract of a tenant that no meter polices, int64[K].
        late: Delivered packets above the deadline, int64[K].
        within: Packets delivered before the window's end, int64[K]; what waits then is delivered behind it.
        smallest_ps: Smallest latency, int64[K].
        sum_ps: Sum of latencies, float64[K].
    """

    deadline_ps: TimeArray
    fine: IntArray
    coarse: IntArray
    metered: IntArray
    top: TimeArray
    top_count: IntArray
    n: IntArray
    lost: IntArray
    passed_beyond: IntArray
    late: IntArray
    within: IntArray
    smallest_ps: TimeArray
    sum_ps: FloatArray
    _floor: TimeArray = field(repr=False)

    @classmethod
    def of(cls, deadlines_ps: Sequence[int | None]) -> Tally:
        """An empty tally.

        Args:
            deadlines_ps: Deadline of each tenant, None where there is none.
        """
        k = len(deadlines_ps)
        return cls(
            deadline_ps=np.array([NEVER if one is None else one for one in deadlines_ps], dtype=np.int64),
            fine=np.zeros((k, FINE_BINS), np.int64),
            coarse=np.zeros((BATCHES, k, COARSE_BINS), np.int64),
            metered=np.zeros((BATCHES, k), np.int64),
            top=np.zeros((k, 2 * EXTREMES), np.int64),
            top_count=np.zeros(k, np.int64),
            n=np.zeros(k, np.int64),
            lost=np.zeros((k, CAUSES), np.int64),
            passed_beyond=np.zeros(k, np.int64),
            late=np.zeros(k, np.int64),
            within=np.zeros(k, np.int64),
            smallest_ps=np.full(k, NEVER, np.int64),
            sum_ps=np.zeros(k),
            _floor=np.full(k, -1, np.int64),
        )

    @property
    def largest_ps(self) -> TimeArray:
        """Largest latency of each tenant, -1 where nothing was delivered."""
        filled = np.arange(self.top.shape[1]) < self.top_count[:, None]
        return np.asarray(np.max(self.top, axis=1, initial=-1, where=filled))

    @property
    def nonconforming(self) -> IntArray:
        """Packets, or requests, of each tenant that broke its contract, int64[K]: what EXCUSED rests on.

        They are what its token bucket does not hold where it enters, whether a meter drops them there or nobody does.
        """
        return np.asarray(self.lost[:, METER] + self.passed_beyond)

    def only(self, tenant: int) -> Tally:
        """The tally of one tenant."""
        chosen = slice(tenant, tenant + 1)
        columns = {name: getattr(self, name)[chosen] for name in ("deadline_ps", *_ARRAYS) if name not in _BY_PART}
        parts = {name: getattr(self, name)[:, chosen] for name in _BY_PART}
        return Tally(**columns, **parts, _floor=self._floor[chosen])

    def unmetered(self, tenant: int, *, sent: bool) -> Tally:
        """The tally of one tenant without the losses to its first meter; to a later one no contract lets it lose.

        Args:
            tenant: Index of the tenant.
            sent: Whether what it dropped counts as sent, and in time; else it counts for nothing.
        """
        own = self.only(tenant)
        n, fine, coarse, lost = own.n.copy(), own.fine.copy(), own.coarse.copy(), own.lost.copy()
        dropped = lost[:, METER].copy()
        lost[:, METER] = 0
        coarse[:, :, -1] -= own.metered
        if sent:
            fine[:, 0] += dropped
            coarse[:, :, 0] += own.metered
        else:
            n -= dropped
        return replace(own, n=n, fine=fine, coarse=coarse, lost=lost, metered=np.zeros_like(own.metered))

    def with_coarse(self, coarse: IntArray) -> Tally:
        """The same tally with other counts by part of the window."""
        return replace(self, coarse=coarse)

    def deliver(self, wave: Wave, batch_ps: int) -> None:
        """Count packets that arrived at `wave.time_ps`.

        Args:
            wave: The packets.
            batch_ps: Length of one part of the window.
        """
        _deliver(
            wave.time_ps,
            wave.born_ps,
            wave.tenant,
            batch_ps,
            self.deadline_ps,
            self.fine,
            self.coarse,
            self.top,
            self.top_count,
            self._floor,
            self.n,
            self.late,
            self.within,
            self.smallest_ps,
            self.sum_ps,
        )

    def lose(self, wave: Wave, batch_ps: int, cause: int) -> None:
        """Count packets that will not arrive, and what lost them."""
        tenants = self.n.size
        if len(wave):
            lost = np.bincount(wave.tenant, minlength=tenants)
            part = np.minimum(wave.born_ps // batch_ps, BATCHES - 1)
            by_part = np.bincount(part * tenants + wave.tenant, minlength=BATCHES * tenants)
            self.n[:] += lost
            self.lost[:, cause] += lost
            self.coarse[:, :, COARSE_BINS - 1] += by_part.reshape(BATCHES, tenants)
            if cause == METER:
                self.metered[:] += by_part.reshape(BATCHES, tenants)

    def exceed(self, wave: Wave) -> None:
        """Count packets that are beyond the contract of their tenant and pass all the same."""
        if len(wave):
            self.passed_beyond[:] += np.bincount(wave.tenant, minlength=self.n.size)

    def save(self, path: Path) -> None:
        """Write the counts to an `.npz` file, all at once or not at all."""
        save_arrays(path, {name: getattr(self, name) for name in ("deadline_ps", *_ARRAYS)}, compressed=True)

    @classmethod
    def load(cls, path: Path) -> Tally:
        """Read what `save` wrote.

        Raises:
            ValueError: The file is no tally.
            OSError: The file cannot be read.
        """
        arrays: Mapping[str, npt.NDArray[Any]] = load_arrays(path, ("deadline_ps", *_ARRAYS))
        return cls(**arrays, _floor=np.full(arrays["n"].size, -1, np.int64))


def merge(tallies: Iterable[Tally]) -> Tally:
    """The tally of several windows of the same tenants; parts of windows stay apart, [B windows, K, COARSE_BINS].

    Tallies are taken one at a time, so that of all of them the parts alone are in memory, once.
    """
    rest = iter(tallies)
    first = next(rest)
    whole = first
    for one in rest:
        if whole is first:
            whole = replace(first, **{name: getattr(first, name).copy() for name in _ARRAYS})
        for name in _BY_PART:
            _append(getattr(whole, name), getattr(one, name))
        for name in _ADDED:
            np.add(getattr(whole, name), getattr(one, name), out=getattr(whole, name))
        np.minimum(whole.smallest_ps, one.smallest_ps, out=whole.smallest_ps)
        for k in range(whole.n.size):
            largest = extremes((whole.top[k, : whole.top_count[k]], one.top[k, : one.top_count[k]]))
            whole.top[k, : largest.size] = largest
            whole.top_count[k] = largest.size
    return whole


def _append(found: IntArray, more: IntArray) -> None:
    """Make an array longer where it lies: together with its parts it would need its memory twice."""
    filled = len(found)
    # Nothing else looks into it: it was copied for this.
    found.resize((filled + len(more), *found.shape[1:]), refcheck=False)
    found[filled:] = more


def extremes(parts: Iterable[TimeArray]) -> TimeArray:
    """The largest latencies of several tallies together, in ps, largest first: `EXTREMES`, or all if there are fewer.

    Each part holds the largest of its own packets: all of them, or at least `EXTREMES`. So a latency that a part does
    not hold has at least `EXTREMES` in that part alone that are no smaller, and is not needed among the `EXTREMES`
    largest of all; where the parts hold fewer than that together, none of them lacks any. Below, the parts are not
    complete together: one whose packets are all slow may hold none of a size of which another holds every one. What is
    returned is again such a part, so parts may be added up in any order.

    Args:
        parts: Filled places of `Tally.top` of one tenant each, int64[at most 2 EXTREMES].
    """
    return np.asarray(np.sort(np.concatenate(list(parts)))[::-1][:EXTREMES])


def fine_edges_ps() -> FloatArray:
    """Lower edges of the fine bins and the upper edge of the last one, float64[FINE_BINS + 1]."""
    return _edges(_FINE_BITS, FINE_BINS + 1)


def coarse_edges_ps() -> FloatArray:
    """Lower edges of the coarse bins; that of the last one, which counts lost packets, is the end of the others."""
    return _edges(_COARSE_BITS, COARSE_BINS)


def _edges(bits: int, number: int) -> FloatArray:
    index = np.arange(number)
    part = (index & ((1 << bits) - 1)) / (1 << bits)
    edges = np.ldexp(1.0 + part, _FIRST_OCTAVE + (index >> bits))
    edges[0] = 0.0
    return np.asarray(edges)


@numba.njit(cache=True)
def _deliver(  # noqa: PLR0917 - compiled functions take no keywords
    time: TimeArray,
    born: TimeArray,
    tenant: npt.NDArray[np.int32],
    batch: int,
    deadline: TimeArray,
    fine: IntArray,
    coarse: IntArray,
    top: TimeArray,
    top_count: IntArray,
    floor: TimeArray,
    n: IntArray,
    late: IntArray,
    within: IntArray,
    smallest: TimeArray,
    sum_ps: FloatArray,
) -> None:
    last = coarse.shape[0] - 1
    size = top.shape[1]
    part, part_end = np.int64(0), np.int64(-1)
    end = coarse.shape[0] * batch
    for i in range(time.size):
        k = tenant[i]
        latency = time[i] - born[i]
        # The leading bits of a float are its octave and the place in it.
        where = max(np.int64(0), (np.float64(latency).view(np.int64) >> 43) - FIRST_BIN)
        fine[k, where] += 1
        if not part_end - batch <= born[i] < part_end:
            part = min(np.int64(last), born[i] // batch)
            part_end = (part + 1) * batch
        coarse[part, k, where >> 6] += 1
        n[k] += 1
        sum_ps[k] += latency
        if latency > deadline[k]:
            late[k] += 1
        if time[i] < end:
            within[k] += 1
        smallest[k] = min(smallest[k], latency)
        if latency > floor[k]:
            if top_count[k] == size:
                kept = np.sort(top[k])
                floor[k] = kept[size // 2 - 1]
                top[k, : size // 2] = kept[size // 2 :]
                top_count[k] = size // 2
            top[k, top_count[k]] = latency
            top_count[k] += 1
