"""Certificates from independent runs, and the condition without which there are none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from testbed.audit import known
from testbed.audit.compliance import Verdict
from testbed.audit.replications import judge_replications


def runs_with(misses: list[int], n: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    latency = np.zeros((len(misses), n))
    for run, count in enumerate(misses):
        latency[run, :count] = math.inf
    return latency.ravel(), np.repeat(np.arange(len(misses)), n)


def test_twenty_runs_with_few_misses_each_pass() -> None:
    found = judge_replications(*runs_with([1, 2] * 10), deadline_s=1.0, epsilon=0.01)
    assert found.verdict is Verdict.PASS
    assert found.miss_rate == pytest.approx(0.0015)
    assert (found.runs, found.runs_with_miss) == (20, 20)


def test_twenty_runs_with_many_misses_each_fail() -> None:
    found = judge_replications(*runs_with([20, 30] * 10), deadline_s=1.0, epsilon=0.01)
    assert found.verdict is Verdict.FAIL
    assert found.miss_rate_lower > 0.01


@pytest.mark.parametrize(
    ("misses", "why"),
    [
        ([1] * 19, "19 of 19 runs"),
        ([1] * 14 + [0] * 6, "14 of 20 runs"),
        ([0] * 40, "0 of 40 runs"),
    ],
)
def test_too_few_runs_or_too_few_with_a_miss_say_nothing(misses: list[int], why: str) -> None:
    found = judge_replications(*runs_with(misses), deadline_s=1.0, epsilon=0.5)
    assert found.verdict is Verdict.UNDETERMINED
    assert (found.miss_rate_lower, found.miss_rate_upper) == (0.0, 1.0)
    assert why in found.reason


@pytest.mark.parametrize(("load", "n"), [(0.3, 3000), (0.5, 10_000)])
def test_a_promise_just_broken_is_seldom_certified_by_runs(load: float, n: int) -> None:
    queue, rng = known.mm1(load), np.random.default_rng(1)
    deadline_s, ids = queue.quantile_s(0.999), np.repeat(np.arange(20), n)
    verdicts = [judge_replications(queue.draw(20 * n, rng), ids, deadline_s, 0.001).verdict for _ in range(150)]
    # Nominal 5 %, the plain t-interval has 9 to 11; two standard deviations of 150 repetitions are 3.6 points.
    assert verdicts.count(Verdict.PASS) <= 0.086 * 150
