"""One window of traffic through a system, chunk by chunk: draw, push through every domain, count.

A window starts empty, like one on an emulated network, and ends when its last packet has arrived or is lost. Its result
depends on the system, the seed and the number of the window, and on nothing else: not on chunks, not on other windows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from testbed.simulation.clock import NEVER, PS_PER_S, to_ps
from testbed.simulation.compute import ComputeStage
from testbed.simulation.fifo import Bucket, FifoLink, Passed
from testbed.simulation.impairment import Delayer, Loser
from testbed.simulation.link import priority_link, reserved_link, weighted_link
from testbed.simulation.meter import Meter
from testbed.simulation.recorder import Passage, Recorder
from testbed.simulation.streams import Stream, Visiting, stream
from testbed.simulation.system import Hop, Scheduler, Source, System
from testbed.simulation.tally import BATCHES, METER, QUEUE, RANDOM, Tally
from testbed.simulation.wave import Wave
from testbed.traffic.arrivals import group_seed, tenant_seed

CHUNK_PACKETS = 1 << 15
_CHUNK_PER_SOURCE = 1 << 8
_STEPS = 100
"""How often progress is told, and whether to stop is asked, at least."""
_IMPAIRMENTS = 2**31
"""First spawn key of domains' streams; tenants' numbers are far below."""


class Server(Protocol):
    """Anything packets pass through."""

    def push(self, wave: Wave, horizon_ps: int) -> Passed:
        """Take a wave and give what leaves; every arrival before `horizon_ps` is in this wave or an earlier one."""


@dataclass(frozen=True)
class Plan:
    """How long a window is and how much of it is recorded.

    Attributes:
        seed: Root of every random stream.
        window: Number of the window; windows are independent replications.
        duration_s: Packets are sent in [0, duration).
        recorded_s: Packets sent before this are recorded one by one.
        chunk_packets: About so many packets are in hand at a time; changes nothing but speed and memory.
    """

    seed: int
    window: int
    duration_s: float
    recorded_s: float = 0.0
    chunk_packets: int = CHUNK_PACKETS


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a window left.

    Attributes:
        tally: Counts of every tenant.
        passages: Recorded packets of each company of sources that share anything.
        duration_s: As planned, or how far an interrupted window came.
        packets: Packets sent.
        packet_hops: Packets that entered a domain, summed over domains.
        generating_s: Processor seconds spent on drawing and merging arrivals.
        serving_s: Processor seconds spent on everything else.
    """

    tally: Tally
    passages: tuple[Passage, ...]
    duration_s: float
    packets: int
    packet_hops: int
    generating_s: float
    serving_s: float


def simulate(
    system: System,
    plan: Plan,
    *,
    streams: Mapping[int, Stream] | None = None,
    advance: Callable[[float], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Simulate one window.

    Args:
        system: What.
        plan: How long.
        streams: Packets of sources, by number, that are given rather than drawn.
        advance: Told now and then which fraction is done.
        stop: Asked now and then whether to end early; what was sent by then is still carried to its end.

    Raises:
        ScenarioError: Arrivals that cannot be drawn.
    """
    tally = Tally.of([source.deadline_ps for source in system.sources])
    tandems = [_Tandem(system, members, plan, tally, streams or {}) for members in system.companies()]
    planned_ps = to_ps(plan.duration_s)
    step_ps = max(-(-planned_ps // _STEPS), min(tandem.chunk_ps for tandem in tandems))
    now_ps = 0
    while now_ps < planned_ps and not stop():
        now_ps = min(now_ps + step_ps, planned_ps)
        for tandem in tandems:
            tandem.send_until(now_ps)
        advance(now_ps / planned_ps)
    return Outcome(
        tally=tally,
        passages=tuple(tandem.finish() for tandem in tandems),
        duration_s=plan.duration_s if now_ps == planned_ps else now_ps / PS_PER_S,
        packets=sum(tandem.packets for tandem in tandems),
        packet_hops=sum(tandem.packet_hops for tandem in tandems),
        generating_s=sum(tandem.generating_s for tandem in tandems),
        serving_s=sum(tandem.serving_s for tandem in tandems),
    )


class _Tandem:
    """A company of sources and the servers it crosses, part of the way through a window."""

    def __init__(
        self, system: System, members: Sequence[int], plan: Plan, tally: Tally, streams: Mapping[int, Stream]
    ) -> None:
        self._members = np.array(members, dtype=np.int32)
        sources = [system.sources[k] for k in members]
        self._streams = [streams.get(source.number) or _stream(source, plan) for source in sources]
        self._tally = tally
        self._leaves = np.full(len(system.sources), len(system.hops), np.int32)
        self._leaves[self._members] = [source.hops for source in sources]
        longest = max(source.hops for source in sources)
        self._hops = [
            _Domain(hop, system, members, _impaired(plan, d, members), last=d + 1)
            for d, hop in enumerate(system.hops[:longest])
        ]
        self._recorder = Recorder(longest, to_ps(plan.recorded_s))
        self._batch_ps = max(1, math.ceil(to_ps(plan.duration_s) / BATCHES))
        chunk = max(plan.chunk_packets, _CHUNK_PER_SOURCE * len(sources) if plan.chunk_packets == CHUNK_PACKETS else 0)
        rate_per_s = sum(source.packets_per_s for source in sources)
        self.chunk_ps = max(1, to_ps(min(chunk / rate_per_s, plan.duration_s)))
        self._now_ps = 0
        self.packets = 0
        self.packet_hops = 0
        self.generating_s = 0.0
        self.serving_s = 0.0

    def send_until(self, time_ps: int) -> None:
        """Send everything that is sent before `time_ps`, and carry it as far as it can be known."""
        while self._now_ps < time_ps:
            self._now_ps = min(self._now_ps + self.chunk_ps, time_ps)
            began = time.process_time()
            wave = self._draw()
            self.generating_s += time.process_time() - began
            self._carry(wave, self._now_ps)

    def finish(self) -> Passage:
        """Carry everything to its end."""
        self._carry(Wave.empty(), NEVER)
        return self._recorder.passage()

    def _draw(self) -> Wave:
        drawn = [source.until(self._now_ps) for source in self._streams]
        counts = [packets.time_ps.size for packets in drawn]
        n = sum(counts)
        number = np.arange(self.packets, self.packets + n)
        self.packets += n
        time_ps = np.concatenate([packets.time_ps for packets in drawn])
        wave = Wave(
            time_ps=time_ps,
            born_ps=time_ps,
            number=number,
            size_bits=np.concatenate([packets.size_bits for packets in drawn]),
            tenant=np.repeat(self._members, counts),
            ends=np.concatenate([packets.ends for packets in drawn]),
        )
        if len(drawn) == 1:
            return wave
        merged = wave.take(np.argsort(time_ps, kind="stable"))
        return Wave(merged.time_ps, merged.born_ps, number, merged.size_bits, merged.tenant, merged.ends)

    def _carry(self, wave: Wave, horizon_ps: int) -> None:
        began = time.process_time()
        self._recorder.enter(wave)
        for d, domain in enumerate(self._hops, start=1):
            self.packet_hops += len(wave)
            wave = domain.carry(wave, horizon_ps, self._lose)
            horizon_ps += domain.delay_ps
            if d == len(self._hops):
                self._arrive(domain.compute(wave, horizon_ps), d)
            elif (leaving := self._leaves[wave.tenant] == d).any() or domain.has_compute:
                self._recorder.see(d, wave.where(~leaving))
                self._arrive(domain.compute(wave.where(leaving), horizon_ps), d)
                wave = wave.where(~leaving)
            else:
                self._recorder.see(d, wave)
        self.serving_s += time.process_time() - began

    def _arrive(self, wave: Wave, border: int) -> None:
        self._recorder.see(border, wave)
        self._recorder.leave(wave)
        self._tally.deliver(wave, self._batch_ps)

    def _lose(self, wave: Wave, cause: int) -> None:
        if len(wave):
            self._recorder.leave(wave)
            self._tally.lose(wave, self._batch_ps, cause)


class _Domain:
    """The servers of one domain for one company of sources."""

    def __init__(
        self, hop: Hop, system: System, members: Sequence[int], seed: np.random.SeedSequence, *, last: int
    ) -> None:
        loss, excess, compute = seed.spawn(3)
        self.delay_ps = hop.delay_ps
        self._servers: list[tuple[Server, int]] = []
        if any(policy is not None for policy in hop.meters):
            self._servers.append((Meter(hop.meters), METER))
        self._servers.append((_port(hop, members), QUEUE))
        if hop.excess is not None:
            self._servers.append((Delayer(hop.excess, excess), RANDOM))
        if hop.loss > 0:
            self._servers.append((Loser(hop.loss, loss), RANDOM))
        served = hop.compute is not None and any(system.sources[k].hops == last for k in members)
        self._compute = ComputeStage(hop.compute, compute) if served and hop.compute is not None else None

    @property
    def has_compute(self) -> bool:
        """Whether requests are served here."""
        return self._compute is not None

    def carry(self, wave: Wave, horizon_ps: int, lose: Callable[[Wave, int], None]) -> Wave:
        """Packets through all servers of the domain; `lose` is told what each drops and why."""
        for server, cause in self._servers:
            wave, lost = server.push(wave, horizon_ps)
            lose(lost, cause)
        return wave

    def compute(self, wave: Wave, horizon_ps: int) -> Wave:
        """Requests through the compute stage, if there is one."""
        return wave if self._compute is None else self._compute.push(wave, horizon_ps).on


def _stream(source: Source, plan: Plan) -> Stream:
    breach = source.misbehaviour
    group = None if breach is None or breach.group is None else group_seed(plan.seed, breach.group, plan.window)
    always = stream(
        source.arrivals,
        tenant_seed(plan.seed, source.number, plan.window),
        misbehaviour=breach,
        group=group,
        strength=source.strength,
    )
    return always if source.present_ps is None else Visiting(always, source.present_ps)


def _impaired(plan: Plan, domain: int, members: Sequence[int]) -> np.random.SeedSequence:
    return np.random.SeedSequence(plan.seed, spawn_key=(_IMPAIRMENTS, plan.window, domain, members[0]))


def _port(hop: Hop, members: Sequence[int]) -> Server:
    match hop.scheduler:
        case Scheduler.FIFO:
            return FifoLink(hop.link_bps, hop.delay_ps, hop.limit_packets)
        case Scheduler.PRIORITY:
            limits = [hop.limit_packets] * (max(hop.ranks) + 1)
            return priority_link(hop.link_bps, hop.ranks, delay_ps=hop.delay_ps, limits=limits)
        case Scheduler.WEIGHTED:
            limits = [hop.limit_packets] * len(hop.weights)
            return weighted_link(hop.link_bps, hop.weights, delay_ps=hop.delay_ps, limits=limits)
        case Scheduler.RESERVED:
            drain_bps = hop.drain_bps or hop.link_bps
            return reserved_link(drain_bps, hop.classes, root_bps=hop.link_bps, delay_ps=hop.delay_ps)
        case Scheduler.SHARED | Scheduler.ISOLATED:
            own = hop.classes[members[0]]
            if own.rate_bps is not None:
                return Bucket(own.rate_bps, own.burst_bits, hop.delay_ps, own.limit_packets)
            left_bps = hop.link_bps - sum(one.rate_bps or 0.0 for one in hop.classes)
            return FifoLink(left_bps, hop.delay_ps, own.limit_packets)
