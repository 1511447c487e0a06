"""The compiled loop that begins calls at their times and reads answers meanwhile: libc and libnghttp2, no Python.

It does what usually happens on a connection and nothing else: whatever is unusual (a socket with an error, a window of
flow control that is full, a server that is ending) it leaves as it finds it, and says so. What it did stands in the
session's notes, in order and with its times; Python reads them once nothing is due for a while.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from testbed.traffic.nghttp2_compiled import (
    EVENTS,
    FULL_BYTES,
    KEPT,
    MOST_EVENTS,
    NOW,
    OPEN,
    STREAM,
    Octets,
    Words,
    fill,
    note,
    receive,
    submit,
)

if TYPE_CHECKING:
    from testbed.traffic.grpc_connection import Call

BEGUN, SKIPPED, OVERDUE = range(3, 6)
"""Kinds of events: a call was begun at this time, or was not since too many are open, or since its deadline is past.
The code is its number."""

SLOTS = 16
"""Most calls that are planned ahead."""
_DUE, _UNTIL, _ADDRESS, _SIZE, _NUMBER = range(5)

READ_BYTES = 1024
"""Read at a time: a few answers, so that what is due is not kept by a thousand."""
FREE_NS = 200_000
"""Nothing is due for so long: time for Python, several times what making a message takes."""
CLOCK_ONLY_NS = 100_000
"""Whoever watches the clock for longer reads answers meanwhile, but for so long."""
UNREAD_NS = 1_000_000
"""What is due goes before answers, unless they have been left unread for so long."""
_MOST_TOLD = MOST_EVENTS // 2
_ROOM_BYTES = 1 << 20

_LONGEST_TIMEOUT_NS = 99_999_999_000
"""gRPC writes eight digits at most, here of microseconds; who has longer is begun by Python."""
VALUE_BYTES = 16

_CLOCK_MONOTONIC = 1
_SECOND_NS = 1_000_000_000
_FLAGS = 0x40 | 0x4000  # MSG_DONTWAIT, MSG_NOSIGNAL
_POLLIN, _POLLRDHUP = 0x1, 0x2000

_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.voidptr))
_ppoll = types.ExternalFunction("ppoll", types.int32(types.voidptr, types.uint64, types.voidptr, types.intp))
_send = types.ExternalFunction("send", types.intp(types.int32, types.voidptr, types.uintp, types.int32))
_wants_more = types.ExternalFunction("nghttp2_session_want_read", types.int32(types.intp))
_recv = types.ExternalFunction("recv", types.intp(types.int32, types.voidptr, types.uintp, types.int32))


class Left(IntEnum):
    """Why the loop came back.

    Attributes:
        TIME: Nothing is due for a while, or nothing is planned.
        LATER: Its time is over, or a signal arrived.
        UNUSUAL: Something that it leaves to others.
        UNSENT: The socket took only a part of what was to be sent.
        FAILED: The library found an error.
    """

    TIME, LATER, UNUSUAL, UNSENT, FAILED = range(5)


_TIME, _LATER, _UNUSUAL, _UNSENT, _FAILED = map(int, Left)
_DONE = -1


@dataclass(eq=False)
class Plan:
    """Calls of one method that are to begin, in order.

    Attributes:
        path: The method, as in `/package.Service/Method`.
        spin_ns: Watch the clock, instead of sleeping, for this long before a call is due.
        most_open: Calls due while so many are open are skipped.
        on_due: Told the kind of event, the number of its call and the time (CLOCK_MONOTONIC) once one is begun or left
            out.
        on_end: Told the number of a call and the call once it has ended; must not begin calls.
        slots: Words of each, [SLOTS, 5].
        bodies: What they send, by slot.
        begin: Number of the first that has not been begun or left out.
        end: Number of the next one to be planned.
        read_ns: When answers were last looked for.
    """

    path: str
    spin_ns: int
    most_open: int
    on_due: Callable[[int, int, int], None]
    on_end: Callable[[int, Call], None]
    slots: Words = field(default_factory=lambda: np.zeros((SLOTS, 5), np.int64))
    bodies: list[Octets] = field(default_factory=lambda: [np.zeros(0, np.uint8)] * SLOTS)
    begin: int = 0
    end: int = 0
    read_ns: int = 0

    def __len__(self) -> int:
        return self.end - self.begin

    @property
    def full(self) -> bool:
        """Whether there is no room for another."""
        return len(self) >= SLOTS

    def add(self, due_ns: int, until_ns: int, body: bytes) -> None:
        """Plan the next call: when it is due and given up (CLOCK_MONOTONIC), and what it sends."""
        slot, octets = self.end % SLOTS, np.frombuffer(body, np.uint8)
        self.bodies[slot] = octets
        self.slots[slot] = due_ns, until_ns, octets.ctypes.data, octets.size, self.end
        self.end += 1

    def times_of(self, number: int) -> tuple[int, int]:
        """When a call of the last `SLOTS` is due and given up."""
        due_ns, until_ns, *_ = self.slots[number % SLOTS].tolist()
        return due_ns, until_ns

    def body_of(self, number: int) -> Octets:
        """What a call of the last `SLOTS` sends."""
        return self.bodies[number % SLOTS]


@numba.njit(cache=True)
def _clock_ns(timespec: npt.NDArray[np.int64]) -> int:
    _clock_gettime(_CLOCK_MONOTONIC, timespec.ctypes)
    return timespec[0] * _SECOND_NS + timespec[1]  # type: ignore[no-any-return]


@numba.njit(cache=True)
def _write_timeout(value: Octets, left_ns: int) -> int:
    """A time as gRPC writes it, in microseconds and rounded up; gives its length."""
    left_us = -(-left_ns // 1000)
    digits = 1
    while 10**digits <= left_us:
        digits += 1
    for k in range(digits):
        value[digits - 1 - k] = 48 + left_us % 10
        left_us //= 10
    value[digits] = 117  # u
    return digits + 1


@numba.njit(cache=True)
def _flush(fd: int, session: int, out: Octets, piece: Words) -> tuple[int, int, int]:
    """Send what is to be sent: whether that is done, and which part of `out` is not sent or which error was found."""
    while True:
        size = fill(session, out, piece)
        if size < 0:
            return _FAILED, size, 0
        sent = 0
        if size > 0:
            sent = max(_send(fd, out.ctypes, size, _FLAGS), 0)
        if sent < size:
            return _UNSENT, sent, size
        if size < FULL_BYTES:
            return _DONE, 0, 0


@numba.njit(cache=True)
def _read(  # noqa: PLR0917 - compiled functions take no keywords
    fd: int, session: int, words: Words, data: Octets, out: Octets, piece: Words, wait_ns: int
) -> tuple[int, int, int, int]:
    """Wait for answers for so long and read some of them; gives as `_flush` does, and the time."""
    timespec, poll = np.zeros(2, np.int64), np.zeros(2, np.int32)
    timespec[0], timespec[1] = wait_ns // _SECOND_NS, wait_ns % _SECOND_NS
    poll[0], poll[1] = fd, _POLLIN | _POLLRDHUP
    ready = _ppoll(poll.ctypes, 1, timespec.ctypes, 0)
    now_ns = _clock_ns(timespec)
    if ready <= 0:
        return _LATER if ready < 0 else _DONE, 0, 0, now_ns
    if poll[1] >> 16 != _POLLIN:
        return _UNUSUAL, 0, 0, now_ns
    got = _recv(fd, data.ctypes, data.size, _FLAGS)
    if got <= 0:
        return _UNUSUAL, 0, 0, now_ns
    words[NOW] = now_ns = _clock_ns(timespec)
    took = receive(session, data, got)
    if took < 0:
        return _FAILED, took, 0, now_ns
    how, sent, size = _flush(fd, session, out, piece)
    if how == _DONE and _wants_more(session) == 0:
        how = _UNUSUAL
    return how, sent, size, now_ns


@numba.njit(cache=True, nogil=True)
def begin_due(  # noqa: C901, PLR0911, PLR0912, PLR0917 - one loop, and compiled functions take no keywords
    fd: int,
    session: int,
    source: int,
    fields: Words,
    value: Octets,
    words: Words,
    octets: Octets,
    out: Octets,
    piece: Words,
    slots: Words,
    begin: int,
    end: int,
    spin_ns: int,
    most_open: int,
    until_ns: int,
    read_ns: int,
    busy: bool,
) -> tuple[int, int, int, int, int]:
    """Begin planned calls when they are due and read answers, until a time or until there is something else to do.

    Args:
        fd: Connected stream socket, of which nothing waits to be sent.
        session: Address of nghttp2_session, of which no body waits.
        source: Address of nghttp2_data_provider.
        fields: Header fields of a request as nghttp2_nv lie in memory, [n, 5], the last one its timeout.
        value: Where the timeout's value lies, [VALUE_BYTES].
        words: The session's notes, and as bytes in `octets`.
        octets: See above.
        out: Room for what is sent, [OUT_BYTES].
        piece: A word of its own.
        slots: The plan's.
        begin: Number of the first call that is planned.
        end: Number behind the last one.
        spin_ns: See `Plan`.
        most_open: See `Plan`.
        until_ns: CLOCK_MONOTONIC at which to come back; a call that is begun brings its deadline forward.
        read_ns: When answers were last looked for.
        busy: Whether there is something to do once there is time.

    Returns:
        Which of `Left`; two numbers of `_flush`; the new `begin` and `read_ns`.
    """
    timespec, data = np.zeros(2, np.int64), np.empty(READ_BYTES, np.uint8)
    while True:
        now_ns = _clock_ns(timespec)
        if now_ns >= until_ns or words[EVENTS] > _MOST_TOLD or words[KEPT] > octets.size - _ROOM_BYTES:
            return _LATER, 0, 0, begin, read_ns
        if begin == end:
            return _TIME, 0, 0, begin, read_ns
        slot = slots[begin % SLOTS]
        last_ns = slot[_DUE] - min(spin_ns, CLOCK_ONLY_NS)
        if now_ns >= last_ns and now_ns - read_ns < UNREAD_NS:
            if now_ns < slot[_DUE]:
                continue
            left_ns = slot[_UNTIL] - now_ns
            words[NOW] = now_ns
            if words[OPEN] >= most_open or left_ns <= 0:
                kind = SKIPPED if words[OPEN] >= most_open else OVERDUE
                note(words, octets, kind, 0, slot[_NUMBER], data[:0])
                begin += 1
                continue
            if left_ns > _LONGEST_TIMEOUT_NS:
                return _UNUSUAL, 0, 0, begin, read_ns
            fields[-1, 3] = _write_timeout(value, left_ns)
            stream = submit(
                session, fields.ctypes.data, fields.shape[0], source, words, slot[_ADDRESS], slot[_SIZE], True
            )
            if stream < 0:
                return _FAILED, stream, 0, begin, read_ns
            note(words, octets, BEGUN, stream, slot[_NUMBER], data[:0])
            begin += 1
            until_ns = min(until_ns, slot[_UNTIL])
            how, sent, size = _flush(fd, session, out, piece)
            if how == _DONE and words[STREAM] != 0:
                how = _UNUSUAL
            if how != _DONE:
                return how, sent, size, begin, read_ns
            continue
        if last_ns - now_ns > FREE_NS and (busy or words[EVENTS] > 0):
            return _TIME, 0, 0, begin, read_ns
        wait_ns = max(min(slot[_DUE] - spin_ns, until_ns) - now_ns, 0)
        how, sent, size, at_ns = _read(fd, session, words, data, out, piece, wait_ns)
        if how != _UNUSUAL:
            read_ns = at_ns
        if how != _DONE:
            return how, sent, size, begin, read_ns
