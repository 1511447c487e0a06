"""Derived guardrails hold for the arrivals they were derived from, and are not larger than they need to be."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from testbed.calculus import MarkovPoisson
from testbed.scenario import guardrails
from testbed.scenario.guardrails import LEAST_PACKETS, burst_bits, decay_per_bit, meter_rate_bps, queue_bits
from testbed.scenario.model import (
    Arrivals,
    MmppArrivals,
    OnOffArrivals,
    PoissonArrivals,
    RenewalArrivals,
    TraceArrivals,
)
from testbed.traffic.arrivals import mean_bps, schedule

ON_OFF = OnOffArrivals(20e6, 0.005, 0.0075, 11_200)
PROCESSES: dict[str, Arrivals] = {
    "on-off": ON_OFF,
    "poisson": PoissonArrivals(1000.0, 8000),
    "erlang": RenewalArrivals(1000.0, "erlang", 0.5, 8000),
    "gamma": RenewalArrivals(1000.0, "gamma", 2.0, 8000),
    "hyperexponential": RenewalArrivals(1000.0, "hyperexponential", 3.0, 8000),
}


def backlog_bits(arrivals: Arrivals, rate_bps: float, duration_s: float, seed: int) -> np.ndarray:
    """Backlog at rate `rate_bps` that each packet finds."""
    packets = schedule(arrivals, seed=seed, duration_s=duration_s)
    before = np.cumsum(packets.size_bits) - packets.size_bits - rate_bps * packets.time_s
    return before - np.minimum.accumulate(before)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_decay_bounds_the_backlog_that_simulated_packets_find(name: str) -> None:
    arrivals = PROCESSES[name]
    rate = 1.25 * mean_bps(arrivals)
    theta = decay_per_bit(arrivals, rate)
    backlog = np.concatenate([backlog_bits(arrivals, rate, 300.0, seed) for seed in range(3)])
    for probability in (0.1, 0.01):
        level = -math.log(probability) / theta
        seen = float(np.mean(backlog > level))
        # Fluid decay ignores the packet being cut: its level is reached one packet later.
        assert seen <= probability * math.exp(theta * arrivals.size_bits) * 1.2
        # A decay that is far too small would make buckets far too large.
        assert seen >= probability / 10


def test_the_decay_is_lundbergs_for_poisson_packets() -> None:
    # M/D/1 at load 0.7: theta* L solves load (e^x - 1) = x, x = 0.6754...
    load, size = 0.7, 1000
    x = decay_per_bit(PoissonArrivals(load * 1e6 / size, size), 1e6) * size
    assert load * math.expm1(x) == pytest.approx(x, rel=1e-9)
    assert 0.6 < x < 0.7


def test_a_gamma_gap_of_cv_1_is_a_poisson_process() -> None:
    poisson = decay_per_bit(PoissonArrivals(1000.0, 8000), 10e6)
    assert decay_per_bit(RenewalArrivals(1000.0, "gamma", 1.0, 8000), 10e6) == pytest.approx(poisson, rel=1e-9)


def test_the_bucket_of_the_on_off_example_is_what_the_formula_says() -> None:
    theta = 1 / (0.005 * 11e6) - 1 / (0.0075 * 9e6)
    expected = -math.log(1e-7) / theta + 2 * 11_200 + 9_000
    assert burst_bits(ON_OFF, 9_000_000) == math.ceil(expected / 1000) * 1000 == 4_819_000


@pytest.mark.parametrize(
    "arrivals", [RenewalArrivals(100.0, "deterministic", 0.0, 8000), OnOffArrivals(5e5, 1, 1, 8000)]
)
def test_a_flow_that_never_exceeds_the_meter_still_gets_ten_packets(arrivals: Arrivals) -> None:
    assert burst_bits(arrivals, 900_000) == LEAST_PACKETS * 8000


MODULATED = MmppArrivals((200.0, 0.0, 3000.0), ((0, 20.0, 0.0), (0, 0, 100.0), (200.0, 0, 0)), 8000)
"""Goes round in one direction, so that its reversal in time is another chain."""


@pytest.mark.parametrize("probability", [0.1, 0.01, 1e-3])
def test_the_bucket_of_a_modulated_process_bounds_the_backlog_its_packets_find(
    monkeypatch: pytest.MonkeyPatch, probability: float
) -> None:
    monkeypatch.setattr(guardrails, "OVERFLOW", probability)
    rate = 1.5 * mean_bps(MODULATED)
    level = guardrails.burst_bits(MODULATED, round(rate)) - 2 * 8000 - 1e-3 * rate
    seen = np.mean(np.concatenate([backlog_bits(MODULATED, rate, 3000.0, seed) for seed in range(2)]) > level)
    assert probability / 20 <= seen <= 1.2 * probability


def test_the_bucket_of_a_modulated_process_is_what_the_calculus_says() -> None:
    rate = 1.5 * mean_bps(MODULATED)
    flow = MarkovPoisson(MODULATED.rates_per_s, 8000, MODULATED.switch_per_s)
    expected = flow.martingale(rate, "packet").tail.delay(guardrails.OVERFLOW) * rate + 2 * 8000 + 1e-3 * rate
    assert burst_bits(MODULATED, round(rate)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_conforming_tenant_loses_next_to_nothing_to_its_derived_bucket(name: str) -> None:
    arrivals = PROCESSES[name]
    meter = meter_rate_bps(mean_bps(arrivals), round(1.5 * mean_bps(arrivals)))
    bucket = burst_bits(arrivals, meter)
    packets = schedule(arrivals, seed=5, duration_s=300.0)
    tokens, last_s, dropped = float(bucket), 0.0, 0
    for time_s, size in zip(packets.time_s.tolist(), packets.size_bits.tolist(), strict=True):
        tokens = min(float(bucket), tokens + meter * (time_s - last_s))
        last_s = time_s
        if tokens < size:
            dropped += 1
        else:
            tokens -= size
    assert dropped <= 1e-4 * len(packets)


def test_a_trace_gets_the_largest_backlog_of_its_own_repetition(tmp_path: Path) -> None:
    # 50 packets at once at the end and 50 at the beginning of the next round, in between one every 10 ms.
    rows = [(0.0, 1000)] * 50 + [(i / 100, 1000) for i in range(1, 500)] + [(5.0, 1000)] * 50
    path = tmp_path / "t.csv"
    path.write_text("time_s,size_bytes\n" + "".join(f"{time},{size}\n" for time, size in rows))
    arrivals = TraceArrivals(path, "packets", 1.0, 0, 8000)
    bucket = burst_bits(arrivals, 1_500_000)
    assert 100 * 8000 - 1_500_000 * 0.02 < bucket < 103 * 8000


def test_the_meter_is_half_way_and_the_queue_holds_the_burst_and_50_ms() -> None:
    assert meter_rate_bps(8e6, 10_000_000) == 9_000_000
    assert meter_rate_bps(8_000_300.0, 10_000_000) == 9_000_000
    assert queue_bits(4_819_000, 10_000_000) == 5_319_000


def test_a_nearly_saturated_meter_is_answered_with_a_huge_bucket_not_with_an_endless_search() -> None:
    assert burst_bits(PoissonArrivals(1000.0, 8000), 8_000_001) > 10**9
