from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.telemetry import lag
from testbed.telemetry.samples import FloatArray, Replay, TenantSamples
from tests.unit.telemetry import tandem

ROUNDING_S = 1e-9


def random_tandem(seed: int) -> tuple[TenantSamples, list[float], tuple[float, ...]]:
    """Random sizes, unequal rates, a random latency up to T in each domain, and stalls the domain did not declare."""
    rng = np.random.default_rng(seed)
    n, domains = 400, int(rng.integers(1, 5))
    rates = (10e6 * rng.uniform(1.0, 3.0, domains)).tolist()
    size_bits = rng.integers(800, 12_000, n).astype(np.int32)
    mean_gap = size_bits.mean() / (min(rates) * rng.uniform(0.5, 0.98))
    arrival = np.cumsum(rng.exponential(mean_gap, n) * (rng.random(n) < 0.3) / 0.3)
    declared = tuple(rng.uniform(0.0, 2e-3, domains).tolist())
    borders = [arrival]
    for rate, latency in zip(rates, declared, strict=True):
        stall = (float(rng.uniform(arrival[0], arrival[-1])), float(rng.exponential(0.02)))
        start = tandem.server(borders[-1], size_bits / rate, stall if rng.random() < 0.8 else None)
        borders.append(np.maximum.accumulate(start + rng.uniform(0.0, latency, n)))
    return tandem.window(arrival, np.stack(borders, axis=1), size_bits=size_bits), rates, declared


def shortfall_s(samples: TenantSamples, replay: Replay, excess_s: FloatArray) -> float:
    """How far the largest wait lies above W0 + sum (T + excess); negative where the theorem holds with room."""
    return float(np.max(samples.network_s - (replay.ideal_s + sum(replay.latency_s) + excess_s.sum(axis=1))))


@given(st.integers(0, 2**32 - 1))
def test_no_packet_waits_longer_than_its_ideal_wait_plus_latencies_and_lingering_excesses(seed: int) -> None:
    samples, rates, declared = random_tandem(seed)
    replay = lag.replay(samples, min(rates), declared)
    assert shortfall_s(samples, replay, replay.excess_s) <= ROUNDING_S


def test_the_lag_at_the_packet_alone_does_not_bound_its_wait() -> None:
    broken = 0
    for seed in range(40):
        samples, rates, declared = random_tandem(seed)
        replay = lag.replay(samples, min(rates), declared)
        broken += shortfall_s(samples, replay, replay.lag_s) > 1e-4
    assert broken > 5


def test_idle_time_taken_at_a_faster_local_rate_does_not_bound_the_wait() -> None:
    broken = 0
    for seed in range(60):
        samples, rates, declared = random_tandem(seed)
        excess = np.empty_like(samples.domain_s)
        for d, (rate, latency) in enumerate(zip(rates, declared, strict=True)):
            server = lag.fifo(samples.border_s[:, d], samples.size_bits, rate)
            late = lag.lag_s(samples.border_s[:, d + 1], server.start_s, latency)
            excess[:, d] = lag.lingering_s(late, server.idle_s)
        replay = lag.replay(samples, min(rates), declared)
        broken += shortfall_s(samples, replay, excess) > 1e-4
    assert broken > 0


@given(st.integers(0, 2**32 - 1))
def test_a_tandem_without_latency_waits_exactly_as_one_server_of_the_smallest_rate(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rates = (1e6 * rng.uniform(1, 4, 3)).tolist()
    size_bits = rng.integers(800, 12_000, 200).astype(np.int32)
    borders = [np.cumsum(rng.exponential(0.006, 200))]
    for rate in rates:
        borders.append(tandem.server(borders[-1], size_bits / rate))
    samples = tandem.window(borders[0], np.stack(borders, axis=1), size_bits=size_bits)
    replay = lag.replay(samples, min(rates), (0.0, 0.0, 0.0))
    np.testing.assert_allclose(replay.ideal_s, samples.network_s, atol=ROUNDING_S)


def test_a_server_by_hand() -> None:
    # 1 Mb/s, 1 ms a packet: two back to back, then 0.5 ms idle, then one more.
    server = lag.fifo(np.array([0.0, 0.0, 0.0025]), np.full(3, 1000, np.int32), 1e6)
    np.testing.assert_allclose(server.start_s, [0.0, 0.001, 0.0025])
    np.testing.assert_allclose(server.finish_s, [0.001, 0.002, 0.0035])
    np.testing.assert_allclose(server.idle_s, [0.0, 0.0, 0.0005])


def test_excess_lingers_until_the_ideal_server_was_idle_for_as_long() -> None:
    excess = lag.lingering_s(
        np.array([0.0, 0.010, 0.0, 0.002, 0.0, 0.0]), np.array([0.0, 0.0, 0.004, 0.0, 0.003, 0.01])
    )
    np.testing.assert_allclose(excess, [0.0, 0.010, 0.006, 0.006, 0.003, 0.0], atol=1e-15)


def test_a_lost_packet_does_not_consume_the_ideal_server_of_the_domain_that_lost_it() -> None:
    # Three packets of 1 ms at once; domain 0 loses the second, domain 1 the third.
    nan = np.nan
    border = np.array([[0.0, 0.0, 0.0], [0.0, nan, nan], [0.0, 0.005, nan]])
    samples = tandem.window(np.zeros(3), border, size_bits=1000)
    replay = lag.replay(samples, 1e6, (0.0, 0.0))
    np.testing.assert_allclose(replay.ideal_s, [0.0, nan, 0.001])
    np.testing.assert_allclose(replay.lag_s, [[0.0, 0.0], [nan, nan], [0.004, nan]], atol=1e-15)
    np.testing.assert_allclose(replay.excess_s, [[0.0, 0.0], [nan, nan], [0.004, nan]], atol=1e-15)


def test_the_replay_of_intended_times_waits_for_the_schedule_and_not_for_the_sender() -> None:
    intended = np.array([0.0, 0.010, 0.020])
    border = np.stack([np.full(3, 0.020), np.array([0.020, 0.021, 0.022])], axis=1)
    samples = tandem.window(intended, border, sent_s=np.full(3, 0.020), size_bits=1000)
    replay = lag.replay(samples, 1e6, (0.0,))
    np.testing.assert_allclose(replay.ideal_intended_s, [0.0, 0.0, 0.0])
    np.testing.assert_allclose(replay.ideal_s, [0.0, 0.001, 0.002])


def test_packets_that_overtook_are_served_in_the_order_they_arrived() -> None:
    border = np.array([[0.002, 0.003], [0.001, 0.001]])
    samples = tandem.window(np.array([0.0, 0.001]), border, size_bits=2000)
    np.testing.assert_allclose(lag.replay(samples, 1e6, (0.0,)).ideal_s, [0.001, 0.0], atol=1e-15)


def test_a_window_without_packets_replays_to_nothing() -> None:
    replay = lag.replay(tandem.window(np.empty(0), np.empty((0, 3))), 1e6, (0.0, 0.0))
    assert (replay.ideal_s.shape, replay.excess_s.shape) == ((0,), (0, 2))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_that_serves_nothing_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="expected a positive rate"):
        lag.fifo(np.zeros(1), np.ones(1, np.int32), rate)


@pytest.mark.parametrize("arrivals", [[1.0, 0.0], [0.0, float("nan")]], ids=["decreasing", "not seen"])
def test_arrivals_out_of_order_are_refused(arrivals: list[float]) -> None:
    with pytest.raises(ValueError, match="sorted by time"):
        lag.fifo(np.array(arrivals), np.ones(2, np.int32), 1e6)


def test_a_latency_for_each_domain_is_required() -> None:
    with pytest.raises(ValueError, match="2 domains, found 1"):
        lag.replay(tandem.window(np.empty(0), np.empty((0, 3))), 1e6, (0.0,))
