"""Clusters of exceedances and the design effect."""

from __future__ import annotations

import math

import numpy as np
import pytest

from testbed.audit import known
from testbed.audit.clusters import (
    as_series,
    decluster,
    extremal_index,
    measure_dependence,
    run_boundaries,
    tail_thresholds,
)


def clustered(sizes: list[int], quiet: int) -> np.ndarray:
    """Positions of clusters of consecutive exceedances, `quiet` samples apart."""
    positions, start = [], quiet
    for size in sizes:
        positions += range(start, start + size)
        start += size + quiet
    return np.array(positions)


def test_clusters_far_apart_are_found_with_their_sizes() -> None:
    sizes = [3, 1, 4, 1, 5, 9, 2, 6]
    positions = clustered(sizes, 200)
    found = decluster(positions, int(positions[-1]) + 200)
    assert found.sizes.tolist() == sizes
    assert positions[np.cumsum([0, *sizes[:-1]])].tolist() == found.first.tolist()
    assert found.exceedances == sum(sizes)
    assert found.design_effect == pytest.approx(sum(s * s for s in sizes) / sum(sizes))


def test_one_tight_clump_in_a_long_quiet_series_is_one_cluster() -> None:
    found = decluster(np.arange(5000, 5012), 20_000)
    assert found.sizes.tolist() == [12]
    assert found.design_effect == 12


def test_a_clump_across_the_end_of_the_series_is_one_cluster() -> None:
    positions = np.array([0, 1, 2, 3, 4000, 4001, 4002, 9997, 9998, 9999])
    assert decluster(positions, 10_000).sizes.tolist() == [7, 3] or decluster(positions, 10_000).sizes.tolist() == [
        3,
        7,
    ]


def test_clusters_never_cross_runs() -> None:
    positions = clustered([6, 6, 6], 100)
    middle = int(positions[9])
    whole = decluster(positions, 500)
    split = decluster(positions, 500, np.array([middle]))
    assert whole.sizes.tolist() == [6, 6, 6]
    assert split.sizes.tolist() == [6, 3, 3, 6]
    assert split.first.tolist() == [positions[0], positions[6], positions[9], positions[12]]


def test_exceedances_one_by_one_have_extremal_index_one() -> None:
    assert extremal_index(np.full(50, 100)) == 1
    assert decluster(np.arange(0, 5000, 100), 5000).design_effect == 1


def test_the_extremal_index_is_the_intervals_estimate_of_ferro_and_segers() -> None:
    # 2 (sum of t - 1)^2 over n sum of (t - 1) (t - 2), where a gap is longer than two.
    assert extremal_index(np.array([1, 1, 5, 1, 9])) == pytest.approx(2 * 12**2 / (5 * (4 * 3 + 8 * 7)))


def test_extremal_index_of_a_moving_maximum_is_one_over_its_length() -> None:
    rng = np.random.default_rng(3)
    noise = 1 / -np.log(rng.random(400_003))
    series = np.max([noise[i : i + 400_000] for i in range(4)], axis=0)
    found = measure_dependence(series)
    assert found is not None
    assert found.extremal_index == pytest.approx(0.25, rel=0.1)
    assert found.design_effect == pytest.approx(4, rel=0.25)


def test_design_effect_of_a_queue_is_the_overdispersion_of_its_miss_counts() -> None:
    queue = known.mm1(0.5)
    rng = np.random.default_rng(11)
    deadline_s = queue.quantile_s(0.999)
    series = queue.draw(6_000_000, rng)
    counts = (series.reshape(600, -1) > deadline_s).sum(axis=1)
    effects = [measure_dependence(part).design_effect for part in series[:1_500_000].reshape(5, -1)]
    assert np.mean(effects) == pytest.approx(counts.var() / counts.mean(), rel=0.25)


def test_independent_samples_are_nearly_worth_themselves() -> None:
    found = measure_dependence(np.random.default_rng(5).standard_exponential(300_000))
    assert found is not None
    assert 1 <= found.design_effect < 1.3


def test_the_misses_count_as_a_level_of_their_own() -> None:
    series = np.random.default_rng(6).random(20_000)
    series[7000:7015] = math.inf
    quiet = measure_dependence(series)
    with_misses = measure_dependence(series, deadline_s=2.0)
    assert quiet is not None
    assert with_misses is not None
    assert with_misses.design_effect == 15 > quiet.design_effect


def test_too_few_exceedances_of_every_level_is_no_answer() -> None:
    rng = np.random.default_rng(7)
    assert measure_dependence(rng.random(900)) is None
    assert measure_dependence(rng.random(1000)) is not None
    assert measure_dependence(np.full(100_000, 0.01)) is None


def test_rounded_latencies_still_have_a_tail_level() -> None:
    series = np.where(np.arange(10_000) % 50 == 0, 0.002, 0.001)
    assert tail_thresholds(series, (0.99,)) == {0.001}
    assert measure_dependence(series) is not None


def test_samples_never_answered_are_infinite() -> None:
    assert as_series([0.1, math.nan, math.inf]).tolist() == [0.1, math.inf, math.inf]


@pytest.mark.parametrize("latencies", [[], [[0.1]], [0.1, -0.2]])
def test_latencies_that_are_no_series_are_refused(latencies: list[float]) -> None:
    with pytest.raises(ValueError, match=r"latenc"):
        as_series(latencies)


def test_run_ids_must_be_contiguous_and_complete() -> None:
    assert run_boundaries(["a", "a", "b", "c", "c"], 5).tolist() == [2, 3]
    assert run_boundaries(None, 5).size == 0
    with pytest.raises(ValueError, match="not contiguous"):
        run_boundaries([1, 2, 1], 3)
    with pytest.raises(ValueError, match="one id for each"):
        run_boundaries([1, 2], 3)
