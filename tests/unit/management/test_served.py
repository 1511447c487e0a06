"""A serving domain signs for its server what belongs to its offer, and the path's promise stays one whole."""

from __future__ import annotations

from dataclasses import replace

import pytest

from testbed.envelope.composition import Path
from testbed.envelope.descriptor import Stage
from testbed.envelope.store import verify
from testbed.errors import EnvelopeError, ReservationError
from testbed.management.federation import Federation
from testbed.management.paper import on_paper
from testbed.management.sealing import Computation, computing_rate_bps
from testbed.scenario.model import Domain, PoissonArrivals, Reservation, Scenario, Tenant

NOW_S = 1_800_000_000.0
LARGEST_BITS = 68_000
PROMISED = Computation(
    tenant="alpha", model="digits-small", rate_bps=computing_rate_bps(0.5, 1, LARGEST_BITS, 2e-3), latency_s=5e-3,
    host_allowance_s=3e-3, delay_cap_s=0.3, largest_request_bits=LARGEST_BITS, meter_rate_bps=8_500_000,
    burst_bits=400_000,
)  # fmt: skip


@pytest.fixture
def federation() -> Federation:
    domains = (Domain("west", 10**8), Domain("east", 10**8, compute=True))
    arrivals = PoissonArrivals(50.0, 8_000)
    tenants = (
        Tenant("alpha", arrivals, "east", Reservation(10_000_000, 8_500_000, 400_000, 800_000)),
        Tenant("crowd", arrivals, "east"),
    )
    found = on_paper(Scenario("served", domains, tenants, 1, 1.0, 1.0), clock=lambda: NOW_S)
    found.collect_offers()
    return found


def test_what_is_signed_of_a_server_is_of_the_same_offer_and_composes_with_the_network(federation: Federation) -> None:
    alpha, crowd = federation.scenario.tenants
    assert federation.server(alpha) is None
    federation.serve({"alpha": PROMISED})
    server = federation.server(alpha)
    assert server is not None
    assert (server.domain, server.subject.stage, server.subject.service) == ("east", Stage.COMPUTE, "digits-small")
    assert server.guardrails.reserved_rate_bps == 17_000_000
    assert (server.guardrails.latency_ns, server.guardrails.host_allowance_ns) == (5_000_000, 3_000_000)
    (sealed,) = [one.sealed for one in federation.signed() if one.envelope == server]
    assert verify(sealed, federation.trust, NOW_S) == server
    assert federation.server(crowd) is None

    network = federation.envelopes(alpha)
    assert server.version == network[-1].version
    whole = Path.of([*network, server])
    assert whole.guardrails.latency_ns == sum(one.guardrails.latency_ns for one in network) + 5_000_000
    assert whole.largest_request_bits == LARGEST_BITS
    assert whole.guardrails.largest_packet_bits == network[0].guardrails.largest_packet_bits
    # The server's burst has room for all that the network may have held back, so the tenant's own stays what it was.
    assert whole.guardrails.burst_bits == pytest.approx(Path.of(network).guardrails.burst_bits, abs=len(network))


def test_what_was_signed_of_a_server_ends_with_the_offer_that_it_belongs_to(federation: Federation) -> None:
    federation.serve({"alpha": PROMISED})
    federation.collect_offers()
    assert federation.server(federation.scenario.tenants[0]) is None
    assert {one.envelope.subject.stage for one in federation.signed()} == {Stage.NETWORK}


def test_nobody_signs_for_best_effort_or_for_less_than_the_meter_lets_through(federation: Federation) -> None:
    with pytest.raises(ReservationError, match="best effort"):
        federation.serve({"crowd": replace(PROMISED, tenant="crowd")})
    with pytest.raises(EnvelopeError, match="meter_rate_bps"):
        federation.serve({"alpha": replace(PROMISED, rate_bps=8_000_000)})
