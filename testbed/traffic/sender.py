"""One tenant's open-loop UDP sender: `python -m testbed.traffic.sender SPEC.json` in the client's network namespace.

It prints one JSON line when it is ready, reads `{"start_monotonic_ns": N}` as one line from its standard input, sends
its schedule from that instant on, and ends with one JSON line that sums up what it did; every packet's fate is in the
record file. It never waits for the network: late packets leave at once and their lateness is recorded, refused ones
are counted. SIGTERM or SIGINT end it early with what it has. If its input ends before a start, so does it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

import numpy as np

from testbed.traffic.pacing import send_due
from testbed.traffic.records import NOT_ATTEMPTED, SenderSpec, SendRecord
from testbed.traffic.schedules import Schedule
from testbed.traffic.wire import client_port, headers, payload_bytes

_PR_SET_TIMERSLACK = 29
_LOOK_UP_S = 0.1
_IP_MTU_DISCOVER, _IP_PMTUDISC_DO = 10, 2


class _Stop:
    """Whether somebody asked this process to end."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        self.requested = True


def open_socket(spec: SenderSpec) -> socket.socket:
    """A connected UDP socket that never fragments: a packet too large for the path is an error, not two packets."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
    udp.bind((spec.source, client_port(spec.tenant)))
    udp.connect((spec.destination, spec.port))
    return udp


def become_punctual(priority: int | None) -> bool:
    """Ask for wake-ups at the nanosecond and, where permitted, a real-time priority; say whether that was granted."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)
    if priority is None:
        return False
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except PermissionError:
        return False
    return True


def replay(spec: SenderSpec, schedule: Schedule, udp: socket.socket, start_ns: int, stop: _Stop) -> SendRecord:
    """Send `schedule` from `start_ns` (CLOCK_MONOTONIC) on."""
    offsets_ns = np.rint(schedule.time_s * 1e9).astype(np.int64)
    due_ns = start_ns + offsets_ns
    header = headers(spec.tenant, due_ns + spec.clock_offset_ns, schedule.last_of_request, flags=spec.flags)
    payload = payload_bytes(schedule.size_bits)
    buffer = np.zeros(int(payload.max(initial=header.shape[1])), dtype=np.uint8)
    # Filled, not merely allocated: a page fault in the window would be a late packet.
    sent_ns = np.full(len(schedule), start_ns, dtype=np.int64)
    error = np.full(len(schedule), NOT_ATTEMPTED, dtype=np.int32)
    gc.collect()
    gc.disable()
    packet = 0
    while packet < len(schedule) and not stop.requested:
        packet = send_due(udp.fileno(), due_ns, header, payload, buffer, sent_ns, error, packet, spec.spin_ns)
    gc.enable()
    sent_s = np.where(error == 0, (sent_ns - start_ns) / 1e9, np.nan)
    return SendRecord(spec.tenant, start_ns, start_ns + spec.clock_offset_ns, schedule, sent_s, error)


def main(arguments: list[str] | None = None) -> int:
    """Run one sender; the exit code is 0 after a window, 2 where it could not begin."""
    parser = argparse.ArgumentParser(prog="testbed.traffic.sender", description="Send one tenant's schedule over UDP.")
    parser.add_argument("spec", type=Path, help="JSON file with the fields of SenderSpec")
    options = parser.parse_args(arguments)
    stop = _Stop()
    try:
        spec = SenderSpec.load(options.spec)
        schedule = Schedule.load(Path(spec.schedule))
        payload_bytes(schedule.size_bits)
        udp = open_socket(spec)
    except (OSError, ValueError) as error:
        print(f"sender: {options.spec}: {error}", file=sys.stderr)
        return 2
    with udp:
        realtime = become_punctual(spec.priority)
        print(json.dumps({"ready": True, "tenant": spec.tenant, "packets": len(schedule)}), flush=True)
        start_ns = _read_start(stop)
        if start_ns is None:
            print("sender: found no start on standard input, expected a line start_monotonic_ns", file=sys.stderr)
            return 2
        record = replay(spec, schedule, udp, start_ns, stop)
    record.save(Path(spec.result))
    summary = record.summary() | {"complete": not stop.requested, "realtime": realtime}
    print(json.dumps(summary), flush=True)
    return 0


def _read_start(stop: _Stop) -> int | None:
    while not select.select([sys.stdin], [], [], _LOOK_UP_S)[0]:
        if stop.requested:
            return None
    try:
        start = json.loads(sys.stdin.readline())["start_monotonic_ns"]
    except (ValueError, KeyError, TypeError):
        return None
    return start if isinstance(start, int) else None


if __name__ == "__main__":
    sys.exit(main())
