"""One window of traffic through a system, chunk by chunk: draw, push through every domain, count.

A window starts empty, like one on an emulated network, and ends when its last packet has arrived or is lost. Its result
depends on the system, the seed and the number of the window, and on nothing else: not on chunks, not on other windows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from testbed.simulation.answering import Answering, Answers
from testbed.simulation.calls import CallStream, GivenCalls
from testbed.simulation.clock import NEVER, PS_PER_S, to_ps
from testbed.simulation.domain import SimulatedDomain
from testbed.simulation.meter import Meter
from testbed.simulation.recorder import Passage, Recorder
from testbed.simulation.streams import Stream, Visiting, stream
from testbed.simulation.system import Source, System
from testbed.simulation.tally import BATCHES, Tally
from testbed.simulation.wave import Wave
from testbed.traffic.arrivals import group_seed, tenant_seed

CHUNK_PACKETS = 1 << 15
_CHUNK_PER_SOURCE = 1 << 8
_STEPS = 100
"""How often progress is told, and whether to stop is asked, at least."""
_IMPAIRMENTS, _IMPAIRMENTS_BACK = 2**31, 2**31 + 1
"""First spawn keys of domains' streams, there and back; tenants' numbers are far below."""


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
        answers: Recorded requests of each; None where nobody of it asks.
        duration_s: As planned, or how far an interrupted window came.
        packets: Packets sent.
        packet_hops: Packets that entered a domain, summed over domains.
        generating_s: Processor seconds spent on drawing and merging arrivals.
        serving_s: Processor seconds spent on everything else.
    """

    tally: Tally
    passages: tuple[Passage, ...]
    answers: tuple[Answers | None, ...]
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
        streams: Packets of sources, by number, that are given rather than drawn; of those that ask, requests.
        advance: Told now and then which fraction is done.
        stop: Asked now and then whether to end early; what was sent by then is still carried to its end.

    Raises:
        ScenarioError: Arrivals that cannot be drawn.
    """
    tally = Tally.of([*(source.deadline_ps for source in system.sources), *(None for _ in system.asking)])
    tandems = [_Tandem(system, members, plan, tally, streams or {}) for members in system.companies()]
    planned_ps = to_ps(plan.duration_s)
    step_ps = max(-(-planned_ps // _STEPS), min(tandem.chunk_ps for tandem in tandems))
    now_ps = 0
    while now_ps < planned_ps and not stop():
        now_ps = min(now_ps + step_ps, planned_ps)
        for tandem in tandems:
            tandem.send_until(now_ps)
        advance(now_ps / planned_ps)
    passages = tuple(tandem.finish() for tandem in tandems)
    return Outcome(
        tally=tally,
        passages=passages,
        answers=tuple(None if tandem.answering is None else tandem.answering.answers() for tandem in tandems),
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
            SimulatedDomain(
                hop,
                members,
                _impaired(plan, d, members),
                computes=any(source.hops == d + 1 and source.asking is None for source in sources),
                first=d == 0,
            )
            for d, hop in enumerate(system.hops[:longest])
        ]
        self._contracts = Meter(system.contracts) if any(system.contracts) else None
        self._recorder = Recorder(longest, to_ps(plan.recorded_s))
        self._batch_ps = max(1, math.ceil(to_ps(plan.duration_s) / BATCHES))
        given = zip(members, self._streams, strict=True)
        self._calls = [(k, one) for k, one in given if isinstance(one, CallStream | GivenCalls)]
        self.answering = None
        if self._calls:
            self.answering = Answering(
                system,
                members,
                tally,
                batch_ps=self._batch_ps,
                recorded_ps=to_ps(plan.recorded_s),
                seeds=[_impaired(plan, d, members, _IMPAIRMENTS_BACK) for d in range(longest)],
            )
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
            if self.answering is not None:
                self.answering.send(wave, [(k, calls.drawn) for k, calls in self._calls])
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
        if self._contracts is not None:
            self._exceed(self._contracts.push(wave, horizon_ps).lost)
        horizons_ps = []
        for d, domain in enumerate(self._hops, start=1):
            self.packet_hops += len(wave)
            wave = domain.carry(wave, horizon_ps, self._lose)
            horizon_ps += domain.delay_ps
            horizons_ps.append(horizon_ps)
            if d == len(self._hops):
                self._arrive(wave, d, horizon_ps)
            elif (leaving := self._leaves[wave.tenant] == d).any() or domain.has_compute:
                self._recorder.see(d, wave.where(~leaving))
                self._arrive(wave.where(leaving), d, horizon_ps)
                wave = wave.where(~leaving)
            else:
                self._recorder.see(d, wave)
        if self.answering is not None:
            before = self.answering.packet_hops
            self.answering.carry(horizons_ps)
            self.packet_hops += self.answering.packet_hops - before
        self.serving_s += time.process_time() - began

    def _arrive(self, wave: Wave, border: int, horizon_ps: int) -> None:
        """Packets that have crossed their last domain."""
        if self.answering is not None:
            asked = self.answering.asks[wave.tenant]
            asking, wave = wave.where(asked), wave.where(~asked)
            if len(asking):
                self._recorder.see(border, asking)
                self._recorder.leave(asking)
                self.answering.arrive(border, asking)
        wave = self._hops[border - 1].compute(wave, horizon_ps)
        self._recorder.see(border, wave)
        self._recorder.leave(wave)
        self._tally.deliver(wave, self._batch_ps)

    def _exceed(self, wave: Wave) -> None:
        """Packets beyond a contract that no meter enforces; they go on."""
        if self.answering is not None:
            wave = self.answering.first_of_each(wave)
        self._tally.exceed(wave)

    def _lose(self, wave: Wave, cause: int) -> None:
        if not len(wave):
            return
        self._recorder.leave(wave)
        if self.answering is not None:
            asked = self.answering.asks[wave.tenant]
            self.answering.lose(wave.where(asked), cause)
            wave = wave.where(~asked)
        self._tally.lose(wave, self._batch_ps, cause)


def _stream(source: Source, plan: Plan) -> Stream:
    breach = source.misbehaviour
    group = None if breach is None or breach.group is None else group_seed(plan.seed, breach.group, plan.window)
    seed = tenant_seed(plan.seed, source.number, plan.window)
    if source.asking is not None:
        return CallStream(
            source.arrivals, source.asking, seed, misbehaviour=breach, group=group, strength=source.strength
        )
    always = stream(source.arrivals, seed, misbehaviour=breach, group=group, strength=source.strength)
    return always if source.present_ps is None else Visiting(always, source.present_ps)


def _impaired(plan: Plan, domain: int, members: Sequence[int], which: int = _IMPAIRMENTS) -> np.random.SeedSequence:
    return np.random.SeedSequence(plan.seed, spawn_key=(which, plan.window, domain, members[0]))
