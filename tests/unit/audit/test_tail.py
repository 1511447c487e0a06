"""Peaks over threshold: right on Pareto-like tails, silent or overruled elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import genpareto

from testbed.audit import known
from testbed.audit.gpd import Gpd, anderson_darling, critical_value, fit, log_likelihood
from testbed.audit.tail import mean_excess, tail_quantile, tail_quantiles, thresholds


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.2, 0.8])
def test_the_fit_is_the_maximum_of_the_likelihood(shape: float) -> None:
    y = genpareto.rvs(shape, scale=2.0, size=2000, random_state=1)
    found = fit(y)
    top = log_likelihood(y, np.array([found.shape]), np.array([found.scale]))[0]
    assert top == pytest.approx(genpareto.logpdf(y, found.shape, scale=found.scale).sum())
    around = [(found.shape + a, found.scale * (1 + b)) for a in (-0.01, 0, 0.01) for b in (-0.01, 0, 0.01)]
    others = log_likelihood(y, np.array([s for s, _ in around]), np.array([c for _, c in around]))
    assert np.all(others <= top + 1e-6)
    assert (found.shape, found.scale) == (pytest.approx(shape, abs=0.1), pytest.approx(2, rel=0.15))


def test_survival_is_that_of_scipy() -> None:
    y = np.linspace(0, 5, 50)
    for shape in (-0.3, 0.0, 0.5):
        assert Gpd(shape, 2.0).survival(y) == pytest.approx(genpareto.sf(y, shape, scale=2.0))


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.5, 1.0])
def test_a_tenth_of_good_fits_exceeds_the_critical_value(shape: float) -> None:
    rng = np.random.default_rng(2)
    statistics = []
    for _ in range(400):
        y = genpareto.rvs(shape, size=150, random_state=rng)
        found = fit(y)
        statistics.append(anderson_darling(y, found) > critical_value(found.shape))
    assert np.mean(statistics) == pytest.approx(0.1, abs=0.045)


PARETO_LIKE = [known.exponential(), known.lognormal(), known.pareto(), known.mm1(0.3), known.mm1(0.5)]


@pytest.mark.parametrize("process", PARETO_LIKE, ids=lambda process: process.name)
def test_intervals_of_a_fitted_tail_hold_the_truth(process: known.Known) -> None:
    rng, answered, outside = np.random.default_rng(3), 0, 0
    for _ in range(40):
        model = tail_quantile(process.draw(10_000, rng), 0.9999)
        if model.refused is None:
            answered += 1
            outside += not model.lower_s <= process.quantile_s(0.9999) <= model.upper_s
    assert answered >= 25
    # Nominal 5 %; three standard deviations of 40 repetitions are 10 points.
    assert outside <= 0.16 * answered


def test_rare_hiccups_are_refused_once_the_data_show_them() -> None:
    rng = np.random.default_rng(4)
    refused = [tail_quantile(known.hiccups().draw(30_000, rng)).refused for _ in range(10)]
    assert all(refused)


def test_a_tail_that_fits_and_yet_contradicts_the_order_statistics_is_refused() -> None:
    series = known.hiccups(0.002, 8.0).draw(60_000, np.random.default_rng(3))
    assert thresholds(series)[-1].fits
    assert (tail_quantile(series).refused or "").startswith("The fitted tail contradicts the data: it puts the 0.9")


def test_requests_never_answered_have_no_tail() -> None:
    series = np.random.default_rng(5).random(20_000)
    series[7] = math.nan
    assert "1 samples were never answered" in (tail_quantile(series).refused or "")


def test_too_few_independent_exceedances_carry_no_fit() -> None:
    assert "50 independent" in (tail_quantile(known.mm1(0.9).draw(10_000, np.random.default_rng(6))).refused or "")
    assert "50 independent" in (tail_quantile(np.random.default_rng(6).random(300)).refused or "")


def test_an_extrapolation_says_that_it_is_one() -> None:
    series = known.exponential().draw(20_000, np.random.default_rng(7))
    within, beyond = tail_quantiles(series, (0.999, 0.9999))
    assert not within.extrapolated
    assert beyond.extrapolated
    assert beyond.estimate_s > within.estimate_s


def test_dependence_widens_the_interval() -> None:
    rng = np.random.default_rng(8)
    queue = known.mm1(0.5).draw(100_000, rng)
    dependent = tail_quantile(queue, 0.9995)
    independent = tail_quantile(rng.permutation(queue), 0.9995)
    width = (dependent.upper_s - dependent.lower_s) / (independent.upper_s - independent.lower_s)
    assert 1.8 < width < 5


def test_the_shape_is_stable_over_thresholds_of_an_exponential_tail() -> None:
    for threshold in thresholds(known.exponential().draw(200_000, np.random.default_rng(9))):
        assert abs(threshold.shape) < 4 * threshold.shape_error


def test_mean_excess_of_an_exponential_tail_is_flat() -> None:
    found = mean_excess(known.exponential().draw(100_000, np.random.default_rng(10)))
    assert np.all(np.diff(found.threshold_s) > 0)
    assert np.all(np.abs(found.mean_s - 1) < 5 * found.error_s)


def test_dependence_widens_the_error_of_the_mean_excess() -> None:
    rng = np.random.default_rng(11)
    queue = known.mm1(0.7).draw(100_000, rng)
    clinging, mixed = mean_excess(queue), mean_excess(rng.permutation(queue))
    assert np.median(clinging.error_s / mixed.error_s) > 2


def test_levels_outside_zero_and_one_are_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        tail_quantile([0.1] * 100, 1.0)
