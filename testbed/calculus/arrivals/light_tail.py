"""Is a sample's tail light? The likelihood-ratio test of a generalised Pareto tail against an exponential one.

Bounds by moment generating functions are void for heavy tails, so a fit must ask first. The exceedances over a high
order statistic follow a generalised Pareto law; shape xi = 0 is exponential (light), xi > 0 is a power law. The test is
one-sided and its critical value is that of chi-square with one degree of freedom (Hosking & Wallis 1987; Coles 2001,
section 4.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc

from testbed.calculus.errors import CalculusError
from testbed.calculus.numeric import FloatArray

_GRID = 400


@dataclass(frozen=True, slots=True)
class TailTest:
    """The result of the test.

    Attributes:
        shape: Estimate of xi; at least 0.
        statistic: Twice the gain in log-likelihood.
        p_value: One-sided probability of so much under an exponential tail.
        exceedances: How many values the test used.
    """

    shape: float
    statistic: float
    p_value: float
    exceedances: int


def generalised_pareto_test(samples: FloatArray, upper_fraction: float = 0.1) -> TailTest:
    """Test the largest values of a sample for a power-law tail.

    Args:
        samples: Independent or declustered values, shape (n,).
        upper_fraction: Fraction of the sample that counts as tail.

    Raises:
        CalculusError: Fewer than 20 values would be in the tail.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    count = int(len(ordered) * upper_fraction)
    if count < 20:
        raise CalculusError(
            f"a tail of {count} values is too short to test; {int(np.ceil(20 / upper_fraction))} samples are needed"
        )
    excess = ordered[-count:] - ordered[-count - 1]
    excess = excess[excess > 0.0]
    if len(excess) < 20:
        return TailTest(0.0, 0.0, 1.0, len(excess))
    mean = float(excess.mean())
    exponential = -len(excess) * (np.log(mean) + 1.0)
    # With t = xi/sigma fixed the best shape is the mean of ln(1 + t y): a profile over one number.
    t = np.geomspace(1e-4, 1e3, _GRID)[:, None] / mean
    shape = np.log1p(t * excess).mean(axis=1)
    pareto = -len(excess) * (np.log(shape / t[:, 0]) + shape + 1.0)
    best = int(np.argmax(pareto))
    statistic = max(0.0, 2.0 * float(pareto[best] - exponential))
    if statistic == 0.0:
        return TailTest(0.0, 0.0, 1.0, len(excess))
    return TailTest(float(shape[best]), statistic, 0.5 * float(chdtrc(1, statistic)), len(excess))
