"""Packets drawn from a trace."""

import math
from pathlib import Path

import numpy as np
import pytest

from testbed.scenario.model import (
    Misbehaviour,
    TraceArrivals,
)
from testbed.traffic.arrivals import mean_bps, schedule


@pytest.fixture
def trace(tmp_path: Path) -> TraceArrivals:
    rng = np.random.default_rng(5)
    time_s = np.sort(rng.random(40) ** 3) * 30
    sizes = rng.integers(66, 1514, 40)
    path = tmp_path / "trace.csv"
    rows = "".join(f"{t:.9f},{size}\n" for t, size in zip(time_s, sizes, strict=True))
    path.write_text("time_s,size_bytes\n" + rows)
    return TraceArrivals(path, "packets", 2.0, 32, 8 * 1514)


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
