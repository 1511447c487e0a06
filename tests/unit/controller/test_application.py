"""The application against switches and a kernel in memory: what it sends, what it names, what it puts back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from controller import application, traffic_control
from controller.application import DomainController
from controller.errors import KernelError, ReadBackError, SwitchError
from controller.objects import Change, ClassKey, Key, LeafKey, LeafValue, PortKey, RootKey, Value
from controller.program import DomainProgram, Meter, ProgramError
from controller.ryu_api import DEAD_DISPATCHER, MAIN_DISPATCHER
from controller.ryu_api import ofproto_v1_3 as ofp
from controller.traffic_control import Observation
from tests.unit.controller.programs import hop, program, rule
from tests.unit.controller.simulated import SimulatedSwitch


class Kernel:
    """Queueing disciplines in memory."""

    def __init__(self) -> None:
        self.objects: dict[Key, Value] = {}
        self.applied: list[Change] = []
        self.deaf: set[Key] = set()
        self.refusing: set[Key] = set()

    def observe(self, ports: Iterable[str]) -> Observation:
        ports = set(ports)
        here = {k: v for k, v in self.objects.items() if isinstance(k, PortKey) and k.port in ports}
        return Observation(objects=dict(here))

    def apply(self, changes: Iterable[Change], _observation: Observation) -> int:
        changes = list(changes)
        refused = [f"{change.key}: refused" for change in changes if change.key in self.refusing]
        self.applied.extend(changes)
        for change in changes:
            if change.key in self.deaf or change.key in self.refusing:
                continue
            if change.expected is None:
                self.objects.pop(change.key, None)
            else:
                self.objects[change.key] = change.expected
        if refused:
            raise KernelError(refused)
        return len(changes)


class World:
    """A controller, its kernel and its switches."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.controller = DomainController(domain="d0")
        self.switches: dict[str, SimulatedSwitch] = {}

    def connect(self, bridge: str = "d0i", dpid: int = 17) -> SimulatedSwitch:
        """A new connection of a switch, with the memory of its last one."""
        switch = SimulatedSwitch(dpid, (f"{bridge}-up", f"{bridge}-dn"))
        if bridge in self.switches:
            switch.flows, switch.meters = self.switches[bridge].flows, self.switches[bridge].meters
        switch.deliver = self._deliver
        self.switches[bridge] = switch
        self.controller.switch_changed(SimpleNamespace(datapath=switch, state=MAIN_DISPATCHER))
        return switch

    def lose(self, switch: SimulatedSwitch) -> None:
        switch.closed = True
        self.controller.switch_changed(SimpleNamespace(datapath=switch, state=DEAD_DISPATCHER))

    def _deliver(self, name: str, message: Any) -> None:
        handler = self.controller.answered if name == "answer" else self.controller.refused
        handler(SimpleNamespace(msg=message))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    kernel = Kernel()
    monkeypatch.setattr(traffic_control, "observe", kernel.observe)
    monkeypatch.setattr(traffic_control, "apply", kernel.apply)
    monkeypatch.setattr(application, "CONNECT_TIMEOUT_S", 0.0)
    # Restoring happens in a thread of its own only so that the framework's event thread is free.
    monkeypatch.setattr(application.hub, "spawn", lambda function: function())
    return World(kernel)


def test_a_program_is_installed_on_a_switch_that_connected_before_it_was_known(world: World) -> None:
    world.connect()
    assert world.controller.health()["unclaimed"] == [17]
    result = world.controller.install(program())
    assert result["tenants"] == ["tenant-1"]
    assert result["sent"] == {"openflow": 4, "netlink": 16}
    assert world.controller.verify() == []
    health = world.controller.health()
    assert (health["unclaimed"], health["rules"], health["switches"]["d0i"]["connected"]) == ([], 1, True)


def test_a_switch_that_never_connects_is_named_and_nothing_is_installed(world: World) -> None:
    with pytest.raises(SwitchError) as refused:
        world.controller.install(program())
    assert refused.value.problems == ("switch d0i: not connected within 0 s; expected datapath id 17",)
    assert world.kernel.objects == {}
    assert world.controller.health()["rules"] == 0
    world.connect()
    world.controller.install(program())
    assert world.controller.verify() == []


def test_a_program_of_another_domain_is_refused(world: World) -> None:
    with pytest.raises(ProgramError, match="found domain 'd7', expected 'd0'"):
        world.controller.install(replace(program(), domain="d7"))


def test_the_same_program_again_sends_nothing_and_a_changed_rule_only_itself(world: World) -> None:
    switch = world.connect()
    world.controller.install(program(rule(1), rule(2)))
    switch.sent.clear()
    assert world.controller.install(program(rule(1), rule(2)))["sent"] == {"openflow": 0, "netlink": 0}
    assert switch.modifications() == []
    changed = rule(2, meter=Meter(2, 1_000, 50))
    result = world.controller.install(program(rule(1), changed))
    assert result["changed"] == ["meter 2 of d0i"]
    assert [kind for kind, _ in switch.modifications()] == [ofp.OFPT_METER_MOD]


def test_removing_rules_leaves_the_others_and_an_unknown_number_removes_nothing(world: World) -> None:
    world.connect()
    world.controller.install(program(rule(1), rule(2), rule(3)))
    with pytest.raises(ProgramError, match=r"numbers \[9\] not found"):
        world.controller.remove([1, 9])
    world.controller.remove([1, 3])
    assert list(world.controller.read_back()["tenants"]) == ["tenant-2"]
    assert world.controller.verify() == []


def test_queues_come_before_the_flows_that_use_them_and_go_after(world: World) -> None:
    switch = world.connect()
    order: list[str] = []
    apply = world.kernel.apply

    def record(changes: Iterable[Change], observation: Observation) -> int:
        changes = list(changes)
        order.extend(["queue gone" if change.expected is None else "queue" for change in changes])
        return apply(changes, observation)

    traffic_control.apply = record  # type: ignore[assignment]
    switch.refuse = lambda message: order.append("flow") if message[0] == ofp.OFPT_FLOW_MOD else None  # type: ignore[func-returns-value]
    world.controller.install(program())
    assert order == sorted(order, key=["queue", "flow"].index)
    order.clear()
    world.controller.remove([1])
    assert order == sorted(order, key=["flow", "queue gone"].index)


def test_what_the_kernel_accepted_and_did_not_do_is_caught_by_reading_back(world: World) -> None:
    world.connect()
    world.kernel.deaf = {LeafKey("d0i-dn", 0x11)}
    with pytest.raises(ReadBackError) as caught:
        world.controller.install(program())
    expected = (
        "leaf of class 1:11 of d0i-dn (tenant tenant-1): found absent, expected kind pfifo_head_drop, limit_packets 100"
    )
    assert caught.value.problems == (expected,)


def test_a_refusal_by_the_switch_puts_the_previous_program_back(world: World) -> None:
    switch = world.connect()
    world.controller.install(program(rule(1)))
    before = world.controller.read_back()
    switch.refuse = lambda message: (12, 1) if message[0] == ofp.OFPT_METER_MOD and message[1][15] == 2 else None
    with pytest.raises(SwitchError, match="meter 2 of d0i: the switch answered OFPET_METER_MOD_FAILED"):
        world.controller.install(program(rule(1), rule(2)))
    assert world.controller.read_back() == before
    assert world.controller.verify() == []


def test_a_refusal_that_cannot_be_undone_says_both(world: World) -> None:
    world.connect()
    world.controller.install(program(rule(1)))
    world.kernel.refusing = {ClassKey("d0i-dn", 0x12)}
    world.kernel.objects[ClassKey("d0i-dn", 0x12)] = LeafValue("nonsense", None)
    with pytest.raises(KernelError) as failed:
        world.controller.install(program(rule(1), rule(2)))
    assert failed.value.problems == (
        "class 1:12 of d0i-dn: refused",
        "the previous program could not be put back:",
        "class 1:12 of d0i-dn: refused",
    )


def test_what_somebody_removes_while_it_is_looked_at_is_put_back_and_counted(world: World) -> None:
    """The root is seen, then it goes with everything below it: its classes are missing and cannot be added."""
    world.connect()
    world.controller.install(program())
    before = dict(world.kernel.objects)
    observe, apply = world.kernel.observe, world.kernel.apply
    root = next(key for key in before if isinstance(key, RootKey))

    def observe_while_it_goes(ports: Iterable[str]) -> Observation:
        traffic_control.observe = observe  # type: ignore[assignment]
        below = {key for key in before if isinstance(key, PortKey) and key.port == root.port}
        world.kernel.objects = {key: value for key, value in before.items() if key not in below}
        seen = observe(ports)
        return Observation(objects={**seen.objects, root: before[root]})

    def apply_below_roots(changes: Iterable[Change], observation: Observation) -> int:
        changes = list(changes)
        if {root} == {RootKey(change.key.port) for change in changes if isinstance(change.key, PortKey)}:
            there = {change.key for change in changes} | world.kernel.objects.keys()
            if root not in there:
                raise KernelError("class of d0i-up: No such file or directory")
        return apply(changes, observation)

    traffic_control.observe = observe_while_it_goes  # type: ignore[assignment]
    traffic_control.apply = apply_below_roots  # type: ignore[assignment]
    assert len(world.controller.install(program())["added"]) > 1
    assert world.kernel.objects == before
    assert world.controller.verify() == []


def test_drift_is_named_with_its_tenant(world: World) -> None:
    world.connect()
    world.controller.install(program())
    world.kernel.objects[LeafKey("d0i-dn", 0x11)] = LeafValue("pfifo_head_drop", 3)
    assert world.controller.verify() == [
        {
            "object": "leaf of class 1:11 of d0i-dn",
            "tenant": "tenant-1",
            "found": "limit_packets 3",
            "expected": "limit_packets 100",
        }
    ]


def test_a_switch_that_comes_back_empty_is_given_its_state_and_one_that_did_not_forget_nothing(world: World) -> None:
    first = world.connect()
    world.controller.install(program())
    world.lose(first)
    assert [d["object"] for d in world.controller.verify()] == ["switch d0i"]
    second = world.connect()
    assert second.modifications() == []
    assert world.controller.verify() == []
    world.lose(second)
    second.flows.clear()
    second.meters.clear()
    third = world.connect()
    assert len(third.modifications()) == 4
    assert world.controller.verify() == []
    assert world.controller.health()["switches"]["d0i"]["connections"] == 3


def test_a_switch_is_restored_while_another_is_still_away(world: World) -> None:
    ingress, egress = world.connect(), world.connect("d0e", 18)
    world.controller.install(program(hops=(hop(), hop("d0e", 18, ingress=False))))
    world.lose(ingress)
    world.lose(egress)
    egress.flows.clear()
    returned = world.connect("d0e", 18)
    assert len(returned.modifications()) == 3
    assert [d["object"] for d in world.controller.verify()] == ["switch d0i"]


def test_a_switch_that_connects_while_another_is_waited_for_in_vain_keeps_the_program_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = world.connect()
    world.controller.install(program())
    world.lose(switch)
    switch.flows.clear()
    monkeypatch.setattr(application, "CONNECT_TIMEOUT_S", 0.05)
    connected = list[SimulatedSwitch]()
    monkeypatch.setattr(application.hub, "sleep", lambda _: connected or connected.append(world.connect()))
    with pytest.raises(SwitchError, match="switch d0e: not connected"):
        world.controller.install(program(rule(2), hops=(hop(), hop("d0e", 18, ingress=False))))
    assert world.controller.verify() == []
    assert world.controller.health()["rules"] == 1


def test_a_newer_connection_of_a_switch_replaces_the_older_whose_end_then_means_nothing(world: World) -> None:
    older = world.connect()
    world.controller.install(program())
    world.connect()
    assert older.closed
    world.lose(older)
    assert world.controller.health()["switches"]["d0i"]["connected"]
    assert world.controller.verify() == []


def test_a_switch_that_cannot_be_restored_is_an_error_in_health(world: World) -> None:
    first = world.connect()
    world.controller.install(program())
    world.lose(first)
    world.kernel.objects[LeafKey("d0i-dn", 0x11)] = LeafValue("pfifo_head_drop", 3)
    world.kernel.refusing = {LeafKey("d0i-dn", 0x11)}
    world.connect()
    assert world.controller.health()["errors"] == ["leaf of class 1:11 of d0i-dn: refused"]


def test_strangers_are_turned_away_before_and_after_the_program(world: World) -> None:
    early = world.connect("stranger", 99)
    world.connect()
    world.controller.install(program())
    late = world.connect("other", 98)
    assert early.closed
    assert late.closed
    assert world.controller.health()["refused"] == {"98": 1, "99": 1}
    assert early.modifications() == late.modifications() == []


def test_a_hop_and_a_port_that_leave_the_program_are_emptied_and_the_switch_let_go(world: World) -> None:
    world.connect()
    egress = world.connect("d0e", 18)
    both = program(hops=(hop(), hop("d0e", 18, ingress=False)))
    world.controller.install(both)
    world.controller.install(program(hops=(hop(queued_ports=("d0i-dn",)),)))
    assert (egress.flows, egress.meters, egress.closed) == ({}, {}, True)
    assert {key.port for key in world.kernel.objects if isinstance(key, RootKey)} == {"d0i-dn"}
    assert world.controller.verify() == []


def test_packets_in_the_control_plane_are_counted_for_each_switch(world: World) -> None:
    switch = world.connect()
    world.controller.install(program())
    for _ in range(3):
        world.controller.packet_arrived(SimpleNamespace(msg=SimpleNamespace(datapath=switch)))
    health = world.controller.health()
    assert (health["packet_ins"], health["switches"]["d0i"]["packet_ins"]) == (3, 3)


def test_stray_errors_of_a_switch_are_shown(world: World) -> None:
    switch = world.connect()
    world.controller.install(program())
    world.controller.refused(SimpleNamespace(msg=SimpleNamespace(datapath=switch, xid=0, type=1, code=2)))
    assert world.controller.health()["errors"] == ["switch d0i: OFPET_BAD_REQUEST(1) OFPBRC_BAD_MULTIPART(2)"]


def test_counters_are_given_for_each_tenant(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic_control, "counters", lambda ports: {port: {} for port in ports})
    world.connect()
    world.controller.install(program(rule(1), rule(2, meter=None)))
    tenants = world.controller.counters()["tenants"]
    assert tenants["tenant-1"]["meters"]["d0i"] == {
        "in_packets": 5,
        "in_bytes": 5000,
        "dropped_packets": 2,
        "dropped_bytes": 2000,
    }
    assert tenants["tenant-2"]["meters"] == {}


def test_an_empty_domain_reads_back_empty(world: World) -> None:
    assert world.controller.verify() == []
    assert world.controller.read_back() == {"domain": "d0", "datapath": "userspace", "objects": {}, "tenants": {}}
    assert isinstance(world.controller._program, DomainProgram)
