"""Whether a promise "at most epsilon of the requests miss the deadline" was kept, broken, or cannot be told yet.

A count of misses, exact binomial limits on the effective counts n/D and m/D, and one sentence. It estimates no
quantile and trusts no model of the tail. A request that was never answered is a miss and stays in the count.

Sources: Clopper and Pearson, Biometrika 26 (1934), for the limits; `testbed.audit.clusters` for D.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from testbed.audit.clusters import MIN_EXCEEDANCES, TAIL_LEVELS, FloatArray, as_series, measure_dependence

_FURTHEST = 10**15
"""More samples than this are no answer."""


class Verdict(StrEnum):
    """What the data alone say about a promise."""

    PASS = "PASS"  # noqa: S105
    FAIL = "FAIL"
    UNDETERMINED = "UNDETERMINED"


@dataclass(frozen=True, slots=True)
class Compliance:
    """A promise, what was counted, and what follows.

    Attributes:
        deadline_s: Promised latency; a sample above it, or never answered, is a miss.
        epsilon: Promised largest rate of misses.
        confidence: Of each one-sided limit.
        n: Samples.
        misses: Samples above the deadline or never answered.
        design_effect: Samples that say as much as one independent sample; None where the data cannot say.
        n_effective: n / design_effect; None likewise.
        extremal_index: Of the level that set the design effect; None likewise.
        miss_rate_upper: Upper confidence limit of the true rate of misses; 1 where the data cannot say.
        miss_rate_lower: Lower confidence limit; 0 where the data cannot say.
        verdict: PASS if the upper limit is at most epsilon, FAIL if the lower limit is above it.
        samples_needed: About how many more samples of this kind would decide; 0 if decided, None if no number would.
        reason: The verdict in one sentence.
    """

    deadline_s: float
    epsilon: float
    confidence: float
    n: int
    misses: int
    design_effect: float | None
    n_effective: float | None
    extremal_index: float | None
    miss_rate_upper: float
    miss_rate_lower: float
    verdict: Verdict
    samples_needed: int | None
    reason: str


def upper_limit(misses: float, n: float, confidence: float) -> float:
    """One-sided upper Clopper-Pearson limit of a rate, for n samples of which some miss (both may be fractional)."""
    return 1.0 if misses >= n else float(betaincinv(misses + 1, n - misses, confidence))


def lower_limit(misses: float, n: float, confidence: float) -> float:
    """One-sided lower Clopper-Pearson limit of a rate, for n samples of which some miss (both may be fractional)."""
    return 0.0 if misses <= 0 else float(betaincinv(min(misses, n), max(n - misses, 0) + 1, 1 - confidence))


def samples_to_certify(misses: int, epsilon: float, confidence: float = 0.95) -> int:
    """Fewest independent samples with which so many misses still certify a miss rate of at most epsilon."""
    return _first(lambda n: n > misses and upper_limit(misses, n, confidence) <= epsilon, misses + 1) or 0


def judge(
    latency_s: npt.ArrayLike,
    deadline_s: float,
    epsilon: float,
    confidence: float = 0.95,
    runs: npt.ArrayLike | None = None,
) -> Compliance:
    """Judge one promise from latencies.

    Args:
        latency_s: Latencies in seconds in order of intended sending; NaN or inf: never answered.
        deadline_s: Promised latency in seconds.
        epsilon: Promised largest rate of misses, in (0, 1).
        confidence: One-sided confidence with which PASS and FAIL are said.
        runs: Run id of each sample if several independent runs of the same promise are pooled.

    Raises:
        ValueError: An impossible promise, or latencies that are not one series of non-negative numbers.
    """
    _require_possible(deadline_s, epsilon, confidence)
    series = as_series(latency_s)
    n, misses = series.size, int(np.count_nonzero(series > deadline_s))
    dependence = measure_dependence(series, deadline_s, runs)
    if dependence is None:
        needed, reason = _until_known(series, epsilon, confidence)
        return _unknown((deadline_s, epsilon, confidence), n, misses, needed, reason)
    effect = dependence.design_effect
    upper = upper_limit(math.ceil(misses / effect), n / effect, confidence)
    lower = lower_limit(math.floor(misses / effect), n / effect, confidence)
    worth = (
        f"{misses} of {n} samples missed {deadline_s * 1e3:g} ms, worth {_worth(misses / effect)} of {n / effect:.0f} "
        "independent ones"
    )
    promised = f"with {confidence:.0%} confidence, {epsilon:g} was promised"
    needed_more: int | None = 0
    if upper <= epsilon:
        verdict, reason = Verdict.PASS, f"{worth}: the miss rate is at most {upper:.3g} {promised}."
    elif lower > epsilon:
        verdict, reason = Verdict.FAIL, f"{worth}: the miss rate is at least {lower:.3g} {promised}."
    else:
        verdict = Verdict.UNDETERMINED
        needed_more = _samples_needed(n, misses, effect, epsilon, confidence)
        decide = "no number of" if needed_more is None else f"about {needed_more}"
        reason = (
            f"{worth}: the miss rate may lie anywhere from {lower:.3g} to {upper:.3g}, {epsilon:g} was promised; "
            f"{decide} more samples of this kind would decide."
        )
    return Compliance(
        deadline_s=deadline_s,
        epsilon=epsilon,
        confidence=confidence,
        n=n,
        misses=misses,
        design_effect=effect,
        n_effective=n / effect,
        extremal_index=dependence.extremal_index,
        miss_rate_upper=upper,
        miss_rate_lower=lower,
        verdict=verdict,
        samples_needed=needed_more,
        reason=reason,
    )


def judge_nothing(deadline_s: float, epsilon: float, confidence: float = 0.95) -> Compliance:
    """What is known of a promise without a single sample.

    Raises:
        ValueError: An impossible promise.
    """
    _require_possible(deadline_s, epsilon, confidence)
    needed = _least(epsilon, confidence)
    reason = f"There is not one sample of it, so nothing is known of this promise; at least {needed} are needed."
    return _unknown((deadline_s, epsilon, confidence), 0, 0, needed, reason)


def _require_possible(deadline_s: float, epsilon: float, confidence: float) -> None:
    if not (deadline_s > 0 and 0 < epsilon < 1 and 0.5 <= confidence < 1):
        raise ValueError(
            f"promise: found deadline {deadline_s} s, epsilon {epsilon}, confidence {confidence}; "
            "expected deadline > 0, 0 < epsilon < 1, 0.5 <= confidence < 1"
        )


def _unknown(asked: tuple[float, float, float], n: int, misses: int, needed: int | None, reason: str) -> Compliance:
    """The answer to a deadline, epsilon and confidence where nothing is known of how misses cluster."""
    deadline_s, epsilon, confidence = asked
    return Compliance(
        deadline_s=deadline_s,
        epsilon=epsilon,
        confidence=confidence,
        n=n,
        misses=misses,
        design_effect=None,
        n_effective=None,
        extremal_index=None,
        miss_rate_upper=1.0,
        miss_rate_lower=0.0,
        verdict=Verdict.UNDETERMINED,
        samples_needed=needed,
        reason=reason,
    )


def _least(epsilon: float, confidence: float) -> int:
    """Fewest samples that can say anything: enough to see the tail, and to certify if they are independent."""
    return max(math.ceil(MIN_EXCEEDANCES / (1 - TAIL_LEVELS[0])), samples_to_certify(0, epsilon, confidence))


def _worth(misses: float) -> str:
    """Independent misses: few of them to three digits, many as a whole number."""
    return f"{misses:.3g}" if misses < 999.5 else f"{misses:.0f}"


def _until_known(series: FloatArray, epsilon: float, confidence: float) -> tuple[int | None, str]:
    """How many more samples of this kind would show how misses cluster, None if no number would, and why."""
    n = series.size
    unknown = (
        f"{n} samples have fewer than {MIN_EXCEEDANCES} exceedances of any tail level, so nothing is known of how "
        "misses cluster"
    )
    above = int(np.count_nonzero(series > series.min()))
    if not above and n >= MIN_EXCEEDANCES:
        return None, (
            f"{unknown}; all of them are {series[0] * 1e3:g} ms, and no number of more samples that are all the same "
            "would decide."
        )
    # Below the smallest value that occurs there is no level, so ties leave only what lies above it to be seen.
    seen = math.ceil(MIN_EXCEEDANCES * n / above) if above else 0
    more = max(_least(epsilon, confidence), seen) - n
    return more, f"{unknown}; at least {more} more samples are needed."


def _samples_needed(n: int, misses: int, effect: float, epsilon: float, confidence: float) -> int | None:
    """Samples beyond n that decide if misses keep coming at the present rate and cling as they do now."""
    rate = misses / n

    def decides(total: int) -> bool:
        m, size = rate * total / effect, total / effect
        if rate < epsilon:
            return upper_limit(math.ceil(m), size, confidence) <= epsilon
        return lower_limit(math.floor(m), size, confidence) > epsilon

    total = _first(decides, n)
    return None if total is None else max(1, total - n)


def _first(holds: Callable[[int], bool], start: int) -> int | None:
    """An integer from `start` on where a predicate turns true; the smallest if it then stays true."""
    below, above = start - 1, start
    while not holds(above):
        below, above = above, 2 * above
        if above > _FURTHEST:
            return None
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if holds(middle) else (middle, above)
    return above
