"""The admission rule: what each rule reserves, and when it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from testbed.calculus import MarkovOnOff, Metered, RateLatency, TokenBucket, delay_bound
from testbed.management.admission import Demand, Rule, confirm, decide, reserve

PATH = [RateLatency(1e6, 1e-3, "access"), RateLatency(1e6, 2e-3, "core")]
CONTRACT = TokenBucket(2.5e6, 3.2e6, peak_bps=20e6, packet_bits=11_200)
DEMAND = Demand(
    tenant="alpha",
    flow=MarkovOnOff(20e6, 5e-3, 45e-3, packet_bits=11_200),
    contract=CONTRACT,
    deadline_s=0.1,
    epsilon=1e-3,
    meter_loss=1e-4,
)


@pytest.mark.parametrize("rule", [Rule.DETERMINISTIC, Rule.STOCHASTIC])
def test_the_reserved_rate_is_the_smallest_that_meets_the_deadline(rule: Rule) -> None:
    rate_bps, bound_s = reserve(rule, DEMAND, PATH)
    assert bound_s == pytest.approx(DEMAND.deadline_s, rel=1e-6)
    flow = (
        CONTRACT
        if rule is Rule.DETERMINISTIC
        else Metered(MarkovOnOff(20e6, 5e-3, 45e-3, packet_bits=11_200), CONTRACT)
    )
    less = [replace(one, rate_bps=0.99 * rate_bps) for one in PATH]
    assert delay_bound(flow, less, 9e-4).delay_s > DEMAND.deadline_s


@pytest.mark.parametrize("rule", [Rule.PEAK, Rule.DETERMINISTIC, Rule.STOCHASTIC])
def test_what_a_rule_reserves_is_what_is_confirmed_where_it_is_proposed_and_a_hundredth_less_is_not(rule: Rule) -> None:
    rate_bps, bound_s = reserve(rule, DEMAND, PATH)
    whole, less = ([replace(one, rate_bps=share * rate_bps) for one in PATH] for share in (1.0, 0.99))
    confirmed, _ = confirm(rule, DEMAND, whole)
    assert confirmed.admitted
    assert confirmed.bound_s == bound_s
    assert not confirm(rule, DEMAND, less)[0].admitted


def test_a_tenant_known_by_its_contract_alone_gets_what_the_contract_needs() -> None:
    unknown = replace(DEMAND, flow=None)
    assert reserve(Rule.STOCHASTIC, unknown, PATH)[0] == pytest.approx(reserve(Rule.DETERMINISTIC, unknown, PATH)[0])


def test_knowing_more_reserves_less() -> None:
    rates = [reserve(rule, DEMAND, PATH)[0] for rule in (Rule.STOCHASTIC, Rule.DETERMINISTIC, Rule.PEAK)]
    assert rates == sorted(rates)
    assert rates[0] < rates[1] < rates[2] == 20e6


@pytest.mark.parametrize("rule", list(Rule))
def test_a_tenant_enters_exactly_if_its_rate_is_free(rule: Rule) -> None:
    rate_bps, bound_s = reserve(rule, DEMAND, PATH)
    enters = decide(rule, DEMAND, PATH, rate_bps)
    assert enters.admitted
    assert (enters.rate_bps, enters.bound_s) == (rate_bps, bound_s)
    refused = decide(rule, DEMAND, PATH, rate_bps - 1)
    assert not refused.admitted
    assert "alpha" in refused.reason


@pytest.mark.parametrize("rule", [Rule.PEAK, Rule.DETERMINISTIC, Rule.STOCHASTIC])
def test_a_deadline_that_no_rate_meets_is_refused_with_the_reason(rule: Rule) -> None:
    hopeless = decide(rule, replace(DEMAND, deadline_s=2e-3), PATH, 1e12)
    assert not hopeless.admitted
    assert "no rate keeps its promise" in hopeless.reason
