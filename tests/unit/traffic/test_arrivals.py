"""The laws that drawn packets must obey. Seeds are fixed, so every verdict here is reproducible."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from testbed.errors import ScenarioError
from testbed.scenario.model import (
    Arrivals,
    Misbehaviour,
    RenewalArrivals,
)
from testbed.traffic.arrivals import mean_bps, schedule
from tests.unit.traffic.processes import (
    POISSON,
    PROCESSES,
    RENEWALS,
    SIZE,
    FloatArray,
    index_of_dispersion,
)

EQUILIBRIUM_WINDOWS = 4000


def balanced_hyperexponential(cv: float) -> tuple[float, float, float]:
    """Probability and means of the two phases for mean gap 1."""
    often = (1 + math.sqrt((cv**2 - 1) / (cv**2 + 1))) / 2
    return often, 1 / (2 * often), 1 / (2 * (1 - often))


def hyperexponential_cdf(x: FloatArray) -> FloatArray:
    p, short, long = balanced_hyperexponential(3.0)
    return 1 - p * np.exp(-x / short) - (1 - p) * np.exp(-x / long)


GAP_LAWS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "erlang": stats.gamma(4, scale=1 / 4).cdf,
    "gamma": stats.gamma(1 / 1.7**2, scale=1.7**2).cdf,
    "hyperexponential": hyperexponential_cdf,
}


# --- what every process has in common -------------------------------------------------------------------------------


@pytest.mark.parametrize("arrivals", PROCESSES.values(), ids=PROCESSES)
def test_the_same_seed_draws_the_same_packets_and_another_seed_others(arrivals: Arrivals) -> None:
    first, again, other = (schedule(arrivals, seed=s, duration_s=5.0) for s in (1, 1, 2))
    assert np.array_equal(first.time_s, again.time_s)
    assert not np.array_equal(first.time_s[:20], other.time_s[:20])


@pytest.mark.parametrize("arrivals", PROCESSES.values(), ids=PROCESSES)
def test_a_longer_window_begins_with_the_shorter_one(arrivals: Arrivals) -> None:
    short, long = (schedule(arrivals, seed=3, duration_s=d) for d in (2.0, 61.0))
    assert len(short) > 100
    assert np.array_equal(short.time_s, long.time_s[: len(short)])
    assert long.time_s[len(short)] >= 2.0


@pytest.mark.parametrize("arrivals", PROCESSES.values(), ids=PROCESSES)
def test_packets_lie_in_the_window_and_have_the_declared_size(arrivals: Arrivals) -> None:
    packets = schedule(arrivals, seed=4, duration_s=3.0)
    assert packets.time_s.min() >= 0
    assert packets.time_s.max() < 3.0
    assert set(packets.size_bits.tolist()) == {SIZE}
    assert packets.last_of_request.all()


@pytest.mark.parametrize("arrivals", PROCESSES.values(), ids=PROCESSES)
def test_a_window_opens_in_equilibrium_so_its_first_moments_offer_the_mean_rate(arrivals: Arrivals) -> None:
    window_s = 0.0033
    drawn = np.array([len(schedule(arrivals, seed=s, duration_s=window_s)) for s in range(EQUILIBRIUM_WINDOWS)])
    expected = mean_bps(arrivals) / SIZE * window_s
    assert abs(drawn.mean() - expected) < 3.5 * drawn.std() / math.sqrt(drawn.size)


@pytest.mark.parametrize("arrivals", PROCESSES.values(), ids=PROCESSES)
def test_a_window_without_room_for_a_packet_is_empty(arrivals: Arrivals) -> None:
    assert len(schedule(arrivals, seed=1, duration_s=1e-9)) == 0


@pytest.mark.parametrize("arrivals", PROCESSES.values(), ids=PROCESSES)
def test_a_flood_is_the_declared_process_with_its_time_compressed(arrivals: Arrivals) -> None:
    flood = Misbehaviour("flood", offered_bps=3 * mean_bps(arrivals))
    fast = schedule(arrivals, seed=6, duration_s=4.0, misbehaviour=flood)
    declared = schedule(arrivals, seed=6, duration_s=12.0)
    assert np.allclose(fast.time_s, declared.time_s / 3, rtol=1e-12, atol=0)


def test_a_tenant_that_must_conform_sends_what_it_declared() -> None:
    flood = Misbehaviour("flood", offered_bps=50e6)
    tame = schedule(POISSON, seed=6, duration_s=2.0, misbehaviour=flood, conforming=True)
    assert np.array_equal(tame.time_s, schedule(POISSON, seed=6, duration_s=2.0).time_s)


def test_a_flood_without_a_rate_is_refused() -> None:
    with pytest.raises(ScenarioError, match="offered rate"):
        schedule(POISSON, seed=1, duration_s=1.0, misbehaviour=Misbehaviour("flood"))


# --- Poisson --------------------------------------------------------------------------------------------------------


def test_poisson_gaps_are_exponential_and_independent() -> None:
    time_s = schedule(POISSON, seed=11, duration_s=200.0).time_s
    gaps = np.diff(time_s) * POISSON.rate_per_s
    assert stats.kstest(gaps, "expon").pvalue > 0.01
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 3.5 / math.sqrt(gaps.size)


@pytest.mark.parametrize("window_s", [0.01, 0.1, 1.0])
def test_poisson_counts_have_dispersion_one_at_every_scale(window_s: float) -> None:
    time_s = schedule(POISSON, seed=12, duration_s=400.0).time_s
    windows = 400.0 / window_s
    assert abs(index_of_dispersion(time_s, window_s, 400.0) - 1) < 3.5 * math.sqrt(2 / windows)


def test_poisson_mean_is_the_declared_rate() -> None:
    n = len(schedule(POISSON, seed=13, duration_s=1000.0))
    assert abs(n - 700_000) < 3.5 * math.sqrt(700_000)


# --- renewal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", GAP_LAWS)
def test_renewal_gaps_follow_the_declared_law(gap: str) -> None:
    arrivals = RENEWALS[gap]
    gaps = np.diff(schedule(arrivals, seed=21, duration_s=100.0).time_s) * arrivals.rate_per_s
    assert stats.kstest(gaps, GAP_LAWS[gap]).pvalue > 0.01


@pytest.mark.parametrize("gap", GAP_LAWS)
def test_renewal_gaps_have_the_declared_mean_and_coefficient_of_variation(gap: str) -> None:
    arrivals = RENEWALS[gap]
    gaps = np.diff(schedule(arrivals, seed=22, duration_s=2000.0).time_s)
    assert gaps.mean() * arrivals.rate_per_s == pytest.approx(1, abs=0.015)
    assert gaps.std() / gaps.mean() == pytest.approx(arrivals.cv, rel=0.02)


@pytest.mark.parametrize("gap", GAP_LAWS)
def test_the_wait_for_the_first_packet_is_what_is_left_of_a_length_biased_gap(gap: str) -> None:
    arrivals = RENEWALS[gap]
    first = np.array([schedule(arrivals, seed=s, duration_s=0.2).time_s[0] for s in range(EQUILIBRIUM_WINDOWS)])
    grid = np.linspace(0, 60, 60_001)
    survival = 1 - GAP_LAWS[gap](grid)
    equilibrium = np.concatenate(([0.0], np.cumsum((survival[1:] + survival[:-1]) / 2) * grid[1]))
    assert stats.kstest(first * arrivals.rate_per_s, lambda x: np.interp(x, grid, equilibrium)).pvalue > 0.01


def test_deterministic_gaps_are_equal_and_their_phase_is_uniform() -> None:
    arrivals = RENEWALS["deterministic"]
    assert np.allclose(np.diff(schedule(arrivals, seed=1, duration_s=10.0).time_s), 0.002, rtol=1e-9)
    phases = [schedule(arrivals, seed=s, duration_s=0.01).time_s[0] / 0.002 for s in range(1000)]
    assert stats.kstest(phases, "uniform").pvalue > 0.01


@pytest.mark.parametrize("gap", ["gamma", "hyperexponential"])
def test_long_windows_of_a_renewal_process_have_the_dispersion_of_its_squared_variation(gap: str) -> None:
    arrivals = RENEWALS[gap]
    time_s = schedule(arrivals, seed=23, duration_s=4000.0).time_s
    assert index_of_dispersion(time_s, 2.0, 4000.0) == pytest.approx(arrivals.cv**2, rel=0.1)


@pytest.mark.parametrize(
    ("arrivals", "message"),
    [
        (RenewalArrivals(10.0, "erlang", 0.6, SIZE), "found cv 0.6"),
        (RenewalArrivals(10.0, "hyperexponential", 0.9, SIZE), "found cv 0.9"),
        (RenewalArrivals(10.0, "pareto", 2.0, SIZE), "found 'pareto'"),
    ],
    ids=["erlang without a whole number of stages", "hyperexponential that would be regular", "unknown law"],
)
def test_a_gap_law_that_does_not_exist_is_refused(arrivals: RenewalArrivals, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        schedule(arrivals, seed=1, duration_s=1.0)
