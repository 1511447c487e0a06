"""One tenant's packets as an endless stream, read in pieces: every arrival process a scenario can declare.

From the same seed a stream gives the packets that `testbed.traffic.arrivals.schedule` gives for a whole window, to the
rounding of its floating seconds, whatever the pieces in which it is read; so the simulator is fed what the senders of a
run are fed. It holds a block of packets and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numba
import numpy as np
import numpy.typing as npt

from testbed.errors import ScenarioError
from testbed.scenario.model import (
    Arrivals,
    Misbehaviour,
    MmppArrivals,
    OnOffArrivals,
    PoissonArrivals,
    RenewalArrivals,
    TraceArrivals,
)
from testbed.simulation.clock import PS_PER_S
from testbed.simulation.paths import CorrelatedPath, OnOffPath, Path, Pieces, RatePath
from testbed.simulation.wave import TimeArray
from testbed.traffic.arrivals import mean_bps
from testbed.traffic.modulation import Moves
from testbed.traffic.renewal import EXPONENTIAL, Gap, gap_law
from testbed.traffic.workloads import read_requests

_BLOCK = 4096


class Packets(NamedTuple):
    """Some packets of one tenant, in the order they leave.

    Attributes:
        time_ps: Intended send times, int64[n].
        size_bits: Frames without FCS, int32[n].
        ends: Whether each completes a request, bool[n].
    """

    time_ps: TimeArray
    size_bits: npt.NDArray[np.int32]
    ends: npt.NDArray[np.bool_]


class Stream(Protocol):
    """A tenant's packets."""

    def until(self, time_ps: int) -> Packets:
        """The next packets, up to those sent at `time_ps`, which is not included."""


def stream(
    arrivals: Arrivals,
    seed: np.random.SeedSequence,
    *,
    misbehaviour: Misbehaviour | None = None,
    group: np.random.SeedSequence | None = None,
    strength: float | None = None,
) -> Stream:
    """One tenant's stream.

    Args:
        arrivals: The declared process.
        seed: Of this tenant in this window, `testbed.traffic.arrivals.tenant_seed`.
        misbehaviour: How the tenant departs from it.
        group: Seed of the process that modulates the tenant's group, `testbed.traffic.arrivals.group_seed`.
        strength: How strongly the tenant follows it, 0 to 1; None for the very path that tenants without a strength
            share, which has the law of strength 1 and, of on-off sources, draws of its own.

    Raises:
        ScenarioError: A trace that cannot be read, or arrivals that contradict themselves.
    """
    rng = np.random.default_rng(seed)
    if misbehaviour is not None and misbehaviour.kind == "flood":
        if misbehaviour.offered_bps is None:
            raise ScenarioError("misbehaviour flood: found no offered rate, expected one; state what the tenant offers")
        return _SpedUp(_declared(arrivals, rng), misbehaviour.offered_bps / mean_bps(arrivals))
    if misbehaviour is not None and misbehaviour.kind == "correlated":
        return _correlated(arrivals, rng, group, strength)
    return _declared(arrivals, rng)


def _declared(arrivals: Arrivals, rng: np.random.Generator) -> Stream:
    match arrivals:
        case PoissonArrivals():
            return _equal(_points(EXPONENTIAL, PS_PER_S / arrivals.rate_per_s, rng), arrivals.size_bits)
        case RenewalArrivals():
            law = gap_law(arrivals.gap, arrivals.cv)
            return _equal(_points(law, PS_PER_S / arrivals.rate_per_s, rng), arrivals.size_bits)
        case OnOffArrivals():
            ready = rng.random()
            return _cut(arrivals, ready, OnOffPath(arrivals.mean_on_s, arrivals.mean_off_s, rng))
        case MmppArrivals():
            states, packets = rng.spawn(2)
            return _equal(_modulated(RatePath(arrivals, states), packets), arrivals.size_bits)
        case TraceArrivals():
            return _Replayed(arrivals, rng)


def _correlated(
    arrivals: Arrivals, rng: np.random.Generator, group: np.random.SeedSequence | None, strength: float | None
) -> Stream:
    if not isinstance(arrivals, OnOffArrivals | MmppArrivals) or group is None:
        raise ScenarioError(
            f"misbehaviour correlated: found {type(arrivals).__name__} {'in no' if group is None else 'in a'} group, "
            "expected arrivals that a hidden state modulates, on-off or mmpp, in a group; declare such and name it"
        )
    common = np.random.default_rng(group)
    if strength is not None and not 0 <= strength <= 1:
        raise ScenarioError(f"correlation: found {strength}, expected 0 (independent) to 1 (together); choose one")
    if isinstance(arrivals, MmppArrivals):
        states, packets = rng.spawn(2)
        follows = 1.0 if strength is None else strength
        rate_per_ps = np.array(arrivals.rates_per_s) / PS_PER_S
        path = CorrelatedPath(Moves.of(arrivals.switch_per_s), rate_per_ps, follows, common=common, own=states)
        return _equal(_modulated(path, packets), arrivals.size_bits)
    ready = rng.random()
    if strength is None:
        return _cut(arrivals, ready, OnOffPath(arrivals.mean_on_s, arrivals.mean_off_s, common))
    moves = Moves.on_off(arrivals.mean_on_s, arrivals.mean_off_s)
    return _cut(arrivals, ready, CorrelatedPath(moves, np.array([0.0, 1.0]), strength, common=common, own=rng))


Block = Callable[[], tuple[TimeArray, int]]
"""Makes the next times, and the instant before which there will be no others."""


class _Blocks:
    """Times made block by block and handed out up to a chosen instant, all packets of one size."""

    def __init__(self, make: Block, size_bits: int) -> None:
        self._make = make
        self._size_bits = size_bits
        self._made: list[TimeArray] = []
        self._known_ps = 0

    def until(self, time_ps: int) -> Packets:
        """The next packets."""
        while self._known_ps <= time_ps:
            times, self._known_ps = self._make()
            self._made.append(times)
        times = np.concatenate(self._made) if len(self._made) != 1 else self._made[0]
        now = int(np.searchsorted(times, time_ps))
        self._made = [times[now:]]
        return Packets(times[:now], np.full(now, self._size_bits, np.int32), np.ones(now, np.bool_))


def _equal(make: Block, size_bits: int) -> Stream:
    return _Blocks(make, size_bits)


def _points(gap: Gap, mean_ps: float, rng: np.random.Generator) -> Block:
    """Points of a stationary renewal process; each block's sum starts anew, so that no rounding accumulates."""
    last_ps: int | None = None

    def make() -> tuple[TimeArray, int]:
        nonlocal last_ps
        if last_ps is None:
            last_ps = round(gap.first(rng) * mean_ps)
            return np.array([last_ps]), last_ps
        times = last_ps + np.rint(np.cumsum(gap.draw(rng, _BLOCK)) * mean_ps).astype(np.int64)
        last_ps = int(times[-1])
        return times, last_ps

    return make


def _cut(arrivals: OnOffArrivals, ready: float, path: Path) -> Stream:
    """Packets of an on-off fluid: one leaves whenever its last bit has been produced."""
    spacing_ps = arrivals.size_bits / arrivals.peak_bps * PS_PER_S
    credit_ps = ready * spacing_ps

    def make() -> tuple[TimeArray, int]:
        nonlocal credit_ps
        pieces = path.more()
        on_ps = int((pieces.end_ps - pieces.start_ps).sum())
        times = np.empty(int((on_ps + credit_ps) / spacing_ps) + 2, np.int64)
        n, credit_ps = _cut_pieces(pieces.start_ps, pieces.end_ps, spacing_ps, credit_ps, times)
        return times[:n], pieces.known_ps

    return _equal(make, arrivals.size_bits)


def _modulated(path: Path, rng: np.random.Generator) -> Block:
    """A Poisson process of rate 1 in the time that runs as fast as the modulated rate."""
    left = float(rng.standard_exponential())
    amounts, used = np.empty(0), 0

    def make() -> tuple[TimeArray, int]:
        nonlocal left, amounts, used
        pieces = path.more()
        found: list[TimeArray] = []
        piece, at_ps = 0, 0.0
        while piece < pieces.start_ps.size:
            if used == amounts.size:
                amounts, used = rng.standard_exponential(_BLOCK), 0
            times = np.empty(amounts.size - used, np.int64)
            n, piece, at_ps, left = _modulate(pieces, piece, at_ps, left, amounts[used:], times)
            used += n
            found.append(times[:n])
        return np.concatenate(found), pieces.known_ps

    return make


class Rows:
    """Rows of a trace repeated endlessly from a random point of it, as `testbed.traffic.arrivals.replay_order` does.

    Args:
        time_s: When each arrives, from 0 to less than the period, float64[n].
        period_s: Length of the trace when it is repeated.
        rng: Decides the point.
    """

    def __init__(self, time_s: npt.NDArray[np.float64], period_s: float, rng: np.random.Generator) -> None:
        self._time_s, self._period_s = time_s, period_s
        self._offset_s = rng.random() * period_s
        self._next = int(np.searchsorted(time_s, self._offset_s))
        self._round = 0

    def until(self, time_ps: int) -> tuple[TimeArray, npt.NDArray[np.float64]]:
        """The next rows that arrive before `time_ps`, and when in s, non-decreasing."""
        orders, times = [np.empty(0, np.int64)], [np.empty(0)]
        end_s = time_ps / PS_PER_S
        while True:
            shift_s = self._round * self._period_s - self._offset_s
            stop = int(np.searchsorted(self._time_s + shift_s, end_s))
            orders.append(np.arange(self._next, stop))
            times.append(self._time_s[self._next : stop] + shift_s)
            self._next = max(stop, self._next)
            if self._next < self._time_s.size:
                break
            self._next, self._round = 0, self._round + 1
        return np.concatenate(orders), np.concatenate(times)


class Given:
    """What is given rather than drawn, read in the order of time.

    Args:
        time_ps: When each is due, non-decreasing, int64[n].
    """

    def __init__(self, time_ps: TimeArray) -> None:
        self._time_ps, self._next = time_ps, 0

    def until(self, time_ps: int) -> slice:
        """Places of the next ones, up to those due at `time_ps`, which is not included."""
        stop = int(np.searchsorted(self._time_ps, time_ps))
        found = slice(self._next, stop)
        self._next = stop
        return found


class GivenPackets:
    """Packets that are given rather than drawn.

    Args:
        packets: All of them.
    """

    def __init__(self, packets: Packets) -> None:
        self._packets, self._given = packets, Given(packets.time_ps)

    def until(self, time_ps: int) -> Packets:
        """The next packets."""
        part = self._given.until(time_ps)
        time, size_bits, ends = self._packets
        return Packets(time[part], size_bits[part], ends[part])


class _Replayed:
    """A trace, each of its requests as the packets that its size needs."""

    def __init__(self, arrivals: TraceArrivals, rng: np.random.Generator) -> None:
        self._requests = read_requests(arrivals)
        self._rows = Rows(self._requests.time_s, self._requests.period_s, rng)

    def until(self, time_ps: int) -> Packets:
        """The next packets."""
        packets = self._requests.packets(*self._rows.until(time_ps))
        return Packets(np.rint(packets.time_s * PS_PER_S).astype(np.int64), packets.size_bits, packets.last_of_request)


class Visiting:
    """Another stream that runs in some intervals and stands still between them.

    Args:
        source: In its own time, which does not pass between the intervals.
        present_ps: Start and end of each interval, in order.
    """

    def __init__(self, source: Stream, present_ps: Sequence[tuple[int, int]]) -> None:
        self._source = source
        self._start_ps, self._end_ps = np.array(present_ps, np.int64).T
        self._own_ps = np.concatenate(([0], np.cumsum(self._end_ps - self._start_ps)[:-1]))

    def until(self, time_ps: int) -> Packets:
        """The next packets."""
        passed_ps = np.maximum(0, np.minimum(time_ps, self._end_ps) - self._start_ps)
        found = self._source.until(int(passed_ps.sum()))
        visit = np.searchsorted(self._own_ps, found.time_ps, side="right") - 1
        return found._replace(time_ps=found.time_ps - self._own_ps[visit] + self._start_ps[visit])


class _SpedUp:
    """Another stream with its time compressed, so that a flood keeps the declared shape of its bursts."""

    def __init__(self, slow: Stream, speed_up: float) -> None:
        self._slow = slow
        self._speed_up = speed_up

    def until(self, time_ps: int) -> Packets:
        """The next packets."""
        found = self._slow.until(int(np.ceil((time_ps - 0.5) * self._speed_up)))
        times = np.rint(found.time_ps / self._speed_up).astype(np.int64)
        return found._replace(time_ps=np.minimum(times, time_ps - 1))


@numba.njit(cache=True)
def _cut_pieces(start: TimeArray, end: TimeArray, spacing: float, credit: float, times: TimeArray) -> tuple[int, float]:
    """Fills `times`; returns how many there are and what has been produced of the next packet."""
    n = 0
    for piece in range(start.size):
        length = end[piece] - start[piece]
        packets = int((credit + length) / spacing)
        for k in range(packets):
            times[n] = min(start[piece] + np.int64(np.rint((k + 1) * spacing - credit)), end[piece])
            n += 1
        credit = credit + length - packets * spacing
    return n, credit


@numba.njit(cache=True)
def _modulate(  # noqa: PLR0917 - compiled functions take no keywords
    pieces: Pieces,
    piece: int,
    at: float,
    left: float,
    amounts: npt.NDArray[np.float64],
    times: TimeArray,
) -> tuple[int, int, float, float]:
    """Points until the pieces or the amounts are used up.

    Args:
        pieces: The rate.
        piece: The one to go on with.
        at: Picoseconds of it that are over.
        left: Amount to the next point.
        amounts: Amounts from each further point to the one after it.
        times: Filled with the points.

    Returns:
        How many points (and amounts), and the three arguments of the same names for the next call.
    """
    n = 0
    while piece < pieces.start_ps.size and n < amounts.size:
        rest = (pieces.end_ps[piece] - pieces.start_ps[piece] - at) * pieces.rate[piece]
        if left > rest:
            left -= rest
            piece += 1
            at = 0.0
            continue
        at += left / pieces.rate[piece]
        times[n] = pieces.start_ps[piece] + np.int64(np.rint(at))
        left = amounts[n]
        n += 1
    return n, piece, at, left
