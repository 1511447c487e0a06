"""What is signed for a demand."""

from __future__ import annotations

import pytest

from testbed.envelope.descriptor import Validity
from testbed.management.sealing import Demand, network_envelope
from testbed.management.sizing import ReservedClass
from testbed.scenario.model import Domain, Reservation


def test_a_domain_signs_both_of_its_queues_its_link_and_what_it_grants_its_host() -> None:
    reserved = Reservation(5_000_000, 4_000_000, 100_000, 400_000)
    demand = Demand("t1", 1, "10.1.0.1", "10.2.0.1", reserved, 100_000, 12_112)
    signed = network_envelope(
        Domain("west", 10**9, link_delay_s=0.007),
        demand,
        reserved,
        ReservedClass(5_000, 3_000, 0.002),
        host_allowance_s=0.0005,
        version=1,
        validity=Validity(0, 60),
    )
    assert signed.latency_s == pytest.approx(2 * 0.002 + 0.007 + 0.0005)
    assert signed.guardrails.host_allowance_s == pytest.approx(0.0005)
