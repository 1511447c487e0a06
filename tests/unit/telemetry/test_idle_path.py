from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from testbed.telemetry import fidelity, idle_path, lag
from testbed.telemetry.samples import FloatArray, Replay, TenantSamples
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
    assert idle_path.law_s(beyond_s[-2:], wait_s[-2:]).tolist() == [0.0]


def replayed(seen: TenantSamples, known: FloatArray | None) -> Replay:
    return lag.replay(seen, QUIET.rate_bps, [0.0] * 3, burst_bits=QUIET.burst_bits, idle_path_s=known)


def test_what_an_idle_path_takes_is_no_queues_doing_though_more_than_a_tail_may_be_off() -> None:
    """6 ms on the way, beside the 3 % that a p99.9 of 83 ms may be off."""
    warm_up, seen = longer_path(6e-3, seed=1), longer_path(6e-3, seed=2)
    law = idle_path.law_s(warm_up.network_s, replayed(warm_up, None).ideal_s)
    gates = [fidelity.replay("a", seen, replayed(seen, known), queues_s=0.0) for known in (law, None)]
    assert [gate.ok for gate in gates] == [True, False], [gate.detail for gate in gates]


def test_an_idle_path_is_followed_where_a_host_becomes_slower() -> None:
    """From 1 to 3 ms in 300 s: the warm-up is right of the first stretch only."""
    warm_up, seen = longer_path(1e-3, seed=1), tandem.measured(QUIET, 2)
    seen.border_s[:, -1] += 1e-3 + 2e-3 * seen.intended_s / 300.0
    law = idle_path.law_s(warm_up.network_s, replayed(warm_up, None).ideal_s)
    ideal = replayed(seen, law)
    late = seen.intended_s > 200.0
    apart_s = np.median(ideal.idle_s[late]) - np.median((seen.network_s - ideal.shaped_s + ideal.idle_s)[late])
    assert abs(apart_s) < 1e-4


def test_a_queue_that_grows_slow_is_not_taken_for_an_idle_path() -> None:
    """It serves 5 % less than it was read back to: whoever waits for nobody sees nothing of it."""
    seen = tandem.measured(replace(QUIET, rate_bps=0.95 * QUIET.rate_bps), 2)
    gate = fidelity.replay("a", seen, replayed(seen, idle_path.NONE), queues_s=0.0)
    assert not gate.ok, gate.detail


def test_no_stretch_is_held_to_itself_and_faults_tell_nothing() -> None:
    time_s = np.arange(0.0, 30.0, 0.01)
    beyond_s, wait_s = np.where(time_s < 10.0, 1e-3, np.where(time_s < 20.0, 2e-3, 4e-3)), np.zeros(time_s.size)
    followed = idle_path.followed_s(np.full(2000, 0.5e-3), beyond_s, wait_s, time_s)
    within = [set(followed[(time_s >= begin) & (time_s < begin + 10.0)]) for begin in (0.0, 10.0, 20.0)]
    assert within == [{0.5e-3, 2e-3}, {1e-3, 4e-3}, {2e-3}]
    beyond_s[time_s >= 10.0] = np.nan
    assert set(idle_path.followed_s(np.full(50, 0.5e-3), beyond_s, wait_s, time_s)) == {0.5e-3, 1e-3}


def test_where_next_to_nobody_waited_for_nobody_the_rest_of_the_window_and_the_warm_up_tell() -> None:
    time_s = np.arange(0.0, 60.0, 0.05)
    beyond_s, wait_s = np.full(time_s.size, 2e-3), np.where(time_s < 30.0, 0.0, 1.0)
    beyond_s[time_s < 20.0] = 1e-3
    law = idle_path.followed_s(np.full(20, 1e-3), beyond_s, wait_s, time_s)
    assert set(law[time_s >= 50.0]) == {1e-3, 2e-3}
    assert set(law[(time_s >= 30.0) & (time_s < 40.0)]) == {2e-3}


def test_the_course_of_an_idle_path_is_that_of_stretches_in_which_somebody_waited_for_nobody() -> None:
    time_s = np.arange(0.0, 40.0, 0.1)
    beyond_s, wait_s = 1e-3 * np.floor(time_s / 10.0), np.where(time_s < 20.0, 0.0, 1.0)
    wait_s[-20:] = 0.0
    course_s = idle_path.course_s(np.array([5e-3, 6e-3, 9e-3]), beyond_s, wait_s, time_s)
    assert course_s.tolist() == [6e-3, 0.0, 1e-3]


def test_what_an_idle_path_takes_is_no_longer_there_for_queues_to_take() -> None:
    """Of 3 ms declared, a path of 1.2 ms leaves 1.8 to a tail too short for 3 % of it to be resolved."""

    def gate(took_s: float) -> fidelity.Gate:
        at_s = np.arange(2000) * 0.1
        took = np.where(np.arange(2000) % 100 < 98, 1.2e-3, took_s)
        seen = tandem.window(at_s, np.stack([at_s, at_s + took], axis=1))
        replay = lag.replay(seen, QUIET.rate_bps, [0.0], idle_path_s=np.array([1.2e-3]))
        return fidelity.replay("a", seen, replay, queues_s=3e-3)

    assert gate(2.9e-3).ok
    assert not gate(3.1e-3).ok


def test_every_packet_gets_a_time_of_the_law_and_the_same_one_whenever_asked() -> None:
    law, nowhere = np.array([1.0, 2.0, 4.0]), np.full(3000, np.nan)
    once, again = (idle_path.followed_s(law, nowhere, nowhere, np.arange(3000.0)) for _ in range(2))
    assert once.tolist() == again.tolist()
    assert once.mean() == pytest.approx(7 / 3, rel=0.05)
    assert set(once.tolist()) == {1.0, 2.0, 4.0}
