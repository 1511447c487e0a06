"""One switch, driven through the bytes it would be sent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from controller import openflow
from controller.counters import MeterCounters
from controller.errors import SwitchError
from controller.objects import Change, FlowKey, FlowValue, Key, MeterKey, MeterValue, Value, compare
from controller.openflow import Switch
from controller.plan import plan
from controller.ryu_api import ofproto_v1_3 as ofp
from tests.unit.controller.programs import program, rule
from tests.unit.controller.simulated import SimulatedSwitch

METERED = MeterValue(("BURST", "KBPS", "STATS"), (("drop", 8_000, 200),))


@pytest.fixture
def simulated() -> SimulatedSwitch:
    return SimulatedSwitch(17, ("d0i-up", "d0i-dn"))


@pytest.fixture
def switch(simulated: SimulatedSwitch) -> Switch:
    made = Switch(simulated, "d0i")

    def deliver(name: str, message: Any) -> None:
        (made.receive if name == "answer" else made.receive_error)(message)

    simulated.deliver = deliver
    return made


def wanted(datapath: str = "userspace") -> dict[Key, Value]:
    objects = plan(program(rule(1), rule(2), rule(3, meter=None), datapath=datapath)).objects
    return {key: value for key, value in objects.items() if isinstance(key, (FlowKey, MeterKey))}


@pytest.mark.parametrize("datapath", ["userspace", "kernel"])
def test_what_was_applied_is_what_is_observed(switch: Switch, datapath: str) -> None:
    objects = wanted(datapath)
    assert switch.apply(compare({}, objects)) == len(objects)
    assert switch.observe() == objects


def test_removing_everything_leaves_nothing(switch: Switch) -> None:
    switch.apply(compare({}, wanted()))
    switch.apply(compare(switch.observe(), {}))
    assert switch.observe() == {}


def test_nothing_to_change_sends_nothing(switch: Switch, simulated: SimulatedSwitch) -> None:
    assert switch.apply([]) == 0
    assert simulated.sent == []


def test_meters_are_there_before_the_flows_that_name_them_and_go_after(
    switch: Switch, simulated: SimulatedSwitch
) -> None:
    switch.apply(reversed(compare({}, wanted())))
    kinds = [kind for kind, _ in simulated.modifications()]
    assert kinds == sorted(kinds, key=[ofp.OFPT_METER_MOD, ofp.OFPT_FLOW_MOD].index)
    simulated.sent.clear()
    switch.apply(compare(switch.observe(), {}))
    kinds = [kind for kind, _ in simulated.modifications()]
    assert kinds == sorted(kinds, key=[ofp.OFPT_FLOW_MOD, ofp.OFPT_METER_MOD].index)


def test_a_known_meter_is_modified_and_a_new_one_added(switch: Switch, simulated: SimulatedSwitch) -> None:
    faster = MeterValue(METERED.flags, (("drop", 9_000, 200),))
    switch.apply([Change(MeterKey("d0i", 1), None, METERED), Change(MeterKey("d0i", 2), METERED, faster)])
    commands = {data[15]: int.from_bytes(data[8:10]) for kind, data in simulated.modifications()}
    assert commands == {1: ofp.OFPMC_ADD, 2: ofp.OFPMC_MODIFY}


def test_a_refused_message_fails_the_call_by_the_name_of_its_object(switch: Switch, simulated: SimulatedSwitch) -> None:
    simulated.refuse = lambda message: (12, 1) if message[0] == ofp.OFPT_METER_MOD and message[1][15] == 2 else None
    with pytest.raises(SwitchError) as refused:
        switch.apply(compare({}, wanted()))
    assert refused.value.problems == (
        "meter 2 of d0i: the switch answered OFPET_METER_MOD_FAILED(12) OFPMMFC_METER_EXISTS(1)",
    )
    assert switch.stray_errors == []
    simulated.refuse = lambda _message: None
    switch.apply(compare(switch.observe(), wanted()))
    assert switch.observe() == wanted()


def test_a_refused_query_fails_the_query(switch: Switch, simulated: SimulatedSwitch) -> None:
    simulated.refuse = lambda message: (1, 2) if message[0] == ofp.OFPT_MULTIPART_REQUEST else None
    with pytest.raises(SwitchError, match="switch d0i: a query was answered OFPET_BAD_REQUEST"):
        switch.observe()


def test_an_error_nobody_asked_for_is_kept(switch: Switch, simulated: SimulatedSwitch) -> None:
    switch.receive_error(SimpleNamespace(xid=99, type=1, code=2))
    assert switch.stray_errors == ["switch d0i: OFPET_BAD_REQUEST(1) OFPBRC_BAD_MULTIPART(2)"]


def test_a_switch_that_does_not_answer_is_named(
    switch: Switch, simulated: SimulatedSwitch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openflow, "ANSWER_TIMEOUT_S", 0.0)
    simulated.silent = True
    with pytest.raises(SwitchError, match="switch d0i: no answer to OFPPortDescStatsRequest within 0 s"):
        switch.observe()


def test_an_answer_that_comes_too_late_is_not_taken_for_another(
    switch: Switch, simulated: SimulatedSwitch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openflow, "ANSWER_TIMEOUT_S", 0.0)
    simulated.silent = True
    with pytest.raises(SwitchError):
        switch.observe()
    late = int.from_bytes(simulated.sent[-1][1][4:8])
    monkeypatch.setattr(openflow, "ANSWER_TIMEOUT_S", 10.0)
    simulated.silent = False
    switch.receive(SimpleNamespace(xid=late, body=["nonsense"], flags=0))
    assert switch.observe() == {}


def test_a_closed_connection_is_named(switch: Switch, simulated: SimulatedSwitch) -> None:
    switch.close()
    with pytest.raises(SwitchError, match="switch d0i: the connection is closed"):
        switch.observe()


def test_a_port_the_switch_does_not_have_is_named_with_those_it_has(switch: Switch) -> None:
    change = Change(FlowKey("d0i", 100, ()), None, FlowValue(1, (("output", "elsewhere"),)))
    with pytest.raises(SwitchError, match="port elsewhere: not found on switch d0i; it has d0i-dn, d0i-up"):
        switch.apply([change])


def test_a_masked_match_survives_being_deleted(switch: Switch) -> None:
    key = FlowKey("d0i", 7, (("eth_type", "0x800"), ("ipv4_src", "10.0.0.0/255.0.0.0")))
    switch.apply([Change(key, None, FlowValue(0, ()))])
    assert list(switch.observe()) == [key]
    switch.apply([Change(key, FlowValue(0, ()), None)])
    assert switch.observe() == {}


def test_meter_counters_tell_what_came_and_what_was_dropped(switch: Switch) -> None:
    switch.apply([Change(MeterKey("d0i", 1), None, METERED)])
    assert switch.meter_counters() == {1: MeterCounters(5, 5000, 2, 2000)}
