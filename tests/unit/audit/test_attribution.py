"""Shares of the tail: they add up, they find the culprit, and they stay silent where nothing is clear."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from testbed.audit import known
from testbed.audit.attribution import attribute


def domains(rng: np.random.Generator, n: int, *, hit: float = 0.0, pause_s: float = 0.03) -> dict[str, np.ndarray]:
    """Four queues of mean service time 1 ms; the third delays a share of the requests."""
    parts = {name: known.mm1(0.5).draw(n, rng) * 1e-3 for name in ("north", "east", "south", "west")}
    parts["south"] += np.where(rng.random(n) < hit, rng.exponential(pause_s, n), 0.0)
    return parts


def cvar(values: np.ndarray, level: float) -> float:
    kept = round(values.size * (1 - level))
    return float(np.sort(values)[-kept:].mean())


def test_both_methods_are_those_of_their_definitions() -> None:
    parts = domains(np.random.default_rng(1), 20_000, hit=0.01)
    names, x = list(parts), np.stack(list(parts.values()))
    total, level = x.sum(axis=0), 0.99
    found = attribute(parts, level)
    excess = cvar(total, level) - total.mean()
    slowest = np.argsort(total)[-200:]
    value = {
        subset: cvar(x[list(subset)].sum(axis=0), level) - x[list(subset)].sum(axis=0).mean() if subset else 0.0
        for size in range(5)
        for subset in itertools.combinations(range(4), size)
    }
    for i, name in enumerate(names):
        orders = [order[: order.index(i)] for order in itertools.permutations(range(4))]
        joins = [value[tuple(sorted((*before, i)))] - value[tuple(sorted(before))] for before in orders]
        euler = x[i, slowest].mean() - x[i].mean()
        assert found.blame[name].euler.share == pytest.approx(euler / excess, rel=1e-9)
        assert found.blame[name].shapley.share == pytest.approx(np.mean(joins) / excess, rel=1e-9)
    assert found.excess_s == pytest.approx(excess)
    assert found.cvar_s == pytest.approx(cvar(total, level))


@pytest.mark.parametrize("count", [10, 15])
def test_many_parts_take_some_orders_of_adding_and_come_close_to_all_of_them(count: int) -> None:
    rng = np.random.default_rng(11)
    parts = domains(rng, 20_000, hit=0.02)
    exact = attribute(parts, 0.98)
    # Parts that never vary join without effect, so the exact values of the others are known.
    still = {f"still {i}": np.full(20_000, 1e-3) for i in range(count - 4)}
    found = attribute(parts | still, 0.98)
    assert sum(blame.shapley.share for blame in found.blame.values()) == pytest.approx(1)
    for name in still:
        assert found.blame[name].shapley.share == pytest.approx(0, abs=1e-9)
    for name in parts:
        assert found.blame[name].euler.share == pytest.approx(exact.blame[name].euler.share)
        assert found.blame[name].shapley.share == pytest.approx(exact.blame[name].shapley.share, abs=0.025)
    assert found.named == exact.named == "south"


def test_shares_of_each_method_add_up_to_one() -> None:
    found = attribute(domains(np.random.default_rng(2), 30_000, hit=0.02))
    assert sum(blame.euler.share for blame in found.blame.values()) == pytest.approx(1)
    assert sum(blame.shapley.share for blame in found.blame.values()) == pytest.approx(1)


@pytest.mark.parametrize("hit", [0.005, 0.02, 0.05])
def test_a_delay_injected_in_one_domain_names_that_domain(hit: float) -> None:
    rng = np.random.default_rng(3)
    named = [attribute(domains(rng, 20_000, hit=hit)).named for _ in range(20)]
    assert named.count("south") >= 19


def test_equal_domains_are_seldom_named() -> None:
    rng = np.random.default_rng(4)
    named = [attribute(domains(rng, 20_000)).named for _ in range(30)]
    assert sum(name is not None for name in named) <= 4


def test_intervals_hold_the_share_of_a_long_series() -> None:
    rng = np.random.default_rng(5)
    truth = attribute(domains(rng, 1_000_000, hit=0.01), 0.98).blame["south"]
    outside = {"euler": 0, "shapley": 0}
    for _ in range(50):
        blame = attribute(domains(rng, 20_000, hit=0.01), 0.98).blame["south"]
        outside["euler"] += not blame.euler.lower <= truth.euler.share <= blame.euler.upper
        outside["shapley"] += not blame.shapley.lower <= truth.shapley.share <= blame.shapley.upper
    # Nominal 5 %; three standard deviations of 50 repetitions are 8 points.
    assert max(outside.values()) <= 0.14 * 50


def test_without_enough_independent_events_there_is_no_interval_and_no_name() -> None:
    parts = {"a": np.random.default_rng(6).random(300), "b": np.zeros(300)}
    found = attribute(parts)
    assert found.level == 0.95
    assert found.named is None
    assert found.blame["a"].euler.lower is None
    assert found.blame["a"].euler.share == pytest.approx(1)


def test_the_tail_is_as_extreme_as_the_events_in_it_allow() -> None:
    rng = np.random.default_rng(7)
    assert attribute(domains(rng, 300_000)).level == 0.999
    assert attribute(domains(rng, 5000)).level < 0.99


def test_requests_that_never_finished_have_no_share() -> None:
    parts = domains(np.random.default_rng(8), 20_000, hit=0.02)
    with_losses = {name: part.copy() for name, part in parts.items()}
    with_losses["east"][::10] = math.nan
    kept = {name: np.delete(part, np.arange(0, 20_000, 10)) for name, part in parts.items()}
    found = attribute(with_losses, 0.99)
    assert found.left_out == 2000
    assert replace(found, left_out=0) == attribute(kept, 0.99)


def test_the_same_evidence_gives_the_same_shares() -> None:
    parts = domains(np.random.default_rng(9), 20_000, hit=0.02)
    assert attribute(parts) == attribute(parts)


def test_resampled_blocks_never_cross_runs() -> None:
    parts = domains(np.random.default_rng(10), 20_000, hit=0.02)
    pooled = attribute(parts, 0.99, runs=np.repeat([0, 1], 10_000))
    whole = attribute(parts, 0.99)
    assert pooled.blame["south"].euler.share == pytest.approx(whole.blame["south"].euler.share)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "found 0"),
        ({str(i): np.ones(5) for i in range(21)}, "found 21"),
        ({"a": np.ones(5), "b": np.ones(6)}, "one length"),
        ({"a": np.full(5, math.nan)}, "fewer than two"),
        ({"a": np.ones(500)}, "no excess"),
    ],
)
def test_parts_that_share_nothing_out_are_refused(parts: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attribute(parts)
