"""The same application on both implementations of the Ryu API: os-ken here, Ryu in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller.client import CallError
from controller.program import Meter
from tests.integration.controller_lab import (
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

IMPLEMENTATIONS = ("os_ken 4.", "ryu 4.34")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with laboratory() as made:
        yield made


@pytest.fixture(scope="module")
def pythons() -> dict[str, str]:
    """The interpreter for each implementation; Ryu's environment is made if it is not there."""
    script = Path(__file__).parents[2] / "scripts" / "ryu"
    done = subprocess.run([script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}: {done.stderr}"
    return {"os_ken 4.": sys.executable, "ryu 4.34": done.stdout.splitlines()[-1]}


@pytest.fixture(params=IMPLEMENTATIONS)
def controlled(request: pytest.FixtureRequest, lab: Lab, pythons: dict[str, str]) -> Iterator[Controlled]:
    with controller(lab, python=pythons[request.param]) as started:
        assert str(started.ready["api"]).startswith(request.param)
        yield started


def test_both_leave_switch_and_kernel_in_the_same_state(lab: Lab, pythons: dict[str, str]) -> None:
    wanted = program(rule(1), replace(rule(2), meter=None), rule(3, 7_654_321, meter=Meter(3, 1_234, 56)))
    states = []
    for name in IMPLEMENTATIONS:
        with controller(lab, python=pythons[name]) as started:
            started.client.install(wanted)
            assert started.client.verify() == []
            states.append(started.client.read_back())
    assert states[0] == states[1]


def test_changes_are_differences(controlled: Controlled) -> None:
    controlled.client.install(program(rule(1), rule(2)))
    assert controlled.client.install(program(rule(1), rule(2)))["sent"] == {"openflow": 0, "netlink": 0}
    changed = controlled.client.install(program(rule(1), with_rate(rule(2), 6_000_000)))
    assert changed["changed"] == ["class 1:12 of d0i-up", "class 1:12 of d0i-dn"]
    controlled.client.remove([2])
    assert list(controlled.client.read_back()["tenants"]) == ["tenant-1"]


def test_packets_are_metered_queued_and_counted(lab: Lab, controlled: Controlled) -> None:
    controlled.client.install(program(rule(1)))
    lab.send("d0i-up", address(1), SERVER, 20)
    wait_for(lambda: controlled.queue("tenant-1", "d0i-dn")["sent_packets"] == 20, "20 packets in the tenant's class")
    assert controlled.meter("tenant-1", "d0i")["in_packets"] == 20


def test_drift_is_named(lab: Lab, controlled: Controlled) -> None:
    controlled.client.install(program(rule(1)))
    lab.tc("class change dev d0i-dn parent 1:1 classid 1:11 htb rate 8mbit ceil 8mbit burst 5k cburst 5k")
    lab.ofctl("del-meter", "d0i", "meter=1")
    named = [difference["object"] for difference in controlled.client.verify()]
    assert {"class 1:11 of d0i-dn", "meter 1 of d0i"} <= set(named)


def test_a_switch_that_comes_back_empty_gets_its_state_again(lab: Lab, controlled: Controlled) -> None:
    controlled.client.install(program(rule(1)))
    lab.vsctl("del-controller", "d0i")
    wait_for(lambda: not controlled.connected("d0i"), "the disconnection to be noticed")
    lab.ofctl("del-flows", "d0i")
    controlled.connect("d0i")
    wait_for(lambda: controlled.client.verify() == [], "flows and meters to be back")


def test_an_error_of_the_switch_fails_the_call(lab: Lab, controlled: Controlled) -> None:
    table = ("--id=@table", "create", "Flow_Table", "flow_limit=1", "overflow_policy=refuse")
    lab.vsctl("--", *table, "--", "set", "bridge", "d0i", "flow_tables:0=@table")
    try:
        with pytest.raises(CallError, match="OFPFMFC_TABLE_FULL"):
            controlled.client.install(program(rule(1)))
    finally:
        lab.vsctl("clear", "bridge", "d0i", "flow_tables")


def test_packets_in_the_control_plane_are_counted(lab: Lab, controlled: Controlled) -> None:
    controlled.expected_packet_ins = True
    controlled.client.install(program(rule(1)))
    lab.ofctl("add-flow", "d0i", "priority=200,ip,nw_src=10.9.9.9,actions=CONTROLLER:128")
    lab.send("d0i-up", "10.9.9.9", SERVER, 3)
    wait_for(lambda: controlled.client.health()["packet_ins"] == 3, "three packet-ins")


def test_a_signal_ends_the_process_and_leaves_what_it_installed(lab: Lab, pythons: dict[str, str]) -> None:
    for python in pythons.values():
        with controller(lab, python=python, ended_by_the_test=True) as started:
            started.client.install(program(rule(1)))
            started.process.terminate()
            assert started.process.wait(30) == 0
            assert not started.client.path.exists()
            assert "meter:1" in lab.ofctl("dump-flows", "d0i")
