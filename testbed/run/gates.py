"""All fidelity gates of one window: which evidence goes to which gate of `testbed.telemetry.fidelity`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from testbed.management.bounds import HOST_RISK
from testbed.report.record import GateRecord
from testbed.run.expectations import outside
from testbed.run.faults import COUNTERS, explains, explains_all
from testbed.run.request_terms import Granted, request_gates
from testbed.run.terms import Terms
from testbed.run.window import Window
from testbed.scenario.model import Domain, Scenario, Tenant
from testbed.telemetry import fidelity
from testbed.telemetry.fidelity import Gate, Ledger
from testbed.telemetry.host import between


def gates_of(
    scenario: Scenario,
    window: Window,
    terms: Mapping[str, Terms],
    granted: Mapping[str, Granted],
    drift: Sequence[str],
) -> tuple[GateRecord, ...]:
    """Every gate of a window; limits on times are as long as the scenario is slow.

    Args:
        scenario: Tenants and their promises.
        window: The evidence.
        terms: What each tenant's delays are held against.
        granted: What each request tenant is held against.
        drift: Differences between what was committed and what was installed, before or after the window.
    """
    begin_ns = next(iter(window.sent.values())).start_monotonic_ns
    end_ns = begin_ns + round(window.duration_s * 1e9)
    before, after = window.switches_before, window.switches_after
    slow_down = scenario.slow_down
    ticked = [record.during(begin_ns, end_ns) for record in window.stalls]
    change = between(window.host_before, window.host_after)
    gates: list[Gate] = [
        *fidelity.stalls(ticked, longest_s=slow_down * fidelity.LONGEST_STALL_S),
        *fidelity.host(change, isolated=window.isolated, awake=window.awake),
        fidelity.clock(change.clock_step_s, ticked, limit_s=slow_down * fidelity.CLOCK_STEP_S),
        *([fidelity.configuration("places kept", window.misplaced)] if window.isolated else []),
        fidelity.captures(window.captures),
        fidelity.packet_ins(after.packet_ins - before.packet_ins),
        fidelity.upcalls(after.datapath.misses - before.datapath.misses, after.datapath.lost - before.datapath.lost),
        fidelity.configuration("installed reservations", drift),
    ]
    explained: dict[str, Gate] = {}
    for fault, rows in _ledgers(scenario, window).items():
        if fault:
            explained[fault] = fidelity.ledger(f"{COUNTERS}, fault {fault}", rows)
        else:
            gates.append(fidelity.ledger(COUNTERS, rows))
    for tenant in scenario.tenants:
        if tenant.requests is None:
            gates += _tenant_gates(tenant, window, terms, slow_down)
        else:
            own = terms.get(tenant.name)
            outcome = window.requests[tenant.name]
            gates += request_gates(
                tenant,
                outcome,
                granted.get(tenant.name),
                own.shaper if own else None,
                slow_down=slow_down,
                outside=outside(window.faults, tenant, outcome.record.schedule.time_s),
            )
    return (
        *(_record(gate, window.index, excused_by=explains_all(window.faults, gate.name)) for gate in gates),
        *(_record(gate, window.index, excused_by=fault) for fault, gate in explained.items()),
    )


def _record(gate: Gate, window: int, *, excused_by: str = "") -> GateRecord:
    return GateRecord(
        name=gate.name,
        value=gate.value,
        limit=gate.limit,
        ok=gate.ok,
        unit=gate.unit,
        detail=gate.detail,
        window=window,
        excused_by="" if gate.ok else excused_by,
    )


def _tenant_gates(tenant: Tenant, window: Window, terms: Mapping[str, Terms], slow_down: float) -> list[Gate]:
    match = window.matches[tenant.name]
    samples = match.samples
    gates = fidelity.matching(tenant.name, match)
    if tenant.reservation is None or tenant.promise is None or not tenant.keeps_its_law:
        return gates
    own, epsilon = terms[tenant.name], tenant.promise.epsilon
    replayed = own.replay(samples)
    # What a fault was to do to a tenant is not the host's doing; all else must be as without it.
    kept = outside(window.faults, tenant, samples.intended_s)
    samples, replayed = samples.take(kept), replayed.take(kept)
    return [
        *gates,
        *fidelity.lateness(
            tenant.name,
            samples.lateness_s,
            p999_s=slow_down * fidelity.LATENESS_P999_S,
            longest_s=slow_down * fidelity.LATENESS_MAX_S,
        ),
        fidelity.host_allowance(
            tenant.name, samples, replayed, queues_s=own.queues_s, host_s=own.host_s, share=HOST_RISK * epsilon
        ),
        fidelity.idle_path(tenant.name, own.idle, own.queues_s - own.links_s),
        fidelity.replay(
            tenant.name,
            samples,
            replayed,
            queues_s=own.queues_s,
            level=1.0 - epsilon,
            resolved_s=slow_down * fidelity.REPLAY_RESOLVED_S,
        ),
        fidelity.tail_shift(
            tenant.name, samples, replayed, level=1.0 - epsilon, resolved_s=slow_down * fidelity.SHIFT_RESOLVED_S
        ),
    ]


def _ledgers(scenario: Scenario, window: Window) -> dict[str, list[Ledger]]:
    """What borders saw of tenants in each domain, and what meters and queues counted, must agree to the packet.

    Rows are kept apart by the fault that explains why they would not; those that none explains have an empty name.
    """
    rows: dict[str, list[Ledger]] = {"": []}
    for domain in scenario.domains:
        crossing = [t for t in scenario.tenants if t.requests is None and domain in scenario.path(t)]
        # What a shared queue counts is everybody's.
        together = [crossing] if domain.shared_queue_bits is not None else [[tenant] for tenant in crossing]
        for members in together:
            if members:
                faults = (explains(window.faults, COUNTERS, domain.name, tenant.name) for tenant in members)
                fault = next(filter(None, faults), "")
                rows.setdefault(fault, []).extend(_domain_ledger(scenario, window, domain, members))
    return rows


def _domain_ledger(scenario: Scenario, window: Window, domain: Domain, members: Sequence[Tenant]) -> list[Ledger]:
    """One domain's books on tenants that share a queue there, or on one that shares it with nobody."""
    entered = left = 0
    rows = []
    grown = [window.grown(domain.name, tenant.name) for tenant in members]
    what = f"{', '.join(tenant.name for tenant in members)} in {domain.name}"
    for tenant, own in zip(members, grown, strict=True):
        borders, d = window.matches[tenant.name].borders, scenario.path(tenant).index(domain)
        entered += borders[d].seen - own.meter_dropped
        left += borders[d + 1].seen
        if tenant.reservation is not None:
            rows.append(Ledger(f"{what}, into its meter", borders[d].seen, own.metered))
    queued, dropped = grown[0].queued, grown[0].queue_dropped
    rows.append(Ledger(f"{what}, past its meter", entered, queued))
    rows.append(Ledger(f"{what}, out of its queues", queued - dropped, left))
    return rows
