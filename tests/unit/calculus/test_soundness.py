"""No bound lies below the truth: random systems, and the theorems that hold packet by packet."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from testbed.calculus import EnvelopeService, ExcessTail, MarkovOnOff, RateLatency, delay_bound
from tests.unit.calculus import reference as ref
from tests.unit.calculus.systems import KINDS, random_system
from tests.unit.calculus.verdicts import judge

SYSTEMS = 208
EFFORT = 0.25


@pytest.mark.parametrize("seed", range(SYSTEMS), ids=lambda seed: f"{KINDS[seed % len(KINDS)]}, seed {seed}")
def test_the_bound_of_a_random_system_is_not_below_its_simulation(seed):
    verdict = judge(random_system(seed, EFFORT))
    assert not verdict.broken, str(verdict)
    assert not verdict.loose, f"an exact form lies above the truth\n{verdict}"


def test_the_oracle_tells_a_bound_that_is_too_small_and_an_exact_form_that_is_too_large():
    exact = [system for system in map(random_system, range(10, 270, 13)) if system.exact]
    assert len(exact) >= 3
    assert all(judge(system, 0.6).broken for system in exact)
    assert any(judge(system, 1.6).loose for system in exact)


REFERENCE_FLOW = ref.OnOff(20e6, 5e-3, 7.5e-3, 11_200.0)


def test_every_packet_cut_from_a_fluid_waits_no_longer_than_the_bit_at_its_place():
    rng = np.random.default_rng(1)
    holds, rates = REFERENCE_FLOW.segments(20_000, rng)
    trace = ref.cut_into_packets(holds, rates, REFERENCE_FLOW.bits, rng)
    service = 10e6
    waiting = ref.waits(trace.times, trace.bits, service) * service
    ends = np.concatenate(([0.0], np.cumsum(holds)))
    fluid = np.concatenate(([0.0], np.cumsum(holds * rates)))
    walk = fluid - service * ends
    lowest = np.minimum.accumulate(walk)
    arrived = np.interp(trace.times, ends, fluid)
    # Between corner points the walk is a line, so its lowest point so far is the lowest corner, or the point itself.
    segment = np.searchsorted(ends, trace.times, side="left") - 1
    now = arrived - service * trace.times
    backlog = now - np.minimum(lowest[segment], now)
    assert np.all(waiting <= backlog + 1e-3)
    assert waiting.max() > 10.0 * 11_200


@numba.njit(cache=True)
def packets_beyond(seed: int, bursts: int, limit_s: float) -> float:
    """Share of the reference flow's packets that wait longer than the limit at 10 Mb/s; constant memory."""
    np.random.seed(seed)  # noqa: NPY002 - numba draws from the legacy generator
    peak, bits, rate = 20e6, 11_200.0, 10e6
    remainder, free, now = np.random.random() * bits, 0.0, 0.0  # noqa: NPY002
    late, total = 0, 0
    for _ in range(bursts):
        length = np.random.exponential(5e-3)  # noqa: NPY002
        produced = remainder + peak * length
        packets = int(produced // bits)
        for k in range(1, packets + 1):
            arrival = now + (k * bits - remainder) / peak
            late += free - arrival > limit_s
            free = max(free, arrival) + bits / rate
        total += packets
        remainder = produced - packets * bits
        now += length + np.random.exponential(7.5e-3)  # noqa: NPY002
    return late / total


def test_the_fluid_bound_holds_for_packets_of_one_flow_and_is_nearly_the_truth():
    """Late packets come in clusters of hundreds, so it takes some 10^8 of them to tell 1e-3 from its neighbours."""
    bound = delay_bound(MarkovOnOff(20e6, 5e-3, 7.5e-3, packet_bits=11_200), [RateLatency(10e6, 0.0)], 1e-3)
    shares = np.array([packets_beyond(seed, 2_000_000, bound.delay_s) for seed in range(20)])
    error = shares.std(ddof=1) / np.sqrt(shares.size)
    assert shares.mean() - 5.0 * error < 1e-3, "the bound lies below the truth"
    assert shares.mean() + 5.0 * error > 1e-3, "the bound is not tight"
    assert error < 5e-5, "too few packets to say either"


@pytest.mark.parametrize("seed", range(20))
def test_every_packet_obeys_the_tandem_theorem_at_unequal_rates(seed):
    """W <= W0 + sum (T + Y), with no exception among the packets."""
    rng = np.random.default_rng(seed)
    trace = ref.OnOff(2.0, 5.0, 8.0, 1.0).packets(3000, rng)
    rate = 2.0 * 5.0 / 13.0 / rng.uniform(0.6, 0.95)
    own = ref.waits(trace.times, trace.bits, rate)
    arrivals, lags, latencies = trace.times, np.zeros(len(own)), 0.0
    for _ in range(int(rng.integers(1, 6))):
        own_rate, latency = rate * rng.uniform(1.0, 3.0), rng.uniform(0.0, 2.0)
        jitter, stalls = rng.exponential(rng.uniform(0.0, 3.0), len(own)), rng.exponential(40.0, len(own))
        holdups = ref.Holdups(own_rate, latency, jitter, int(rng.choice([0, 300])), stalls)
        arrivals, lag = ref.lagging_domain(arrivals, trace.bits, rate, holdups)
        lags, latencies = lags + lag, latencies + latency
    assert np.all(arrivals - trace.times <= own + latencies + lags + 1e-6)


def test_zero_jitter_gives_the_deterministic_tandem():
    still = [EnvelopeService(10e6, 1e-3, ExcessTail(1e-300, 1e9)), EnvelopeService(12e6, 2e-3)]
    plain = [RateLatency(10e6, 1e-3), RateLatency(12e6, 2e-3)]
    flow = MarkovOnOff(20e6, 5e-3, 7.5e-3)
    assert delay_bound(flow, still, 1e-3).delay_s == pytest.approx(delay_bound(flow, plain, 1e-3).delay_s, rel=1e-9)
