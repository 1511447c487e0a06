"""Servers are compared at the same p99 and nowhere else."""

from __future__ import annotations

import pytest

from benchmarks.loads import Load, busiest, within

RISING = [Load(1, 500.0, 2.0), Load(2, 900.0, 3.0), Load(4, 1000.0, 6.0), Load(8, 950.0, 12.0)]


@pytest.mark.parametrize(
    ("p99_ms", "per_s"), [(1.0, 0.0), (2.0, 500.0), (2.5, 700.0), (4.5, 950.0), (6.0, 1000.0), (100.0, 1000.0)]
)
def test_what_a_server_answers_at_a_p99_lies_between_the_loads_around_it(p99_ms: float, per_s: float) -> None:
    assert within(RISING, p99_ms) == pytest.approx(per_s)


def test_a_load_with_a_better_tail_than_a_smaller_one_counts() -> None:
    assert within([Load(1, 500.0, 9.0), Load(2, 900.0, 3.0)], 4.0) == pytest.approx(900.0)


def test_a_server_is_busiest_where_it_answers_the_most() -> None:
    assert busiest(RISING).calls == 4
