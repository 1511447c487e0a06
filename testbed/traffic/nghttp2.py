"""The client's half of an HTTP/2 connection, by libnghttp2: bytes in, bytes out, no socket and no clock.

The library frames, compresses headers and keeps to both ends' flow control; what is declared here is the part of its
interface (nghttp2.h) that one unary call after another needs. It is used rather than gRPC's own client because it works
in the caller's thread: gRPC hands calls to threads of its own, which a sender then waits for.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Sequence
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    byref,
    c_char_p,
    c_int,
    c_int32,
    c_size_t,
    c_ssize_t,
    c_uint8,
    c_uint32,
    c_void_p,
)
from functools import cache
from typing import Any

NO_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM, INADEQUATE_SECURITY = 0x0, 0x7, 0x8, 0xB, 0xC
"""Error codes of RFC 9113, section 7, that mean something to a call."""

_LIBRARY = "libnghttp2.so.14"
_NO_INDEX = 1
_END_OF_DATA = 1
_DEFERRED = -508
_ENABLE_PUSH, _INITIAL_WINDOW_SIZE = 2, 4
_LARGEST_WINDOW = (1 << 31) - 1


class _Field(Structure):
    _fields_ = (
        ("name", c_char_p),
        ("value", c_char_p),
        ("name_bytes", c_size_t),
        ("value_bytes", c_size_t),
        ("flags", c_uint8),
    )


class _Setting(Structure):
    _fields_ = (("identifier", c_int32), ("value", c_uint32))


class _FrameHeader(Structure):
    _fields_ = (("payload_bytes", c_size_t), ("stream", c_int32), ("kind", c_uint8), ("flags", c_uint8))


_OnHeader = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_uint8, c_void_p)
_OnData = CFUNCTYPE(c_int, c_void_p, c_uint8, c_int32, c_void_p, c_size_t, c_void_p)
_OnClose = CFUNCTYPE(c_int, c_void_p, c_int32, c_uint32, c_void_p)
_Read = CFUNCTYPE(c_ssize_t, c_void_p, c_int32, c_void_p, c_size_t, POINTER(c_uint32), c_void_p, c_void_p)


class _Source(Structure):
    _fields_ = (("unused", c_void_p), ("read", _Read))


@cache
def _library() -> ctypes.CDLL:
    """The library with its functions declared.

    Raises:
        OSError: It is not installed.
    """
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise OSError(f"{_LIBRARY} cannot be loaded ({error}); install the package libnghttp2-14") from error
    session, pointer = c_void_p, POINTER(c_void_p)
    declared: dict[str, tuple[Any, list[Any]]] = {
        "session_callbacks_new": (c_int, [pointer]),
        "session_callbacks_del": (None, [c_void_p]),
        "session_callbacks_set_on_header_callback": (None, [c_void_p, _OnHeader]),
        "session_callbacks_set_on_data_chunk_recv_callback": (None, [c_void_p, _OnData]),
        "session_callbacks_set_on_stream_close_callback": (None, [c_void_p, _OnClose]),
        "session_client_new": (c_int, [pointer, c_void_p, c_void_p]),
        "session_del": (None, [session]),
        "submit_settings": (c_int, [session, c_uint8, POINTER(_Setting), c_size_t]),
        "session_set_local_window_size": (c_int, [session, c_uint8, c_int32, c_int32]),
        "session_check_request_allowed": (c_int, [session]),
        "submit_request": (c_int32, [session, c_void_p, POINTER(_Field), c_size_t, POINTER(_Source), c_void_p]),
        "submit_rst_stream": (c_int, [session, c_uint8, c_int32, c_uint32]),
        "session_resume_data": (c_int, [session, c_int32]),
        "session_mem_send": (c_ssize_t, [session, pointer]),
        "session_mem_recv": (c_ssize_t, [session, c_char_p, c_size_t]),
        "session_want_read": (c_int, [session]),
        "session_want_write": (c_int, [session]),
        "strerror": (c_char_p, [c_int]),
    }
    for name, (result, arguments) in declared.items():
        function = getattr(library, f"nghttp2_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def require() -> None:
    """Make sure that the library is there.

    Raises:
        OSError: It is not installed.
    """
    _library()


class Fields:
    """Header fields of requests that differ in one only, which is sent literally and never indexed."""

    def __init__(self, constant: Sequence[tuple[bytes, bytes]], own: bytes) -> None:
        """Lay them out.

        Args:
            constant: Names and values of those that do not differ, the pseudo-header fields first.
            own: Name of the one that does.
        """
        constants = [_Field(name, value, len(name), len(value), 0) for name, value in constant]
        self._array = (_Field * (len(constants) + 1))(*constants, _Field(own, b"", len(own), 0, _NO_INDEX))

    def with_own(self, value: bytes) -> ctypes.Array[_Field]:
        """The fields, the one that differs with this value; until the next call."""
        field = self._array[-1]
        field.value, field.value_bytes = value, len(value)
        return self._array


class Session:
    """One connection's state. Bodies leave in the order in which they were submitted, none cut by a later one.

    That is the order of a queue; the library's own would put a body that a window has cut behind all that wait.
    """

    def __init__(
        self,
        *,
        names: Collection[bytes],
        on_header: Callable[[int, bytes, bytes], None],
        on_data: Callable[[int, bytes], None],
        on_close: Callable[[int, int], None],
    ) -> None:
        """Begin a connection; what must be sent first is waiting to be taken.

        Args:
            names: Of the fields of an answer that matter.
            on_header: Told the stream, name and value of each of them.
            on_data: Told the stream and bytes of each piece of a body.
            on_close: Told the stream and the error code once a stream is over.

        Raises:
            OSError: libnghttp2 is not installed.
        """
        self._library = _library()
        self._on_header, self._on_data, self._on_close = on_header, on_data, on_close
        self._names, self._lengths = frozenset(names), frozenset(map(len, names))
        self._bodies: dict[int, tuple[bytes, int]] = {}
        self._source = _Source(None, _Read(self._read))
        self._chunk = c_void_p()
        self._callbacks = (_OnHeader(self._header), _OnData(self._data), _OnClose(self._close))
        callbacks, session = c_void_p(), c_void_p()
        self._library.nghttp2_session_callbacks_new(byref(callbacks))
        kinds = ("on_header", "on_data_chunk_recv", "on_stream_close")
        for kind, callback in zip(kinds, self._callbacks, strict=True):
            getattr(self._library, f"nghttp2_session_callbacks_set_{kind}_callback")(callbacks, callback)
        self._library.nghttp2_session_client_new(byref(session), callbacks, None)
        self._library.nghttp2_session_callbacks_del(callbacks)
        self._session = session
        # Answers stay in order: none waits for a part of a window that others have used up.
        settings = (_Setting * 2)(_Setting(_ENABLE_PUSH, 0), _Setting(_INITIAL_WINDOW_SIZE, _LARGEST_WINDOW))
        self._library.nghttp2_submit_settings(session, 0, settings, len(settings))
        self._library.nghttp2_session_set_local_window_size(session, 0, 0, _LARGEST_WINDOW)

    @property
    def accepting(self) -> bool:
        """Whether the server lets further requests begin."""
        return bool(self._library.nghttp2_session_check_request_allowed(self._session))

    @property
    def over(self) -> bool:
        """Whether nothing more can come from the server."""
        return not self._library.nghttp2_session_want_read(self._session)

    def request(self, fields: Fields, own: bytes, body: bytes) -> int:
        """Begin a request with the constant fields and a value of its own field; gives its stream.

        Raises:
            ConnectionError: The connection carries no further request.
        """
        array = fields.with_own(own)
        submit = self._library.nghttp2_submit_request
        stream = self._checked(submit(self._session, None, array, len(array), byref(self._source), None))
        self._bodies[stream] = body, 0
        return stream

    def cancel(self, stream: int) -> None:
        """End a stream; what of its body has not been taken never is."""
        self._library.nghttp2_submit_rst_stream(self._session, 0, stream, CANCEL)

    def receive(self, data: bytes) -> None:
        """Take what the server sent; tells of all that it held.

        Raises:
            ConnectionError: It is not HTTP/2.
        """
        self._checked(self._library.nghttp2_session_mem_recv(self._session, data, len(data)))

    def take(self) -> bytes:
        """All that may be sent by now.

        Raises:
            ConnectionError: The connection cannot go on.
        """
        if not self._library.nghttp2_session_want_write(self._session):
            return b""
        pieces = []
        while size := self._checked(self._library.nghttp2_session_mem_send(self._session, byref(self._chunk))):
            pieces.append(ctypes.string_at(self._chunk, size))
        return b"".join(pieces)

    def close(self) -> None:
        """Free it."""
        self._library.nghttp2_session_del(self._session)

    def _checked(self, result: int) -> int:
        if result < 0:
            raise ConnectionError(f"HTTP/2: {self._library.nghttp2_strerror(result).decode()}")
        return result

    def _read(self, _session: int, stream: int, room: int, room_bytes: int, flags: Any, *_: int) -> int:
        if stream != next(iter(self._bodies)):
            return _DEFERRED
        body, begin = self._bodies[stream]
        end = min(begin + room_bytes, len(body))
        ctypes.memmove(room, body[begin:end], end - begin)
        self._bodies[stream] = body, end
        if end == len(body):
            flags[0] = _END_OF_DATA
            self._done(stream)
        return end - begin

    def _done(self, stream: int) -> None:
        """Let the next body begin where this one was the first."""
        first = next(iter(self._bodies), None) == stream
        self._bodies.pop(stream, None)
        if first and self._bodies:
            self._library.nghttp2_session_resume_data(self._session, next(iter(self._bodies)))

    def _header(
        self, _session: int, frame: int, name: int, name_bytes: int, value: int, value_bytes: int, *_: int
    ) -> int:
        # The length first: most fields are none that matter, and each costs time that a due request may be waiting for.
        if name_bytes in self._lengths and (found := ctypes.string_at(name, name_bytes)) in self._names:
            stream = c_int32.from_address(frame + _FrameHeader.stream.offset).value
            self._on_header(stream, found, ctypes.string_at(value, value_bytes))
        return 0

    def _data(self, _session: int, _flags: int, stream: int, data: int, size: int, _user: int) -> int:
        self._on_data(stream, ctypes.string_at(data, size))
        return 0

    def _close(self, _session: int, stream: int, error: int, _user: int) -> int:
        self._done(stream)
        self._on_close(stream, error)
        return 0
