"""The experiments on a small scale: who may enter, who sends the same, and whose p99.9 stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from testbed.management.admission import Rule
from testbed.simulation.clock import PS_PER_S
from testbed.simulation.experiments.isolation import IsolationOptions, isolation, system
from testbed.simulation.experiments.overload import OverloadOptions, admit, overload, visits
from testbed.simulation.experiments.plot import draw
from testbed.simulation.experiments.point import ExperimentPoint, mean_limits, pooled
from testbed.simulation.experiments.workload import BURST_SEED, Reservation, Workload, reservation, smallest_burst_bits
from testbed.simulation.streams import Visiting, stream
from testbed.simulation.system import Scheduler
from testbed.simulation.tally import merge
from testbed.simulation.window import Plan, simulate
from testbed.traffic.arrivals import tenant_seed
from tests.unit.simulation.systems import BURSTY

WORKLOAD = Workload()
OVERLOAD = OverloadOptions(duration_s=20.0, replications=2, loads=(0.5, 1.8))
ISOLATION = IsolationOptions(duration_s=60.0, replications=2, correlations=(0.0, 1.0))


@pytest.fixture(scope="module")
def burst_bits() -> float:
    return smallest_burst_bits(WORKLOAD, duration_s=5000.0)


@pytest.fixture(scope="module")
def overloaded() -> dict[tuple[float, str], ExperimentPoint]:
    return {(point.value, point.name): point for point in overload(OVERLOAD)}


@pytest.fixture(scope="module")
def isolated() -> dict[tuple[float, str], ExperimentPoint]:
    return {(point.value, point.name): point for point in isolation(ISOLATION)}


def test_the_declared_burst_is_the_smallest_that_loses_a_tenth_of_epsilon(burst_bits: float) -> None:
    smaller = replace(WORKLOAD, epsilon=WORKLOAD.epsilon * 1.5)
    assert smallest_burst_bits(smaller, duration_s=5000.0) < burst_bits
    assert burst_bits % WORKLOAD.arrivals.size_bits == 0
    assert _met(burst_bits) < WORKLOAD.epsilon / 10 <= _met(burst_bits - WORKLOAD.arrivals.size_bits)


def _met(burst_bits: float) -> float:
    """Share of the packets of a long stream that a bucket of so many bits drops, one after the other."""
    arrivals, rate_bps = WORKLOAD.arrivals, WORKLOAD.contract_factor * WORKLOAD.mean_bps
    times = stream(arrivals, np.random.SeedSequence(BURST_SEED)).until(5000 * PS_PER_S).time_ps / PS_PER_S
    level, before_s, dropped = burst_bits, 0.0, 0
    for at_s in times.tolist():
        level, before_s = min(burst_bits, level + rate_bps * (at_s - before_s)), at_s
        if level < arrivals.size_bits:
            dropped += 1
        else:
            level -= arrivals.size_bits
    return dropped / times.size


def test_rules_reserve_the_less_the_more_they_know(burst_bits: float) -> None:
    peak, deterministic, stochastic = (
        reservation(rule, WORKLOAD, burst_bits) for rule in (Rule.PEAK, Rule.DETERMINISTIC, Rule.STOCHASTIC)
    )
    assert peak.rate_bps == WORKLOAD.arrivals.peak_bps
    assert WORKLOAD.mean_bps < stochastic.rate_bps < deterministic.rate_bps < peak.rate_bps
    for one in (peak, deterministic, stochastic):
        assert one.bound_s is not None
        assert one.bound_s <= WORKLOAD.deadline_s
    assert reservation(Rule.NONE, WORKLOAD, burst_bits).bound_s is None


@pytest.mark.parametrize("rate_bps", [12e6, 7e6, 0.0])
def test_reservations_never_exceed_the_link_at_any_time(burst_bits: float, rate_bps: float) -> None:
    given = replace(reservation(Rule.NONE, WORKLOAD, burst_bits), rate_bps=rate_bps)
    asking = visits(OVERLOAD, 1.8, 1)
    inside = admit(asking, given, WORKLOAD)
    most = max(sum(v.start_s <= instant < v.end_s for v in inside) for instant in np.linspace(0, 20, 500))
    if rate_bps:
        assert most == int(WORKLOAD.link_bps / rate_bps)
        assert most < len(inside) < len(asking), "whoever leaves makes room for another one"
    else:
        assert inside == asking


def test_offered_load_is_what_was_asked_for() -> None:
    present = [sum(v.start_s <= 10.0 < v.end_s for v in visits(OVERLOAD, 1.0, window)) for window in range(1, 201)]
    assert np.mean(present) == pytest.approx(WORKLOAD.link_bps / WORKLOAD.mean_bps, rel=0.04)


def test_a_visiting_tenant_sends_its_stream_while_it_is_there() -> None:
    start, end = 3 * PS_PER_S, 5 * PS_PER_S
    visiting = Visiting(stream(BURSTY, tenant_seed(1, 1, 1)), [(start, end)])
    found = np.concatenate([visiting.until(t * PS_PER_S).time_ps for t in (1, 4, 5, 9)])
    expected = stream(BURSTY, tenant_seed(1, 1, 1)).until(end - start).time_ps + start
    assert np.array_equal(found, expected)


def test_with_control_admitted_tenants_keep_their_promise_at_every_load(
    overloaded: dict[tuple[float, str], ExperimentPoint],
) -> None:
    for load in OVERLOAD.loads:
        for rule in (Rule.PEAK, Rule.DETERMINISTIC, Rule.STOCHASTIC):
            point = overloaded[load, rule]
            # Windows this short hold a few hundred independent packets: the promise must lie within their limits.
            assert point.compliance_interval[1] >= 1 - WORKLOAD.epsilon
            assert point.compliance > 0.998
            assert point.bound_s is not None
            assert (point.p999_interval_s[0] or 0.0) <= point.bound_s


def test_without_control_everybody_enters_and_loses(overloaded: dict[tuple[float, str], ExperimentPoint]) -> None:
    point = overloaded[1.8, Rule.NONE]
    assert point.admitted == 1.0
    assert point.compliance < 0.5
    assert point.p999_s is None
    assert point.utilisation == pytest.approx(1.0, abs=0.05)


def test_knowing_the_statistics_admits_more(overloaded: dict[tuple[float, str], ExperimentPoint]) -> None:
    shares = [overloaded[1.8, rule].admitted for rule in (Rule.PEAK, Rule.DETERMINISTIC, Rule.STOCHASTIC)]
    assert shares == sorted(shares)
    assert shares[2] > 1.5 * shares[1]


def test_the_victim_sends_the_same_packets_at_every_correlation(burst_bits: float) -> None:
    given = reservation(Rule.STOCHASTIC, WORKLOAD, burst_bits)
    passages = []
    for correlation in (0.0, 0.7, 1.0):
        built = system(ISOLATION, correlation, Scheduler.FIFO, given)
        (passage,) = simulate(built, Plan(1, 1, 5.0, 5.0)).passages
        passages.append(passage)
    victims = [passage.born_ps[passage.tenant == 0] for passage in passages]
    assert np.array_equal(victims[0], victims[1])
    assert np.array_equal(victims[0], victims[2])
    others = [passage.born_ps[passage.tenant == 1] for passage in passages]
    assert not np.array_equal(others[0], others[1])


def test_a_reservation_isolates_and_a_shared_queue_does_not(
    isolated: dict[tuple[float, str], ExperimentPoint],
) -> None:
    alone, together = isolated[0.0, "reserved"].p999_s, isolated[1.0, "reserved"].p999_s
    assert alone is not None
    assert together == pytest.approx(alone, rel=0.05)
    assert (isolated[1.0, "fifo"].p999_s or 0) > 10 * (isolated[0.0, "fifo"].p999_s or 1)
    # What holds there must hold at every dependence, so it is far from the promise of a reservation.
    assert isolated[0.0, "fifo"].bound_s == isolated[1.0, "fifo"].bound_s
    assert (isolated[1.0, "fifo"].p999_interval_s[0] or 0) < (isolated[1.0, "fifo"].bound_s or 0)
    assert (isolated[1.0, "fifo"].bound_s or 0) > WORKLOAD.deadline_s
    assert together <= (isolated[1.0, "reserved"].bound_s or 0)


def test_points_say_what_others_rely_on(isolated: dict[tuple[float, str], ExperimentPoint]) -> None:
    found = isolated[0.0, "fifo"].to_dict()
    wanted = {"correlation", "scheduler", "p999_s", "p999_interval_s", "compliance", "admitted", "bound_s"}
    assert wanted <= found.keys()


def test_pooling_keeps_every_packet_and_only_sure_extremes(burst_bits: float) -> None:
    built = system(ISOLATION, 0.5, Scheduler.FIFO, reservation(Rule.STOCHASTIC, WORKLOAD, burst_bits))
    outcome = simulate(built, Plan(1, 1, 20.0, 20.0))
    whole = pooled(outcome.tally)
    (passage,) = outcome.passages
    latency = np.sort(passage.border_ps[:, -1] - passage.born_ps)[::-1]
    assert whole.n[0] == latency.size
    assert np.array_equal(whole.top[0, : whole.top_count[0]], latency[: whole.top_count[0]])
    assert merge([whole, whole]).coarse.sum() == 2 * latency.size


def test_experiments_do_not_depend_on_the_number_of_workers() -> None:
    small = replace(ISOLATION, duration_s=5.0, correlations=(0.5,))
    assert isolation(small) == isolation(replace(small, workers=2))


def test_what_was_not_finished_is_left_out() -> None:
    asked = iter(range(10**6))
    assert len(isolation(ISOLATION, stop=lambda: next(asked) > 8)) < 4


def test_limits_of_a_mean_are_students() -> None:
    low, high = mean_limits([0.2, 0.4])
    assert (low, high) == (0.0, 1.0)
    low, high = mean_limits([0.30, 0.31, 0.29, 0.30])
    assert low == pytest.approx(0.30 - 3.182 * 0.00816 / 2, abs=1e-4)
    assert high == pytest.approx(0.30 + 3.182 * 0.00816 / 2, abs=1e-4)


def test_a_picture_is_drawn(isolated: dict[tuple[float, str], ExperimentPoint], tmp_path: Path) -> None:
    draw(list(isolated.values()), WORKLOAD.deadline_s, tmp_path / "isolation.svg")
    text = (tmp_path / "isolation.svg").read_text()
    assert "<svg" in text


def test_a_reservation_is_comparable_across_processes(burst_bits: float) -> None:
    assert reservation(Rule.PEAK, WORKLOAD, burst_bits) == reservation(Rule.PEAK, WORKLOAD, burst_bits)
    assert isinstance(reservation(Rule.PEAK, WORKLOAD, burst_bits), Reservation)
