"""Probes of the host itself: privileges, tools, namespaces, devices, descriptors, captures, netem, clock and stalls.

Each probe tries the thing, says in a few words what it saw, or raises `ProbeError` with what it saw instead. Probes of
Open vSwitch are `testbed.doctor.switch`'s.
"""

from __future__ import annotations

import fcntl
import itertools
import math
import os
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path

from testbed.doctor import sandbox
from testbed.emulation import links, processes, syscalls
from testbed.emulation.network import require_tools
from testbed.emulation.placement import require_limited
from testbed.errors import FidelityError
from testbed.scenario.slow_down import LARGEST
from testbed.telemetry import pcap, stalls
from testbed.telemetry.capture import Capture
from testbed.traffic import nghttp2

LONGEST_STALL_S = 5e-3
STALL_WINDOW_S = 1.0
_CAPABILITIES = {"net_admin": 12, "net_raw": 13, "sys_ptrace": 19, "sys_admin": 21}
_TUNSETIFF = 0x400454CA
_IFF_TAP_WITHOUT_HEADER = 0x1002
_SO_SNDBUFFORCE = 32
_SEND_BUFFER_BYTES = 64 * 1024 * 1024
_NETEM_DELAY_S = 0.02
_FRAMES = 20


class ProbeError(Exception):
    """What was seen instead of what should have been.

    Attributes:
        remedy: What to do about just that, None where the probe's own remedy says it.
    """

    def __init__(self, seen: str, *, remedy: str | None = None) -> None:
        super().__init__(seen)
        self.remedy = remedy


def privileges() -> str:
    """Whether this process may build networks."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    missing = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
    if os.geteuid() != 0 or missing:
        lacks = f", without {', '.join(missing)}" if missing else ""
        raise ProbeError(f"user {os.geteuid()}{lacks}")
    return "root with " + ", ".join(_CAPABILITIES)


def tools() -> str:
    """Whether the programs that build and observe networks, and the library that sends requests, are installed."""
    require_tools()
    if shutil.which("tcpdump") is None:
        raise ProbeError("tcpdump is not installed; install tcpdump")
    try:
        nghttp2.require()
    except OSError as error:
        raise ProbeError(str(error)) from error
    return "all programs found"


def real_time() -> str:
    """Whether real-time processes, which senders are, leave others a part of each core."""
    return require_limited()


def namespaces() -> str:
    """Whether frames cross a veth pair between two new network namespaces."""
    with sandbox.opened(), sandbox.neighbours() as (here, host):
        arrived = len(sandbox.send(host, here, count=_FRAMES, size_bytes=1000))
    if arrived != _FRAMES:
        raise ProbeError(f"{arrived} of {_FRAMES} frames crossed a veth pair between two namespaces")
    return f"{arrived} of {_FRAMES} frames crossed a veth pair between two namespaces"


def tun() -> str:
    """Whether a tap device can be made, as the userspace datapath does for every bridge."""
    with sandbox.opened():
        try:
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise ProbeError(f"/dev/net/tun: {error.strerror}") from error
        try:
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"doctor", _IFF_TAP_WITHOUT_HEADER))
        except OSError as error:
            raise ProbeError(f"/dev/net/tun opens, but makes no tap device: {error.strerror}") from error
        finally:
            os.close(device)
    return "made a tap device"


def descriptors() -> str:
    """Whether a socket of another process can be duplicated and its send buffer enlarged (pidfd_getfd)."""
    ours, theirs = socket.socketpair()
    # cat ends by itself when our end closes, however we end.
    with ours, theirs, subprocess.Popen(["cat"], stdin=theirs.fileno(), stdout=subprocess.DEVNULL) as holder:
        theirs.close()
        try:
            started = processes.start_ticks(holder.pid)
            with processes.pidfd(holder.pid, started or 0) as pidfd:
                if pidfd is None:
                    raise ProbeError("cat, started to hold a socket, ended at once")
                with socket.socket(fileno=syscalls.duplicate_descriptor(pidfd, 0)) as duplicate:
                    duplicate.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER_BYTES)
                    found = duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        except OSError as error:
            raise ProbeError(f"another process's socket cannot be duplicated: {error.strerror}") from error
        finally:
            ours.close()
    if found < _SEND_BUFFER_BYTES:
        raise ProbeError(f"the send buffer of another process's socket is {found} bytes after asking for 64 MiB")
    return "enlarged the send buffer of another process's socket to 64 MiB"


def capture() -> str:
    """Whether tcpdump sees every frame, stamped in nanoseconds by the clock that senders use."""
    with sandbox.opened() as box, sandbox.neighbours() as (here, host):
        running = Capture.start(box.supervisor, here.interface, box.journal.directory / "doctor.pcap")
        sandbox.send(host, here, count=_FRAMES, size_bytes=1000)
        counts = running.finish()
        packets = pcap.read(running.path).packets
    if len(packets) != _FRAMES or counts.missed:
        raise ProbeError(f"{len(packets)} of {_FRAMES} frames captured, {counts.missed} missed")
    lateness_ns = packets.time_ns - packets.intended_ns
    if not (packets.time_ns % 1000).any():
        raise ProbeError("stamps are whole microseconds")
    if lateness_ns.min() < 0 or lateness_ns.max() > 1e9:
        raise ProbeError(f"stamps are {lateness_ns.min() / 1e9:g} to {lateness_ns.max() / 1e9:g} s after sending")
    return f"{_FRAMES} of {_FRAMES} frames, stamped in ns, at most {lateness_ns.max() / 1e3:.0f} us after sending"


def netem() -> str:
    """Whether the kernel delays frames on a link."""
    with sandbox.opened(), sandbox.neighbours() as (here, host):
        delay = ["delay", f"{round(_NETEM_DELAY_S * 1e3)}ms"]
        links.run(["tc", "qdisc", "add", "dev", here.interface, "root", "netem", *delay])
        sent_ns = time.time_ns()
        stamps = sandbox.send(here, host, count=1, size_bytes=1000)
    if not stamps:
        raise ProbeError("netem is there, but no frame arrived through it")
    took_s = (stamps[0] - sent_ns) / 1e9
    if took_s < 0.95 * _NETEM_DELAY_S:
        raise ProbeError(f"a delay of {_NETEM_DELAY_S * 1e3:g} ms took {took_s * 1e3:.2f} ms")
    return f"a delay of {_NETEM_DELAY_S * 1e3:g} ms took {took_s * 1e3:.2f} ms"


def clock() -> str:
    """Whether the clocks are fine, cheap to read, and keep their distance."""
    began_ns = time.perf_counter_ns()
    readings = [time.clock_gettime_ns(time.CLOCK_MONOTONIC) for _ in range(20_000)]
    cost_ns = (time.perf_counter_ns() - began_ns) / len(readings)
    step_ns = min((b - a for a, b in itertools.pairwise(readings) if b > a), default=0)
    first_ns = _offset_ns()
    time.sleep(0.2)
    drift_ns = abs(_offset_ns() - first_ns)
    drift = f"realtime moved {drift_ns} ns against monotonic in 0.2 s"
    seen = f"a reading costs {cost_ns:.0f} ns, smallest step {step_ns} ns, {drift}"
    if not 0 < step_ns <= 1000 or cost_ns > 2000 or drift_ns > 20_000:
        raise ProbeError(seen)
    return seen


def stall() -> str:
    """Whether every core runs when it should, for one second."""
    with sandbox.opened() as box:
        running = stalls.start(box.supervisor, box.journal.directory)
        time.sleep(STALL_WINDOW_S)
        records = running.finish()
    if not records or any(record.ticks < 100 for record in records):
        raise FidelityError("the stall ticker did not tick")
    seen = ", ".join(f"core {record.core} {record.longest_s * 1e3:.1f} ms" for record in records[:16])
    longest_s = max(record.longest_s for record in records)
    if longest_s > LONGEST_STALL_S:
        factor = slow_down(longest_s)
        instead = (
            f"testbed run --slow-down {factor}" if factor else "expect INVALID runs: no --slow-down is large enough"
        )
        raise ProbeError(
            f"longest stalls in one second: {seen}; at most {LONGEST_STALL_S * 1e3:g} ms are harmless",
            remedy=f"use an idle host with dedicated cores, or {instead}",
        )
    return f"longest stalls in one second: {seen}"


def slow_down(stall_s: float) -> int | None:
    """The smallest whole factor that makes a stall harmless in the scenario's own time; None where no factor does."""
    factor = math.ceil(stall_s / LONGEST_STALL_S)
    return factor if factor <= LARGEST else None


def _offset_ns() -> int:
    """CLOCK_REALTIME minus CLOCK_MONOTONIC, from the tightest of a few readings."""
    tightest = (1 << 62, 0)
    for _ in range(20):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        real = time.clock_gettime_ns(time.CLOCK_REALTIME)
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        tightest = min(tightest, (after - before, real - (before + after) // 2))
    return tightest[1]
