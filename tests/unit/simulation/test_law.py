"""Laws on a grid are never smaller than what they stand for, and not much larger."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.simulation.law import Law


def mean(law: Law) -> float:
    return sum(value * share for value, share in law.atoms)


def test_a_sample_is_rounded_up_by_less_than_a_step() -> None:
    drawn = np.random.default_rng(1).lognormal(0.0, 0.5, 10_000)
    law = Law.of_sample(drawn)
    values, share = np.array(law.atoms).T
    assert share.sum() == pytest.approx(1.0)
    assert values[-1] == drawn.max()
    for level in (0.1, 0.5, 0.9, 0.999):
        rounded = values[np.searchsorted(np.cumsum(share), level)]
        assert 1.0 <= rounded / np.quantile(drawn, level) < 1.06


def test_a_sum_is_that_of_independent_values() -> None:
    one, other = Law(((1.0, 0.5), (2.0, 0.5))), Law(((0.0, 0.75), (10.0, 0.25)))
    total = one.plus(other)
    assert sum(share for _, share in total.atoms) == pytest.approx(1.0)
    assert mean(one) + mean(other) <= mean(total) < 1.06 * (mean(one) + mean(other))
    assert total.atoms[-1] == (pytest.approx(12.0), pytest.approx(0.125))


def test_what_happens_sometimes_is_nothing_otherwise() -> None:
    law = Law(((4.0, 1.0),)).sometimes(0.25)
    assert law.atoms == ((0.0, 0.75), (4.0, 0.25))
    assert law.times(2.0).atoms[1] == (8.0, 0.25)
    assert law.sometimes(1.0) is law
