"""From a plan to the scenario that is built for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from testbed.errors import ScenarioError
from testbed.management.planner import plan
from testbed.management.staging import scenario_of
from testbed.scenario.federation import Market
from testbed.scenario.market import load

SHIPPED = Path(__file__).parents[3] / "topologies/intents.yaml"


@pytest.fixture(scope="module")
def sold() -> Market:
    return load(SHIPPED)


def test_every_operator_is_built_beside_its_competitors_and_every_admitted_tenant_has_its_way(sold: Market) -> None:
    decisions = plan(sold)
    found = scenario_of(sold, decisions, workers=1)
    assert [(d.name, d.segment, d.compute) for d in found.domains] == [
        ("access", "access", True),
        ("metro-gold", "metro", False),
        ("metro-blue", "metro", False),
        ("core", "core", True),
    ]
    assert found.segments == ((1,), (2, 3), (4,))
    assert {tenant.name: (tenant.way, tenant.site) for tenant in found.tenants} == {
        "kiosk": (("access",), "access"),
        "clinic": (("access", "metro-blue", "core"), "core"),
        "studio": (("access", "metro-gold", "core"), "core"),
    }
    assert (found.seed, found.warmup_s, found.duration_s) == (sold.seed, sold.warmup_s, sold.duration_s)


def test_a_tenant_reserves_and_is_promised_what_was_planned(sold: Market) -> None:
    decisions = {decision.tenant: decision for decision in plan(sold)}
    intents = {intent.tenant: intent for intent in sold.intents}
    for tenant in scenario_of(sold, list(decisions.values()), workers=1).tenants:
        first, last = decisions[tenant.name].purchases[0], decisions[tenant.name].purchases[-1]
        assert tenant.reservation is not None
        assert tenant.promise is not None
        assert tenant.requests is not None
        reserved = tenant.reservation
        assert (reserved.rate_bps, reserved.meter_rate_bps) == (first.rate_bps, first.meter_rate_bps)
        assert (reserved.burst_bits, reserved.queue_bits) == (first.burst_bits, first.queue_bits)
        assert tenant.requests.compute_share == last.share_ppm / 1e6
        assert tenant.requests.timeout_s == tenant.promise.deadline_s == intents[tenant.name].deadline_s
        assert tenant.promise.epsilon == intents[tenant.name].epsilon
        assert tenant.arrivals == intents[tenant.name].arrivals


def test_everything_that_one_host_cannot_emulate_is_named_at_once(sold: Market) -> None:
    core = sold.operators[-1]
    assert core.site is not None
    models = tuple(replace(model, name="digits-huge") for model in core.site.models)
    strange = replace(core, site=replace(core.site, workers=4, models=models))
    many = tuple(replace(core, name=f"core-{number}", site=None) for number in range(9))
    with pytest.raises(ScenarioError) as caught:
        scenario_of(replace(sold, rule="none", operators=(strange, *many)), (), workers=1)
    said = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for part in ("10 operators", "the rule none", "a server of 4 workers", "the models digits-huge"):
        assert part in said


def test_a_federation_that_admits_nobody_has_nothing_to_run(sold: Market) -> None:
    poor = replace(sold, intents=tuple(replace(intent, price=0.0) for intent in sold.intents))
    with pytest.raises(ScenarioError, match="found no intent that can be reserved for"):
        scenario_of(poor, plan(poor), workers=1)
