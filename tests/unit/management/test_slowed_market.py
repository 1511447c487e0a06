"""A federation slowed down is planned as it is at full speed: same ways, same prices, bounds as many times as long."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from testbed.envelope.store import EnvelopeStore
from testbed.errors import ScenarioError
from testbed.management import house, search
from testbed.management.admission import Rule
from testbed.management.calls import AgentClient
from testbed.management.entry import State
from testbed.management.house import House
from testbed.management.journal import Journal
from testbed.management.market import compute_latency_s
from testbed.management.orchestrator import Orchestrator
from testbed.management.planner import Decision, plan, purchases
from testbed.management.search import Wish
from testbed.management.sizing import PAUSE_S, TIMER_S
from testbed.management.staging import scenario_of, slowed_scenario_of
from testbed.scenario import guardrails
from testbed.scenario.federation import Market
from testbed.scenario.market import load
from testbed.scenario.slow_down import corrections, slowed_market

from .agents_at_hand import Domains

SHIPPED = Path(__file__).parents[3] / "topologies/intents.yaml"
FACTOR = 10.0


@pytest.fixture(scope="module")
def sold() -> Market:
    return load(SHIPPED)


def require_alike(fast: Decision, slow: Decision, factor: float, rel: float) -> None:
    """Both serve the tenant on one way at one price, with buckets and queues as deep, one as many times as slowly."""
    assert slow.admitted == fast.admitted
    if fast.route is None or slow.route is None or fast.bound_s is None or slow.bound_s is None:
        assert fast.route is slow.route is fast.bound_s is slow.bound_s is None
        return
    assert str(slow.route) == str(fast.route)
    assert slow.price == pytest.approx(fast.price, rel=rel)
    assert slow.bound_s / factor == pytest.approx(fast.bound_s, rel=rel)
    for own, other in zip(fast.purchases, slow.purchases, strict=True):
        assert other.rate_bps * factor == pytest.approx(own.rate_bps, rel=rel)
        assert other.meter_rate_bps * factor == pytest.approx(own.meter_rate_bps, rel=rel)
        assert other.burst_bits == pytest.approx(own.burst_bits, rel=rel)
        assert other.queue_bits == pytest.approx(own.queue_bits, rel=rel)
        assert other.share_ppm == pytest.approx(own.share_ppm, rel=rel)


def test_operators_state_a_part_of_their_rates_and_a_multiple_of_their_times(sold: Market) -> None:
    for before, after in zip(sold.operators, slowed_market(sold, FACTOR).operators, strict=True):
        assert after.link_rate_bps == before.link_rate_bps / FACTOR
        assert after.reservable_bps == before.reservable_bps / FACTOR
        assert after.drain_bps == pytest.approx(before.drain_bps / FACTOR)
        assert after.host_allowance_s == pytest.approx(FACTOR * before.host_allowance_s)
        assert after.price_per_mbps == pytest.approx(FACTOR * before.price_per_mbps)
        assert (after.classes, after.packet_bits) == (before.classes, before.packet_bits)
        if before.site is not None and after.site is not None:
            assert after.site.price == before.site.price
            slow_s, fast_s = (compute_latency_s(one, one.models[0]) for one in (after.site, before.site))
            assert slow_s == pytest.approx(FACTOR * fast_s)


# Whole kbit/s are a larger part of a slower rate, and a meter that is rounded up needs less of a bucket.
@pytest.mark.parametrize(("factor", "rel"), [(2.0, 0.01), (10.0, 0.02), (30.0, 0.06)])
def test_the_same_is_planned_at_the_same_price_and_bounds_are_as_many_times_as_long(
    sold: Market, factor: float, rel: float
) -> None:
    for before, after in zip(plan(sold), plan(slowed_market(sold, factor)), strict=True):
        require_alike(before, after, factor, rel)


def test_nothing_but_timers_refills_and_whole_kbits_fails_to_stretch(
    sold: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_KBIT", 1)
    before = plan(sold)
    monkeypatch.setattr(house, "TIMER_S", FACTOR * TIMER_S)
    monkeypatch.setattr(guardrails, "REFILL_GRAIN_S", FACTOR * guardrails.REFILL_GRAIN_S)
    after = plan(slowed_market(sold, FACTOR))
    for fast, slow in zip(before, after, strict=True):
        require_alike(fast, slow, FACTOR, rel=1e-4)


def test_a_queue_has_room_for_as_many_bits_beyond_its_bucket(sold: Market) -> None:
    # With next to no time, what the smallest answers would fill in it asks for less than the bucket and that room.
    queues = []
    for market in (sold, slowed_market(sold, FACTOR)):
        found = plan(market)[0]
        assert found.route is not None
        hurried = replace(market.intents[0], deadline_s=1e-3 * market.slow_down)
        wish = Wish.of(hurried, slow_down=market.slow_down)
        bought = purchases(Rule.STOCHASTIC, wish, found.route, found.purchases[0].rate_bps, 1)
        queues.append([one.queue_bits for one in bought])
    fast, slow = queues
    assert slow == pytest.approx(fast, rel=0.02)


def test_who_is_refused_would_do_with_as_many_times_the_deadline(sold: Market) -> None:
    (before,), (after,) = (
        [one.refusal.nearest for one in plan(each) if one.refusal is not None]
        for each in (sold, slowed_market(sold, FACTOR))
    )
    assert before is not None
    assert after is not None
    assert after.deadline_s / FACTOR == pytest.approx(before.deadline_s, rel=0.03)
    assert after.price == before.price


def test_the_scenario_says_how_slow_it_is_and_what_did_not_stretch(sold: Market) -> None:
    slow, scenario = slowed_scenario_of(sold, FACTOR, workers=1)
    assert slow.slow_down == scenario.slow_down == FACTOR
    assert scenario.duration_s == FACTOR * sold.duration_s
    assert any("site declares" in note for note in corrections(scenario))
    assert corrections(scenario_of(sold, plan(sold), workers=1)) == ()


def test_agents_sign_and_install_the_slowed_plan_with_buckets_that_outlast_pauses_as_long(
    sold: Market, tmp_path: Path
) -> None:
    bursts: list[dict[tuple[str, str], tuple[int, int]]] = []
    for market in (sold, slowed_market(sold, FACTOR)):
        folder = tmp_path / f"{market.slow_down:g}"
        folder.mkdir()
        domains = Domains.of(folder, market.operators, pause_s=market.slow_down * PAUSE_S)
        clients = cast(Mapping[str, AgentClient], domains.clients)
        journal = Journal(folder / "journal.sqlite")
        addresses = {intent.tenant: f"10.1.0.{number}" for number, intent in enumerate(market.intents, 1)}
        orchestrator = Orchestrator(
            clients, market.segments, Rule(market.rule), EnvelopeStore(domains.root), journal,
            lambda tenant, _site, known=addresses: (known[tenant], "10.2.0.1"), slow_down=market.slow_down,
        )  # fmt: skip
        for planned, outcome in zip(plan(market), orchestrator.admit(market.intents), strict=True):
            assert outcome.admitted == planned.admitted
            assert outcome.decision.purchases == planned.purchases
            if planned.bound_s is not None:
                assert outcome.decision.bound_s == pytest.approx(planned.bound_s, rel=1e-3)
        installed = {
            (name, entry.tenant): json.loads(entry.body)["rule"]["queue"]
            for name, client in domains.clients.items()
            for entry in client.agent.ledger.entries(State.COMMITTED)
        }
        bursts.append({key: (queue["burst_bytes"], queue["quantum_bytes"]) for key, queue in installed.items()})
        journal.close()
        domains.close()
    fast, slow = bursts
    assert len(fast) == 7
    assert slow == {key: pytest.approx(sizes, rel=0.05) for key, sizes in fast.items()}


def test_a_plan_that_takes_another_way_once_slowed_down_is_refused(sold: Market) -> None:
    (clinic,) = [one for one in plan(sold) if one.tenant == "clinic"]
    (bought,) = [one for one in clinic.purchases if one.domain == "metro-blue"]
    # What is left there is just enough, until it is rounded up to whole kbit/s.
    full = replace(
        sold,
        operators=tuple(
            replace(one, reservable_bps=bought.rate_bps) if one.name == "metro-blue" else one for one in sold.operators
        ),
    )
    (before,) = [one.route for one in plan(full) if one.tenant == "clinic"]
    assert "metro-blue" in str(before)
    with pytest.raises(ScenarioError, match=r"clinic: found .*metro-gold.*, expected .*metro-blue.*; slow down less"):
        slowed_scenario_of(full, 30.0, workers=1)


def test_rates_that_whole_kbits_move_too_far_are_refused(sold: Market) -> None:
    with pytest.raises(ScenarioError, match=r"studio: found 13000 bit/s reserved.*expected about 11850 bit/s"):
        slowed_scenario_of(sold, 300.0, workers=1)


@pytest.mark.parametrize("factor", [0.5, float("nan"), 1e9])
def test_a_factor_that_makes_no_sense_is_refused(sold: Market, factor: float) -> None:
    with pytest.raises(ScenarioError, match="expected a factor from 1 to 1000"):
        slowed_scenario_of(sold, factor, workers=1)


def test_a_class_outlives_pauses_as_many_times_as_long_with_the_same_bucket() -> None:
    fast = House(40_000_000, 8).shape(2_000_000, 12_112)
    slow = House(4_000_000, 8, drain_bps=40e6).shape(200_000, 12_112, pause_s=FACTOR * PAUSE_S)
    assert 200_000 * FACTOR * PAUSE_S / 8 <= slow.burst_bytes <= fast.burst_bytes
