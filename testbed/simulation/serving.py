"""From what is known of requests to what the simulator asks, and to what domains sign and bounds say of their servers.

Promises and bounds are those of a run (`testbed.run.serving`, `testbed.management.request_bounds`) without a host: a
server signs the longest computation that there is, so nothing is left to an allowance.

Turns go by what computations are expected to take, e, and not by what they take. While n requests of a tenant with
share phi are served, each other tenant j has one more than n (e/phi) (phi_j/e_j) turns, of up to r_j e_j each. So a
request of x seconds takes x + (e/phi) sum_j phi_j r_j of the server's time, which at the rate phi is as much as
phi x + e sum_j phi_j r_j seconds of work: x, where everybody's requests take what is expected and the shares are the
whole server.
"""

from __future__ import annotations

from collections.abc import Mapping

from testbed.calculus import CalculusError
from testbed.envelope.units import bits_up
from testbed.errors import EnvelopeError
from testbed.management.federation import Federation
from testbed.management.request_bounds import RequestTerms, bound_requests, services_of
from testbed.management.requests import ComputeReservation
from testbed.management.sealing import computing_rate_bps
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
        foreign = tuple(known[other.name].longest_s for other, _ in _beside(scenario, tenant, known))
        share = ComputeReservation(WORKERS, asked.compute_share, own.longest_s, foreign)
        framing = asking_of(tenant, asked, own).framing_out()
        largest_bits = bits_up(float(framing.wire_bits(demand_of(tenant, asked).message_bits.max())))
        longest_s = _turn_s(scenario, tenant, asked, known, own.longest_s)
        rate_bps = max(2, computing_rate_bps(share.share, WORKERS, largest_bits, longest_s))
        promised = declared_computation(
            tenant, asked, rate_bps, largest_bits, latency_s=share.stage.latency_s, host_s=0.0
        )
        try:
            federation.serve({tenant.name: promised})
        except EnvelopeError:
            continue


def _beside(scenario: Scenario, tenant: Tenant, known: Mapping[str, Known]) -> list[tuple[Tenant, Requests]]:
    """Others whose requests the same server computes."""
    others = [other for other in scenario.tenants if other.name != tenant.name and other.site == tenant.site]
    return [(other, other.requests) for other in others if other.requests is not None and other.name in known]


def _turn_s(scenario: Scenario, tenant: Tenant, asked: Requests, known: Mapping[str, Known], work_s: float) -> float:
    """Work at the rate of the tenant's share that a computation of `work_s` amounts to, others' turns included."""
    spread = sum(
        other.compute_share * known[name].longest_s / known[name].expected_s
        for name, other in ((each.name, requests) for each, requests in _beside(scenario, tenant, known))
    )
    return asked.compute_share * work_s + known[tenant.name].expected_s * spread


def bound_asking(
    scenario: Scenario, tenant: Tenant, federation: Federation, known: Mapping[str, Known]
) -> BoundRecord | None:
    """The bound on a request tenant's latency; None for best effort and where its server promises nothing.

    None too where no theorem applies: computations take too long for the share.
    """
    own = known[tenant.name]
    asked, server, envelopes = tenant.requests, federation.server(tenant), federation.envelopes(tenant)
    if asked is None or server is None or not envelopes:
        return None
    asking = asking_of(tenant, asked, own)
    longest_s = _turn_s(scenario, tenant, asked, known, own.longest_s)
    works = [(_turn_s(scenario, tenant, asked, known, work_s) / longest_s, often) for work_s, often in own.works_s]
    terms = RequestTerms(
        demand=demand_of(tenant, asked),
        out=asking.framing_out(),
        back=asking.framing_back(),
        answer_bits=8 * own.answer_bytes,
        server=server,
        workers=WORKERS,
        services=services_of(envelopes),
        # A flow that is fitted to a trace has one time for every request.
        works=((1.0, 1.0),) if isinstance(tenant.arrivals, TraceArrivals) else tuple(works),
    )
    try:
        return bound_requests(tenant, terms, host_s=0.0)
    except CalculusError:
        return None
