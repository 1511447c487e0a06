"""The admission rule: what each rule admits, and when it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from testbed.calculus import Arrival, MarkovOnOff, Metered, RateLatency, TokenBucket, required_rate
from testbed.management.admission import Claim, Demand, Rule, confirm

PATH = [RateLatency(1e6, 1e-3, "access"), RateLatency(1e6, 2e-3, "core")]
CONTRACT = TokenBucket(2.5e6, 3.2e6, peak_bps=20e6, packet_bits=11_200)
FLOW = MarkovOnOff(20e6, 5e-3, 45e-3, packet_bits=11_200)
DEMAND = Demand("alpha", FLOW, CONTRACT, deadline_s=0.1, epsilon=1e-3, meter_loss=1e-4)
BELIEVED: dict[Rule, Arrival] = {Rule.DETERMINISTIC: CONTRACT, Rule.STOCHASTIC: Metered(FLOW, CONTRACT)}
RATES = {
    Rule.PEAK: 20e6,
    **{rule: required_rate(flow, PATH, DEMAND.deadline_s, 1e-3 - 1e-4) for rule, flow in BELIEVED.items()},
}


def at(rate_bps: float) -> list[RateLatency]:
    return [replace(one, rate_bps=rate_bps) for one in PATH]


@pytest.mark.parametrize("rule", list(BELIEVED))
def test_the_smallest_rate_that_meets_the_deadline_is_admitted_and_a_hundredth_less_is_not(rule: Rule) -> None:
    admitted, bound = confirm(rule, DEMAND, at(RATES[rule]))
    assert bound is not None
    assert (admitted.admitted, admitted.rate_bps, admitted.bound_s) == (True, RATES[rule], bound.delay_s)
    assert bound.delay_s == pytest.approx(DEMAND.deadline_s, rel=1e-6)
    refused, late = confirm(rule, DEMAND, at(0.99 * RATES[rule]))
    assert late is not None
    assert late.delay_s > DEMAND.deadline_s
    assert not refused.admitted
    assert "alpha: its bound is" in refused.reason


def test_the_rule_peak_admits_at_the_peak_rate_and_not_below() -> None:
    assert confirm(Rule.PEAK, DEMAND, at(20e6))[0].admitted
    refused, _ = confirm(Rule.PEAK, DEMAND, at(0.99 * 20e6))
    assert not refused.admitted
    assert refused.reason == "tenant alpha: its peak rate is 2e+07, reserved are 1.98e+07"


def test_a_tenant_known_by_its_contract_alone_is_judged_by_it() -> None:
    unknown = replace(DEMAND, flow=None)
    for share in (0.99, 1.0):
        path = at(share * RATES[Rule.DETERMINISTIC])
        assert confirm(Rule.STOCHASTIC, unknown, path)[0].admitted is (share == 1)


def test_knowing_more_reserves_less() -> None:
    assert RATES[Rule.STOCHASTIC] < RATES[Rule.DETERMINISTIC] < RATES[Rule.PEAK]


@pytest.mark.parametrize("rule", list(Rule))
def test_a_tenant_enters_exactly_if_its_rate_is_free(rule: Rule) -> None:
    rate_bps = RATES.get(rule, 0.0)
    path = at(rate_bps) if rate_bps else []
    assert confirm(rule, DEMAND, path, [Claim("bit/s of its path", rate_bps, rate_bps)])[0].admitted
    refused, _ = confirm(rule, DEMAND, path, [Claim("bit/s of its path", rate_bps, rate_bps - 1)])
    assert not refused.admitted
    assert "tenant alpha: needs " in refused.reason
    assert " of bit/s of its path with " in refused.reason


@pytest.mark.parametrize("rule", [Rule.PEAK, Rule.DETERMINISTIC, Rule.STOCHASTIC])
def test_a_deadline_that_no_rate_meets_is_refused_with_the_reason(rule: Rule) -> None:
    hopeless, _ = confirm(rule, replace(DEMAND, deadline_s=2e-3), at(1e12))
    assert not hopeless.admitted
    assert "promised are 0.002 s" in hopeless.reason
