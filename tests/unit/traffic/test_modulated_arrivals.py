"""The laws of packets whose rate a Markov chain switches: on-off fluids cut into packets, and Poisson processes."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from testbed.errors import ScenarioError
from testbed.scenario.model import (
    Misbehaviour,
    MmppArrivals,
    OnOffArrivals,
)
from testbed.traffic.arrivals import schedule
from testbed.traffic.modulation import OnOffPath, on_off_path, rate_path, stationary
from tests.unit.traffic.processes import CIRCLE, DEMO, MMPP, SIZE, FloatArray, index_of_dispersion

# --- Markov on-off --------------------------------------------------------------------------------------------------


def produced_bits(path: OnOffPath, peak_bps: float, at_s: npt.ArrayLike) -> FloatArray:
    """Fluid that a path has produced at the given times, straight from its definition."""
    moments = np.asarray(at_s, dtype=np.float64)[:, None]
    return peak_bps * np.clip(moments - path.start_s, 0, path.end_s - path.start_s).sum(axis=1)


def shared(arrivals: OnOffArrivals, seed: int, duration_s: float) -> dict[str, OnOffPath]:
    rng = np.random.default_rng(seed)
    return {"g": on_off_path(arrivals.mean_on_s, arrivals.mean_off_s, rng=rng, duration_s=duration_s)}


@settings(max_examples=60)
@given(
    peak_bps=st.floats(1e5, 1e9),
    on_packets=st.floats(0.05, 50),
    off_ratio=st.floats(0.05, 20),
    seed=st.integers(0, 2**32),
)
def test_every_packet_leaves_when_its_last_bit_is_produced_and_nothing_is_lost_between_bursts(
    peak_bps: float, on_packets: float, off_ratio: float, seed: int
) -> None:
    mean_on_s = on_packets * SIZE / peak_bps
    arrivals = OnOffArrivals(peak_bps, mean_on_s, mean_on_s * off_ratio, SIZE)
    duration_s = 100 * mean_on_s * (1 + off_ratio)
    paths = shared(arrivals, seed, duration_s)
    packets = schedule(
        arrivals, seed=seed, duration_s=duration_s, misbehaviour=Misbehaviour("correlated", group="g"), modulators=paths
    )
    fluid = produced_bits(paths["g"], peak_bps, packets.time_s)
    total = produced_bits(paths["g"], peak_bps, [duration_s])[0]
    if len(packets) == 0:
        assert total < SIZE
        return
    initial = SIZE - fluid[0]
    assert -1e-3 < initial <= SIZE
    assert np.allclose(fluid + initial, SIZE * np.arange(1, len(packets) + 1), rtol=1e-9, atol=1e-3 * SIZE)
    assert len(packets) == pytest.approx((total + initial) / SIZE, abs=1.001)


def test_what_a_source_has_ready_when_the_window_opens_is_uniform() -> None:
    part = []
    for seed in range(2000):
        paths = shared(DEMO, seed, 0.2)
        packets = schedule(
            DEMO, seed=seed, duration_s=0.2, misbehaviour=Misbehaviour("correlated", group="g"), modulators=paths
        )
        if len(packets):
            part.append(1 - produced_bits(paths["g"], DEMO.peak_bps, packets.time_s[:1])[0] / SIZE)
    assert stats.kstest(part, "uniform").pvalue > 0.01


def test_on_off_mean_is_the_fluid_mean_not_that_of_packets_restarted_at_each_burst() -> None:
    duration_s = 4000.0
    bursts_s = 0.0125
    offered = schedule(DEMO, seed=31, duration_s=duration_s).rate_bps(duration_s)
    # Standard deviation of the offered fluid over a long window of an alternating exponential process.
    deviation = DEMO.peak_bps * math.sqrt(2 * 0.4 * 0.6 * (0.4 * 0.0075) / duration_s)
    assert abs(offered - 8e6) < 3.5 * deviation
    restarted = 8e6 + 0.5 * SIZE / bursts_s
    assert restarted - 8e6 > 20 * deviation


def test_packets_within_a_burst_are_spaced_at_the_peak_rate_and_never_closer() -> None:
    gaps = np.diff(schedule(DEMO, seed=32, duration_s=20.0).time_s)
    spacing_s = SIZE / DEMO.peak_bps
    assert gaps.min() > spacing_s * (1 - 1e-9)
    # P(no switch-off while one packet is produced), from the exponential on period.
    unbroken = np.mean(gaps < spacing_s * (1 + 1e-9))
    assert unbroken == pytest.approx(math.exp(-spacing_s / DEMO.mean_on_s), abs=0.01)


def test_on_off_dispersion_grows_to_that_of_the_modulating_chain() -> None:
    duration_s = 4000.0
    time_s = schedule(DEMO, seed=33, duration_s=duration_s).time_s
    relaxation_s = 1 / (1 / DEMO.mean_on_s + 1 / DEMO.mean_off_s)
    limit = 2 * DEMO.peak_bps**2 * 0.4 * 0.6 * relaxation_s / (8e6 * SIZE)
    assert index_of_dispersion(time_s, 1.0, duration_s) == pytest.approx(limit, rel=0.12)
    assert index_of_dispersion(time_s, 0.002, duration_s) < 0.5 * limit


def test_on_and_off_periods_are_exponential_with_the_declared_means() -> None:
    path = on_off_path(0.005, 0.0075, rng=np.random.default_rng(34), duration_s=100.0)
    on_s, off_s = path.end_s - path.start_s, path.start_s[1:] - path.end_s[:-1]
    assert stats.kstest(on_s / 0.005, "expon").pvalue > 0.01
    assert stats.kstest(off_s / 0.0075, "expon").pvalue > 0.01


def test_a_window_opens_during_a_burst_as_often_as_the_source_is_on() -> None:
    opened_on = [
        on_off_path(0.005, 0.0075, rng=np.random.default_rng(s), duration_s=0.1).start_s[:1].tolist() == [0.0]
        for s in range(4000)
    ]
    assert np.mean(opened_on) == pytest.approx(0.4, abs=0.027)


# --- Markov-modulated Poisson ---------------------------------------------------------------------------------------


def test_a_chain_spends_its_time_in_proportion_to_how_long_it_stays_and_how_often_it_comes() -> None:
    stays = np.array([1 / 40, 1 / 25, 1 / 100])
    assert np.allclose(stationary(CIRCLE), stays / stays.sum())
    assert stationary(((5.0,),)).tolist() == [1.0]


def test_a_modulated_rate_stays_and_moves_as_its_chain_says() -> None:
    path = rate_path((1.0, 2.0, 3.0), CIRCLE, rng=np.random.default_rng(41), duration_s=200.0)
    stays = np.diff(path.edges_s)
    for rate, exit_per_s in ((1.0, 40), (2.0, 25), (3.0, 100)):
        assert stats.kstest(stays[path.rate_per_s == rate] * exit_per_s, "expon").pvalue > 0.01
    assert np.array_equal(path.rate_per_s[1:], path.rate_per_s[:-1] % 3 + 1)
    starts = [rate_path((1.0, 2.0, 3.0), CIRCLE, rng=np.random.default_rng(s), duration_s=0.01) for s in range(3000)]
    opened = np.bincount([int(path.rate_per_s[0]) - 1 for path in starts]) / 3000
    assert opened == pytest.approx(stationary(CIRCLE), abs=0.03)


def test_a_chain_moves_to_each_state_as_often_as_its_rates_say() -> None:
    switch = ((0.0, 30.0, 10.0), (5.0, 0.0, 0.0), (5.0, 0.0, 0.0))
    path = rate_path((0.0, 1.0, 2.0), switch, rng=np.random.default_rng(42), duration_s=2000.0)
    entered = path.rate_per_s[1:][path.rate_per_s[:-1] == 0.0]
    assert np.mean(entered == 1.0) == pytest.approx(0.75, abs=0.02)


def test_mmpp_packets_come_at_the_rate_of_their_state_and_never_in_a_silent_one() -> None:
    arrivals = MmppArrivals((0.0, 2000.0), ((10.0, 0.0), (20.0, 0.0)), SIZE)
    with pytest.raises(ScenarioError, match="not every state"):
        schedule(arrivals, seed=1, duration_s=1.0)
    arrivals = MmppArrivals((0.0, 2000.0), ((0.0, 10.0), (20.0, 0.0)), SIZE)
    gaps = np.diff(schedule(arrivals, seed=43, duration_s=300.0).time_s)
    # While it sends, gaps are exponential at 2,000/s unless a silence of 100 ms on average comes between.
    assert np.median(gaps) == pytest.approx(math.log(2) / 2000, rel=0.02)
    assert np.mean(gaps > 0.01) == pytest.approx(20 / 2020 * math.exp(-0.1), rel=0.1)


def test_mmpp_dispersion_grows_to_that_of_its_chain() -> None:
    share, rates = stationary(CIRCLE), np.array(MMPP.rates_per_s)
    generator = np.array(CIRCLE)
    np.fill_diagonal(generator, -generator.sum(axis=1))
    mean = float(share @ rates)
    spread = (share * rates) @ np.linalg.inv(np.outer(np.ones(3), share) - generator) @ rates - mean**2
    time_s = schedule(MMPP, seed=44, duration_s=6000.0).time_s
    assert index_of_dispersion(time_s, 2.0, 6000.0) == pytest.approx(1 + 2 * spread / mean, rel=0.1)
    assert time_s.size / 6000.0 == pytest.approx(mean, rel=0.02)


@pytest.mark.parametrize(
    ("rates", "switch", "message"),
    [
        ((1.0,), ((0.0, 1.0), (1.0, 0.0)), "expected 2 rates"),
        ((1.0, -1.0), ((0.0, 1.0), (1.0, 0.0)), "at least 0, one for each state"),
        ((1.0, 2.0), ((0.0, 1.0),), "expected k rows of k rates"),
        ((1.0, 2.0), ((0.0, -1.0), (1.0, 0.0)), "expected k rows of k rates"),
        ((), (), "expected k rows of k rates"),
        ((1.0, 2.0), ((0.0, 1.0), (0.0, 0.0)), "not every state can be reached"),
    ],
    ids=["a rate missing", "negative rate", "a row missing", "negative switching", "no state", "a state for ever"],
)
def test_rates_that_describe_no_chain_are_refused(
    rates: tuple[float, ...], switch: tuple[tuple[float, ...], ...], message: str
) -> None:
    with pytest.raises(ScenarioError, match=message):
        schedule(MmppArrivals(rates, switch, SIZE), seed=1, duration_s=1.0)


def test_a_chain_with_one_state_is_a_poisson_process() -> None:
    time_s = schedule(MmppArrivals((700.0,), ((0.0,),), SIZE), seed=45, duration_s=100.0).time_s
    assert stats.kstest(np.diff(time_s) * 700, "expon").pvalue > 0.01
