"""Plain models of the simulator's servers: exact fractions of a second, linear scans, no code of the package."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import simpy

from testbed.simulation.clock import PS_PER_S
from testbed.simulation.domain import Server
from testbed.simulation.fifo import Passed
from testbed.simulation.wave import Wave


@dataclass(frozen=True)
class Packet:
    """One packet of a reference model; times in seconds."""

    number: int
    time: Fraction
    bits: int
    tenant: int


@dataclass
class Class:
    """A queue of a reference model, with a bucket if it has a rate."""

    rate: Fraction | None = None
    burst: Fraction = Fraction(0)
    limit: int | None = None
    queue: deque[Packet] = field(default_factory=deque)
    tokens: Fraction = Fraction(0)
    filled: Fraction | None = None
    tag: Fraction = Fraction(0)

    def refill(self, now: Fraction) -> None:
        self.tokens = (
            self.burst if self.filled is None else min(self.burst, self.tokens + (now - self.filled) * (self.rate or 0))
        )
        self.filled = now

    def allowed_from(self, now: Fraction) -> Fraction:
        """The first instant from `now` on at which it owes nothing."""
        if self.rate is None:
            return now
        self.refill(now)
        return now if self.tokens >= 0 else now - self.tokens / self.rate


def packets_of(wave: Wave) -> list[Packet]:
    rows = zip(wave.number, wave.time_ps, wave.size_bits, wave.tenant, strict=True)
    return [Packet(int(n), Fraction(int(t), PS_PER_S), int(b), int(k)) for n, t, b, k in rows]


def meter(packets: Sequence[Packet], rates: Sequence[int], bursts: Sequence[int]) -> list[int]:
    """Numbers of the packets that conform to their tenant's token bucket, which starts full."""
    tokens = [Fraction(burst) for burst in bursts]
    since = [Fraction(0) for _ in bursts]
    passed = []
    for packet in packets:
        k = packet.tenant
        tokens[k] = min(Fraction(bursts[k]), tokens[k] + (packet.time - since[k]) * rates[k])
        since[k] = packet.time
        if packet.bits <= tokens[k]:
            tokens[k] -= packet.bits
            passed.append(packet.number)
    return passed


def reserved(
    packets: Sequence[Packet], port: int, classes: Sequence[Class], root: Class
) -> tuple[dict[int, Fraction], list[int]]:
    """HTB leaves on a port: the class allowed for longest goes first, best effort borrows what the root has left.

    Returns:
        Departure of each packet by number, and the numbers of the dropped ones.
    """
    coming = deque(packets)
    departures: dict[int, Fraction] = {}
    dropped: list[int] = []
    borrowers = deque[Packet]()
    free = Fraction(0)
    allowed: dict[int, Fraction] = {}

    def admit() -> None:
        packet = coming.popleft()
        own = classes[packet.tenant]
        queue = own.queue if own.rate is not None else borrowers
        if own.limit is not None and len(queue) >= own.limit:
            dropped.append(packet.number)
            return
        queue.append(packet)
        if own.rate is not None and len(queue) == 1:
            allowed[packet.tenant] = own.allowed_from(packet.time)

    while coming or borrowers or allowed:
        if not borrowers and not allowed:
            admit()
            continue
        # Reserved classes by how long they have been allowed to send, then best effort.
        choices = [(max(free, since), 0, since, k) for k, since in allowed.items()]
        if borrowers:
            earliest = max(free, borrowers[0].time)
            choices.append((max(earliest, root.allowed_from(earliest)), 1, Fraction(0), -1))
        start, _, _, k = min(choices)
        if coming and coming[0].time <= start:
            admit()
            continue
        packet = borrowers.popleft() if k < 0 else classes[k].queue.popleft()
        root.refill(start)
        root.tokens -= packet.bits
        if k >= 0:
            own = classes[k]
            own.refill(start)
            own.tokens -= packet.bits
            del allowed[k]
            if own.queue:
                allowed[k] = own.allowed_from(start)
        free = start + Fraction(packet.bits, port)
        departures[packet.number] = free
    return departures, dropped


def priority(
    packets: Sequence[Packet], link: int, rank_of: Sequence[int], limits: Sequence[int] = ()
) -> tuple[dict[int, Fraction], list[int]]:
    """A link with strict, non-preemptive priority; of a single rank, a FIFO link.

    Returns:
        Departure of each packet by number, and the numbers of those that found the queue of their rank full.
    """
    coming, departures, free = deque(packets), dict[int, Fraction](), Fraction(0)
    queue: list[Packet] = []
    dropped: list[int] = []
    while coming or queue:
        if not queue:
            free = max(free, coming[0].time)
        while coming and coming[0].time <= free:
            packet = coming.popleft()
            rank = rank_of[packet.tenant]
            if limits and sum(rank_of[waiting.tenant] == rank for waiting in queue) >= limits[rank]:
                dropped.append(packet.number)
            else:
                queue.append(packet)
        # The first of a rank is the one that came first: the queue is in the order of arrival.
        chosen = min(queue, key=lambda packet: rank_of[packet.tenant])
        queue.remove(chosen)
        free += Fraction(chosen.bits, link)
        departures[chosen.number] = free
    return departures, dropped


def weighted(
    packets: Sequence[Packet], link: int, weights: Sequence[int], limits: Sequence[int] = ()
) -> tuple[dict[int, Fraction], list[int]]:
    """A link with self-clocked fair queueing: tags are given on arrival.

    Returns:
        Departure of each packet by number, and the numbers of those that found the queue of their tenant full.
    """
    coming, departures, free = deque(packets), dict[int, Fraction](), Fraction(0)
    queue: list[tuple[Fraction, int, Packet]] = []
    dropped: list[int] = []
    last = [Fraction(0) for _ in weights]
    virtual = Fraction(0)
    while coming or queue:
        if not queue:
            free = max(free, coming[0].time)
        while coming and coming[0].time <= free:
            packet = coming.popleft()
            k = packet.tenant
            if limits and sum(waiting.tenant == k for *_, waiting in queue) >= limits[k]:
                dropped.append(packet.number)
                continue
            last[k] = max(virtual, last[k]) + Fraction(packet.bits * sum(weights), weights[k] * link)
            queue.append((last[k], k, packet))
        chosen = min(queue, key=lambda entry: entry[:2])
        queue.remove(chosen)
        virtual = chosen[0]
        free += Fraction(chosen[2].bits, link)
        departures[chosen[2].number] = free
    return departures, dropped


def simpy_tandem(times_s: Sequence[float], bits: Sequence[int], hops: Sequence[tuple[float, float]]) -> list[float]:
    """Departures from the last of some links in SimPy, each a resource; hops are (rate in bit/s, delay in s)."""
    env = simpy.Environment()
    links = [simpy.Resource(env) for _ in hops]
    out = [0.0] * len(bits)

    def carry(number: int) -> Iterator[simpy.Event]:
        yield env.timeout(times_s[number])
        for link, (rate, delay) in zip(links, hops, strict=True):
            with link.request() as turn:
                yield turn
                yield env.timeout(bits[number] / rate)
            yield env.timeout(delay)
        out[number] = env.now

    for number in range(len(bits)):
        env.process(carry(number))
    env.run()
    return out


def wave_of(times_ps: np.ndarray, bits: np.ndarray, tenant: np.ndarray | int = 0) -> Wave:
    n = times_ps.size
    return Wave(
        time_ps=times_ps.astype(np.int64),
        born_ps=times_ps.astype(np.int64),
        number=np.arange(n),
        size_bits=bits.astype(np.int32),
        tenant=np.broadcast_to(np.asarray(tenant, np.int32), n).copy(),
        ends=np.ones(n, np.bool_),
    )


def push_in_pieces(server: Server, wave: Wave, pieces: int) -> Passed:
    """A wave through a server a piece at a time, everything before each next arrival decided on, then the rest."""
    on, lost = [], []
    for part in np.array_split(np.arange(len(wave)), pieces):
        piece = wave.take(part)
        horizon = int(wave.time_ps[part[-1] + 1]) if part[-1] + 1 < len(wave) else 2**62
        passed = server.push(piece, horizon)
        on.append(passed.on)
        lost.append(passed.lost)
    return Passed(_joined(on), _joined(lost))


def _joined(waves: Sequence[Wave]) -> Wave:
    fields = zip(*(wave.arrays() for wave in waves), strict=True)
    return Wave(*(np.concatenate(parts) for parts in fields))


def bursty(seed: int, n: int, tenants: int, mean_gap_us: float, grid_us: int = 1) -> Wave:
    """Packets of several sizes and tenants whose gaps are short in bursts and long between them, on a grid of time.

    A grid makes ties, so that the order of simultaneous events is compared too.
    """
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(mean_gap_us, n) * rng.choice([0.1, 0.1, 0.1, 3.7], n)
    times = np.cumsum(np.maximum(0, np.rint(gaps / grid_us))).astype(np.int64) * grid_us * 10**6
    return wave_of(times, rng.choice([640, 4000, 12000], n), rng.integers(0, tenants, n))
