"""Tenants side by side: who bursts with whom, and whose packets depend on nobody."""

import itertools

import numpy as np
import pytest

from testbed.errors import ScenarioError
from testbed.scenario.model import (
    Arrivals,
    Misbehaviour,
    OnOffArrivals,
)
from testbed.traffic.arrivals import modulators, schedule, schedules, tenant_seed
from tests.unit.traffic.processes import (
    DEMO,
    POISSON,
    SIZE,
    counts,
    scenario,
    tenant,
)

TOGETHER = Misbehaviour("correlated", group="flash")


def test_correlated_tenants_burst_together_and_others_do_not() -> None:
    half = OnOffArrivals(10e6, DEMO.mean_on_s, DEMO.mean_off_s, SIZE)
    drawn = schedules(
        scenario(tenant("a", misbehaviour=TOGETHER), tenant("b", half, TOGETHER), tenant("c")),
        window=0,
        duration_s=200.0,
    )
    each = {number: counts(packets.time_s, 0.01, 200.0) for number, packets in drawn.items()}
    assert np.corrcoef(each[1], each[2])[0, 1] > 0.95
    assert abs(np.corrcoef(each[1], each[3])[0, 1]) < 0.1
    assert len(drawn[2]) == pytest.approx(len(drawn[1]) / 2, abs=1.5)


def test_correlated_tenants_conform_again_when_asked_to() -> None:
    drawn = schedules(
        scenario(tenant("a", misbehaviour=TOGETHER), tenant("b", misbehaviour=TOGETHER)),
        window=0,
        duration_s=100.0,
        conforming=True,
    )
    each = [counts(packets.time_s, 0.01, 100.0) for packets in drawn.values()]
    assert abs(np.corrcoef(each[0], each[1])[0, 1]) < 0.1


def test_two_groups_burst_apart() -> None:
    other = Misbehaviour("correlated", group="crowd")
    both = scenario(tenant("a", misbehaviour=TOGETHER), tenant("b", misbehaviour=other))
    paths = modulators(both, window=0, duration_s=1.0, seed=9)
    assert set(paths) == {"flash", "crowd"}
    assert not np.array_equal(paths["flash"].start_s, paths["crowd"].start_s)


@pytest.mark.parametrize(
    ("arrivals", "message"),
    [
        (POISSON, "tenant b: found correlated bursts of PoissonArrivals, expected .*on-off or mmpp"),
        (OnOffArrivals(20e6, 0.001, 0.0075, SIZE), "found mean periods"),
    ],
    ids=["no bursts", "other periods"],
)
def test_a_tenant_that_cannot_share_bursts_is_refused(arrivals: Arrivals, message: str) -> None:
    pair = scenario(tenant("a", misbehaviour=TOGETHER), tenant("b", arrivals, TOGETHER))
    with pytest.raises(ScenarioError, match=message):
        schedules(pair, window=0, duration_s=1.0)


def test_correlated_bursts_without_the_shared_process_are_refused() -> None:
    with pytest.raises(ScenarioError, match="group 'flash'"):
        schedule(DEMO, seed=1, duration_s=1.0, misbehaviour=TOGETHER)


def test_adding_a_tenant_changes_no_other_tenants_packets() -> None:
    one = schedules(scenario(tenant("a")), window=1, duration_s=2.0)
    two = schedules(scenario(tenant("a"), tenant("b", POISSON)), window=1, duration_s=2.0)
    assert np.array_equal(one[1].time_s, two[1].time_s)


def test_tenants_windows_and_runs_have_streams_of_their_own() -> None:
    twins = scenario(tenant("a"), tenant("b"))
    drawn = [
        packets.time_s[:50].tobytes()
        for window, seed in itertools.product((0, 1), (9, 10))
        for packets in schedules(twins, window=window, duration_s=2.0, seed=seed).values()
    ]
    assert len(set(drawn)) == 8


def test_the_scenarios_seed_is_used_unless_another_is_given() -> None:
    alone = scenario(tenant("a"), seed=42)
    drawn = schedules(alone, window=3, duration_s=1.0)[1]
    assert np.array_equal(drawn.time_s, schedule(DEMO, seed=tenant_seed(42, 1, 3), duration_s=1.0).time_s)
