"""Traces, populations, aggregates, contracts, backlog and left-over service: what is special about each."""

from __future__ import annotations

import math

import numpy as np
import pytest

from testbed.calculus import (
    BoundedBurstiness,
    CalculusError,
    CompoundPoisson,
    Copies,
    DependentSum,
    EnvelopeService,
    ExcessTail,
    FittedFlow,
    IndependentSum,
    LeftOver,
    MarkovFluid,
    MarkovOnOff,
    MarkovPoisson,
    Metered,
    NotApplicableError,
    RateLatency,
    Renewal,
    SlottedOnOff,
    TailTest,
    TokenBucket,
    UnstableError,
    backlog_bound,
    backlog_violation,
    delay_bound,
    delay_bounds,
    exponential,
    fit_trace,
    generalised_pareto_test,
    gps_share,
    left_over,
    packetised,
    priority_share,
    required_rate_for_backlog,
)
from testbed.calculus.arrivals.chain import perron
from testbed.calculus.arrivals.fitted import lindley_backlog
from tests.unit.calculus import reference as ref

ONE = [RateLatency(1.0, 0.0)]

# traces


def poisson_trace(rng, count):
    return np.cumsum(rng.exponential(1.0, count)), np.ones(count)


def switching_trace(rng, steps):
    """Intensity 3 and 0.3 in turns, some dozens of packets each."""
    states, holds = ref.markov_path(np.array([[0.0, 0.05], [0.025, 0.0]]), steps, rng)
    trace = ref.modulated_poisson(
        holds, np.array([3.0, 0.3])[states], lambda visited, _: np.ones(len(visited)), states, rng
    )
    return trace.times, trace.bits


@pytest.mark.parametrize(
    ("make", "size", "fresh", "method"),
    [(poisson_trace, 60_000, 600_000, "kingman"), (switching_trace, 20_000, 80_000, "blocks")],
    ids=["uncorrelated packets", "packets in blocks"],
)
def test_a_fitted_flow_bounds_fresh_traffic_of_the_same_kind(make, size, fresh, method):
    rng = np.random.default_rng(5)
    flow = fit_trace(*make(rng, size))
    times, bits = make(rng, fresh)
    for load in (0.5, 0.7):
        rate = flow.mean_bps / load
        backlog = lindley_backlog(np.diff(times, prepend=times[0]), bits, rate)
        for epsilon in (1e-2, 1e-3):
            bound = delay_bound(flow, [RateLatency(rate, 0.0)], epsilon)
            assert bound.method == method
            assert (backlog > rate * bound.delay_s).mean() <= epsilon
            assert bound.delay_s < 6.0 * np.quantile(backlog, 1.0 - epsilon) / rate
    with pytest.raises(NotApplicableError, match="per time nothing is known"):
        delay_bound(flow, [RateLatency(2.0 * flow.mean_bps, 0.0)], 1e-3, "time")


def _repaid_bursts(rng, blocks):
    """Gaps and sizes in blocks of two: a silence pays for the burst behind it, but rarely for two bits more."""
    bursts, unpaid = rng.exponential(1.0, blocks), 2.0 * (rng.random(blocks) < 2.9e-4)
    gaps, bits = np.full(2 * blocks, 1e-9), np.full(2 * blocks, 1e-9)
    gaps[1::2] = bursts + 1e-3
    bits[1::2] = bursts + unpaid
    return gaps, bits


def test_blocks_that_end_in_bursts_need_more_than_kingmans_constant():
    """The wait is the largest of a thousand bursts, not the maximum of a walk that starts behind one."""
    rng = np.random.default_rng(2)
    gaps, bits = _repaid_bursts(rng, 300_000)
    fresh = _repaid_bursts(rng, 1_000_000)
    flow = FittedFlow(gaps, bits, 2, 0.99, TailTest(0.0, 0.0, 1.0, 0), *fresh)
    backlog = lindley_backlog(*fresh, 1.0)
    tail = flow.unconfirmed_blocks(1.0, "packet")
    for epsilon in (0.1, 1e-2, 1e-3):
        assert (backlog > float(tail.delay(epsilon))).mean() <= epsilon
    # E exp(theta X) is 1 at theta = 1/2, where E exp(theta V) is 2.
    assert (backlog > 10.0).mean() > 2.0 * math.exp(-0.5 * 10.0)


def test_a_heavy_tail_is_refused_and_the_test_is_named():
    rng = np.random.default_rng(1)
    sizes = 100.0 * (1.0 + rng.pareto(1.6, 40_000))
    with pytest.raises(
        CalculusError, match=r"tail of the .* is not light: the generalised Pareto test finds shape 0\.[5-8]"
    ):
        fit_trace(np.cumsum(rng.exponential(1.0, 40_000)), sizes)


def test_the_tail_test_accepts_light_tails_and_finds_the_shape_of_heavy_ones():
    rng = np.random.default_rng(0)
    light = [generalised_pareto_test(rng.exponential(3.0, 5000)).p_value for _ in range(200)]
    assert np.mean(np.array(light) < 0.05) < 0.09
    heavy = generalised_pareto_test(rng.pareto(2.0, 50_000))
    assert heavy.p_value < 1e-6
    assert heavy.shape == pytest.approx(0.5, abs=0.1)


def test_traffic_that_changes_between_the_two_parts_is_refused():
    rng = np.random.default_rng(3)
    gaps = np.concatenate((rng.exponential(1.0, 20_000), rng.exponential(0.6, 20_000)))
    flow = fit_trace(np.cumsum(gaps), np.ones(len(gaps)))
    with pytest.raises(NotApplicableError, match="the held-out part of the trace contradicts the fit: its p90 wait"):
        delay_bound(flow, [RateLatency(1.0 / 0.7, 0.0)], 1e-3)


def episodic_trace(rng):
    """Two calm halves with one episode each of 600 packets at five times the rate: what no block of the fit holds."""
    means = np.ones(60_000)
    for half in (0, 30_000):
        means[half + 10_000 : half + 10_600] = 0.2
    return np.cumsum(rng.exponential(means)), np.ones(len(means))


def test_bursts_longer_than_any_block_are_refused_at_the_rates_at_which_they_wait_and_nowhere_else():
    """The fit sees uncorrelated packets and a light tail; only a replay at the rate that is asked about can tell."""
    flow = fit_trace(*episodic_trace(np.random.default_rng(1)))
    assert flow.block == 1
    contradicted = r"replayed at load 0\.\d+, the .* part of the trace contradicts the fit: its p99 wait is"
    for rate in (2.0, 3.0, 4.0):
        with pytest.raises(NotApplicableError, match=contradicted):
            delay_bound(flow, [RateLatency(rate, 0.0)], 1e-3)
    wait_s = lindley_backlog(flow.held_gaps_s, flow.held_bits, 12.0) / 12.0
    assert np.quantile(wait_s, 0.999) < delay_bound(flow, [RateLatency(12.0, 0.0)], 1e-3).delay_s


def test_a_part_in_which_one_burst_can_hide_confirms_nothing():
    rng = np.random.default_rng(1)
    flow = fit_trace(np.cumsum(rng.exponential(1.0, 20_000)), np.ones(20_000))
    with pytest.raises(NotApplicableError, match=r"waits in so few bursts that it is worth \d+ independent packets"):
        delay_bound(flow, [RateLatency(flow.mean_bps / 0.9, 0.0)], 1e-3)


def test_a_refused_fit_leaves_what_the_meter_enforces():
    flow = fit_trace(*episodic_trace(np.random.default_rng(1)))
    found = delay_bound(Metered(flow, TokenBucket(2.5, 2000.0, packet_bits=1.0)), [RateLatency(3.0, 0.0)], 1e-3)
    assert (found.method, found.delay_s) == ("deterministic", pytest.approx(2000.0 / 3.0))
    (refused,) = (candidate for candidate in found.rejected if candidate.method in {"kingman", "blocks"})
    assert math.isinf(refused.delay_s)
    assert "part of the trace contradicts the fit: its p99 wait is" in refused.note
    assert refused.note in found.explain()


@pytest.mark.parametrize(
    ("times", "bits", "message"),
    [
        (np.arange(100.0), np.ones(100), "49 packets are too few"),
        (np.arange(10.0)[::-1], np.ones(10), "times that do not decrease"),
        (np.arange(10.0), np.zeros(10), "sizes above 0"),
    ],
    ids=["a short trace", "times that go back", "empty packets"],
)
def test_a_malformed_trace_is_refused(times, bits, message):
    with pytest.raises(CalculusError, match=message):
        fit_trace(times, bits)


# populations


def test_ten_thousand_tenants_in_one_call_have_the_bounds_that_each_has_alone():
    rng = np.random.default_rng(0)
    kinds = [
        lambda: MarkovOnOff(rng.uniform(5e6, 3e7), rng.uniform(1e-3, 1e-2), 7.5e-3, int(rng.integers(1, 5)), 11_200),
        lambda: CompoundPoisson(rng.uniform(50.0, 500.0), 11_200),
        lambda: CompoundPoisson(rng.uniform(50.0, 500.0), exponential(11_200)),
        lambda: TokenBucket(rng.uniform(1e6, 5e6), rng.uniform(1e4, 1e6)),
    ]
    flows = [kinds[index % 4]() for index in range(10_000)]
    rates = np.array([flow.mean_bps for flow in flows]) / rng.uniform(0.2, 0.95, len(flows))
    path = [EnvelopeService(1.0, 1e-3, ExcessTail(0.1, 2000.0, 0.0, 0.02)), EnvelopeService(1.0, 2e-3, None, 1e-5)]
    bounds = delay_bounds(flows, path, 1e-3, rates)
    assert bounds.shape == (10_000,)
    for index in range(0, 10_000, 397):
        alone = [EnvelopeService(rates[index], s.latency_s, s.excess, s.loss_probability) for s in path]
        single = delay_bound(flows[index], alone, 1e-3)
        sharpest = min(c.delay_s for c in single.candidates if c.method != "chernoff")
        assert bounds[index] == pytest.approx(sharpest, rel=1e-9)
        assert bounds[index] >= single.delay_s * (1.0 - 1e-9)


def test_tenants_of_any_other_kind_are_bounded_one_by_one_and_the_unstable_one_is_named():
    flows = [Renewal.gamma(1.0, 0.5, 1.0), CompoundPoisson(1.0, 1.0)]
    bounds = delay_bounds(flows, ONE, [1e-3, 1e-2], np.array([2.0, 2.0]))
    for flow, epsilon, bound in zip(flows, (1e-3, 1e-2), bounds, strict=True):
        assert bound == pytest.approx(delay_bound(flow, [RateLatency(2.0, 0.0)], epsilon).delay_s)
    with pytest.raises(UnstableError, match=r"fails for tenant 1: 1 against 0\.9"):
        delay_bounds(flows, ONE, 1e-3, np.array([2.0, 0.9]))


# aggregates


def test_an_aggregate_of_dependent_flows_is_worse_than_of_independent_ones_and_no_worse_than_of_copies():
    flow = MarkovOnOff(1.0, 1.0, 2.0)
    path = [RateLatency(2.0 / 3.0 / 0.7, 0.0)]
    independent, dependent, copies = (
        delay_bound(aggregate, path, 1e-3, "time", "chernoff").delay_s
        for aggregate in (IndependentSum((flow, flow)), DependentSum((flow, flow)), Copies(flow, 2))
    )
    assert independent < dependent
    assert dependent == pytest.approx(copies, rel=1e-9)


def test_hoelders_exponents_are_the_best():
    flows = (MarkovOnOff(1.0, 1.0, 2.0), CompoundPoisson(0.2, 1.0), MarkovOnOff(3.0, 0.5, 4.0, 2))
    aggregate = DependentSum(flows)
    theta = np.array([0.1, 0.3])
    found = aggregate.envelope_rate(theta)
    rng = np.random.default_rng(0)
    for weights in rng.dirichlet(np.ones(3), 300):
        other = sum(flow.envelope_rate(theta / weight) for flow, weight in zip(flows, weights, strict=True))
        assert np.all(found <= other * (1.0 + 1e-9))


def test_bits_of_all_flows_are_counted_by_their_bits_and_not_by_packets():
    """Few large packets in long bursts beside many small ones: by packets the aggregate would see far less."""
    rng = np.random.default_rng(4)
    bursty = MarkovPoisson((5.0, 0.0), 20.0, ((0.0, 0.05), (0.0125, 0.0)))
    smooth = CompoundPoisson(20.0, 1.0)
    aggregate = IndependentSum((bursty, smooth))
    rate, epsilon = aggregate.mean_bps / 0.7, 1e-2
    states, holds = ref.markov_path(np.array([[0.0, 0.05], [0.0125, 0.0]]), 8000, rng)
    large = ref.modulated_poisson(
        holds, np.array([5.0, 0.0])[states], lambda visited, _: np.full(len(visited), 20.0), states, rng
    )
    small = ref.Trace.of(np.cumsum(rng.exponential(0.05, int(large.times[-1] * 20))), 1.0)
    both = ref.merge(large, small)
    bound = delay_bound(aggregate, [RateLatency(rate, 0.0)], epsilon)
    late = ref.waits(both.times, both.bits, rate) > bound.delay_s
    assert "packets are counted by their bits" in bound.assumptions
    assert (late * both.bits).sum() / both.bits.sum() <= epsilon


def test_what_a_contract_allows_says_nothing_about_how_often_its_packets_see_a_dependent_flow():
    flows = (TokenBucket(0.1, 5.0), MarkovOnOff(1.0, 1.0, 2.0))
    assert delay_bound(DependentSum(flows), ONE, 1e-3, "time").delay_s > 0.0
    with pytest.raises(NotApplicableError, match="packets under a contract"):
        delay_bound(DependentSum(flows, 0), ONE, 1e-3)
    with pytest.raises(NotApplicableError, match="the mean of a contract is unknown; name an observer"):
        delay_bound(IndependentSum(flows), ONE, 1e-3)


def test_packets_of_a_contract_beside_independent_flows_see_what_time_sees():
    flow = IndependentSum((TokenBucket(0.1, 5.0), MarkovOnOff(1.0, 1.0, 2.0)), 0)
    per_packet, per_time = (delay_bound(flow, ONE, 1e-3, per).delay_s for per in ("packet", "time"))
    assert per_packet == per_time


def test_packets_that_never_queue_still_fill_the_server():
    """Below the peak no packet of one flow waits, but the server is busy with it: time sees one packet."""
    flow = MarkovOnOff(1.0, 5.0, 5.0, packet_bits=1.0)
    path = [RateLatency(2.0, 0.0)]
    assert delay_bound(flow, path, 1e-2, "packet").delay_s == 0.0
    assert delay_bound(flow, path, 1e-2, "time").delay_s == 0.5
    fluid = MarkovFluid((0.0, 1.0), ((0.0, 0.2), (0.2, 0.0)), 1.0)
    assert delay_bound(fluid, path, 1e-2, "time").delay_s == 0.5
    both = IndependentSum((flow, fluid), 0)
    assert delay_bound(both, path, 1e-2).delay_s == 0.5
    assert delay_bound(both, path, 1e-2, "time").delay_s == 1.0


def test_small_entries_of_an_eigenvector_have_their_digits():
    """A slow one-way cycle: what LAPACK returns for the small entries is the rounding of the large ones."""
    rates = (1e-6, 1e-5, 1e-7, 1e-4)
    tilted = np.diag([2.0, -1.0, -0.5, 0.3])
    for state, rate in enumerate(rates):
        tilted[state, state] -= rate
        tilted[state, (state + 1) % 4] += rate
    growth = 2.0 - 1e-6
    h = perron(tilted)
    expected = 1.0
    for state in (3, 2, 1):
        expected *= rates[state] / (growth - tilted[state, state])
        assert h[state] == pytest.approx(expected, rel=1e-6)


# questions that have no answer


def test_an_excess_says_nothing_about_time():
    path = [EnvelopeService(1.0, 0.0, ExcessTail(0.1, 1.0))]
    for question in (delay_bound, backlog_bound):
        with pytest.raises(CalculusError, match=r"ask per packet|bounds the delay of packets"):
            question(MarkovOnOff(1.0, 1.0, 2.0), path, 1e-3, "time")


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        (CompoundPoisson(0.3, 1.0), "cannot share a path"),
        (SlottedOnOff(1.0, 1.0, 0.8, 0.9, 9), r"mean arrival rate < mean left-over rate fails at server 1: 3 against"),
        (BoundedBurstiness(1.0, 0.1, 1.0, 1.0), "says nothing about packets|can come at any rate"),
    ],
    ids=["slots beside continuous time", "an unstable path", "an envelope without packets"],
)
def test_ill_posed_left_over_paths_are_refused(flow, message):
    path = [LeftOver(2.0, SlottedOnOff(1.0, 1.0, 0.8, 0.9))]
    with pytest.raises(CalculusError, match=message):
        delay_bound(flow, path, 1e-3)


def test_an_envelope_with_an_excess_does_not_join_left_over_servers():
    path = [
        LeftOver(2.0, MarkovOnOff(1.0, 1.0, 2.0)),
        EnvelopeService(1.0, 0.0, ExcessTail(0.1, 1.0), name="metro"),
    ]
    with pytest.raises(CalculusError, match="domain 'metro' promises an excess tail, which cannot be joined"):
        delay_bound(MarkovOnOff(1.0, 1.0, 2.0), path, 1e-3, "time")


# backlog


def test_a_tandem_holds_no_more_than_the_ideal_queue_and_its_latencies():
    """At every instant, with the laziest servers that keep the promise; the bound is the ideal queue's and that."""
    rng = np.random.default_rng(8)
    flow = MarkovOnOff(2.0, 5.0, 8.0, packet_bits=1.0)
    rate = flow.mean_bps / 0.8
    path = [RateLatency(rate, 2.0), RateLatency(1.5 * rate, 3.0)]
    trace = ref.OnOff(2.0, 5.0, 8.0, 1.0).packets(20_000, rng)
    out = trace.times
    for server in path:
        out = out + ref.waits(out, trace.bits, server.rate_bps) + server.latency_s
    at = rng.uniform(trace.times[1000], trace.times[-1000], 200_000)
    arrived = np.searchsorted(trace.times, at, "right")
    inside = arrived - np.searchsorted(out, at, "right")
    found = ref.waits(trace.times, trace.bits, rate)[arrived - 1] * rate + 1.0
    ideal = np.maximum(0.0, found - rate * (at - trace.times[arrived - 1]))
    assert np.all(inside <= ideal + rate * 5.0 + 1e-6)
    assert (inside - ideal).max() > 0.9 * rate * 5.0
    alone = backlog_bound(flow, [RateLatency(rate, 0.0)], 1e-2).backlog_bits
    assert backlog_bound(flow, path, 1e-2).backlog_bits == pytest.approx(alone + rate * 5.0)


def test_backlog_probability_and_rate_are_the_same_bound_asked_backwards():
    flow = MarkovOnOff(2.0, 5.0, 8.0, packet_bits=1.0)
    for per in ("time", "packet"):
        bound = backlog_bound(flow, ONE, 1e-3, per)
        assert backlog_violation(flow, ONE, bound.backlog_bits, per) == pytest.approx(1e-3, rel=1e-6)
        rate = required_rate_for_backlog(flow, ONE, bound.backlog_bits, 1e-3, per)
        assert rate == pytest.approx(1.0, rel=1e-6)
    assert backlog_violation(flow, [RateLatency(1.0, 10.0)], 9.0) == 1.0


def test_the_backlog_of_left_over_servers_is_asked_in_all_directions():
    flow, cross = MarkovOnOff(1.0, 1.0, 2.0), MarkovOnOff(1.0, 1.0, 2.0, 2)
    path = [LeftOver(1.5, cross), LeftOver(1.6, cross)]
    bound = backlog_bound(flow, path, 1e-3)
    assert bound.method == "convolution"
    assert backlog_violation(flow, path, bound.backlog_bits) == pytest.approx(1e-3, rel=1e-4)
    rate = required_rate_for_backlog(flow, path, bound.backlog_bits, 1e-3)
    assert backlog_bound(flow, [LeftOver(rate, cross)] * 2, 1e-3).backlog_bits <= bound.backlog_bits * (1.0 + 1e-6)


# sure left-over service


@pytest.mark.parametrize("scheduler", ["blind", "fifo"])
def test_sure_left_over_service_holds_for_greedy_packets(scheduler):
    """Packets of two buckets at one server: the tenant's leave as promised, with the packetiser's transmission."""
    capacity, cross, own = RateLatency(10.0, 0.0), TokenBucket(4.0, 30.0), TokenBucket(5.0, 20.0)
    service = packetised(left_over(capacity, cross, scheduler), 1.0)
    bound = delay_bound(own, [service], 1e-3).delay_s
    worst = 0.0
    for offset in np.linspace(0.0, 4.0, 9):
        mine = np.concatenate((np.zeros(20), np.arange(1, 200) / own.rate_bps)) + offset
        others = np.concatenate((np.zeros(30), np.arange(1, 200) / cross.rate_bps))
        times = np.concatenate((others, mine))
        kind = np.repeat([0, 1], [len(others), len(mine)])
        # Blind: the cross traffic always goes first. FIFO: in order of arrival, the tenant last of a tie.
        order = np.lexsort((kind, times))
        worst = max(worst, _worst_delay(times[order], kind[order], scheduler, 10.0))
    assert 0.6 * bound < worst <= bound


def _worst_delay(times, kind, scheduler, rate):
    """The largest delay of the second kind's unit packets."""
    if scheduler == "fifo":
        delays = ref.waits(times, np.ones(len(times)), rate) + 1.0 / rate
        return float(delays[kind == 1].max())
    waiting = {0: list(times[kind == 0]), 1: list(times[kind == 1])}
    now, worst = 0.0, 0.0
    while waiting[1]:
        due = [which for which in (0, 1) if waiting[which] and waiting[which][0] <= now]
        if not due:
            now = min(queue[0] for queue in waiting.values() if queue)
            continue
        arrived = waiting[due[0]].pop(0)
        now += 1.0 / rate
        worst = max(worst, now - arrived) if due[0] == 1 else worst
    return worst


def test_shares_and_priorities():
    link = RateLatency(10.0, 1.0, "link")
    assert gps_share(link, 1.0, [1.0, 3.0], 2.0) == RateLatency(2.0, 1.2, "link")
    assert priority_share(link, 5.0) == RateLatency(10.0, 1.5, "link")
    with pytest.raises(UnstableError, match="cross rate < capacity fails: 10 against 10"):
        left_over(link, TokenBucket(10.0, 1.0))
    with pytest.raises(CalculusError, match="weights must be above 0"):
        gps_share(link, 0.0, [1.0])


def test_fifo_left_over_servers_hold_and_are_no_worse_than_blind_ones():
    rng = np.random.default_rng(6)
    flow = MarkovOnOff(1.0, 4.0, 8.0, packet_bits=0.5)
    cross = MarkovOnOff(1.0, 4.0, 8.0, 2, packet_bits=2.0)
    capacity, epsilon = 1.0 / 0.7, 1e-2
    fifo, blind = (
        delay_bound(flow, [LeftOver(capacity, cross, scheduler)], epsilon).delay_s for scheduler in ("fifo", "blind")
    )
    assert fifo <= blind
    own = ref.OnOff(1.0, 4.0, 8.0, 0.5).packets(30_000, rng)
    others = [ref.OnOff(1.0, 4.0, 8.0, 2.0).packets(30_000, rng) for _ in range(2)]
    unseen = [ref.Trace(trace.times, trace.bits, np.zeros(len(trace.times))) for trace in others]
    both = ref.merge(own, *unseen)
    late = ref.waits(both.times, both.bits, capacity) > fifo
    assert (late * both.counted).sum() / both.counted.sum() <= epsilon


def test_the_meter_bounds_what_the_model_cannot():
    """At a rate between the contract's and the model's mean only the contract is stable."""
    flow = Metered(CompoundPoisson(2.0, 1.0), TokenBucket(0.9, 5.0))
    bound = delay_bound(flow, ONE, 1e-3)
    assert (bound.method, bound.delay_s) == ("deterministic", 5.0)
    assert {candidate.method for candidate in bound.rejected} == {"lundberg", "chernoff"}
    assert all(math.isinf(c.delay_s) and "mean arrival rate < service rate" in c.note for c in bound.rejected)
