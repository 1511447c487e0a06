"""From a tenant's measured windows and its bound to one row of the verdict table. Pure: no host, no files.

Whatever the verdict (`testbed.run.tenant_row`), the bound is held against the lower confidence limit of the
measurement: of a tenant that is EXCUSED, of what its first meter let pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from testbed.audit.clusters import not_negative
from testbed.audit.conformance import METER_GRAIN_S, nonconforming
from testbed.audit.quantile import quantile
from testbed.management.bounds import speaks_of_sent
from testbed.report.record import FaultRecord
from testbed.report.tenant_record import BoundRecord, ConformanceRecord, DomainDelay, TenantRecord
from testbed.report.verdict import Verdict, worst_verdict
from testbed.run.tenant_row import Latencies, finite_or_none, mean_known, order_statistic, terms
from testbed.scenario.model import Reservation, Tenant
from testbed.telemetry.match import Match
from testbed.telemetry.samples import BoolArray, FloatArray, Replay, TenantSamples


@dataclass(frozen=True)
class Observed:
    """One tenant in one measured window.

    Attributes:
        match: Packet by packet, and what was lost where.
        replay: The ideal server fed the same packets; None for best effort, which has no rate of its own.
        meter_dropped: Packets its meters dropped, all domains together.
        queue_dropped: Packets its queues dropped, all domains together.
        window_s: Length of the window.
        forgiven: Packets that the meter of its first domain dropped because they broke the contract; no other drop,
            of that meter or of a later one, is the tenant's own doing.
        nonconforming: Packets that broke it, where that is counted; None where their arrivals are to tell.
        outside: Which packets are judged, those outside the faults that the tenant is to fail by, [n]; None for all.
    """

    match: Match
    replay: Replay | None
    meter_dropped: int
    queue_dropped: int
    window_s: float
    forgiven: int = 0
    nonconforming: int | None = None
    outside: BoolArray | None = None

    @property
    def judged(self) -> TenantSamples:
        """The packets that are judged."""
        samples = self.match.samples
        return samples if self.outside is None else samples.take(self.outside)

    @property
    def dropped_for_breach(self) -> BoolArray:
        """Which of the packets that are judged its first meter dropped because they broke the contract, [n].

        How many they are is counted; that they are among those lost in the first domain is all that is known of which.
        """
        samples = self.match.samples
        lost = np.flatnonzero(~samples.delivered & (samples.last_border == 0))
        found = np.zeros(len(samples), dtype=np.bool_)
        found[lost[: self.forgiven]] = True
        return found if self.outside is None else found[self.outside]

    @property
    def judged_replay(self) -> Replay | None:
        """What the ideal server made of them."""
        return self.replay if self.replay is None or self.outside is None else self.replay.take(self.outside)


def run_verdict(tenants: Sequence[TenantRecord], faults: Sequence[FaultRecord] = (), *, valid: bool = True) -> Verdict:
    """The worst verdict over tenants with a promise and over faults of which something was expected.

    A run whose host fell behind is INVALID whatever was promised. One in which every promise was EXCUSED is EXCUSED,
    and one without promise or fault NONE: nothing was judged.
    """
    found = {tenant.verdict for tenant in tenants if tenant.epsilon is not None}
    found |= set() if valid else {"INVALID"}
    found |= {"PASS" if fault.met else "FAIL" for fault in faults}
    return worst_verdict(found)


def judge_tenant(
    tenant: Tenant, observed: Sequence[Observed], bound: BoundRecord | None, *, valid: bool
) -> TenantRecord:
    """Judge one tenant over all windows of a run.

    Args:
        tenant: What it was promised.
        observed: Its windows, at least one; pooled as independent runs.
        bound: Its analytical bound, None where nothing is reserved.
        valid: Whether every fidelity gate of every window held.
    """
    latency = np.concatenate([window.judged.latency_s for window in observed])
    network = np.concatenate([window.judged.network_s for window in observed])
    runs = np.repeat(np.arange(len(observed)), [len(window.judged) for window in observed])
    found = Latencies(tenant, latency, runs)
    contract = _conformance(tenant, observed)
    verdict, reason = found.verdict(valid=valid, excuse=_breach(contract))
    held_s = _held_lower_s(tenant, observed, found.level)
    rate_per_s = latency.size / sum(window.window_s for window in observed)
    needed = found.data.samples_needed if found.data else None
    return found.row(
        bound,
        lost=int(np.count_nonzero(np.isnan(latency))),
        ideal_p999_s=_ideal(observed, 0.999),
        network_p999_s=order_statistic(network, 0.999),
        ideal_promised_s=_ideal(observed, found.level),
        bound_broken=bool(valid and bound and held_s is not None and bound.bound_s < held_s),
        bound_held_s=finite_or_none(held_s) if bound else None,
        verdict=verdict,
        reason=reason,
        seconds_needed=needed / rate_per_s if needed else None,
        residual_s=max(window.match.residual_s for window in observed),
        domains=_domains(observed, latency),
        conformance=contract,
        in_faults=sum(len(window.match.samples) for window in observed) - latency.size,
    )


def unmeasured(tenant: Tenant, bound: BoundRecord | None) -> TenantRecord:
    """The row of a tenant in a run that ended before anything was measured: its promise and its bound alone."""
    return TenantRecord(
        **terms(tenant, bound),
        n=0,
        misses=0,
        lost=0,
        p999_s=None,
        p999_interval_s=None,
        p999_lower_s=None,
        ideal_p999_s=None,
        verdict="INVALID" if tenant.promise else "NONE",
        reason="the run ended before anything was measured" if tenant.promise else "",
    )


def _held_lower_s(tenant: Tenant, observed: Sequence[Observed], level: float) -> float | None:
    """The lower confidence limit that a bound is held against, of the packets that it speaks of.

    Those are not what its first meter dropped for breaking the contract, to which no bound promises anything; but a
    tenant that exceeded it is still owed the bound that counts its meter. Where that is the share of all packets *sent*
    that may be late, a dropped one is one that was not.
    """
    latency, runs = [], []
    for run, window in enumerate(observed):
        dropped, own = window.dropped_for_breach, not_negative(window.judged.latency_s)
        own = np.where(dropped, 0.0, own) if speaks_of_sent(tenant) else own[~dropped]
        latency.append(own)
        runs.append(np.full(own.size, run))
    found = np.concatenate(latency)
    return quantile(found, level, runs=np.concatenate(runs)).one_sided_lower_s if found.size else None


def _breach(contract: ConformanceRecord | None) -> str:
    if contract is None or not contract.nonconforming:
        return ""
    return (
        f"{contract.nonconforming:,} of {contract.offered:,} packets exceeded its token bucket; its meters dropped "
        f"{contract.meter_dropped:,} and its queues {contract.queue_dropped:,}"
    )


def beyond_contract(contract: Reservation, samples: TenantSamples, *, grain_s: float = METER_GRAIN_S) -> int:
    """Packets of a window that a contract's token bucket, deeper by what it is given in `grain_s`, would drop."""
    arrival = samples.border_s[:, 0]
    seen = np.flatnonzero(np.isfinite(arrival))
    order = seen[np.argsort(arrival[seen], kind="stable")]
    return nonconforming(
        arrival[order],
        samples.size_bits[order],
        rate_bps=contract.meter_rate_bps,
        burst_bits=contract.burst_bits,
        grain_s=grain_s,
    )


def _conformance(tenant: Tenant, observed: Sequence[Observed]) -> ConformanceRecord | None:
    if tenant.reservation is None:
        return None
    excess = 0
    for window in observed:
        counted = window.nonconforming
        excess += beyond_contract(tenant.reservation, window.match.samples) if counted is None else counted
    return ConformanceRecord(
        offered=sum(len(window.match.samples) for window in observed),
        nonconforming=excess,
        meter_dropped=sum(window.meter_dropped for window in observed),
        queue_dropped=sum(window.queue_dropped for window in observed),
        delivered=sum(int(np.count_nonzero(window.match.samples.delivered)) for window in observed),
    )


def _domains(observed: Sequence[Observed], latency: FloatArray) -> tuple[DomainDelay, ...]:
    delays = np.concatenate([window.judged.domain_s for window in observed])
    # A packet that was seen nowhere was lost before the first domain; the table of domains has no row for that.
    lost_in = np.concatenate([window.judged.last_border[~window.judged.delivered] for window in observed])
    threshold = order_statistic(latency, 0.999)
    slow = latency >= threshold if threshold is not None else np.zeros(latency.size, dtype=np.bool_)
    rows = []
    for d, name in enumerate(observed[0].match.samples.domains):
        lag = np.concatenate(
            [w.judged_replay.lag_s[:, d] if w.judged_replay else np.zeros(len(w.judged)) for w in observed]
        )
        rows.append(
            DomainDelay(
                domain=name,
                mean_s=mean_known(delays[:, d]),
                p999_s=order_statistic(delays[:, d], 0.999),
                tail_mean_s=mean_known(delays[slow, d]),
                lag_share=float(np.count_nonzero(lag > 0)) / max(lag.size, 1),
                lost=int(np.count_nonzero(lost_in == d)),
            )
        )
    return tuple(rows)


def _ideal(observed: Sequence[Observed], level: float) -> float | None:
    waits = [window.judged_replay.shaped_s for window in observed if window.judged_replay is not None]
    return order_statistic(np.concatenate(waits), level) if waits else None
