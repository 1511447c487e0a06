"""Intents across four domains: held everywhere or nowhere, whatever dies in between.

The fault matrix: agent, orchestrator, controller and switch, each lost at each step of prepare, commit and release.
Afterwards the ledgers say what the switches hold, and a tenant is in all domains of its route or in none.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable

import pytest

from testbed.envelope.descriptor import Envelope, Stage
from testbed.envelope.store import verify
from testbed.errors import ReservationError
from testbed.management.entry import State
from testbed.management.house import latencies_s
from testbed.management.journal import UNFINISHED
from testbed.management.market import house_of
from testbed.management.orchestrator import Outcome

from .federation_lab import SEGMENTS, Lab, intent, run_orchestrator
from .test_agent import wait_for
from .test_crowds import server_latencies_s

WAY = ("access", "metro-cheap", "core")
"""The route of the lab's intent."""

VICTIM = "metro-cheap"


def admit(lab: Lab, *tenants: str, **changed: object) -> list[Outcome]:
    with lab.orchestrator() as orchestrator:
        return orchestrator.admit([intent(tenant, **changed) for tenant in tenants])


def everywhere(tenant: str, way: tuple[str, ...] = WAY) -> dict[str, set[str]]:
    return {name: {tenant} for name in way}


def recover(lab: Lab) -> None:
    with lab.orchestrator() as orchestrator:
        orchestrator.recover()
        assert not orchestrator.journal.transfers(*UNFINISHED)


def require_nowhere_or_everywhere(lab: Lab) -> None:
    lab.require_in_step()
    assert lab.tenants() in ({}, everywhere("t1"))


def test_an_admitted_intent_is_on_every_switch_of_its_route_and_on_no_other(lab: Lab) -> None:
    lab.start()
    (outcome,) = admit(lab, "t1")
    assert outcome.admitted
    assert outcome.decision.route is not None
    assert outcome.decision.route.domains == WAY
    assert outcome.decision.bound_s is not None
    assert outcome.decision.bound_s <= 0.2
    assert lab.tenants() == everywhere("t1")
    lab.require_in_step()


def test_the_bound_is_that_of_the_signed_envelopes(lab: Lab) -> None:
    lab.start()
    (outcome,) = admit(lab, "t1")
    assert outcome.decision.bound_s == pytest.approx(sum(share.delay_s for share in outcome.decision.budget), rel=1e-3)


def test_what_is_released_is_nowhere(lab: Lab) -> None:
    lab.start()
    admit(lab, "t1", "t2")
    with lab.orchestrator() as orchestrator:
        orchestrator.release(["t1"])
        assert lab.tenants() == everywhere("t2")
        orchestrator.release(["t2"])
    assert lab.tenants() == {}
    lab.require_in_step()


def test_a_tenant_that_one_domain_refuses_is_held_by_none_and_the_others_enter(lab: Lab) -> None:
    lab.start()
    ledger = lab.seats["core"].ledger()
    # What `core` does not show in its prospectus: somebody sits where t2's traffic would come from.
    squatter = "INSERT INTO reservation VALUES ('x', 'x', 'x', '10.1.0.2', '{\"crowd\":{}}', 4e9, NULL, 'prepared', 9)"
    with ledger.transaction("test"):
        ledger._database.execute(squatter)
    ledger.close()
    first, second = admit(lab, "t1", "t2")
    assert first.admitted
    assert not second.admitted
    assert second.decision.refusal is not None
    assert "10.1.0.2 is held by reservation x" in second.decision.refusal.because
    assert lab.tenants() == everywhere("t1")
    assert [e.reservation for e in _all(lab, "core", State.PREPARED)] == ["x"]


def test_a_tenant_that_one_domain_cannot_install_is_undone_everywhere(lab: Lab) -> None:
    lab.start()
    broken = lab.seats[VICTIM].switch.with_suffix(".broken")
    broken.write_text("class 1:11 of d1e-dn: refused by the kernel")
    (outcome,) = admit(lab, "t1")
    assert outcome.decision.refusal is not None
    assert "refused by the kernel" in outcome.decision.refusal.because
    assert lab.tenants() == {}
    broken.unlink()
    recover(lab)
    require_nowhere_or_everywhere(lab)


def test_a_domain_that_does_not_answer_is_planned_around(lab: Lab) -> None:
    lab.start()
    lab.seats[VICTIM].kill("agent")
    (outcome,) = admit(lab, "t1")
    assert outcome.decision.route is not None
    assert outcome.decision.route.domains == ("access", "metro-near", "core")


def test_orchestrators_at_once_never_hold_more_than_there_is(lab: Lab) -> None:
    """Three of them compete for a network that holds a few of their tenants."""
    lab.start()
    outcomes: list[Outcome] = []

    def one(first: int) -> None:
        folder = lab.folder / str(first)
        folder.mkdir()
        with lab.orchestrator(journal=folder / "journal.sqlite") as orchestrator:
            names = [f"t{first + index}" for index in range(6)]
            wanted = [intent(name, deadline_s=0.045, price=1e3) for name in names]
            outcomes.extend(orchestrator.admit(wanted))

    threads = [threading.Thread(target=one, args=(first,)) for first in (1, 101, 201)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lab.require_in_step()
    entered = [one for one in outcomes if one.admitted]
    assert 0 < len(entered) < len(outcomes) == 18
    held = sum(len(tenants) for tenants in lab.tenants().values())
    assert held == sum(len(one.decision.purchases) or len(one.transfer.reservations) for one in entered if one.transfer)
    for seat in lab.seats.values():
        assert seat.held() <= seat.operator.reservable_bps


def test_a_renegotiated_tenant_has_its_new_rate_in_its_old_seat_and_others_keep_theirs(lab: Lab) -> None:
    lab.start()
    admit(lab, "t1", "t2")
    before = {name: lab.seats[name].installed() for name in WAY}
    with lab.orchestrator() as orchestrator:
        outcome = orchestrator.renegotiate(intent("t1", deadline_s=0.12))
        assert outcome.admitted
    lab.require_in_step()
    for name in WAY:
        after = lab.seats[name].installed()
        assert after["t2"] == before[name]["t2"]
        assert after["t1"][0] == before[name]["t1"][0]
        assert after["t1"][1] > before[name]["t1"][1]


def test_a_renegotiation_onto_another_way_leaves_the_first_one(lab: Lab) -> None:
    lab.start()
    admit(lab, "t1")
    with lab.orchestrator() as orchestrator:
        assert orchestrator.renegotiate(intent("t1", domains=frozenset({"access", "metro-near", "core"}))).admitted
    assert lab.tenants() == everywhere("t1", ("access", "metro-near", "core"))
    lab.require_in_step()


def test_a_renegotiation_that_is_refused_leaves_everything_as_it_was(lab: Lab) -> None:
    lab.start()
    admit(lab, "t1")
    before = {name: lab.seats[name].installed() for name in WAY}
    with lab.orchestrator() as orchestrator:
        assert not orchestrator.renegotiate(intent("t1", deadline_s=0.001)).admitted
        with pytest.raises(ReservationError, match="t9: holds nothing"):
            orchestrator.renegotiate(intent("t9"))
    assert {name: lab.seats[name].installed() for name in WAY} == before


@pytest.mark.parametrize("lost", ["switch", "controller", "agent"])
def test_a_renegotiation_that_fails_after_another_domain_has_committed_gives_back_what_there_was(
    lost: str, lab: Lab
) -> None:
    """The first two domains of the way have replaced the reservation when the last one cannot."""
    lab.start()
    admit(lab, "t1", "t2")
    before = {name: lab.seats[name].installed() for name in WAY}
    core = lab.seats["core"]
    lose: dict[str, Callable[[], object]] = {
        "switch": lambda: core.switch.with_suffix(".broken").write_text("class 1:11 of d3e-h: refused by the kernel"),
        "controller": lambda: core.kill("controller"),
        "agent": lambda: core.kill("agent"),
    }

    def reached(point: str) -> None:
        if point == "committed:metro-cheap":
            assert lab.seats["access"].installed()["t1"][1] > before["access"]["t1"][1]
            lose[lost]()

    with lab.orchestrator(reached) as orchestrator:
        assert not orchestrator.renegotiate(intent("t1", deadline_s=0.12)).admitted
        assert {one.tenant for one in orchestrator.held()} == {"t1", "t2"}
    if lost == "switch":
        core.switch.with_suffix(".broken").unlink()
    if lost == "controller":
        core.start_controller()
    if lost == "agent":
        core.start_agent()
    recover(lab)
    assert {name: lab.seats[name].installed() for name in WAY} == before
    lab.require_in_step()


AGENT_POINTS = [
    *("prepare:received", "prepare:begun", "prepare:written", "prepare:durable"),
    *("commit:received", "check:durable", "commit:installed", "commit:begun", "commit:written", "commit:durable"),
    *("commit:recorded", "release:received", "release:begun", "release:written", "release:durable"),
    *("release:recorded", "release:removed"),
]


@pytest.mark.parametrize("point", AGENT_POINTS)
def test_an_agent_killed_at(point: str, lab: Lab) -> None:
    lab.start({VICTIM: point})
    seat = lab.seats[VICTIM]
    with lab.orchestrator() as orchestrator:
        (outcome,) = orchestrator.admit([intent()])
        if point.startswith("release"):
            assert outcome.admitted
            with pytest.raises(ReservationError):
                orchestrator.release(["t1"])
    seat.agent.join()
    assert seat.agent.exitcode == -9
    seat.start_agent()
    recover(lab)
    require_nowhere_or_everywhere(lab)
    assert lab.tenants() == {}


@pytest.mark.parametrize("point", ["commit:durable", "commit:recorded", "commit:installed", "prepare:durable"])
def test_an_agent_that_is_back_in_time_answers_what_it_was_asked(point: str, lab: Lab) -> None:
    seat = lab.seats[VICTIM]
    lab.start({VICTIM: point})
    back = threading.Thread(target=lambda: (seat.agent.join(), seat.start_agent()))
    back.start()
    with lab.orchestrator(attempts=100) as orchestrator:
        (outcome,) = orchestrator.admit([intent()])
    back.join()
    assert outcome.admitted
    assert lab.tenants() == everywhere("t1")
    lab.require_in_step()


ORCHESTRATOR_POINTS = {
    **dict.fromkeys(("planned", "offered", "journalled"), False),
    **{f"prepared:{name}": False for name in WAY},
    **dict.fromkeys(("decided", *(f"committed:{name}" for name in WAY), "done"), True),
    **dict.fromkeys(("undoing", *(f"released:{name}" for name in WAY)), False),
}


@pytest.mark.parametrize("point", ORCHESTRATOR_POINTS)
def test_an_orchestrator_killed_at(point: str, lab: Lab) -> None:
    lab.start()
    releases = point == "undoing" or point.startswith("released")
    assert run_orchestrator(lab, point, releases=releases) == -9
    recover(lab)
    require_nowhere_or_everywhere(lab)
    assert (lab.tenants() != {}) is ORCHESTRATOR_POINTS[point]


def test_leases_end_what_an_orchestrator_that_never_comes_back_has_prepared(lab: Lab) -> None:
    lab.start()
    assert run_orchestrator(lab, f"prepared:{WAY[1]}", releases=False) == -9
    assert lab.seats["access"].held() > 0
    for name in WAY[:2]:
        seat = lab.seats[name]
        ledger = seat.ledger()
        with ledger.transaction("test"):
            ledger._database.execute("UPDATE reservation SET expires_s = 1")
        ledger.close()
        seat.end_agent()
        seat.start_agent()
        assert seat.held() == 0


STEPS = ("journalled", f"prepared:{VICTIM}", "decided", f"committed:{VICTIM}", "done", "undoing", f"released:{VICTIM}")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("lost", ["controller", "switch"])
def test_what_a_domain_loses_is_made_good(lost: str, step: str, watchful: Lab) -> None:
    """The controller is killed and started again, or the switch forgets everything, in the middle of the protocol."""
    lab = watchful
    lab.start()
    seat = lab.seats[VICTIM]
    lose: dict[str, Callable[[], object]] = {
        "controller": lambda: seat.kill("controller"),
        "switch": lambda: seat.switch.unlink(missing_ok=True),
    }

    def reached(point: str) -> None:
        if point == step:
            lose[lost]()

    with lab.orchestrator(reached) as orchestrator:
        orchestrator.admit([intent()])
        if step in {"undoing", f"released:{VICTIM}"}:
            try:
                orchestrator.release(["t1"])
            except ReservationError:
                assert lost == "controller"
    if lost == "controller":
        seat.start_controller()
    recover(lab)
    wait_for(lambda: seat.committed() == seat.installed(), "ledger and switch to agree")
    require_nowhere_or_everywhere(lab)


def test_every_promise_made_before_still_holds_after_every_admission(lab: Lab) -> None:
    """Computed from what is installed and signed, for everybody, each time one more has come."""
    lab.start()
    for number in range(1, 9):
        admit(lab, f"t{number}", deadline_s=0.15, accuracy=0.99 if number % 2 else 0.97)
        for seat in lab.seats.values():
            house, entries = house_of(seat.operator), _all(lab, seat.name, State.COMMITTED)
            classes = [
                (e.amounts["network"], house.shape(e.amounts["network"], house.packet_bits), house.packet_bits)
                for e in entries
            ]
            assert all(latencies_s(classes, house.drain_bps) <= house.latency_s)
            served = served_by(lab, seat.name)
            assert len(served) == (number if seat.name == "core" else 0)
            if seat.operator.site is None:
                continue
            models = {model.name: model for model in seat.operator.site.models}
            now_s = server_latencies_s(seat.operator.site, [models[e.subject.service] for e in served])
            assert all(now <= e.latency_s for now, e in zip(now_s, served, strict=True))
    assert {e.subject.service for e in served_by(lab, "core")} == {"medium", "large"}


def test_segments_without_a_domain_that_answers_are_named(lab: Lab) -> None:
    with lab.orchestrator() as orchestrator, pytest.raises(ReservationError, match=", ".join(SEGMENTS)):
        orchestrator.admit([intent()])


def _all(lab: Lab, domain: str, *states: State) -> list:  # type: ignore[type-arg]
    ledger = lab.seats[domain].ledger()
    found = ledger.entries(*states)
    ledger.close()
    return found


def served_by(lab: Lab, domain: str) -> list[Envelope]:
    """What a domain has signed of its server for those who are committed there."""
    signed = [
        base64.b64decode(data) for e in _all(lab, domain, State.COMMITTED) for data in json.loads(e.body)["envelopes"]
    ]
    promises = [verify(data, lab.root.trust, time.time()) for data in signed]
    return [one for one in promises if one.subject.stage is Stage.COMPUTE]
