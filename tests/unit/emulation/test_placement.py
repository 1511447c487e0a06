"""Who runs where and before whom, and that a process which no longer does is named."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.emulation.placement import NICE, Place, Placement, Role, require_limited
from testbed.errors import PreflightError

USABLE = sorted(os.sched_getaffinity(0))
several_cores = pytest.mark.skipif(len(USABLE) < 2, reason="a process can be elsewhere only where there are two cores")


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


@pytest.mark.parametrize("cores", [{0, 1}, {1, 4, 6}])
def test_of_few_cores_switch_and_senders_share_none_and_all_others_use_all(cores: set[int]) -> None:
    places = Placement.on(cores).places
    datapath = frozenset({max(cores)})
    assert places[Role.DATAPATH].cores == datapath
    assert places[Role.SENDER].cores == cores - datapath
    assert {places[role].cores for role in places.keys() - {Role.DATAPATH, Role.SENDER}} == {frozenset(cores)}


@pytest.mark.parametrize("cores", [{3}, {0, 1}, {1, 4, 6}, set(range(8))])
def test_the_switch_goes_before_senders_and_those_before_captures(cores: set[int]) -> None:
    places = Placement.on(cores).places
    assert places[Role.DATAPATH].nice < places[Role.SENDER].nice < places[Role.CAPTURE].nice


def test_one_core_is_shared_by_all() -> None:
    assert {place.cores for place in Placement.on({3}).places.values()} == {frozenset({3})}


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


@several_cores
def test_whoever_left_its_cores_is_named(process: subprocess.Popen[bytes]) -> None:
    first, *others = USABLE
    placement = Placement({Role.DATAPATH: Place(frozenset({first}), NICE[Role.DATAPATH])})
    placement.put(process.pid, Role.DATAPATH)
    seats = {"ovs-vswitchd": (process.pid, Role.DATAPATH)}
    assert placement.differences(seats) == ()
    os.sched_setaffinity(process.pid, others)
    found = ",".join(map(str, others))
    assert placement.differences(seats) == (f"ovs-vswitchd: found cores {found}, expected {first}",)


@several_cores
def test_one_thread_elsewhere_suffices(process: subprocess.Popen[bytes]) -> None:
    placement = Placement.on(USABLE[:2])
    program = "import sys, threading; threading.Thread(target=sys.stdin.read).start(); print(flush=True)"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as waiting:
        assert waiting.stdout is not None
        placement.put(waiting.pid, Role.SERVER)
        waiting.stdout.readline()
        assert placement.differences({"server": (waiting.pid, Role.SERVER)}) == ()
        _, second = sorted(int(thread.name) for thread in Path(f"/proc/{waiting.pid}/task").iterdir())
        os.sched_setaffinity(second, USABLE[:1])
        (named,) = placement.differences({"server": (waiting.pid, Role.SERVER)})
    assert named == f"server: found cores {USABLE[0]}, expected {USABLE[0]},{USABLE[1]}"


@several_cores
def test_a_ticker_has_a_thread_on_each_of_its_cores(process: subprocess.Popen[bytes]) -> None:
    placement = Placement.on(USABLE[:2])
    placement.put(process.pid, Role.TICKER)
    seats = {"stalls": (process.pid, Role.TICKER)}
    os.sched_setaffinity(process.pid, USABLE[1:2])
    assert placement.differences(seats) == ()
    assert Placement.on(USABLE[:1]).differences(seats) == (f"stalls: found cores {USABLE[1]}, expected {USABLE[0]}",)


def limits(folder: Path, runtime_us: int) -> Path:
    (folder / "sched_rt_runtime_us").write_text(f"{runtime_us}\n")
    (folder / "sched_rt_period_us").write_text("1000000\n")
    return folder


def test_what_real_time_processes_leave_to_others_is_known(tmp_path: Path) -> None:
    assert require_limited(limits(tmp_path, 950_000)) == "real-time processes may take 95% of a core"
    assert require_limited(tmp_path / "not there")


@pytest.mark.parametrize("runtime_us", [-1, 1_000_000])
def test_a_host_on_which_a_sender_could_take_a_whole_core_is_refused(tmp_path: Path, runtime_us: int) -> None:
    with pytest.raises(
        PreflightError, match=rf"found {runtime_us}, expected less than .* \(1000000\); senders"
    ) as caught:
        require_limited(limits(tmp_path, runtime_us))
    assert str(caught.value).endswith("run `sysctl -w kernel.sched_rt_runtime_us=950000`")


def test_a_process_that_has_ended_is_in_nobodys_way() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    assert Placement.on([0]).differences({"gone": (ended.pid, Role.SENDER)}) == ()
