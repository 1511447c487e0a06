"""Requests in the simulator: cut, served by shares, sent back; each counted once, in parts that add up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from heapq import heappop, heappush

import numpy as np
import pytest
from scipy.optimize import brentq

from inference_server.scheduler import Scheduler as ServerScheduler
from testbed.errors import ScenarioError
from testbed.scenario.model import FULL_FRAME_BITS, DrawnSize, PoissonArrivals
from testbed.simulation.answering import ANSWERED, Answers
from testbed.simulation.asking import Asking, Wire
from testbed.simulation.calls import CallStream
from testbed.simulation.clock import NEVER, PS_PER_S, to_ps
from testbed.simulation.estimate import design_effect, quantile
from testbed.simulation.impairment import Constant, Draw, Excess, Exponential, Lognormal
from testbed.simulation.meter import Policy
from testbed.simulation.recorder import Passage
from testbed.simulation.reserved import Reserved
from testbed.simulation.shares import Jobs, SharedServer
from testbed.simulation.system import Hop, Scheduler, Source, System
from testbed.simulation.tally import CAUSES, RANDOM, TIMEOUT, Tally
from testbed.simulation.window import Outcome, Plan, simulate
from testbed.traffic.arrivals import tenant_seed
from testbed.traffic.request_demand import wire_bits
from testbed.traffic.request_schedules import request_schedule
from tests.unit.simulation.systems import BURSTY
from tests.unit.simulation.test_queueing import LOAD, SERVICE_S, md1_wait_exceeds

SIZES = (500, 4000, 20_000)
MS = PS_PER_S // 1000


def asking(work: Draw = Lognormal(4e-3, 0.3), **more: object) -> Asking:  # noqa: B008 - frozen
    made = Asking(SIZES, 900, work, 4e-3, 0.5, to_ps(0.5), weights=(1.0, 2.0, 1.0))
    return replace(made, **more)  # type: ignore[arg-type]


def system(scheduler: Scheduler = Scheduler.RESERVED, *, excess: Excess | None = None, loss: float = 0.0) -> System:
    """A tenant that asks at the end of the path and one half-way, beside packets and best effort that asks too."""
    one = asking()
    sources = (
        Source("far", 1, PoissonArrivals(60.0, 0), 900.0, 2, to_ps(0.1), asking=one),
        Source("bursty", 2, BURSTY, 700.0, 2, to_ps(0.2)),
        Source("near", 3, PoissonArrivals(30.0, 0), 200.0, 1, to_ps(0.1), asking=replace(one, share=1.0)),
        Source(
            "rest", 4, PoissonArrivals(20.0, 0), 200.0, 2, None, asking=replace(one, request_bytes=(700,), weights=())
        ),
    )
    rates = (20e6, 10e6, 6e6, None)
    classes = tuple(Reserved(rate, 150_000.0, 2000 if rate else 200) for rate in rates)
    meters = tuple(None if rate is None else Policy(0.9 * rate, 2e6) for rate in rates)
    hop = Hop("west", scheduler, 40e6, 400e6, MS, classes, meters, (0, 0, 0, 1), (4, 2, 1, 1), excess=excess, loss=loss)
    return System(sources, (hop, replace(hop, name="east")))


ROUGH = Excess(0.01, Exponential(0.002))
SHARED = [kind for kind in Scheduler if kind is not Scheduler.ISOLATED]


def same(one: Tally, other: Tally) -> bool:
    names = ("fine", "coarse", "n", "lost", "late", "smallest_ps", "largest_ps")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def answers_of(outcome: Outcome) -> tuple[Passage, Answers]:
    (passage,), (answers,) = outcome.passages, outcome.answers
    assert answers is not None
    return passage, answers


@pytest.mark.parametrize("scheduler", SHARED)
def test_the_size_of_chunks_changes_nothing(scheduler: Scheduler) -> None:
    built = system(scheduler, excess=ROUGH, loss=0.002)
    whole, pieces = (simulate(built, Plan(1, 1, 3.0, 2.0, chunk)) for chunk in (10**6, 150))
    assert same(whole.tally, pieces.tally)
    assert (whole.packets, whole.packet_hops) == (pieces.packets, pieces.packet_hops)
    (one_packets, one), (other_packets, other) = answers_of(whole), answers_of(pieces)
    assert np.array_equal(one_packets.border_ps, other_packets.border_ps)
    for name in ("tenant", "last", "request_bytes", "moments_ps", "outcome"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("scheduler", SHARED)
def test_every_request_is_answered_or_lost_once(scheduler: Scheduler) -> None:
    outcome = simulate(system(scheduler, excess=ROUGH, loss=0.002), Plan(1, 1, 3.0, 3.0))
    tally, (_, answers) = outcome.tally, answers_of(outcome)
    assert np.array_equal(tally.fine.sum(axis=1) + tally.lost.sum(axis=1), tally.n)
    assert np.array_equal(tally.coarse.sum(axis=(0, 2)), tally.n)
    for k in (0, 2, 3):
        own = answers.tenant == k
        assert own.sum() == tally.n[k] > 30
        assert np.count_nonzero(answers.outcome[own] == ANSWERED) == tally.fine[k].sum()
        for cause in range(CAUSES):
            assert np.count_nonzero(answers.outcome[own] == cause) == tally.lost[k, cause]
    assert tally.lost[0, RANDOM] > 0


def test_the_parts_of_a_request_add_up_and_follow_each_other() -> None:
    built = system()
    outcome = simulate(built, Plan(1, 1, 3.0, 3.0))
    passage, answers = answers_of(outcome)
    for k, source in enumerate(built.sources):
        if source.asking is None:
            continue
        own = (answers.tenant == k) & (answers.outcome == ANSWERED)
        at_server = passage.border_ps[answers.last[own], source.hops]
        started, finished, back = answers.moments_ps[own].T
        born = passage.born_ps[answers.last[own]]
        assert np.all(born < at_server)
        assert np.all(at_server <= started)
        assert np.all(started < finished)
        # The propagation of each link again, on the way back.
        assert np.all(back - finished >= source.hops * MS)
        assert (back - born).sum() == outcome.tally.sum_ps[k]
        assert (at_server - born).sum() == outcome.tally.sum_ps[built.way_out(k)]


def test_a_request_alone_takes_what_its_bits_take_at_its_rate_there_and_back() -> None:
    one = asking(Constant(5e-3), request_bytes=(4000,), weights=())
    source = Source("only", 1, PoissonArrivals(0.5, 0), 3.0, 1, asking=one)
    slow = Reserved(1e6, 0.0, 1000)
    hop = Hop("only", Scheduler.RESERVED, 1e15, 1e15, 0, (slow,))
    passage, answers = answers_of(simulate(System((source,), (hop,)), Plan(1, 1, 40.0, 40.0)))
    sizes, size = np.array([4000]), np.array([900])
    waits_s = [(wire.call_bits(m) - wire.last_bits(m))[0] / 1e6 for wire, m in ((one.out, sizes), (one.back, size))]
    expected = to_ps(5e-3 + sum(waits_s))
    latency = answers.moments_ps[:, 2] - passage.born_ps[answers.last]
    # With no bucket the last packet leaves once those before it are paid for, and the fast port takes no time.
    assert np.abs(latency - expected).min() < 100
    assert np.median(np.abs(latency - expected)) < 100, "requests that meet another one are few"


def test_the_requests_are_those_that_a_sender_of_a_run_would_send() -> None:
    one, arrivals = asking(), PoissonArrivals(300.0, 0)
    stream = CallStream(arrivals, one, tenant_seed(7, 3, 2))
    drawn = []
    for time_s in (0.5, 0.9, 4.0):
        stream.until(to_ps(time_s))
        drawn.append(stream.drawn)

    class Padded:
        subjects = 500

        def message_bytes(self, wanted: np.ndarray, subject: np.ndarray) -> np.ndarray:
            del subject
            return wanted

    size = DrawnSize(tuple(8 * size for size in SIZES), (1.0, 2.0, 1.0))
    expected = request_schedule(arrivals, size, Padded(), seed=tenant_seed(7, 3, 2), duration_s=4.0)  # type: ignore[arg-type]
    time_s = np.concatenate([calls.time_ps for calls in drawn]) / PS_PER_S
    assert np.abs(time_s - expected.time_s).max() < 1e-9
    assert np.array_equal(np.concatenate([calls.request_bytes for calls in drawn]), expected.message_bytes)


@pytest.mark.parametrize("message_bytes", [0, 1, 1351, 1352, 1353, 4000, 100_000])
def test_declared_packets_are_as_large_together_as_guardrails_take_them_to_be(message_bytes: int) -> None:
    sizes, wire = np.array([message_bytes]), Wire()
    cut = wire.cut(sizes)
    assert cut.size_bits.sum() == wire_bits(8 * sizes)[0]
    assert cut.size_bits.max() <= FULL_FRAME_BITS
    assert cut.size_bits[cut.ends].tolist() == wire.last_bits(sizes).tolist()
    framing = wire.framing([message_bytes, 5000])
    assert framing.wire_bits(8 * message_bytes) >= cut.size_bits.sum()
    assert Wire(96, 0).framing([1352]).wire_bits(8 * 1352) == pytest.approx(FULL_FRAME_BITS)


def mean_and_quantile(work: Draw, load: float, *, mean_s: float = 1e-3) -> tuple[float, float, tuple[float, float]]:
    """Mean and p99 with its interval of a server behind a network that takes no time."""
    one = Asking((100,), 100, work, mean_s, 1.0, NEVER // 2, out=Wire(0, 0), back=Wire(0, 0))
    source = Source("only", 1, PoissonArrivals(load / mean_s, 0), load / mean_s, 1, asking=one)
    hop = Hop("only", Scheduler.FIFO, 1e14)
    tally = simulate(System((source,), (hop,)), Plan(5, 1, 400.0)).tally
    found = quantile(tally, 0, 0.99, design_effect(tally, 0))
    assert None not in (found.estimate_s, found.lower_s, found.upper_s)
    return float(tally.sum_ps[0] / tally.n[0]) / PS_PER_S, found.estimate_s, (found.lower_s, found.upper_s)  # type: ignore[return-value]


def test_exponential_work_behind_a_fast_network_is_mm1() -> None:
    mean_s, _, (lower_s, upper_s) = mean_and_quantile(Exponential(1e-3), 0.7)
    assert mean_s == pytest.approx(1e-3 / 0.3, rel=0.03)
    assert lower_s < np.log(100) * 1e-3 / 0.3 < upper_s


def test_constant_work_behind_a_fast_network_is_md1() -> None:
    mean_s, _, (lower_s, upper_s) = mean_and_quantile(Constant(SERVICE_S), LOAD, mean_s=SERVICE_S)
    assert mean_s == pytest.approx(SERVICE_S * (1 + LOAD / (2 * (1 - LOAD))), rel=0.03)
    wait_s = brentq(lambda w: md1_wait_exceeds(w) - 0.01, 0.0, 20 * SERVICE_S)
    assert lower_s < SERVICE_S + wait_s < upper_s


def test_a_request_is_lost_with_its_own_packets_and_not_with_what_follows_them() -> None:
    wire = Wire(96, 30)
    one = Asking((500,), 500, Constant(1e-4), 1e-4, 1.0, NEVER // 2, out=wire, back=wire)
    source = Source("only", 1, PoissonArrivals(200.0, 0), 6000.0, 1, asking=one)
    tally = simulate(System((source,), (Hop("only", Scheduler.FIFO, 1e9, loss=0.01),)), Plan(1, 1, 60.0)).tally
    assert tally.lost[0, RANDOM] / tally.n[0] == pytest.approx(1 - 0.99**2, rel=0.2)


@dataclass
class _Job:
    number: int
    tenant: str
    work_s: float
    deadline_ns: int
    rows: int = 1
    batch: None = None

    @property
    def begin_by_ns(self) -> int | None:
        return self.deadline_ns


def as_the_server_does(
    jobs: Jobs, shares: tuple[float, ...], expected_s: tuple[float, ...], workers: int
) -> tuple[list[int], set[int]]:
    """Order of computation and what is dropped, by the inference server's own scheduler, event by event."""
    now, dropped = [0], set[int]()
    scheduler: ServerScheduler[_Job] = ServerScheduler(
        {str(k): share for k, share in enumerate(shares)},
        queue_limit=10**6,
        now_ns=lambda: now[0],
        expired=lambda job: dropped.add(job.number),
    )
    # Closed, it hands out what was submitted and does not wait where that is nothing.
    scheduler.close()
    order, coming = [], 0
    n = jobs.time_ps.size
    idle = [(0, False)] * workers
    while idle:
        now[0], rested = heappop(idle)
        while coming < n and jobs.time_ps[coming] <= now[0]:
            k = int(jobs.place[coming])
            scheduler.submit(_Job(coming, str(k), expected_s[k], int(jobs.deadline_ps[coming])))
            coming += 1
        # A worker that waits is woken for a request, and not to find nothing once more.
        if (len(scheduler) or not rested) and (taken := scheduler.take()):
            order.append(taken[0].number)
            heappush(idle, (now[0] + int(jobs.work_ps[taken[0].number]), False))
        elif coming < n:
            heappush(idle, (max(now[0], int(jobs.time_ps[coming])), True))
    return order, dropped


@pytest.mark.parametrize("pieces", [1, 30])
@pytest.mark.parametrize(("workers", "load", "patience_ms"), [(1, 1.22, 60), (1, 0.8, 12), (3, 0.8, 5)])
def test_turns_are_those_of_the_inference_servers_own_scheduler(
    pieces: int, workers: int, load: float, patience_ms: int
) -> None:
    rng = np.random.default_rng(4)
    n, shares, expected_s = 3000, (0.5, 0.3, 0.2), (4e-3, 2e-3, 5e-3)
    gap_s = float(np.mean(expected_s)) / load / workers
    time = np.cumsum(rng.standard_exponential(n) * gap_s * PS_PER_S).astype(np.int64)
    place = rng.integers(3, size=n).astype(np.int32)
    work = (rng.uniform(0.5, 1.5, n) * np.array(expected_s)[place] * PS_PER_S).astype(np.int64)
    jobs = Jobs(time, np.arange(n), place, work, time + patience_ms * MS)
    server, order, dropped = SharedServer(workers, shares, expected_s), [], set[int]()
    for part in np.array_split(np.arange(n), pieces):
        horizon = NEVER if part[-1] == n - 1 else int(time[part[-1] + 1])
        found = server.push(jobs.take(part), horizon)
        order += found.number.tolist()
        dropped |= set(found.dropped.tolist())
    expected, lost = as_the_server_does(jobs, shares, expected_s, workers)
    assert order == expected
    assert dropped == lost
    assert 10 < len(lost) < n / 2


def test_several_workers_compute_at_the_same_time() -> None:
    jobs = Jobs(np.arange(6), np.arange(6), np.zeros(6, np.int32), np.full(6, MS), np.full(6, NEVER))
    found = SharedServer(3, [1.0], [1e-3]).push(jobs, NEVER)
    assert found.start_ps.tolist() == [0, 1, 2, MS, MS + 1, MS + 2]


def test_isolated_ports_before_a_server_that_tenants_share_are_refused() -> None:
    with pytest.raises(ScenarioError, match=r"far, near, rest.*choose the\s+scheduler reserved"):
        system(Scheduler.ISOLATED)


def test_a_request_later_than_its_client_waits_is_a_timeout() -> None:
    built = system()
    hasty = tuple(
        replace(s, asking=replace(s.asking, timeout_ps=12 * MS)) if s.asking is not None else s for s in built.sources
    )
    outcome = simulate(replace(built, sources=hasty), Plan(1, 1, 3.0, 3.0))
    tally = outcome.tally
    assert tally.lost[0, TIMEOUT] > 10
    assert tally.largest_ps[0] <= 12 * MS
