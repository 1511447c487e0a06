"""The live alarm: quiet while the promise holds though misses cluster, quick when it breaks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from testbed.audit import known, sequential
from testbed.audit.sequential import MEMORY, WARM_UP, Monitor

EPSILON = 0.001


def watch(process: known.Known, rate: float, n: int, rng: np.random.Generator) -> Monitor:
    monitor = Monitor(process.quantile_s(1 - rate), EPSILON)
    monitor.observe(process.draw(n, rng))
    return monitor


@pytest.mark.parametrize("process", [known.exponential(), known.mm1(0.5), known.mm1(0.9)], ids=lambda p: p.name)
def test_a_promise_that_holds_exactly_seldom_raises_an_alarm(process: known.Known) -> None:
    rng = np.random.default_rng(1)
    alarms = sum(watch(process, EPSILON, 300_000, rng).alarm is not None for _ in range(25))
    assert alarms <= 3


def test_betting_on_every_sample_would_alarm_falsely_on_a_queue() -> None:
    # The control for the test above: the same bets with blocks of one sample.
    process, rng = known.mm1(0.7), np.random.default_rng(2)
    deadline_s, bet = process.quantile_s(1 - EPSILON), 1.0
    alarms = 0
    for _ in range(25):
        missed = process.draw(300_000, rng) > deadline_s
        wealth = np.cumsum(np.where(missed, math.log1p(bet * (1 - EPSILON)), math.log1p(-bet * EPSILON)))
        alarms += wealth.max() >= math.log(20)
    assert alarms >= 10


def test_a_doubled_miss_rate_is_found_within_one_and_a_half_times_a_fixed_test() -> None:
    rng = np.random.default_rng(3)
    found = [watch(known.exponential(), 2 * EPSILON, 40_000, rng).alarm for _ in range(60)]
    assert np.median([alarm.sample if alarm else math.inf for alarm in found]) <= 1.5 * 8038


@pytest.mark.parametrize("rate", [0.05, 0.01])
def test_an_alarm_comes_when_the_wealth_reaches_one_over_the_false_alarm_rate_and_not_before(rate: float) -> None:
    process, rng = known.exponential(), np.random.default_rng(5)
    monitor, before = Monitor(process.quantile_s(1 - 3 * EPSILON), EPSILON, rate), 0.0
    for latency in process.draw(40_000, rng):
        if monitor.observe(latency):
            break
        before = monitor.evidence
    assert monitor.alarm is not None
    assert before < 1 / rate <= monitor.alarm.evidence


def test_clustered_misses_lengthen_the_blocks_that_count() -> None:
    rng = np.random.default_rng(4)
    independent = watch(known.exponential(), EPSILON, 100_000, rng)
    queue = watch(known.mm1(0.9), EPSILON, 100_000, rng)
    assert independent.memory < 4
    assert queue.memory > 100
    alarm = watch(known.mm1(0.7), 20 * EPSILON, 300_000, rng).alarm
    assert alarm is not None
    assert alarm.block >= MEMORY * 8


@pytest.mark.parametrize("n", [3000, 3072])
def test_evidence_is_the_wealth_of_the_bets_with_running_blocks_at_what_is_certain(n: int) -> None:
    missed = np.zeros(n)
    missed[[150, 700, 1500, 2400, 2990]] = 1
    monitor = Monitor(2.0, EPSILON)
    monitor.observe(np.where(missed == 1, math.inf, np.random.default_rng(10).random(n)))
    expected = 0.0
    for length, block_weight in zip(128 * 8 ** np.arange(4), sequential._BLOCK_WEIGHTS, strict=True):
        # The running block is counted to its end as if no further miss came.
        blocks = np.append(missed, np.zeros(-n % length)).reshape(-1, length).mean(axis=1)
        for bet, weight in zip(sequential._BETS / EPSILON, sequential._BET_WEIGHTS, strict=True):
            expected += block_weight * weight * np.prod(1 + bet * (blocks - EPSILON))
    assert monitor.memory * MEMORY < 128
    assert monitor.evidence == pytest.approx(expected)


def test_chunks_and_single_samples_see_the_same() -> None:
    series = known.mm1(0.3).draw(6000, np.random.default_rng(5))
    series[::40] = math.nan
    whole, single = Monitor(50.0, EPSILON), Monitor(50.0, EPSILON)
    whole.observe(series)
    for latency in series:
        single.observe(latency)
    assert whole.alarm == single.alarm
    assert whole.alarm is not None
    assert (whole.samples, whole.evidence, whole.memory) == (single.samples, single.evidence, single.memory)


def test_no_alarm_comes_before_the_memory_is_known() -> None:
    monitor = Monitor(1.0, EPSILON)
    assert monitor.observe(np.full(WARM_UP - 1, math.inf)) is None
    assert monitor.samples == WARM_UP - 1
    assert monitor.evidence == 0
    alarm = monitor.observe(np.full(5000, math.inf))
    assert alarm is not None
    assert alarm.sample == WARM_UP


def test_one_outage_is_one_event_and_no_alarm() -> None:
    series = np.random.default_rng(6).random(200_000)
    series[90_000:90_150] = math.nan
    monitor = Monitor(2.0, EPSILON)
    assert monitor.observe(series) is None


def test_an_alarm_stays_and_says_what_was_refuted() -> None:
    rng = np.random.default_rng(7)
    monitor = Monitor(2.0, EPSILON)
    monitor.observe(np.where(rng.random(20_000) < 0.02, math.inf, rng.random(20_000)))
    alarm = monitor.alarm
    assert alarm is not None
    assert alarm.evidence >= 1 / alarm.false_alarm_rate
    assert alarm.sample < 20_000
    assert f"next {alarm.block} samples" in alarm.null
    monitor.observe(rng.random(200_000))
    assert monitor.alarm == alarm
    assert monitor.samples == 220_000


def test_memory_is_constant() -> None:
    monitor = Monitor(10.0, EPSILON)
    monitor.observe(np.random.default_rng(8).random(5000))
    sizes = [part.nbytes for part in monitor._state]
    monitor.observe(np.random.default_rng(9).random(500_000))
    assert [part.nbytes for part in monitor._state] == sizes
    assert sum(sizes) < 5000
    assert monitor._warm_up.size == 0


@pytest.mark.parametrize(("deadline", "epsilon", "rate"), [(0, 0.1, 0.1), (1, 0.2, 0.1), (1, 0.1, 1.0)])
def test_an_impossible_watch_is_refused(deadline: float, epsilon: float, rate: float) -> None:
    with pytest.raises(ValueError, match="watch"):
        Monitor(deadline, epsilon, rate)
