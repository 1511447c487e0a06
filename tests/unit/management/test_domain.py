"""A domain's side of a reservation, with a switch that only remembers what it was told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest

from controller.checks import check
from controller.client import CallError
from controller.program import DomainProgram
from testbed.envelope.keys import SigningKey
from testbed.envelope.store import verify
from testbed.envelope.trust import Trust
from testbed.errors import EnvelopeError, ReservationError
from testbed.management.domain import DomainAgent
from testbed.management.sealing import Demand
from testbed.scenario.model import Domain, Reservation

NOW = 1_800_000_000.0
TEN_MEGABIT = Reservation(rate_bps=10_000_000, meter_rate_bps=9_000_000, burst_bits=400_000, queue_bits=800_000)


@dataclass
class RememberingController:
    """Holds the last program; `differences` is what it claims to read back wrong."""

    programs: list[DomainProgram] = field(default_factory=list)
    differences: list[Mapping[str, str]] = field(default_factory=list)
    failure: Exception | None = None

    def install(self, program: DomainProgram) -> None:
        if self.failure is not None:
            raise self.failure
        self.programs.append(program)

    def verify(self) -> Sequence[Mapping[str, str]]:
        return self.differences

    @property
    def tenants(self) -> list[str]:
        return [rule.tenant for rule in self.programs[-1].rules] if self.programs else []


def demand(number: int, reservation: Reservation | None = TEN_MEGABIT) -> Demand:
    return Demand(
        tenant=f"t{number}", number=number, client=f"10.1.0.{number}", server="10.2.0.1", reservation=reservation,
        burst_bits=400_000, largest_packet_bits=11_200,
    )  # fmt: skip


@pytest.fixture
def switch() -> RememberingController:
    return RememberingController()


@pytest.fixture
def agent(switch: RememberingController) -> DomainAgent:
    key = SigningKey.generate()
    return DomainAgent(
        domain=Domain("west", 40_000_000),
        controller=switch,
        skeleton=DomainProgram("west", "userspace", 40_000_000, (), ()),
        key=key,
        trust=Trust.of({"west": [key.public_key]}),
        host_allowance_s=0.003,
        clock=lambda: NOW,
    )


def test_an_offer_verifies_and_promises_what_was_asked(agent: DomainAgent) -> None:
    promise = verify(agent.offer([demand(1)])["t1"], agent.trust, NOW)
    rails = promise.guardrails
    assert (rails.reserved_rate_bps, rails.meter_rate_bps, rails.burst_bits) == (10_000_000, 9_000_000, 400_000)
    assert rails.latency_s > rails.host_allowance_s == 0.003


def test_a_committed_reservation_is_installed_from_its_envelope(
    agent: DomainAgent, switch: RememberingController
) -> None:
    agent.prepare("t1", agent.offer([demand(1)])["t1"])
    assert switch.programs == []
    agent.commit()
    (rule,) = switch.programs[-1].rules
    assert rule.meter is not None
    assert (rule.meter.rate_kbps, rule.meter.burst_kbit) == (9_000, 400)
    assert rule.queue.rate_bps == rule.queue.ceil_bps == 10_000_000
    assert rule.queue.limit_packets == -(-800_000 // 11_200)


def test_a_tampered_envelope_installs_nothing(agent: DomainAgent, switch: RememberingController) -> None:
    sealed = json.loads(agent.offer([demand(1)])["t1"])
    sealed["payload"] = sealed["payload"][:-8] + "AAAA" + sealed["payload"][-4:]
    with pytest.raises(EnvelopeError):
        agent.prepare("t1", json.dumps(sealed, separators=(",", ":"), sort_keys=True).encode())
    agent.commit()
    assert switch.tenants == []


def test_an_envelope_signed_by_somebody_else_installs_nothing(
    agent: DomainAgent, switch: RememberingController
) -> None:
    stranger = replace(agent, key=SigningKey.generate())
    agent.offer([demand(1)])
    with pytest.raises(EnvelopeError):
        agent.prepare("t1", stranger.offer([demand(1)])["t1"])
    agent.commit()
    assert switch.tenants == []


@pytest.mark.parametrize(
    ("present", "said"),
    [
        (lambda _: ("t9", b""), "no offer for tenant t9"),
        (lambda agent: ("t2", agent.offer([demand(1), demand(2)])["t1"]), "is of west for t1"),
        (lambda agent: ("t1", (agent.offer([demand(1)])["t1"], agent.offer([demand(1)]))[0]), "is not the latest"),
    ],
    ids=["never offered", "another tenant's", "an earlier offer"],
)
def test_only_the_latest_offer_to_this_tenant_is_held(agent: DomainAgent, present: object, said: str) -> None:
    tenant, envelope = present(agent)  # type: ignore[operator]
    with pytest.raises((EnvelopeError, ReservationError), match=said):
        agent.prepare(tenant, envelope)


def test_reservations_above_the_link_are_refused_when_offered(agent: DomainAgent) -> None:
    with pytest.raises(ReservationError, match="50000000 bit/s reserved on links of 40000000"):
        agent.offer([demand(n) for n in range(1, 6)])


def test_preparing_twice_holds_capacity_once(agent: DomainAgent) -> None:
    offers = agent.offer([demand(n) for n in range(1, 5)])
    for name in (*offers, *offers):
        agent.prepare(name, offers[name])
    assert agent.reserved_bps == 40_000_000


def test_what_reads_back_wrong_is_not_committed(agent: DomainAgent, switch: RememberingController) -> None:
    offers = agent.offer([demand(1), demand(2)])
    agent.prepare("t1", offers["t1"])
    agent.commit()
    agent.prepare("t2", offers["t2"])
    switch.differences = [{"object": "class 1:12 on d1e-dn", "tenant": "t2", "found": "8 Mb", "expected": "10 Mb"}]
    with pytest.raises(ReservationError, match=r"west: class 1:12 on d1e-dn \(tenant t2\): found 8 Mb, expected 10 Mb"):
        agent.commit()
    assert switch.tenants == ["t1"]


def test_a_controller_that_fails_is_named_with_its_domain(agent: DomainAgent, switch: RememberingController) -> None:
    agent.prepare("t1", agent.offer([demand(1)])["t1"])
    switch.failure = CallError("connection", ["call install: the controller closed the connection"])
    with pytest.raises(ReservationError, match="west: call install: the controller closed"):
        agent.commit()


def test_a_release_gives_back_what_is_committed_and_what_is_prepared(
    agent: DomainAgent, switch: RememberingController
) -> None:
    offers = agent.offer([demand(1), demand(2), demand(3, reservation=None)])
    agent.prepare("t1", offers["t1"])
    agent.prepare("t3", b"")
    agent.commit()
    agent.prepare("t2", offers["t2"])
    assert switch.tenants == ["t1", "t3"]
    agent.release()
    assert switch.tenants == []
    assert agent.reserved_bps == 0
    agent.commit()
    assert switch.tenants == []


def test_best_effort_holds_nothing_and_gets_no_meter(agent: DomainAgent, switch: RememberingController) -> None:
    assert agent.offer([demand(3, reservation=None)]) == {}
    agent.prepare("t3", b"")
    agent.commit()
    (rule,) = switch.programs[-1].rules
    assert rule.meter is None
    assert rule.queue.ceil_bps == 40_000_000
    assert agent.reserved_bps == 0


def test_where_everybody_shares_a_queue_all_get_the_same_class_at_the_links_rate(
    agent: DomainAgent, switch: RememberingController
) -> None:
    agent.domain = replace(agent.domain, shared_queue_bits=1_120_000)
    assert agent.offer([demand(1, None), demand(2, None)]) == {}
    for name in ("t1", "t2"):
        agent.prepare(name, b"")
    agent.commit()
    first, second = switch.programs[-1].rules
    assert first.queue == second.queue
    assert (first.queue.rate_bps, first.queue.ceil_bps) == (40_000_000, 40_000_000)
    assert first.queue.limit_packets == 100
    assert first.meter is None
    check(replace(switch.programs[-1], hops=()))


def test_where_everybody_shares_a_queue_nothing_can_be_reserved(agent: DomainAgent) -> None:
    agent.domain = replace(agent.domain, shared_queue_bits=1_120_000)
    with pytest.raises(ReservationError, match="domain west: t1 asked for a reservation where all tenants share"):
        agent.offer([demand(1), demand(2, None)])
