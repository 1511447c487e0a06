"""What is signed for a demand."""

from __future__ import annotations

import pytest

from testbed.envelope.descriptor import Validity
from testbed.management.sealing import Demand, network_envelope, reserved_rule
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


@pytest.mark.parametrize(
    ("asked", "held"), [(100_000, 100_000), (100_001, 101_000), (100_999, 101_000), (12_112, 13_000)]
)
def test_a_burst_is_bought_signed_and_installed_in_whole_kbit(asked: int, held: int) -> None:
    reserved = Reservation(5_000_000, 4_000_000, asked, 400_000)
    demand = Demand("t1", 1, "10.1.0.1", "10.2.0.1", reserved, asked, 12_112)
    shaped = ReservedClass(5_000, 3_000, 0.002)
    signed = network_envelope(
        Domain("west", 10**9), demand, reserved, shaped, host_allowance_s=0.0, version=1, validity=Validity(0, 60)
    ).guardrails
    meter = reserved_rule(demand, signed, shaped).meter
    assert meter is not None
    assert (reserved.burst_bits, signed.burst_bits, 1000 * meter.burst_kbit) == (held, held, held)
