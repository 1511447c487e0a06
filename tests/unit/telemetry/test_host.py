from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from testbed.errors import FidelityError
from testbed.telemetry import host

FILES = {
    "proc/stat": (
        "cpu  30 0 30 140 0 0 0 0 0 0\ncpu0 10 1 10 70 5 1 1 2 9 0\ncpu1 20 0 20 50 0 0 0 10 0 0\nintr 5 6\n"
    ),
    "proc/pressure/cpu": "some avg10=1.17 avg60=0.95 avg300=0.38 total=5000\nfull avg10=0.00 avg60=0.00 total=0\n",
    "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=70\nfull avg10=0.00 avg60=0.00 total=30\n",
    "proc/loadavg": "0.50 0.40 0.30 2/105 10898\n",
    "proc/net/softnet_stat": "0000a 00000002 0 0\n0000b 00000010 0 0\n",
    "proc/sys/net/core/rmem_max": "4194304\n",
    "proc/modules": "veth 45056 0 - Live 0x0\nopenvswitch 200704 4 nf_nat, Live 0x0\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu hypervisor avx\n",
    "proc/meminfo": "MemTotal:       1000 kB\n",
    "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n",
}
UNIFIED = {
    "proc/self/cgroup": "0::/run/job\n",
    "sys/fs/cgroup/run/job/cpu.stat": "usage_usec 9\nnr_throttled 2\nthrottled_usec 300\n",
    "sys/fs/cgroup/run/cpu.stat": "usage_usec 9\nnr_throttled 1\nthrottled_usec 40\n",
    "sys/fs/cgroup/cpu.stat": "usage_usec 9\n",
}
LEGACY = {
    "proc/self/cgroup": "4:memory:/job\n1:cpu,cpuacct:/job\n0::/\n",
    "sys/fs/cgroup/cpu,cpuacct/job/cpu.stat": "nr_periods 9\nnr_throttled 2\nthrottled_time 7000\n",
    "sys/fs/cgroup/memory/job/cpu.stat": "throttled_time 99\n",
}


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_running_totals_are_read_from_the_kernels_files(tmp_path: Path) -> None:
    found = host.snapshot(root=tree(tmp_path, FILES))
    assert found.cores == (host.CoreTimes(0, 100, 75, 2), host.CoreTimes(1, 100, 50, 10))
    assert found.some_us == {"cpu": 5000, "memory": 70}
    assert found.full_us == {"cpu": 0, "memory": 30}
    assert found.load == (0.5, 0.4, 0.3)
    assert found.backlog_drops == 18
    assert found.settings == {"net.core.rmem_max": "4194304"}
    assert found.modules == ("openvswitch", "veth")


@pytest.mark.parametrize(
    ("files", "expected_ns"), [(UNIFIED, 340_000), (LEGACY, 7000), ({}, 0)], ids=["unified", "legacy", "no cgroups"]
)
def test_throttling_is_summed_over_the_control_groups_above_us(
    tmp_path: Path, files: dict[str, str], expected_ns: int
) -> None:
    assert host.snapshot(root=tree(tmp_path, FILES | files)).throttled_ns == expected_ns


BEFORE = host.Snapshot(
    monotonic_ns=1_000_000_000,
    clock_offset_ns=500,
    cores=(host.CoreTimes(0, 100, 50, 0), host.CoreTimes(1, 100, 50, 0)),
    throttled_ns=0,
    some_us={"cpu": 100, "io": 5},
    full_us={"cpu": 0, "io": 5},
    load=(0.0, 0.0, 0.0),
    backlog_drops=3,
    socket_drops={("d1i-up", 7): 10, ("d1i-up", 8): 0, ("d1i-dn", 9): 4},
    settings={"a": "1", "b": "2", "c": "3"},
)


def test_the_difference_of_two_snapshots_is_in_shares_of_the_time_between_them() -> None:
    after = dataclasses.replace(
        BEFORE,
        monotonic_ns=3_000_000_000,
        clock_offset_ns=-1500,
        cores=(host.CoreTimes(0, 300, 200, 4), host.CoreTimes(1, 300, 60, 0)),
        throttled_ns=20_000_000,
        some_us={"cpu": 500_100, "io": 5},
        full_us={"cpu": 0, "io": 2005},
        backlog_drops=5,
        socket_drops={("d1i-up", 7): 13, ("d1i-up", 8): 1, ("d1i-dn", 99): 1000},
        settings={"a": "1", "b": "9", "d": "4"},
    )
    change = host.between(BEFORE, after)
    assert change.elapsed_s == 2.0
    assert change.idle_share == {0: 0.75, 1: 0.05}
    assert change.steal_share == 0.01
    assert change.throttled_share == 0.01
    assert change.some_share == {"cpu": 0.25, "io": 0.0}
    assert change.full_share == {"cpu": 0.0, "io": 0.001}
    assert change.clock_step_s == -2e-6
    assert change.backlog_drops == 2
    assert change.socket_drops == {"d1i-up": 4}
    assert change.settings == ("b was 2 and is 9", "c was 3 and is not there", "d was not there and is 4")


def test_a_kernel_without_pressure_information_is_no_error(tmp_path: Path) -> None:
    files = {name: text for name, text in FILES.items() if "pressure" not in name}
    assert host.snapshot(root=tree(tmp_path, files)).some_us == {}


def test_the_fingerprint_tells_what_kind_of_host_this_is_and_names_none(tmp_path: Path) -> None:
    found = host.fingerprint(root=tree(tmp_path, FILES))
    assert (
        found.items()
        >= {
            "system": "Debian GNU/Linux 12 (bookworm)",
            "cpu_model": "AMD EPYC",
            "cpu_count": 2,
            "cpu_governor": "performance",
            "virtual": True,
            "memory_bytes": 1_024_000,
            "clocksource": "tsc",
        }.items()
    )
    assert os.uname().nodename not in map(str, found.values())


def test_a_fingerprint_says_unknown_rather_than_fail(tmp_path: Path) -> None:
    found = host.fingerprint(root=tmp_path)
    assert (found["system"], found["cpu_model"], found["virtual"]) == ("unknown", "unknown", False)


def test_the_clock_offset_joins_the_two_clocks() -> None:
    assert abs(host.clock_offset_ns() - host.clock_offset_ns()) < 1_000_000


def test_a_tool_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "ss"
    tool.write_text("#!/bin/sh\necho 'ss: error while loading shared libraries: libtirpc.so.3' >&2\nexit 127\n")
    tool.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FidelityError, match=r"`ss .*` failed with status 127: ss: error while loading .*libtirpc"):
        host.snapshot(["eth0"])
