"""Risk budgets and reservations against a general convex solver, and what their multipliers mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from testbed.calculus import (
    CalculusError,
    CompoundPoisson,
    ExcessTail,
    MarkovOnOff,
    Offer,
    RateLatency,
    budget_for_delay,
    budget_for_risk,
    cheapest_reservation,
    delay_bound,
    required_rate,
)

TAILS = st.lists(
    st.builds(ExcessTail, st.floats(0.02, 5.0), st.floats(0.3, 8.0), st.sampled_from([0.0, 0.0, 0.4])),
    min_size=1,
    max_size=5,
)
COMMON = settings(max_examples=40, derandomize=True)


def named(tails):
    return {f"d{index}": tail for index, tail in enumerate(tails)}


def risks(tails, delays):
    return np.array([t.prefactor * math.exp(-t.decay_per_s * d) for t, d in zip(tails, delays, strict=True)])


def solve(objective, constraint, floors, start):
    """SLSQP of scipy, started inside."""
    bounds = [(floor, None) for floor in floors]
    return minimize(
        objective,
        start,
        method="SLSQP",
        bounds=bounds,
        constraints=[{"type": "ineq", "fun": constraint}],
        options={"ftol": 1e-13, "maxiter": 2000},
    )


@COMMON
@given(TAILS, st.floats(1e-6, 0.3))
def test_the_split_of_a_risk_is_what_a_general_solver_finds(tails, epsilon):
    budget = budget_for_risk(named(tails), epsilon)
    floors = [tail.x_min_s for tail in tails]
    start = np.array(
        [
            max(f, math.log(10.0 * len(tails) * t.prefactor / epsilon) / t.decay_per_s)
            for f, t in zip(floors, tails, strict=True)
        ]
    )
    found = solve(np.sum, lambda d: 1.0 - risks(tails, d).sum() / epsilon, floors, start)
    assert budget.delay_s == pytest.approx(found.fun, rel=1e-5, abs=1e-7)
    assert budget.epsilon <= epsilon * (1.0 + 1e-9)
    active = [share for share, floor in zip(budget.shares, floors, strict=True) if share.delay_s > floor + 1e-9]
    if active and found.success:
        # The solver's multiplier is of the constraint divided by epsilon: seconds for all of the risk.
        assert found.multipliers[0] == pytest.approx(epsilon / budget.price_per_s, rel=2e-2)
        assert all(share.price_per_s == pytest.approx(budget.price_per_s, rel=1e-9) for share in active)


@COMMON
@given(TAILS, st.floats(0.1, 6.0))
def test_the_split_of_a_delay_is_what_a_general_solver_finds(tails, spare):
    floors = np.array([tail.x_min_s for tail in tails])
    budget = budget_for_delay(named(tails), float(floors.sum()) + spare)
    start = floors + spare / (len(tails) + 1.0)
    found = solve(lambda d: math.log(risks(tails, d).sum()), lambda d: floors.sum() + spare - d.sum(), floors, start)
    assert math.log(budget.epsilon) == pytest.approx(found.fun, abs=1e-6)
    assert budget.delay_s == pytest.approx(floors.sum() + spare, rel=1e-12)


def test_the_closed_form_holds_while_every_domain_is_active():
    """The closed form of the split (docs/calculus.md, "Risk budget"), with its multipliers by finite differences."""
    tails = [ExcessTail(0.5, 2.0), ExcessTail(1.0, 3.0), ExcessTail(2.0, 0.7)]
    epsilon = 1e-3
    width = sum(1.0 / t.decay_per_s for t in tails)
    delay = width * math.log(width / epsilon) + sum(
        math.log(t.prefactor * t.decay_per_s) / t.decay_per_s for t in tails
    )
    budget = budget_for_risk(named(tails), epsilon)
    assert budget.delay_s == pytest.approx(delay, rel=1e-12)
    assert budget.price_per_s == pytest.approx(epsilon / width, rel=1e-12)
    for share, tail in zip(budget.shares, tails, strict=True):
        assert share.epsilon == pytest.approx(epsilon / tail.decay_per_s / width, rel=1e-12)
        assert share.nine_s == pytest.approx(math.log(10.0) / tail.decay_per_s)
    one_nine_more = budget_for_risk(named(tails), epsilon / 10.0).delay_s - budget.delay_s
    assert budget.nine_s == pytest.approx(one_nine_more, rel=1e-12)
    later = budget_for_delay(named(tails), budget.delay_s + 1e-6)
    assert (epsilon - later.epsilon) / 1e-6 == pytest.approx(budget.price_per_s, rel=1e-4)


def test_a_domain_whose_floor_is_enough_keeps_its_risk_and_a_lower_price():
    tails = {"slow": ExcessTail(1.0, 1.0), "quick": ExcessTail(1e-9, 1.0)}
    budget = budget_for_risk(tails, 1e-3)
    slow, quick = budget.shares
    assert quick.delay_s == 0.0
    assert quick.price_per_s < budget.price_per_s == slow.price_per_s
    assert budget.epsilon == pytest.approx(1e-3)


def test_budgets_that_cannot_be_are_refused():
    with pytest.raises(CalculusError, match="0 domains"):
        budget_for_risk({}, 1e-3)
    with pytest.raises(CalculusError, match=r"sum of x_min <= deadline fails: 0\.5 against 0\.4 s"):
        budget_for_delay({"a": ExcessTail(1.0, 1.0, 0.5)}, 0.4)


OFFERS = [
    Offer(1.0, 1e-3, 5e4, name="a"),
    Offer(3.0, 2e-3, 1e5, name="b"),
    Offer(0.5, 1e-3, 2e5, name="c"),
]


@pytest.mark.parametrize(
    "flow", [MarkovOnOff(20e6, 5e-3, 7.5e-3), CompoundPoisson(700.0, 11_200)], ids=["bursty", "smooth"]
)
@pytest.mark.parametrize("deadline_s", [0.03, 0.06, 0.2])
def test_the_cheapest_reservation_is_what_a_general_solver_finds(flow, deadline_s):
    found = cheapest_reservation(flow, OFFERS, deadline_s, 1e-3)
    prices, bits = (np.array([getattr(offer, name) for offer in OFFERS]) for name in ("price_per_bps", "latency_bits"))
    fixed = sum(offer.latency_s for offer in OFFERS)

    def spare(rates):
        # In units of 1 Mbit/s; the smallest rate is the first variable.
        own = delay_bound(flow, [RateLatency(rates[0] * 1e6, 0.0)], 1e-3).delay_s
        return (deadline_s - fixed - own - (bits / (rates[1:] * 1e6)).sum()) / deadline_s

    start = np.full(4, max(found.rates_bps) / 1e6 * 2.0)
    solved = minimize(
        lambda rates: float(prices @ rates[1:]),
        start,
        method="SLSQP",
        bounds=[(flow.mean_bps / 1e6 * 1.01, None)] * 4,
        constraints=[{"type": "ineq", "fun": spare}, {"type": "ineq", "fun": lambda rates: rates[1:] - rates[0]}],
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found.cost == pytest.approx(solved.fun * 1e6, rel=2e-3)
    assert found.cost <= solved.fun * 1e6 * (1.0 + 1e-3)
    assert found.bound.delay_s <= deadline_s * (1.0 + 1e-9)
    sooner = cheapest_reservation(flow, OFFERS, deadline_s * 0.99, 1e-3).cost
    assert (sooner - found.cost) / (0.01 * deadline_s) == pytest.approx(found.cost_per_s, rel=0.1)


def test_without_latencies_that_depend_on_the_rate_every_domain_reserves_the_required_rate():
    flow = MarkovOnOff(20e6, 5e-3, 7.5e-3)
    offers = [Offer(1.0, 1e-3, name="a"), Offer(5.0, 2e-3, name="b")]
    found = cheapest_reservation(flow, offers, 0.05, 1e-3)
    rate = required_rate(flow, [RateLatency(1e7, 1e-3), RateLatency(1e7, 2e-3)], 0.05, 1e-3)
    assert found.rates_bps == pytest.approx((rate, rate), rel=1e-6)


def test_a_deadline_that_no_rate_on_offer_meets_is_refused():
    with pytest.raises(CalculusError, match="fails at every rate on offer"):
        cheapest_reservation(MarkovOnOff(20e6, 5e-3, 7.5e-3), [Offer(1.0, 1e-3, most_bps=9e6)], 0.02, 1e-3)
