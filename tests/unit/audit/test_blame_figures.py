"""A figure with few runs behind it reaches its target only if its confidence limit does."""

from __future__ import annotations

import math

import pytest

from benchmarks.blame import _told
from benchmarks.figures import at_least, at_most


@pytest.mark.parametrize(
    ("true", "of", "said"),
    [(20, 20, "not shown"), (59, 59, "yes"), (15, 20, "NO"), (19, 20, "not shown"), (0, 0, "NO")],
)
def test_so_many_of_so_many_runs_show_95_percent(true: int, of: int, said: str) -> None:
    figure = _told("named", [True] * true + [False] * (of - true), at_least, 95, "")
    assert figure.said == said
    assert figure.reached == (said == "yes")
    assert figure.to_dict()["undecided"] == (said == "not shown")


@pytest.mark.parametrize(("true", "of", "said"), [(0, 20, "not shown"), (0, 59, "yes"), (6, 20, "NO")])
def test_so_many_of_so_many_runs_show_at_most_5_percent(true: int, of: int, said: str) -> None:
    assert _told("another named", [True] * true + [False] * (of - true), at_most, 5, "").said == said


def test_a_figure_without_limits_stands_for_itself() -> None:
    figures = at_least("a", 95, 95), at_least("a", 94, 95), at_most("a", math.nan, 5)
    assert [figure.said for figure in figures] == ["yes", "NO", "NO"]
