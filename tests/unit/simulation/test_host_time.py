"""A host that holds packets up for as long as a run showed that it did."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.simulation.clock import NEVER
from testbed.simulation.host_time import Host, HostTimes
from testbed.simulation.wave import Wave, join


def wave(times: list[int], tenants: list[int]) -> Wave:
    time = np.array(times, np.int64)
    n = time.size
    whole = np.ones(n, np.bool_)
    return Wave(time, time, np.arange(n), np.full(n, 8, np.int32), np.array(tenants, np.int32), whole)


def host(at: list[int], taken: list[int]) -> Host:
    return Host(HostTimes(np.array(at, np.int64), np.array(taken, np.int64)))


def test_between_moments_the_time_changes_in_proportion_and_beyond_them_it_stays() -> None:
    passed = host([100, 200], [10, 30]).push(wave([0, 100, 150, 200, 900], [0] * 5), NEVER)
    assert passed.on.time_ps.tolist() == [10, 110, 170, 230, 930]
    assert not len(passed.lost)


def test_a_tenant_keeps_its_order_and_others_may_overtake_it() -> None:
    passed = host([0, 1, 10, 11], [50, 50, 0, 0]).push(wave([1, 11, 12], [0, 1, 0]), NEVER)
    assert passed.on.tenant.tolist() == [1, 0, 0]
    assert passed.on.time_ps.tolist() == [11, 51, 51]


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_what_leaves_does_not_depend_on_how_packets_are_brought(cut: int) -> None:
    rng = np.random.default_rng(3)
    times = np.sort(rng.integers(0, 10_000, 200)).tolist()
    tenants = rng.integers(0, 4, 200).tolist()
    at = list(range(0, 10_001, 500))
    taken = rng.integers(0, 2_000, len(at)).tolist()
    whole = host(at, taken).push(wave(times, tenants), NEVER).on
    parts, one = [], host(at, taken)
    for begin in range(0, 200, cut):
        brought = wave(times[begin : begin + cut], tenants[begin : begin + cut])
        horizon = times[begin + cut] if begin + cut < 200 else 10_000
        parts.append(one.push(brought, horizon).on)
        assert not len(parts[-1]) or parts[-1].time_ps[-1] < horizon
    parts.append(one.push(Wave.empty(), NEVER).on)
    together = join(parts)
    assert np.all(np.diff(together.time_ps) >= 0)
    assert sorted(zip(together.time_ps.tolist(), together.tenant.tolist(), strict=True)) == sorted(
        zip(whole.time_ps.tolist(), whole.tenant.tolist(), strict=True)
    )
