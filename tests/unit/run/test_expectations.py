"""What a fault did to each tenant is held against what the scenario said it would, and only that fault's packets."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from testbed.report.record import ExpectationRecord, FaultRecord, GateRecord
from testbed.run.expectations import Packets, ended_by, expectations, outside
from testbed.run.faults import COUNTERS, EXPLAINED, UNFINISHED, WAYS, Injector, Occurrence, Site, explains
from testbed.run.judge import run_verdict
from testbed.scenario.faults import Fault, FaultKind, begin_s
from testbed.scenario.model import Misbehaviour, PoissonArrivals, Promise, Tenant

PROMISE = Promise(deadline_s=0.05, epsilon=0.02)
FAR = Tenant("far", PoissonArrivals(1000.0, 4000), "east", promise=PROMISE)
NEAR = replace(FAR, name="near", site="west")
CUT = Fault("cut", FaultKind.LINK_DOWN, at_s=2.0, for_s=1.0, recovery_s=1.0, domain="east", fails=("far",))
DONE = Occurrence(CUT, begin_s=2.0, end_s=3.0)


def packets(late_from_s: float, late_until_s: float, *, lost: bool = False) -> Packets:
    """8 s of a packet each millisecond; those sent in between are late, or lost."""
    intended_s = np.arange(8000) * 1e-3
    touched = (intended_s >= late_from_s) & (intended_s < late_until_s)
    return Packets(intended_s, np.where(touched, np.nan if lost else 0.2, 0.001))


def found(far: Packets, near: Packets) -> dict[tuple[str, str], ExpectationRecord]:
    held = expectations(DONE, [FAR, NEAR], {"far": far, "near": near})
    return {(each.tenant, each.expected.partition(" ")[0].rstrip(":")): each for each in held}


def test_all_is_met_if_only_the_right_tenant_failed_and_soon_recovered() -> None:
    held = found(packets(2.0, 3.25), packets(0, 0))
    assert all(each.met for each in held.values())
    assert held["far", "recovers"].seconds == pytest.approx(0.249, abs=0.002)


@pytest.mark.parametrize(
    ("far", "near", "broken"),
    [
        pytest.param(packets(0, 0), packets(0, 0), ("far", "fails"), id="nobody failed"),
        pytest.param(packets(2, 3), packets(2.4, 2.6), ("near", "keeps"), id="somebody else failed too"),
        pytest.param(packets(2, 3), packets(2.4, 2.6, lost=True), ("near", "keeps"), id="somebody else lost packets"),
        pytest.param(packets(2, 8), packets(0, 0), ("far", "recovers"), id="it never recovered"),
        pytest.param(packets(2, 4.2), packets(0, 0), ("far", "recovers"), id="it recovered too late"),
    ],
)
def test_one_expectation_is_not_met_if(far: Packets, near: Packets, broken: tuple[str, str]) -> None:
    held = found(far, near)
    assert [key for key, each in held.items() if not each.met] == [broken]


def test_a_tenant_that_misses_at_the_rate_it_may_has_recovered() -> None:
    after = packets(2.0, 3.1)
    latency_s = after.latency_s.copy()
    latency_s[3200::60] = 0.2
    held = found(Packets(after.intended_s, latency_s), packets(0, 0))
    assert held["far", "recovers"].met
    assert held["far", "recovers"].seconds == pytest.approx(0.1, abs=0.002)


LIES = Fault("lies", FaultKind.SERVER_WRONG, 2.0, 1.0, 1.0, domain="east", share=0.5, fails=("far",))


def answers(wrong_from_s: float, wrong_until_s: float, *, late: bool = False) -> Packets:
    """8 s of a request each 10 ms, 4 of 100 of which are answered wrongly anyway, and half of those in between."""
    intended_s = np.arange(800) * 1e-2
    number = np.arange(800)
    lied_to = (intended_s >= wrong_from_s) & (intended_s < wrong_until_s) & (number % 2 == 0)
    wrong = ((number % 25 == 0) | lied_to).astype(float)
    return Packets(intended_s, np.where(lied_to & late, 0.2, 0.001), wrong)


@pytest.mark.parametrize(
    ("told", "broken"),
    [
        pytest.param(answers(2.0, 3.1), [], id="as often as it should, and only then"),
        pytest.param(answers(0, 0), ["answered wrongly"], id="every answer was right"),
        pytest.param(answers(2.0, 2.3), ["answered wrongly"], id="not for long enough"),
        pytest.param(answers(2.0, 4.2), ["answered rightly again within 1 s"], id="it did not end soon"),
        pytest.param(answers(2.0, 3.0, late=True), ["keeps its promise"], id="wrong answers came late"),
    ],
)
def test_a_server_that_answers_wrongly_does_so_in_time_and_not_for_long(told: Packets, broken: list[str]) -> None:
    done = replace(DONE, fault=LIES)
    held = list(expectations(done, [FAR], {"far": told}))
    assert len(held) == 3
    assert [each.expected.partition(":")[0] for each in held if not each.met] == broken
    assert outside([done], FAR, told.intended_s).all()


STEP = Fault("step", FaultKind.CLOCK_STEPPED, at_s=2.0, for_s=1.0, recovery_s=1.0, step_s=0.001)


@pytest.mark.parametrize("seen", [True, False])
def test_of_a_clock_that_was_stepped_only_its_gate_is_asked(seen: bool) -> None:
    gates = [
        GateRecord(name="clock step", value=0.001, limit=0.0005, ok=not seen, detail="up to 1 ms in between", window=1),
        GateRecord(name="upcalls", value=0, limit=0, ok=True, detail="", window=1),
    ]
    done = replace(DONE, fault=STEP)
    (caught,) = expectations(done, [FAR, NEAR], {"far": packets(2, 3), "near": packets(0, 0)}, gates)
    assert (caught.tenant, caught.met, caught.found) == ("all", seen, "up to 1 ms in between")
    assert not explains([done], "clock step", "east", "far")


FULL = Fault("full", FaultKind.DISK_FULL, at_s=2.0, for_s=0.0, recovery_s=1.0)


@pytest.mark.parametrize(("detail", "met"), [("runs/1: the disk is full; free space", True), ("a sender ended", False)])
def test_a_disk_that_was_filled_is_to_be_why_the_run_could_not_go_on(detail: str, met: bool) -> None:
    gate = GateRecord(name=UNFINISHED, value=1, limit=0, ok=False, detail=detail, window=2)
    (caught,) = ended_by(replace(DONE, fault=FULL), [gate])
    assert (caught.tenant, caught.met, caught.found) == ("all", met, detail)
    assert not list(ended_by(DONE, [gate]))
    # Whoever measures to the end has not noticed.
    (unseen,) = expectations(replace(DONE, fault=FULL), [FAR], {"far": packets(0, 0)})
    assert (unseen.met, unseen.found) == (False, "nothing")


def test_only_in_the_last_window_a_disk_is_filled() -> None:
    network = SimpleNamespace(scenario=SimpleNamespace(faults=(FULL, CUT)))
    site = cast(Site, SimpleNamespace(network=network))
    first, last = (Injector.of(site, 7, window, last=window == 2) for window in (1, 2))
    assert [fault.name for _, fault in first.due] == ["cut"]
    assert {fault.name for _, fault in last.due} == {"full", "cut"}


def test_a_tenant_that_breaks_its_own_contract_or_has_no_promise_is_held_to_nothing() -> None:
    flood = replace(NEAR, misbehaviour=Misbehaviour("flood", offered_bps=1e7))
    nobody = replace(NEAR, name="nobody", promise=None)
    told = {"near": packets(2, 3), "nobody": packets(2, 3)}
    assert not list(expectations(DONE, [flood, nobody], told))


def test_a_promise_is_judged_without_the_packets_that_the_fault_could_touch_and_by_all_others() -> None:
    intended_s = np.array([1.94, 1.96, 2.5, 3.99, 4.01])
    assert outside([DONE], FAR, intended_s).tolist() == [True, False, False, False, True]
    assert outside([DONE], NEAR, intended_s).all()


def test_a_fault_explains_its_own_gates_in_its_own_domain_and_nothing_else() -> None:
    assert explains([DONE], COUNTERS, "east", "near") == "cut"
    assert not explains([DONE], COUNTERS, "west", "far")
    for gate in ("upcalls", "packet-ins", "capture drops", "installed reservations", "clock step"):
        assert not explains([DONE], gate, "east", "far")
    only_near = replace(DONE, fault=replace(CUT, tenant="near"))
    assert not explains([only_near], COUNTERS, "east", "far")


def test_every_kind_has_a_way_and_a_line_in_the_table_of_what_it_explains() -> None:
    assert set(WAYS) == set(EXPLAINED) == set(FaultKind)


def test_moments_are_drawn_from_the_seed_within_the_spread() -> None:
    faults = [replace(CUT, spread_s=0.5), CUT, replace(CUT, spread_s=0.5)]
    first = begin_s(faults, seed=7, window=1)
    assert first == begin_s(faults, seed=7, window=1)
    assert first[1] == 2.0
    assert first[0] != first[2]
    assert first[0] != begin_s(faults, seed=8, window=1)[0] != begin_s(faults, seed=7, window=2)[0]
    assert all(2.0 <= begin_s(faults, seed, 1)[0] <= 2.5 for seed in range(100))


def test_a_run_in_which_a_fault_did_something_else_fails() -> None:
    met = ExpectationRecord(tenant="far", expected="fails", found="", met=True)
    done = FaultRecord(name="cut", kind="link-down", window=1, what="", begin_s=2, end_s=3, expectations=(met,))
    otherwise = done.model_copy(update={"expectations": (met, met.model_copy(update={"met": False}))})
    assert run_verdict((), [done]) == "PASS"
    assert run_verdict((), [done, otherwise]) == "FAIL"
