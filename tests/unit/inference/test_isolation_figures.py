"""How the benchmark says what a flood does to a tenant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks import inference_isolation as isolation
from benchmarks.figures import at_most


@dataclass
class Answers:
    """What of a record the figures are made of."""

    latency_s: npt.NDArray[np.float64]
    status: npt.NDArray[np.int16]


def answers(*latency_s: float) -> Answers:
    """Requests that took so long; no answer where that is not a number."""
    taken_s = np.array(latency_s)
    return Answers(taken_s, np.where(np.isnan(taken_s), 4, 0).astype(np.int16))


def test_a_tail_that_grew_by_a_quarter_did() -> None:
    was, became, limits = isolation._growth([answers(0.01, 0.02)] * 5, [answers(0.01, 0.025)] * 5, 0.999)  # type: ignore[list-item]
    assert (was, became) == pytest.approx((20.0, 25.0))
    assert limits == pytest.approx((25.0, 25.0))


def test_requests_without_an_answer_are_the_longest_of_all() -> None:
    was, became, limits = isolation._growth([answers(0.01, 0.02)] * 5, [answers(0.01, np.nan)] * 5, 0.999)  # type: ignore[list-item]
    figure = at_most("growth", 100 * (became / was - 1), 10.0, limits=limits)
    assert became == np.inf
    assert not figure.reached
    assert figure.to_dict()["limits"] == (None, None)


def test_where_a_tail_was_without_an_answer_before_nothing_is_shown() -> None:
    was, became, limits = isolation._growth([answers(np.nan)] * 5, [answers(np.nan)] * 5, 0.999)  # type: ignore[list-item]
    assert not at_most("growth", 100 * (became / was - 1), 10.0, limits=limits).reached


def test_another_rests_offers_its_own_rate_and_floods_in_turn() -> None:
    time_s = np.sort(np.random.default_rng(2).uniform(0.0, 120.0, 60_000))
    kept = time_s[isolation._in_turn(time_s, [0.0, 0.1, 1.0], seed=1)]
    found = np.bincount((kept // 4.0).astype(int) % 3, minlength=3)
    assert found.tolist() == [0, pytest.approx(2_000, rel=0.1), pytest.approx(20_000, rel=0.02)]
