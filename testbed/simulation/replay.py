"""A measured run again, in the simulator: what its first border saw, through the same queues on the same host.

The simulator knows nothing of the time that switches take for a packet that waits for nobody. That time is no constant
and no law that could be drawn from: it varies over a run as the host's processors are busy or away, and what is held
up together arrives together at the next queue. So it is taken from moment to moment from the packets that wait for
nobody, of all tenants, and every simulated packet is held up in each domain as those of its moment were; what a port
takes to send is part of it. What is then compared is waiting: of packets that do not wait the simulator says what was
measured.

Which packets a meter lets through depends on the millisecond in which a switch refills it. So packets that the first
meter of a run dropped are left out, and how many the simulated one would have dropped is told beside it.

Of tenants that send requests it is the very same requests, with the run's framing, on their way to the server. The
run's folder is all that is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from testbed.report.record import RunRecord, WindowRecord, read_record
from testbed.scenario.dictionary import from_dict
from testbed.simulation.calls import Calls, GivenCalls
from testbed.simulation.choices import Choices
from testbed.simulation.clock import PS_PER_S, to_ps
from testbed.simulation.host_time import HostTimes
from testbed.simulation.known import known
from testbed.simulation.meter import Meter, Policy
from testbed.simulation.network import network
from testbed.simulation.streams import GivenPackets, Packets, Stream
from testbed.simulation.system import Scheduler, Source, System
from testbed.simulation.wave import Wave
from testbed.simulation.window import Plan, simulate
from testbed.telemetry import request_samples, samples

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_AT_ONCE_BPS = 1e12
"""A port that takes no time that counts."""

_TURN_S = 0.5e-3
"""Within a turn of its ports a switch may let those who came later leave first."""

_ALONE_S = 50e-6
"""A packet that takes no longer than this more than a lone one in a domain has waited for nobody there."""

_APART_S = 10.0
"""So far apart packets are alone: every queue is empty and every token bucket full again."""


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """One tenant of one window, measured and simulated; n packets or requests over D domains.

    Attributes:
        tenant: Name.
        window: Number of the window.
        measured_s: Times at the borders from the first to the last, NaN where one was not seen; of requests, of the
            first byte at the first and of the last one at the others. float64[n, D + 1].
        simulated_s: The same packets or requests in the simulator, float64[n, D + 1].
        host_s: What the host took for each packet that waited for nobody in any domain, all domains together,
            float64[m].
        metered: Packets that its first meter dropped, measured and simulated.
    """

    tenant: str
    window: int
    measured_s: FloatArray
    simulated_s: FloatArray
    host_s: FloatArray
    metered: tuple[int, int] = (0, 0)

    def quantiles(self, levels: tuple[float, ...] = (0.5, 0.99, 0.999)) -> tuple[FloatArray, FloatArray]:
        """Measured and simulated quantiles of the time from the first border to the last, of what both delivered.

        NaN where that is nothing.
        """
        measured_s, simulated_s = (times[:, -1] - times[:, 0] for times in (self.measured_s, self.simulated_s))
        both = np.isfinite(measured_s) & np.isfinite(simulated_s)
        if not both.any():
            return np.full(len(levels), np.nan), np.full(len(levels), np.nan)
        # The smallest value that so many do not exceed: the same of a sample and of its copies.
        found = np.quantile([measured_s[both], simulated_s[both]], levels, axis=1, method="inverted_cdf")
        return found[:, 0], found[:, 1]


def replay_run(folder: Path, scheduler: Scheduler = Scheduler.RESERVED) -> list[Replayed]:
    """Replay every window of a run.

    Args:
        folder: What `testbed run` left.
        scheduler: Of every domain.

    Raises:
        TestbedError: No such folder, or one that this version cannot read.
    """
    record = read_record(folder)
    scenario = from_dict(record.scenario)
    system = network(scenario, Choices(scheduler), known(scenario, folder)).system
    return [found for window in record.windows for found in _window(system, folder, record, window)]


def _window(system: System, folder: Path, record: RunRecord, window: WindowRecord) -> Iterator[Replayed]:
    metered = _losing_by_meters_alone(record)
    policies = system.hops[0].meters or (None,) * len(system.sources)
    met = [
        _meet(_read(source, folder, window), policy if source.name in metered else None)
        for source, policy in zip(system.sources, policies, strict=True)
    ]
    kept = tuple(None if one.dropped else policy for one, policy in zip(met, policies, strict=True))
    first = replace(system.hops[0], meters=kept if any(kept) else ())
    hops = (first, *system.hops[1:])
    if record.kind != "simulation":
        # How long a software switch's port takes to send is its processor's time, which is in what is measured.
        hops = tuple(replace(hop, drain_bps=_AT_ONCE_BPS) for hop in hops)
    system = replace(system, hops=hops)

    seen = [one.passed for one in met]
    length_s = max([window.duration_s, *(one.end_s for one in seen)])
    plan = Plan(window.seed, window.index, length_s, length_s)
    lone = _lone_s(system, plan, seen)
    taken = [one.taken_s(*given) for one, *given in zip(seen, _simulated(system, plan, seen), lone, strict=True)]
    hosted = tuple(replace(hop, host=_host(d, seen, taken)) for d, hop in enumerate(system.hops))
    simulated = _simulated(replace(system, hops=hosted), plan, seen)
    for one, times, extra in zip(met, simulated, taken, strict=True):
        host_s = extra.sum(axis=1)
        host_s = host_s[np.isfinite(host_s)]
        counts = one.dropped, one.would_drop
        yield Replayed(one.passed.source.name, window.index, one.passed.border_s, times, host_s, counts)


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """What the borders saw of one source, in the order of arrival at the first one; n packets or requests.

    Attributes:
        source: It.
        border_s: As of `Replayed`, float64[n, D + 1]; never NaN at the first.
        size: Bits of each packet, or bytes of each request's message, int64[n].
        work_s: Time that each request was computed, 0 where it was not, float64[n].
        timely: Whether what each took says anything of the host: nothing of it was sent again, bool[n].
    """

    source: Source
    border_s: FloatArray
    size: npt.NDArray[np.int64]
    work_s: FloatArray
    timely: BoolArray

    @property
    def time_ps(self) -> npt.NDArray[np.int64]:
        """Arrival at the first border, int64[n]."""
        return np.rint(self.border_s[:, 0] * PS_PER_S).astype(np.int64)

    @property
    def end_s(self) -> float:
        """Just after the last one."""
        return (int(self.time_ps[-1]) + 1) / PS_PER_S if len(self.size) else 0.0

    def take(self, index: npt.NDArray[np.int64]) -> _Seen:
        """Some of them, in that order."""
        arrays = {name: getattr(self, name)[index] for name in ("border_s", "size", "work_s", "timely")}
        return replace(self, **arrays)

    def stream(self) -> Stream:
        """Them, as the simulator sends them."""
        asking = self.source.asking
        if asking is None:
            return GivenPackets(Packets(self.time_ps, self.size.astype(np.int32), np.ones(len(self.size), np.bool_)))
        work_ps = np.rint(self.work_s * PS_PER_S).astype(np.int64)
        return GivenCalls(Calls(self.time_ps, self.size, work_ps), asking.out)

    def at(self, time_s: float) -> _Seen:
        """Them, the first one at another time."""
        return replace(self, border_s=self.border_s - self.border_s[0, 0] + time_s)

    def taken_s(self, simulated_s: FloatArray, lone_s: FloatArray) -> FloatArray:
        """What the host took for each of them in each domain, NaN where it waited or was not seen, float64[n, D].

        Args:
            simulated_s: Their times at the borders where no host takes any, [n, D + 1].
            lone_s: What each domain takes of one that is alone, [D].
        """
        passing_s = np.diff(simulated_s, axis=1)
        alone = passing_s < lone_s + _ALONE_S
        return np.where(alone & self.timely[:, np.newaxis], np.diff(self.border_s, axis=1) - passing_s, np.nan)


class _Met(NamedTuple):
    """A source at the first meter of its path.

    Attributes:
        passed: What is replayed of it.
        dropped: How many of its packets the run's meter dropped; they are not replayed.
        would_drop: How many a simulated one would have.
    """

    passed: _Seen
    dropped: int = 0
    would_drop: int = 0


def _read(source: Source, folder: Path, window: WindowRecord) -> _Seen:
    """What a window's folder holds of a source; what the first border did not see is left out."""
    if source.asking is None:
        sent, _ = samples.read(folder / window.samples[source.name])
        n = len(sent.size_bits)
        seen = _Seen(source, sent.border_s, sent.size_bits.astype(np.int64), np.zeros(n), np.ones(n, np.bool_))
    else:
        asked = request_samples.read(folder / window.requests[source.name])
        border_s = np.column_stack([asked.first_s, asked.out_s[:, 1:]])
        resent_s = np.zeros(len(asked)) if asked.resent_s is None else asked.resent_s.sum(axis=1)
        seen = _Seen(source, border_s, asked.request_bytes, np.nan_to_num(asked.compute_s), ~(resent_s > 0))
    present = np.flatnonzero(np.isfinite(seen.border_s[:, 0]))
    return seen.take(present[np.argsort(seen.border_s[present, 0], kind="stable")])


def _losing_by_meters_alone(record: RunRecord) -> set[str]:
    """Tenants of whose packets no queue dropped any."""
    return {one.name for one in record.tenants if one.conformance is not None and not one.conformance.queue_dropped}


def _meet(seen: _Seen, policy: Policy | None) -> _Met:
    """A source at its first meter; what was not seen behind it is left to the simulator where there is no policy."""
    passed = np.isfinite(seen.border_s[:, 1])
    if policy is None or passed.all():
        return _Met(seen)
    n = passed.size
    size = seen.size.astype(np.int32)
    wave = Wave(seen.time_ps, seen.time_ps, np.arange(n), size, np.zeros(n, np.int32), np.ones(n, np.bool_))
    would_drop = len(Meter([policy]).push(wave, 0).lost)
    return _Met(seen.take(np.flatnonzero(passed)), n - int(np.count_nonzero(passed)), would_drop)


def _simulated(system: System, plan: Plan, seen: Sequence[_Seen]) -> list[FloatArray]:
    """Times at the borders of each source's packets or requests, NaN where one did not come; float64[n, D + 1]."""
    streams: Mapping[int, Stream] = {one.source.number: one.stream() for one in seen}
    outcome = simulate(system, plan, streams=streams)
    found = {}
    for members, passage, answers in zip(system.companies(), outcome.passages, outcome.answers, strict=True):
        for k in members:
            asks = system.sources[k].asking is not None and answers is not None
            own = answers.last[answers.tenant == k] if asks and answers is not None else passage.rows(k)
            border_ps = passage.border_ps[own, : system.sources[k].hops + 1]
            found[k] = np.where(border_ps >= 0, border_ps / PS_PER_S, np.nan)
    return [found[k] for k in range(len(system.sources))]


def _lone_s(system: System, plan: Plan, seen: Sequence[_Seen]) -> list[FloatArray]:
    """What each domain takes of the smallest packet or request of each source that meets nobody; [D], NaN for none.

    The fastest of those that were sent will not do: behind a queue that is always full even that one has waited.
    """
    alone = [
        one.take(np.array([np.argmin(one.size)])).at(k * _APART_S) if len(one.size) else one
        for k, one in enumerate(seen)
    ]
    length_s = len(seen) * _APART_S
    apart = replace(plan, duration_s=length_s, recorded_s=length_s)
    found = [np.diff(times, axis=1) for times in _simulated(system, apart, alone)]
    return [passing_s[0] if len(passing_s) else np.full(passing_s.shape[1], np.nan) for passing_s in found]


def _host(domain: int, seen: Sequence[_Seen], taken: Sequence[FloatArray]) -> HostTimes | None:
    """What the host took in a domain, from moment to moment; None where everybody waits."""
    of = [one for one in zip(seen, taken, strict=True) if one[1].shape[1] > domain]
    at_s = np.concatenate([one.border_s[:, domain] for one, _ in of])
    taken_s = np.concatenate([extra[:, domain] for _, extra in of])
    known_at = np.flatnonzero(np.isfinite(at_s) & np.isfinite(taken_s))
    if not known_at.size:
        return None
    order = known_at[np.argsort(at_s[known_at], kind="stable")]
    at_ps, taken_ps = (np.rint(values[order] * PS_PER_S).astype(np.int64) for values in (at_s, taken_s))
    # A host that answers in turn lets nobody leave before who came earlier, but for a turn. Who left later than that
    # waited for more than the host: in a queue that a pause before it had filled.
    leaves_ps = at_ps + taken_ps
    soonest_ps = np.minimum.accumulate(leaves_ps[::-1])[::-1]
    taken_ps = np.minimum(leaves_ps, soonest_ps + to_ps(_TURN_S)) - at_ps
    return HostTimes(at_ps, np.maximum(taken_ps, 0))
