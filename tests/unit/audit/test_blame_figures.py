"""A figure with few runs behind it reaches its target only if its confidence limit does."""

from __future__ import annotations

import math

import pytest

from benchmarks.blame import _told
from benchmarks.figures import Figure, at_least, at_most


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


def test_a_run_that_was_not_valid_shows_nothing_on_whichever_side_of_its_target() -> None:
    figures = (at_most("a", value, 5, valid=valid) for value, valid in ((4, True), (4, False), (6, False)))
    assert [(figure.said, figure.reached) for figure in figures] == [
        ("yes", True),
        ("not shown", False),
        ("not shown", False),
    ]
    assert Figure("a", 4, valid=False).reached
