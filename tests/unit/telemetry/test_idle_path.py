from __future__ import annotations

import numpy as np
import pytest

from testbed.telemetry import fidelity, idle_path, lag
from testbed.telemetry.idle_path import IdlePath
from testbed.telemetry.samples import TenantSamples
from tests.unit.telemetry import tandem

QUIET = tandem.Tenant(mean_on_s=0.01, mean_off_s=0.09, peak_bps=5e6, rate_bps=2e6, duration_s=300.0)


def longer_path(took_s: float, seed: int) -> TenantSamples:
    """A window of three domains that hold every packet `took_s` longer than queues do."""
    seen = tandem.measured(QUIET, seed)
    seen.border_s[:, 1:] += took_s / 3 * np.arange(1, 4)
    return seen


def test_a_path_is_told_by_packets_that_wait_for_nobody_and_not_by_pauses_or_queues() -> None:
    wait_s = np.array([0.0] * 99 + [0.0, 5.0, np.nan])
    beyond_s = np.array([*np.linspace(1e-3, 2e-3, 99), 0.5, 7e-3, 1e-3])
    law = idle_path.law_s(beyond_s, wait_s)
    assert (law.size, law.min(), law.max()) == (99, 1e-3, 2e-3)
    assert idle_path.law_s(beyond_s - 1.5e-3, wait_s).min() == 0.0
    assert idle_path.law_s(beyond_s[-2:], wait_s[-2:]).tolist() == []


def test_a_window_is_held_to_the_idle_path_of_another_one() -> None:
    """6 ms on the way are no queue's doing, though more than the 3 % that a p99.9 of 83 ms may be off."""
    warm_up, seen = longer_path(6e-3, seed=1), longer_path(6e-3, seed=2)
    law = idle_path.law_s(warm_up.network_s, lag.replay(warm_up, QUIET.rate_bps, [0.0] * 3).ideal_s)
    gates = [
        fidelity.replay(
            "a",
            seen,
            lag.replay(seen, QUIET.rate_bps, [0.0] * 3, burst_bits=QUIET.burst_bits, idle=known),
            queues_s=0.0,
        )
        for known in (IdlePath(law), idle_path.NONE, IdlePath(2 * law), IdlePath(law, 2 * law, 300.0))
    ]
    assert [gate.ok for gate in gates] == [True, False, False, False], [gate.detail for gate in gates]


def test_what_an_idle_path_takes_is_no_longer_there_for_queues_to_take() -> None:
    """Of 3 ms declared, a path of 1.2 ms leaves 1.8 to a tail too short for 3 % of it to be resolved."""

    def gate(took_s: float) -> fidelity.Gate:
        at_s = np.arange(2000) * 0.1
        seen = tandem.window(at_s, np.stack([at_s, at_s + took_s], axis=1))
        replayed = lag.replay(seen, QUIET.rate_bps, [0.0], idle=IdlePath(np.array([1.2e-3])))
        return fidelity.replay("a", seen, replayed, queues_s=3e-3)

    assert gate(2.9e-3).ok
    assert not gate(3.1e-3).ok


def test_every_packet_gets_a_time_of_the_law_and_the_same_one_whenever_asked() -> None:
    law = np.array([1.0, 2.0, 4.0])
    once, again = (IdlePath(law).drawn_s(np.zeros(3000)) for _ in range(2))
    assert once.tolist() == again.tolist()
    assert once.mean() == pytest.approx(7 / 3, rel=0.05)
    assert set(once.tolist()) == {1.0, 2.0, 4.0}


def test_every_quantile_moves_from_the_warm_ups_to_the_cool_downs() -> None:
    path = IdlePath(np.array([1.0, 2.0]), np.array([3.0, 8.0, 3.0, 8.0]), window_s=100.0)
    for time_s, drawn in (
        (-1.0, {1.0, 2.0}),
        (0.0, {1.0, 2.0}),
        (25.0, {1.5, 3.5}),
        (100.0, {3.0, 8.0}),
        (101.0, {3.0, 8.0}),
    ):
        assert set(path.drawn_s(np.full(200, time_s))) == drawn
    assert (path.typical_s, path.size) == (5.5, 6)


def test_one_that_says_nothing_leaves_it_to_the_other() -> None:
    nothing, law, times_s = np.empty(0), np.array([2.0]), np.linspace(0.0, 100.0, 50)
    for path in (IdlePath(law), IdlePath(law, nothing, 100.0), IdlePath(nothing, law, 100.0)):
        assert set(path.drawn_s(times_s)) == {2.0}
        assert path.typical_s == 2.0
    assert not IdlePath(nothing, nothing, 100.0).drawn_s(times_s).any()
    assert idle_path.NONE.typical_s == 0.0


def test_an_idle_path_that_becomes_slower_is_known_from_both_ends() -> None:
    """From 1 to 5 ms in 300 s: by the warm-up alone, half of the packets took 2 ms too long."""
    warm_up, cool_down, seen = longer_path(1e-3, 1), longer_path(5e-3, 3), tandem.measured(QUIET, 2)
    seen.border_s[:, 1:] += ((1e-3 + 4e-3 * seen.intended_s / 300.0) / 3)[:, None] * np.arange(1, 4)
    laws = [
        idle_path.law_s(it.network_s, lag.replay(it, QUIET.rate_bps, [0.0] * 3).ideal_s) for it in (warm_up, cool_down)
    ]
    alone = lag.replay(seen, QUIET.rate_bps, [0.0] * 3).ideal_s == 0.0
    took_s = np.median(seen.network_s[alone])
    both, first = (
        np.median(known.drawn_s(seen.intended_s[alone])) for known in (IdlePath(*laws, 300.0), IdlePath(laws[0]))
    )
    assert both == pytest.approx(took_s, abs=0.2e-3)
    assert first < took_s - 1e-3
