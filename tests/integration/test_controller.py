"""The controller against a real Open vSwitch and the kernel's HTB, looked at with their own tools."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller.client import CallError
from controller.program import Meter
from tests.integration.controller_lab import (
    FRAME_BYTES,
    SERVER,
    Controlled,
    Lab,
    address,
    controller,
    laboratory,
    program,
    rule,
    wait_for,
    with_rate,
)

pytestmark = [pytest.mark.network, pytest.mark.untimed]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with laboratory() as made:
        yield made


@pytest.fixture
def controlled(lab: Lab) -> Iterator[Controlled]:
    with controller(lab) as started:
        yield started


def test_what_the_switch_and_the_kernel_show_is_what_the_program_says(lab: Lab, controlled: Controlled) -> None:
    controlled.client.install(program(rule(1, 8_000_000, limit_packets=77, meter=Meter(1, 6_000, 240))))

    meters = lab.ofctl("dump-meters", "d0i")
    assert re.search(r"meter=1 kbps burst stats bands=\s*type=drop rate=6000 burst_size=240", meters)
    flows = lab.ofctl("--no-stats", "--names", "dump-flows", "d0i")
    forward = 'cookie=0x1, priority=100,ip,in_port="d0i-up",nw_src=10.1.0.1,nw_dst=10.2.0.1 actions=meter:1,output:'
    assert forward + '"d0i-dn"' in flows
    assert "priority=0 actions=drop" in flows
    assert len(flows.strip().splitlines()) == 3
    for port in ("d0i-up", "d0i-dn"):
        classes = lab.tc(f"class show dev {port}")
        assert re.search(r"class htb 1:11 parent 1:1 leaf 11: prio 0 rate 8Mbit ceil 8Mbit burst 5000b", classes)
        assert re.search(r"class htb 1:1 root rate 1Gbit ceil 1Gbit", classes)
        assert "quantum 3000" in lab.tc(f"-d class show dev {port}")
        assert "qdisc pfifo_head_drop 11: parent 1:11 limit 77p" in lab.tc(f"qdisc show dev {port}")
    assert "match 0a010001/ffffffff at 12" in lab.tc("filter show dev d0i-dn")
    assert "match 0a010001/ffffffff at 16" in lab.tc("filter show dev d0i-up")
    assert controlled.client.verify() == []


def test_reading_back_gives_each_tenant_what_it_was_promised(controlled: Controlled) -> None:
    controlled.client.install(program(rule(1, 8_000_000, meter=Meter(1, 6_000, 240))))
    tenant = controlled.client.read_back()["tenants"]["tenant-1"]
    meter = {"flags": ["BURST", "KBPS", "STATS"], "band": "drop", "rate_kbps": 6_000, "burst_kbit": 240}
    assert tenant["meters"] == {"d0i": meter}
    assert tenant["smallest_rate_bps"] == 8_000_000
    assert tenant["queues"]["d0i-dn"] == {
        "minor": 0x11,
        "rate_bps": 8_000_000,
        "ceil_bps": 8_000_000,
        "burst_bytes": 5000,
        "quantum_bytes": 3000,
        "limit_packets": 100,
    }


def test_installing_the_same_program_again_sends_nothing(controlled: Controlled) -> None:
    first = controlled.client.install(program(rule(1), rule(2)))
    assert first["sent"]["openflow"] > 0
    assert first["sent"]["netlink"] > 0
    again = controlled.client.install(program(rule(1), rule(2)))
    assert again == {
        "added": [],
        "changed": [],
        "removed": [],
        "tenants": [],
        "sent": {"openflow": 0, "netlink": 0},
    }


def test_a_changed_rule_reprograms_only_itself(controlled: Controlled) -> None:
    controlled.client.install(program(rule(1), rule(2)))
    changed = with_rate(replace(rule(2), meter=Meter(2, 5_000, 100)), 6_000_000)
    result = controlled.client.install(program(rule(1), changed))
    assert result["tenants"] == ["tenant-2"]
    assert sorted(result["changed"]) == ["class 1:12 of d0i-dn", "class 1:12 of d0i-up", "meter 2 of d0i"]
    assert result["added"] == result["removed"] == []


def test_removing_a_rule_leaves_nothing_of_it_and_everything_of_the_others(lab: Lab, controlled: Controlled) -> None:
    controlled.client.install(program(rule(1), rule(2)))
    result = controlled.client.remove([2])
    assert result["tenants"] == []
    assert result["added"] == result["changed"] == []
    assert "meter=2" not in lab.ofctl("dump-meters", "d0i")
    assert "nw_src=10.1.0.2" not in lab.ofctl("dump-flows", "d0i")
    assert "1:12" not in lab.tc("class show dev d0i-dn")
    assert "1:12" not in lab.tc("filter show dev d0i-dn")
    assert controlled.client.verify() == []
    assert list(controlled.client.read_back()["tenants"]) == ["tenant-1"]


def test_removing_a_rule_that_is_not_there_is_an_error(controlled: Controlled) -> None:
    controlled.client.install(program(rule(1)))
    with pytest.raises(CallError, match=r"numbers \[7\] not found"):
        controlled.client.remove([7])


DRIFT = [
    (
        "a reservation lowered by a fifth",
        "tc class change dev d0i-dn parent 1:1 classid 1:11 htb rate 8mbit ceil 8mbit burst 5000 cburst 5000",
        ("class 1:11 of d0i-dn", "tenant-1", "1000000 (8000000 bit/s)", "1250000 (10000000 bit/s)"),
    ),
    (
        "a shorter queue",
        "tc qdisc change dev d0i-up parent 1:11 handle 11: pfifo_head_drop limit 3",
        ("leaf of class 1:11 of d0i-up", "tenant-1", "limit_packets 3", "limit_packets 100"),
    ),
    (
        "another kind of queue",
        "tc qdisc replace dev d0i-up parent 1:11 handle 77: bfifo limit 3000",
        ("leaf of class 1:11 of d0i-up", "tenant-1", "kind bfifo", "kind pfifo_head_drop"),
    ),
    (
        "a filter that is gone",
        "tc filter del dev d0i-dn parent 1: protocol ip prio 1 handle 1:1:800 u32",
        ("filter for 10.1.0.1 of d0i-dn", "tenant-1", "absent", "minor 17"),
    ),
    (
        "a filter of somebody else",
        "tc filter add dev d0i-dn parent 1: protocol ip prio 9 u32 match ip dport 9000 0xffff flowid 1:2",
        ("filter for u32 80100800 priority 9 of d0i-dn", "", "address unknown", "absent"),
    ),
    (
        "a class of somebody else",
        "tc class add dev d0i-dn parent 1:1 classid 1:99 htb rate 1mbit",
        ("class 1:99 of d0i-dn", "", "rate_bytes_per_s 125000", "absent"),
    ),
    (
        "a root that is gone",
        "tc qdisc del dev d0i-dn root",
        ("root qdisc of d0i-dn", "", "absent", "kind htb"),
    ),
    (
        "a meter that forgot its burst flag",
        "ovs-ofctl -O OpenFlow13 mod-meter d0i meter=1,kbps,stats,bands=type=drop,rate=900000",
        ("meter 1 of d0i", "tenant-1", "flags KBPS STATS", "flags BURST KBPS STATS"),
    ),
    (
        "a meter that is gone, and the flow that used it",
        "ovs-ofctl -O OpenFlow13 del-meter d0i meter=1",
        ("meter 1 of d0i", "tenant-1", "absent", "flags BURST KBPS STATS"),
    ),
    (
        "a deleted flow",
        "ovs-ofctl -O OpenFlow13 --strict del-flows d0i priority=100,ip,in_port=2,nw_src=10.2.0.1,nw_dst=10.1.0.1",
        ("ipv4_dst=10.1.0.1,ipv4_src=10.2.0.1", "tenant-1", "absent", "steps output:d0i-up"),
    ),
    (
        "a flow that goes around the meter",
        "ovs-ofctl -O OpenFlow13 mod-flows d0i ip,in_port=1,nw_src=10.1.0.1,nw_dst=10.2.0.1,actions=output:2",
        ("ipv4_dst=10.2.0.1,ipv4_src=10.1.0.1", "tenant-1", "steps output:d0i-dn", "steps meter:1 output:d0i-dn"),
    ),
    (
        "a flow of somebody else",
        "ovs-ofctl -O OpenFlow13 add-flow d0i priority=200,arp,actions=NORMAL",
        ("flow of d0i priority 200 eth_type=0x806", "", "output:NORMAL", "absent"),
    ),
]


@pytest.mark.parametrize(("command", "named"), [row[1:] for row in DRIFT], ids=[row[0] for row in DRIFT])
def test_a_change_behind_the_controllers_back_is_named_and_repaired(
    lab: Lab, controlled: Controlled, command: str, named: tuple[str, str, str, str]
) -> None:
    controlled.client.install(program(rule(1), rule(2)))
    assert controlled.client.verify() == []
    lab.run(*command.split())

    subject, tenant, found, expected = named
    differences = controlled.client.verify()
    about = [d for d in differences if subject in d["object"]]
    assert [d["tenant"] for d in about] == [tenant]
    assert found in about[0]["found"]
    assert expected in about[0]["expected"]

    controlled.client.install(program(rule(1), rule(2)))
    assert controlled.client.verify() == []


def test_set_queue_on_the_userspace_datapath_reads_back_well_and_is_caught_by_the_counters(
    lab: Lab, controlled: Controlled
) -> None:
    controlled.client.install(program(rule(1), datapath="kernel"))
    assert "set_queue:16" in lab.ofctl("dump-flows", "d0i")
    assert controlled.client.verify() == []
    lab.send("d0i-up", address(1), SERVER, 5)
    wait_for(lambda: controlled.unclassified("d0i-dn")["sent_packets"] == 5, "5 packets in the unclassified class")
    assert controlled.queue("tenant-1", "d0i-dn")["sent_packets"] == 0


def test_a_hundred_tenants_each_have_their_own_class_in_both_directions(lab: Lab, controlled: Controlled) -> None:
    tenants = range(200, 300)
    controlled.client.install(program(*(rule(number, 1_000_000) for number in tenants)))
    # Slowly: so many at once are more than the switch's socket holds while somebody else has the processor.
    lab.send_mixed("d0i-up", [(address(number), SERVER) for number in tenants], pause_s=0.002)
    lab.send_mixed("d0i-dn", [(SERVER, address(number)) for number in [*tenants, *tenants]], pause_s=0.002)

    def counted() -> dict[str, list[int]]:
        found = controlled.client.counters()["tenants"].values()
        return {port: [t["queues"][port]["sent_packets"] for t in found] for port in ("d0i-dn", "d0i-up")}

    expected = {"d0i-dn": [1] * len(tenants), "d0i-up": [2] * len(tenants)}
    wait_for(lambda: counted() == expected, "one packet forth and two back for each tenant, in its own class")
    assert controlled.unclassified("d0i-dn")["sent_packets"] == 0
    assert controlled.unclassified("d0i-up")["sent_packets"] == 0


def test_a_flood_is_dropped_in_the_tenants_own_meter_to_the_packet(lab: Lab, controlled: Controlled) -> None:
    metered = rule(1, 500_000_000, limit_packets=1000, meter=Meter(1, 80, 80))
    controlled.client.install(program(metered, rule(2)))
    lab.send("d0i-up", address(1), SERVER, 60)
    lab.send("d0i-up", address(2), SERVER, 20)
    wait_for(lambda: controlled.queue("tenant-2", "d0i-dn")["sent_packets"] == 20, "tenant 2's packets")
    wait_for(lambda: controlled.meter("tenant-1", "d0i")["in_packets"] == 60, "tenant 1's packets in its meter")
    meter, queue = controlled.meter("tenant-1", "d0i"), controlled.queue("tenant-1", "d0i-dn")
    assert meter["in_bytes"] == 60 * FRAME_BYTES
    assert meter["dropped_packets"] >= 40
    assert queue["sent_packets"] + meter["dropped_packets"] == 60
    assert controlled.meter("tenant-2", "d0i")["dropped_packets"] == 0


def test_an_overloaded_queue_drops_in_the_tenants_own_leaf_to_the_packet(lab: Lab, controlled: Controlled) -> None:
    controlled.client.install(program(rule(1, 80_000, limit_packets=10), rule(2)))
    lab.send("d0i-up", address(1), SERVER, 50)
    lab.send("d0i-up", address(2), SERVER, 20)
    wait_for(lambda: controlled.queue("tenant-2", "d0i-dn")["sent_packets"] == 20, "tenant 2's packets")

    def accounted() -> int:
        queue = controlled.queue("tenant-1", "d0i-dn")
        return queue["sent_packets"] + queue["dropped_packets"] + queue["backlog_packets"]

    wait_for(lambda: accounted() == 50, "every packet of tenant 1 sent, queued or counted as dropped")
    assert controlled.queue("tenant-1", "d0i-dn")["dropped_packets"] > 0
    assert controlled.queue("tenant-2", "d0i-dn")["dropped_packets"] == 0


def test_an_overload_takes_no_packet_of_another_tenant_in_the_same_batch_with_it(
    lab: Lab, controlled: Controlled
) -> None:
    controlled.client.install(program(rule(1, 80_000, limit_packets=4), rule(2, 100_000_000)))
    lab.send_mixed("d0i-up", [(address(1 + index % 2), SERVER) for index in range(60)])
    wait_for(lambda: controlled.meter("tenant-2", "d0i")["in_packets"] == 30, "tenant 2's packets in its meter")
    wait_for(lambda: controlled.queue("tenant-2", "d0i-dn")["sent_packets"] == 30, "all packets of tenant 2")
    assert controlled.queue("tenant-1", "d0i-dn")["dropped_packets"] > 0


def test_an_installation_that_waited_for_its_switch_leaves_nothing_to_do(lab: Lab, controlled: Controlled) -> None:
    lab.vsctl("del-controller", "d0i")
    wait_for(lambda: not controlled.client.health()["unclaimed"], "nobody connected")
    connecting = threading.Timer(0.3, controlled.connect, ("d0i",))
    connecting.start()
    controlled.client.install(program(rule(1)))
    connecting.join()
    # Whatever it still meant to do would be done after this, and take the flow for one of an earlier program.
    os.kill(controlled.process.pid, signal.SIGSTOP)
    lab.ofctl("add-flow", "d0i", "priority=200,arp,actions=NORMAL")
    os.kill(controlled.process.pid, signal.SIGCONT)
    assert [d["found"] for d in controlled.client.verify()] == ["cookie 0, steps output:NORMAL"]


def test_a_packet_without_a_flow_is_dropped_and_does_not_reach_the_controller(lab: Lab, controlled: Controlled) -> None:
    controlled.client.install(program(rule(1)))
    with lab.listening("d0i-dn") as receiver:
        lab.send("d0i-up", address(9), SERVER, 5)
        lab.send("d0i-up", address(1), SERVER, 1)
        wait_for(lambda: controlled.queue("tenant-1", "d0i-dn")["sent_packets"] == 1, "the packet that has a flow")
        assert receiver.recv(2048)[26:30] == bytes([10, 1, 0, 1])
        with pytest.raises(BlockingIOError):
            receiver.recv(2048)
    assert controlled.client.health()["packet_ins"] == 0


def test_a_packet_sent_to_the_controller_is_counted(lab: Lab, controlled: Controlled) -> None:
    controlled.expected_packet_ins = True
    controlled.client.install(program(rule(1)))
    lab.ofctl("add-flow", "d0i", "priority=200,ip,nw_src=10.9.9.9,actions=CONTROLLER:128")
    lab.send("d0i-up", "10.9.9.9", SERVER, 3)
    wait_for(lambda: " n_packets=3," in lab.ofctl("dump-flows", "d0i", "ip,nw_src=10.9.9.9"), "three packets")
    wait_for(lambda: controlled.client.health()["packet_ins"] == 3, "three packet-ins")
    assert controlled.client.health()["switches"]["d0i"]["packet_ins"] == 3


def test_a_float_rate_is_refused_before_anything_is_sent(lab: Lab, controlled: Controlled) -> None:
    data = program(rule(1)).to_dict()
    data["rules"][0]["queue"]["rate_bps"] = 5000000.0
    with pytest.raises(CallError, match=r"rate_bps: 5000000\.0 is not an integer") as refused:
        controlled.client.call("install", program=data)
    assert refused.value.kind == "program"
    assert "htb" not in lab.tc("qdisc show dev d0i-dn")


def test_a_switch_that_refuses_a_message_fails_the_call_and_keeps_the_previous_program(
    lab: Lab, controlled: Controlled
) -> None:
    table = ("--id=@table", "create", "Flow_Table", "flow_limit=4", "overflow_policy=refuse")
    lab.vsctl("--", *table, "--", "set", "bridge", "d0i", "flow_tables:0=@table")
    try:
        controlled.client.install(program(rule(1)))
        with pytest.raises(CallError) as refused:
            controlled.client.install(program(rule(1), rule(2)))
        assert refused.value.kind == "switch"
        flow = "flow of d0i priority 100 eth_type=0x800,in_port=d0i-dn,ipv4_dst=10.1.0.2,ipv4_src=10.2.0.1"
        assert refused.value.problems == (
            f"{flow}: the switch answered OFPET_FLOW_MOD_FAILED(5) OFPFMFC_TABLE_FULL(1)",
        )
        assert controlled.client.verify() == []
        assert controlled.client.health()["rules"] == 1
        assert "1:12" not in lab.tc("class show dev d0i-dn")
    finally:
        lab.vsctl("clear", "bridge", "d0i", "flow_tables")


def test_a_port_that_is_not_there_fails_the_call_and_names_the_port(controlled: Controlled) -> None:
    controlled.client.install(program(rule(1)))
    there = program(rule(1))
    elsewhere = replace(there, hops=(replace(there.hops[0], queued_ports=("d0i-nowhere",)),))
    with pytest.raises(CallError) as refused:
        controlled.client.install(elsewhere)
    assert refused.value.kind == "kernel"
    assert refused.value.problems == ("port d0i-nowhere: not found in this network namespace",)
    assert controlled.client.verify() == []


def test_a_root_qdisc_of_somebody_else_is_not_taken_over(lab: Lab, controlled: Controlled) -> None:
    lab.tc("qdisc add dev d0i-dn root handle 7: tbf rate 1mbit burst 5k limit 9k")
    with pytest.raises(CallError, match="root qdisc of d0i-dn: found tbf 7: of somebody else"):
        controlled.client.install(program(rule(1)))
    assert "tbf 7:" in lab.tc("qdisc show dev d0i-dn")


def test_a_switch_that_comes_back_empty_gets_its_state_again(lab: Lab, controlled: Controlled) -> None:
    controlled.client.install(program(rule(1)))
    lab.vsctl("del-controller", "d0i")
    wait_for(lambda: not controlled.connected("d0i"), "the disconnection to be noticed")
    assert [d["object"] for d in controlled.client.verify()] == ["switch d0i"]
    lab.ofctl("del-flows", "d0i")
    lab.ofctl("del-meters", "d0i")
    controlled.connect("d0i")
    wait_for(lambda: controlled.client.verify() == [], "flows and meters to be back")
    assert controlled.client.health()["switches"]["d0i"]["connections"] == 2
    assert "meter:1" in lab.ofctl("dump-flows", "d0i")


def test_several_switches_follow_one_program_and_only_the_ingress_has_meters(lab: Lab, controlled: Controlled) -> None:
    controlled.connect("d0e")
    controlled.client.install(program(rule(1), bridges=("d0i", "d0e")))
    assert "meter=1" in lab.ofctl("dump-meters", "d0i")
    assert "meter=1" not in lab.ofctl("dump-meters", "d0e")
    lab.send("d0e-up", address(1), SERVER, 3)
    wait_for(lambda: controlled.queue("tenant-1", "d0e-dn")["sent_packets"] == 3, "packets through the second switch")
    assert controlled.client.verify() == []


def test_a_hop_that_leaves_the_program_is_emptied_and_let_go(lab: Lab, controlled: Controlled) -> None:
    controlled.connect("d0e")
    controlled.client.install(program(rule(1), bridges=("d0i", "d0e")))
    controlled.client.install(program(rule(1)))
    assert lab.ofctl("dump-flows", "d0e").count("priority=") == 0
    assert "htb" not in lab.tc("qdisc show dev d0e-dn")
    assert controlled.client.verify() == []


def test_an_unknown_switch_is_turned_away(lab: Lab, controlled: Controlled) -> None:
    controlled.client.install(program(rule(1)))
    lab.add_bridge("stranger", 0x99)
    try:
        controlled.connect("stranger")
        wait_for(lambda: controlled.client.health()["refused"].get(str(0x99), 0) > 0, "the stranger to be refused")
        assert list(controlled.client.health()["switches"]) == ["d0i"]
    finally:
        lab.vsctl("del-br", "stranger")


def test_the_northbound_socket_is_its_owners_alone(controlled: Controlled) -> None:
    assert stat.S_IMODE(controlled.client.path.stat().st_mode) == 0o600


def test_a_second_controller_on_the_same_address_says_so_and_ends(lab: Lab, controlled: Controlled) -> None:
    host, port = controlled.ready["listen"]  # type: ignore[misc]
    command = [sys.executable, "-m", "controller", "--domain", "d0", "--listen", f"{host}:{port}"]
    done = subprocess.run(
        ["ip", "netns", "exec", lab.namespace, *command, "--socket", str(lab.directory / "second.sock")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 2
    assert "controller of d0: cannot listen" in done.stderr
    assert done.stdout == ""
