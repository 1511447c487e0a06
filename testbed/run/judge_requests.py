"""From a request tenant's measured windows and its bound to one row of the verdict table. Pure: no host, no files.

The counterpart of `testbed.run.judge`: a request is in time if its answer was, and everything else is a miss. A tenant
proved to have sent beyond its token bucket is EXCUSED, as in the audit. Accuracy, framing and the parts of a request's
life go with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import numpy.typing as npt

from testbed.audit.request_excess import domain_excess, requests_beyond
from testbed.report.tenant_record import BoundRecord, DomainDelay, PartDelay, RequestsRecord, TenantRecord
from testbed.run.request_terms import ideal_network_s
from testbed.run.requests import RequestOutcome
from testbed.run.tenant_row import LEVELS, Latencies, mean_known, order_statistic
from testbed.run.window import Shaper
from testbed.scenario.model import Requests, Tenant
from testbed.telemetry.idle_path import NONE, IdlePath
from testbed.telemetry.samples import BoolArray, FloatArray
from testbed.traffic.request_records import Endings


def judge_requests(
    tenant: Tenant,
    asked: Requests,
    outcomes: Sequence[RequestOutcome],
    bound: BoundRecord | None,
    shaper: Shaper | None,
    *,
    latencies_s: Sequence[float] = (),
    idle: Sequence[IdlePath] = (),
    seconds: float,
    valid: bool,
    outside: Sequence[BoolArray] | None = None,
    nonconforming: int | None = None,
) -> TenantRecord:
    """Judge one request tenant over all windows of a run.

    Args:
        tenant: What it was promised.
        asked: What it asked.
        outcomes: Its windows, at least one; pooled as independent runs.
        bound: Its analytical bound, None where nothing is reserved.
        shaper: Its narrowest queue, None for best effort.
        latencies_s: Latency that each domain of its path promises, [D]; empty for best effort.
        idle: What its path takes of requests that wait for nobody, a window each; nothing where not known.
        seconds: Length of all windows together.
        valid: Whether every fidelity gate of every window held.
        outside: Which requests of each window are judged, those outside the faults that the tenant is to fail by, [n];
            None for all.
        nonconforming: Requests that broke the contract, where that is counted; None where their passage is to tell.
    """
    beyond = _nonconforming(tenant, outcomes) if nonconforming is None else nonconforming
    # A queue is fed by every request, also by those that are not judged.
    idle = idle or [NONE] * len(outcomes)
    ideals = [ideal_network_s(outcome, shaper, known) for outcome, known in zip(outcomes, idle, strict=True) if shaper]
    everyone = sum(int(outcome.record.attempted.sum()) for outcome in outcomes)
    behind = [_behind(outcome, shaper, latencies_s) for outcome in outcomes]
    if outside is not None:
        behind = [lagged[kept] for lagged, kept in zip(behind, outside, strict=True)]
        outcomes = [outcome.take(kept) for outcome, kept in zip(outcomes, outside, strict=True)]
        ideals = [ideal[kept] for ideal, kept in zip(ideals, outside, strict=bool(ideals))]
    due = [outcome.record.attempted for outcome in outcomes]
    latency = np.concatenate([o.record.latency_s[d] for o, d in zip(outcomes, due, strict=True)])
    runs = np.repeat(np.arange(len(outcomes)), [int(d.sum()) for d in due])
    found = Latencies(tenant, latency, runs)
    excuse = f"{beyond:,} of {latency.size:,} requests exceeded its token bucket" if beyond else ""
    verdict, reason = found.verdict(valid=valid, excuse=excuse)
    network = np.concatenate([outcome.match.samples.network_out_s for outcome in outcomes])
    ideal = np.concatenate(ideals) if ideals else np.empty(0)
    lower = found.promised.one_sided_lower_s
    needed = found.data.samples_needed if found.data else None
    return found.row(
        bound,
        in_faults=everyone - latency.size,
        lost=int(np.count_nonzero(~np.isfinite(latency))),
        ideal_p999_s=order_statistic(ideal, 0.999),
        network_p999_s=order_statistic(network, 0.999),
        bound_broken=bool(
            # What a meter drops TCP sends again later, in front of others, and no bound says how late they are then.
            valid
            and not beyond
            and bound
            and lower is not None
            # A request that its client gave up is known to have taken longer than that and no more.
            and bound.bound_s < min(lower, asked.timeout_s)
        ),
        verdict=verdict,
        reason=reason,
        seconds_needed=needed * seconds / latency.size if needed else None,
        domains=_domains(outcomes, behind, latency),
        requests=_requests(
            asked,
            outcomes,
            latency,
            network,
            ideal,
            idle_s=max(known.typical_s for known in idle),
            nonconforming=beyond,
        ),
    )


def _nonconforming(tenant: Tenant, outcomes: Sequence[RequestOutcome]) -> int:
    """Requests proved to be beyond the tenant's token bucket; 0 for best effort, which has none."""
    if tenant.reservation is None:
        return 0
    bucket = {"rate_bps": tenant.reservation.meter_rate_bps, "burst_bits": tenant.reservation.burst_bits}
    return sum(requests_beyond(outcome.match.samples.due(), **bucket) for outcome in outcomes)


def _requests(
    asked: Requests,
    outcomes: Sequence[RequestOutcome],
    latency: FloatArray,
    network: FloatArray,
    ideal: FloatArray,
    *,
    idle_s: float,
    nonconforming: int,
) -> RequestsRecord:
    status = np.concatenate([o.record.status[o.record.attempted] for o in outcomes])
    correct = np.concatenate([o.record.correct[o.record.attempted] for o in outcomes])
    impaired = np.concatenate([_impaired(o) for o in outcomes])
    return RequestsRecord(
        model=asked.model,
        images=asked.images,
        compute_share=asked.compute_share,
        **asdict(Endings.of(status, correct, asked.images, impaired)),
        framing_out=mean_known(np.array([o.match.out.factor for o in outcomes])),
        framing_back=mean_known(np.array([o.match.back.factor for o in outcomes])),
        reordered=sum(o.match.reordered for o in outcomes),
        retransmitted_bits=sum(o.match.retransmitted_bits for o in outcomes),
        network_s=_levels(network),
        ideal_network_s=_levels(ideal),
        idle_s=idle_s,
        nonconforming=nonconforming,
        last_packet_bits=mean_known(np.concatenate([o.match.last_bits[o.match.last_bits > 0] for o in outcomes]))
        or 0.0,
        parts=_parts([o.match.samples.parts_s() for o in outcomes], outcomes, latency),
        stacks=_parts([o.match.samples.stacks_s() for o in outcomes], outcomes, latency),
    )


def _behind(outcome: RequestOutcome, shaper: Shaper | None, latencies_s: Sequence[float]) -> BoolArray:
    """Which requests each domain lagged behind its word with, as far as whole requests prove it; [n, D]."""
    samples = outcome.match.samples
    if shaper is None or not latencies_s:
        return np.zeros((len(samples), len(samples.domains)), dtype=np.bool_)
    found = [domain_excess(samples, d, shaper.rate_bps, latency_s).excess_s for d, latency_s in enumerate(latencies_s)]
    return np.asarray(np.stack(found, axis=1) > 0)


def _domains(
    outcomes: Sequence[RequestOutcome], behind: Sequence[BoolArray], latency: FloatArray
) -> tuple[DomainDelay, ...]:
    """Each domain on the way out."""
    due = [outcome.record.attempted for outcome in outcomes]
    delays = np.concatenate([o.match.samples.domain_s[d] for o, d in zip(outcomes, due, strict=True)])
    lagged = np.concatenate([each[d] for each, d in zip(behind, due, strict=True)])
    threshold = order_statistic(latency, 0.999)
    slow = latency >= threshold if threshold is not None else np.zeros(latency.size, dtype=np.bool_)
    return tuple(
        DomainDelay(
            domain=name,
            mean_s=mean_known(delays[:, d]),
            p999_s=order_statistic(delays[:, d], 0.999),
            tail_mean_s=mean_known(delays[slow, d]),
            lag_share=float(np.count_nonzero(lagged[:, d])) / max(latency.size, 1),
            lost=0,
        )
        for d, name in enumerate(outcomes[0].match.samples.domains)
    )


def _impaired(outcome: RequestOutcome) -> npt.NDArray[np.uint8]:
    """Which impairments touched each request that was due, as `RequestRecord` has it; [n]."""
    record = outcome.record
    found = np.zeros(record.status.size, dtype=np.uint8) if record.impaired is None else record.impaired
    return found[record.attempted]


def _parts(
    everything: Sequence[Mapping[str, FloatArray]], outcomes: Sequence[RequestOutcome], latency: FloatArray
) -> tuple[PartDelay, ...]:
    threshold = order_statistic(latency, 0.999)
    latencies = np.concatenate([outcome.match.samples.latency_s for outcome in outcomes])
    slow = latencies >= threshold if threshold is not None else np.zeros(latencies.size, dtype=np.bool_)
    rows = []
    for name in everything[0]:
        values = np.concatenate([parts[name] for parts in everything])
        rows.append(
            PartDelay(
                name=name,
                mean_s=mean_known(values),
                p999_s=order_statistic(values, 0.999),
                tail_mean_s=mean_known(values[slow]),
            )
        )
    return tuple(rows)


def _levels(values: FloatArray) -> tuple[float | None, float | None, float | None]:
    p50, p99, p999 = (order_statistic(values, level) for level in LEVELS)
    return p50, p99, p999
