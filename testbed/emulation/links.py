"""Interfaces as the kernel has them: offloads read back, netem tried and used, hosts configured in one go.

Everything works on the calling thread's network namespace. Root qdiscs of ports that have queues are not touched here:
their one owner is the domain's controller.
"""

from __future__ import annotations

import array
import fcntl
import json
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from testbed.emulation import syscalls
from testbed.emulation.layout import Wire
from testbed.errors import PreflightError

_SIOCETHTOOL = 0x8946
# ethtool's one-value "get" commands, linux/ethtool.h.
_OFFLOADS = {"rx-checksum": 0x14, "tx-checksum": 0x16, "tso": 0x1E, "gso": 0x23, "gro": 0x2B}


def run(command: Sequence[str], text: str = "") -> str:
    """Run one tool of iproute2 in the calling thread's namespace and return what it prints.

    Raises:
        PreflightError: It is missing or failed, with its words.
    """
    try:
        # In a process group of its own: Ctrl-C is for us to answer, not for a tool half-way through its work.
        result = subprocess.run(command, input=text, capture_output=True, text=True, check=False, process_group=0)
    except FileNotFoundError as error:
        raise PreflightError(f"{command[0]} is not installed; install iproute2") from error
    if result.returncode != 0:
        raise PreflightError(f"{' '.join(command)} failed with status {result.returncode}: {result.stderr.strip()}")
    return result.stdout


def offloads(interface: str) -> tuple[str, ...]:
    """Names of the offloads that are on.

    Raises:
        PreflightError: There is no such interface.
    """
    on = []
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as control:
        for name, command in _OFFLOADS.items():
            value = array.array("B", struct.pack("II", command, 0))
            request = struct.pack("16sP8x", interface.encode(), value.buffer_info()[0])
            try:
                fcntl.ioctl(control, _SIOCETHTOOL, request)
            except OSError as error:
                raise PreflightError(f"{interface}: offload {name} cannot be read: {error}") from error
            if struct.unpack("II", value.tobytes())[1]:
                on.append(name)
    return tuple(on)


def interfaces() -> tuple[str, ...]:
    """Names of the veth interfaces of this namespace."""
    lines = run(["ip", "-oneline", "link", "show", "type", "veth"]).splitlines()
    return tuple(line.split(": ")[1].partition("@")[0] for line in lines)


def require_no_offloads() -> None:
    """Fail if any veth interface of this namespace still has an offload on.

    Raises:
        PreflightError: Naming each.
    """
    found = {name: offloads(name) for name in interfaces()}
    problems = [
        f"{name}: offloads {', '.join(on)} are on; TCP hangs through the userspace datapath while they are"
        for name, on in found.items()
        if on
    ]
    if problems:
        raise PreflightError(problems)


def set_neighbours(interface: str, neighbours: Iterable[tuple[str, str]]) -> None:
    """Give permanent (address, MAC) entries to an interface, so that nobody ever asks by broadcast."""
    lines = [f"neigh replace {address} lladdr {mac} nud permanent dev {interface}\n" for address, mac in neighbours]
    run(["ip", "-batch", "-"], "".join(lines))


def resend_no_sooner(interface: str, least_s: float) -> None:
    """Let TCP wait at least so long before it resends what is sent over an interface; every route of it is changed.

    Raises:
        PreflightError: The interface has no route, or the kernel keeps one as it was.
    """
    least_ms = round(least_s * 1e3)

    def routes() -> list[dict[str, Any]]:
        return list(json.loads(run(["ip", "-json", "route", "show", "dev", interface])))

    for route in routes():
        own = ["dev", interface, "proto", route["protocol"], "src", route["prefsrc"]]
        run(["ip", "route", "change", route["dst"], *own, "rto_min", f"{least_ms}ms"])
    kept = [metric for route in routes() for metric in route.get("metrics", [{}])]
    if not kept or any(metric.get("rto_min") != least_ms for metric in kept):
        raise PreflightError(
            f"{interface}: found routes with {kept or 'nothing'}, expected rto_min {least_ms} ms on each; without it "
            "TCP takes what a slowed network delays for lost"
        )


def disable_ipv6() -> None:
    """No IPv6 in this namespace, on interfaces to come as well, where the kernel has it."""
    for scope in ("all", "default"):
        setting = Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6")
        if setting.exists():
            setting.write_text("1")


def tried(attempt: Callable[[], object]) -> bool:
    """Whether this kernel and its tools do something, tried in a network namespace that is gone afterwards.

    Args:
        attempt: Raises `PreflightError` where they do not.
    """
    outcome: list[bool] = []

    def try_it() -> None:
        syscalls.unshare_network()
        try:
            attempt()
        except PreflightError:
            return
        outcome.append(True)

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    return bool(outcome)


def netem_available() -> bool:
    """Whether this kernel delays packets."""
    return tried(lambda: run(["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]))


def delay(wire: Wire) -> None:
    """Put the long link's delay on both interfaces of its switch."""
    for interface in wire.interfaces:
        amount = ["delay", f"{round(wire.delay_s * 1e6)}us", "limit", str(wire.limit_packets)]
        run(["tc", "qdisc", "replace", "dev", interface, "root", "netem", *amount])
