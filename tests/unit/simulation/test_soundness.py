"""Random scenarios, simulated: nobody is later, or loses more, than the bound that the simulation itself shows."""

from __future__ import annotations

import copy
import math
from collections import Counter
from pathlib import Path

import pytest

from testbed.simulation.clock import PS_PER_S
from testbed.simulation.tally import QUEUE
from tests.unit.simulation.random_scenarios import Held, simulated

PACKETS = 60_000
CONFIDENCE = 0.9999
SEEDS = range(22)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Held]]:
    return {seed: simulated(seed, PACKETS, tmp_path_factory.mktemp("random")) for seed in SEEDS}


@pytest.mark.parametrize("seed", SEEDS)
def test_no_bound_of_a_random_scenario_is_broken(held: dict[int, list[Held]], seed: int) -> None:
    assert [each.tenant.name for each in held[seed] if each.is_broken(CONFIDENCE)] == []


def test_the_random_scenarios_hold_what_bounds_are_made_for(held: dict[int, list[Held]]) -> None:
    """Tenants whose meters drop, those that do not keep their law, and those that ask are among those held."""
    kinds = Counter[str]()
    for each in (each for those in held.values() for each in those):
        kinds["all"] += 1
        kinds["metered"] += each.metered > 0
        kinds["lawless"] += not each.tenant.keeps_its_law
        kinds["asking"] += each.tenant.requests is not None
    assert kinds["all"] >= 20
    assert min(kinds.values()) >= 2, kinds


def test_a_tenant_whose_meter_drops_is_held_against_its_bound_all_the_same(held: dict[int, list[Held]]) -> None:
    """One that is smaller than any latency is broken by everybody."""
    for each in (each for those in held.values() for each in those if each.metered):
        small = each.bound.model_copy(update={"bound_s": each.tally.smallest_ps[each.place] / PS_PER_S / 2})
        assert Held(each.tenant, small, each.place, each.tally).is_broken(CONFIDENCE), each.tenant.name


def test_a_tenant_whose_queues_dropped_more_than_its_bound_leaves_is_above_it(tmp_path: Path) -> None:
    one = next(each for seed in SEEDS for each in simulated(seed, 3000, tmp_path))
    tally, n = copy.deepcopy(one.tally), int(one.tally.n[one.place])
    tally.lost[one.place, QUEUE] = n // 5
    assert Held(one.tenant, one.bound, one.place, tally).quantile_s == math.inf
