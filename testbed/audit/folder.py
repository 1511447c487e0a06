"""Audits a run from its folder alone: every promise, every domain's envelope, whose the tail is, and why.

It reads what `testbed run` left (`run.json` and the samples beside it), replays each tenant's packets through ideal
servers with the rate and the latencies that the signed envelopes promise, and asks the statistics. Promised, not
installed: a domain that installed less would otherwise be measured against its own neglect. Whether the host could be
trusted was settled by the run's gates: of an invalid run nothing is said about tenants or domains. Tables from
elsewhere are `testbed.audit.table`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from testbed.audit.attribution import Attribution, attribute
from testbed.audit.causes import Cause, Counterfactual, DomainPassage, counterfactual, separate
from testbed.audit.clusters import FloatArray, IntArray
from testbed.audit.contracts import (
    ContractFinding,
    ContractVerdict,
    DomainEvidence,
    excess_share_upper,
    judge_contracts,
)
from testbed.audit.record import Audit, Promise, audit_series, blame_dict, say_blame
from testbed.envelope.descriptor import Envelope
from testbed.report.record import RunRecord, TenantRecord, read_record
from testbed.telemetry.lag import fifo, replay
from testbed.telemetry.samples import Replay, TenantSamples, read

CONFIDENCE = 0.95
"""Of every limit, unless something else is asked for or promised."""

_EXCUSED = "The tenant broke its own contract, so nobody owes it the promise that follows."
_INVALID = "The host could not keep up, so nothing that follows says anything about the promise."
_WORST_FIRST = ("INVALID", "FAIL", "UNDETERMINED", "PASS")


@dataclass(frozen=True, slots=True)
class TenantAudit:
    """One tenant of a run.

    Attributes:
        tenant: Name.
        verdict: PASS, FAIL or UNDETERMINED as the data say, INVALID or EXCUSED where they are not asked, NONE without a
            promise.
        audit: What the latencies say, with the blame by domain.
        causes: Blame by cause; None where the tail cannot be shared out.
        contracts: Each domain's envelope for this tenant.
        counterfactuals: For each domain that broke its envelope, the p99.9 had it not.
    """

    tenant: str
    verdict: str
    audit: Audit
    causes: Attribution | None
    contracts: tuple[ContractFinding, ...]
    counterfactuals: tuple[Counterfactual, ...]

    def sentences(self) -> tuple[str, ...]:
        """One sentence for each finding, the most important first."""
        return (
            *((_INVALID,) if self.verdict == "INVALID" else ()),
            *((_EXCUSED,) if self.verdict == "EXCUSED" else ()),
            *self.audit.sentences(),
            *((f"By cause: {say_blame(self.causes)}",) if self.causes else ()),
            *(finding.reason for finding in self.contracts),
            *map(str, self.counterfactuals),
        )


@dataclass(frozen=True, slots=True)
class RunAudit:
    """A run, judged.

    Attributes:
        run_id: Of the run.
        valid: Whether every fidelity gate held.
        tenants: One entry for each that sent anything.
    """

    run_id: str
    valid: bool
    tenants: tuple[TenantAudit, ...]

    @property
    def verdict(self) -> str:
        """The worst verdict over tenants with a promise; PASS if there is none."""
        found = {tenant.verdict for tenant in self.tenants}
        return next((verdict for verdict in _WORST_FIRST if verdict in found), "PASS")

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "run_id": self.run_id,
            "verdict": self.verdict,
            "valid": self.valid,
            "tenants": {tenant.tenant: _tenant_dict(tenant) for tenant in self.tenants},
        }


@dataclass(frozen=True, slots=True)
class Crossing:
    """One tenant's packets over all windows, in order of intended sending, windows one after the other.

    Attributes:
        samples: Each window as measured.
        replays: Each window in ideal servers as promised; none where the tenant holds no envelopes.
        latency_s: Latencies in seconds, NaN: lost; float64 [n].
        runs: Window of each packet, int64 [n].
    """

    samples: tuple[TenantSamples, ...]
    replays: tuple[Replay, ...]
    latency_s: FloatArray
    runs: IntArray


@dataclass(frozen=True, slots=True)
class RunEvidence:
    """What a folder holds, replayed: everything that findings rest on.

    Attributes:
        record: The run's record.
        crossings: Packets by tenant; a tenant that sent none is missing.
        contracts: What each domain did with each tenant's packets, all of them judged together.
    """

    record: RunRecord
    crossings: Mapping[str, Crossing]
    contracts: tuple[DomainEvidence, ...]

    @property
    def valid(self) -> bool:
        """Whether every fidelity gate held."""
        return bool(self.record.windows) and all(window.valid for window in self.record.windows)


def read_evidence(folder: Path) -> RunEvidence:
    """Read a run folder and replay it.

    Raises:
        TestbedError: No such folder, or one that this version cannot read.
    """
    record = read_record(folder)
    envelopes = _envelopes(record)
    crossings = {
        tenant.name: crossing
        for tenant in record.tenants
        if (crossing := _crossing(folder, record, tenant.name, envelopes)).latency_s.size
    }
    contracts = [
        item
        for tenant in record.tenants
        if tenant.name in crossings
        for item in _evidence(record, tenant, crossings[tenant.name], envelopes.get(tenant.name, {}))
    ]
    return RunEvidence(record, crossings, tuple(contracts))


def audit_run(folder: Path, confidence: float = CONFIDENCE) -> RunAudit:
    """Audit a run folder; see `audit_evidence`.

    Raises:
        TestbedError: No such folder, or one that this version cannot read.
    """
    return audit_evidence(read_evidence(folder), confidence)


def audit_evidence(evidence: RunEvidence, confidence: float = CONFIDENCE) -> RunAudit:
    """Judge what a folder holds.

    Args:
        evidence: Of the run.
        confidence: Of every limit, and family-wise of all envelopes together; a promise that states its own confidence
            is judged at that.
    """
    record, valid = evidence.record, evidence.valid
    findings = judge_contracts(evidence.contracts, confidence) if valid and evidence.contracts else ()
    judged = list(zip(evidence.contracts, findings, strict=True)) if findings else []
    return RunAudit(
        run_id=record.run_id,
        valid=valid,
        tenants=tuple(
            _audit_tenant(
                tenant,
                evidence.crossings[tenant.name],
                [(item, finding) for item, finding in judged if finding.tenant == tenant.name],
                promised_confidence(record, tenant.name, confidence),
                valid=valid,
            )
            for tenant in record.tenants
            if tenant.name in evidence.crossings
        ),
    )


def promised_confidence(record: RunRecord, tenant: str, otherwise: float = CONFIDENCE) -> float:
    """The confidence at which a tenant's promise is to be judged, where its scenario states one."""
    for described in record.scenario.get("tenants", ()):
        if described.get("name") == tenant and described.get("promise"):
            return float(described["promise"].get("confidence", otherwise))
    return otherwise


def _envelopes(record: RunRecord) -> dict[str, dict[str, Envelope]]:
    """Tenant to domain to the latest envelope that the run used."""
    found: dict[str, dict[str, Envelope]] = {}
    for item in sorted(record.envelopes, key=lambda item: item.version):
        if item.payload:
            found.setdefault(item.tenant, {})[item.domain] = Envelope.from_dict(item.payload)
    return found


def _crossing(
    folder: Path, record: RunRecord, tenant: str, envelopes: Mapping[str, Mapping[str, Envelope]]
) -> Crossing:
    promised = envelopes.get(tenant, {})
    windows, replays = [], []
    for window in record.windows:
        if tenant not in window.samples:
            continue
        samples, stored = read(folder / window.samples[tenant])
        windows.append(samples)
        if stored is not None and all(domain in promised for domain in samples.domains):
            latencies = [promised[domain].latency_s for domain in samples.domains]
            rate_bps = min(promised[domain].guardrails.reserved_rate_bps for domain in samples.domains)
            replays.append(replay(samples, rate_bps, latencies))
    return Crossing(
        samples=tuple(windows),
        replays=tuple(replays),
        latency_s=np.concatenate([np.empty(0), *(samples.latency_s for samples in windows)]),
        runs=np.repeat(np.arange(len(windows)), [len(samples) for samples in windows]),
    )


def _evidence(
    record: RunRecord, tenant: TenantRecord, crossing: Crossing, envelopes: Mapping[str, Envelope]
) -> list[DomainEvidence]:
    """What each domain did with the packets that entered it; nothing where no ideal server was replayed."""
    if not crossing.replays:
        return []
    policed = [gate.limit for gate in record.gates if gate.name == f"host allowance, {tenant.name}"]
    behinds = [_behind(s, r.rate_bps) for s, r in zip(crossing.samples, crossing.replays, strict=True)]
    found = []
    for d, domain in enumerate(crossing.samples[0].domains):
        entered = [np.isfinite(samples.border_s[:, d]) for samples in crossing.samples]
        here = list(zip(crossing.replays, entered, strict=True))
        if any(inside.any() for inside in entered):
            found.append(
                DomainEvidence(
                    envelope=envelopes[domain],
                    excess_s=np.concatenate([replayed.excess_s[inside, d] for replayed, inside in here]),
                    lag_s=np.concatenate([behind[inside, d] for behind, inside in zip(behinds, entered, strict=True)]),
                    nonconforming=tenant.conformance.nonconforming if tenant.conformance else 0,
                    runs=crossing.runs[np.concatenate(entered)],
                )
            )
    if record.kind == "network":
        shares = _host_shares(found)
        found = [replace(item, host_share=max(share, *policed, 0.0)) for item, share in zip(found, shares, strict=True)]
    return found


def _host_shares(found: Sequence[DomainEvidence]) -> list[float]:
    """For each domain of a path, what the host may have done to it, judging by what it did in the others.

    A gate polices how late the host makes packets on the whole path, not in each domain. But a host that stands still
    strikes whatever domain a packet is in, so in no domain will it exceed the promised latency much more often than in
    the domain where that is seen least; the limit for that one is the measure for all others. Alone on its path, a
    domain cannot be told from its host.
    """
    level = 1 - (1 - CONFIDENCE) / max(1, len(found) - 1)
    upper = [excess_share_upper(np.asarray(item.excess_s), np.asarray(item.lag_s), item.runs, level) for item in found]
    return [min((upper[j] for j in range(len(found)) if j != i), default=1.0) for i in range(len(found))]


def _behind(samples: TenantSamples, rate_bps: float) -> FloatArray:
    """How far behind its start in each domain's ideal server a packet left it; float64 [n, D]."""
    return replay(samples, rate_bps, [0.0] * len(samples.domains)).lag_s


def _audit_tenant(
    tenant: TenantRecord,
    crossing: Crossing,
    judged: Sequence[tuple[DomainEvidence, ContractFinding]],
    confidence: float,
    *,
    valid: bool,
) -> TenantAudit:
    promise = None
    if tenant.deadline_s is not None and tenant.epsilon is not None:
        promise = Promise(tenant.deadline_s, tenant.epsilon)
    delays = np.concatenate([samples.domain_s for samples in crossing.samples])
    domains = crossing.samples[0].domains
    audit = audit_series(
        crossing.latency_s,
        promise,
        parts={domain: delays[:, d] for d, domain in enumerate(domains)},
        runs=crossing.runs,
        confidence=confidence,
    )
    broken = [(e, f) for e, f in judged if f.verdict is ContractVerdict.BROKEN]
    return TenantAudit(
        tenant=tenant.name,
        verdict=_verdict(tenant, audit, valid=valid),
        audit=audit,
        causes=_causes(crossing, confidence) if crossing.replays and audit.attribution else None,
        contracts=tuple(finding for _, finding in judged),
        counterfactuals=tuple(_had_kept(crossing, e.envelope) for e, _ in broken),
    )


def _verdict(tenant: TenantRecord, audit: Audit, *, valid: bool) -> str:
    if audit.compliance is None:
        return "NONE"
    if not valid:
        return "INVALID"
    if tenant.conformance is not None and tenant.conformance.nonconforming:
        return "EXCUSED"
    return str(audit.compliance.verdict)


def _causes(crossing: Crossing, confidence: float) -> Attribution:
    """Blame by cause: each domain's own service, the tenant's own burst, the host that sent late, the rest."""
    domains = crossing.samples[0].domains
    delays = np.concatenate([samples.domain_s for samples in crossing.samples])
    waits = np.concatenate([_own_waits(s, r.rate_bps) for s, r in zip(crossing.samples, crossing.replays, strict=True)])
    lateness = np.concatenate([samples.lateness_s for samples in crossing.samples])
    passages = {domain: DomainPassage(delays[:, d], waits[:, d]) for d, domain in enumerate(domains)}
    parts = separate(crossing.latency_s, passages, {Cause.HOST: lateness})
    return attribute(parts, confidence=confidence, runs=crossing.runs)


def _own_waits(samples: TenantSamples, rate_bps: float) -> FloatArray:
    """Wait in an ideal server fed what entered each domain and left it; float64 [n, D], NaN elsewhere."""
    waits = np.full(samples.domain_s.shape, np.nan)
    for d in range(len(samples.domains)):
        entry = samples.border_s[:, d]
        crossed = np.flatnonzero(np.isfinite(entry) & np.isfinite(samples.border_s[:, d + 1]))
        crossed = crossed[np.argsort(entry[crossed], kind="stable")]
        waits[crossed, d] = fifo(entry[crossed], samples.size_bits[crossed], rate_bps).start_s - entry[crossed]
    return waits


def _had_kept(crossing: Crossing, envelope: Envelope) -> Counterfactual:
    d = crossing.samples[0].domains.index(envelope.domain)
    excess = np.concatenate([replayed.excess_s[:, d] for replayed in crossing.replays])
    return counterfactual(envelope.domain, crossing.latency_s, excess, envelope.tail)


def _tenant_dict(tenant: TenantAudit) -> dict[str, Any]:
    return {
        **tenant.audit.to_dict(),
        "verdict": tenant.verdict,
        "causes": blame_dict(tenant.causes),
        "contracts": [
            {
                "domain": finding.domain,
                "verdict": str(finding.verdict),
                "p_value": finding.p_value,
                "adjusted_p_value": finding.adjusted_p_value,
                "n": finding.n,
                "nonconforming": finding.nonconforming,
                "reason": finding.reason,
            }
            for finding in tenant.contracts
        ],
        "counterfactuals": [
            {"domain": found.domain, "level": found.level, "measured_s": found.measured_s, "kept_s": found.kept_s}
            for found in tenant.counterfactuals
        ],
        "findings": list(tenant.sentences()),
    }
