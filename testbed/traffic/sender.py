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
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from testbed.traffic import wire
from testbed.traffic.pacing import send_due
from testbed.traffic.records import NOT_ATTEMPTED, SenderSpec, SendRecord
from testbed.traffic.schedules import Schedule

_PR_SET_TIMERSLACK = 29
_LOOK_UP_S = 0.1
_STEP_BACK = 10
_IP_MTU_DISCOVER, _IP_PMTUDISC_DO = 10, 2


class Stop:
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
    udp.bind((spec.source, wire.client_port(spec.tenant)))
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


def step_back() -> None:
    """Give way to whoever forwards: packets are still in the queues when a sender sums up its window.

    Not to everybody for ever, though: beside somebody who never yields the record must still get written.
    """
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    os.nice(_STEP_BACK)


def leave(status: int) -> NoReturn:
    """End at once: taking the interpreter down costs what one who has stepped back may wait half a minute for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """All that can be prepared before the start is known, so that little is left to do between it and the first packet.

    Arrays are filled, not merely allocated: a page fault in the window would be a late packet.
    """

    spec: SenderSpec
    schedule: Schedule
    due_ns: npt.NDArray[np.int64]
    headers: npt.NDArray[np.uint8]
    payload_bytes: npt.NDArray[np.int64]
    buffer: npt.NDArray[np.uint8]
    sent_ns: npt.NDArray[np.int64]
    error: npt.NDArray[np.int32]

    @classmethod
    def prepare(cls, spec: SenderSpec, schedule: Schedule) -> Window:
        """Lay out the packets of `schedule` as if the window started at time 0.

        Raises:
            ValueError: A packet that cannot be sent.
        """
        due_ns = np.rint(schedule.time_s * 1e9).astype(np.int64)
        payload = wire.payload_bytes(schedule.size_bits)
        return cls(
            spec,
            schedule,
            due_ns,
            wire.headers(spec.tenant, due_ns, schedule.last_of_request, flags=spec.flags),
            payload,
            np.zeros(int(payload.max(initial=wire.HEADER_BYTES)), dtype=np.uint8),
            np.full(len(schedule), -1, dtype=np.int64),
            np.full(len(schedule), NOT_ATTEMPTED, dtype=np.int32),
        )

    def send(self, udp: socket.socket, start_ns: int, stop: Stop) -> SendRecord:
        """Send the packets, the window starting at `start_ns` (CLOCK_MONOTONIC); once."""
        due_ns = self.due_ns + start_ns
        start_realtime_ns = start_ns + self.spec.clock_offset_ns
        self.headers.view(wire.HEADER_DTYPE)["intended_ns"] += start_realtime_ns
        gc.disable()
        packet = 0
        while packet < due_ns.size and not stop.requested:
            packet = send_due(
                udp.fileno(),
                due_ns,
                self.headers,
                self.payload_bytes,
                self.buffer,
                self.sent_ns,
                self.error,
                packet,
                self.spec.spin_ns,
            )
        step_back()
        gc.enable()
        sent_s = np.where(self.error == 0, (self.sent_ns - start_ns) / 1e9, np.nan)
        return SendRecord(self.spec.tenant, start_ns, start_realtime_ns, self.schedule, sent_s, self.error)


def main(arguments: list[str] | None = None) -> int:
    """Run one sender; the exit code is 0 after a window, 2 where it could not begin."""
    parser = argparse.ArgumentParser(prog="testbed.traffic.sender", description="Send one tenant's schedule over UDP.")
    parser.add_argument("spec", type=Path, help="JSON file with the fields of SenderSpec")
    options = parser.parse_args(arguments)
    stop = Stop()
    try:
        spec = SenderSpec.load(options.spec)
        schedule = Schedule.load(Path(spec.schedule))
        window = Window.prepare(spec, schedule)
        udp = open_socket(spec)
    except (OSError, ValueError) as error:
        print(f"sender: {options.spec}: {error}", file=sys.stderr)
        return 2
    with udp:
        realtime = become_punctual(spec.priority)
        print(json.dumps({"ready": True, "tenant": spec.tenant, "packets": len(schedule)}), flush=True)
        start_ns = read_start(stop)
        if start_ns is None:
            print("sender: found no start on standard input, expected a line start_monotonic_ns", file=sys.stderr)
            return 2
        record = window.send(udp, start_ns, stop)
    record.save(Path(spec.result))
    summary = record.summary() | {"complete": not stop.requested, "realtime": realtime}
    print(json.dumps(summary), flush=True)
    return 0


def read_start(stop: Stop) -> int | None:
    """The start of the window from standard input (CLOCK_MONOTONIC ns); None where there is none or nobody wants it."""
    while not select.select([sys.stdin], [], [], _LOOK_UP_S)[0]:
        if stop.requested:
            return None
    try:
        start = json.loads(sys.stdin.readline())["start_monotonic_ns"]
    except (ValueError, KeyError, TypeError):
        return None
    return start if isinstance(start, int) else None


if __name__ == "__main__":
    leave(main())
