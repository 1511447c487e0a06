"""Unary gRPC calls over one TCP connection, all in the caller's thread, which also waits for the network there.

Nothing happens but in `begin`, `begin_due`, `cancel_all` and `serve`: whoever has calls open must serve them. A
connection that is lost fails its calls and is made again, as gRPC's channel does. Neither TLS nor streams of messages.

The protocol is gRPC's own: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from typing import Self, cast
from urllib.parse import unquote

import grpc

from testbed.traffic import nghttp2, punctual
from testbed.traffic.punctual import Left, Plan

_RETRY_NS = (100_000_000, 500_000_000)
"""A server that starts again is to be found again soon: how long to rest at first, doubled up to the second."""
_PREFIX = struct.Struct(">?I")
_MOST_TIMEOUT = 99_999_999
_TIMEOUT_UNITS = ((1_000, b"u"), (1_000_000, b"m"), (1_000_000_000, b"S"), (60_000_000_000, b"M"))
_NAMES = (b":status", b"grpc-status", b"grpc-message")
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_RESET = {
    nghttp2.REFUSED_STREAM: grpc.StatusCode.UNAVAILABLE,
    nghttp2.CANCEL: grpc.StatusCode.CANCELLED,
    nghttp2.ENHANCE_YOUR_CALM: grpc.StatusCode.RESOURCE_EXHAUSTED,
    nghttp2.INADEQUATE_SECURITY: grpc.StatusCode.PERMISSION_DENIED,
    nghttp2.NO_ERROR: grpc.StatusCode.UNKNOWN,
}
"""What a stream that ended without a status means; INTERNAL for other errors."""


@dataclass(eq=False)
class Call:
    """One call.

    Attributes:
        deadline_ns: CLOCK_MONOTONIC at which it is given up.
        on_end: Told once it has ended; must not begin calls.
        code: How it ended, UNKNOWN before that.
        details: What the server, or this end, says of a failure.
        answer: The message that came back, empty where none did.
        ended_ns: CLOCK_MONOTONIC when its end was read, -1 before that.
    """

    deadline_ns: int
    on_end: Callable[[Call], None]
    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    details: str = ""
    answer: bytes = b""
    ended_ns: int = -1

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.ended_ns >= 0


class CallError(Exception):
    """A call that was waited for had no answer."""


@dataclass(eq=False)
class _Answer:
    """What has come back on a stream."""

    call: Call
    fields: dict[bytes, bytes] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)

    def ending(self, error: int) -> tuple[grpc.StatusCode, str, bytes]:
        """Code, details and message of a stream that is over, with this error code of HTTP/2."""
        status = self.fields.get(b"grpc-status", b"").decode("latin-1")
        if not status.isdecimal():
            code = _RESET.get(error, grpc.StatusCode.INTERNAL)
            found = self.fields.get(b":status", b"nothing").decode("latin-1")
            return code, f"found HTTP status {found} and error {error} of HTTP/2, expected a gRPC status", b""
        code = _CODES.get(int(status), grpc.StatusCode.UNKNOWN)
        if code is not grpc.StatusCode.OK:
            return code, unquote(self.fields.get(b"grpc-message", b"").decode("latin-1")), b""
        whole = b"".join(self.pieces)
        message = whole[_PREFIX.size :]
        if whole[: _PREFIX.size] != _PREFIX.pack(False, len(message)):
            return grpc.StatusCode.INTERNAL, f"found {len(whole)} bytes, expected one uncompressed message", b""
        return code, "", message


class Connection:
    """Calls over one connection at a time; a context manager that closes it."""

    def __init__(self, target: str) -> None:
        """Begin to connect.

        Args:
            target: `HOST:PORT`.

        Raises:
            OSError: The host has no address, or libnghttp2 is not installed.
        """
        host, _, port = target.rpartition(":")
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        self._family, self._address = found[0], found[4]
        self._authority = target.encode()
        self._fields: dict[str, nghttp2.Fields] = {}
        self._open: dict[int, _Answer] = {}
        self._deadlines: list[tuple[int, int]] = []
        self._unsent = bytearray()
        self._socket: socket.socket | None = None
        self._why = ""
        self._rest_ns = self._retry_ns = self._now_ns = 0
        self._plan: Plan | None = None
        self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._disconnect("closed by this end")

    def fileno(self) -> int:
        """Of the socket, for who waits for answers to this and to something else; -1 where there is none just now."""
        return -1 if self._socket is None else self._socket.fileno()

    def begin(self, path: str, message: bytes, deadline_ns: int, on_end: Callable[[Call], None]) -> Call:
        """Begin a call, whatever became of earlier ones; where there is no connection it ends at once.

        Args:
            path: Method, as in `/package.Service/Method`.
            message: The serialised request.
            deadline_ns: CLOCK_MONOTONIC at which it is given up.
            on_end: Told once it has ended; must not begin calls.
        """
        self._now_ns = time.monotonic_ns()
        return self._begin(path, framed(message), Call(deadline_ns, on_end))

    def begin_due(self, plan: Plan, until_ns: int, *, busy: bool = False) -> bool:
        """Begin planned calls when they are due, whatever became of earlier ones, and serve those that are open.

        Args:
            plan: What is to begin.
            until_ns: CLOCK_MONOTONIC at which to come back, if not before.
            busy: Whether the caller has something to do that can wait until nothing is due for a while.

        Returns:
            Whether nothing is due for a while, or nothing is planned.
        """
        self._now_ns = time.monotonic_ns()
        self._expire()
        if self._socket is None or self._unsent or self._session.waiting:
            return self._begin_slowly(plan, until_ns, busy=busy)
        if self._deadlines:
            until_ns = min(until_ns, self._deadlines[0][0])
        self._plan = plan
        try:
            fields = self._fields_of(plan.path)
            left, unsent = self._session.begin_due(self._socket.fileno(), fields, plan, until_ns, busy=busy)
        except OSError as error:
            self._disconnect(str(error))
            return False
        self._unsent += unsent
        self._leave_if_over()
        if left is Left.UNUSUAL:
            return self._begin_slowly(plan, until_ns, busy=busy)
        return left is Left.TIME

    def ask(self, path: str, message: bytes, timeout_s: float) -> bytes:
        """One call, waited for.

        Raises:
            CallError: It had no answer.
        """
        call = self.begin(path, message, time.monotonic_ns() + int(timeout_s * 1e9), lambda _: None)
        while not call.ended:
            self._step(call.deadline_ns)
        if call.code is not grpc.StatusCode.OK:
            raise CallError(f"{call.code.name} ({call.details})")
        return call.answer

    def serve(self, until_ns: int) -> None:
        """Send, receive and give up what is to be, until a time (CLOCK_MONOTONIC); once if that is past."""
        while self._step(until_ns) < until_ns:
            pass

    def cancel_all(self) -> None:
        """End every call that is open."""
        self._now_ns = time.monotonic_ns()
        for stream, answer in list(self._open.items()):
            self._give_up(stream, answer, grpc.StatusCode.CANCELLED)
        self._send()

    def _step(self, until_ns: int) -> int:
        """Wait for the network, a deadline or a time, whichever is first, and do what is to be done; gives the time."""
        self._now_ns = time.monotonic_ns()
        self._expire()
        if self._socket is None and self._now_ns >= self._retry_ns:
            self._connect()
        moments = [until_ns, *(self._deadlines[0][:1] if self._deadlines else ())]
        if self._socket is None:
            moments.append(self._retry_ns)
        left_s = max(min(moments) - self._now_ns, 0) / 1e9
        if self._socket is None:
            time.sleep(left_s)
        else:
            waiting = [self._socket]
            readable, writable, _ = select.select(waiting, waiting if self._unsent else [], [], left_s)
            if readable:
                self._receive()
            elif writable:
                self._send()
        return time.monotonic_ns()

    def _begin_slowly(self, plan: Plan, until_ns: int, *, busy: bool) -> bool:
        """What `begin_due` does, one thing at a time, whatever the state of the connection."""
        if not len(plan):
            self._step(0)
            return True
        due_ns, deadline_ns = plan.times_of(plan.begin)
        now_ns, last_ns = time.monotonic_ns(), due_ns - min(plan.spin_ns, punctual.CLOCK_ONLY_NS)
        if now_ns < last_ns or now_ns - plan.read_ns >= punctual.UNREAD_NS:
            free = busy and last_ns - now_ns > punctual.FREE_NS
            plan.read_ns = self._step(0 if free else min(due_ns - plan.spin_ns, until_ns))
            return free
        while (now_ns := time.monotonic_ns()) < due_ns:
            pass
        self._now_ns, number = now_ns, plan.begin
        plan.begin += 1
        if len(self._open) >= plan.most_open or now_ns >= deadline_ns:
            kind = punctual.SKIPPED if len(self._open) >= plan.most_open else punctual.OVERDUE
            plan.on_due(kind, number, now_ns)
            return False
        plan.on_due(punctual.BEGUN, number, now_ns)
        call = Call(deadline_ns, partial(plan.on_end, number))
        self._begin(plan.path, plan.body_of(number).tobytes(), call)
        return False

    def _begin(self, path: str, body: bytes, call: Call) -> Call:
        if self._socket is None or not self._session.accepting:
            why = self._why or "the server lets no more calls begin"
            self._end(call, self._now_ns, grpc.StatusCode.UNAVAILABLE, why)
            return call
        timeout = _timeout(max(call.deadline_ns - self._now_ns, 0))
        self._opened(self._session.request(self._fields_of(path), timeout, body), call)
        self._send()
        return call

    def _opened(self, stream: int, call: Call) -> None:
        self._open[stream] = _Answer(call)
        heappush(self._deadlines, (call.deadline_ns, stream))

    def _due(self, kind: int, stream: int, number: int, at_ns: int) -> None:
        plan = cast("Plan", self._plan)
        plan.on_due(kind, number, at_ns)
        if kind == punctual.BEGUN:
            self._opened(stream, Call(plan.times_of(number)[1], partial(plan.on_end, number)))

    def _expire(self) -> None:
        expired = False
        while self._deadlines:
            deadline_ns, stream = self._deadlines[0]
            answer = self._open.get(stream)
            if deadline_ns > self._now_ns and answer is not None:
                break
            heappop(self._deadlines)
            if answer is not None:
                self._give_up(stream, answer, grpc.StatusCode.DEADLINE_EXCEEDED)
                expired = True
        if expired:
            self._send()

    def _give_up(self, stream: int, answer: _Answer, code: grpc.StatusCode) -> None:
        del self._open[stream]
        self._session.cancel(stream)
        self._end(answer.call, self._now_ns, code, "given up by this end")

    def _connect(self) -> None:
        self._session = nghttp2.Session(
            names=_NAMES, on_header=self._header, on_data=self._data, on_close=self._closed, on_due=self._due
        )
        self._socket = socket.socket(self._family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # What is sent before it is connected waits; a failure is told by the first attempt to read.
        error = self._socket.connect_ex(self._address)
        if error not in {0, errno.EINPROGRESS}:
            self._disconnect(os.strerror(error))
            return
        self._why = ""
        self._send()

    def _disconnect(self, why: str) -> None:
        if self._socket is None:
            return
        self._socket.close()
        self._socket = None
        self._session.close()
        self._unsent.clear()
        self._deadlines.clear()
        self._why = why
        self._now_ns = time.monotonic_ns()
        self._retry_ns = self._now_ns + self._rest_ns
        self._rest_ns = min(max(2 * self._rest_ns, _RETRY_NS[0]), _RETRY_NS[1])
        lost, self._open = self._open, {}
        for answer in lost.values():
            self._end(answer.call, self._now_ns, grpc.StatusCode.UNAVAILABLE, why)

    def _send(self) -> None:
        if self._socket is None:
            return
        try:
            self._unsent += self._session.take(self._now_ns)
            if self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError as error:
            self._disconnect(str(error))

    def _receive(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._read(self._socket)
            self._session.receive(data, self._now_ns)
        except BlockingIOError:
            return
        except OSError as error:
            self._disconnect(str(error))
            return
        self._leave_if_over()
        self._send()

    def _leave_if_over(self) -> None:
        if self._session.over and not self._open:
            self._disconnect("the server is ending")

    def _read(self, connected: socket.socket) -> bytes:
        data = connected.recv(punctual.READ_BYTES)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._now_ns, self._rest_ns = time.monotonic_ns(), 0
        return data

    def _header(self, stream: int, name: bytes, value: bytes) -> None:
        if (answer := self._open.get(stream)) is not None:
            answer.fields[name] = value

    def _data(self, stream: int, piece: bytes) -> None:
        if (answer := self._open.get(stream)) is not None:
            answer.pieces.append(piece)

    def _closed(self, stream: int, error: int, at_ns: int) -> None:
        if (answer := self._open.pop(stream, None)) is not None:
            self._rest_ns = 0
            self._end(answer.call, at_ns, *answer.ending(error))

    def _end(self, call: Call, at_ns: int, code: grpc.StatusCode, details: str, message: bytes = b"") -> None:
        call.code, call.details, call.answer, call.ended_ns = code, details, message, at_ns
        call.on_end(call)

    def _fields_of(self, path: str) -> nghttp2.Fields:
        if path not in self._fields:
            constant = [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", path.encode()),
                (b":authority", self._authority),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                (b"user-agent", b"tail-latency-testbed"),
            ]
            self._fields[path] = nghttp2.Fields(constant, own=b"grpc-timeout")
        return self._fields[path]


def framed(message: bytes) -> bytes:
    """A message as gRPC sends it, uncompressed."""
    return _PREFIX.pack(False, len(message)) + message


def _timeout(left_ns: int) -> bytes:
    """A time as gRPC writes it, rounded up to the finest unit in which it has at most eight digits."""
    fitting = ((unit_ns, letter) for unit_ns, letter in _TIMEOUT_UNITS if left_ns <= _MOST_TIMEOUT * unit_ns)
    unit_ns, letter = next(fitting, _TIMEOUT_UNITS[-1])
    return b"%d%b" % (min(-(-left_ns // unit_ns), _MOST_TIMEOUT), letter)
