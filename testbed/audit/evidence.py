"""What a run's folder holds, read and replayed: everything that the audit's findings rest on.

`run.json` and the samples beside it are all that is needed. Packets are replayed through ideal servers with the rate
and the latencies that the signed envelopes promise. Promised, not installed: a domain that installed less would
otherwise be measured against its own neglect. Judging is for `testbed.audit.folder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from testbed.audit.clusters import FloatArray
from testbed.audit.contracts import DomainEvidence, excess_share_upper
from testbed.audit.crossing import Crossing, PacketCrossing, RequestCrossing
from testbed.audit.spared import Outside, Spared, spared
from testbed.envelope import strict_json
from testbed.envelope.descriptor import PAYLOAD_TYPE, Envelope, Stage
from testbed.envelope.dsse import Sealed
from testbed.envelope.errors import RefusedError, WrongDomainError
from testbed.envelope.keys import PublicKey
from testbed.errors import TestbedError
from testbed.report.record import RECORD_NAME, EnvelopeRecord, RunRecord, read_record
from testbed.report.tenant_record import TenantRecord
from testbed.telemetry import request_samples, samples
from testbed.telemetry.lag import replay
from testbed.telemetry.samples import BoolArray, TenantSamples

CONFIDENCE = 0.95
"""Of every limit, unless something else is asked for or promised."""


@dataclass(frozen=True, slots=True)
class RunEvidence:
    """What a folder holds, replayed: everything that findings rest on.

    Attributes:
        record: The run's record.
        crossings: What each tenant sent, by name; a tenant that sent nothing is missing.
        contracts: What each domain did with each tenant's packets or requests, all of them judged together.
        nonconforming: Packets or requests beyond their token bucket, by tenant.
        spared: What is not judged because a fault was to touch it, by tenant; nobody's where nothing was broken.
        unspared: `contracts` with nothing left out; empty where nothing is.
    """

    record: RunRecord
    crossings: Mapping[str, Crossing]
    contracts: tuple[DomainEvidence, ...]
    nonconforming: Mapping[str, int]
    spared: Mapping[str, Spared] = field(default_factory=dict)
    unspared: tuple[DomainEvidence, ...] = ()

    def judged(self, tenant: str) -> Crossing:
        """What a tenant's promise is judged by: all that it sent, less what faults were to touch."""
        whole, found = self.crossings[tenant], self.spared.get(tenant)
        return whole if found is None else Outside(whole, found.kept)

    @property
    def valid(self) -> bool:
        """Whether every fidelity gate held, to the end of the run."""
        held = all(gate.holds for gate in self.record.gates)
        return held and bool(self.record.windows) and all(window.valid for window in self.record.windows)


def read_evidence(folder: Path) -> RunEvidence:
    """Read a run folder and replay it.

    Raises:
        TestbedError: No such folder, or one that this version cannot read.
    """
    record = read_record(folder)
    envelopes = _envelopes(folder, record)
    crossings = {
        tenant.name: crossing
        for tenant in record.tenants
        if any(tenant.name in (window.samples | window.requests) for window in record.windows)
        and (crossing := _crossing(folder, record, tenant.name, envelopes.get(tenant.name, ()))).latency_s.size
    }
    beyond = {
        tenant.name: _nonconforming(record, tenant, crossings[tenant.name], envelopes.get(tenant.name, ()))
        for tenant in record.tenants
        if tenant.name in crossings
    }
    left_out = {name: found for name, crossing in crossings.items() if (found := spared(record, name, crossing))}

    def contracts(kept: Mapping[str, BoolArray]) -> tuple[DomainEvidence, ...]:
        return tuple(
            item
            for name, crossing in crossings.items()
            for item in _evidence(record, name, crossing, envelopes.get(name, ()), beyond[name], kept=kept.get(name))
        )

    return RunEvidence(
        record,
        crossings,
        contracts({name: found.kept for name, found in left_out.items()}),
        beyond,
        left_out,
        contracts({}) if left_out else (),
    )


def promised_confidence(record: RunRecord, tenant: str, otherwise: float = CONFIDENCE) -> float:
    """The confidence at which a tenant's promise is to be judged, where its scenario states one."""
    for described in record.scenario.get("tenants", ()):
        if described.get("name") == tenant and described.get("promise"):
            return float(described["promise"].get("confidence", otherwise))
    return otherwise


def _envelopes(folder: Path, record: RunRecord) -> dict[str, tuple[Envelope, ...]]:
    """Tenant to the latest envelope of each domain and stage that the run used, each as its domain signed it."""
    found: dict[str, dict[tuple[str, Stage], Envelope]] = {}
    for item in sorted(record.envelopes, key=lambda item: item.version):
        try:
            envelope = _signed(item, record.public_keys)
        except RefusedError as error:
            raise TestbedError(
                f"{folder / RECORD_NAME}: envelope of {item.domain} for {item.tenant}: {error}; nobody can be held to "
                "what was not signed, so take the record from whoever ran it"
            ) from error
        found.setdefault(item.tenant, {})[item.domain, envelope.subject.stage] = envelope
    return {tenant: tuple(promised.values()) for tenant, promised in found.items()}


def _signed(item: EnvelopeRecord, public_keys: Mapping[str, str]) -> Envelope:
    """Read the signed bytes and not the payload beside them, which is there for readers."""
    key = PublicKey.from_dict({"keytype": "ed25519", "public": public_keys.get(item.domain, "")})
    sealed = Sealed.from_bytes(strict_json.dumps(item.dsse), PAYLOAD_TYPE)
    sealed.verify({key.key_id: key})
    envelope = Envelope.from_dict(sealed.read("envelope"))
    if (envelope.domain, envelope.subject.tenant) != (item.domain, item.tenant):
        raise WrongDomainError(f"found the promise of {envelope.domain} to {envelope.subject.tenant}")
    return envelope


def _crossing(folder: Path, record: RunRecord, tenant: str, envelopes: Sequence[Envelope]) -> Crossing:
    promised = _on_the_network(envelopes)
    asked = [folder / window.requests[tenant] for window in record.windows if tenant in window.requests]
    if asked:
        found = [request_samples.read(path) for path in asked]
        kept = all(domain in promised for domain in found[0].domains)
        return RequestCrossing.of(found, _rate_bps(promised, found[0].domains) if kept else None)
    windows, replays = [], []
    for path in (folder / window.samples[tenant] for window in record.windows if tenant in window.samples):
        window, stored = samples.read(path)
        windows.append(window)
        if stored is not None and all(domain in promised for domain in window.domains):
            latencies = [promised[domain].latency_s for domain in window.domains]
            replays.append(replay(window, _rate_bps(promised, window.domains), latencies))
    return PacketCrossing.of(windows, replays)


def _on_the_network(envelopes: Sequence[Envelope]) -> dict[str, Envelope]:
    return {envelope.domain: envelope for envelope in envelopes if envelope.subject.stage is Stage.NETWORK}


def _rate_bps(promised: Mapping[str, Envelope], domains: Sequence[str]) -> float:
    """The smallest rate promised on a path: it is what every packet waits for."""
    return min(promised[domain].guardrails.reserved_rate_bps for domain in domains)


def _nonconforming(record: RunRecord, tenant: TenantRecord, crossing: Crossing, envelopes: Sequence[Envelope]) -> int:
    """As the run counted packets; requests are counted here, by the bucket of the first domain.

    Not those of a simulation, which saw every packet of theirs and knows what the samples cannot tell.
    """
    if tenant.conformance is not None:
        return tenant.conformance.nonconforming
    if record.kind == "simulation" and tenant.requests is not None:
        return tenant.requests.nonconforming
    if not isinstance(crossing, RequestCrossing) or crossing.rate_bps is None:
        return 0
    return crossing.nonconforming(_on_the_network(envelopes)[crossing.samples[0].domains[0]])


def _evidence(
    record: RunRecord,
    tenant: str,
    crossing: Crossing,
    envelopes: Sequence[Envelope],
    nonconforming: int,
    *,
    kept: BoolArray | None,
) -> list[DomainEvidence]:
    """What each domain did with what entered it; nothing where the tenant holds no envelopes of its whole path.

    Only what is kept counts, all of it if that is None; ideal servers are fed everything all the same.
    """
    kept = np.ones(crossing.latency_s.size, dtype=np.bool_) if kept is None else kept
    found: list[DomainEvidence] = []
    if isinstance(crossing, PacketCrossing) and crossing.replays:
        found = _of_packets(crossing, _on_the_network(envelopes), kept)
    elif isinstance(crossing, RequestCrossing) and crossing.rate_bps is not None:
        found = _of_requests(crossing, envelopes, kept)
    found = [replace(item, nonconforming=nonconforming) for item in found]
    if record.kind == "network":
        policed = [gate.limit for gate in record.gates if gate.name == f"host allowance, {tenant}"]
        shares = _host_shares(found)
        found = [replace(item, host_share=max(share, *policed, 0.0)) for item, share in zip(found, shares, strict=True)]
    return found


def _of_packets(crossing: PacketCrossing, promised: Mapping[str, Envelope], kept: BoolArray) -> list[DomainEvidence]:
    behinds = [_behind(s, r.rate_bps) for s, r in zip(crossing.samples, crossing.replays, strict=True)]
    found = []
    for d, domain in enumerate(crossing.samples[0].domains):
        entered = kept & np.concatenate([np.isfinite(samples.border_s[:, d]) for samples in crossing.samples])
        if entered.any():
            found.append(
                DomainEvidence(
                    envelope=promised[domain],
                    excess_s=crossing.excess_s(promised[domain])[entered],
                    lag_s=np.concatenate([behind[:, d] for behind in behinds])[entered],
                    runs=crossing.runs[entered],
                )
            )
    return found


def _of_requests(crossing: RequestCrossing, envelopes: Sequence[Envelope], kept: BoolArray) -> list[DomainEvidence]:
    """The requests that crossed each stage; errors are those of the domain in which the path ends.

    A request that did not cross is no loss: TCP sends lost packets again, and who gives up is the client.
    """
    domains, found = crossing.samples[0].domains, []
    endings = Outside(crossing, kept).endings
    errors = 0 if endings is None else endings.rejected + endings.errors
    for envelope in envelopes:
        computed = envelope.subject.stage is Stage.COMPUTE
        passed = crossing.passed(envelope)
        excess_s, lag_s = (np.concatenate([getattr(item, name) for item in passed]) for name in ("excess_s", "lag_s"))
        crossed = kept & np.isfinite(excess_s)
        ends_here = computed or (envelope.domain == domains[-1] and not _computes(envelopes))
        if crossed.any():
            found.append(
                DomainEvidence(
                    envelope=envelope,
                    excess_s=excess_s[crossed],
                    lag_s=lag_s[crossed],
                    errors=min(errors, int(crossed.sum())) if ends_here else 0,
                    what=crossing.what,
                    least=not computed or not crossed[kept].all(),
                    runs=crossing.runs[crossed],
                )
            )
    return found


def _computes(envelopes: Sequence[Envelope]) -> bool:
    return any(envelope.subject.stage is Stage.COMPUTE for envelope in envelopes)


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
