"""Whether a domain's answer is an answer to what it was asked: offers that sign the demand, holdings that hold it.

A domain may err or lie in everything it says, its own signatures included. What it says wrongly costs it, or the tenant
concerned, its place, and nobody else's; so everything here finds reasons and takes nothing for granted. What the
figures are worth in a bound is not known here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from testbed.envelope.descriptor import Envelope, Stage, Subject
from testbed.envelope.errors import MixAndMatchError
from testbed.management.entry import State
from testbed.management.generated import management_pb2 as wire
from testbed.management.sealing import FORWARDING, TENANT_CLASS

LOG = logging.getLogger("testbed.orchestrator")


def require_as_asked(domain: str, demand: wire.Demand, signed: Sequence[Envelope]) -> None:
    """Check that what a domain signed is what it was asked for, field by field.

    Args:
        domain: Who was asked.
        demand: For what.
        signed: All that it signed in answer, verified.

    Raises:
        MixAndMatchError: Other envelopes, another subject, or another figure; each is named.
    """
    asked = [_network(demand)]
    if demand.HasField("compute"):
        asked.append(_compute(demand))
    found = {envelope.subject.stage: envelope for envelope in signed}
    wanted = [subject.stage for subject, _ in asked]
    if len(found) != len(signed) or found.keys() != set(wanted):
        stages = ", ".join(str(envelope.subject.stage) for envelope in signed) or "none"
        raise MixAndMatchError(
            f"domain {domain} for {demand.tenant}: found envelopes of the stages {stages}, expected one of each of "
            f"{', '.join(map(str, wanted))}; ask for a new offer"
        )
    problems = [
        f"domain {domain} for {demand.tenant}: {subject.stage} {name}: signed {have}, asked for {want}; "
        "ask for a new offer"
        for subject, figures in asked
        for name, have, want in _differences(domain, subject, figures, found[subject.stage])
    ]
    if problems:
        raise MixAndMatchError(problems)


def _network(demand: wire.Demand) -> tuple[Subject, dict[str, int | None]]:
    network = demand.network
    return Subject(demand.tenant, TENANT_CLASS, FORWARDING, Stage.NETWORK), {
        "reserved_rate_bps": network.rate_bps,
        "meter_rate_bps": network.meter_rate_bps,
        # A signed peak would restrict a tenant that declares none.
        "peak_rate_bps": None,
        "burst_bits": network.burst_bits,
        "largest_packet_bits": network.largest_packet_bits,
    }


def _compute(demand: wire.Demand) -> tuple[Subject, dict[str, int | None]]:
    """What the server's share comes to in bits per second is the domain's to say; the bound judges it."""
    compute = demand.compute
    return Subject(demand.tenant, TENANT_CLASS, compute.model, Stage.COMPUTE), {
        "meter_rate_bps": compute.meter_rate_bps,
        "peak_rate_bps": None,
        "burst_bits": compute.burst_bits,
        "largest_packet_bits": compute.largest_request_bits,
    }


def _differences(
    domain: str, subject: Subject, figures: Mapping[str, int | None], signed: Envelope
) -> Iterable[tuple[str, object, object]]:
    if signed.domain != domain:
        yield "domain", signed.domain, domain
    for name in ("tenant", "tenant_class", "service"):
        if getattr(signed.subject, name) != getattr(subject, name):
            yield name, getattr(signed.subject, name), getattr(subject, name)
    for name, wanted in figures.items():
        if getattr(signed.guardrails, name) != wanted:
            yield name, getattr(signed.guardrails, name), wanted
    rails = signed.guardrails
    load_ppm = min(1_000_000, max(1, 1_000_000 * rails.meter_rate_bps // max(rails.reserved_rate_bps, 1)))
    if rails.load_cap_ppm < load_ppm:
        yield "load_cap_ppm", rails.load_cap_ppm, f"at least the meter's {load_ppm}"


def sort_offers(
    domain: str, asked: Sequence[wire.Demand], answers: Iterable[wire.Offered]
) -> tuple[dict[str, wire.Offered], dict[str, str]]:
    """Which answer is whose.

    Args:
        domain: Who answered.
        asked: The demands, each for another tenant.
        answers: What came back, in whatever order.

    Returns:
        Tenant to its offer, and tenant to why it has none: refused, not answered, or answered in a way that could not
        be taken up. What nobody asked for is dropped and logged.
    """
    waiting = {demand.tenant for demand in asked}
    offers: dict[str, wire.Offered] = {}
    refused: dict[str, str] = {}
    known: dict[str, str] = {}
    for offered in answers:
        tenant, reservation = offered.tenant, offered.reservation
        if tenant not in waiting:
            LOG.warning("domain %s: offers for %.64r, which nobody asked for; ignored", domain, tenant)
        elif tenant in offers:
            refused[tenant] = f"domain {domain} for {tenant}: found two offers, expected one"
        elif offered.refused:
            refused[tenant] = offered.refused
        elif not reservation or not offered.envelopes:
            refused[tenant] = f"domain {domain} for {tenant}: found no reservation or nothing signed in its offer"
        elif reservation in known:
            # Neither can be told from the other in what follows.
            for one in (tenant, known[reservation]):
                refused[one] = f"domain {domain} for {one}: found reservation {reservation!r:.80} offered twice"
        else:
            known[reservation] = tenant
            offers[tenant] = offered
    for tenant in waiting - offers.keys() - refused.keys():
        refused[tenant] = f"domain {domain} for {tenant}: found no answer to its demand, expected an offer or why not"
    return {tenant: offered for tenant, offered in offers.items() if tenant not in refused}, refused


def not_held(
    domain: str, asked: Iterable[str], answers: Iterable[wire.Holding], states: Iterable[State]
) -> dict[str, str]:
    """Which reservations a domain does not say it has brought where they should be.

    Args:
        domain: Who answered.
        asked: The reservations.
        answers: What came back.
        states: Where each should be now.

    Returns:
        Reservation to why it does not count. Answers about others are dropped and logged.
    """
    wanted = tuple(map(str, states))
    waiting = dict.fromkeys(asked, "")
    for reservation in waiting:
        waiting[reservation] = f"domain {domain}: found no answer about reservation {reservation}, expected {wanted[0]}"
    for holding in answers:
        if holding.reservation not in waiting:
            LOG.warning("domain %s: answers about %.80r, which nobody asked for; ignored", domain, holding.reservation)
        elif holding.refused:
            waiting[holding.reservation] = holding.refused
        elif holding.state in wanted:
            waiting[holding.reservation] = ""
        else:
            waiting[holding.reservation] = (
                f"domain {domain}: reservation {holding.reservation} is {holding.state[:20] or 'nowhere'}, "
                f"expected {wanted[0]}"
            )
    return {reservation: why for reservation, why in waiting.items() if why}
