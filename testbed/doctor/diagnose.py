"""All probes in order, each turned into a check whatever happens, and what to do where one failed.

A probe that depends on one that failed is not tried: its check says so, and the remedy is the other's.
"""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from testbed.doctor import host, switch
from testbed.doctor.findings import Check, Diagnosis
from testbed.doctor.host import ProbeError
from testbed.errors import TestbedError
from testbed.scenario.model import Datapath


@dataclass(frozen=True)
class Probe:
    """One thing to try.

    Attributes:
        name: Name of its check.
        run: Tries it; returns what was seen, or raises.
        remedy: What helps if it fails.
        needs: Checks without which it is not tried.
    """

    name: str
    run: Callable[[], str]
    remedy: str
    needs: tuple[str, ...] = ()


_INSTALL = "run scripts/setup, which installs what is missing"
_IDLE = "use an idle host with dedicated cores, or expect INVALID runs"


def _of_datapath(datapath: Datapath, *needs: str) -> tuple[Probe, ...]:
    remedy = {
        Datapath.USERSPACE: "install openvswitch-switch 3.1 or later (scripts/setup does)",
        Datapath.KERNEL: "load the openvswitch module (modprobe openvswitch), or stay with the userspace datapath",
    }[datapath]
    base = f"{datapath}-datapath"
    tried = {
        "meter": (switch.meter, "use a kernel whose openvswitch meters honour the BURST flag"),
        "queue": (switch.queue, "load the sch_htb and cls_u32 modules, and use an idle host"),
        "tcp": (switch.tcp, "turn checksum offload off on every interface, which ethtool must be able to do"),
    }
    others = (
        Probe(f"{datapath}-{name}", functools.partial(run, datapath), help_, (base,))
        for name, (run, help_) in tried.items()
    )
    return (Probe(base, functools.partial(switch.forwarding, datapath), remedy, needs), *others)


PROBES: tuple[Probe, ...] = (
    Probe("privileges", host.privileges, "run as root, in a container with --privileged"),
    Probe("tools", host.tools, _INSTALL),
    Probe("real-time", host.real_time, "let the kernel limit them (sysctl -w kernel.sched_rt_runtime_us=950000)"),
    Probe("namespaces", host.namespaces, "run as root, in a container with --privileged", ("privileges", "tools")),
    Probe("tun", host.tun, "make /dev/net/tun (modprobe tun), and pass it to the container", ("namespaces",)),
    Probe("descriptors", host.descriptors, "use Linux 5.6 or later, with CAP_SYS_PTRACE", ("privileges",)),
    Probe("capture", host.capture, "install tcpdump, and let nothing confine it to other paths", ("namespaces",)),
    *_of_datapath(Datapath.USERSPACE, "namespaces", "tun"),
    *_of_datapath(Datapath.KERNEL, "namespaces"),
    Probe(
        "netem", host.netem, "load sch_netem (modprobe sch_netem), or allow zero delays in scenarios", ("namespaces",)
    ),
    Probe("clock", host.clock, "choose a fast clock source (tsc, kvm-clock) for the kernel"),
    Probe("stalls", host.stall, _IDLE, ("privileges", "tools")),
)


def diagnose(seen: Callable[[Check], None] = lambda _: None) -> Diagnosis:
    """Try everything.

    Args:
        seen: Called with each check as soon as it is made.
    """
    checks: dict[str, Check] = {}
    for check in _checks(checks):
        checks[check.name] = check
        seen(check)
    return Diagnosis.of(tuple(checks.values()))


def _checks(before: dict[str, Check]) -> Iterator[Check]:
    for probe in PROBES:
        failed = next((name for name in probe.needs if not before[name].ok), None)
        if failed is not None:
            yield Check(probe.name, ok=False, detail=f"not tried without {failed}", remedy=_root_remedy(failed, before))
        else:
            yield attempt(probe)


def _root_remedy(name: str, before: dict[str, Check]) -> str:
    return before[name].remedy or ""


def attempt(probe: Probe) -> Check:
    """Run one probe; whatever keeps it from working is its finding, not an error of the doctor."""
    try:
        return Check(probe.name, ok=True, detail=probe.run())
    except (ProbeError, TestbedError, OSError, subprocess.SubprocessError) as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        remedy = error.remedy if isinstance(error, ProbeError) else None
        return Check(probe.name, ok=False, detail=detail, remedy=remedy or probe.remedy)
