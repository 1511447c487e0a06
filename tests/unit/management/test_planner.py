"""Plans: the choice is right, the bound is the calculus's, and a refusal says what would be accepted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from testbed.calculus import delay_bound
from testbed.errors import ReservationError
from testbed.management import market
from testbed.management.admission import Rule, confirm
from testbed.management.bounds import HOST_RISK
from testbed.management.market import Prospectus
from testbed.management.planner import Decision, Planner, demand_of, path_of, permits, plan, purchases, wish_method
from testbed.management.search import Wish, propose
from testbed.scenario.federation import Intent
from testbed.scenario.market import load
from testbed.scenario.model import FULL_FRAME_BITS, OnOffArrivals, PoissonArrivals, RenewalArrivals

from .federation_lab import OPERATORS, SEGMENTS, intent

FEDERATION = load(Path(__file__).parents[3] / "topologies/federation.yaml")

BITS = 8 * 8000
ARRIVALS = {
    "poisson": PoissonArrivals(30.0, BITS),
    "erlang": RenewalArrivals(30.0, "erlang", 0.5, BITS),
    "bursty gamma": RenewalArrivals(30.0, "gamma", 2.0, BITS),
    "fixed": RenewalArrivals(30.0, "deterministic", 0.0, BITS),
    "on-off": OnOffArrivals(100 * BITS, 0.05, 0.15, BITS),
}


def planner(rule: Rule = Rule.STOCHASTIC) -> Planner:
    return Planner(rule, SEGMENTS, [Prospectus.of(operator) for operator in OPERATORS])


def decide(asked: Intent, rule: Rule = Rule.STOCHASTIC) -> Decision:
    (decision,) = planner(rule).decide([asked])
    return decision


def test_the_shipped_federation_is_decided_as_its_comments_say() -> None:
    decisions = {decision.tenant: decision for decision in plan(FEDERATION)}
    chosen = {
        name: (decision.route.model.name, decision.route.domains)
        for name, decision in decisions.items()
        if decision.route is not None
    }
    assert chosen["cashier"] == ("digits-medium", ("access",))
    assert "metro-scenic" in chosen["archive"][1]
    assert chosen["clinic"][0] == "digits-large"
    assert "metro-direct" in chosen["clinic"][1]
    assert chosen["courier"][1] == ("access", "metro-scenic", "core-north")
    refused = {name: decision.refusal.binding for name, decision in decisions.items() if decision.refusal is not None}
    assert refused == {"trader": ("deadline",), "hobby": ("price",)}


@pytest.mark.parametrize("arrivals", ARRIVALS.values(), ids=ARRIVALS)
@pytest.mark.parametrize("deadline_s", [0.06, 0.12, 1.0])
def test_the_closed_forms_find_the_smallest_purchase_that_the_rule_accepts(
    arrivals: PoissonArrivals | OnOffArrivals | RenewalArrivals, deadline_s: float
) -> None:
    wish = Wish.of(intent(arrivals=arrivals, deadline_s=deadline_s))
    plans = planner()
    found = propose(Rule.STOCHASTIC, [wish], plans.routes)
    for column, route in enumerate(plans.routes):
        if not found.possible[0, column]:
            continue
        rate, share = int(found.rate_bps[0, column]), int(found.share_ppm[0, column])
        assert _accepts(wish, route, rate, share)
        less = rate * 985 // 1000 // 1000 * 1000, share * 985 // 1000
        busiest_s = float(path_of(wish, route, *less).virtual_sizes_s.max())
        at_contract = busiest_s * 1.002 * wish.meter_rate_bps >= wish.least_bits
        assert at_contract or not _accepts(wish, route, *less) or not _stable_binding(wish, rate)


@pytest.mark.parametrize("deadline_s", [0.06, 0.12, 1.0])
def test_a_server_that_is_to_be_no_busier_than_the_network_is_so_with_the_smallest_request_there_is(
    deadline_s: float,
) -> None:
    """Else no tail of the network could be used beside it."""
    wish = Wish.of(intent(deadline_s=deadline_s))
    plans = planner()
    found = propose(Rule.STOCHASTIC, [wish], plans.routes)
    equals = 0
    for column, route in enumerate(plans.routes):
        if found.possible[0, column]:
            rate_bps = int(found.rate_bps[0, column])
            path = path_of(wish, route, rate_bps, int(found.share_ppm[0, column]))
            (served_s,), forwarded_s = path.served_sizes_s, wish.request_bits / rate_bps
            equals += served_s < 1.2 * forwarded_s
            assert served_s <= wish.least_bits / rate_bps or served_s > 1.2 * forwarded_s
    assert equals


def test_where_a_host_is_granted_time_a_plan_leaves_it_its_share_of_the_risk() -> None:
    asked = intent(epsilon=0.01)
    assert planner().wish(asked).epsilon == 0.01
    granted = [replace(operator, host_allowance_s=1e-3) for operator in OPERATORS]
    emulated = Planner(Rule.STOCHASTIC, SEGMENTS, [Prospectus.of(operator) for operator in granted])
    assert emulated.wish(asked).epsilon == pytest.approx((1 - HOST_RISK) * 0.01)
    (decision,) = emulated.decide([asked])
    assert sum(share.epsilon for share in decision.budget) == pytest.approx((1 - HOST_RISK) * 0.01, rel=1e-3)


def _accepts(wish: Wish, route: object, rate: int, share: int) -> bool:
    path = path_of(wish, route, rate, share)  # type: ignore[arg-type]
    judged, _ = confirm(
        Rule.STOCHASTIC, demand_of(Rule.STOCHASTIC, wish, path, rate), path.services, method=wish_method(wish)
    )
    return judged.admitted


def _stable_binding(wish: Wish, rate: int) -> bool:
    """Whether the deadline, rather than contract or burst limits of the model, decided the purchase."""
    arrivals = wish.intent.arrivals
    fixed = isinstance(arrivals, RenewalArrivals) and arrivals.gap == "deterministic"
    return not fixed and rate > 1.3 * wish.meter_rate_bps


def test_no_other_split_between_network_and_server_is_cheaper() -> None:
    """All splits on a grid, on one route, against the one proposed."""
    wish = Wish.of(intent(deadline_s=0.08))
    plans = planner()
    column, route = next((i, r) for i, r in enumerate(plans.routes) if len(r.domains) == 3)
    found = propose(Rule.STOCHASTIC, [wish], plans.routes)
    cheapest = np.inf
    for rate in np.geomspace(wish.meter_rate_bps * 1.01, 60e6, 60):
        for share in np.geomspace(20_000, 1_000_000, 60):
            price = route.price_per_mbps * rate / 1e6 + route.site.price * share / 1e6
            if price < min(cheapest, float(found.price[0, column])) and _accepts(wish, route, int(rate), int(share)):
                cheapest = price
    assert found.price[0, column] <= 1.03 * cheapest


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("arrivals", ARRIVALS.values(), ids=ARRIVALS)
def test_whoever_is_admitted_has_a_bound_within_its_deadline(
    rule: Rule, arrivals: PoissonArrivals | OnOffArrivals | RenewalArrivals
) -> None:
    asked = intent(arrivals=arrivals, deadline_s=0.5, price=1e6)
    decision = decide(asked, rule)
    if rule is Rule.NONE:
        assert (decision.purchases, decision.bound_s, decision.price) == ((), None, 0.0)
        return
    if rule is Rule.PEAK and not isinstance(arrivals, OnOffArrivals) and arrivals != ARRIVALS["fixed"]:
        assert not decision.admitted
        return
    assert decision.bound_s is not None
    assert decision.bound_s <= asked.deadline_s
    assert decision.bound_s == pytest.approx(sum(share.delay_s for share in decision.budget))
    assert decision.price == pytest.approx(sum(bought.price for bought in decision.purchases))


def test_knowing_more_buys_less() -> None:
    asked = intent(arrivals=ARRIVALS["on-off"], deadline_s=0.3, price=1e6)
    prices = [decide(asked, rule).price for rule in (Rule.STOCHASTIC, Rule.DETERMINISTIC)]
    assert 0 < prices[0] < prices[1]


def test_the_bound_is_what_the_calculus_says_of_the_purchase() -> None:
    asked = intent(deadline_s=0.1)
    decision = decide(asked)
    assert decision.route is not None
    wish, last = Wish.of(asked), decision.purchases[-1]
    path = path_of(wish, decision.route, last.rate_bps, last.share_ppm)
    demand = demand_of(Rule.STOCHASTIC, wish, path, last.rate_bps)
    assert demand.flow is not None
    best = delay_bound(demand.flow, path.services, asked.epsilon - demand.meter_loss)
    assert best.delay_s == pytest.approx(decision.bound_s)


@pytest.mark.parametrize("rule", [Rule.DETERMINISTIC, Rule.STOCHASTIC])
@pytest.mark.parametrize("rate_bps", [3_000_000, 3_000_001, 3_123_457])
def test_the_bound_counts_the_burst_that_the_meter_holds(rule: Rule, rate_bps: int) -> None:
    wish = Wish.of(intent(), host_risk=0.0)
    route = decide(intent()).route
    assert route is not None
    bought = purchases(rule, wish, route, rate_bps, 100_000)
    assert all(each.burst_bits % 1000 == 0 for each in bought)
    path = path_of(wish, route, rate_bps, 100_000)
    contract = demand_of(rule, wish, path, rate_bps).contract
    seconds_per_bit = path.virtual_sizes_s.max() / wish.least_bits
    assert contract.burst_bits == pytest.approx(bought[0].burst_bits * seconds_per_bit, rel=1e-12)


def test_later_meters_let_through_what_earlier_domains_bunch() -> None:
    first, second, third = decide(intent()).purchases
    assert first.burst_bits < second.burst_bits < third.burst_bits
    assert second.burst_bits - first.burst_bits == pytest.approx(first.meter_rate_bps * first.latency_s, abs=1000)


def test_a_plan_buys_queues_that_hold_all_answers_that_are_not_yet_late() -> None:
    asked = intent(deadline_s=0.4, price=1e6)
    for bought in decide(asked).purchases:
        # The smallest answer: 96 bytes of frames in one packet of 66 of headers, and two without payload.
        answers = bought.rate_bps * asked.deadline_s / (8 * (96 + 3 * 66))
        assert bought.queue_bits / FULL_FRAME_BITS >= 3 * answers + 3


def test_what_is_admitted_is_gone_for_those_behind_until_given_back() -> None:
    plans = planner()
    before = {name: dict(left) for name, left in plans.free.items()}
    decisions = plans.decide([intent(f"t{n}", deadline_s=0.05, price=1e6) for n in range(60)])
    entered = [decision for decision in decisions if decision.admitted]
    assert 0 < len(entered) < 60
    assert all(amount >= 0 for left in plans.free.values() for amount in left.values())
    refused = decisions[-1].refusal
    assert refused is not None
    for decision in entered:
        plans.give_back(decision)
    assert plans.free == before


@pytest.mark.parametrize(
    ("changed", "binding"),
    [
        pytest.param({"deadline_s": 0.03}, ("deadline",), id="too soon"),
        pytest.param({"price": 0.05}, ("price",), id="too cheap"),
        pytest.param({"accuracy": 0.995}, ("accuracy",), id="too good"),
        pytest.param({"domains": frozenset({"access", "core"})}, ("domains",), id="no way there"),
        pytest.param({"task": "poetry"}, ("task",), id="nobody can"),
    ],
)
def test_a_refusal_names_what_binds_and_the_nearest_intent_is_accepted(
    changed: dict[str, object], binding: tuple[str, ...]
) -> None:
    asked = intent(**changed)
    refusal = decide(asked).refusal
    assert refusal is not None
    assert refusal.binding == binding
    if refusal.nearest is None:
        assert binding == ("task",)
        return
    assert decide(refusal.nearest).admitted
    for name in ("task", "accuracy", "deadline_s", "price", "domains"):
        same = getattr(refusal.nearest, name) == getattr(asked, name)
        assert same is (name.removesuffix("_s") not in binding)


def test_the_nearest_deadline_is_near() -> None:
    refusal = decide(intent(deadline_s=0.03)).refusal
    assert refusal is not None
    assert refusal.nearest is not None
    sooner = replace(refusal.nearest, deadline_s=0.985 * refusal.nearest.deadline_s)
    assert not decide(sooner).admitted


def test_a_federation_that_is_sold_out_says_so() -> None:
    plans = planner()
    for left in plans.free.values():
        left[market.NETWORK] = 0
    (decision,) = plans.decide([intent()])
    assert decision.refusal is not None
    assert decision.refusal.binding == ("capacity",)
    assert "has 0 bit/s left" in decision.refusal.because


def test_only_permitted_routes_are_taken() -> None:
    asked = intent(accuracy=0.99, domains=frozenset({"access", "metro-near", "core"}))
    decision = decide(asked)
    assert decision.route is not None
    assert decision.route.model.name == "large"
    assert permits(asked, decision.route)
    assert decision.route.domains == ("access", "metro-near", "core")


def test_a_prospectus_survives_the_wire_and_nothing_else_does() -> None:
    sold = Prospectus.of(OPERATORS[-1])
    assert Prospectus.from_json(sold.to_json()) == sold
    with pytest.raises(ReservationError, match=r"operator\.classes"):
        Prospectus.from_json(sold.to_json().replace(b'"classes":16', b'"classes":-1', 1))
