"""The yardsticks themselves: each process has the quantiles it claims."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.audit import known

PROCESSES = [
    known.exponential(),
    known.lognormal(),
    known.pareto(),
    known.hiccups(),
    known.mm1(0.3),
    known.mm1(0.7),
    known.arma_lognormal(),
]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)
@pytest.mark.parametrize("level", [0.9, 0.999])
def test_quantiles_are_true(process: known.Known, level: float) -> None:
    series = process.draw(3_000_000, np.random.default_rng(1))
    assert np.mean(series > process.quantile_s(level)) == pytest.approx(1 - level, rel=0.12)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)
def test_processes_start_in_equilibrium(process: known.Known) -> None:
    rng = np.random.default_rng(2)
    first = np.array([process.draw(1, rng)[0] for _ in range(20_000)])
    assert np.mean(first > process.quantile_s(0.9)) == pytest.approx(0.1, abs=0.007)


@pytest.mark.slow
def test_a_simulated_truth_is_that_of_another_simulation() -> None:
    tandem = known.on_off_tandem(load=0.6, burst=5)
    series = tandem.draw(30_000_000, np.random.default_rng(3))
    for level, rel in ((0.99, 0.05), (0.999, 0.2)):
        assert np.mean(series > tandem.quantile_s(level)) == pytest.approx(1 - level, rel=rel)
    with pytest.raises(ValueError, match="says nothing there"):
        tandem.quantile_s(0.5)
