"""Experiments on a network, with the simulator in the network's place: what is run, what is kept, what is said."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from testbed.errors import InterruptedRunError, PreflightError
from testbed.report.plots import STALL
from testbed.report.record import GateRecord, read_record, write_record
from testbed.run.pipeline import Options
from testbed.run.progress import Progress, Silent
from testbed.scenario.dictionary import from_dict, to_dict
from testbed.scenario.model import Scenario
from testbed.simulation.experiments.network import measured, on_network, simulated
from testbed.simulation.experiments.overload import OverloadOptions, visits
from testbed.simulation.experiments.plot import draw
from testbed.simulation.experiments.point import ExperimentPoint, Kept
from testbed.simulation.experiments.scenarios import NetworkOptions, PointPlan, isolation_plans, overload_plans, seats
from testbed.simulation.experiments.workload import smallest_burst_bits
from testbed.simulation.pipeline import Options as Simulated
from testbed.simulation.pipeline import simulate_scenario
from testbed.telemetry import samples
from testbed.traffic.arrivals import schedules

NOBODY = Kept(0, None, (0.0, 1.0), 0, None)
OPTIONS = NetworkOptions(duration_s=12.0, loads=(0.5, 1.8), correlations=(0.0, 1.0))


@pytest.fixture(scope="module")
def isolation() -> list[PointPlan]:
    return isolation_plans(OPTIONS)


@pytest.fixture(scope="module")
def overload() -> list[PointPlan]:
    return overload_plans(OPTIONS)


@dataclass
class Emulated:
    """Stands for a network: leaves the folder that a run leaves, and does to it what a test wants."""

    change: Callable[[Path], None] = lambda _: None
    asked: list[str] = field(default_factory=list)

    def __call__(self, scenario: Scenario, options: Options, progress: Progress) -> Path:
        self.asked.append(scenario.name)
        folder = simulate_scenario(scenario, Simulated(out=options.out, page=False), progress)
        self.change(folder)
        return folder


def with_record(**changes: object) -> Callable[[Path], None]:
    return lambda folder: write_record(folder, read_record(folder).model_copy(update=changes))


def test_the_victim_is_sent_the_same_packets_at_every_correlation_and_under_both_schedulers(
    isolation: list[PointPlan],
) -> None:
    drawn = [schedules(plan.scenario, window=1, duration_s=OPTIONS.duration_s) for plan in isolation]
    assert len(drawn) == 4
    for other in drawn[1:]:
        assert np.array_equal(drawn[0][1].time_s, other[1].time_s)
    assert not np.array_equal(drawn[0][2].time_s, drawn[-1][2].time_s)


def test_reservations_fit_the_link_and_a_shared_queue_has_none(
    isolation: list[PointPlan], overload: list[PointPlan]
) -> None:
    for plan in (*isolation, *overload):
        shared = plan.name in {"fifo", "none"}
        reserved = [tenant.reservation.rate_bps for tenant in plan.scenario.tenants if tenant.reservation]
        assert [domain.shared_queue_bits is not None for domain in plan.scenario.domains] == [shared] * 3
        assert (len(reserved) == 0) == shared
        assert sum(reserved) <= OPTIONS.workload.link_bps
        assert from_dict(to_dict(plan.scenario)) == plan.scenario


def test_visits_take_turns_on_as_many_seats_as_are_needed_at_once(overload: list[PointPlan]) -> None:
    asking = visits(OverloadOptions(workload=OPTIONS.workload, duration_s=60.0), 1.0, 1)
    taken = seats(asking)
    assert sorted(visit.number for seat in taken for visit in seat) == [visit.number for visit in asking]
    for seat in taken:
        assert all(one.end_s <= other.start_s for one, other in itertools.pairwise(seat))
    most = max(sum(v.start_s <= visit.start_s < v.end_s for v in asking) for visit in asking)
    assert len(taken) == most
    uncontrolled, controlled = (len(plan.scenario.tenants) for plan in overload[2:])
    assert controlled == int(OPTIONS.workload.link_bps / 4_190_000) < uncontrolled
    assert overload[2].admitted == 1.0 > overload[3].admitted > 0.0


def test_a_point_on_the_network_stands_beside_its_own_packets_in_the_simulator(
    isolation: list[PointPlan], overload: list[PointPlan], tmp_path: Path
) -> None:
    for number, plan in enumerate((*isolation[-2:], *overload[-2:])):
        folder = Emulated()(plan.scenario, Options(out=tmp_path / str(number)), Silent())
        one, other = measured(plan, folder), simulated(plan)
        assert one.packets == other.packets > 500
        assert one.p999_s == (None if other.p999_s is None else pytest.approx(other.p999_s, abs=2e-9))
        assert one.compliance == other.compliance
        assert one.kept == other.kept
        assert one.bound_s == other.bound_s
        assert (one.bound_s is None) == (plan.name == "none")
        assert (one.on, other.on) == ("network", "simulation")
        wanted = {plan.varied, plan.contender, "p999_s", "p999_interval_s", "compliance", "admitted", "bound_s"}
        assert wanted <= one.to_dict().keys()


def test_no_link_is_used_for_more_than_it_can_carry_within_the_window(overload: list[PointPlan]) -> None:
    found = {(plan.value, plan.name): simulated(plan).utilisation for plan in overload}
    # Without control the queue is full when the window ends; what it holds is carried behind it.
    assert 0.98 < found[1.8, "none"] <= 1.0
    assert max(found.values()) == found[1.8, "none"]


def test_every_visit_is_a_tenant_of_its_own(overload: list[PointPlan]) -> None:
    plan = overload[-1]
    stays = [stay for tenant in plan.scenario.tenants for stay in tenant.present_s or ()]
    assert len(stays) == len(plan.refused) - sum(plan.refused) > len(plan.scenario.tenants)
    found = simulated(replace(plan, epsilon=0.01))
    # 178 packets a second: whoever stays for a second sends the hundred that can show one in a hundred.
    assert sum(end_s - begin_s > 1.5 for begin_s, end_s in stays) <= found.kept.tenants <= len(stays)
    assert found.kept.tenants > len(plan.scenario.tenants)


def test_every_share_has_two_limits_and_a_quantile_without_an_upper_one_says_so(
    isolation: list[PointPlan], overload: list[PointPlan]
) -> None:
    for plan in (*isolation, *overload):
        point = simulated(plan)
        for share, (low, high) in (
            (point.compliance, point.compliance_interval),
            (point.kept.share, point.kept.interval),
            (point.admitted, point.admitted_interval),
        ):
            assert share is not None
            assert 0.0 <= low <= share <= high <= 1.0
        low_s, high_s = point.p999_interval_s
        assert point.to_dict()["p999_limits"] == ("unbounded above" if high_s is None else "two-sided")
        if point.p999_s is not None and low_s is not None:
            assert low_s <= point.p999_s <= (high_s or math.inf)
    crowded = simulated(overload[-1])
    assert 0.0 < crowded.admitted_interval[0] < crowded.admitted < crowded.admitted_interval[1] < 1.0


def test_refusals_that_cling_together_are_worth_fewer(overload: list[PointPlan]) -> None:
    mixed, block = ([k % 2 == 0 for k in range(60)], [k < 30 for k in range(60)])
    narrow, wide = (simulated(replace(overload[-1], refused=tuple(one))).admitted_interval for one in (mixed, block))
    assert narrow == pytest.approx(stats.binomtest(30, 60).proportion_ci(0.95), abs=1e-9)
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


def test_what_is_finished_is_found_again_and_only_the_rest_is_run(isolation: list[PointPlan], tmp_path: Path) -> None:
    network = Emulated()
    first = on_network(isolation, tmp_path, Silent(), at_most=1, runner=network)
    assert [(point.value, point.name) for point in first] == [(0.0, "fifo")]
    every = on_network(isolation, tmp_path, Silent(), runner=network)
    assert len(every) == 4
    assert every[0] == first[0]
    assert on_network(isolation, tmp_path, Silent(), runner=network) == every
    assert network.asked == [plan.scenario.name for plan in isolation]


def test_an_invalid_run_stays_a_point_that_says_so(isolation: list[PointPlan], tmp_path: Path) -> None:
    gate = GateRecord(name="CPU steal", value=0.3, limit=0.02, ok=False, detail="", window=1)
    network = Emulated(with_record(gates=(gate,)))
    for _ in range(2):
        (point,) = on_network(isolation[:1], tmp_path, Silent(), runner=network)
        assert point.invalid == ("CPU steal",)
        assert point.to_dict()["valid"] is False
        assert point.p999_s is not None
    assert len(network.asked) == 1


def test_a_point_tells_how_many_of_its_slowest_packets_a_stall_touched(
    isolation: list[PointPlan], tmp_path: Path
) -> None:
    folder = Emulated()(isolation[0].scenario, Options(out=tmp_path), Silent())
    plain = measured(isolation[0], folder)
    assert (plain.away_s, plain.slowest_stalled) == (0.0, 0.0)
    assert (simulated(isolation[0]).away_s, simulated(isolation[0]).slowest_stalled) == (None, None)
    (window,) = read_record(folder).windows
    read, _ = samples.read(folder / window.samples["victim"])
    slowest = int(np.nanargmax(read.latency_s))
    at_s = float(read.intended_s[slowest] + read.latency_s[slowest] / 2)
    with_record(windows=(window.model_copy(update={"stalls": ((at_s, 0.004),)}),))(folder)
    point = measured(isolation[0], folder)
    assert point.away_s == pytest.approx(0.004)
    assert 0.0 < (point.slowest_stalled or 0.0) <= 1.0
    assert point.to_dict()["slowest_stalled"] == point.slowest_stalled


def test_a_run_that_was_cut_short_is_no_point_and_is_made_again(isolation: list[PointPlan], tmp_path: Path) -> None:
    network = Emulated(with_record(partial=True))
    assert on_network(isolation[:1], tmp_path, Silent(), runner=network) == []
    network.change = lambda _: None
    assert len(on_network(isolation[:1], tmp_path, Silent(), runner=network)) == 1

    def interrupted(scenario: Scenario, options: Options, progress: Progress) -> Path:
        raise InterruptedRunError("before anything was measured")

    assert len(on_network(isolation[:2], tmp_path, Silent(), runner=interrupted)) == 1
    assert on_network(isolation[2:], tmp_path, Silent(), stop=lambda: True, runner=interrupted) == []


def test_a_folder_of_another_experiment_is_refused(isolation: list[PointPlan], tmp_path: Path) -> None:
    on_network(isolation[:1], tmp_path, Silent(), runner=Emulated())
    longer = isolation_plans(replace(OPTIONS, duration_s=13.0))
    with pytest.raises(PreflightError, match="another experiment"):
        on_network(longer, tmp_path, Silent(), runner=Emulated())


def test_network_and_simulation_are_drawn_over_each_other(isolation: list[PointPlan], tmp_path: Path) -> None:
    both = [simulated(plan) for plan in isolation]
    both += [replace(point, on="network", invalid=("CPU idle",)) for point in both]
    draw(both, 0.1, tmp_path / "both.svg")
    # INVALID points are hollow: their shares are white marks in the colour's outline.
    assert "fill: #ffffff; stroke: #0072b2" in (tmp_path / "both.svg").read_text()
    assert STALL not in (tmp_path / "both.svg").read_text()
    draw([replace(point, slowest_stalled=0.2) for point in both], 0.1, tmp_path / "stalled.svg")
    # One in the legend, and one around every point of the network.
    assert (tmp_path / "stalled.svg").read_text().count(STALL) > len(isolation)


def test_a_point_without_packets_claims_no_compliance() -> None:
    empty = ExperimentPoint(
        "load", 1.0, "rule", "none", None, (None, None), float("nan"), (0.0, 1.0), NOBODY, 1.0, (0.0, 1.0), 0.0, None, 0
    )
    assert empty.to_dict()["compliance"] is None


def test_simulated_meters_hold_the_whole_kbit_that_those_of_a_network_do(isolation: list[PointPlan]) -> None:
    reserved = [tenant.reservation for plan in isolation for tenant in plan.scenario.tenants if tenant.reservation]
    assert {bought.burst_bits for bought in reserved} == {smallest_burst_bits(OPTIONS.workload)}
