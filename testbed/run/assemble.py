"""From everything measured to the run's record and its Parquet files. It measures nothing and decides no verdict."""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import testbed
from testbed.audit.conformance import METER_GRAIN_S
from testbed.management.bounds import Bounds
from testbed.management.federation import Signed
from testbed.report.record import (
    EnvelopeRecord,
    ExpectationRecord,
    FaultRecord,
    GateRecord,
    HeldOutRecord,
    RunRecord,
    WindowRecord,
)
from testbed.report.tenant_record import OfferedRecord, TenantRecord
from testbed.run.excess import computed_under, excess_of, refuted
from testbed.run.expectations import Packets, ended_by, expectations, left_out_s, outside
from testbed.run.faults import UNFINISHED, Occurrence
from testbed.run.judge import Observed, beyond_contract, judge_tenant, run_verdict, unmeasured
from testbed.run.judge_requests import judge_requests
from testbed.run.offered import offered
from testbed.run.request_terms import Granted
from testbed.run.reservations import Reservations
from testbed.run.terms import Terms
from testbed.run.undoing import NOT_UNDONE
from testbed.run.window import Window
from testbed.scenario.dictionary import to_dict
from testbed.scenario.model import Scenario, Tenant
from testbed.scenario.slow_down import corrections
from testbed.telemetry import request_samples, samples
from testbed.telemetry.idle_path import NONE

STALL_S = 2e-3
"""Shorter absences of a core are every busy host's and are not recorded one by one."""


@dataclass(frozen=True)
class Measured:
    """One window with what it is held against.

    Attributes:
        window: The evidence.
        gates: What it says of the host.
        terms: What each tenant's delays are held against.
        granted: What each request tenant with a reservation is held against.
    """

    window: Window
    gates: Sequence[GateRecord]
    terms: Mapping[str, Terms]
    granted: Mapping[str, Granted]


def observe(tenant: Tenant, item: Measured) -> Observed:
    """One tenant of one window, replayed through its ideal server."""
    match = item.window.matches[tenant.name]
    replay, terms = None, item.terms.get(tenant.name)
    if terms is not None and terms.latencies_s:
        replay = terms.replay(match.samples)
    grown = [item.window.grown(domain, tenant.name) for domain in match.samples.domains]
    forgiven = 0
    if tenant.reservation is not None:
        # Its meter is the coarser by a grain and may drop what a bucket that is smaller by one would.
        most = beyond_contract(tenant.reservation, match.samples, grain_s=-METER_GRAIN_S)
        forgiven = min(grown[0].meter_dropped, most)
    return Observed(
        match=match,
        replay=replay,
        meter_dropped=sum(counted.meter_dropped for counted in grown),
        queue_dropped=sum(counted.queue_dropped for counted in grown),
        window_s=item.window.duration_s,
        forgiven=forgiven,
        outside=outside(item.window.faults, tenant, match.samples.intended_s),
    )


def assemble(
    scenario: Scenario,
    folder: Path,
    measured: Sequence[Measured],
    bounds: Bounds,
    reservations: Reservations,
    *,
    failure: Sequence[str] = (),
    not_undone: Sequence[str] = (),
    broken: Sequence[Occurrence] = (),
) -> RunRecord:
    """Write the samples and make the record; what the run alone knows (identity, host, timings) is still empty.

    Args:
        scenario: What was run.
        folder: Receives the samples.
        measured: Its windows; none if the run failed before the first one ended.
        bounds: Of its tenants, and why some have none.
        reservations: Holds the envelopes in force.
        failure: Why the run could not go on; empty if it could.
        not_undone: What went wrong when everything was given back and taken down; empty if nothing did.
        broken: Faults that were done in the window that it could not end.
    """
    gates = tuple(gate for item in measured for gate in item.gates)
    unfinished = [_failed(UNFINISHED, failure, window=len(measured) + 1)] if failure else []
    left = [_failed(NOT_UNDONE, not_undone)] if not_undone else []
    gates = (*gates, *unfinished, *left)
    valid = all(gate.holds for gate in gates)
    observed: dict[str, list[Observed]] = {tenant.name: [] for tenant in scenario.tenants}
    seconds = sum(item.window.duration_s for item in measured)
    windows = []
    for item in measured:
        files, requests = {}, {}
        for tenant in scenario.tenants:
            if tenant.requests is not None:
                requests[tenant.name] = f"window-{item.window.index}/{tenant.name}.parquet"
                outcome = item.window.requests[tenant.name]
                request_samples.write(folder / requests[tenant.name], outcome.match.samples)
                continue
            seen = observe(tenant, item)
            observed[tenant.name].append(seen)
            files[tenant.name] = f"window-{item.window.index}/{tenant.name}.parquet"
            samples.write(folder / files[tenant.name], seen.match.samples, seen.replay)
        held_out = tuple(_held_out(scenario, reservations, item.window))
        windows.append(_window_record(item, files, requests, held_out))

    def judged(tenant: Tenant) -> TenantRecord:
        bound = bounds.found.get(tenant.name)
        if not measured:
            return unmeasured(tenant, bound)
        if tenant.requests is None:
            return judge_tenant(tenant, observed[tenant.name], bound, valid=valid)
        outcomes = [item.window.requests[tenant.name] for item in measured]
        terms = measured[0].terms.get(tenant.name) if tenant.reservation else None
        shaper = None if terms is None else terms.shaper
        kept = [
            outside(item.window.faults, tenant, outcome.record.schedule.time_s)
            for item, outcome in zip(measured, outcomes, strict=True)
        ]
        return judge_requests(
            tenant,
            tenant.requests,
            outcomes,
            bound,
            shaper,
            latencies_s=() if shaper is None or terms is None else terms.latencies_s,
            idle=[item.granted[tenant.name].idle if tenant.name in item.granted else NONE for item in measured],
            seconds=seconds,
            valid=valid,
            outside=kept,
        )

    tenants = tuple(
        judged(tenant).model_copy(
            update={"offered": _offered(tenant, measured), "unbound": bounds.missing.get(tenant.name, "")}
        )
        for tenant in scenario.tenants
    )
    faults = tuple(fault for item in measured for fault in _faults(scenario, item))
    faults += tuple(_fault(each, scenario, len(measured) + 1, ended_by(each, unfinished)) for each in broken)
    return RunRecord(
        run_id="",
        name=scenario.name,
        kind="network",
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        testbed_version=testbed.__version__,
        command=(),
        datapath="",
        partial=not all(item.window.complete for item in measured),
        verdict=run_verdict(tenants, faults, valid=valid),
        scenario=to_dict(scenario),
        slow_down=scenario.slow_down,
        slow_down_notes=corrections(scenario),
        plan=reservations.plan(),
        public_keys={name: key.raw.hex() for name, key in reservations.public_keys.items()},
        envelopes=envelope_records(reservations.signed()),
        gates=gates,
        tenants=tenants,
        windows=tuple(windows),
        faults=faults,
    )


def _offered(tenant: Tenant, measured: Sequence[Measured]) -> OfferedRecord | None:
    def due(window: Window) -> samples.TenantSamples | request_samples.RequestSamples:
        if tenant.requests is None:
            return window.matches[tenant.name].samples
        return window.requests[tenant.name].match.samples.due()

    return offered([(due(item.window), item.window.duration_s) for item in measured])


def _faults(scenario: Scenario, item: Measured) -> Iterator[FaultRecord]:
    window = item.window
    packets = {
        name: Packets(match.samples.intended_s, match.samples.latency_s) for name, match in window.matches.items()
    }
    packets |= {name: Packets.asked(outcome.record) for name, outcome in window.requests.items()}
    for each in window.faults:
        found = expectations(each, scenario.tenants, packets, item.gates) if window.complete else ()
        yield _fault(each, scenario, window.index, found)


def _fault(done: Occurrence, scenario: Scenario, window: int, expected: Iterable[ExpectationRecord]) -> FaultRecord:
    return FaultRecord(
        name=done.fault.name,
        kind=done.fault.kind.value,
        window=window,
        what=done.fault.describe(),
        begin_s=done.begin_s,
        end_s=done.end_s,
        left_out={
            tenant.name: stretch for tenant in scenario.tenants if (stretch := left_out_s(done, tenant)) is not None
        },
        expectations=tuple(expected),
    )


def _failed(name: str, problems: Sequence[str], window: int = 0) -> GateRecord:
    return GateRecord(name=name, value=1.0, limit=0.0, ok=False, detail="; ".join(problems), window=window)


def _held_out(scenario: Scenario, reservations: Reservations, window: Window) -> Iterator[HeldOutRecord]:
    """What became of each signed tail; of tenants that send packets the audit asks the same from their samples."""
    for tenant in scenario.tenants:
        if tenant.requests is None:
            continue
        match, server = window.requests[tenant.name].match, reservations.server(tenant)
        if server is not None and server.tail is not None:
            found = computed_under(match.samples, server)
            yield HeldOutRecord(
                domain=server.domain,
                tenant=tenant.name,
                stage="compute",
                n=found.excess_s.size,
                contradictions=tuple(refuted([(server, found)])),
            )
        for position, envelope in enumerate(reservations.envelopes(tenant)):
            if envelope.tail is None:
                continue
            found = excess_of(match.packets, position, envelope.tail.rate_bps, envelope.latency_s)
            yield HeldOutRecord(
                domain=envelope.domain,
                tenant=tenant.name,
                n=found.excess_s.size + found.lost,
                contradictions=tuple(refuted([(envelope, found)])),
            )


def _window_record(
    item: Measured, files: dict[str, str], requests: dict[str, str], held_out: tuple[HeldOutRecord, ...]
) -> WindowRecord:
    window = item.window
    lateness = {
        name: float(np.nanquantile(record.lateness_s, 0.999, method="higher"))
        for name, record in window.sent.items()
        if np.isfinite(record.lateness_s).any()
    }
    return WindowRecord(
        index=window.index,
        seed=window.seed,
        duration_s=window.duration_s,
        valid=all(gate.holds for gate in item.gates),
        samples=files,
        requests=requests,
        held_out=held_out,
        environment_before=asdict(window.host_before),
        environment_after=asdict(window.host_after),
        sender_lateness_p999_s=lateness,
        stalls=_stalls(window),
        impairments=tuple(window.impairments),
    )


def _stalls(window: Window) -> tuple[tuple[float, float], ...]:
    """When and for how long a core was away, seconds since the window's start, in order."""
    start_ns = next(iter(window.sent.values())).start_monotonic_ns
    end_ns = start_ns + round(window.duration_s * 1e9)
    seen = [core.during(start_ns, end_ns) for core in window.stalls]
    found = [
        ((at_ns - start_ns) / 1e9, late_ns / 1e9)
        for core in seen
        for at_ns, late_ns in zip(core.at_ns.tolist(), core.late_ns.tolist(), strict=True)
        if late_ns >= STALL_S * 1e9
    ]
    return tuple(sorted(found))


def envelope_records(envelopes: Iterable[Signed]) -> tuple[EnvelopeRecord, ...]:
    """Signed envelopes as a run's record keeps them."""
    return tuple(
        EnvelopeRecord(
            domain=signed.envelope.domain,
            tenant=signed.envelope.subject.tenant,
            version=signed.envelope.version,
            dsse=json.loads(signed.sealed),
            payload=json.loads(base64.standard_b64decode(json.loads(signed.sealed)["payload"])),
        )
        for signed in envelopes
    )
