"""What a run asks of the host's disk and memory before it changes anything."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.emulation import packet_filter
from testbed.errors import FidelityError, PreflightError
from testbed.run import faults, room
from testbed.run.preflight import MOST_TENANTS, require_few, require_memory, require_room, require_sender
from testbed.run.requests import require_warm_up
from testbed.scenario.faults import Fault, FaultKind
from testbed.scenario.loader import load
from testbed.scenario.model import Datapath, Scenario
from testbed.traffic import nghttp2

DEMO = Path(__file__).parents[3] / "topologies" / "demo.yaml"
SMOKE = Path(__file__).parents[3] / "topologies" / "smoke.yaml"
FAULTS = Path(__file__).parents[3] / "topologies" / "faults.yaml"


@pytest.fixture
def smoke() -> Scenario:
    return load(SMOKE)


def meminfo(folder: Path, gib: float) -> Path:
    path = folder / "meminfo"
    path.write_text(f"MemTotal:       99999999 kB\nMemAvailable:   {round(gib * 2**20)} kB\n", encoding="ascii")
    return path


def test_a_small_scenario_fits_where_a_hundred_tenants_do_not(smoke: Scenario, tmp_path: Path) -> None:
    require_memory(smoke, meminfo=meminfo(tmp_path, 4))
    crowd = replace(smoke, tenants=tuple(replace(smoke.tenants[0], name=f"t{n}") for n in range(100)))
    with pytest.raises(
        PreflightError, match=r"memory: 4\.29 GB available, expected at least 11\.\d\d GB for 100 tenants"
    ):
        require_memory(crowd, meminfo=meminfo(tmp_path, 4))


def test_an_hour_needs_more_memory_than_a_minute(smoke: Scenario, tmp_path: Path) -> None:
    require_memory(replace(smoke, duration_s=60.0), meminfo=meminfo(tmp_path, 8))
    with pytest.raises(PreflightError, match="shorten the window"):
        require_memory(replace(smoke, duration_s=3600.0), meminfo=meminfo(tmp_path, 8))


def test_a_slowed_run_needs_no_more_than_the_original(smoke: Scenario, tmp_path: Path) -> None:
    hour = replace(smoke, duration_s=3600.0)
    require_memory(replace(hour, slow_down=60.0), meminfo=meminfo(tmp_path, 8))


def test_a_full_disk_is_named_with_what_captures_need(
    smoke: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(PreflightError, match=r"10 MB free, captures of 8 s may need 54 MB"):
        require_room(tmp_path / "not" / "made" / "yet", smoke, windows=1)
    assert not (tmp_path / "not").exists()


def test_a_tenant_whose_requests_all_come_after_the_warm_up_is_named() -> None:
    demo = load(DEMO)
    require_warm_up(demo)
    with pytest.raises(PreflightError, match=r"tenant vision: none of its requests is due in the warm-up of 0\.0001 s"):
        require_warm_up(replace(demo, warmup_s=1e-4))


def test_more_tenants_than_a_network_carries_are_referred_to_the_simulator(smoke: Scenario) -> None:
    crowd = tuple(replace(smoke.tenants[0], name=f"t{n}") for n in range(MOST_TENANTS + 1))
    require_few(replace(smoke, tenants=crowd[1:]))
    with pytest.raises(
        PreflightError, match="tenants: found 501, expected at most 500 on a network; `testbed simulate`"
    ):
        require_few(replace(smoke, tenants=crowd))


def test_faults_that_a_kernel_cannot_do_are_named_with_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = load(FAULTS)
    monkeypatch.setattr(packet_filter, "ingress_available", lambda: False)
    faults.require(scenario, Datapath.USERSPACE, Path())
    with pytest.raises(PreflightError) as caught:
        faults.require(scenario, Datapath.KERNEL, Path())
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["fault loss", "fault detour"]
    assert all("load them (modprobe -a sch_ingress cls_bpf act_gact)" in problem for problem in caught.value.problems)
    monkeypatch.setattr(packet_filter, "ingress_available", lambda: True)
    faults.require(scenario, Datapath.KERNEL, Path())


FULL = Fault("full", FaultKind.DISK_FULL, at_s=1.0, for_s=0.0, recovery_s=1.0)


@pytest.mark.parametrize(("size", "found"), [(2**30, "one that holds /"), (2**30 + 1, "one of 1,074 MB")])
def test_no_disk_is_filled_that_is_large_or_has_anything_but_runs_on_it(
    size: int, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smoke: Scenario
) -> None:
    monkeypatch.setattr(room, "_size_bytes", lambda _folder: size)
    with pytest.raises(PreflightError, match=f"fault full: .*/runs: the file system .* is to be filled: found {found}"):
        faults.require(replace(smoke, faults=(FULL,)), Datapath.USERSPACE, tmp_path / "runs")


def test_a_disk_that_became_large_is_not_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_descriptor: int, _offset: int, _length: int) -> None:
        # Whatever is wrong with it, this test takes no room.
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", refused)
    monkeypatch.setattr(room, "_size_bytes", lambda _folder: 2**30 + 1)
    with room.filling(tmp_path) as fill, pytest.raises(FidelityError, match=r"is to be filled: found one of 1,"):
        fill()


def test_who_sends_requests_needs_the_library_that_does(monkeypatch: pytest.MonkeyPatch, smoke: Scenario) -> None:
    def missing() -> None:
        raise OSError("libnghttp2.so.14 cannot be loaded (no such file); install the package libnghttp2-14")

    monkeypatch.setattr(nghttp2, "require", missing)
    require_sender(smoke)
    with pytest.raises(PreflightError, match=r"tenants that send requests: .* install the package libnghttp2-14"):
        require_sender(load(DEMO))


def test_captures_are_provided_for_at_every_border_and_whole_where_clients_send_requests(
    smoke: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = load(DEMO)
    asking = next(tenant for tenant in demo.tenants if tenant.requests is not None)
    packets = 8 * 60_000 * 112  # a second, over all borders, of 96 B and their headers
    for scenario, needed in (
        (smoke, packets),
        (replace(smoke, slow_down=2.0), packets / 2),
        (replace(demo, warmup_s=3.0, duration_s=5.0, tenants=(asking,)), packets + demo.domains[0].link_rate_bps),
    ):
        for short in (-2, 2):
            free = shutil.disk_usage(tmp_path)._replace(free=int(needed) - short)
            monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: free)
            with pytest.raises(PreflightError, match="captures of 8 s") if short > 0 else nullcontext():
                require_room(tmp_path, scenario, windows=1)
            monkeypatch.undo()


@pytest.mark.parametrize("below", ["", "runs"])
def test_a_file_where_the_folder_is_to_be_is_named_before_anything_is_built(
    smoke: Scenario, tmp_path: Path, below: str
) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    with pytest.raises(PreflightError, match=f"found {taken}, which is no folder; choose another folder with --out"):
        require_room(taken / below, smoke, windows=1)
