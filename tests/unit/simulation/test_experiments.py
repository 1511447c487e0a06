"""The experiments on a small scale: who may enter, who sends the same, and whose p99.9 stays."""

from __future__ import annotations

import json
import math
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from testbed.calculus import CalculusError, Metered, RateLatency, delay_bound
from testbed.management.admission import Rule
from testbed.management.sizing import ClassDemand, design_classes
from testbed.run.progress import Silent
from testbed.simulation.clock import PS_PER_S
from testbed.simulation.experiments.isolation import SCHEDULERS, IsolationOptions, isolation, system
from testbed.simulation.experiments.overload import OverloadOptions, admit, overload, visits
from testbed.simulation.experiments.overload import system as overload_system
from testbed.simulation.experiments.plot import draw
from testbed.simulation.experiments.point import ExperimentPoint, Fates, keeping, mean_limits, pooled
from testbed.simulation.experiments.workload import (
    BURST_SEED,
    Reservation,
    Workload,
    demand,
    promised,
    reservation,
    smallest_burst_bits,
)
from testbed.simulation.meter import Policy
from testbed.simulation.streams import Visiting, stream
from testbed.simulation.system import Scheduler
from testbed.simulation.tally import METER, merge
from testbed.simulation.window import Plan, simulate
from testbed.traffic.arrivals import tenant_seed
from tests.unit.simulation.commands import COMMAND, ended
from tests.unit.simulation.systems import BURSTY
from tests.unit.simulation.test_pipeline import wait_for

WORKLOAD = Workload()
OVERLOAD = OverloadOptions(duration_s=20.0, replications=2, loads=(0.5, 1.8))
ISOLATION = IsolationOptions(duration_s=60.0, replications=2, correlations=(0.0, 1.0))
SHORT = replace(ISOLATION, duration_s=5.0, correlations=(0.5,))


@pytest.fixture(scope="module")
def burst_bits() -> float:
    return smallest_burst_bits(WORKLOAD, duration_s=5000.0)


@pytest.fixture(scope="module")
def overloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[float, str], ExperimentPoint]:
    found = overload(OVERLOAD, tmp_path_factory.mktemp("overload"), Silent())
    return {(point.value, point.name): point for point in found}


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[float, str], ExperimentPoint]:
    found = isolation(ISOLATION, tmp_path_factory.mktemp("isolation"), Silent())
    return {(point.value, point.name): point for point in found}


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


@pytest.mark.parametrize("rule", [Rule.DETERMINISTIC, Rule.STOCHASTIC])
@pytest.mark.parametrize("link_bps", [30e6, 86e6, 93e6, 100e6])
def test_a_reservation_is_the_smallest_that_keeps_its_promise_on_a_link_full_of_its_like(
    burst_bits: float, rule: Rule, link_bps: float
) -> None:
    workload = replace(WORKLOAD, link_bps=link_bps)
    asked = demand(workload, burst_bits)
    given = reservation(rule, workload, burst_bits)
    assert promised(rule, workload, asked, given.rate_bps) == (given.shaped, given.bound_s)
    # Judged again without the search: the port of as many classes as fit, and the theorem at its latency.
    number = int(link_bps // given.rate_bps)
    classes = design_classes([ClassDemand(str(k), math.ceil(given.rate_bps), 11_200) for k in range(number)])
    services = [RateLatency(given.rate_bps, classes["0"].latency_s)] * workload.domains
    flow = asked.contract if rule is Rule.DETERMINISTIC else Metered(asked.flow, asked.contract)
    bound = delay_bound(flow, services, asked.epsilon - asked.meter_loss)
    assert bound.delay_s == pytest.approx(given.bound_s, rel=1e-9)
    assert bound.delay_s <= workload.deadline_s
    smaller = np.linspace(workload.mean_bps * 1.01, given.rate_bps * (1 - 1e-6), 12)
    assert all(promised(rule, workload, asked, float(rate)) is None for rate in smaller)


def test_a_promise_that_no_rate_keeps_is_an_error_that_names_it(burst_bits: float) -> None:
    with pytest.raises(CalculusError, match="expected a rate up to the link's"):
        reservation(Rule.STOCHASTIC, replace(WORKLOAD, link_bps=4e6), burst_bits)
    with pytest.raises(CalculusError, match="fails at any rate"):
        reservation(Rule.DETERMINISTIC, replace(WORKLOAD, deadline_s=1e-4), burst_bits)
    with pytest.raises(CalculusError, match="rule peak"):
        reservation(Rule.PEAK, replace(WORKLOAD, link_bps=19e6), burst_bits)


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
    # What waits when the window ends is carried behind it.
    assert 0.95 < point.utilisation <= 1.0


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


def test_reserved_tenants_pass_the_meters_that_their_bounds_count_on_and_others_none(burst_bits: float) -> None:
    given = reservation(Rule.STOCHASTIC, WORKLOAD, burst_bits)
    contract = demand(WORKLOAD, burst_bits).contract
    assert given.policy == Policy(contract.rate_bps, contract.burst_bits)
    narrow = replace(given, policy=Policy(contract.rate_bps, 10 * WORKLOAD.arrivals.size_bits))
    dropped = {
        scheduler: simulate(system(ISOLATION, 0.5, scheduler, narrow), Plan(1, 1, 20.0)).tally.lost[:, METER]
        for scheduler in SCHEDULERS
    }
    assert (dropped[Scheduler.RESERVED] > 0).all()
    assert not dropped[Scheduler.FIFO].any()


def test_tenants_count_for_themselves_however_many_packets_others_send() -> None:
    sent, missed = np.array([1_000_000, 1000, 2000, 999]), np.array([0, 2, 2, 999])
    window = Fates(sent, missed, np.ones(4))
    found = keeping([window], 1e-3, apart=True)
    # The last one sent too few packets to show one in a thousand; of the others the second one's promise broke.
    assert (found.tenants, found.share, found.worst_miss) == (3, pytest.approx(2 / 3), 2e-3)
    assert found.interval == pytest.approx(stats.binomtest(2, 3).proportion_ci(0.95), abs=1e-9)
    assert keeping([window.among(sent < 1000)], 1e-3, apart=True).share is None


def test_a_promise_that_a_stay_broke_is_refuted_only_where_chance_does_not_explain_it() -> None:
    sent, missed = np.array([2000, 2000, 2000, 2000]), np.array([1, 5, 7, 200])
    independent = keeping([Fates(sent, missed, np.ones(4))], 1e-3, apart=True)
    clinging = keeping([Fates(sent, missed, np.full(4, 100.0))], 1e-3, apart=True)
    assert independent.share == clinging.share == 0.25
    # Of 2,000 independent packets of a tenant that misses one in a thousand, six or more miss in 1.7 %, five in 5.3 %.
    assert (independent.refuted, clinging.refuted) == (2, 1)


def test_tenants_that_fare_alike_count_for_fewer() -> None:
    def window(broken: int) -> Fates:
        return Fates(np.full(20, 1000), np.where(np.arange(20) < broken, 5, 0), np.ones(20))

    scattered = keeping([window(10), window(9), window(11), window(10)], 1e-3, apart=False)
    together = keeping([window(20), window(0), window(20), window(0)], 1e-3, apart=False)
    assert scattered.share == together.share == 0.5
    assert scattered.interval == pytest.approx(stats.binomtest(40, 80).proportion_ci(0.95), abs=1e-9)
    assert together.interval[0] < 0.1
    assert together.interval[1] > 0.9
    # Where nothing scatters, tenants of a shared queue are worth a window each, and reserved ones themselves.
    shared, apart = (keeping([window(0)] * 4, 1e-3, apart=apart) for apart in (False, True))
    assert shared.interval == pytest.approx(stats.binomtest(4, 4).proportion_ci(0.95), abs=1e-9)
    assert apart.interval == pytest.approx(stats.binomtest(80, 80).proportion_ci(0.95), abs=1e-9)
    alone = [Fates(np.array([1000]), np.array([missed]), np.ones(1)) for missed in (0, 0, 0, 5)]
    assert keeping(alone, 1e-3, apart=False).interval == pytest.approx(stats.binomtest(3, 4).proportion_ci(0.95))
    assert keeping([window(7)], 1e-3, apart=False).interval == pytest.approx((0.0, 1.0))


def test_tenants_whose_promise_was_kept_are_counted_from_their_own_packets(
    overloaded: dict[tuple[float, str], ExperimentPoint], tmp_path: Path
) -> None:
    alone = replace(OVERLOAD, loads=(1.8,), replications=2)
    point = overloaded[1.8, Rule.STOCHASTIC]
    given = reservation(Rule.STOCHASTIC, WORKLOAD, smallest_burst_bits(WORKLOAD))
    fractions = []
    for window in (1, 2):
        inside = admit(visits(alone, 1.8, window), given, WORKLOAD)
        outcome = simulate(overload_system(alone, inside, given), Plan(1, window, 20.0, 20.0))
        (passage,) = outcome.passages
        last_ps = passage.border_ps[:, -1]
        late = (last_ps < 0) | (last_ps - passage.born_ps > WORKLOAD.deadline_s * PS_PER_S)
        for k in range(len(inside)):
            own = late[passage.tenant == k]
            if own.size >= 1000:
                fractions.append(own.mean())
    assert point.kept.tenants == len(fractions) > 10
    assert point.kept.share == pytest.approx(np.mean(np.array(fractions) <= 1e-3))
    assert point.kept.worst_miss == pytest.approx(max(fractions))
    lost = overloaded[1.8, Rule.NONE].kept
    assert (lost.share, lost.worst_miss) == (0.0, 1.0)
    assert point.kept.refuted == 0
    assert lost.refuted > 0.9 * lost.tenants


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
    wanted |= {
        "p999_limits",
        "tenants",
        "tenant_compliance",
        "tenant_compliance_interval",
        "tenants_refuted",
        "worst_tenant_miss",
    }
    assert wanted <= found.keys()
    for limits, said in (((0.01, 0.02), "two-sided"), ((0.01, None), "unbounded above")):
        assert replace(isolated[0.0, "fifo"], p999_interval_s=limits).to_dict()["p999_limits"] == said


def test_pooling_keeps_every_packet_and_only_sure_extremes(burst_bits: float) -> None:
    built = system(ISOLATION, 0.5, Scheduler.FIFO, reservation(Rule.STOCHASTIC, WORKLOAD, burst_bits))
    outcome = simulate(built, Plan(1, 1, 20.0, 20.0))
    whole = pooled(outcome.tally)
    (passage,) = outcome.passages
    latency = np.sort(passage.border_ps[:, -1] - passage.born_ps)[::-1]
    assert whole.n[0] == latency.size
    assert np.array_equal(whole.top[0, : whole.top_count[0]], latency[: whole.top_count[0]])
    assert merge([whole, whole]).coarse.sum() == 2 * latency.size


def test_experiments_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    several = isolation(replace(SHORT, workers=2), tmp_path / "several", Silent())
    assert several == isolation(SHORT, tmp_path / "one", Silent())


def test_what_was_not_finished_is_left_out_and_what_was_is_not_simulated_again(tmp_path: Path) -> None:
    whole = isolation(SHORT, tmp_path / "whole", Silent())
    first = isolation(SHORT, tmp_path / "cut", Silent(), stop=lambda: len(marks(tmp_path / "cut")) > 2)
    assert first == whole[:1]
    assert len(whole) == 2
    kept = marks(tmp_path / "cut")
    assert len(kept) == 3
    assert isolation(SHORT, tmp_path / "cut", Silent()) == whole
    assert kept.items() <= marks(tmp_path / "cut").items()


def test_windows_of_another_experiment_in_the_same_folder_are_neither_taken_nor_touched(tmp_path: Path) -> None:
    isolation(SHORT, tmp_path, Silent())
    before = marks(tmp_path)
    longer = replace(SHORT, duration_s=6.0)
    assert isolation(longer, tmp_path, Silent())[0].packets > isolation(SHORT, tmp_path, Silent())[0].packets
    more = isolation(replace(SHORT, replications=3), tmp_path, Silent())
    assert len(more) == 2
    assert before.items() <= marks(tmp_path).items()
    assert len(marks(tmp_path)) == 4 + 4 + 2


def marks(folder: Path) -> dict[Path, int]:
    """When each finished window was written."""
    found = {path: path.stat().st_mtime_ns for path in folder.glob("*/window-*/window.json")}
    return {path: mark for path, mark in found.items() if json.loads(path.read_text())["complete"]}


def test_an_experiment_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    command = ["experiment", "overload", "--replications", "2", "--duration", "4", "--json"]
    killed = [*command, "--out", str(tmp_path / "killed")]
    process = subprocess.Popen([*COMMAND, *killed], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "killed", "load-0.5-none/window-2-*/window.json", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = marks(tmp_path / "killed")
    assert 2 <= len(kept) < 48
    resumed = ended(*killed)
    after = marks(tmp_path / "killed")
    assert len(after) == 48
    assert kept.items() <= after.items()
    whole = ended(*command, "--out", str(tmp_path / "whole"))
    assert (resumed.returncode, whole.returncode) == (0, 0), resumed.stderr + whole.stderr
    assert json.loads(resumed.stdout) == json.loads(whole.stdout)


def test_limits_of_a_mean_are_students() -> None:
    low, high = mean_limits([0.2, 0.4])
    assert (low, high) == (0.0, 1.0)
    low, high = mean_limits([0.30, 0.31, 0.29, 0.30])
    assert low == pytest.approx(0.30 - 3.182 * 0.00816 / 2, abs=1e-4)
    assert high == pytest.approx(0.30 + 3.182 * 0.00816 / 2, abs=1e-4)


@pytest.mark.parametrize(("suffix", "begins"), [(".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_the_same_points_are_drawn_as_the_same_bytes(
    isolated: dict[tuple[float, str], ExperimentPoint], tmp_path: Path, suffix: str, begins: bytes
) -> None:
    pictures = [tmp_path / f"{name}{suffix}" for name in ("first", "second")]
    for picture in pictures:
        draw(list(isolated.values()), WORKLOAD.deadline_s, picture)
    first, second = (picture.read_bytes() for picture in pictures)
    assert first.startswith(begins)
    assert first == second


def test_a_picture_of_overload_shows_how_much_of_the_link_is_used_and_within_which_limits(
    overloaded: dict[tuple[float, str], ExperimentPoint], tmp_path: Path
) -> None:
    changed = ({}, {"utilisation": 0.9}, {"utilisation_interval": (0.0, 1.0)})
    drawn = []
    for number, other in enumerate(changed):
        points = [replace(point, **other) for point in overloaded.values()]
        draw(points, WORKLOAD.deadline_s, tmp_path / f"{number}.svg")
        drawn.append((tmp_path / f"{number}.svg").read_text())
    # Letters are drawn as shapes, and what they spell stands in a comment.
    assert "<!-- share of the link used -->" in drawn[0]
    assert len(set(drawn)) == len(changed)


def test_a_reservation_is_comparable_across_processes(burst_bits: float) -> None:
    assert reservation(Rule.PEAK, WORKLOAD, burst_bits) == reservation(Rule.PEAK, WORKLOAD, burst_bits)
    assert isinstance(reservation(Rule.PEAK, WORKLOAD, burst_bits), Reservation)
