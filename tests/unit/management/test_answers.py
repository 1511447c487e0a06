"""Domains that err or lie: what they say wrongly costs them their place, by name, and nobody else's."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.envelope.descriptor import Envelope, Stage
from testbed.envelope.errors import BadSignatureError
from testbed.envelope.store import issue, verify
from testbed.errors import EnvelopeError, ReservationError
from testbed.management.calls import UnreachableError
from testbed.management.entry import State
from testbed.management.generated import management_pb2 as wire
from testbed.management.journal import UNFINISHED
from testbed.management.market import Prospectus
from testbed.management.orchestrator import Outcome

from .agents_at_hand import Domains, Lie, railed, renamed
from .federation_lab import OPERATORS, intent

WAY = ("access", "metro-cheap", "core")
CORE = OPERATORS[-1]
AROUND = ("access", "metro-near", "core")

Change = Callable[[Envelope], Envelope]


@pytest.fixture
def domains(tmp_path: Path) -> Iterator[Domains]:
    found = Domains.of(tmp_path)
    yield found
    found.close()


def admit(domains: Domains, /, *tenants: str, **changed: Any) -> list[Outcome]:
    with domains.orchestrator() as orchestrator:
        outcomes = orchestrator.admit([intent(tenant, **changed) for tenant in tenants or ("t1",)])
        assert not orchestrator.journal.transfers(*UNFINISHED)
        return outcomes


def way(outcome: Outcome) -> tuple[str, ...]:
    route = outcome.decision.route
    return () if route is None else route.domains


def because(outcome: Outcome) -> str:
    assert outcome.decision.refusal is not None
    return outcome.decision.refusal.because


def everywhere(*tenants: str, way: tuple[str, ...] = WAY) -> dict[str, set[str]]:
    return {name: set(tenants) for name in way}


def at(stage: Stage, change: Change) -> Change:
    return lambda envelope: change(envelope) if envelope.subject.stage is stage else envelope


def test_honest_domains_hold_what_was_planned(domains: Domains) -> None:
    (outcome,) = admit(domains)
    assert way(outcome) == WAY
    assert domains.holders(State.COMMITTED) == everywhere("t1")


def test_an_operator_that_gives_up_its_server_goes_on_selling_its_network_with_the_ledger_it_has(
    tmp_path: Path,
) -> None:
    Domains.of(tmp_path, (CORE,)).close()
    network = replace(CORE, site=None)
    domains = Domains.of(tmp_path, (network,))
    with domains.orchestrator() as orchestrator:
        assert orchestrator.survey() == {"core": Prospectus.of(network)}
    domains.close()


NETWORK_LIES: dict[str, Change] = {
    "tenant": lambda e: renamed(e, tenant="mallory"),
    "tenant_class": lambda e: renamed(e, tenant_class="gold"),
    "service": lambda e: renamed(e, service="teleportation"),
    "reserved_rate_bps": lambda e: railed(e, reserved_rate_bps=e.guardrails.reserved_rate_bps + 1),
    "meter_rate_bps": lambda e: railed(e, meter_rate_bps=e.guardrails.meter_rate_bps // 10),
    "peak_rate_bps": lambda e: railed(e, peak_rate_bps=e.guardrails.reserved_rate_bps),
    "burst_bits": lambda e: railed(e, burst_bits=20_000),
    "largest_packet_bits": lambda e: railed(e, largest_packet_bits=800),
    "load_cap_ppm": lambda e: railed(e, load_cap_ppm=1),
}

COMPUTE_LIES: dict[str, Change] = {
    "tenant": lambda e: renamed(e, tenant="mallory"),
    "service": lambda e: renamed(e, service="large"),
    "meter_rate_bps": lambda e: railed(e, meter_rate_bps=e.guardrails.meter_rate_bps // 10),
    "peak_rate_bps": lambda e: railed(e, peak_rate_bps=e.guardrails.reserved_rate_bps),
    "burst_bits": lambda e: railed(e, burst_bits=e.guardrails.burst_bits - 1),
    "largest_packet_bits": lambda e: railed(e, largest_packet_bits=e.guardrails.largest_packet_bits - 1),
    "load_cap_ppm": lambda e: railed(e, load_cap_ppm=1),
}


@pytest.mark.parametrize("field", NETWORK_LIES)
def test_a_domain_that_signs_another_network_than_asked_is_planned_around(
    domains: Domains, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    change = at(Stage.NETWORK, NETWORK_LIES[field])
    domains.clients["metro-cheap"].lies["offer"] = domains.resigned("metro-cheap", change)
    (outcome,) = admit(domains)
    assert way(outcome) == AROUND
    assert f"domain metro-cheap for t1: network {field}: signed " in caplog.text
    assert domains.holders() == everywhere("t1", way=AROUND)


@pytest.mark.parametrize("field", COMPUTE_LIES)
def test_a_domain_that_signs_another_server_than_asked_is_refused_by_name(domains: Domains, field: str) -> None:
    domains.clients["core"].lies["offer"] = domains.resigned("core", at(Stage.COMPUTE, COMPUTE_LIES[field]))
    (outcome,) = admit(domains)
    assert because(outcome).startswith("mix-and-match: domain core for t1: " if field != "tenant" else "mix-and-match")
    assert field in because(outcome) or field == "tenant"
    assert domains.holders() == {}


def without_server(offers: list[wire.Offered]) -> list[wire.Offered]:
    for offered in offers:
        del offered.envelopes[1:]
    return offers


def without_network(offers: list[wire.Offered]) -> list[wire.Offered]:
    for offered in offers:
        del offered.envelopes[0]
    return offers


@pytest.mark.parametrize("lie", [without_server, without_network])
def test_a_domain_that_leaves_out_a_stage_is_refused_by_name(domains: Domains, lie: Lie) -> None:
    domains.clients["core"].lies["offer"] = lie
    (outcome,) = admit(domains)
    assert because(outcome).startswith("mix-and-match: domain core for t1: found envelopes of the stages ")
    assert domains.holders() == {}


def test_a_domain_that_presents_another_ones_envelope_as_its_own_is_planned_around(
    domains: Domains, caplog: pytest.LogCaptureFixture
) -> None:
    """The other one's own offer is not used up by that."""

    def borrowed(offers: list[wire.Offered]) -> list[wire.Offered]:
        for offered in offers:
            genuine = verify(offered.envelopes[0], domains.root.trust, domains.clients["core"].agent.clock())
            others = replace(genuine, domain="core", version=10**6)
            offered.envelopes[:] = [issue(others, [domains.keys["core"]])]
        return offers

    domains.clients["metro-cheap"].lies["offer"] = borrowed
    (outcome,) = admit(domains)
    assert way(outcome) == AROUND
    assert "domain metro-cheap for t1: network domain: signed core, asked for metro-cheap" in caplog.text
    assert domains.holders() == everywhere("t1", way=AROUND)


OFFER_LIES: dict[str, tuple[Lie, str]] = {
    "nothing": (lambda _: [], "domain metro-cheap for t1: found no answer to its demand"),
    "no reservation": (
        lambda offers: [wire.Offered(tenant=one.tenant, envelopes=one.envelopes) for one in offers],
        "domain metro-cheap for t1: found no reservation or nothing signed",
    ),
    "nothing signed": (
        lambda offers: [wire.Offered(tenant=one.tenant, reservation=one.reservation) for one in offers],
        "domain metro-cheap for t1: found no reservation or nothing signed",
    ),
    "somebody nobody asked for": (
        lambda _: [wire.Offered(tenant="mallory", reservation="x", envelopes=[b"x"])],
        "offers for 'mallory', which nobody asked for",
    ),
    "a refusal of somebody nobody asked for": (
        lambda offers: [*offers[:-1], wire.Offered(tenant="mallory", refused="no")],
        "offers for 'mallory', which nobody asked for",
    ),
    "everything twice": (lambda offers: offers * 2, "domain metro-cheap for t1: found two offers, expected one"),
    "one reservation for all": (
        lambda offers: [
            wire.Offered(tenant=one.tenant, reservation="x", envelopes=one.envelopes, price_micro=1) for one in offers
        ],
        "domain metro-cheap for t1: found reservation 'x' offered twice",
    ),
    "junk": (
        lambda offers: [wire.Offered(tenant=one.tenant, reservation=one.tenant, envelopes=[b"junk"]) for one in offers],
        "malformed: signed envelope",
    ),
}


@pytest.mark.parametrize("name", OFFER_LIES)
def test_an_offer_that_is_none_costs_the_domain_its_place_and_nobody_else(
    domains: Domains, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    lie, said = OFFER_LIES[name]
    domains.clients["metro-cheap"].lies["offer"] = lie
    outcomes = admit(domains, "t1", "t2")
    assert all(outcome.admitted for outcome in outcomes)
    assert way(outcomes[1]) == AROUND
    assert said in caplog.text
    assert domains.holders(State.COMMITTED)["core"] == {"t1", "t2"}
    assert domains.holders(State.PREPARED) == {}


def raising(error: Exception) -> Lie:
    def lie(_answer: object) -> object:
        raise error

    return lie


@pytest.mark.parametrize("error", [ReservationError("no"), EnvelopeError("no"), BadSignatureError("no")])
@pytest.mark.parametrize("call", ["report", "offer", "prepare"])
def test_an_error_of_whatever_kind_costs_the_domain_its_place_and_nobody_else(
    domains: Domains, call: str, error: Exception
) -> None:
    domains.clients["metro-cheap"].lies[call] = raising(error)
    (outcome,) = admit(domains)
    assert way(outcome) == AROUND
    assert domains.holders() == everywhere("t1", way=AROUND)


PREPARE_LIES: dict[str, Lie] = {
    "nothing": lambda _: [],
    "a reservation nobody asked about": lambda _: [wire.Holding(reservation="mallory/1", state="prepared")],
    "a refusal of one nobody asked about": lambda _: [wire.Holding(reservation="mallory/1", refused="no")],
    "no state": lambda held: [wire.Holding(reservation=one.reservation) for one in held],
    "a state of its own": lambda held: [wire.Holding(reservation=one.reservation, state="promised") for one in held],
    "refused": lambda held: [wire.Holding(reservation=one.reservation, refused="no") for one in held],
}


@pytest.mark.parametrize("name", PREPARE_LIES)
def test_a_domain_that_does_not_say_that_it_holds_is_given_up_and_planned_around(domains: Domains, name: str) -> None:
    domains.clients["metro-cheap"].lies["prepare"] = PREPARE_LIES[name]
    outcomes = admit(domains, "t1", "t2")
    assert [way(outcome) for outcome in outcomes] == [AROUND] * 2
    assert domains.holders() == everywhere("t1", "t2", way=AROUND)


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (lambda _: [], "domain metro-cheap: found no answer about reservation"),
        (lambda held: [wire.Holding(reservation=one.reservation, state="prepared") for one in held], "is prepared"),
        (raising(EnvelopeError("no")), "no; "),
    ],
)
def test_a_domain_that_does_not_say_that_it_has_committed_is_undone_everywhere(
    domains: Domains, lie: Lie, said: str
) -> None:
    domains.clients["metro-cheap"].lies["commit"] = lie
    (outcome,) = admit(domains)
    assert said in because(outcome)
    assert domains.holders() == {}


def test_what_a_domain_does_not_say_it_has_given_back_is_asked_for_again(domains: Domains) -> None:
    admit(domains)
    with domains.orchestrator() as orchestrator:
        domains.clients["core"].lies["release"] = lambda _: []
        with pytest.raises(ReservationError, match="core: found no answer about reservation"):
            orchestrator.release(["t1"])
        assert [one.tenant for one in orchestrator.journal.transfers(*UNFINISHED)] == ["t1"]
        del domains.clients["core"].lies["release"]
        orchestrator.recover()
        assert not orchestrator.journal.transfers(*UNFINISHED)
    assert domains.holders() == {}


def test_a_domain_that_the_orchestrator_lost_its_connection_to_is_as_one_that_does_not_answer(
    domains: Domains,
) -> None:
    admit(domains)
    with domains.orchestrator() as orchestrator:
        orchestrator.clients = {name: client for name, client in orchestrator.clients.items() if name != "core"}
        for asked in (orchestrator.renew, lambda: orchestrator.release(["t1"])):
            with pytest.raises(UnreachableError, match="core: found no connection"):
                asked()
        orchestrator.recover()
    assert domains.holders() == {"core": {"t1"}}
    with domains.orchestrator() as orchestrator:
        orchestrator.recover()
    assert domains.holders() == {}


def test_one_domain_that_does_not_renew_stops_no_other_one(domains: Domains) -> None:
    admit(domains)
    for name in WAY:
        domains.clients[name].calls.clear()
    domains.clients["access"].lies["renew"] = lambda _: []
    with domains.orchestrator() as orchestrator, pytest.raises(ReservationError, match="access: found no answer about"):
        orchestrator.renew()
    assert all("renew" in domains.clients[name].calls for name in WAY)


def prospectus(**changes: Any) -> Lie:
    """The domain's own prospectus with some members changed, those of the operator below `operator__`."""

    def lie(answer: wire.ReportAnswer) -> wire.ReportAnswer:
        document = json.loads(answer.prospectus)
        for name, value in changes.items():
            inside, _, member = name.rpartition("__")
            (document[inside] if inside else document)[member] = value
        return wire.ReportAnswer(prospectus=json.dumps(document).encode())

    return lie


SURVEY_LIES: dict[str, tuple[Lie, str]] = {
    "junk": (lambda _: wire.ReportAnswer(prospectus=b"junk"), "prospectus: "),
    "nothing": (lambda _: wire.ReportAnswer(), "prospectus: "),
    "too much": (lambda _: wire.ReportAnswer(prospectus=b" " * 70_000), "found 70000 bytes, expected at most 65536"),
    "that of another domain": (
        lambda _: wire.ReportAnswer(prospectus=Prospectus.of(CORE).to_json()),
        "found that of core, expected that of metro-cheap",
    ),
    "a house that promises nothing": (
        prospectus(operator__drain_bps=1e6),
        "expected more than none and less than half",
    ),
    "figures that overflow": (prospectus(operator__link_delay_s=1e300), "operator.link_delay_s"),
    "no classes": (prospectus(free={"network": 1}), "free: found ['network'], expected ['classes', 'network']"),
    "more than there is": (prospectus(free={"network": 10**9, "classes": 1}), "found more of network left"),
    "less than none": (prospectus(free={"network": -1, "classes": 1}), "free.network"),
    "no number": (prospectus(operator__price_per_mbps=float("nan")), "prospectus: "),
}


@pytest.mark.parametrize("name", SURVEY_LIES)
def test_a_prospectus_that_is_none_costs_the_domain_its_place_and_nobody_else(
    domains: Domains, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    lie, said = SURVEY_LIES[name]
    domains.clients["metro-cheap"].lies["report"] = lie
    with caplog.at_level(logging.WARNING):
        (outcome,) = admit(domains)
    assert way(outcome) == AROUND
    assert "domain metro-cheap: sells nothing now: " in caplog.text
    assert said in caplog.text
    core = outcome.decision.purchases[-1]
    assert core.price < 1.0, "the prices of core are its own"


@pytest.mark.parametrize("offered_again", ["replay", "rollback"])
def test_an_offer_from_before_a_restart_is_refused_after_it(
    domains: Domains, offered_again: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept: list[list[wire.Offered]] = []

    def record(offers: list[wire.Offered]) -> list[wire.Offered]:
        kept.append([wire.Offered.FromString(one.SerializeToString()) for one in offers])
        return offers

    client = domains.clients["metro-cheap"]
    client.lies["offer"] = record
    for _ in range(1 if offered_again == "replay" else 2):
        admit(domains)
        with domains.orchestrator() as orchestrator:
            orchestrator.release(["t1"])
    client.lies["offer"] = lambda _: kept[0]
    (outcome,) = admit(domains)
    assert way(outcome) == AROUND
    assert f"{offered_again}: envelope of metro-cheap" in caplog.text


def test_what_a_withdrawn_key_had_counted_up_to_is_forgotten_at_a_restart(
    domains: Domains, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise whoever stole it would keep the domain out for good."""
    domains.clients["metro-cheap"].lies["offer"] = domains.resigned(
        "metro-cheap", lambda envelope: replace(envelope, version=2**53 - 1)
    )
    for _ in range(2):
        (outcome,) = admit(domains)
        assert way(outcome) == AROUND
        with domains.orchestrator() as orchestrator:
            orchestrator.release(["t1"])
        domains.clients["metro-cheap"].lies.clear()
    assert "rollback: envelope of metro-cheap" in caplog.text
    domains.rotate("metro-cheap")
    (outcome,) = admit(domains)
    assert way(outcome) == WAY


def test_a_refusal_names_the_nearest_intent_past_the_domain_that_refused(domains: Domains) -> None:
    """The dearer metro is beyond what the tenant pays."""
    (honest,) = admit(domains)
    price = honest.decision.price * 1.001
    with domains.orchestrator() as orchestrator:
        orchestrator.release(["t1"])
    domains.clients["metro-cheap"].lies["offer"] = lambda offers: [
        wire.Offered(tenant=one.tenant, refused="closed for today") for one in offers
    ]
    (outcome,) = admit(domains, price=price)
    refusal = outcome.decision.refusal
    assert refusal is not None
    assert refusal.because.startswith("closed for today; on every other way: ")
    assert refusal.binding[0] == "domain"
    assert refusal.nearest is not None
    assert refusal.nearest.price > price
    assert refusal.nearest.domains == {"access", "metro-near", "core"}
    with domains.orchestrator() as orchestrator:
        (again,) = orchestrator.admit([refusal.nearest])
    assert way(again) == AROUND


def test_where_no_other_way_is_left_there_is_no_nearest_intent(domains: Domains) -> None:
    domains.clients["core"].lies["offer"] = lambda offers: [
        wire.Offered(tenant=one.tenant, refused="closed for today") for one in offers
    ]
    (outcome,) = admit(domains, domains=frozenset(WAY), accuracy=0.97)
    refusal = outcome.decision.refusal
    assert refusal is not None
    assert refusal.because.startswith("closed for today; on every other way: ")
    assert refusal.nearest is None or refusal.nearest.accuracy < 0.97
    assert domains.holders() == {}


def test_a_domain_lost_when_it_was_asked_to_hold_is_not_planned_around_but_named(domains: Domains) -> None:
    """It may hold what it was asked for, until its lease ends."""
    domains.clients["metro-cheap"].lies["prepare"] = raising(UnreachableError("metro-cheap: no answer"))
    (outcome,) = admit(domains)
    refusal = outcome.decision.refusal
    assert refusal is not None
    assert "metro-cheap: no answer; " in refusal.because
    assert "access > metro-near > core would do" in refusal.because
    assert refusal.nearest is not None
    assert refusal.nearest.domains == set(AROUND)
    assert domains.holders() == {}


def test_a_renegotiation_that_a_domain_refuses_keeps_what_there_is_and_says_what_else_would_do(
    domains: Domains,
) -> None:
    admit(domains)
    domains.clients["metro-cheap"].lies["offer"] = lambda offers: [
        wire.Offered(tenant=one.tenant, refused="closed for today") for one in offers
    ]
    with domains.orchestrator() as orchestrator:
        outcome = orchestrator.renegotiate(intent("t1", deadline_s=0.15))
        assert [one.tenant for one in orchestrator.held()] == ["t1"]
    refusal = outcome.decision.refusal
    assert refusal is not None
    assert refusal.nearest is not None
    assert refusal.nearest.domains == set(AROUND)
    assert domains.holders(State.COMMITTED) == everywhere("t1")


def test_a_renegotiation_while_a_domain_it_holds_is_away_is_refused_or_moved_but_never_fails(domains: Domains) -> None:
    admit(domains)
    domains.clients["metro-cheap"].lies["report"] = raising(UnreachableError("away"))
    with domains.orchestrator() as orchestrator:
        assert way(orchestrator.renegotiate(intent("t1", deadline_s=0.15))) == AROUND
    assert domains.holders(State.COMMITTED) == everywhere("t1", way=AROUND)
