"""The system that a scenario describes: what `testbed run` installs, as the simulator's objects, and its bounds.

Domains offer signed envelopes as they do for a run, but grant nothing to a host, because there is none; meters, bursts
and queue limits are read from them. Schedulers that the data plane does not install are for comparison and promise
nothing. Tenants of whose requests nothing is known are left out, their reservations are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from testbed.envelope.descriptor import Envelope
from testbed.errors import ScenarioError
from testbed.management.bounds import Bounds
from testbed.management.federation import Federation
from testbed.management.paper import on_paper
from testbed.management.sealing import QUEUED_HOPS
from testbed.management.sizing import DRAIN_BPS, ClassDemand, best_effort_class, design_classes, shared_class
from testbed.report.tenant_record import BoundRecord
from testbed.run.requests import WORKERS
from testbed.scenario.model import FULL_FRAME_BITS, Domain, Scenario, Tenant
from testbed.simulation.asking import Asking
from testbed.simulation.bounds import bounds_of
from testbed.simulation.choices import Choices
from testbed.simulation.clock import to_ps
from testbed.simulation.known import Known
from testbed.simulation.meter import Policy
from testbed.simulation.reserved import Reserved
from testbed.simulation.serving import asking_of, packets_per_s, sign
from testbed.simulation.system import Hop, Scheduler, Source, System
from testbed.traffic.arrivals import mean_bps


@dataclass(frozen=True)
class Network:
    """A scenario ready to be simulated.

    Attributes:
        scenario: It, with everything that it reserves.
        known: What is taken as given of the requests of those that send any, by name.
        tenants: Those that are simulated, in the order of the system's sources.
        choices: How it is simulated.
        system: What is simulated.
        federation: The domains, which have offered.
        bounds: Bound of the tenants with a reservation, by name; empty where the scheduler promises nothing.
        unbound: Why others of them have none, by name; empty there, too.
    """

    scenario: Scenario
    known: Mapping[str, Known]
    tenants: tuple[Tenant, ...]
    choices: Choices
    system: System
    federation: Federation
    bounds: Mapping[str, BoundRecord]
    unbound: Mapping[str, str]

    @property
    def latencies_s(self) -> Mapping[str, tuple[float, ...]]:
        """Promised latency of each domain of a tenant's path, by tenant; empty where nothing is promised."""
        return {tenant.name: tuple(e.latency_s for e in self.envelopes(tenant)) for tenant in self.tenants}

    def envelopes(self, tenant: Tenant) -> list[Envelope]:
        """What the domains promise a tenant, in path order."""
        return self.federation.envelopes(tenant) if promises(self.choices.scheduler) else []


def promises(scheduler: Scheduler) -> bool:
    """Whether the envelopes of a scenario hold for a scheduler."""
    return scheduler in {Scheduler.RESERVED, Scheduler.ISOLATED}


def network(scenario: Scenario, choices: Choices, known: Mapping[str, Known] = MappingProxyType({})) -> Network:
    """Make a scenario ready.

    Args:
        scenario: What is to be simulated.
        choices: How.
        known: What is known of requests, by tenant; tenants of whose requests nothing is are left out.

    Raises:
        ReservationError: A domain cannot carry what the scenario reserves.
        ScenarioError: A trace that cannot be read, nobody that can be simulated, choices that do not fit, or faults.
    """
    choices.require_fit(scenario)
    if scenario.faults:
        names = ", ".join(fault.name for fault in scenario.faults)
        raise ScenarioError(
            f"scenario {scenario.name}: found the faults {names}, expected none: they are done to a network; "
            "use testbed run, or leave them out"
        )
    tenants = _simulated(scenario, known)
    federation = on_paper(scenario, host_allowance_s=0.0)
    federation.collect_offers()
    sign(scenario, federation, known)
    bounds = Bounds()
    if promises(choices.scheduler):
        bounds = bounds_of(scenario, tenants, federation, known, choices, host_s=0.0)
    numbers = {tenant.name: number for number, tenant in enumerate(scenario.tenants, start=1)}
    system = System(
        sources=tuple(_source(scenario, t, numbers[t.name], choices, known.get(t.name)) for t in tenants),
        hops=tuple(_hop(scenario, domain, tenants, federation, choices) for domain in scenario.domains),
        contracts=() if choices.metered else _policies(scenario.domains[0], tenants, federation),
    )
    return Network(scenario, known, tenants, choices, system, federation, bounds.found, bounds.missing)


def _simulated(scenario: Scenario, known: Mapping[str, Known]) -> tuple[Tenant, ...]:
    found = tuple(tenant for tenant in scenario.tenants if tenant.requests is None or tenant.name in known)
    if not found:
        raise ScenarioError(
            f"tenants {', '.join(tenant.name for tenant in scenario.tenants)}: found requests only, of which nothing "
            "is known, expected a tenant that sends packets; add one, or use `testbed simulate`"
        )
    return found


def _packets_per_s(tenant: Tenant, asking: Asking | None) -> float:
    if asking is not None and tenant.requests is not None:
        return packets_per_s(tenant, tenant.requests, asking)
    breach = tenant.misbehaviour
    offered_bps = None if breach is None else breach.offered_bps
    return (offered_bps or mean_bps(tenant.arrivals)) / tenant.arrivals.size_bits


def _source(scenario: Scenario, tenant: Tenant, number: int, choices: Choices, known: Known | None) -> Source:
    breach = tenant.misbehaviour
    declared = None if breach is None else breach.strength
    present = tenant.present_s
    asking = None if known is None or tenant.requests is None else asking_of(tenant, tenant.requests, known)
    return Source(
        name=tenant.name,
        number=number,
        arrivals=tenant.arrivals,
        packets_per_s=_packets_per_s(tenant, asking),
        hops=len(scenario.path(tenant)),
        deadline_ps=None if tenant.promise is None else to_ps(tenant.promise.deadline_s),
        misbehaviour=breach,
        strength=choices.strength if tenant.follows_a_group and choices.strength is not None else declared,
        present_ps=None if present is None else tuple((to_ps(begin_s), to_ps(end_s)) for begin_s, end_s in present),
        asking=asking,
    )


def _hop(
    scenario: Scenario, domain: Domain, tenants: Sequence[Tenant], federation: Federation, choices: Choices
) -> Hop:
    crossing = [tenant for tenant in scenario.tenants if domain in scenario.path(tenant)]
    promised = {tenant: signed.envelope for tenant, signed in federation.offers[domain.name].items()}
    classes = _classes(domain, {tenant.name: tenant for tenant in (*crossing, *tenants)}, promised)
    ranks = {tenant.name: 0 if tenant.reservation else 1 for tenant in scenario.tenants}

    def held(members: Iterable[Tenant]) -> int:
        """Packets that a queue of some tenants may hold: as many as their own queues together."""
        if domain.shared_queue_bits is not None:
            return -(-domain.shared_queue_bits // _largest_bits(crossing))
        return sum(classes[tenant.name].limit_packets or 0 for tenant in members)

    # A domain with one queue is simulated with it where everybody else has what the data plane would install.
    one_queue = domain.shared_queue_bits is not None and choices.scheduler is Scheduler.RESERVED
    scheduler = Scheduler.SHARED if one_queue else choices.scheduler
    used = [classes[tenant.name] for tenant in tenants]
    limits: list[int | None] = []
    match scheduler:
        case Scheduler.SHARED:
            used = [_shared(domain, crossing, held(crossing))] * len(tenants)
        case Scheduler.FIFO:
            limits = [held(crossing)]
        case Scheduler.PRIORITY:
            last = max(ranks[tenant.name] for tenant in tenants)
            limits = [held(t for t in crossing if ranks[t.name] == rank) for rank in range(last + 1)]
        case Scheduler.WEIGHTED:
            limits = [held([tenant]) for tenant in tenants]
    return Hop(
        name=domain.name,
        scheduler=scheduler,
        link_bps=float(domain.link_rate_bps),
        drain_bps=max(DRAIN_BPS, float(domain.link_rate_bps)),
        delay_ps=to_ps(domain.link_delay_s),
        classes=tuple(used),
        meters=_policies(domain, tenants, federation) if choices.metered else (),
        ranks=tuple(ranks[tenant.name] for tenant in tenants),
        weights=tuple(_weight(scenario, tenant) for tenant in tenants),
        limits=tuple(limits),
        excess=choices.excess_of(domain),
        loss=choices.loss_of(domain),
        workers=WORKERS,
    )


def _policies(domain: Domain, tenants: Sequence[Tenant], federation: Federation) -> tuple[Policy | None, ...]:
    """What a domain polices of each tenant; None where it promises nothing."""
    promised = {name: signed.envelope.guardrails for name, signed in federation.offers[domain.name].items()}
    return tuple(
        Policy(1000.0 * (rails.meter_rate_bps // 1000), float(rails.burst_bits))
        if (rails := promised.get(tenant.name)) is not None
        else None
        for tenant in tenants
    )


def _classes(domain: Domain, tenants: Mapping[str, Tenant], promised: Mapping[str, Envelope]) -> dict[str, Reserved]:
    """The class that the data plane would install for each tenant, by name; best effort's where nothing is promised."""
    demands = [
        ClassDemand(name, tenant.reservation.rate_bps, tenant.packet_bits)
        for name, tenant in tenants.items()
        if tenant.reservation is not None and name in promised
    ]
    shaped = design_classes(demands)

    def of(tenant: Tenant) -> Reserved:
        if tenant.name not in promised:
            queue = best_effort_class(1, domain.link_rate_bps, tenant.packet_bits)
            return Reserved(None, 8.0 * queue.burst_bytes, queue.limit_packets)
        guardrails = promised[tenant.name].guardrails
        queued_bits = guardrails.delay_cap_ns * guardrails.reserved_rate_bps // (QUEUED_HOPS * 10**9)
        return Reserved(
            rate_bps=float(guardrails.reserved_rate_bps),
            burst_bits=8.0 * shaped[tenant.name].burst_bytes,
            limit_packets=-(-queued_bits // guardrails.largest_packet_bits),
        )

    return {name: of(tenant) for name, tenant in tenants.items()}


def _largest_bits(crossing: Sequence[Tenant]) -> int:
    return max((tenant.packet_bits for tenant in crossing), default=FULL_FRAME_BITS)


def _shared(domain: Domain, crossing: Sequence[Tenant], limit_packets: int) -> Reserved:
    """The class that everybody shares."""
    largest_bits = _largest_bits(crossing)
    queue = shared_class(domain.link_rate_bps, largest_bits, limit_packets * largest_bits)
    return Reserved(float(queue.rate_bps), 8.0 * queue.burst_bytes, queue.limit_packets)


def _weight(scenario: Scenario, tenant: Tenant) -> float:
    """Reserved rates are shares; best effort counts as much as a hundredth of the narrowest link."""
    narrowest_bps = min(domain.link_rate_bps for domain in scenario.path(tenant))
    return float(tenant.reservation.rate_bps) if tenant.reservation else narrowest_bps / 100
