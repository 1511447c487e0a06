"""What each call costs of libnghttp2, compiled: its functions and its callbacks without Python in between.

The callbacks write down what they are told in a session's *notes*, int64 words with bytes behind them, and Python reads
those once the library has returned. Functions of the library are named, not pointed to, so that what is compiled can be
cached on disk; nothing here may be called before the library is loaded with its symbols global.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import types

Words = npt.NDArray[np.int64]
Octets = npt.NDArray[np.uint8]

STREAM, ADDRESS, BEGIN, END = range(4)
"""Words of the body that may leave: its stream, 0 for none, where it lies, and which part of it is still to go."""
EVENTS, KEPT, NAMES, NOW, OPEN = range(4, 9)
"""How many events, of `EVENT_WORDS` from `FIRST_EVENT` on; how many bytes are in use; how many names matter; the time
that events are given; how many requests are open, counted by who begins them and by the library's word of their end."""
_RANGES, MOST_NAMES = 9, 8
FIRST_EVENT, EVENT_WORDS = _RANGES + 2 * MOST_NAMES, 6
"""An event's words: its kind, its stream, the number of a name or the code of an error, begin and end of its bytes, and
its time."""
HEADER, DATA, CLOSE = range(3)
"""Kinds of events that the library tells of; a loop that begins requests may note others."""
MOST_EVENTS, MOST_BYTES = 1 << 17, 1 << 21
"""More than a piece of some kilobytes can hold, or a GOAWAY end; what is told beyond them fails the connection."""
_FIRST_BYTE = 8 * (FIRST_EVENT + EVENT_WORDS * MOST_EVENTS)
_OCTETS = _FIRST_BYTE + MOST_BYTES
_WORDS = _OCTETS // 8

OUT_BYTES = 1 << 17
"""Room for what is to be sent; more waits for the next turn, which is due while less than the largest frame fits."""
FULL_BYTES = OUT_BYTES - (1 << 15)

_DEFERRED, _CALLBACK_FAILURE = -508, -902
_END_OF_DATA = 1
_FRAME_STREAM = 2
"""nghttp2_frame_hd begins with a length of 64 bits; the stream is the third word of 32."""

_submit_request = types.ExternalFunction(
    "nghttp2_submit_request", types.int32(types.intp, types.intp, types.intp, types.uintp, types.intp, types.intp)
)
_mem_send = types.ExternalFunction("nghttp2_session_mem_send", types.intp(types.intp, types.voidptr))
_mem_recv = types.ExternalFunction("nghttp2_session_mem_recv", types.intp(types.intp, types.voidptr, types.uintp))
_copy_in = types.ExternalFunction("memcpy", types.voidptr(types.voidptr, types.intp, types.uintp))


def notes(names: list[bytes]) -> Words:
    """Empty notes of a session, for which header fields of these names matter.

    Raises:
        ValueError: More names than there is room for.
    """
    if len(names) > MOST_NAMES:
        raise ValueError(f"names of fields that matter: found {len(names)}, expected at most {MOST_NAMES}")
    words = np.zeros(_WORDS, np.int64)
    begin, octets = _FIRST_BYTE, words.view(np.uint8)
    for k, name in enumerate(names):
        octets[begin : begin + len(name)] = np.frombuffer(name, np.uint8)
        words[_RANGES + 2 * k : _RANGES + 2 * k + 2] = begin, begin + len(name)
        begin += len(name)
    words[NAMES], words[KEPT] = len(names), begin
    return words


def first_free(words: Words) -> int:
    """Where bytes of events begin, behind the names."""
    return int(words[_RANGES + 2 * words[NAMES] - 1]) if words[NAMES] else _FIRST_BYTE


@numba.njit(cache=True)
def note(words: Words, octets: Octets, kind: int, stream: int, what: int, told: Octets) -> int:  # noqa: PLR0917
    """Write an event down with the bytes it is told with; gives what a callback returns."""
    if words[EVENTS] >= MOST_EVENTS or words[KEPT] + told.size > octets.size:
        return _CALLBACK_FAILURE
    at = FIRST_EVENT + EVENT_WORDS * words[EVENTS]
    begin = words[KEPT]
    end = begin + told.size
    octets[begin:end] = told
    words[at], words[at + 1], words[at + 2] = kind, stream, what
    words[at + 3], words[at + 4], words[at + 5] = begin, end, words[NOW]
    words[EVENTS] += 1
    words[KEPT] = end
    return 0


@numba.njit(cache=True)
def _named(words: Words, octets: Octets, name: Octets) -> int:
    """The number of a name among those that matter, -1 for others."""
    for k in range(words[NAMES]):
        begin, end = words[_RANGES + 2 * k], words[_RANGES + 2 * k + 1]
        if end - begin == name.size and np.array_equal(octets[begin:end], name):
            return k
    return -1


_POINTER, _SIZE = types.voidptr, types.uintp


@numba.cfunc(types.int32(_POINTER, _POINTER, _POINTER, _SIZE, _POINTER, _SIZE, types.uint8, _POINTER), cache=True)
def on_header(  # noqa: PLR0917 - the library's
    _session: Any, frame: Any, name: Any, name_bytes: int, value: Any, value_bytes: int, _flags: int, user: Any
) -> Any:
    """nghttp2_on_header_callback: writes down the field if its name matters."""
    words, octets = numba.carray(user, (_WORDS,), np.int64), numba.carray(user, (_OCTETS,), np.uint8)
    which = _named(words, octets, numba.carray(name, (name_bytes,), np.uint8))
    if which < 0:
        return 0
    stream = numba.carray(frame, (_FRAME_STREAM + 1,), np.int32)[_FRAME_STREAM]
    return note(words, octets, HEADER, stream, which, numba.carray(value, (value_bytes,), np.uint8))


@numba.cfunc(types.int32(_POINTER, types.uint8, types.int32, _POINTER, _SIZE, _POINTER), cache=True)
def on_data(_session: Any, _flags: int, stream: int, data: Any, size: int, user: Any) -> Any:
    """nghttp2_on_data_chunk_recv_callback: writes down the piece."""
    words, octets = numba.carray(user, (_WORDS,), np.int64), numba.carray(user, (_OCTETS,), np.uint8)
    return note(words, octets, DATA, stream, 0, numba.carray(data, (size,), np.uint8))


@numba.cfunc(types.int32(_POINTER, types.int32, types.uint32, _POINTER), cache=True)
def on_close(_session: Any, stream: int, error: int, user: Any) -> Any:
    """nghttp2_on_stream_close_callback: writes down the error's code, and that one fewer is open."""
    words, octets = numba.carray(user, (_WORDS,), np.int64), numba.carray(user, (_OCTETS,), np.uint8)
    words[OPEN] -= 1
    return note(words, octets, CLOSE, stream, np.int64(error), octets[:0])


@numba.cfunc(
    types.intp(_POINTER, types.int32, _POINTER, _SIZE, types.CPointer(types.uint32), _POINTER, _POINTER), cache=True
)
def read_body(_session: Any, stream: int, room: Any, room_bytes: int, flags: Any, _source: Any, user: Any) -> Any:
    """nghttp2_data_source_read_callback: the next part of the body that may leave; others have to wait."""
    words = numba.carray(user, (FIRST_EVENT,), np.int64)
    if stream != words[STREAM]:
        return _DEFERRED
    size = min(np.int64(room_bytes), words[END] - words[BEGIN])
    _copy_in(room, words[ADDRESS] + words[BEGIN], size)
    words[BEGIN] += size
    if words[BEGIN] == words[END]:
        flags[0] = _END_OF_DATA
        words[STREAM] = 0
    return size


@numba.njit(cache=True)
def submit(  # noqa: PLR0917 - compiled functions take no keywords
    session: int, fields: int, count: int, source: int, words: Words, address: int, size: int, now: bool
) -> int:
    """Begin a request whose body leaves at once, or waits; gives its stream or an error's number.

    Args:
        session: Address of nghttp2_session.
        fields: Address of its header fields, an array of nghttp2_nv.
        count: How many there are.
        source: Address of nghttp2_data_provider.
        words: The session's notes.
        address: Where its body lies, until the library has sent all of it.
        size: Bytes of its body.
        now: Whether no other body waits.
    """
    stream = _submit_request(session, 0, fields, count, source, 0)
    if stream > 0:
        words[OPEN] += 1
        if now:
            let_go(words, stream, address, size)
    return stream  # type: ignore[no-any-return]


@numba.njit(cache=True)
def let_go(words: Words, stream: int, address: int, size: int) -> None:
    """Let this be the body that may leave."""
    words[STREAM], words[ADDRESS], words[BEGIN], words[END] = stream, address, 0, size


@numba.njit(cache=True)
def fill(session: int, out: Octets, piece: Words) -> int:
    """Gather what may be sent, until less than a frame fits; gives its bytes, or an error's number.

    Args:
        session: Address of nghttp2_session.
        out: Where to, [OUT_BYTES].
        piece: A word of its own.
    """
    size = 0
    while size < FULL_BYTES:
        got = _mem_send(session, piece.ctypes)
        if got < 0:
            return got  # type: ignore[no-any-return]
        if got > out.size - size:
            return _CALLBACK_FAILURE
        if got == 0:
            break
        _copy_in(out[size:].ctypes, piece[0], got)
        size += got
    return size


@numba.njit(cache=True)
def receive(session: int, data: Octets, size: int) -> int:
    """Hand over what was read; gives how much of it the library took, or an error's number."""
    return _mem_recv(session, data.ctypes, size)  # type: ignore[no-any-return]
