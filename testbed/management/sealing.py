"""What a domain signs for a demand, and what its controller installs for it: pure, and the only place that knows both.

An envelope is what the others see of a reservation, a rule is what the switches see; both come from one demand and one
class, here, so that they cannot differ. Who signs, who holds and who installs is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

from controller.program import Meter, Queue, Rule
from testbed.envelope.descriptor import Envelope, Evidence, Stage, Subject, Validity
from testbed.envelope.guardrails import Guardrails
from testbed.envelope.tail import Stochastic
from testbed.envelope.units import ns_up
from testbed.management.sizing import ReservedClass, best_effort_class, class_minor
from testbed.scenario.model import Domain, Reservation, whole_kbit

TENANT_CLASS = "reserved"
FORWARDING = "packet-forwarding"

QUEUED_HOPS = 2
"""Queues a packet crosses in a domain: one leaving the ingress switch, one leaving the egress switch."""


@dataclass(frozen=True)
class Demand:
    """What one tenant asks of one domain.

    Attributes:
        tenant: Name.
        number: The tenant's number in addresses, classes and meters.
        client: IPv4 address of its client.
        server: IPv4 address it talks to.
        reservation: None asks for best effort, which needs no envelope.
        burst_bits: Burst of the meter in this domain, larger than the reservation's in later domains; signed and
            installed in whole kbit.
        largest_packet_bits: Largest L2 frame it sends.
    """

    tenant: str
    number: int
    client: str
    server: str
    reservation: Reservation | None
    burst_bits: int
    largest_packet_bits: int


@dataclass(frozen=True)
class Computation:
    """What a server is to do for one tenant's requests; work is counted in bits of the request on the wire.

    One unit serves the whole path then, and every request counts as the largest: padding costs the network and not the
    server.

    Attributes:
        tenant: Name.
        model: That computes them.
        rate_bps: Rate of the tenant's share, see `computing_rate_bps`.
        latency_s: By when a request is computed after an ideal server of that rate begins with it, the host's allowance
            included.
        host_allowance_s: The part of the latency granted to the emulating host.
        delay_cap_s: Nobody waits any longer for a request that is further behind.
        largest_request_bits: Largest request.
        meter_rate_bps: What the tenant's meters let through.
        burst_bits: Burst in which it may arrive at the server.
        error_cap_ppb: Largest share of requests answered by an error.
        calibrated: What a calibration supports.
    """

    tenant: str
    model: str
    rate_bps: int
    latency_s: float
    host_allowance_s: float
    delay_cap_s: float
    largest_request_bits: int
    meter_rate_bps: int
    burst_bits: int
    error_cap_ppb: int = 0
    calibrated: tuple[Stochastic | None, Evidence | None] = (None, None)


def computing_rate_bps(share: float, workers: int, request_bits: int, work_s: float) -> int:
    """Rate at which a share of c workers computes requests of S bits that take one of them w seconds: share c S / w."""
    return int(share * workers * request_bits / work_s)


def network_envelope(
    domain: Domain,
    demand: Demand,
    reservation: Reservation,
    shaped: ReservedClass,
    *,
    host_allowance_s: float,
    version: int,
    validity: Validity,
    calibrated: tuple[Stochastic | None, Evidence] | None = None,
) -> Envelope:
    """The promise to forward a tenant's packets at its reserved rate.

    Args:
        domain: Who promises.
        demand: What was asked.
        reservation: The demand's, which is not best effort.
        shaped: The class at each of the domain's ports.
        host_allowance_s: Part of the latency granted to the emulating host.
        version: Number of the offer.
        validity: When it may be used.
        calibrated: What a calibration supports.
    """
    latency_s = QUEUED_HOPS * shaped.latency_s + domain.link_delay_s + host_allowance_s
    stochastic, evidence = calibrated or (None, None)
    return Envelope(
        domain=domain.name,
        subject=Subject(demand.tenant, TENANT_CLASS, FORWARDING, Stage.NETWORK),
        guardrails=Guardrails(
            reserved_rate_bps=reservation.rate_bps,
            meter_rate_bps=reservation.meter_rate_bps,
            peak_rate_bps=None,
            burst_bits=whole_kbit(demand.burst_bits),
            latency_ns=ns_up(latency_s),
            host_allowance_ns=ns_up(host_allowance_s),
            largest_packet_bits=demand.largest_packet_bits,
            delay_cap_ns=ns_up(QUEUED_HOPS * reservation.queue_bits / reservation.rate_bps),
            loss_cap_ppb=0,
            error_cap_ppb=0,
            load_cap_ppm=min(1_000_000, 1_000_000 * reservation.meter_rate_bps // reservation.rate_bps),
        ),
        stochastic=stochastic,
        validity=validity,
        version=version,
        evidence=evidence,
    )


def compute_envelope(domain: str, promised: Computation, *, version: int, validity: Validity) -> Envelope:
    """The promise to compute a tenant's requests at its share of the domain's server.

    Raises:
        MalformedError: The meters let through what the share does not compute.
    """
    stochastic, evidence = promised.calibrated
    load_ppm = 1_000_000 * promised.meter_rate_bps // max(promised.rate_bps, 1)
    return Envelope(
        domain=domain,
        subject=Subject(promised.tenant, TENANT_CLASS, promised.model, Stage.COMPUTE),
        guardrails=Guardrails(
            reserved_rate_bps=promised.rate_bps,
            meter_rate_bps=promised.meter_rate_bps,
            peak_rate_bps=None,
            burst_bits=promised.burst_bits,
            latency_ns=ns_up(promised.latency_s),
            host_allowance_ns=ns_up(promised.host_allowance_s),
            largest_packet_bits=promised.largest_request_bits,
            delay_cap_ns=ns_up(promised.delay_cap_s),
            loss_cap_ppb=0,
            error_cap_ppb=promised.error_cap_ppb,
            load_cap_ppm=min(1_000_000, max(1, load_ppm)),
        ),
        stochastic=stochastic,
        validity=validity,
        version=version,
        evidence=evidence,
    )


def best_effort_rule(domain: Domain, demand: Demand) -> Rule:
    """A class that may borrow what reservations leave; no meter."""
    queue = best_effort_class(demand.number, domain.link_rate_bps, demand.largest_packet_bits)
    return Rule(demand.tenant, demand.number, demand.client, demand.server, None, queue)


def shared_rule(demand: Demand, queue: Queue) -> Rule:
    """The queue that everybody in the domain shares; no meter."""
    return Rule(demand.tenant, demand.number, demand.client, demand.server, None, queue)


def reserved_rule(demand: Demand, guardrails: Guardrails, shaped: ReservedClass) -> Rule:
    """A meter and a class that enforce exactly what the envelope says."""
    meter = Meter(demand.number, guardrails.meter_rate_bps // 1000, whole_kbit(guardrails.burst_bits) // 1000)
    queued_bits = guardrails.delay_cap_ns * guardrails.reserved_rate_bps // (QUEUED_HOPS * 10**9)
    queue = Queue(
        minor=class_minor(demand.number),
        rate_bps=guardrails.reserved_rate_bps,
        ceil_bps=guardrails.reserved_rate_bps,
        burst_bytes=shaped.burst_bytes,
        quantum_bytes=shaped.quantum_bytes,
        limit_packets=-(-queued_bits // guardrails.largest_packet_bits),
    )
    return Rule(demand.tenant, demand.number, demand.client, demand.server, meter, queue)
