"""A slowed scenario is the same one in another time: what stretches, what stays, and what cannot be divided."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from testbed.errors import ScenarioError
from testbed.management.sizing import PAUSE_S, ClassDemand, design_classes
from testbed.scenario import federation, model
from testbed.scenario.dictionary import from_dict, to_dict
from testbed.scenario.loader import load
from testbed.scenario.model import MmppArrivals, Scenario, TraceArrivals
from testbed.scenario.slow_down import NOT_STRETCHED, PER_RATE, corrections, least_resend_s, slowed
from testbed.traffic.arrivals import schedules

TOPOLOGIES = Path(__file__).parents[3] / "topologies"

HAVE_NO_TIME = frozenset({
    "size_bits", "burst_bits", "queue_bits", "bits_per_token", "weights", "images", "in_flight", "compute_share", "cv",
    "epsilon", "confidence", "seed", "speed_up", "shared_queue_bits", "strength", "share", "loss", "factor",
    "token_scale", "accuracy", "answer_bits", "workers", "seats", "price", "classes", "packet_bits",
})  # fmt: skip
"""Numbers that are the same in any time; a trace's speed-up is the factor by which its own time is divided."""


@pytest.fixture
def demo() -> Scenario:
    return load(TOPOLOGIES / "demo.yaml")


def test_the_same_packets_are_sent_at_times_as_many_times_as_late(demo: Scenario) -> None:
    before = schedules(demo, seed=3, window=1, duration_s=5.0)
    after = schedules(slowed(demo, 8), seed=3, window=1, duration_s=40.0)
    for name, schedule in before.items():
        np.testing.assert_allclose(after[name].time_s, 8 * schedule.time_s, rtol=1e-9)
        np.testing.assert_array_equal(after[name].size_bits, schedule.size_bits)


def test_rates_are_divided_and_times_multiplied_and_sizes_stay(demo: Scenario) -> None:
    slow = slowed(demo, 4)
    assert slow.slow_down == 4
    assert slow.duration_s == 4 * demo.duration_s
    for before, after in zip(demo.domains, slow.domains, strict=True):
        assert (after.link_rate_bps, after.link_delay_s) == (before.link_rate_bps / 4, 4 * before.link_delay_s)
    for before, after in zip(demo.tenants, slow.tenants, strict=True):
        if before.promise is not None and after.promise is not None:
            assert after.promise == replace(before.promise, deadline_s=4 * before.promise.deadline_s)
        if before.reservation is not None and after.reservation is not None:
            assert after.reservation.rate_bps == before.reservation.rate_bps / 4
            assert after.reservation.burst_bits == before.reservation.burst_bits
            assert after.reservation.queue_bits == before.reservation.queue_bits


def test_every_number_of_the_model_says_by_its_name_whether_it_stretches() -> None:
    classes = [
        item for module in (model, federation) for item in vars(module).values() if dataclasses.is_dataclass(item)
    ]
    numbers = {
        field.name
        for item in classes
        for field in dataclasses.fields(item)  # type: ignore[arg-type]
        if any(kind in str(field.type) for kind in ("int", "float")) and "Arrivals" not in str(field.type)
    }
    without_unit = {name for name in numbers if not name.endswith(("_s", "_bps", "_per_s"))}
    assert without_unit - HAVE_NO_TIME == NOT_STRETCHED | PER_RATE
    assert not (numbers - without_unit) & HAVE_NO_TIME


def test_a_trace_is_replayed_as_many_times_as_slowly(demo: Scenario) -> None:
    trace = TraceArrivals(Path("/none.csv"), "packets", speed_up=6.0, bits_per_token=0, size_bits=8000)
    traced = replace(demo, tenants=(replace(demo.tenants[0], arrivals=trace),))
    assert slowed(traced, 3).tenants[0].arrivals == replace(trace, speed_up=2.0)


def test_a_hidden_chain_switches_as_many_times_as_slowly(demo: Scenario) -> None:
    chain = MmppArrivals(rates_per_s=(10.0, 40.0), switch_per_s=((0.0, 2.0), (4.0, 0.0)), size_bits=8000)
    hidden = replace(demo, tenants=(replace(demo.tenants[0], arrivals=chain),))  # type: ignore[arg-type]
    found = slowed(hidden, 2).tenants[0].arrivals
    assert found == MmppArrivals((5.0, 20.0), ((0.0, 1.0), (2.0, 0.0)), 8000)


def test_a_meter_gets_the_nearest_whole_kbit(demo: Scenario) -> None:
    for before, after in zip(demo.tenants, slowed(demo, 7).tenants, strict=True):
        if before.reservation is not None and after.reservation is not None:
            assert after.reservation.meter_rate_bps % 1000 == 0
            assert abs(after.reservation.meter_rate_bps - before.reservation.meter_rate_bps / 7) <= 500


def test_a_queue_outlives_pauses_as_many_times_as_long_with_the_same_bucket() -> None:
    fast = design_classes([ClassDemand("alpha", 10_000_000, 12_000)])["alpha"]
    slow = design_classes([ClassDemand("alpha", 1_000_000, 12_000)], pause_s=10 * PAUSE_S)["alpha"]
    pause_bytes = 10_000_000 * PAUSE_S / 8
    assert pause_bytes <= slow.burst_bytes <= fast.burst_bytes


def test_not_slowed_down_is_as_written(demo: Scenario) -> None:
    assert slowed(demo, 1) == demo
    assert corrections(demo) == ()


def test_slowed_down_twice_is_slowed_down_by_the_product(demo: Scenario) -> None:
    assert slowed(slowed(demo, 2), 2).slow_down == slowed(demo, 4).slow_down


def test_a_slowed_scenario_survives_its_run_folder(demo: Scenario) -> None:
    slow = slowed(demo, 4)
    assert from_dict(to_dict(slow)) == slow


def test_folders_of_scenarios_that_were_never_slowed_stay_readable(demo: Scenario) -> None:
    data = to_dict(demo)
    del data["slow_down"]
    assert from_dict(data) == demo


@pytest.mark.parametrize("factor", [0.5, 0.0, -2.0, 1e9, float("nan"), float("inf")])
def test_a_factor_that_makes_no_sense_is_refused(demo: Scenario, factor: float) -> None:
    with pytest.raises(ScenarioError, match="expected a factor from 1 to 1000"):
        slowed(demo, factor)


def test_a_rate_that_no_queue_can_keep_is_refused_with_the_factor_that_is_possible(demo: Scenario) -> None:
    rates = [tenant.reservation.rate_bps for tenant in demo.tenants if tenant.reservation]
    with pytest.raises(ScenarioError, match=f"slow down at most {min(rates) // 8000} times"):
        slowed(demo, 1000)


def test_a_meter_that_whole_kbits_would_move_too_far_is_refused(demo: Scenario) -> None:
    reservation = model.Reservation(rate_bps=100_000, meter_rate_bps=70_000, burst_bits=80_000, queue_bits=90_000)
    narrow = replace(demo, tenants=(replace(demo.tenants[0], reservation=reservation),))
    with pytest.raises(ScenarioError, match="whole kbit/s"):
        slowed(narrow, 12.4)


@pytest.mark.parametrize(("factor", "least_s"), [(1, 0.2), (2, 0.4), (600, 120.0), (1000, 120.0)])
def test_tcp_resends_as_many_times_as_late_up_to_its_own_limit(factor: float, least_s: float) -> None:
    assert least_resend_s(factor) == pytest.approx(least_s)


def test_what_stays_is_said_once_for_packets_and_once_more_for_requests() -> None:
    packets = corrections(slowed(load(TOPOLOGIES / "smoke.yaml"), 2))
    requests = corrections(slowed(load(TOPOLOGIES / "requests.yaml"), 2))
    assert any("pauses of the host" in note for note in packets)
    assert not any("TCP" in note or "model computes" in note for note in packets)
    assert any("TCP resends nothing before 0.4 s" in note for note in requests)
    assert any("TCP acknowledges within 40 ms as ever, 1/2 of that" in note for note in requests)
    assert any("model computes" in note for note in requests)
