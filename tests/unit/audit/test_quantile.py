"""Order-statistic quantiles and the band of the CCDF."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from testbed.audit import known
from testbed.audit.compliance import judge
from testbed.audit.quantile import ccdf, quantile, quantiles


def test_limits_of_independent_samples_are_the_binomial_order_statistics() -> None:
    series = np.arange(1.0, 100_001.0)
    series = np.random.default_rng(1).permutation(series)
    found = quantile(series, 0.999)
    assert found.estimate_s == 99_900
    assert found.n_effective is not None
    assert found.lower_s is not None
    assert found.upper_s is not None
    # The samples above each limit are counts that a binomial of the effective size would hardly reach.
    scale = 100_000 / found.n_effective
    size = round(found.n_effective)
    assert binom.sf(math.floor((100_000 - found.lower_s) / scale), size, 0.001) <= 0.026
    assert binom.cdf(math.floor((100_000 - found.upper_s) / scale), size, 0.001) <= 0.026
    assert 99_870 < found.lower_s < found.one_sided_lower_s < 99_900 < found.upper_s < 99_935


def test_a_quantile_beyond_the_data_has_no_estimate_and_no_upper_limit() -> None:
    found = quantile(np.random.default_rng(2).standard_exponential(2000), 0.9999)
    assert found.estimate_s is None
    assert found.upper_s is None
    assert found.lower_s is not None


def test_an_upper_limit_needs_enough_effective_samples() -> None:
    rng = np.random.default_rng(3)
    assert quantile(rng.standard_exponential(3000), 0.999).upper_s is None
    assert quantile(rng.standard_exponential(6000), 0.999).upper_s is not None
    assert quantile(known.mm1(0.7).draw(6000, rng), 0.999).upper_s is None


def test_a_short_series_has_no_limits() -> None:
    found = quantile(np.random.default_rng(4).random(500), 0.99)
    assert found.estimate_s is not None
    assert (found.lower_s, found.upper_s, found.one_sided_lower_s, found.n_effective) == (None, None, None, None)


def test_requests_never_answered_push_a_quantile_to_infinity() -> None:
    series = np.random.default_rng(5).random(50_000)
    series[::200] = math.nan
    found = quantile(series, 0.999)
    assert found.estimate_s == found.lower_s == found.upper_s == math.inf
    assert math.isfinite(quantile(series, 0.99).upper_s or math.inf)


def test_the_lower_limit_and_a_broken_promise_say_the_same() -> None:
    series = known.mm1(0.5).draw(200_000, np.random.default_rng(6))
    found = quantile(series, 0.999)
    assert found.one_sided_lower_s is not None
    assert judge(series, found.one_sided_lower_s * 0.98, 0.001).verdict == "FAIL"
    assert judge(series, found.one_sided_lower_s * 1.02, 0.001).verdict == "UNDETERMINED"


def test_several_levels_share_one_reading_of_the_series() -> None:
    series = np.random.default_rng(7).standard_exponential(100_000)
    found = quantiles(series)
    assert [q.level for q in found] == [0.99, 0.999, 0.9999]
    assert found[1] == quantile(series, 0.999)


SERIES = [
    known.exponential(),
    known.lognormal(),
    known.pareto(),
    known.hiccups(),
    known.mm1(0.3),
    known.mm1(0.7),
    known.arma_lognormal(),
]


@pytest.mark.parametrize("process", SERIES, ids=lambda process: process.name)
def test_intervals_and_band_hold_the_true_quantile(process: known.Known) -> None:
    truth, rng = process.quantile_s(0.999), np.random.default_rng(8)
    outside = below = band = 0
    for _ in range(100):
        series = process.draw(20_000, rng)
        found = quantile(series, 0.999)
        outside += (found.lower_s or 0) > truth or (found.upper_s or math.inf) < truth
        below += (found.one_sided_lower_s or 0) > truth
        curve = ccdf(series, [truth])
        band += not curve.lower[0] <= 0.001 <= curve.upper[0]
    # 5 % nominal; three standard deviations of 100 repetitions are 6.5 points.
    assert max(outside, below, band) <= 0.115 * 100


def test_the_ccdf_decreases_from_one_within_its_band() -> None:
    curve = ccdf(known.mm1(0.7).draw(50_000, np.random.default_rng(9)), 100)
    assert np.all(np.diff(curve.x_s) > 0)
    assert np.all(np.diff(curve.p) <= 0)
    assert curve.p[0] > 0.95
    assert curve.p[-1] == 0
    assert np.all((curve.lower <= curve.p) & (curve.p <= curve.upper))


def test_the_ccdf_leaves_the_never_answered_above_every_point() -> None:
    series = np.random.default_rng(10).random(10_000)
    series[:100] = math.inf
    curve = ccdf(series, 50)
    assert np.isfinite(curve.x_s).all()
    assert curve.p[-1] == pytest.approx(0.01)


def test_the_ccdf_of_a_short_series_has_no_band() -> None:
    curve = ccdf(np.random.default_rng(11).random(100), [0.2, 0.5])
    assert curve.lower.tolist() == [0, 0]
    assert curve.upper.tolist() == [1, 1]


def test_levels_outside_zero_and_one_are_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile([0.1, 0.2], 1.0)
