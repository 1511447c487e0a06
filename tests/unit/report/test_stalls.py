"""Which packets a stall of the host touched."""

from __future__ import annotations

import numpy as np

from testbed.report.plots import stall_marks
from testbed.report.stalls import Stalled


def test_a_packet_is_touched_by_a_stall_that_began_before_it_was_back_and_ended_after_it_was_sent() -> None:
    stalls = np.array([(1.0, 0.5)])
    sent = np.array([0.0, 0.8, 0.9, 1.2, 1.5, 1.6])
    took = np.array([0.9, 0.1, 0.2, 0.1, 0.3, 0.1])
    found = Stalled.of(sent, took, stalls)
    assert found is not None
    assert found.touched.tolist() == [False, False, True, True, True, False]


def test_a_lost_packet_is_touched_only_where_it_was_sent_within_the_stall() -> None:
    found = Stalled.of(np.array([0.5, 1.1]), np.array([np.nan, np.nan]), np.array([(1.0, 0.5)]))
    assert found is not None
    assert found.touched.tolist() == [False, True]
    assert not found.slowest.any()


def test_cores_that_are_away_together_stall_the_host_once() -> None:
    stalls = np.array([(1.0, 0.010), (1.002, 0.020), (1.001, 0.001), (2.0, 0.004)])
    found = Stalled.of(np.array([0.0, 1.0]), np.array([0.001, 0.001]), stalls)
    assert found is not None
    assert found.times == 2
    np.testing.assert_allclose([found.away_s, found.longest_s], [0.026, 0.022])
    assert found.sentence("packets") == (
        "A core of the host was away 2 times, 26.0 ms in all, 22.0 ms at the longest; on their way meanwhile were 1 of "
        "2 packets (50.0 %), 0 of the slowest 1 among them."
    )


def test_without_a_stall_there_is_nothing_to_say() -> None:
    assert Stalled.of(np.array([0.0]), np.array([1.0]), np.empty((0, 2))) is None


def test_marks_lie_on_the_measured_distribution() -> None:
    latency = np.array([4.0, 1.0, np.nan, 3.0, 2.0])
    marked, share = stall_marks(latency, np.array([True, False, True, False, True]))
    assert marked.tolist() == [4.0, 2.0]
    np.testing.assert_allclose(share, [2 / 5, 4 / 5])
