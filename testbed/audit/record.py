"""Everything the audit says about one series of latencies, as one object, one JSON dictionary and a few sentences.

It calls the statistics and keeps them in order of authority: what the data say alone comes first, a fitted tail stands
beside it and changes nothing, blame comes last. Reading files is for `testbed.audit.table`, drawing for
`testbed.report`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from testbed.audit.attribution import Attribution, Share, attribute
from testbed.audit.causes import add_up
from testbed.audit.clusters import Dependence, FloatArray, as_series, measure_dependence
from testbed.audit.compliance import Compliance, judge, judge_nothing
from testbed.audit.quantile import Quantile, quantiles
from testbed.audit.replications import MIN_RUNS, Replications, judge_replications
from testbed.audit.tail import CLINGS, TailModel, tail_quantiles
from testbed.envelope.strict_json import MAX_INTEGER

LEVELS = (0.99, 0.999, 0.9999)
"""Quantiles that are reported."""

SCHEMA_VERSION = 1

ANSWERED = (
    "verdict",
    "n",
    "n_effective",
    "design_effect",
    "extremal_index",
    "misses",
    "miss_rate_upper",
    "quantiles",
    "blame",
)
"""What programs may rely on in the JSON form; it never changes its meaning without a new schema version."""

_NS, _PPB = 10**9, 10**9
_INTERVAL = ("estimate_s", "lower_s", "upper_s")


@dataclass(frozen=True, slots=True)
class Promise:
    """At most a fraction epsilon of the requests may take longer than the deadline."""

    deadline_s: float
    epsilon: float

    @classmethod
    def rounded(cls, deadline_s: float, epsilon: float) -> Promise:
        """A promise in whole nanoseconds and parts per billion, which is what a signed finding can hold.

        So what is judged is what is signed.

        Raises:
            ValueError: A promise that such numbers cannot hold.
        """
        if not 1 <= round(deadline_s * _NS) <= MAX_INTEGER:
            raise ValueError(
                f"deadline: found {deadline_s:g} s, expected 1 ns to {MAX_INTEGER // _NS:,} s, in whole nanoseconds"
            )
        if not 1 <= round(epsilon * _PPB) < _PPB:
            raise ValueError(f"epsilon: found {epsilon!r}, expected 1e-09 to 0.999999999, in whole parts per billion")
        return cls(round(deadline_s * _NS) / _NS, round(epsilon * _PPB) / _PPB)

    @property
    def deadline_ns(self) -> int:
        """The deadline in nanoseconds."""
        return round(self.deadline_s * _NS)

    @property
    def epsilon_ppb(self) -> int:
        """Epsilon in parts per billion."""
        return round(self.epsilon * _PPB)


@dataclass(frozen=True, slots=True)
class Audit:
    """One series, judged.

    Attributes:
        n: Requests.
        unanswered: Requests without an answer.
        dependence: What clustering costs; None where the data cannot say.
        compliance: The verdict; None where nothing was promised.
        replications: The verdict of independent runs; None with fewer than 20 runs or no promise.
        quantiles: Order statistics with their limits.
        tail: A fitted tail at the same levels, or why it was refused.
        attribution: Whose the tail is; None without parts.
        no_attribution: Why there is none although there are parts.
    """

    n: int
    unanswered: int
    dependence: Dependence | None
    compliance: Compliance | None
    replications: Replications | None
    quantiles: tuple[Quantile, ...]
    tail: tuple[TailModel, ...]
    attribution: Attribution | None
    no_attribution: str | None

    def answer(self) -> dict[str, Any]:
        """The part of `to_dict` that programs may rely on, under the same names."""
        whole = self.to_dict()
        return {name: whole[name] for name in ANSWERED} | {
            "quantiles": {
                level: {name: found[name] for name in _INTERVAL} for level, found in whole["quantiles"].items()
            }
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON form; null where the data cannot say, and for a latency that is infinite."""
        found, promise = self.dependence, self.compliance
        effect = promise.design_effect if promise else found.design_effect if found else None
        return {
            "schema": SCHEMA_VERSION,
            "verdict": str(promise.verdict) if promise else None,
            "reason": promise.reason if promise else None,
            "deadline_s": promise.deadline_s if promise else None,
            "epsilon": promise.epsilon if promise else None,
            "confidence": self.quantiles[0].confidence,
            "n": self.n,
            "n_effective": self.n / effect if effect else None,
            "design_effect": effect,
            "extremal_index": promise.extremal_index if promise else found.extremal_index if found else None,
            "misses": promise.misses if promise else self.unanswered,
            "unanswered": self.unanswered,
            "miss_rate_upper": promise.miss_rate_upper if promise else None,
            "miss_rate_lower": promise.miss_rate_lower if promise else None,
            "samples_needed": promise.samples_needed if promise else None,
            "replications": _replications(self.replications),
            "quantiles": {f"{q.level:g}": _quantile(q) for q in self.quantiles},
            "tail_model": {f"{model.level:g}": _tail(model) for model in self.tail},
            "blame": blame_dict(self.attribution),
            "blame_level": self.attribution.level if self.attribution else None,
            "blame_clusters": self.attribution.clusters if self.attribution else None,
            "blame_left_out": self.attribution.left_out if self.attribution else None,
            "named": self.attribution.named if self.attribution else None,
            "findings": list(self.sentences()),
        }

    def sentences(self) -> tuple[str, ...]:
        """One sentence for each finding, the most important first."""
        said = [self.compliance.reason] if self.compliance else []
        if self.replications:
            said.append(self.replications.reason)
        said += [_say_quantile(q) for q in self.quantiles]
        said += [_say_tail(model) for model in self.tail if model.estimate_s is not None]
        refusals = dict.fromkeys(model.refused for model in self.tail if model.refused)
        said += [f"No tail model: {why}" for why in refusals]
        if self.attribution:
            said.append(say_blame(self.attribution, self.unanswered))
        elif self.no_attribution:
            said.append(f"No blame: {self.no_attribution}")
        return tuple(said)


def audit_series(
    latency_s: npt.ArrayLike,
    promise: Promise | None = None,
    *,
    parts: Mapping[str, npt.ArrayLike] | None = None,
    runs: npt.ArrayLike | None = None,
    confidence: float = 0.95,
    levels: tuple[float, ...] = LEVELS,
) -> Audit:
    """Judge one series of latencies.

    Args:
        latency_s: Latencies in seconds in order of intended sending; NaN or inf: never answered.
        promise: What was promised, None to estimate only.
        parts: Seconds that each request spent in each domain, or on each cause; what they leave of the latency becomes
            a part of its own.
        runs: Run id of each request if several independent runs are pooled, requests of one run together.
        confidence: Of every limit.
        levels: Quantiles to report.

    Raises:
        ValueError: Arrays that do not fit together, negative latencies, or an impossible promise.
    """
    series = as_series(latency_s)
    compliance = judge(series, promise.deadline_s, promise.epsilon, confidence, runs) if promise else None
    replications = None
    if promise and runs is not None and np.unique(np.asarray(runs)).size >= MIN_RUNS:
        replications = judge_replications(series, runs, promise.deadline_s, promise.epsilon, confidence)
    attribution, why_not = None, None
    if parts:
        try:
            attribution = attribute(completed(series, parts), confidence=confidence, runs=runs)
        except ValueError as error:
            why_not = f"{error}."
    return Audit(
        n=series.size,
        unanswered=int(np.count_nonzero(np.isinf(series))),
        dependence=measure_dependence(series, promise.deadline_s if promise else None, runs),
        compliance=compliance,
        replications=replications,
        quantiles=quantiles(series, levels, confidence, runs),
        tail=tail_quantiles(series, levels, confidence, runs),
        attribution=attribution,
        no_attribution=why_not,
    )


def completed(series: FloatArray, parts: Mapping[str, npt.ArrayLike]) -> dict[str, FloatArray]:
    """The parts of each latency, and what they leave of it as a part of its own: what blame is shared out among.

    Args:
        series: Latencies in seconds, +inf for never answered (`testbed.audit.clusters.as_series`), [n].
        parts: Name to seconds spent there, [n] each.
    """
    return add_up(np.where(np.isinf(series), np.nan, series), {k: np.asarray(v, float) for k, v in parts.items()})


def audit_nothing(promise: Promise, *, confidence: float = 0.95, levels: tuple[float, ...] = LEVELS) -> Audit:
    """What can be said of a promise without a single sample: that it is UNDETERMINED.

    Raises:
        ValueError: An impossible promise.
    """
    refused = "there are no samples."
    return Audit(
        n=0,
        unanswered=0,
        dependence=None,
        compliance=judge_nothing(promise.deadline_s, promise.epsilon, confidence),
        replications=None,
        quantiles=tuple(Quantile(level, confidence, None, None, None, None, None) for level in levels),
        tail=tuple(TailModel(level, confidence, None, None, None, False, None, refused) for level in levels),
        attribution=None,
        no_attribution=None,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _quantile(q: Quantile) -> dict[str, float | None]:
    return {
        "estimate_s": _finite(q.estimate_s),
        "lower_s": _finite(q.lower_s),
        "upper_s": _finite(q.upper_s),
        "one_sided_lower_s": _finite(q.one_sided_lower_s),
    }


def _tail(model: TailModel) -> dict[str, Any]:
    threshold = model.threshold
    return {
        "estimate_s": model.estimate_s,
        "lower_s": model.lower_s,
        "upper_s": model.upper_s,
        "extrapolated": model.extrapolated,
        "threshold_s": threshold.threshold_s if threshold else None,
        "shape": threshold.shape if threshold else None,
        "refused": model.refused,
    }


def _replications(found: Replications | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "verdict": str(found.verdict),
        "runs": found.runs,
        "runs_with_miss": found.runs_with_miss,
        "miss_rate_upper": found.miss_rate_upper,
        "miss_rate_lower": found.miss_rate_lower,
        "reason": found.reason,
    }


def blame_dict(found: Attribution | None) -> dict[str, dict[str, dict[str, float | None]]]:
    """JSON form of everyone's shares; empty where there are none."""

    def share(of: Share) -> dict[str, float | None]:
        return {"share": of.share, "lower": of.lower, "upper": of.upper}

    parts = found.blame.items() if found else ()
    return {name: {"euler": share(blame.euler), "shapley": share(blame.shapley)} for name, blame in parts}


def _say_quantile(q: Quantile) -> str:
    name = f"p{100 * q.level:g}"
    if q.estimate_s is None:
        return f"{name} lies beyond the data: fewer than one sample in it is expected."
    low, high = _milliseconds(q.lower_s, "no lower limit"), _milliseconds(q.upper_s, "no upper limit")
    if math.isinf(q.estimate_s):
        limit = f"the {q.confidence:.0%} interval begins at {low}" if q.lower_s and math.isfinite(q.lower_s) else ""
        return f"{name} has no value: more than {1 - q.level:.4g} of them were never answered{limit and '; ' + limit}."
    return f"{name} is {_milliseconds(q.estimate_s, '')} ({q.confidence:.0%} interval: {low} to {high})."


def _say_tail(model: TailModel) -> str:
    how = "an extrapolation by" if model.extrapolated else "by"
    low, high = _milliseconds(model.lower_s, ""), _milliseconds(model.upper_s, "")
    estimate = _milliseconds(model.estimate_s, "")
    clings = model.threshold is not None and model.threshold.design_effect >= CLINGS
    short = ", and its interval may be too short, for slow samples cling together here" if clings else ""
    tail = f"{how} a fitted tail, which overrules nothing{short}"
    return f"p{100 * model.level:g} is {estimate} ({low} to {high}), {tail}."


def say_blame(found: Attribution, unanswered: int) -> str:
    """Who holds the largest share, in one sentence.

    Args:
        found: Everyone's shares.
        unanswered: How many of the requests were never answered; they have no latency to share out.
    """
    largest = max(found.blame, key=lambda name: found.blame[name].euler.share)
    blame = found.blame[largest]
    sure = "" if found.named else ", which may not be the largest share"
    sure = sure if blame.euler.lower is not None else ", from too few independent events for an interval"
    without = {"never answered": unanswered, "not known in every part": found.left_out - unanswered}
    counted = " and ".join(f"{count:,} {why}" for why, count in without.items() if count > 0)
    return (
        f"Of the excess of the slowest {1 - found.level:.2%}, {largest} holds {blame.euler.share:.0%} by Euler and "
        f"{blame.shapley.share:.0%} by Shapley{sure}{counted and f'; {counted} are left out of this'}."
    )


def _milliseconds(value: float | None, none: str) -> str:
    if value is None:
        return none
    return f"{value * 1e3:.4g} ms" if math.isfinite(value) else "never answered"
