"""From a tenant's declared arrivals and its domains' envelopes to the bound that is shown beside the measurement.

The mathematics is `testbed.calculus`; here the scenario's words and the envelopes' integers become its objects. What a
tenant sends is taken from its declaration only where it keeps to it: for one that misbehaves on purpose, only what its
meter enforces counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from testbed.calculus import (
    Arrival,
    CompoundPoisson,
    ConstantGap,
    DelayBound,
    GammaGap,
    MarkovOnOff,
    Metered,
    Part,
    Renewal,
    TokenBucket,
    delay_bound,
    delay_curve,
)
from testbed.envelope.descriptor import Envelope
from testbed.envelope.service import to_service
from testbed.report.record import BoundPart, BoundRecord, BudgetShare
from testbed.scenario.model import OnOffArrivals, PoissonArrivals, RenewalArrivals, Tenant

ACCESS_ALLOWANCE_S = 5e-3
"""From the intended send time to the first domain: the sender's lateness and the customer's edge, policed by a gate."""

HOST_RISK = 0.25
"""Share of a promise's epsilon kept for packets that the host delays beyond its allowance. The bound is computed at the
rest, so it holds as long as no larger share of packets lags, which a gate counts."""

ACCESS = "access"
_HOST_ASSUMPTION = (
    f"the host delays at most {HOST_RISK:.0%} of epsilon of the packets beyond its allowances, which gates police"
)
CURVE_EPSILONS = np.geomspace(0.5, 1e-5, 48)


def arrival_of(tenant: Tenant) -> Arrival:
    """What may be assumed of a tenant that has a reservation: its model behind its meter, or the meter alone.

    Raises:
        ValueError: Best effort, about which nothing may be assumed.
    """
    if tenant.reservation is None:
        raise ValueError(f"tenant {tenant.name}: best effort has no contract, so nothing bounds its delay")
    bucket = TokenBucket(
        rate_bps=tenant.reservation.meter_rate_bps,
        burst_bits=tenant.reservation.burst_bits,
        packet_bits=tenant.arrivals.size_bits,
    )
    model = _model(tenant)
    return bucket if model is None else Metered(model, bucket)


def bound_tenant(tenant: Tenant, envelopes: Sequence[Envelope]) -> BoundRecord | None:
    """The smallest sound bound on a tenant's latency from the intended send time, and everything it is made of.

    Args:
        tenant: Its declared arrivals, contract and promise.
        envelopes: One verified envelope per domain of its path, in path order.

    Returns:
        None for best effort. Without a promise the bound is at the 99.9th percentile.

    Raises:
        CalculusError: No theorem applies; the inequality that fails is named.
    """
    if tenant.reservation is None:
        return None
    arrival = arrival_of(tenant)
    path_rate_bps = min(envelope.guardrails.reserved_rate_bps for envelope in envelopes)
    servers = [to_service(envelope, path_rate_bps) for envelope in envelopes]
    epsilon = tenant.promise.epsilon if tenant.promise else 1e-3
    found = delay_bound(arrival, servers, (1.0 - HOST_RISK) * epsilon)
    curve = delay_curve(arrival, servers, (1.0 - HOST_RISK) * CURVE_EPSILONS) + ACCESS_ALLOWANCE_S
    return BoundRecord(
        bound_s=found.delay_s + ACCESS_ALLOWANCE_S,
        network_bound_s=found.delay_s,
        method=found.method,
        assumptions=(*found.assumptions, _HOST_ASSUMPTION),
        parts=_parts(found, envelopes),
        budget=tuple(
            BudgetShare(domain=line.domain, epsilon=line.epsilon, delay_s=line.delay_s, price_per_s=line.price_per_s)
            for line in found.budget
        ),
        rejected={c.method: c.delay_s + ACCESS_ALLOWANCE_S for c in found.rejected if math.isfinite(c.delay_s)},
        curve=tuple((float(e), float(d)) for e, d in zip(CURVE_EPSILONS, curve, strict=True) if math.isfinite(d)),
        explanation=found.explain(),
    )


def _model(tenant: Tenant) -> Arrival | None:
    """The stochastic model of a tenant that keeps to its declaration; None where there is none to rely on."""
    if tenant.misbehaviour is not None:
        return None
    match tenant.arrivals:
        case PoissonArrivals(rate_per_s=rate, size_bits=bits):
            return CompoundPoisson(rate, bits)
        case OnOffArrivals(peak_bps=peak, mean_on_s=on, mean_off_s=off, size_bits=bits):
            return MarkovOnOff(peak, on, off, packet_bits=bits)
        case RenewalArrivals(rate_per_s=rate, gap="deterministic", size_bits=bits):
            return Renewal(ConstantGap(1.0 / rate), bits)
        case RenewalArrivals(rate_per_s=rate, gap="erlang" | "gamma", cv=cv, size_bits=bits):
            return Renewal(GammaGap(1.0 / rate, cv**-2), bits)
        case _:
            return None


def _parts(found: DelayBound, envelopes: Sequence[Envelope]) -> tuple[BoundPart, ...]:
    allowances = {envelope.domain: envelope.guardrails.host_allowance_s for envelope in envelopes}

    def note(part: Part) -> str:
        match part.kind:
            case "queue":
                return "the tenant's own packets before it at the smallest reserved rate"
            case "latency":
                return f"promised latency, of which {allowances[part.domain] * 1e3:.2f} ms is granted to the host"
            case "excess":
                return "impairments of the domain, as calibrated"
            case "loss":
                return "packets the domain may lose"

    access = BoundPart(name=ACCESS, delay_s=ACCESS_ALLOWANCE_S, note="sender and customer's edge; policed by a gate")
    return (
        access,
        *(BoundPart(name=p.domain, delay_s=p.delay_s, note=note(p)) for p in found.parts),
    )
