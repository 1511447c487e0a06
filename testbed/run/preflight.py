"""Whether this host can run what was asked, before anything on it has changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pyroute2 import GenericNetlinkSocket, NetlinkError

from testbed.errors import PreflightError
from testbed.scenario.model import Datapath, Scenario

_CAPTURE_BYTES_PER_PACKET = 96 + 16
_PACKETS_PER_S_AND_BORDER = 25_000
"""What the captures are provided for: more than a software switch on two cores carries."""


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


def require_room(out: Path, scenario: Scenario, windows: int) -> None:
    """Check that the captures of all windows fit on the disk of `out`.

    Raises:
        PreflightError: They might not.
    """
    seconds = scenario.warmup_s + windows * scenario.duration_s
    needed = int(seconds * _PACKETS_PER_S_AND_BORDER * _CAPTURE_BYTES_PER_PACKET)
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise PreflightError(
            f"{out}: {free / 1e9:.1f} GB free, captures of {seconds:.0f} s may need {needed / 1e9:.1f} GB; "
            "free space or choose another folder with --out"
        )


def _kernel_datapath_loaded() -> bool:
    netlink = GenericNetlinkSocket()
    try:
        netlink.bind("ovs_datapath", msg_class=None)
    except (NetlinkError, OSError, KeyError):
        return False
    finally:
        netlink.close()
    return True
