"""Who runs where and before whom, and that a process which no longer does is named."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from testbed.emulation.placement import NICE, Placement, Role


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as waiting:
        yield waiting


@pytest.mark.parametrize("count", [4, 5, 8, 64])
def test_the_datapath_has_a_core_that_no_other_part_uses(count: int) -> None:
    places = Placement.on(range(count)).places
    others = frozenset().union(*(places[role].cores for role in (Role.SENDER, Role.CAPTURE, Role.SERVER)))
    assert len(places[Role.DATAPATH].cores) == 1
    assert not places[Role.DATAPATH].cores & others
    assert places[Role.DATAPATH].cores | others == frozenset(range(count))
    assert all(place.cores for place in places.values())


@pytest.mark.parametrize("count", [4, 5, 8, 64])
def test_servers_have_cores_of_their_own_where_there_are_enough(count: int) -> None:
    places = Placement.on(range(count)).places
    assert not places[Role.SERVER].cores & (places[Role.SENDER].cores | places[Role.DATAPATH].cores)


@pytest.mark.parametrize("cores", [{3}, {0, 1}, {1, 4, 6}])
def test_few_cores_are_shared_by_all(cores: set[int]) -> None:
    places = Placement.on(cores).places
    assert {place.cores for place in places.values()} == {frozenset(cores)}
    assert places[Role.DATAPATH].nice < places[Role.SENDER].nice < places[Role.CAPTURE].nice


def test_a_process_gets_the_place_of_its_role(process: subprocess.Popen[bytes]) -> None:
    placement = Placement.on(os.sched_getaffinity(0))
    placement.put(process.pid, Role.CAPTURE)
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == NICE[Role.CAPTURE]
    assert os.sched_getaffinity(process.pid) == placement.places[Role.CAPTURE].cores


@pytest.mark.parametrize(("placement", "role"), [(Placement(), Role.DATAPATH), (Placement.on([0]), None)])
def test_who_has_no_place_runs_like_any_other(
    process: subprocess.Popen[bytes], placement: Placement, role: Role | None
) -> None:
    placement.put(process.pid, role)
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == os.getpriority(os.PRIO_PROCESS, 0)
    assert os.sched_getaffinity(process.pid) == os.sched_getaffinity(0)


def test_whoever_lost_its_priority_is_named(process: subprocess.Popen[bytes]) -> None:
    placement = Placement.on(os.sched_getaffinity(0))
    placement.put(process.pid, Role.DATAPATH)
    seats = {"ovs-vswitchd": (process.pid, Role.DATAPATH)}
    assert placement.differences(seats) == ()
    os.setpriority(os.PRIO_PROCESS, process.pid, 0)
    assert placement.differences(seats) == ("ovs-vswitchd: found nice 0, expected -20",)


def test_a_process_that_has_ended_is_in_nobodys_way() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    assert Placement.on([0]).differences({"gone": (ended.pid, Role.SENDER)}) == ()
