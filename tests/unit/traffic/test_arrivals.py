"""The laws that drawn packets must obey. Seeds are fixed, so every verdict here is reproducible."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from testbed.errors import ScenarioError
from testbed.scenario.model import (
    Arrivals,
    Domain,
    Misbehaviour,
    MmppArrivals,
    OnOffArrivals,
    PoissonArrivals,
    RenewalArrivals,
    Scenario,
    Tenant,
    TraceArrivals,
)
from testbed.traffic.arrivals import mean_bps, modulators, schedule, schedules, tenant_seed
from testbed.traffic.modulation import OnOffPath, on_off_path, rate_path, stationary

FloatArray = npt.NDArray[np.float64]

SIZE = 11_200
DEMO = OnOffArrivals(peak_bps=20e6, mean_on_s=0.005, mean_off_s=0.0075, size_bits=SIZE)
POISSON = PoissonArrivals(700.0, SIZE)
RENEWALS = {
    "deterministic": RenewalArrivals(500.0, "deterministic", 0.0, SIZE),
    "erlang": RenewalArrivals(500.0, "erlang", 0.5, SIZE),
    "gamma": RenewalArrivals(500.0, "gamma", 1.7, SIZE),
    "hyperexponential": RenewalArrivals(500.0, "hyperexponential", 3.0, SIZE),
}
CIRCLE = ((0.0, 40.0, 0.0), (0.0, 0.0, 25.0), (100.0, 0.0, 0.0))
"""A chain that runs in a circle, so it is not reversible."""
MMPP = MmppArrivals((200.0, 0.0, 3000.0), CIRCLE, SIZE)
PROCESSES: dict[str, Arrivals] = {"poisson": POISSON, "on-off": DEMO, "mmpp": MMPP, **RENEWALS}

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


@pytest.fixture
def trace(tmp_path: Path) -> TraceArrivals:
    rng = np.random.default_rng(5)
    time_s = np.sort(rng.random(40) ** 3) * 30
    sizes = rng.integers(66, 1514, 40)
    path = tmp_path / "trace.csv"
    rows = "".join(f"{t:.9f},{size}\n" for t, size in zip(time_s, sizes, strict=True))
    path.write_text("time_s,size_bytes\n" + rows)
    return TraceArrivals(path, "packets", 2.0, 32, 8 * 1514)


def counts(time_s: FloatArray, window_s: float, duration_s: float) -> npt.NDArray[np.int64]:
    return np.bincount((time_s / window_s).astype(int), minlength=round(duration_s / window_s))


def index_of_dispersion(time_s: FloatArray, window_s: float, duration_s: float) -> float:
    each = counts(time_s, window_s, duration_s)
    return float(each.var() / each.mean())


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


# --- Markov on-off --------------------------------------------------------------------------------------------------


def produced_bits(path: OnOffPath, peak_bps: float, at_s: npt.ArrayLike) -> FloatArray:
    """Fluid that a path has produced at the given times, straight from its definition."""
    moments = np.asarray(at_s, dtype=np.float64)[:, None]
    return peak_bps * np.clip(moments - path.start_s, 0, path.end_s - path.start_s).sum(axis=1)


def shared(arrivals: OnOffArrivals, seed: int, duration_s: float) -> dict[str, OnOffPath]:
    rng = np.random.default_rng(seed)
    return {"g": on_off_path(arrivals.mean_on_s, arrivals.mean_off_s, rng=rng, duration_s=duration_s)}


@settings(max_examples=60, deadline=None)
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


# --- correlated bursts ----------------------------------------------------------------------------------------------


def scenario(*tenants: Tenant, seed: int = 9) -> Scenario:
    return Scenario("s", (Domain("d1", 40_000_000, compute=True),), tenants, seed, 1.0, 1.0)


def tenant(name: str, arrivals: Arrivals = DEMO, misbehaviour: Misbehaviour | None = None) -> Tenant:
    return Tenant(name, arrivals, "d1", misbehaviour=misbehaviour)


TOGETHER = Misbehaviour("correlated", group="flash")


def test_correlated_tenants_burst_together_and_others_do_not() -> None:
    half = OnOffArrivals(10e6, DEMO.mean_on_s, DEMO.mean_off_s, SIZE)
    drawn = schedules(
        scenario(tenant("a", misbehaviour=TOGETHER), tenant("b", half, TOGETHER), tenant("c")),
        window=0,
        duration_s=200.0,
    )
    each = {number: counts(packets.time_s, 0.01, 200.0) for number, packets in drawn.items()}
    assert np.corrcoef(each[1], each[2])[0, 1] > 0.95
    assert abs(np.corrcoef(each[1], each[3])[0, 1]) < 0.1
    assert len(drawn[2]) == pytest.approx(len(drawn[1]) / 2, abs=1.5)


def test_correlated_tenants_conform_again_when_asked_to() -> None:
    drawn = schedules(
        scenario(tenant("a", misbehaviour=TOGETHER), tenant("b", misbehaviour=TOGETHER)),
        window=0,
        duration_s=100.0,
        conforming=True,
    )
    each = [counts(packets.time_s, 0.01, 100.0) for packets in drawn.values()]
    assert abs(np.corrcoef(each[0], each[1])[0, 1]) < 0.1


def test_two_groups_burst_apart() -> None:
    other = Misbehaviour("correlated", group="crowd")
    both = scenario(tenant("a", misbehaviour=TOGETHER), tenant("b", misbehaviour=other))
    paths = modulators(both, window=0, duration_s=1.0, seed=9)
    assert set(paths) == {"flash", "crowd"}
    assert not np.array_equal(paths["flash"].start_s, paths["crowd"].start_s)


@pytest.mark.parametrize(
    ("arrivals", "message"),
    [
        (POISSON, "tenant b: found correlated bursts without on-off arrivals"),
        (OnOffArrivals(20e6, 0.001, 0.0075, SIZE), "found mean periods"),
    ],
    ids=["no bursts", "other periods"],
)
def test_a_tenant_that_cannot_share_bursts_is_refused(arrivals: Arrivals, message: str) -> None:
    pair = scenario(tenant("a", misbehaviour=TOGETHER), tenant("b", arrivals, TOGETHER))
    with pytest.raises(ScenarioError, match=message):
        schedules(pair, window=0, duration_s=1.0)


def test_correlated_bursts_without_the_shared_process_are_refused() -> None:
    with pytest.raises(ScenarioError, match="group 'flash'"):
        schedule(DEMO, seed=1, duration_s=1.0, misbehaviour=TOGETHER)


# --- streams --------------------------------------------------------------------------------------------------------


def test_adding_a_tenant_changes_no_other_tenants_packets() -> None:
    one = schedules(scenario(tenant("a")), window=1, duration_s=2.0)
    two = schedules(scenario(tenant("a"), tenant("b", POISSON)), window=1, duration_s=2.0)
    assert np.array_equal(one[1].time_s, two[1].time_s)


def test_tenants_windows_and_runs_have_streams_of_their_own() -> None:
    twins = scenario(tenant("a"), tenant("b"))
    drawn = [
        packets.time_s[:50].tobytes()
        for window, seed in itertools.product((0, 1), (9, 10))
        for packets in schedules(twins, window=window, duration_s=2.0, seed=seed).values()
    ]
    assert len(set(drawn)) == 8


def test_the_scenarios_seed_is_used_unless_another_is_given() -> None:
    alone = scenario(tenant("a"), seed=42)
    drawn = schedules(alone, window=3, duration_s=1.0)[1]
    assert np.array_equal(drawn.time_s, schedule(DEMO, seed=tenant_seed(42, 1, 3), duration_s=1.0).time_s)


# --- traces ---------------------------------------------------------------------------------------------------------


def test_a_window_as_long_as_the_trace_holds_each_of_its_packets_once(trace: TraceArrivals) -> None:
    period_s = 40 / mean_packets_per_s(trace)
    packets = schedule(trace, seed=1, duration_s=period_s)
    recorded = np.loadtxt(trace.path, delimiter=",", skiprows=1)
    assert sorted(packets.size_bits // 8) == sorted(recorded[:, 1])


def mean_packets_per_s(trace: TraceArrivals) -> float:
    recorded = np.loadtxt(trace.path, delimiter=",", skiprows=1)[:, 0] / trace.speed_up
    return float((recorded.size - 1) / (recorded[-1] - recorded[0]))


def test_a_trace_keeps_its_order_and_gaps_compressed_by_the_speed_up(trace: TraceArrivals) -> None:
    recorded = np.loadtxt(trace.path, delimiter=",", skiprows=1)
    packets = schedule(trace, seed=1, duration_s=100.0)
    first = int(np.flatnonzero(recorded[:, 1] == packets.size_bits[0] // 8)[0])
    following = (first + np.arange(len(packets))) % 40
    assert np.array_equal(packets.size_bits // 8, recorded[following, 1])
    inside = following[1:] > 0
    gaps = np.diff(recorded[:, 0], prepend=np.nan)[following[1:]] / trace.speed_up
    assert np.allclose(np.diff(packets.time_s)[inside], gaps[inside], atol=1e-9)


def test_a_trace_starts_at_a_random_point_so_that_seeds_are_different_samples(trace: TraceArrivals) -> None:
    period_s = 40 / mean_packets_per_s(trace)
    drawn = np.array([len(schedule(trace, seed=s, duration_s=period_s / 10)) for s in range(1500)])
    assert abs(drawn.mean() - 4) < 3.5 * drawn.std() / math.sqrt(drawn.size)
    assert drawn.std() > 1


def test_a_window_longer_than_the_trace_repeats_it(trace: TraceArrivals) -> None:
    period_s = 40 / mean_packets_per_s(trace)
    packets = schedule(trace, seed=2, duration_s=10 * period_s)
    assert len(packets) == 400
    assert np.allclose(packets.time_s[40:], packets.time_s[:-40] + period_s)
    assert packets.rate_bps(10 * period_s) == pytest.approx(mean_bps(trace))


def test_a_trace_can_be_flooded_too(trace: TraceArrivals) -> None:
    flood = Misbehaviour("flood", offered_bps=5 * mean_bps(trace))
    period_s = 40 / mean_packets_per_s(trace)
    assert len(schedule(trace, seed=2, duration_s=period_s, misbehaviour=flood)) == 200
