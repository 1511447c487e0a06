"""From a tenant's declared arrivals and its domains' envelopes to the bound that is shown beside the measurement.

The mathematics is `testbed.calculus`; here the scenario's words and the envelopes' integers become its objects. What a
tenant sends is taken from its declaration only where it keeps to it: for one that floods on purpose, only what its
meter enforces counts. Bursts that coincide with others' change no tenant's own law, which is all that is used of it
behind a reservation: others are in the domains' latencies as their worst case, never as independent of it. Nothing is
said of a tenant without a reservation, and so of none in a queue that others share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from testbed.calculus import (
    Arrival,
    CompoundPoisson,
    ConstantGap,
    DelayBound,
    GammaGap,
    MarkovOnOff,
    MarkovPoisson,
    Metered,
    NotApplicableError,
    Part,
    Renewal,
    TokenBucket,
    delay_bound,
    delay_curve,
)
from testbed.calculus.service.promised import EnvelopeService
from testbed.envelope.descriptor import Envelope
from testbed.envelope.service import to_service
from testbed.report.tenant_record import BoundPart, BoundRecord, BudgetShare
from testbed.scenario.model import MmppArrivals, OnOffArrivals, PoissonArrivals, RenewalArrivals, Tenant

DECLARED_HOST_S = 10e-3
"""What the emulating host may add on a path as long as no warm-up has said otherwise."""

HOST_RISK = 0.25
"""Share of a promise's epsilon kept for packets that the host delays beyond its allowance. The bound is computed at the
rest, so it holds as long as no larger share of packets is later, which a gate counts."""

HOST = "host"
_HOST_ASSUMPTION = (
    f"the host delays at most {HOST_RISK:.0%} of epsilon of the packets beyond its allowance, which a gate polices"
)
CURVE_EPSILONS = np.geomspace(0.5, 1e-5, 48)


@dataclass(frozen=True)
class Bounds:
    """Bounds of the tenants that reserve.

    Attributes:
        found: Bound of each tenant that has one, by name.
        missing: Why the others have none, by name.
    """

    found: Mapping[str, BoundRecord] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


def arrival_of(tenant: Tenant, *, metered: bool = True) -> Arrival:
    """What may be assumed of a tenant that has a reservation: its model behind its meter, or either alone.

    Args:
        tenant: The tenant.
        metered: Whether a meter enforces its contract.

    Raises:
        ValueError: Best effort, about which nothing may be assumed.
        NotApplicableError: Neither a meter nor a model says what it sends.
    """
    if tenant.reservation is None:
        raise ValueError(f"tenant {tenant.name}: best effort has no contract, so nothing bounds its delay")
    bucket = TokenBucket(
        rate_bps=tenant.reservation.meter_rate_bps,
        burst_bits=tenant.reservation.burst_bits,
        packet_bits=tenant.arrivals.size_bits,
    )
    model = _model(tenant)
    if metered:
        return bucket if model is None else Metered(model, bucket)
    if model is None:
        raise NotApplicableError("no meter polices it, and no arrival model of the calculus says what it sends")
    return model


def bound_tenant(
    tenant: Tenant, envelopes: Sequence[Envelope], *, host_s: float, metered: bool = True
) -> BoundRecord | None:
    """The smallest sound bound on a tenant's latency from the intended send time, and everything it is made of.

    Args:
        tenant: Its declared arrivals, contract and promise.
        envelopes: One verified envelope per domain of its path, in path order. What each grants its host is left out:
            a host that stands still delays a packet once, not once in every domain.
        host_s: What the emulating host may add on the whole path, 0 where there is none; then it has no risk either.
        metered: Whether its meter is there, as it always is on a network.

    Returns:
        None for best effort. Without a promise the bound is at the 99.9th percentile.

    Raises:
        CalculusError: No theorem applies; the inequality that fails is named.
    """
    if tenant.reservation is None:
        return None
    arrival = arrival_of(tenant, metered=metered)
    path_rate_bps = min(envelope.guardrails.reserved_rate_bps for envelope in envelopes)
    servers = [_without_host(to_service(envelope, path_rate_bps), envelope) for envelope in envelopes]
    epsilon = tenant.promise.epsilon if tenant.promise else 1e-3
    own_share = 1.0 - HOST_RISK if host_s > 0.0 else 1.0
    found = delay_bound(arrival, servers, own_share * epsilon)
    curve = delay_curve(arrival, servers, own_share * CURVE_EPSILONS) + host_s
    return BoundRecord(
        bound_s=found.delay_s + host_s,
        network_bound_s=found.delay_s + host_s,
        method=found.method,
        assumptions=(*found.assumptions, *([_HOST_ASSUMPTION] if host_s > 0.0 else [])),
        parts=_parts(found, host_s),
        budget=tuple(
            BudgetShare(domain=line.domain, epsilon=line.epsilon, delay_s=line.delay_s, price_per_s=line.price_per_s)
            for line in found.budget
        ),
        rejected={c.method: c.delay_s + host_s for c in found.rejected if math.isfinite(c.delay_s)},
        curve=tuple((float(e), float(d)) for e, d in zip(CURVE_EPSILONS, curve, strict=True) if math.isfinite(d)),
        explanation=found.explain(),
    )


def _model(tenant: Tenant) -> Arrival | None:
    """The stochastic model of a tenant that keeps to its declaration; None where there is none to rely on."""
    match tenant.arrivals if tenant.keeps_its_law else None:
        case PoissonArrivals(rate_per_s=rate, size_bits=bits):
            return CompoundPoisson(rate, bits)
        case OnOffArrivals(peak_bps=peak, mean_on_s=on, mean_off_s=off, size_bits=bits):
            return MarkovOnOff(peak, on, off, packet_bits=bits)
        case MmppArrivals(rates_per_s=rates, switch_per_s=switch, size_bits=bits):
            return MarkovPoisson(rates, bits, switch)
        case RenewalArrivals(rate_per_s=rate, gap="deterministic", size_bits=bits):
            return Renewal(ConstantGap(1.0 / rate), bits)
        case RenewalArrivals(rate_per_s=rate, gap="erlang" | "gamma", cv=cv, size_bits=bits):
            return Renewal(GammaGap(1.0 / rate, cv**-2), bits)
        case _:
            return None


def speaks_of_sent(tenant: Tenant) -> bool:
    """Whether a tenant's bound says which share of all packets that it *sends* arrive late, those dropped among them.

    It does where a model of what is sent is relied on (`testbed.calculus.Metered`). Where it is the meter alone, the
    bound speaks of what passes that. Either promises nothing to what the first of its meters drops.
    """
    return tenant.keeps_its_law and (tenant.requests is not None or _model(tenant) is not None)


def _without_host(service: EnvelopeService, envelope: Envelope) -> EnvelopeService:
    return replace(service, latency_s=service.latency_s - envelope.guardrails.host_allowance_s)


def _parts(found: DelayBound, host_s: float) -> tuple[BoundPart, ...]:
    def note(part: Part) -> str:
        match part.kind:
            case "queue":
                return "the tenant's own packets before it at the smallest reserved rate"
            case "latency":
                return "promised latency of its queues and links"
            case "excess":
                return "impairments of the domain, as calibrated"
            case "loss":
                return "packets the domain may lose"

    parts = [BoundPart(name=p.domain, delay_s=p.delay_s, note=note(p)) for p in found.parts]
    if host_s > 0.0:
        said = "sender, switches and pauses of the emulating host, once for the path; policed by a gate"
        parts.append(BoundPart(name=HOST, delay_s=host_s, note=said))
    return tuple(parts)
