"""Histograms that add up, exact extremes, and quantiles whose limits hold."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from testbed.report.tenant_record import BoundRecord
from testbed.scenario.model import PoissonArrivals, Promise
from testbed.simulation.clock import PS_PER_S
from testbed.simulation.estimate import beyond, design_effect, quantile
from testbed.simulation.judge import is_broken
from testbed.simulation.tally import (
    BATCHES,
    COARSE_BINS,
    EXTREMES,
    FINE_BINS,
    METER,
    QUEUE,
    Tally,
    coarse_edges_ps,
    fine_edges_ps,
    merge,
)
from testbed.simulation.wave import Wave
from tests.unit.simulation.references import wave_of
from tests.unit.simulation.systems import tenant

WINDOW_PS = 100 * PS_PER_S
BATCH_PS = WINDOW_PS // BATCHES


def delivered(latency_ps: np.ndarray) -> Wave:
    born = np.linspace(0, WINDOW_PS - 1, latency_ps.size).astype(np.int64)
    return wave_of(born, np.full(born.size, 800)).at(born + latency_ps.astype(np.int64))


def tally_of(latency_ps: np.ndarray, deadline_ps: int | None = None) -> Tally:
    tally = Tally.of([deadline_ps])
    for part in np.array_split(np.arange(latency_ps.size), 7):
        tally.deliver(delivered(latency_ps).take(part), BATCH_PS)
    return tally


def lognormal(n: int, seed: int = 1) -> np.ndarray:
    return np.rint(np.exp(np.random.default_rng(seed).normal(np.log(1e10), 1.5, n)))


@pytest.mark.parametrize("edges", [fine_edges_ps(), coarse_edges_ps()], ids=["fine", "coarse"])
def test_a_latency_on_an_edge_falls_into_the_bin_above_it(edges: np.ndarray) -> None:
    fine = edges.size == FINE_BINS + 1
    # Beyond 2^53 ps, two and a half hours, a float no longer tells neighbours apart.
    chosen = np.arange(1, np.searchsorted(edges, 2.0**53), 97)
    on_edge = np.ceil(edges[chosen]).astype(np.int64)
    for latency, where in ((on_edge, chosen), (on_edge - 1, chosen - 1)):
        tally = tally_of(latency)
        counts = tally.fine[0] if fine else tally.coarse[:, 0].sum(axis=0)
        assert np.flatnonzero(counts).tolist() == sorted(set(where.tolist()))


def test_bins_are_as_narrow_as_they_say() -> None:
    edges = fine_edges_ps()[1:]
    assert np.max(np.diff(edges) / edges[:-1]) <= 1 / 512 + 1e-12
    assert edges[-1] >= 2**62


@pytest.mark.parametrize("n", [500, 50_000, 3_000_000])
@pytest.mark.parametrize("level", [0.5, 0.99, 0.999, 0.9999])
def test_quantiles_of_a_tally_are_those_of_the_packets(n: int, level: float) -> None:
    latency = lognormal(n)
    found = quantile(tally_of(latency), 0, level, None).estimate_s
    beyond = int(np.floor(n * (1 - level) + 1e-9))
    if beyond == 0:
        assert found is None
        return
    exact = np.sort(latency)[n - 1 - beyond] / PS_PER_S
    assert found == pytest.approx(exact, rel=1e-12 if beyond < EXTREMES else 1 / 512)


def test_extremes_are_exact_however_many_packets_there_are() -> None:
    latency = lognormal(200_000)
    tally = tally_of(latency)
    kept = np.sort(tally.top[0, : tally.top_count[0]])[::-1]
    assert kept.size >= EXTREMES
    assert np.array_equal(kept[:EXTREMES], np.sort(latency)[::-1][:EXTREMES])
    assert tally.largest_ps[0] == latency.max()
    assert tally.smallest_ps[0] == latency.min()


def test_tallies_of_parts_add_up_to_the_tally_of_the_whole(tmp_path: Path) -> None:
    latency = lognormal(30_000)
    whole = tally_of(latency, deadline_ps=2 * 10**10)
    parts = [tally_of(part, deadline_ps=2 * 10**10) for part in np.array_split(latency, 3)]
    parts[1].save(tmp_path / "tally.npz")
    parts[1] = Tally.load(tmp_path / "tally.npz")
    merged = merge(parts)
    for name in ("fine", "n", "lost", "late", "smallest_ps", "largest_ps"):
        assert np.array_equal(getattr(merged, name), getattr(whole, name)), name
    assert merged.late[0] == np.count_nonzero(latency > 2e10)
    assert merged.sum_ps[0] == pytest.approx(latency.sum())
    assert merged.coarse.shape == (3 * BATCHES, 1, COARSE_BINS)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_a_quantile_of_windows_of_very_different_latency_is_that_of_all_packets(order: tuple[int, ...]) -> None:
    """The first is ten times slower and has just dropped half of what it held; the last has never dropped any."""
    windows = [10 * lognormal(2_100, 1), lognormal(3_000, 2), lognormal(100, 3)]
    merged = merge(tally_of(windows[index]) for index in order)
    latency = np.sort(np.concatenate(windows))[::-1]
    kept = np.sort(merged.top[0, : merged.top_count[0]])[::-1]
    assert kept.size >= EXTREMES
    assert np.array_equal(kept, latency[: kept.size])
    for place in (EXTREMES - 1, EXTREMES, 1_500, 2_047):
        found = quantile(merged, 0, 1 - place / latency.size, None).estimate_s
        assert found == pytest.approx(latency[place] / PS_PER_S, rel=1 / 512)


def test_merges_of_merges_keep_only_sure_extremes() -> None:
    windows = [scale * lognormal(3_000, seed) for seed, scale in enumerate((1.0, 10.0, 1.0, 100.0))]
    first, second, third, fourth = map(tally_of, windows)
    merged = merge([merge([first, second]), merge([third, fourth])])
    kept = np.sort(merged.top[0, : merged.top_count[0]])[::-1]
    assert np.array_equal(kept, np.sort(np.concatenate(windows))[::-1][: kept.size])


def test_lost_packets_are_slower_than_all_others() -> None:
    tally = tally_of(lognormal(9_000))
    tally.lose(delivered(np.zeros(1_000)), BATCH_PS, cause=2)
    assert tally.n[0] == 10_000
    assert tally.lost[0].tolist() == [0, 0, 1_000, 0, 0]
    assert quantile(tally, 0, 0.95, None).estimate_s is None
    exact = np.sort(lognormal(9_000))[::-1][500] / PS_PER_S
    assert quantile(tally, 0, 0.85, None).estimate_s == pytest.approx(exact, rel=1e-12)


def test_independent_packets_are_worth_what_they_are() -> None:
    effects = [design_effect(tally_of(lognormal(100_000, seed)), 0) for seed in range(20)]
    assert all(effect is not None and effect < 2.5 for effect in effects)


def test_packets_that_come_in_clusters_of_fifty_are_worth_a_fiftieth() -> None:
    latency = np.repeat(lognormal(4_000), 50)
    effect = design_effect(tally_of(latency), 0)
    assert effect is not None
    assert 25 < effect < 110


def test_limits_hold_the_true_quantile_of_clustered_packets_as_often_as_they_say() -> None:
    true_s = 1e10 * np.exp(1.5 * 3.0902) / PS_PER_S
    held = 0
    for seed in range(100):
        tally = tally_of(np.repeat(lognormal(5_000, seed), 20))
        found = quantile(tally, 0, 0.999, design_effect(tally, 0))
        held += (found.lower_s or 0.0) <= true_s <= (found.upper_s or np.inf)
    assert held >= 93


def test_the_design_effect_is_the_scatter_of_parts_over_that_of_coins() -> None:
    """Five and fifteen of a thousand by turns: 32/31 * 32 * 5^2 over 32,000 * 1 % * 99 %, times (t/z)^2 of 31."""
    tally = Tally.of([None])
    tally.coarse[:, 0, 100] = [995, 985] * (BATCHES // 2)
    tally.coarse[:, 0, 200] = [5, 15] * (BATCHES // 2)
    expected = 32 / 31 * 800 / (32_000 * 0.01 * 0.99) * (2.0395 / 1.9600) ** 2
    assert design_effect(tally, 0, (0.98,)) == pytest.approx(expected, rel=1e-3)


def test_too_few_slow_packets_say_nothing() -> None:
    assert design_effect(tally_of(lognormal(500)), 0) is None


def lossy() -> Tally:
    """Two tenants' windows: of the first 100 in time, 3 lost in a queue, 20 dropped by its meter."""
    tally = Tally.of([None, None])
    tally.deliver(delivered(np.full(100, 1e9)), BATCH_PS)
    tally.lose(delivered(np.zeros(3)), BATCH_PS, QUEUE)
    tally.lose(delivered(np.zeros(20)), BATCH_PS, METER)
    return tally


@pytest.mark.parametrize(("sent", "n", "in_time"), [(True, 123, 120), (False, 103, 100)])
def test_without_what_its_meter_dropped_a_tenant_has_lost_the_rest(sent: bool, n: int, in_time: int) -> None:
    tally = merge([lossy(), lossy()])
    own = tally.unmetered(0, sent=sent)
    assert (own.n[0], own.fine[0].sum(), own.lost[0, METER], own.lost[0, QUEUE]) == (2 * n, 2 * in_time, 0, 6)
    assert own.coarse.sum() == 2 * n
    assert own.coarse[:, 0, -1].sum() == 6
    assert (tally.n[0], tally.lost[0, METER], tally.coarse[:, 0, -1].sum()) == (246, 40, 46)


def test_what_meters_dropped_is_kept_by_part_of_the_window_on_disk(tmp_path: Path) -> None:
    tally = lossy()
    tally.save(tmp_path / "tally.npz")
    found = Tally.load(tmp_path / "tally.npz").metered
    assert found.tolist() == tally.metered.tolist()
    assert found[:, 0].sum() == 20
    assert np.count_nonzero(found[:, 0]) > 10


@pytest.mark.parametrize("n", [100, 50_000])
def test_packets_beyond_a_latency_are_counted_with_those_that_never_arrived(n: int) -> None:
    latency = lognormal(n)
    tally = tally_of(latency)
    tally.lose(delivered(np.zeros(5)), BATCH_PS, QUEUE)
    for level in (0.3, 0.9, 0.999):
        limit_s = float(np.quantile(latency, level)) / PS_PER_S
        exact = int(np.count_nonzero(latency > limit_s * PS_PER_S)) + 5
        found = beyond(tally, 0, limit_s)
        assert found <= exact
        assert found == (exact if exact < EXTREMES else pytest.approx(exact, rel=0.01))


def test_many_windows_together_need_no_more_memory_than_what_is_found_of_them() -> None:
    one = lossy()

    def windows() -> Iterator[Tally]:
        for _ in range(50):
            yield replace(one, coarse=one.coarse.copy(), metered=one.metered.copy())

    tracemalloc.start()
    try:
        found = merge(windows())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.coarse.shape[0] == 50 * BATCHES
    assert np.array_equal(found.coarse, np.concatenate([one.coarse] * 50))
    assert np.array_equal(found.metered, np.concatenate([one.metered] * 50))
    assert most < 1.3 * found.coarse.nbytes


@pytest.mark.parametrize(
    ("late", "broken"),
    [
        pytest.param(slice(None), True, id="every packet"),
        # Nine of ten thousand would refute one in ten thousand if each were worth itself; a part is worth one packet.
        pytest.param(slice(9), False, id="too few to tell how they cling together"),
        pytest.param(slice(0), False, id="none"),
    ],
)
def test_where_no_scatter_is_known_a_part_of_the_window_counts_for_one_packet(late: slice, broken: bool) -> None:
    latency = np.full(10_000, 1e9)
    latency[late] = 3e9
    one = replace(tenant("one", PoissonArrivals(100.0, 800), 1_000_000), promise=Promise(0.1, 1e-4))
    bound = BoundRecord(bound_s=2e-3, network_bound_s=2e-3, method="", assumptions=(), parts=())
    tally = tally_of(latency)
    assert design_effect(replace(tally, deadline_ps=np.array([2 * 10**9])), 0) is None
    assert is_broken(one, 0, tally, bound) is broken


def test_of_a_tenant_that_sent_nothing_no_bound_is_broken() -> None:
    one = tenant("one", PoissonArrivals(100.0, 800), 1_000_000)
    bound = BoundRecord(bound_s=2e-3, network_bound_s=2e-3, method="", assumptions=(), parts=())
    assert not is_broken(one, 0, Tally.of([None]), bound)
