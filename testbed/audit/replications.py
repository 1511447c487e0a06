"""A certificate from many independent runs, each run one observation: a t-interval of their miss rates, with care.

It needs no view of how misses cling together within a run, but it needs runs enough, and misses in most of them: where
most runs have none, the few that do have a skewed distribution and the t-interval certifies falsely (8 to 67 % of the
time at nominal 5 % on queues). Below that condition the answer is UNDETERMINED. Above it counts of rare clusters are
still skewed enough for 9 to 11 %, so the upper limit is the largest of the t-limit, the same with Johnson's correction
for skewness, and the binomial limit on counts divided by their dispersion between runs. Pooling runs on effective
counts instead is `testbed.audit.compliance`.

Sources: Law, "Simulation Modeling and Analysis" (2014), section 9.4.1, for independent replications; Johnson, "Modified
t tests and confidence intervals for asymmetrical populations", J. Am. Stat. Assoc. 73 (1978).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from testbed.audit.clusters import as_series, run_boundaries
from testbed.audit.compliance import Verdict, upper_limit

MIN_RUNS = 20
"""Fewer runs are no basis for a t-interval."""

MIN_WITH_MISS = 0.75
"""Smallest share of runs that must contain a miss."""


@dataclass(frozen=True, slots=True)
class Replications:
    """What independent runs say together.

    Attributes:
        runs: Independent runs.
        runs_with_miss: Runs with at least one miss.
        miss_rate: Mean of the runs' miss rates.
        miss_rate_upper: One-sided upper confidence limit; 1 where the condition is not met.
        miss_rate_lower: One-sided lower confidence limit; 0 where the condition is not met.
        verdict: PASS, FAIL or UNDETERMINED.
        reason: The verdict in one sentence.
    """

    runs: int
    runs_with_miss: int
    miss_rate: float
    miss_rate_upper: float
    miss_rate_lower: float
    verdict: Verdict
    reason: str


def judge_replications(
    latency_s: npt.ArrayLike, runs: npt.ArrayLike, deadline_s: float, epsilon: float, confidence: float = 0.95
) -> Replications:
    """Judge a promise by independent runs.

    Args:
        latency_s: Latencies in seconds; NaN or inf: never answered.
        runs: Run id of each sample, samples of one run together.
        deadline_s: Promised latency in seconds.
        epsilon: Promised largest rate of misses.
        confidence: Of each one-sided limit.

    Raises:
        ValueError: Latencies or run ids that do not fit together.
    """
    series = as_series(latency_s)
    starts = np.concatenate([[0], run_boundaries(runs, series.size)])
    missed = np.add.reduceat((series > deadline_s).astype(np.float64), starts)
    sizes = np.diff(np.append(starts, series.size))
    rates = missed / sizes
    count, with_miss, mean = rates.size, int(np.count_nonzero(missed)), float(rates.mean())
    if count < MIN_RUNS or with_miss < MIN_WITH_MISS * count:
        return Replications(
            count, with_miss, mean, 1.0, 0.0, Verdict.UNDETERMINED,
            f"{with_miss} of {count} runs contain a miss; a certificate from runs needs at least {MIN_RUNS} runs and a "
            f"miss in {MIN_WITH_MISS:.0%} of them.",
        )  # fmt: skip
    half = float(stdtrit(count - 1, confidence)) * float(rates.std(ddof=1)) / math.sqrt(count)
    dispersion = max(1.0, float(missed.var(ddof=1) / missed.mean()))
    counted = upper_limit(math.ceil(missed.sum() / dispersion), series.size / dispersion, confidence)
    upper = min(1.0, max(mean + half + max(0.0, _skewness(rates, half)), counted))
    lower = max(0.0, mean - half)
    verdict = Verdict.PASS if upper <= epsilon else Verdict.FAIL if lower > epsilon else Verdict.UNDETERMINED
    return Replications(
        count, with_miss, mean, upper, lower, verdict,
        f"{count} independent runs put the miss rate between {lower:.3g} and {upper:.3g} "
        f"({confidence:.0%} confidence each way), {epsilon:g} was promised.",
    )  # fmt: skip


def _skewness(rates: npt.NDArray[np.float64], half: float) -> float:
    """Johnson's shift of a limit at distance `half` from the mean."""
    n, variance = rates.size, float(rates.var(ddof=1))
    if variance == 0:
        return 0.0
    third = float(((rates - rates.mean()) ** 3).sum()) * n / ((n - 1) * (n - 2))
    return third / (6 * variance * n) + third / (3 * variance**2) * half**2
