"""From a request tenant's measured windows and its bound to one row of the verdict table. Pure: no host, no files.

The counterpart of `testbed.run.judge`: a request is in time if its answer was, and everything else is a miss. Accuracy,
framing and the parts of a request's life go with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from testbed.audit.compliance import judge
from testbed.audit.quantile import quantiles
from testbed.report.record import BoundRecord, PartDelay, RequestsRecord, TenantRecord, Verdict
from testbed.run.judge import LEVELS
from testbed.run.request_terms import ideal_network_s
from testbed.run.requests import RequestOutcome
from testbed.run.window import Shaper
from testbed.scenario.model import Requests, Tenant
from testbed.telemetry.samples import FloatArray
from testbed.traffic.request_records import Endings


def judge_requests(
    tenant: Tenant,
    asked: Requests,
    outcomes: Sequence[RequestOutcome],
    bound: BoundRecord | None,
    shaper: Shaper | None,
    *,
    seconds: float,
    valid: bool,
) -> TenantRecord:
    """Judge one request tenant over all windows of a run.

    Args:
        tenant: What it was promised.
        asked: What it asked.
        outcomes: Its windows, at least one; pooled as independent runs.
        bound: Its analytical bound, None where nothing is reserved.
        shaper: Its narrowest queue, None for best effort.
        seconds: Length of all windows together.
        valid: Whether every fidelity gate of every window held.
    """
    due = [outcome.record.attempted for outcome in outcomes]
    latency = np.concatenate([o.record.latency_s[d] for o, d in zip(outcomes, due, strict=True)])
    runs = np.repeat(np.arange(len(outcomes)), [int(d.sum()) for d in due])
    median, p99, p999 = quantiles(latency, LEVELS, runs=runs)
    promise = tenant.promise
    data = judge(latency, promise.deadline_s, promise.epsilon, promise.confidence, runs) if promise else None
    verdict: Verdict = "NONE"
    reason = ""
    if data is not None:
        verdict, reason = data.verdict.value, data.reason
        if not valid:
            verdict, reason = "INVALID", "the host could not keep up, so this says nothing about the promise"
    network = np.concatenate([outcome.match.samples.network_out_s for outcome in outcomes])
    ideal = np.concatenate([ideal_network_s(outcome, shaper) for outcome in outcomes]) if shaper else np.empty(0)
    lower = p999.one_sided_lower_s
    return TenantRecord(
        name=tenant.name,
        n=latency.size,
        misses=data.misses if data else 0,
        lost=int(np.count_nonzero(~np.isfinite(latency))),
        p50_s=_finite(median.estimate_s),
        p99_s=_finite(p99.estimate_s),
        p999_s=_finite(p999.estimate_s),
        p999_interval_s=(_finite(p999.lower_s), _finite(p999.upper_s)),
        p999_lower_s=_finite(lower),
        ideal_p999_s=_quantile(ideal, 0.999),
        network_p999_s=_quantile(network, 0.999),
        bound_s=bound.bound_s if bound else None,
        bound_method=bound.method if bound else None,
        network_bound_s=bound.network_bound_s if bound else None,
        bound_broken=bool(valid and bound and lower is not None and bound.bound_s < lower),
        deadline_s=promise.deadline_s if promise else None,
        epsilon=promise.epsilon if promise else None,
        verdict=verdict,
        reason=reason,
        n_effective=p999.n_effective,
        design_effect=data.design_effect if data else None,
        miss_rate_upper=data.miss_rate_upper if data else None,
        samples_needed=data.samples_needed if data else None,
        seconds_needed=data.samples_needed * seconds / latency.size if data and data.samples_needed else None,
        bound=bound,
        requests=_requests(asked, outcomes, latency, network, ideal),
    )


def _requests(
    asked: Requests, outcomes: Sequence[RequestOutcome], latency: FloatArray, network: FloatArray, ideal: FloatArray
) -> RequestsRecord:
    status = np.concatenate([o.record.status[o.record.attempted] for o in outcomes])
    correct = np.concatenate([o.record.correct[o.record.attempted] for o in outcomes])
    return RequestsRecord(
        model=asked.model,
        images=asked.images,
        compute_share=asked.compute_share,
        **asdict(Endings.of(status, correct, asked.images)),
        framing_out=_mean(np.array([o.match.out.factor for o in outcomes])),
        framing_back=_mean(np.array([o.match.back.factor for o in outcomes])),
        reordered=sum(o.match.reordered for o in outcomes),
        retransmitted_bits=sum(o.match.retransmitted_bits for o in outcomes),
        network_s=_levels(network),
        ideal_network_s=_levels(ideal),
        parts=_parts(outcomes, latency),
    )


def _parts(outcomes: Sequence[RequestOutcome], latency: FloatArray) -> tuple[PartDelay, ...]:
    threshold = _quantile(latency, 0.999)
    everything = [outcome.match.samples.parts_s() for outcome in outcomes]
    latencies = np.concatenate([outcome.match.samples.latency_s for outcome in outcomes])
    slow = latencies >= threshold if threshold is not None else np.zeros(latencies.size, dtype=np.bool_)
    rows = []
    for name in everything[0]:
        values = np.concatenate([parts[name] for parts in everything])
        rows.append(
            PartDelay(name=name, mean_s=_mean(values), p999_s=_quantile(values, 0.999), tail_mean_s=_mean(values[slow]))
        )
    return tuple(rows)


def _levels(values: FloatArray) -> tuple[float | None, float | None, float | None]:
    p50, p99, p999 = (_quantile(values, level) for level in LEVELS)
    return p50, p99, p999


def _quantile(values: FloatArray, level: float) -> float | None:
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, level, method="higher")) if finite.size else None


def _mean(values: FloatArray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
