"""What the host was doing, as the kernel counts it: a snapshot before a window, one after, and the difference.

Snapshots only read. They hold running totals (CPU times, pressure, throttling, drops), the offset between the two
clocks that a run uses, and the settings that shape packets; `between` turns two of them into what happened in between.
How much of that is tolerable is for `testbed.telemetry.fidelity` to say.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.errors import FidelityError

PRESSURES = ("cpu", "memory", "io")

SYSCTLS = (
    "kernel/sched_rt_runtime_us",
    "kernel/timer_migration",
    "net/core/default_qdisc",
    "net/core/netdev_max_backlog",
    "net/core/rmem_default",
    "net/core/rmem_max",
    "net/core/wmem_default",
    "net/core/wmem_max",
    "net/ipv4/tcp_congestion_control",
    "net/ipv4/tcp_slow_start_after_idle",
)
"""Settings that change what a sender, a queue or a switch does to a packet; those a kernel lacks are left out."""

OFFLOADS = (
    "rx-checksumming",
    "tx-checksumming",
    "tcp-segmentation-offload",
    "generic-segmentation-offload",
    "generic-receive-offload",
)

_ROOT = Path("/")
_CLOCK_READINGS = 16
_TOOL_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class CoreTimes:
    """CPU time of one core since boot, in the kernel's ticks."""

    core: int
    total: int
    idle: int
    steal: int


@dataclass(frozen=True)
class Snapshot:
    """Running totals and settings at one moment.

    Attributes:
        monotonic_ns: CLOCK_MONOTONIC when it was taken.
        clock_offset_ns: CLOCK_REALTIME minus CLOCK_MONOTONIC.
        cores: CPU times, one entry per core.
        throttled_ns: How long this process's control groups were kept from running.
        some_us: Per resource, how long some task waited for it; empty where the kernel has no pressure information.
        full_us: Per resource, how long all tasks waited for it.
        load: Load averages over 1, 5 and 15 minutes.
        backlog_drops: Packets dropped because a core's input queue was full.
        socket_drops: Packets dropped because a packet socket's buffer was full, by interface and inode.
        settings: Sysctls, offloads and queueing disciplines by name.
        modules: Kernel modules that are loaded.
    """

    monotonic_ns: int
    clock_offset_ns: int
    cores: tuple[CoreTimes, ...]
    throttled_ns: int
    some_us: Mapping[str, int]
    full_us: Mapping[str, int]
    load: tuple[float, float, float]
    backlog_drops: int
    socket_drops: Mapping[tuple[str, int], int]
    settings: Mapping[str, str]
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """What happened between two snapshots; shares are of the elapsed time.

    Attributes:
        elapsed_s: Time between them.
        idle_share: Per core, the share of its time in which it had nothing to do.
        steal_share: Share of all cores' time that the hypervisor gave to somebody else.
        throttled_share: Share in which this process's control groups were kept from running.
        some_share: Per resource, the share in which some task waited for it.
        full_share: Per resource, the share in which all tasks waited for it.
        clock_step_s: How much CLOCK_REALTIME moved against CLOCK_MONOTONIC.
        backlog_drops: Packets dropped because a core's input queue was full.
        socket_drops: Per interface, packets dropped because a packet socket's buffer was full; sockets that were not
            there all the time are left out.
        settings: Sentences on the settings that are not what they were.
    """

    elapsed_s: float
    idle_share: Mapping[int, float]
    steal_share: float
    throttled_share: float
    some_share: Mapping[str, float]
    full_share: Mapping[str, float]
    clock_step_s: float
    backlog_drops: int
    socket_drops: Mapping[str, int]
    settings: tuple[str, ...]


def snapshot(interfaces: Sequence[str] = (), *, root: Path = _ROOT) -> Snapshot:
    """Reads the host as it is.

    Args:
        interfaces: Interfaces of the calling thread's network namespace whose offloads, queueing disciplines and
            packet sockets count.
        root: Where `proc` and `sys` are.

    Raises:
        FidelityError: `ethtool`, `ss` or `tc` is missing or knows no such interface.
    """
    pressure = {name: _pressure(root / "proc/pressure" / name) for name in PRESSURES}
    load = _words(root / "proc/loadavg")
    return Snapshot(
        monotonic_ns=time.monotonic_ns(),
        clock_offset_ns=clock_offset_ns(),
        cores=_core_times(root),
        throttled_ns=_throttled_ns(root),
        some_us={name: value["some"] for name, value in pressure.items() if "some" in value},
        full_us={name: value["full"] for name, value in pressure.items() if "full" in value},
        load=(float(load[0]), float(load[1]), float(load[2])),
        backlog_drops=_backlog_drops(root),
        socket_drops=_socket_drops(interfaces),
        settings=_sysctls(root) | _offloads(interfaces) | _queueing_disciplines(interfaces),
        modules=tuple(sorted(line.split()[0] for line in _text(root / "proc/modules").splitlines())),
    )


def between(before: Snapshot, after: Snapshot) -> Change:
    """What happened between two snapshots of the same host."""
    elapsed_ns = after.monotonic_ns - before.monotonic_ns
    earlier = {core.core: core for core in before.cores}
    pairs = [(earlier[core.core], core) for core in after.cores if core.core in earlier]
    ticks = sum(new.total - old.total for old, new in pairs)
    stolen = sum(new.steal - old.steal for old, new in pairs)
    changed = sorted(
        name
        for name in before.settings.keys() | after.settings.keys()
        if before.settings.get(name) != after.settings.get(name)
    )
    return Change(
        elapsed_s=elapsed_ns / 1e9,
        idle_share={new.core: (new.idle - old.idle) / max(1, new.total - old.total) for old, new in pairs},
        steal_share=stolen / max(1, ticks),
        throttled_share=(after.throttled_ns - before.throttled_ns) / elapsed_ns,
        some_share=_shares(before.some_us, after.some_us, elapsed_ns),
        full_share=_shares(before.full_us, after.full_us, elapsed_ns),
        clock_step_s=(after.clock_offset_ns - before.clock_offset_ns) / 1e9,
        backlog_drops=after.backlog_drops - before.backlog_drops,
        socket_drops=_grown(before.socket_drops, after.socket_drops),
        settings=tuple(
            f"{name} was {before.settings.get(name, 'not there')} and is {after.settings.get(name, 'not there')}"
            for name in changed
        ),
    )


def clock_offset_ns() -> int:
    """CLOCK_REALTIME minus CLOCK_MONOTONIC, from the reading that was interrupted least."""
    readings = []
    for _ in range(_CLOCK_READINGS):
        before, real, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        readings.append((after - before, real - (before + after) // 2))
    return min(readings)[1]


def fingerprint(*, root: Path = _ROOT) -> dict[str, Any]:
    """What kind of host this is, JSON-ready: enough to tell two hosts apart, nothing that names one."""
    cpuinfo = _text(root / "proc/cpuinfo")
    model = re.search(r"^(?:model name|Processor|cpu model)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    system = re.search(r'^PRETTY_NAME="?([^"\n]+)', _text(root / "etc/os-release"), re.MULTILINE)
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "system": system[1] if system else "unknown",
        "cpu_model": model[1].strip() if model else "unknown",
        "cpu_count": len(_core_times(root)),
        "cpu_governor": _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or "unknown",
        "virtual": re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE) is not None,
        "memory_bytes": 1024 * int(memory[1]) if memory else 0,
        "clocksource": _text(root / "sys/devices/system/clocksource/clocksource0/current_clocksource").strip(),
        "python": platform.python_version(),
    }


def _text(path: Path) -> str:
    """Content of a file of the kernel's; empty where this kernel does not have it."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _core_times(root: Path) -> tuple[CoreTimes, ...]:
    """Guest time is left out of the total: the kernel has counted it as user time already."""
    cores = []
    for line in _text(root / "proc/stat").splitlines():
        name, *fields = line.split()
        if re.fullmatch(r"cpu\d+", name):
            times = [int(field) for field in fields[:8]]
            cores.append(CoreTimes(int(name[3:]), sum(times), times[3] + times[4], times[7]))
    return tuple(cores)


def _pressure(path: Path) -> dict[str, int]:
    found = re.findall(r"^(some|full) .*total=(\d+)", _text(path), re.MULTILINE)
    return {name: int(total) for name, total in found}


def _throttled_ns(root: Path) -> int:
    """Sum over this process's control groups and their parents, under both versions of the interface."""
    total = 0
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controllers
            group = mount / path.lstrip("/")
            for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(mount))):
                stat = dict(re.findall(r"^(\w+) (\d+)$", _text(folder / "cpu.stat"), re.MULTILINE))
                total += 1000 * int(stat.get("throttled_usec", 0)) + int(stat.get("throttled_time", 0))
    return total


def _backlog_drops(root: Path) -> int:
    return sum(int(line.split()[1], 16) for line in _text(root / "proc/net/softnet_stat").splitlines())


def _socket_drops(interfaces: Sequence[str]) -> dict[tuple[str, int], int]:
    """Drops of the packet sockets through which a userspace switch and captures receive."""
    if not interfaces:
        return {}
    listing = _ask(["ss", "--packet", "--numeric", "--all", "--memory", "--extended", "--oneline", "--no-header"])
    found = re.findall(r":(\S+) .* ino:(\d+) .*skmem:\(.*\bd(\d+)\)", listing)
    return {(name, int(inode)): int(drops) for name, inode, drops in found if name in interfaces}


def _grown(before: Mapping[tuple[str, int], int], after: Mapping[tuple[str, int], int]) -> dict[str, int]:
    total: dict[str, int] = {}
    for interface, inode in before.keys() & after.keys():
        grown = after[interface, inode] - before[interface, inode]
        total[interface] = total.get(interface, 0) + grown
    return total


def _sysctls(root: Path) -> dict[str, str]:
    found = {name: _text(root / "proc/sys" / name).strip() for name in SYSCTLS}
    return {name.replace("/", "."): value for name, value in found.items() if value}


def _offloads(interfaces: Sequence[str]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for interface in interfaces:
        found = dict(re.findall(r"^\s*([\w-]+): (on|off)", _ask(["ethtool", "-k", interface]), re.MULTILINE))
        settings |= {f"{interface} {name}": found[name] for name in OFFLOADS if name in found}
    return settings


def _queueing_disciplines(interfaces: Sequence[str]) -> dict[str, str]:
    """Root and leaf disciplines as `tc` describes them, without what it counts."""
    if not interfaces:
        return {}
    settings: dict[str, str] = {}
    for entry in json.loads(_ask(["tc", "-j", "qdisc", "show"])):
        if entry["dev"] in interfaces:
            options = {k: v for k, v in entry.get("options", {}).items() if k != "direct_packets_stat"}
            name = f"{entry['dev']} qdisc at {entry.get('parent', 'root')}"
            settings[name] = f"{entry['kind']} {json.dumps(options, sort_keys=True)}"
    return settings


def _ask(command: list[str]) -> str:
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TOOL_TIMEOUT_S,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise FidelityError(f"{command[0]} is not installed, so the host's settings cannot be recorded") from error
    except subprocess.TimeoutExpired as error:
        raise FidelityError(f"`{' '.join(command)}` failed: {error}") from error
    if result.returncode != 0:
        words = result.stderr.strip()
        raise FidelityError(f"`{' '.join(command)}` failed with status {result.returncode}: {words}")
    return result.stdout


def _shares(before: Mapping[str, int], after: Mapping[str, int], elapsed_ns: int) -> dict[str, float]:
    return {name: 1000 * (after[name] - before[name]) / elapsed_ns for name in before if name in after}
