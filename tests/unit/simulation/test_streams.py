"""Streams are the schedules of a run, read in pieces; correlation keeps every tenant's own law."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from testbed.errors import ScenarioError
from testbed.scenario.model import (
    Arrivals,
    Misbehaviour,
    MmppArrivals,
    OnOffArrivals,
    PoissonArrivals,
    RenewalArrivals,
    TraceArrivals,
)
from testbed.simulation.choices import Choices
from testbed.simulation.clock import PS_PER_S
from testbed.simulation.network import network
from testbed.simulation.paths import CorrelatedPath
from testbed.simulation.streams import Stream, Visiting, stream
from testbed.traffic.arrivals import group_seed, schedule, schedules, tenant_seed
from testbed.traffic.modulation import Moves, correlated_states, on_off_path, state_before, stationary
from tests.unit.simulation.systems import BURSTY, SMOOTH, scenario, tenant

DURATION_S = 20.0
CIRCLE = ((0.0, 40.0, 0.0), (0.0, 0.0, 25.0), (100.0, 0.0, 0.0))
WAVES = MmppArrivals((0.0, 20_000.0, 1500.0), ((0, 60.0, 20.0), (90.0, 0, 50.0), (30.0, 40.0, 0)), 800)
NS = 1000

PROCESSES: dict[str, Arrivals] = {
    "Poisson": SMOOTH,
    "constant gaps": RenewalArrivals(700.0, "deterministic", 0.0, 800),
    "Gamma gaps": RenewalArrivals(700.0, "gamma", 1.5, 800),
    "hyperexponential gaps": RenewalArrivals(700.0, "hyperexponential", 2.5, 800),
    "on-off": BURSTY,
    "MMPP": MmppArrivals((0.0, 5000.0, 300.0), ((0, 10.0, 1.0), (20.0, 0, 5.0), (3.0, 1.0, 0)), 800),
    "MMPP of one state": MmppArrivals((500.0,), ((0.0,),), 800),
}


def read(source: Stream, duration_s: float, pieces: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ends = np.rint(np.linspace(0, duration_s, pieces + 1)[1:] * PS_PER_S).astype(np.int64)
    parts = [source.until(int(end)) for end in ends]
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("pieces", [1, 97])
@pytest.mark.parametrize("name", PROCESSES)
def test_a_stream_is_the_schedule_that_senders_follow(name: str, pieces: int) -> None:
    arrivals = PROCESSES[name]
    expected = schedule(arrivals, seed=tenant_seed(9, 2, 1), duration_s=DURATION_S)
    times, sizes, ends = read(stream(arrivals, tenant_seed(9, 2, 1)), DURATION_S, pieces)
    assert times.size == len(expected) > 1000
    assert np.abs(times - expected.time_s * PS_PER_S).max() < NS
    assert np.array_equal(sizes, expected.size_bits)
    assert ends.all()


@pytest.mark.parametrize("pieces", [1, 31])
def test_a_trace_is_repeated_as_for_senders(tmp_path: Path, pieces: int) -> None:
    rng = np.random.default_rng(4)
    rows = zip(np.cumsum(rng.exponential(0.01, 300)), rng.integers(70, 1500, 300), strict=True)
    path = tmp_path / "trace.csv"
    path.write_text("time_s,size_bytes\n" + "".join(f"{time:.6f},{size}\n" for time, size in rows))
    arrivals = TraceArrivals(path, "packets", 2.0, 0, 12_112)
    expected = schedule(arrivals, seed=tenant_seed(9, 2, 1), duration_s=DURATION_S)
    times, sizes, ends = read(stream(arrivals, tenant_seed(9, 2, 1)), DURATION_S, pieces)
    assert np.abs(times - expected.time_s * PS_PER_S).max() < NS
    assert np.array_equal(sizes, expected.size_bits)
    assert np.array_equal(ends, expected.last_of_request)


@pytest.mark.parametrize("name", ["Poisson", "on-off"])
def test_a_flood_is_the_schedule_that_senders_follow(name: str) -> None:
    breach = Misbehaviour("flood", offered_bps=17e6)
    expected = schedule(PROCESSES[name], seed=tenant_seed(9, 2, 1), duration_s=2.0, misbehaviour=breach)
    times, *_ = read(stream(PROCESSES[name], tenant_seed(9, 2, 1), misbehaviour=breach), 2.0, 13)
    assert np.abs(times - expected.time_s * PS_PER_S).max() < NS


def test_a_group_without_a_strength_shares_the_path_that_senders_share() -> None:
    breach, group = Misbehaviour("correlated", group="g"), group_seed(9, "g", 1)
    path = on_off_path(BURSTY.mean_on_s, BURSTY.mean_off_s, rng=np.random.default_rng(group), duration_s=DURATION_S)
    expected = schedule(
        BURSTY, seed=tenant_seed(9, 2, 1), duration_s=DURATION_S, misbehaviour=breach, modulators={"g": path}
    )
    times, *_ = read(stream(BURSTY, tenant_seed(9, 2, 1), misbehaviour=breach, group=group), DURATION_S, 13)
    assert np.abs(times - expected.time_s * PS_PER_S).max() < NS


def correlated(number: int, strength: float | None, arrivals: Arrivals = BURSTY) -> Stream:
    breach = Misbehaviour("correlated", group="g")
    return stream(
        arrivals, tenant_seed(9, number, 1), misbehaviour=breach, group=group_seed(9, "g", 1), strength=strength
    )


def counts(
    number: int, strength: float, window_s: float, duration_s: float = 400.0, arrivals: Arrivals = BURSTY
) -> np.ndarray:
    times = correlated(number, strength, arrivals).until(round(duration_s * PS_PER_S)).time_ps
    return np.bincount(times // round(window_s * PS_PER_S), minlength=round(duration_s / window_s))


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("arrivals", [BURSTY, WAVES], ids=["on-off", "MMPP"])
def test_correlation_leaves_each_tenants_own_law_alone(arrivals: Arrivals, strength: float) -> None:
    independent = stream(arrivals, tenant_seed(10, 1, 1)).until(400 * PS_PER_S).time_ps
    expected = np.bincount(independent // (PS_PER_S // 20), minlength=8000)
    found = counts(2, strength, 0.05, arrivals=arrivals)
    # Mean and variance of a count in 50 ms, each within what 8,000 such counts can tell.
    assert found.mean() == pytest.approx(expected.mean(), rel=0.03)
    assert found.var() == pytest.approx(expected.var(), rel=0.12)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_a_chain_that_follows_a_group_stays_and_moves_as_it_declares(strength: float) -> None:
    """Of the three states of a one-way circle, which no other path than its own leads through."""
    moves = Moves.of(CIRCLE)
    path = correlated_states(
        moves, strength, common=np.random.default_rng(1), own=np.random.default_rng(2), duration_s=1500.0
    )
    changes = np.flatnonzero(np.diff(path.states)) + 1
    visited = path.states[np.append(0, changes)]
    assert np.array_equal(visited[1:], (visited[:-1] + 1) % 3)
    stays = np.diff(path.edges_s[np.append(0, changes)])
    for state, row in enumerate(CIRCLE):
        assert stats.kstest(stays[visited[:-1] == state] * sum(row), "expon").pvalue > 0.01
    share = [np.diff(path.edges_s)[path.states == state].sum() / 1500.0 for state in range(3)]
    assert share == pytest.approx(stationary(CIRCLE), rel=0.05)


@pytest.mark.parametrize("arrivals", [BURSTY, WAVES], ids=["on-off", "MMPP"])
def test_correlation_grows_from_nothing_to_unison(arrivals: Arrivals) -> None:
    found = [
        np.corrcoef(counts(1, s, 0.005, arrivals=arrivals), counts(2, s, 0.005, arrivals=arrivals))[0, 1]
        for s in (0.0, 0.4, 0.8, 1.0)
    ]
    assert abs(found[0]) < 0.02
    assert found[0] + 0.02 < found[1] < found[2] - 0.1
    assert found[2] < found[3] - 0.1
    # Two tenants on one path still have packets of their own: at other phases of a fluid, or other Poisson points.
    assert found[3] > 0.9


@pytest.mark.parametrize(("strength", "agreeing"), [(0.0, 0.52), (0.5, 0.5886), (1.0, 1.0)])
def test_tenants_are_in_equilibrium_together_when_a_window_opens(strength: float, agreeing: float) -> None:
    """On two fifths of the time; both are on or off together as often as their correlation, s^2/(2 - s^2), says."""
    on = []
    for seed in range(1500):
        paths = [
            CorrelatedPath(
                Moves.on_off(2e-3, 3e-3),
                np.array([0.0, 1.0]),
                strength,
                common=np.random.default_rng(seed),
                own=np.random.default_rng((number, seed)),
            )
            for number in (1, 2)
        ]
        on.append([path.more().start_ps[0] == 0 for path in paths])
    found = np.array(on)
    assert found.mean() == pytest.approx(0.4, abs=0.035)
    assert np.mean(found[:, 0] == found[:, 1]) == pytest.approx(agreeing, abs=0.035)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_chains_are_in_equilibrium_together_when_a_window_opens(strength: float) -> None:
    found = np.array(
        [
            [
                state_before(
                    Moves.of(CIRCLE), strength, common=np.random.default_rng(k), own=np.random.default_rng((n, k))
                )
                for n in (1, 2)
            ]
            for k in range(1500)
        ]
    )
    share = stationary(CIRCLE)
    assert np.bincount(found.ravel(), minlength=3) / found.size == pytest.approx(share, abs=0.03)
    agreeing, apart = np.mean(found[:, 0] == found[:, 1]), float(share @ share)
    expected = {0.0: pytest.approx(apart, abs=0.04), 1.0: 1.0}
    assert agreeing == expected[strength] if strength in expected else apart + 0.04 < agreeing < 0.96


def test_whoever_follows_the_group_entirely_sends_the_same_whatever_the_others_do() -> None:
    victim = correlated(1, 1.0).until(PS_PER_S).time_ps
    other = correlated(1, 1.0).until(PS_PER_S).time_ps
    assert np.array_equal(victim, other)


@pytest.mark.parametrize(
    ("arrivals", "strength"),
    [
        (PoissonArrivals(10.0, 800), 0.5),
        (RenewalArrivals(10.0, "gamma", 2.0, 800), 0.5),
        (TraceArrivals(Path("trace.csv"), "packets", 1.0, 0, 800), 0.5),
        (MmppArrivals((10.0,), ((0.0,),), 800), 0.5),
        (OnOffArrivals(1e6, 1.0, 1.0, 800), 1.5),
        (WAVES, -0.5),
    ],
)
def test_correlation_that_makes_no_sense_is_refused(arrivals: Arrivals, strength: float) -> None:
    with pytest.raises(ScenarioError, match="correlat"):
        stream(
            arrivals,
            tenant_seed(1, 1, 1),
            misbehaviour=Misbehaviour("correlated", group="g"),
            group=group_seed(1, "g", 1),
            strength=strength,
        )


@pytest.mark.parametrize("strength", [0.0, 0.35, 1.0, None])
@pytest.mark.parametrize("arrivals", [BURSTY, WAVES], ids=["on-off", "MMPP"])
def test_a_group_with_strengths_is_the_schedule_that_senders_follow(arrivals: Arrivals, strength: float | None) -> None:
    breach, group = Misbehaviour("correlated", group="g", strength=strength), group_seed(9, "g", 1)
    path = on_off_path(BURSTY.mean_on_s, BURSTY.mean_off_s, rng=np.random.default_rng(group), duration_s=DURATION_S)
    expected = schedule(
        arrivals,
        seed=tenant_seed(9, 2, 1),
        duration_s=DURATION_S,
        misbehaviour=breach,
        modulators={"g": path},
        group=group,
    )
    times, *_ = read(correlated(2, strength, arrivals), DURATION_S, 13)
    assert times.size == len(expected) > 1000
    assert np.abs(times - expected.time_s * PS_PER_S).max() < NS


@pytest.mark.parametrize("pieces", [1, 97])
def test_whoever_comes_and_goes_sends_the_schedule_that_senders_follow(pieces: int) -> None:
    present = ((1.0, 3.5), (3.5, 4.0), (11.0, 25.0))
    coming = replace(tenant("coming", BURSTY, None), present_s=present)
    (expected,) = schedules(scenario(coming), window=1, duration_s=DURATION_S, seed=9).values()
    present_ps = tuple((round(begin * PS_PER_S), round(end * PS_PER_S)) for begin, end in present)
    times, *_ = read(Visiting(stream(BURSTY, tenant_seed(9, 1, 1)), present_ps), DURATION_S, pieces)
    assert times.size == len(expected) > 1000
    assert np.abs(times - expected.time_s * PS_PER_S).max() < NS
    seconds = set((times // PS_PER_S).tolist())
    assert seconds <= {1, 2, 3, *range(11, 20)}
    assert {1, 3, 11, 19} <= seconds


def test_in_a_warm_up_everybody_is_there() -> None:
    coming = replace(tenant("coming", BURSTY, None), present_s=((1.0, 2.0),))
    (found,) = schedules(scenario(coming), window=0, duration_s=5.0, seed=9, conforming=True).values()
    assert found.time_s[-1] > 4.0


def test_a_correlation_that_nobody_follows_is_refused() -> None:
    alone = scenario(tenant("smooth", SMOOTH, 2_000_000), tenant("bursty", BURSTY, 10_000_000))
    with pytest.raises(ScenarioError, match="correlation: found smooth, bursty, none of whom follows a group"):
        network(alone, Choices(strength=0.5))
