"""Probe frames and how they are sent: raw, at a chosen interface, past its queues or through them.

A frame carries a tenant's addresses and, as measured traffic does, a header that marks it as a probe. Its destination
MAC belongs to nobody: switches forward by address, and the host at the end drops it without an answer. Nothing is
judged here.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from testbed.emulation.probe_checks import SWITCH_LATENESS_S

SMALLEST_FRAME_BYTES = 66
LARGEST_FRAME_BYTES = 1400
_SOL_PACKET = 263
_PACKET_QDISC_BYPASS = 20
_SO_SNDBUFFORCE = 32
_SEND_BUFFER_BYTES = 64 * 1024 * 1024
_NOBODY = bytes.fromhex("02ffffffffff")
_SENDER = bytes.fromhex("02fffffffffe")
_HEADER_BYTES = 42
_IP_AND_UDP = struct.Struct("!BBHHHBBH4s4sHHHH")
_PROBE_HEADER = struct.Struct("!4sHHQq")
_IS_PROBE = 2
_DISCARD_PORT = 9
_FIRST_SOURCE_PORT = 40_000
_CALM_S = 0.005
_OTHERS_SHARE = 0.1
"""How long others have a processor, of the time for which frames were handed over."""


def frame(number: int, source: str, destination: str, size_bytes: int) -> bytes:
    """A UDP probe frame of the tenant with this number.

    Args:
        number: The tenant's number.
        source: IPv4 address.
        destination: IPv4 address.
        size_bytes: Of the frame without FCS, `SMALLEST_FRAME_BYTES` to `LARGEST_FRAME_BYTES`.
    """
    if not SMALLEST_FRAME_BYTES <= size_bytes <= LARGEST_FRAME_BYTES:
        raise ValueError(f"frame of {size_bytes} bytes: {SMALLEST_FRAME_BYTES} to {LARGEST_FRAME_BYTES}")
    addresses = socket.inet_aton(source), socket.inet_aton(destination)
    ports = (_FIRST_SOURCE_PORT + number) & 0xFFFF, _DISCARD_PORT

    def headers(checksum: int) -> bytes:
        length = size_bytes - 14
        return _IP_AND_UDP.pack(0x45, 0, length, 0, 0, 64, 17, checksum, *addresses, *ports, length - 20, 0)

    payload = _PROBE_HEADER.pack(b"TLT1", number, _IS_PROBE, 0, 0)
    body = _NOBODY + _SENDER + b"\x08\x00" + headers(_checksum(headers(0)[:20])) + payload
    return body.ljust(size_bytes, b"\0")


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


@dataclass(frozen=True)
class Sent:
    """What went out, and when.

    Attributes:
        packets: Accepted by the kernel; what a full queue refused is not among them.
        first_s: CLOCK_MONOTONIC just before the first one.
        last_s: CLOCK_MONOTONIC just after the last one.
    """

    packets: int
    first_s: float
    last_s: float

    @property
    def elapsed_s(self) -> float:
        """From the first packet to the last."""
        return self.last_s - self.first_s


class Injector:
    """A raw socket at an interface of the calling thread's namespace.

    Args:
        interface: Where frames leave.
        bypass: Send past the interface's queueing discipline, so that the frame arrives at the other end at once.
        priority: What a kernel datapath's `set_queue` would have put on the packet; None leaves the choice of the
            class to the port's filters.
    """

    def __init__(self, interface: str, *, bypass: bool, priority: int | None = None) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER_BYTES)
        if bypass:
            self._socket.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        if priority is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, priority)
        self._socket.bind((interface, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, data: bytes) -> bool:
        """Send one frame; False if a full queue refused it."""
        try:
            self._socket.send(data)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return False
            raise
        return True


@dataclass(frozen=True)
class Stream:
    """Frames to send at a constant rate.

    Attributes:
        injector: Where.
        data: The frame.
        rate_per_s: Frames per second.
        head: Frames sent at once, before the first paced one.
        bucket: Frames for which there are tokens in the full bucket of what they are sent to, as it is at first.
        tokens_per_s: Frames a second for which it gets more; 0 where there is no bucket, or it may fill up.
    """

    injector: Injector
    data: bytes
    rate_per_s: float
    head: int = 0
    bucket: float = 0.0
    tokens_per_s: float = 0.0


class Pacer:
    """Sends several streams at once, each at its own rate, for as long as `run` or `keep_up` is called.

    Attributes:
        seen_s: CLOCK_MONOTONIC when it last looked or sent.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._streams = streams
        self._start_s = time.monotonic()
        self._done = [0] * len(streams)
        self._accepted = [0] * len(streams)
        self._first_s = [self._start_s] * len(streams)
        self._last_s = [self._start_s] * len(streams)
        self.seen_s = self._start_s
        self._calm_from_s = self._start_s
        self._wasted_s = [0.0] * len(streams)
        self._absences: list[tuple[float, float]] = []

    def run(self, until_s: float) -> None:
        """Send what is due until CLOCK_MONOTONIC `until_s`.

        Frames are handed over in turn, a few at a time, so that a receiver's buffer never holds one stream's burst
        while another waits for its place. They leave on time whatever else runs: a meter whose bucket holds
        milliseconds would fill up in a pause, and seem slower than it is.
        """
        with punctually():
            while time.monotonic() < until_s:
                self._round()

    def keep_up(self, within_s: float = 0.5) -> float:
        """Send on until every bucket is empty and an absence of the host, if there was one, is made up for.

        Returns:
            How late what was sent to may be all the same, seconds: 0 unless the host did not come to rest.
        """
        began_s = time.monotonic()
        with punctually():
            while time.monotonic() < began_s + within_s:
                self._round()
                if self._calm_from_s <= self.seen_s and not any(map(self._unspent_s, range(len(self._streams)))):
                    return 0.0
        return max(0.0, *map(self._unspent_s, range(len(self._streams))), *self.absences_s(began_s))

    @property
    def wasted_s(self) -> tuple[float, ...]:
        """How long, of each stream, the bucket can have been full for want of frames since the start, seconds.

        A sender that is behind wastes no token as long as there are frames left of what it has sent.
        """
        return tuple(self._wasted_s)

    def absences_s(self, since_s: float) -> tuple[float, ...]:
        """How long each absence of the host since a moment was, seconds."""
        return tuple(end_s - max(begin_s, since_s) for begin_s, end_s in self._absences if end_s > since_s)

    def _round(self) -> bool:
        """Send a few frames of each stream that has some due; whether any had."""
        sent = False
        self._look()
        began_s = self.seen_s
        for index in range(len(self._streams)):
            if (due := self._due(index)) > 0:
                self._send(index, min(due, 4))
                sent = True
        # Who is sent to may have no other processor, and Linux stops whoever takes all of one in real time.
        time.sleep(_OTHERS_SHARE * (self.seen_s - began_s) if sent else 0.0003)
        return sent

    def _due(self, index: int) -> int:
        """Frames of a stream that should have been sent by now, and were not."""
        stream = self._streams[index]
        return stream.head + int((self.seen_s - self._start_s) * stream.rate_per_s) - self._done[index]

    def _lacked_s(self, index: int) -> float:
        """How much longer than its frames last a stream's bucket has been getting tokens for them, seconds."""
        stream = self._streams[index]
        if not stream.tokens_per_s:
            return 0.0
        return self.seen_s - self._start_s - self._done[index] / stream.tokens_per_s

    def _unspent_s(self, index: int) -> float:
        """For how long a stream's bucket has been getting the tokens that are in it, seconds."""
        stream = self._streams[index]
        if not stream.tokens_per_s:
            return 0.0
        wasted_s = max(self._wasted_s[index], self._lacked_s(index))
        return max(0.0, stream.bucket / stream.tokens_per_s + self._lacked_s(index) - wasted_s)

    def _send(self, index: int, count: int) -> None:
        stream = self._streams[index]
        # It is fullest just before frames come.
        self._wasted_s[index] = max(self._wasted_s[index], self._lacked_s(index))
        if not self._done[index]:
            self._first_s[index] = time.monotonic()
        for _ in range(count):
            self._accepted[index] += stream.injector.send(stream.data)
        self._done[index] += count
        self._look()
        self._last_s[index] = self.seen_s

    def _look(self) -> None:
        """Whoever was away for longer than is allowed for waits as long again, until that is made up for."""
        before_s, self.seen_s = self.seen_s, time.monotonic()
        if self.seen_s - before_s > SWITCH_LATENESS_S:
            self._absences.append((before_s, self.seen_s))
            self._calm_from_s = self.seen_s + max(_CALM_S, self.seen_s - before_s)

    def sent(self) -> tuple[Sent, ...]:
        """What each stream has sent so far."""
        return tuple(map(Sent, self._accepted, self._first_s, self._last_s))


@contextmanager
def punctually() -> Iterator[None]:
    """Real-time priority for the calling thread, where it is permitted."""
    before, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, before, parameters)


def flood(injector: Injector, data: bytes, count: int) -> Sent:
    """Send `count` frames as fast as possible; few enough for the receiver's socket buffer if it is not looking."""
    first = time.monotonic()
    accepted = sum(injector.send(data) for _ in range(count))
    return Sent(accepted, first, time.monotonic())
