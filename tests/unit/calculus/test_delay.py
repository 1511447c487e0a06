"""The front door: known numbers, the three directions of a bound, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from testbed.calculus import (
    CalculusError,
    CompoundPoisson,
    EnvelopeService,
    ExcessTail,
    MarkovOnOff,
    Metered,
    RateLatency,
    Renewal,
    TokenBucket,
    UnstableError,
    backlog_bound,
    burst_after,
    delay_bound,
    delay_curve,
    exponential,
    required_rate,
    violation_curve,
    violation_probability,
)

SERVER = [RateLatency(10e6, 0.0)]
BURSTY = MarkovOnOff(20e6, 5e-3, 7.5e-3, packet_bits=11_200)
DOMAINS = [EnvelopeService(10e6, 1e-3, ExcessTail(0.1, 2000.0, 0.0, 0.02), name=name) for name in ("a", "b", "c")]


@pytest.mark.parametrize(
    ("arrival", "rate_bps", "per", "method", "expected_s"),
    [
        pytest.param(BURSTY, 10e6, "packet", "martingale", 103.62e-3, id="one on-off flow cut into packets"),
        pytest.param(
            Renewal.on_off(20e6, 5e-3, 7.5e-3, 11_200),
            10e6,
            "packet",
            "kingman",
            97.78e-3,
            id="on-off packets as a renewal process",
        ),
        pytest.param(CompoundPoisson(0.7, 1.0), 1.0, "packet", "lundberg", 10.23, id="M/D/1, Lundberg"),
        pytest.param(CompoundPoisson(0.7, 1.0), 1.0, "packet", "chernoff", 18.37, id="M/D/1, Chernoff"),
        pytest.param(CompoundPoisson(0.5, exponential(1.0)), 1.0, "packet", "lundberg", 12.4292, id="M/M/1, exact"),
        pytest.param(
            MarkovOnOff(1.0, 1.0, 2.0, 10),
            10 / 3 / 0.7,
            "time",
            "martingale",
            7.368 * 0.21,
            id="ten on-off flows per time",
        ),
        pytest.param(
            MarkovOnOff(1.0, 1.0, 2.0, 10),
            10 / 3 / 0.7,
            "packet",
            "martingale",
            7.784 * 0.21,
            id="ten on-off flows per bit",
        ),
        pytest.param(TokenBucket(8e6, 80e3), 10e6, "packet", "deterministic", 8e-3, id="a token bucket"),
        pytest.param(
            TokenBucket(8e6, 80e3, 20e6, 12e3),
            10e6,
            "time",
            "deterministic",
            6.866667e-3,
            id="a token bucket with a peak",
        ),
    ],
)
def test_known_values_are_met(arrival, rate_bps, per, method, expected_s):
    bound = delay_bound(arrival, [RateLatency(rate_bps, 0.0)], 1e-3, per, method)
    assert bound.delay_s == pytest.approx(expected_s, rel=5e-4)


def test_best_is_the_smallest_candidate_and_lists_the_others():
    bound = delay_bound(Metered(BURSTY, TokenBucket(8.5e6, 2e6)), DOMAINS, 1e-3)
    assert [candidate.method for candidate in bound.candidates] == [
        "martingale",
        "deterministic",
        "chernoff",
        "hop-by-hop",
    ]
    assert bound.delay_s == min(candidate.delay_s for candidate in bound.candidates)
    for candidate in bound.candidates:
        alone = delay_bound(Metered(BURSTY, TokenBucket(8.5e6, 2e6)), DOMAINS, 1e-3, method=candidate.method)
        assert alone.delay_s == candidate.delay_s


def test_parts_add_up_to_the_bound_and_to_the_risk():
    domains = [*DOMAINS[:2], EnvelopeService(12e6, 2e-3, loss_probability=2e-4, name="c")]
    bound = delay_bound(BURSTY, domains, 1e-3)
    assert math.fsum(part.delay_s for part in bound.parts) == pytest.approx(bound.delay_s, rel=1e-12)
    assert math.fsum(part.epsilon for part in bound.parts) == pytest.approx(1e-3, rel=1e-9)
    assert [line.domain for line in bound.budget] == ["own burst", "a", "b", "c"]


def test_active_domains_pay_the_same_price_which_is_the_slope_of_the_bound():
    bound = delay_bound(BURSTY, DOMAINS, 1e-3)
    prices = {part.price_per_s for part in bound.parts if part.price_per_s}
    assert max(prices) == pytest.approx(min(prices), rel=1e-9)
    slope = (delay_bound(BURSTY, DOMAINS, 1.0001e-3).delay_s - bound.delay_s) / 1e-7
    assert slope == pytest.approx(-1.0 / max(prices), rel=1e-3)


def test_an_excess_at_its_cap_costs_no_risk():
    tight = [EnvelopeService(10e6, 0.0, ExcessTail(1.0, 10.0, cap_s=1e-3))]
    bound = delay_bound(BURSTY, tight, 1e-3)
    assert bound.delay_s == pytest.approx(delay_bound(BURSTY, SERVER, 1e-3).delay_s + 1e-3, rel=1e-12)


@pytest.mark.parametrize("method", ["deterministic", "martingale", "chernoff"])
def test_epsilon_to_delay_and_back_is_the_identity(method):
    metered = Metered(BURSTY, TokenBucket(8.5e6, 2e6))
    epsilons = np.logspace(-1.5, -9, 12)
    delays = delay_curve(metered, DOMAINS, epsilons, method=method)
    back = violation_curve(metered, DOMAINS, delays, method=method)
    capped = np.isclose(delays, delays[-1], rtol=1e-12)
    np.testing.assert_allclose(back[~capped], epsilons[~capped], rtol=1e-6)


def test_the_curve_is_the_bound_at_each_epsilon():
    epsilons = np.array([[1e-2, 1e-3], [1e-4, 0.3]])
    curve = delay_curve(BURSTY, DOMAINS, epsilons)
    singles = [delay_bound(BURSTY, DOMAINS, epsilon).delay_s for epsilon in epsilons.ravel()]
    np.testing.assert_allclose(curve.ravel(), singles, rtol=1e-12)


def test_losses_are_taken_off_the_risk_first():
    lossy = [EnvelopeService(10e6, 0.0, loss_probability=4e-4, name="lossy")]
    assert delay_bound(BURSTY, lossy, 1e-3).delay_s == pytest.approx(
        delay_bound(BURSTY, SERVER, 6e-4).delay_s, rel=1e-12
    )
    assert violation_probability(BURSTY, lossy, 10.0) == pytest.approx(4e-4)
    with pytest.raises(CalculusError, match=r"sum of loss probabilities < epsilon fails: 0\.0004 against 0\.0004"):
        delay_bound(BURSTY, lossy, 4e-4)


def test_the_required_rate_meets_the_deadline_and_less_does_not():
    rate = required_rate(BURSTY, DOMAINS, 0.05, 1e-3)
    for factor, meets in ((1.0, True), (0.999, False)):
        reserved = [EnvelopeService(rate * factor, d.latency_s, d.excess) for d in DOMAINS]
        assert (delay_bound(BURSTY, reserved, 1e-3).delay_s <= 0.05) is meets


def test_no_rate_meets_a_deadline_below_the_latencies():
    with pytest.raises(CalculusError, match="fails at any rate"):
        required_rate(BURSTY, DOMAINS, 2.9e-3, 1e-3)


def test_an_unstable_system_names_the_inequality_that_fails():
    with pytest.raises(UnstableError, match=r"mean arrival rate < service rate fails: 8e\+06 bit/s against 7e\+06"):
        delay_bound(BURSTY, [RateLatency(9e6, 0.0), RateLatency(7e6, 0.0)], 1e-3)
    with pytest.raises(UnstableError, match="token rate <= service rate fails"):
        delay_bound(TokenBucket(8e6, 1e4), [RateLatency(7e6, 0.0)], 1e-3)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.1, math.nan])
def test_epsilon_must_be_a_probability(epsilon):
    with pytest.raises(CalculusError, match="strictly between 0 and 1"):
        delay_bound(BURSTY, SERVER, epsilon)


def test_an_unknown_method_is_answered_with_the_known_ones():
    with pytest.raises(CalculusError, match="expected best or one of martingale, chernoff"):
        delay_bound(BURSTY, SERVER, 1e-3, method="magic")


def test_a_method_for_independent_domains_is_refused_where_nothing_says_they_are():
    with pytest.raises(CalculusError, match="needs independent_domains=True"):
        delay_bound(BURSTY, DOMAINS, 1e-3, method="martingale+independent")
    named = delay_bound(BURSTY, DOMAINS, 1e-3, method="martingale+independent", independent_domains=True)
    assert named.delay_s < delay_bound(BURSTY, DOMAINS, 1e-3).delay_s


def test_what_is_counted_must_be_packets_or_time():
    for question in (delay_bound, delay_curve, backlog_bound):
        with pytest.raises(CalculusError, match="per is 'bits'; expected packet or time"):
            question(BURSTY, SERVER, 1e-3, "bits")


def test_a_bound_with_a_latency_or_of_zero_is_no_quantile():
    smooth = CompoundPoisson(0.5, exponential(1.0))
    assert delay_bound(smooth, [RateLatency(1.0, 0.0)], 0.1).exact
    assert not delay_bound(smooth, [RateLatency(1.0, 0.1)], 0.1).exact
    assert not delay_bound(smooth, [RateLatency(1.0, 0.0)], 0.6).exact


def test_the_sojourn_of_an_m_m_1_queue_is_exact():
    bound = delay_bound(CompoundPoisson(0.5, exponential(1.0)), [RateLatency(1.0, 0.0)], 1e-3)
    assert bound.exact
    assert bound.sojourn_s == pytest.approx(math.log(1e3) / 0.5, rel=1e-12)


def test_the_explanation_names_parts_assumptions_and_rejected_methods():
    text = delay_bound(Metered(BURSTY, TokenBucket(8.5e6, 2e6)), DOMAINS, 1e-3).explain()
    for phrase in ("A delay of 120.2 ms", "own burst (queue)", "b (excess)", "union bound", "Rejected: deterministic"):
        assert phrase in text


def test_the_burst_grows_by_the_worst_latency_of_upstream_domains_and_one_refill_grain():
    upstream = [RateLatency(10e6, 2e-3), EnvelopeService(50e6, 1e-3, ExcessTail(1.0, 1e3, cap_s=5e-3))]
    assert burst_after(TokenBucket(8e6, 1e5), upstream) == pytest.approx(1e5 + 8e6 * (2e-3 + 6e-3 + 1e-3))
    with pytest.raises(CalculusError, match="needs a cap"):
        burst_after(TokenBucket(8e6, 1e5), [EnvelopeService(1e7, 0.0, ExcessTail(1.0, 1e3))])
