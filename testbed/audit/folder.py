"""Audits a run from its folder alone: every promise, every domain's envelope, whose the tail is, and why.

It asks the statistics about what `testbed.audit.evidence` read. Whether the host could be trusted was settled by the
run's gates: of an invalid run nothing is said about tenants or domains. Tables from elsewhere are
`testbed.audit.table`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from testbed.audit.attribution import Attribution, attribute
from testbed.audit.causes import Counterfactual, counterfactual
from testbed.audit.contracts import ContractFinding, ContractVerdict, DomainEvidence, judge_contracts
from testbed.audit.crossing import Crossing
from testbed.audit.evidence import CONFIDENCE, RunEvidence, promised_confidence, read_evidence
from testbed.audit.record import Audit, Promise, audit_nothing, audit_series, blame_dict, say_blame
from testbed.audit.spared import Stretch
from testbed.report.record import RunRecord
from testbed.report.tenant_record import TenantRecord
from testbed.report.verdict import worst_verdict
from testbed.traffic.request_records import Endings

_EXCUSED = "The tenant broke its own contract, so nobody owes it the promise that follows."
_INVALID = "The host could not keep up, so nothing that follows says anything about the promise."
_RECORDED = "The first {:,} of {:,} packets were recorded and are judged here; the run's own row is about all of them."
_UNTOLD = "The run's own row leaves out {:,} {} that its faults were to touch, and {}: everything is judged here."


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
        counted: Packets or requests that the run judged; a simulation records the first of them and counts the rest.
        endings: How requests ended; None for packets.
        impairments: What its server was made to suffer, a sentence each.
        what: `packets` or `requests`.
        left_out: What faults take out of the promise, and so out of everything else here.
        everything: The same with nothing left out; None where nothing is.
        untold: Why something is judged here that the run's own row leaves out, in one sentence; empty if nothing is.
    """

    tenant: str
    verdict: str
    audit: Audit
    causes: Attribution | None
    contracts: tuple[ContractFinding, ...]
    counterfactuals: tuple[Counterfactual, ...]
    counted: int
    endings: Endings | None
    impairments: tuple[str, ...] = ()
    what: str = "packets"
    left_out: tuple[Stretch, ...] = ()
    everything: TenantAudit | None = None
    untold: str = ""

    def sentences(self) -> tuple[str, ...]:
        """One sentence for each finding, the most important first."""
        first, *rest = self.audit.sentences()
        return (
            *((_INVALID,) if self.verdict == "INVALID" else ()),
            *((_EXCUSED,) if self.verdict == "EXCUSED" else ()),
            *((_RECORDED.format(self.audit.n, self.counted),) if self.counted > self.audit.n else ()),
            *((self.untold,) if self.untold else ()),
            first,
            *(stretch.sentence(self.what) for stretch in self.left_out),
            *((f"With nothing left out: {self.everything.in_short()}",) if self.everything else ()),
            *((str(self.endings),) if self.endings else ()),
            *self.impairments,
            *rest,
            *((f"By cause: {say_blame(self.causes, self.audit.unanswered)}",) if self.causes else ()),
            *(finding.reason for finding in self.contracts),
            *map(str, self.counterfactuals),
        )

    def in_short(self) -> str:
        """The verdict, the misses, what is promised about and who broke an envelope, in one sentence."""
        said = [self.verdict]
        if (promise := self.audit.compliance) is not None:
            said.append(f"{promise.misses:,} of {promise.n:,} {self.what} missed {promise.deadline_s * 1e3:g} ms")
            at_most = "nothing is known of the miss rate"
            if promise.design_effect is not None:
                at_most = f"the miss rate lies between {promise.miss_rate_lower:.3g} and {promise.miss_rate_upper:.3g}"
            said.append(at_most)
        broken = [finding.domain for finding in self.contracts if finding.verdict is ContractVerdict.BROKEN]
        if self.contracts:
            said.append(f"envelopes BROKEN: {', '.join(broken) or 'none'}")
        return "; ".join(said) + "."


@dataclass(frozen=True, slots=True)
class RunAudit:
    """A run, judged.

    Attributes:
        run_id: Of the run.
        valid: Whether every fidelity gate held.
        tenants: One entry for each that sent anything, or was promised something.
    """

    run_id: str
    valid: bool
    tenants: tuple[TenantAudit, ...]

    @property
    def verdict(self) -> str:
        """The worst over tenants with a promise: INVALID where a gate did not hold, EXCUSED or NONE for nothing."""
        return worst_verdict([*(tenant.verdict for tenant in self.tenants), *([] if self.valid else ["INVALID"])])

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "run_id": self.run_id,
            "verdict": self.verdict,
            "valid": self.valid,
            "tenants": {tenant.tenant: _tenant_dict(tenant) for tenant in self.tenants},
        }


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
    judged, everything = (
        list(zip(family, judge_contracts(family, confidence), strict=True)) if valid and family else []
        for family in (evidence.contracts, evidence.unspared)
    )

    def audit(
        tenant: TenantRecord, crossing: Crossing, family: Sequence[tuple[DomainEvidence, ContractFinding]]
    ) -> TenantAudit:
        return _audit_tenant(
            tenant,
            crossing,
            evidence.nonconforming.get(tenant.name, 0),
            [(item, finding) for item, finding in family if finding.tenant == tenant.name],
            promised_confidence(record, tenant.name, confidence),
            impairments=tuple(_impairments(record, tenant.name, evidence.crossings[tenant.name])),
            valid=valid,
        )

    tenants = []
    for tenant in record.tenants:
        if tenant.name not in evidence.crossings:
            if (promise := _promised(tenant)) is not None:
                stated = promised_confidence(record, tenant.name, confidence)
                tenants.append(_unsent(tenant, promise, stated, valid=valid))
            continue
        found = audit(tenant, evidence.judged(tenant.name), judged)
        if (left_out := evidence.spared.get(tenant.name)) is not None:
            whole = audit(tenant, evidence.crossings[tenant.name], everything)
            found = replace(found, left_out=left_out.stretches, everything=whole)
        elif tenant.in_faults:
            found = replace(found, untold=_untold(tenant, record, found.what))
        tenants.append(found)
    return RunAudit(run_id=record.run_id, valid=valid, tenants=tuple(tenants))


def _untold(tenant: TenantRecord, record: RunRecord, what: str) -> str:
    told = any(tenant.name in fault.left_out for fault in record.faults)
    return _UNTOLD.format(tenant.in_faults, what, "nothing else would be left" if told else "does not say which")


def _audit_tenant(
    tenant: TenantRecord,
    crossing: Crossing,
    nonconforming: int,
    judged: Sequence[tuple[DomainEvidence, ContractFinding]],
    confidence: float,
    *,
    impairments: tuple[str, ...],
    valid: bool,
) -> TenantAudit:
    audit = audit_series(
        crossing.latency_s, _promised(tenant), parts=crossing.places(), runs=crossing.runs, confidence=confidence
    )
    causes = crossing.causes() if audit.attribution else None
    broken = [(e, f) for e, f in judged if f.verdict is ContractVerdict.BROKEN]
    return TenantAudit(
        tenant=tenant.name,
        verdict=_verdict(nonconforming, audit, valid=valid),
        audit=audit,
        causes=attribute(causes, confidence=confidence, runs=crossing.runs) if causes else None,
        contracts=tuple(finding for _, finding in judged),
        counterfactuals=tuple(had_kept(crossing, e) for e, _ in broken),
        counted=tenant.n,
        endings=crossing.endings,
        impairments=impairments,
        what=crossing.what,
    )


def _promised(tenant: TenantRecord) -> Promise | None:
    if tenant.deadline_s is None or tenant.epsilon is None:
        return None
    return Promise.rounded(tenant.deadline_s, tenant.epsilon)


def _unsent(tenant: TenantRecord, promise: Promise, confidence: float, *, valid: bool) -> TenantAudit:
    """A promise of which the run holds not one sample: it is still owed an answer."""
    audit = audit_nothing(promise, confidence=confidence)
    return TenantAudit(tenant.name, _verdict(0, audit, valid=valid), audit, None, (), (), tenant.n, None)


def _impairments(record: RunRecord, tenant: str, crossing: Crossing) -> Iterator[str]:
    """What was done to the tenant's server, and how many of the requests that were due meanwhile had no answer."""
    windows = [window for window in record.windows if tenant in window.samples | window.requests]
    for window, samples in zip(windows, crossing.samples, strict=True):
        for each in window.impairments:
            if tenant in each.tenants:
                end_s = np.inf if each.end_s is None else each.end_s
                due = (samples.intended_s >= each.begin_s) & (samples.intended_s < end_s)
                lost = int(np.count_nonzero(due & ~np.isfinite(samples.latency_s)))
                until = "the end" if each.end_s is None else f"{end_s:.2f} s"
                yield (
                    f"Its server was made worse on purpose in window {window.index}, {each.describe()} from "
                    f"{each.begin_s:.2f} s to {until}: of {int(due.sum()):,} requests due meanwhile {lost:,} were "
                    "never answered."
                )


def _verdict(nonconforming: int, audit: Audit, *, valid: bool) -> str:
    if audit.compliance is None:
        return "NONE"
    if not valid:
        return "INVALID"
    if nonconforming:
        return "EXCUSED"
    return str(audit.compliance.verdict)


def had_kept(crossing: Crossing, evidence: DomainEvidence) -> Counterfactual:
    """What a tenant's p99.9 would have been had the domain that this evidence speaks of kept its envelope."""
    excess_s = crossing.excess_s(evidence.envelope)
    return counterfactual(evidence.who, crossing.latency_s, excess_s, evidence.envelope.tail, roughly=evidence.least)


def _tenant_dict(tenant: TenantAudit) -> dict[str, Any]:
    return {
        **tenant.audit.to_dict(),
        "verdict": tenant.verdict,
        "counted": tenant.counted,
        "left_out": [asdict(stretch) for stretch in tenant.left_out],
        "everything": _tenant_dict(tenant.everything) if tenant.everything else None,
        "requests": asdict(tenant.endings) if tenant.endings else None,
        "causes": blame_dict(tenant.causes),
        "contracts": [
            {
                "domain": finding.domain,
                "stage": str(finding.stage),
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
