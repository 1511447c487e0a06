"""From what is known of requests to what the simulator asks, and to what domains sign and bounds say of their servers.

Promises and bounds are those of a run (`testbed.run.serving`, `testbed.management.request_bounds`) without a host: a
server signs the longest computation that there is, so nothing is left to an allowance.

Turns go by what computations are expected to take, e, and not by what they take. While n requests of a tenant with
share phi are served, each other tenant j has no more than one more than n m_j turns, m_j = (e/phi) (phi_j/e_j). So a
request of x seconds takes x and others' turns of the server's time, which at the rate phi is as much as phi times that
of work. That is x where everybody's requests take what is expected and the shares are the whole server. The envelope
signs it for the longest turns there are. In the bound others' turns have their law (`testbed.simulation.law`), although
m_j is no whole number of them; docs/calculus.md, "Turns of others", says why and at what price.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from testbed.calculus import CalculusError
from testbed.envelope.units import bits_up
from testbed.errors import EnvelopeError
from testbed.management.federation import Federation
from testbed.management.request_bounds import RequestTerms, bound_requests, services_of
from testbed.management.requests import ComputeReservation, turn_s
from testbed.management.sealing import computing_rate_bps
from testbed.report.tenant_record import BoundRecord
from testbed.run.requests import WORKERS
from testbed.run.serving import declared_computation
from testbed.scenario.model import (
    PoissonArrivals,
    RenewalArrivals,
    Requests,
    Scenario,
    Tenant,
    TokenSize,
    TraceArrivals,
)
from testbed.simulation.asking import Asking
from testbed.simulation.clock import to_ps
from testbed.simulation.known import Known
from testbed.simulation.law import EVENED, Law, evened_turns, turns
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
        longest_s = _longest_s(scenario, tenant, asked, known)
        rate_bps = max(2, computing_rate_bps(share.share, WORKERS, largest_bits, longest_s))
        promised = declared_computation(
            tenant, asked, rate_bps, largest_bits, latency_s=share.stage.latency_s, host_s=0.0
        )
        try:
            federation.serve({tenant.name: promised})
        except EnvelopeError:
            continue


def _beside(scenario: Scenario, tenant: Tenant, known: Mapping[str, Known]) -> list[tuple[Tenant, Requests]]:
    """Others whose requests the same server computes, as far as anything is known of them."""
    return [(o, o.requests) for o in at_server_of(scenario, tenant) if o.requests is not None and o.name in known]


def at_server_of(scenario: Scenario, tenant: Tenant) -> list[Tenant]:
    """Others that ask the same server."""
    others = [other for other in scenario.tenants if other.name != tenant.name and other.site == tenant.site]
    return [other for other in others if other.requests is not None]


def _longest_s(scenario: Scenario, tenant: Tenant, asked: Requests, known: Mapping[str, Known]) -> float:
    """Work at the rate of the share that the longest computation amounts to, others' longest turns included."""
    own = known[tenant.name]
    others = [
        (other.compute_share, known[each.name].longest_s, known[each.name].expected_s)
        for each, other in _beside(scenario, tenant, known)
    ]
    return turn_s(asked.compute_share, own.longest_s, own.expected_s, others)


def _laws_s(
    scenario: Scenario, tenant: Tenant, asked: Requests, known: Mapping[str, Known]
) -> Iterator[tuple[Law, float]]:
    """Laws of that for any computation and any turns, and the latency that each of them costs beside."""
    own, share = known[tenant.name], asked.compute_share
    beside = [(other, known[each.name]) for each, other in _beside(scenario, tenant, known)]
    each = [(own.expected_s / share * other.compute_share / one.expected_s, one.works_s) for other, one in beside]
    yield own.works_s.plus(turns(each)).times(share), 0.0
    if isinstance(tenant.arrivals, PoissonArrivals | RenewalArrivals):
        evened_s = EVENED * sum(one.longest_s for _, one in beside) / WORKERS
        yield own.works_s.plus(evened_turns(each)).times(share), evened_s


def bound_asking(
    scenario: Scenario, tenant: Tenant, federation: Federation, known: Mapping[str, Known], *, host_s: float = 0.0
) -> BoundRecord | None:
    """The bound on a request tenant's latency; None for best effort and where its server promises nothing.

    None too where no theorem applies: computations take too long for the share.

    Args:
        scenario: All tenants.
        tenant: The one.
        federation: Domains that have offered and signed.
        known: What is known of requests, of everybody's at the same server.
        host_s: What an emulating host may add on the whole way, 0 where there is none.
    """
    own = known[tenant.name]
    asked, server, envelopes = tenant.requests, federation.server(tenant), federation.envelopes(tenant)
    if asked is None or server is None or not envelopes:
        return None
    asking = asking_of(tenant, asked, own)
    terms = RequestTerms(
        demand=demand_of(tenant, asked),
        out=asking.framing_out(),
        back=asking.framing_back(),
        answer_bits=8 * own.answer_bytes,
        server=server,
        workers=WORKERS,
        services=services_of(envelopes),
    )
    found = [_bound(tenant, terms, host_s)]
    if not isinstance(tenant.arrivals, TraceArrivals):
        # A flow that is fitted to a trace has one time for every request. An on-off model has so too, all the longest,
        # or the meter alone is relied on: either may be smaller.
        longest_s = _longest_s(scenario, tenant, asked, known)
        for law, evened_s in _laws_s(scenario, tenant, asked, known):
            found.append(
                _bound(tenant, replace(terms, works=law.times(1 / longest_s).atoms, evened_s=evened_s), host_s)
            )
    return min((one for one in found if one is not None), key=lambda one: one.bound_s, default=None)


def _bound(tenant: Tenant, terms: RequestTerms, host_s: float) -> BoundRecord | None:
    try:
        return bound_requests(tenant, terms, host_s=host_s)
    except CalculusError:
        return None
