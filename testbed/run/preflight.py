"""Whether this host can run what was asked, before anything on it has changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pyroute2 import GenericNetlinkSocket, NetlinkError

from testbed.errors import PreflightError
from testbed.scenario.model import Datapath, Scenario, Tenant
from testbed.traffic import nghttp2

MOST_TENANTS = 500
"""Of an emulated network: each has a namespace, a meter a domain and a class a port."""

_CAPTURE_BYTES_PER_PACKET = 96 + 16
_PACKETS_PER_S_AND_BORDER = 25_000
"""What the captures of a border are provided for: more than a software switch on two cores carries."""
_PACKETS_PER_S = 60_000
"""And those of all borders together."""

_MIB = 2**20
_RUN_BYTES, _DOMAIN_BYTES, _TENANT_BYTES = 450 * _MIB, 70 * _MIB, 100 * _MIB
_REQUEST_TENANT_BYTES, _SERVER_BYTES = 250 * _MIB, 600 * _MIB
_JUDGED_BYTES_PER_PACKET = 300
"""What was seen of each process, shared pages counted once, and of a packet while its window is judged."""


def choose_datapath(wanted: Datapath) -> Datapath:
    """The datapath to use: the kernel's where it is loaded, unless the scenario says otherwise.

    Raises:
        PreflightError: The scenario wants the kernel datapath and this kernel has none.
    """
    if wanted is Datapath.USERSPACE:
        return wanted
    if _kernel_datapath_loaded():
        return Datapath.KERNEL
    if wanted is Datapath.KERNEL:
        raise PreflightError(
            "datapath: kernel wanted, and this kernel has no openvswitch datapath loaded; "
            "load the openvswitch module, or let the scenario say `datapath: userspace`"
        )
    return Datapath.USERSPACE


def require_root() -> None:
    """Check that the process may make namespaces.

    Raises:
        PreflightError: It is not root.
    """
    if os.geteuid() != 0:
        raise PreflightError("running needs root, for namespaces and switches; use sudo or a privileged container")


def require_sender(scenario: Scenario) -> None:
    """Check that requests can be sent.

    Raises:
        PreflightError: There are some to send, and the library that does is missing.
    """
    if any(tenant.requests is not None for tenant in scenario.tenants):
        try:
            nghttp2.require()
        except OSError as error:
            raise PreflightError(f"tenants that send requests: {error}") from error


def require_few(scenario: Scenario) -> None:
    """Check that a network can carry so many tenants.

    Raises:
        PreflightError: It cannot.
    """
    if len(scenario.tenants) > MOST_TENANTS:
        raise PreflightError(
            f"tenants: found {len(scenario.tenants)}, expected at most {MOST_TENANTS} on a network; `testbed simulate` "
            "carries more, or leave some out"
        )


def require_unimpaired(scenario: Scenario) -> None:
    """Check that its domains do nothing to packets that only a simulation can do.

    Raises:
        PreflightError: One does.
    """
    if impaired := [domain.name for domain in scenario.domains if domain.is_impaired]:
        raise PreflightError(
            f"domains {', '.join(impaired)}: found random excess latency or loss, expected none on a network; "
            "use `testbed simulate`, or leave excess and loss out; faults of the kinds delay and loss are for a network"
        )


def require_room(out: Path, scenario: Scenario, windows: int) -> None:
    """Check that the captures of all windows fit on the disk of `out`.

    Raises:
        PreflightError: They might not, or there is a file where a folder is to be.
    """
    if in_the_way := next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None):
        raise PreflightError(f"{out}: found {in_the_way}, which is no folder; choose another folder with --out")
    seconds = scenario.warmup_s + windows * (scenario.duration_s + scenario.cooldown_s)
    # What clients of requests send is captured whole, beside that.
    links = {path[0].name: path[0].link_rate_bps for path in map(scenario.path, _asking(scenario))}
    bytes_per_s = _PACKETS_PER_S / scenario.slow_down * _CAPTURE_BYTES_PER_PACKET + sum(links.values()) / 8
    needed = int(seconds * bytes_per_s)
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise PreflightError(
            f"{out}: {free / 1e6:,.0f} MB free, captures of {seconds:.0f} s may need {needed / 1e6:,.0f} MB; "
            "free space or choose another folder with --out"
        )


def require_memory(scenario: Scenario, *, meminfo: Path = Path("/proc/meminfo")) -> None:
    """Check that all processes of a run fit in memory at once: a host that swaps measures its disk.

    Raises:
        PreflightError: They might not.
    """
    seconds = max(scenario.warmup_s, scenario.duration_s, scenario.cooldown_s)
    packets = seconds * _PACKETS_PER_S_AND_BORDER / scenario.slow_down
    asking = _asking(scenario)
    needed = (
        _RUN_BYTES
        + _DOMAIN_BYTES * len(scenario.domains)
        + _TENANT_BYTES * (len(scenario.tenants) - len(asking))
        + _REQUEST_TENANT_BYTES * len(asking)
        + _SERVER_BYTES * len({tenant.site for tenant in asking})
        + int(packets * _JUDGED_BYTES_PER_PACKET)
    )
    free = _available_bytes(meminfo)
    if free < needed:
        raise PreflightError(
            f"memory: {free / 1e9:.2f} GB available, expected at least {needed / 1e9:.2f} GB for "
            f"{len(scenario.tenants)} tenants in {len(scenario.domains)} domains; end something else, shorten "
            "the window or run fewer tenants"
        )


def _asking(scenario: Scenario) -> list[Tenant]:
    return [tenant for tenant in scenario.tenants if tenant.requests is not None]


def _available_bytes(meminfo: Path) -> int:
    for line in meminfo.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise PreflightError(f"{meminfo}: found no MemAvailable; this kernel is older than Linux 3.14, use a newer one")


def _kernel_datapath_loaded() -> bool:
    netlink = GenericNetlinkSocket()
    try:
        netlink.bind("ovs_datapath", msg_class=None)
    except (NetlinkError, OSError, KeyError):
        return False
    finally:
        netlink.close()
    return True
