"""One tcpdump at one border: started, drained, ended, and asked what it missed.

tcpdump's own counters say whether the capture can be trusted, so ending it waits until everything the kernel accepted
has reached the file. Which borders exist is the emulation's to know, what a capture means `testbed.telemetry.match`'s.
"""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from testbed.emulation.placement import Role
from testbed.emulation.supervisor import Child, Supervisor
from testbed.errors import FidelityError
from testbed.traffic import wire

SNAP_BYTES = 96
"""Ethernet, IPv4, UDP and the testbed's header take 66; the rest shows a human what else went by."""
BUFFER_KIB = 8192

TENANT_TRAFFIC = f"udp dst port {wire.SERVER_PORT}"
"""Only the tenants' packets, and in one direction: libpcap applies `-Q in` after its counters have counted, so a filter
that also lets through what leaves makes every capture look lossy. `inbound` in the filter is no way out: libpcap 1.10
applies the filter itself to the first block of packets, where it does not know the direction, and discards them all."""

_READY = re.compile(r"listening on ")
_COUNT = {
    "captured": re.compile(r"(\d+) packets? captured"),
    "received": re.compile(r"(\d+) packets? received by filter"),
    "dropped": re.compile(r"(\d+) packets? dropped by kernel"),
    "dropped_by_interface": re.compile(r"(\d+) packets? dropped by interface"),
}

_BLOCK_TIMEOUT_S = 1.0
"""libpcap hands over a block of packets when it is full or this old."""
_SETTLED_S = 1.5 * _BLOCK_TIMEOUT_S
_SAYS_WITHIN_S = 5.0
_DRAIN_S = 5 * _BLOCK_TIMEOUT_S
_ASK_EVERY_S = 0.05


@dataclass(frozen=True)
class CaptureCounts:
    """What tcpdump and the kernel counted.

    Attributes:
        captured: Packets tcpdump wrote.
        received: Packets the kernel's filter let through, the dropped ones included.
        dropped: Packets the kernel dropped because tcpdump did not keep up.
        dropped_by_interface: Packets the interface dropped; 0 where it does not count them.
        unfiltered: Packets among `received` that came before there was a filter.
    """

    captured: int
    received: int
    dropped: int
    dropped_by_interface: int = 0
    unfiltered: int = 0

    def __str__(self) -> str:
        return (
            f"{self.captured} captured of {self.received} received, {self.dropped} dropped, "
            f"{self.dropped_by_interface} by the interface, {self.unfiltered} before the filter"
        )

    @property
    def missed(self) -> int:
        """Packets that the filter let through, or that never got as far, and that are not in the file."""
        return max(self.dropped, self.received - self.unfiltered - self.captured) + self.dropped_by_interface

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The last complete set of counters in tcpdump's standard error, None if there is none."""
        found = {name: pattern.findall(text) for name, pattern in _COUNT.items()}
        if not (found["captured"] and found["received"] and found["dropped"]):
            return None
        return cls(**{name: int(values[-1]) for name, values in found.items() if values})


@dataclass(frozen=True)
class Capture:
    """A running capture.

    Attributes:
        path: The pcap file; only its owner can read it.
        unfiltered: Packets the kernel had counted when tcpdump said that it listens. Its socket is open before its
            filter is set, and until then the kernel counts every packet, whoever's it is.
    """

    path: Path
    unfiltered: int
    _supervisor: Supervisor
    _child: Child

    @classmethod
    def start(
        cls,
        supervisor: Supervisor,
        interface: str,
        path: Path,
        *,
        host_pid: int | None = None,
        expression: str = TENANT_TRAFFIC,
        snap_bytes: int = SNAP_BYTES,
        both_ways: bool = False,
    ) -> Self:
        """Starts capturing what arrives on an interface; returns when tcpdump listens.

        Args:
            supervisor: Keeps the process.
            interface: Interface in the host's namespace.
            path: File to make; its name must end in `.pcap`, which is all that AppArmor lets tcpdump write.
            host_pid: A process in the namespace to capture in; None for the caller's.
            expression: Capture filter.
            snap_bytes: How much of each packet to keep, 0 for all of it.
            both_ways: Also what leaves.

        Raises:
            FileExistsError: The file is there already.
            PreflightError: tcpdump is not there or did not begin to listen.
        """
        # Made here, because tcpdump would make it as readable as the umask allows.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        name, command = (
            f"capture-{path.stem}",
            arguments(interface, path, expression, snap_bytes=snap_bytes, both_ways=both_ways),
        )
        child = supervisor.start(name, command, host_pid=host_pid, ready=_READY, role=Role.CAPTURE)
        first = _asked(child, _SAYS_WITHIN_S)
        return cls(path, 0 if first is None else first.received, supervisor, child)

    def finish(self) -> CaptureCounts:
        """Waits until what the kernel accepted is in the file, ends tcpdump and says what it had counted by then.

        A packet that arrives between that and tcpdump's end came after the capture, whether it is in the file or not.

        Raises:
            FidelityError: tcpdump died, or ended without counters.
        """
        drained = self._drained()
        status = self._supervisor.end(self._child)
        counts = CaptureCounts.parse(_said(self._child))
        if status != 0 or counts is None:
            raise FidelityError(
                f"{self._child.name}: tcpdump ended with status {status} and without its counters, so nothing is "
                f"known of what it missed; it last said:\n{self._child.tail()}"
            )
        return replace(drained or counts, unfiltered=self.unfiltered)

    def _drained(self) -> CaptureCounts | None:
        """The counters that say that everything is written, None if none do in time."""
        deadline, captured, unchanged_since = time.monotonic() + _DRAIN_S, -1, time.monotonic()
        while (left_s := deadline - time.monotonic()) > 0:
            counts = _asked(self._child, left_s)
            if counts is None or counts.captured + counts.dropped >= counts.received:
                return counts
            if counts.captured != captured:
                captured, unchanged_since = counts.captured, time.monotonic()
            written = counts.captured + counts.dropped + self.unfiltered >= counts.received
            # Packets from before the filter may be the capture's as well, so the sum alone does not say that all are
            # written; that no block has come for longer than one is held back does.
            if written and time.monotonic() - unchanged_since > _SETTLED_S:
                return counts
            time.sleep(_ASK_EVERY_S)
        return None


def _asked(child: Child, patience_s: float) -> CaptureCounts | None:
    """Counters that a tcpdump was asked for and gave, None if it ended or did not answer."""
    earlier, deadline = len(_said(child)), time.monotonic() + patience_s
    while child.process.poll() is None and time.monotonic() < deadline:
        child.process.send_signal(signal.SIGUSR1)
        if (counts := CaptureCounts.parse(_said(child)[earlier:])) is not None:
            return counts
        time.sleep(_ASK_EVERY_S)
    return None


def _said(child: Child) -> str:
    return child.errors.read_text(errors="replace")


def arguments(
    interface: str,
    path: Path,
    expression: str = TENANT_TRAFFIC,
    *,
    snap_bytes: int = SNAP_BYTES,
    both_ways: bool = False,
) -> list[str]:
    """The command: nanosecond stamps, a buffer for a stall of this process, arriving packets only, no name look-ups."""
    return [
        "tcpdump", "-i", interface, "-n", "-s", str(snap_bytes), "--time-stamp-precision=nano", "-B", str(BUFFER_KIB),
        *(() if both_ways else ("-Q", "in")), "-Z", "root", "-w", str(path), expression,
    ]  # fmt: skip
