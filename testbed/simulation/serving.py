"""From what is known of requests to what the simulator asks, and to what domains sign and bounds say of their servers.

Promises and bounds are those of a run (`testbed.run.serving`, `testbed.management.request_bounds`) without a host: a
server signs the longest computation that there is, so nothing is left to an allowance.
"""

from __future__ import annotations

from collections.abc import Mapping

from testbed.calculus import CalculusError
from testbed.envelope.units import bits_up
from testbed.errors import EnvelopeError
from testbed.management.federation import Federation
from testbed.management.request_bounds import RequestTerms, bound_requests, services_of
from testbed.management.requests import ComputeReservation
from testbed.report.record import BoundRecord
from testbed.run.requests import WORKERS
from testbed.run.serving import declared_computation
from testbed.scenario.model import Requests, Scenario, Tenant, TokenSize, TraceArrivals
from testbed.simulation.asking import Asking
from testbed.simulation.clock import to_ps
from testbed.simulation.known import Known
from testbed.traffic.request_demand import Demand, demand
from testbed.traffic.request_makers import maker_of


def demand_of(tenant: Tenant, asked: Requests) -> Demand:
    """The messages a tenant declares.

    Raises:
        ScenarioError: A trace that cannot be read.
    """
    return demand(tenant.arrivals, asked.size, maker_of(tenant.name, asked, tenant.arrivals))


def asking_of(tenant: Tenant, asked: Requests, known: Known) -> Asking:
    """What a tenant's source asks.

    Raises:
        ScenarioError: A trace that cannot be read.
    """
    declared = demand_of(tenant, asked)
    by_row = isinstance(tenant.arrivals, TraceArrivals) and (isinstance(asked.size, TokenSize) or not asked.images)
    several = not by_row and declared.message_bits.size > 1
    return Asking(
        request_bytes=tuple((declared.message_bits // 8).tolist()),
        answer_bytes=known.answer_bytes,
        work=known.work,
        expected_s=known.expected_s,
        share=asked.compute_share,
        timeout_ps=to_ps(asked.timeout_s),
        weights=tuple(declared.share.tolist()) if several else (),
        by_row=by_row,
        out=known.out,
        back=known.back,
    )


def packets_per_s(tenant: Tenant, asked: Requests, asking: Asking) -> float:
    """Packets towards the server that a tenant's requests are a second, on average."""
    declared = demand_of(tenant, asked)
    return declared.per_s * float(asking.out.cut(declared.message_bits // 8).packets @ declared.share)


def sign(scenario: Scenario, federation: Federation, known: Mapping[str, Known]) -> None:
    """Have the serving domains sign for every request tenant with a reservation what its share of a server can promise.

    Nothing is signed where the share cannot compute what the tenant's meter lets pass.
    """
    for tenant in scenario.tenants:
        asked = tenant.requests
        if asked is None or tenant.reservation is None or tenant.name not in known:
            continue
        own = known[tenant.name]
        foreign = [
            known[other.name].longest_s
            for other in scenario.tenants
            if other.name != tenant.name and other.name in known and other.site == tenant.site
        ]
        share = ComputeReservation(WORKERS, asked.compute_share, own.longest_s, tuple(foreign))
        framing = asking_of(tenant, asked, own).framing_out()
        largest_bits = bits_up(float(framing.wire_bits(demand_of(tenant, asked).message_bits.max())))
        try:
            federation.serve({tenant.name: declared_computation(tenant, asked, share, largest_bits, host_s=0.0)})
        except EnvelopeError:
            continue


def bound_asking(tenant: Tenant, federation: Federation, known: Known) -> BoundRecord | None:
    """The bound on a request tenant's latency; None for best effort and where its server promises nothing.

    None too where no theorem applies: computations take too long for the share.
    """
    asked, server, envelopes = tenant.requests, federation.server(tenant), federation.envelopes(tenant)
    if asked is None or server is None or not envelopes:
        return None
    asking = asking_of(tenant, asked, known)
    terms = RequestTerms(
        demand=demand_of(tenant, asked),
        out=asking.framing_out(),
        back=asking.framing_back(),
        answer_bits=8 * known.answer_bytes,
        server=server,
        workers=WORKERS,
        services=services_of(envelopes),
    )
    try:
        return bound_requests(tenant, terms, host_s=0.0)
    except CalculusError:
        return None
