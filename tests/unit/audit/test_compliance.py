"""Certificates: right when they are given, withheld when the data cannot say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from testbed.audit import known
from testbed.audit.compliance import Verdict, judge, judge_nothing, lower_limit, samples_to_certify, upper_limit

EPSILON = 0.001


@pytest.mark.parametrize(("misses", "samples"), [(0, 2995), (1, 4742), (10, 16_959), (100, 118_071)])
def test_samples_that_certify_three_nines_at_95_percent(misses: int, samples: int) -> None:
    assert samples_to_certify(misses, EPSILON) == samples
    assert upper_limit(misses, samples, 0.95) <= EPSILON < upper_limit(misses, samples - 1, 0.95)


def test_limits_are_those_of_clopper_and_pearson() -> None:
    # Binomial tails written out: P(X <= 1 | n = 20, p) = .05 and P(X >= 1 | n = 20, p) = .05.
    p = upper_limit(1, 20, 0.95)
    assert (1 - p) ** 20 + 20 * p * (1 - p) ** 19 == pytest.approx(0.05)
    assert 1 - (1 - lower_limit(1, 20, 0.95)) ** 20 == pytest.approx(0.05)
    assert lower_limit(0, 20, 0.95) == 0
    assert upper_limit(20, 20, 0.95) == 1


def test_a_fast_service_passes_and_a_slow_one_fails() -> None:
    series = np.random.default_rng(1).standard_exponential(50_000)
    kept = judge(series, 12.0, EPSILON)
    broken = judge(series, 5.0, EPSILON)
    assert (kept.verdict, kept.samples_needed) == (Verdict.PASS, 0)
    assert kept.miss_rate_upper <= EPSILON
    assert (broken.verdict, broken.samples_needed) == (Verdict.FAIL, 0)
    assert broken.miss_rate_lower > EPSILON
    assert broken.misses == np.count_nonzero(series > 5.0)


@pytest.mark.parametrize("unanswered", [math.nan, math.inf])
def test_a_request_never_answered_is_a_miss(unanswered: float) -> None:
    series = np.random.default_rng(2).random(50_000)
    series[::100] = unanswered
    found = judge(series, 2.0, EPSILON)
    assert found.misses == 500
    assert found.verdict is Verdict.FAIL


def test_a_latency_equal_to_the_deadline_meets_it() -> None:
    assert judge(np.r_[np.random.default_rng(3).random(2000), 1.0], 1.0, EPSILON).misses == 0


@pytest.mark.parametrize("length", [8, 11])
def test_one_outage_in_a_quiet_series_does_not_certify(length: int) -> None:
    # Consecutive misses in 30,000 samples: 3e-4 if they were independent, one event in truth.
    series = np.random.default_rng(4).random(30_000)
    series[12_000 : 12_000 + length] = math.inf
    found = judge(series, 2.0, EPSILON)
    assert found.design_effect == pytest.approx(length)
    assert found.verdict is Verdict.UNDETERMINED


def test_limits_are_binomial_on_effective_counts_rounded_to_the_side_that_claims_less() -> None:
    series = known.mm1(0.5).draw(30_000, np.random.default_rng(15))
    found = judge(series, 12.0, EPSILON)
    effect = found.design_effect
    assert effect is not None
    worth = found.misses / effect
    assert effect > 2
    assert worth % 1 > 0.05
    assert found.miss_rate_upper == pytest.approx(upper_limit(math.floor(worth) + 1, found.n / effect, 0.95))
    assert found.miss_rate_lower == pytest.approx(lower_limit(math.floor(worth), found.n / effect, 0.95))


def test_samples_needed_are_about_enough() -> None:
    series = np.random.default_rng(5).standard_exponential(10_000)
    found = judge(series, 8.0, EPSILON)
    assert found.verdict is Verdict.UNDETERMINED
    assert found.samples_needed is not None
    assert found.design_effect is not None
    total = (found.n + found.samples_needed) / found.design_effect
    misses = found.misses / found.n * total
    assert upper_limit(math.ceil(misses), total, 0.95) <= EPSILON
    short = (found.n + found.samples_needed - 1) / found.design_effect
    assert upper_limit(math.ceil(found.misses / found.n * short), short, 0.95) > EPSILON
    assert str(found.samples_needed) in found.reason


def test_samples_needed_to_fail_are_said_when_misses_are_too_many() -> None:
    series = np.random.default_rng(6).random(3000)
    series[250::550] = math.inf
    found = judge(series, 2.0, EPSILON)
    assert found.misses == 5
    assert found.verdict is Verdict.UNDETERMINED
    assert found.samples_needed is not None
    assert found.design_effect is not None
    size = (found.n + found.samples_needed) / found.design_effect
    assert lower_limit(math.floor(found.misses / found.n * size), size, 0.95) > EPSILON


def test_a_miss_rate_of_exactly_epsilon_is_never_decided() -> None:
    series = np.random.default_rng(7).random(20_000)
    series[np.arange(500, 20_000, 1000)] = math.inf
    found = judge(series, 2.0, EPSILON)
    assert found.misses == 20
    assert found.samples_needed is None
    assert "no number of more samples" in found.reason


def test_fewer_than_ten_exceedances_say_nothing_even_without_a_miss() -> None:
    found = judge(np.random.default_rng(8).random(999), 2.0, 0.1)
    assert found.verdict is Verdict.UNDETERMINED
    assert found.design_effect is None
    assert (found.miss_rate_lower, found.miss_rate_upper) == (0.0, 1.0)


@pytest.mark.parametrize("n", [10, 999, 100_000])
def test_no_number_of_samples_that_are_all_the_same_would_decide(n: int) -> None:
    found = judge(np.full(n, 0.01), 0.08, EPSILON)
    assert (found.verdict, found.misses, found.samples_needed) == (Verdict.UNDETERMINED, 0, None)
    assert "all of them are 10 ms, and no number of more samples that are all the same would decide" in found.reason


def test_samples_that_are_nearly_all_the_same_are_enough_once_ten_of_them_differ() -> None:
    series = np.full(100_000, 0.01)
    series[10_000::20_000] = 0.02
    found = judge(series, 0.08, EPSILON)
    assert (found.verdict, found.samples_needed) == (Verdict.UNDETERMINED, 100_000)
    assert "at least 100000 more samples" in found.reason
    assert judge(np.tile(series, 2), 0.08, EPSILON).verdict is Verdict.PASS


@pytest.mark.parametrize(("n", "more"), [(1, 2994), (999, 1996)])
def test_too_few_samples_are_told_how_many_there_must_be_at_least(n: int, more: int) -> None:
    found = judge(np.random.default_rng(8).random(n), 2.0, EPSILON)
    assert found.samples_needed == more
    assert f"at least {more} more samples" in found.reason


def test_without_a_sample_nothing_is_known() -> None:
    found = judge_nothing(0.08, EPSILON)
    assert (found.verdict, found.n, found.miss_rate_upper) == (Verdict.UNDETERMINED, 0, 1.0)
    assert found.samples_needed == 2995
    with pytest.raises(ValueError, match="promise"):
        judge_nothing(0, EPSILON)


def test_pooled_runs_count_together_and_their_order_does_not_matter() -> None:
    queue, rng = known.mm1(0.5), np.random.default_rng(9)
    parts = [queue.draw(20_000, rng) for _ in range(4)]
    ids = np.repeat(np.arange(4), 20_000)
    first = judge(np.concatenate(parts), 25.0, EPSILON, runs=ids)
    second = judge(np.concatenate(parts[::-1]), 25.0, EPSILON, runs=ids)
    assert first.n == 80_000
    assert first.verdict is second.verdict is Verdict.PASS
    assert first.design_effect == pytest.approx(second.design_effect, rel=0.05)


@pytest.mark.parametrize(("deadline", "epsilon", "confidence"), [(0, 0.1, 0.9), (1, 0, 0.9), (1, 1, 0.9), (1, 0.1, 1)])
def test_an_impossible_promise_is_refused(deadline: float, epsilon: float, confidence: float) -> None:
    with pytest.raises(ValueError, match="promise"):
        judge([0.1] * 100, deadline, epsilon, confidence)


SERIES = [known.exponential(), known.mm1(0.3), known.mm1(0.5), known.mm1(0.7), known.arma_lognormal()]


@pytest.mark.parametrize("process", SERIES, ids=lambda process: process.name)
def test_a_promise_just_broken_is_seldom_certified_and_one_just_kept_seldom_failed(process: known.Known) -> None:
    # At a true miss rate of exactly epsilon both answers are errors of nominal 5 %; 240 repetitions by 1.4.
    deadline_s = process.quantile_s(1 - EPSILON)
    rng = np.random.default_rng(12)
    verdicts = [judge(process.draw(30_000, rng), deadline_s, EPSILON).verdict for _ in range(240)]
    assert verdicts.count(Verdict.PASS) <= 0.07 * 240
    assert verdicts.count(Verdict.FAIL) <= 0.07 * 240


def test_ignoring_dependence_would_certify_falsely() -> None:
    # The control for the test above: with D = 1 the same data pass far more often than 5 %.
    process, rng = known.mm1(0.7), np.random.default_rng(12)
    deadline_s = process.quantile_s(1 - EPSILON)
    misses = [np.count_nonzero(process.draw(30_000, rng) > deadline_s) for _ in range(240)]
    assert np.mean([upper_limit(m, 30_000, 0.95) <= EPSILON for m in misses]) > 0.3


def test_a_promise_kept_tenfold_is_certified_when_the_samples_suffice() -> None:
    process, rng = known.mm1(0.3), np.random.default_rng(13)
    deadline_s = process.quantile_s(1 - EPSILON / 10)
    verdicts = [judge(process.draw(70_000, rng), deadline_s, EPSILON).verdict for _ in range(40)]
    assert verdicts.count(Verdict.PASS) >= 0.8 * 40


def test_a_million_samples_are_judged_from_the_same_code() -> None:
    found = judge(known.mm1(0.7).draw(1_000_000, np.random.default_rng(14)), 40.0, EPSILON)
    assert found.n == 1_000_000
    assert found.verdict is Verdict.PASS


def test_many_independent_misses_are_said_as_a_whole_number() -> None:
    late = np.random.default_rng(3).random(20_000) < 0.25
    found = judge(np.where(late, 0.2, 0.01), deadline_s=0.08, epsilon=0.01)
    assert "e+" not in found.reason
    assert f"{np.count_nonzero(late)} of 20000 samples missed" in found.reason
