"""The client's half of an HTTP/2 connection, by libnghttp2: bytes in and out, and a loop that is lent the socket.

The library frames, compresses headers and keeps to both ends' flow control; what is declared here is the part of its
interface (nghttp2.h) that one unary call after another needs. It is used rather than gRPC's own client because it works
in the caller's thread: gRPC hands calls to threads of its own, which a sender then waits for.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import (
    POINTER,
    Structure,
    addressof,
    byref,
    c_char_p,
    c_int,
    c_int32,
    c_size_t,
    c_uint8,
    c_uint32,
    c_void_p,
)
from functools import cache
from typing import Any

import numpy as np

from testbed.traffic import nghttp2_compiled as compiled
from testbed.traffic import punctual
from testbed.traffic.punctual import Left, Plan

NO_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM, INADEQUATE_SECURITY = 0x0, 0x7, 0x8, 0xB, 0xC
"""Error codes of RFC 9113, section 7, that mean something to a call."""

_LIBRARY = "libnghttp2.so.14"
_NO_INDEX = 1
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


class _Source(Structure):
    _fields_ = (("unused", c_void_p), ("read", c_void_p))


@cache
def _library() -> ctypes.CDLL:
    """The library with its functions declared.

    Raises:
        OSError: It is not installed.
    """
    try:
        # Global, so that compiled code finds its functions by name.
        library = ctypes.CDLL(_LIBRARY, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise OSError(f"{_LIBRARY} cannot be loaded ({error}); install the package libnghttp2-14") from error
    session, pointer = c_void_p, POINTER(c_void_p)
    declared: dict[str, tuple[Any, list[Any]]] = {
        "session_callbacks_new": (c_int, [pointer]),
        "session_callbacks_del": (None, [c_void_p]),
        "session_callbacks_set_on_header_callback": (None, [c_void_p, c_void_p]),
        "session_callbacks_set_on_data_chunk_recv_callback": (None, [c_void_p, c_void_p]),
        "session_callbacks_set_on_stream_close_callback": (None, [c_void_p, c_void_p]),
        "session_client_new": (c_int, [pointer, c_void_p, c_void_p]),
        "session_del": (None, [session]),
        "submit_settings": (c_int, [session, c_uint8, POINTER(_Setting), c_size_t]),
        "session_set_local_window_size": (c_int, [session, c_uint8, c_int32, c_int32]),
        "session_check_request_allowed": (c_int, [session]),
        "submit_rst_stream": (c_int, [session, c_uint8, c_int32, c_uint32]),
        "session_resume_data": (c_int, [session, c_int32]),
        "session_want_read": (c_int, [session]),
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


def _nothing(*_: object) -> None:
    """Nobody is told."""


class Fields:
    """Header fields of requests that differ in one only, which is sent literally and never indexed.

    Attributes:
        layout: They as nghttp2_nv lie in memory, the one that differs last: name, value, their lengths and flags,
            int64[n, 5].
        value: Where its value lies, uint8[VALUE_BYTES].
    """

    def __init__(self, constant: Sequence[tuple[bytes, bytes]], own: bytes) -> None:
        """Lay them out.

        Args:
            constant: Names and values of those that do not differ, the pseudo-header fields first.
            own: Name of the one that does.
        """
        self.layout = np.zeros((len(constant) + 1, ctypes.sizeof(_Field) // 8), np.int64)
        self.value = np.zeros(punctual.VALUE_BYTES, np.uint8)
        self._array = (_Field * len(self.layout)).from_buffer(self.layout.data)
        for k, (name, value) in enumerate(constant):
            self._array[k] = _Field(name, value, len(name), len(value), 0)
        self._array[-1] = _Field(own, None, len(own), 0, _NO_INDEX)
        self.layout[-1, 1] = self.value.ctypes.data

    def with_own(self, value: bytes) -> tuple[int, int]:
        """Address and number of the fields, the one that differs with this value; until the next call."""
        self.value[: len(value)] = np.frombuffer(value, np.uint8)
        self.layout[-1, 3] = len(value)
        return self.layout.ctypes.data, len(self.layout)


class Session:
    """One connection's state. Bodies leave in the order in which they were submitted, none cut by a later one.

    That is the order of a queue; the library's own would put a body that a window has cut behind all that wait.
    """

    def __init__(
        self,
        *,
        names: Sequence[bytes],
        on_header: Callable[[int, bytes, bytes], None],
        on_data: Callable[[int, bytes], None],
        on_close: Callable[[int, int, int], None],
        on_due: Callable[[int, int, int, int], None],
    ) -> None:
        """Begin a connection; what must be sent first is waiting to be taken.

        Args:
            names: Of the fields of an answer that matter.
            on_header: Told the stream, name and value of each of them.
            on_data: Told the stream and bytes of each piece of a body.
            on_close: Told the stream, the error code and the time once a stream is over.
            on_due: Told the kind of event (`punctual`), the stream, the number of a planned call and the time.

        Raises:
            OSError: libnghttp2 is not installed.
        """
        self._library = _library()
        self._on_header, self._on_data, self._on_close, self._on_due = on_header, on_data, on_close, on_due
        self._names = list(names)
        self._bodies: dict[int, compiled.Octets] = {}
        self._leaving = 0
        self._notes = compiled.notes(self._names)
        self._octets, self._first_free = self._notes.view(np.uint8), compiled.first_free(self._notes)
        self._out, self._piece = np.zeros(compiled.OUT_BYTES, np.uint8), np.zeros(1, np.int64)
        self._source = _Source(None, compiled.read_body.address)
        callbacks, session = c_void_p(), c_void_p()
        self._library.nghttp2_session_callbacks_new(byref(callbacks))
        told = {
            "on_header": compiled.on_header,
            "on_data_chunk_recv": compiled.on_data,
            "on_stream_close": compiled.on_close,
        }
        for kind, callback in told.items():
            getattr(self._library, f"nghttp2_session_callbacks_set_{kind}_callback")(callbacks, callback.address)
        self._library.nghttp2_session_client_new(byref(session), callbacks, self._notes.ctypes.data)
        self._library.nghttp2_session_callbacks_del(callbacks)
        self._session = session.value or 0
        self._source_address = addressof(self._source)
        # Answers stay in order: none waits for a part of a window that others have used up.
        settings = (_Setting * 2)(_Setting(_ENABLE_PUSH, 0), _Setting(_INITIAL_WINDOW_SIZE, _LARGEST_WINDOW))
        self._library.nghttp2_submit_settings(self._session, 0, settings, len(settings))
        self._library.nghttp2_session_set_local_window_size(self._session, 0, 0, _LARGEST_WINDOW)
        # Loads the loop: done later, that would make the first calls late. With nothing planned it touches no socket.
        self.begin_due(-1, Fields((), b""), Plan("", 0, 0, on_due=_nothing, on_end=_nothing), 0, busy=False)

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
        octets, now = np.frombuffer(body, np.uint8), not self._bodies
        which, where = fields.with_own(own), (octets.ctypes.data, octets.size)
        begun = compiled.submit(self._session, *which, self._source_address, self._notes, *where, now)
        stream = self._checked(begun)
        self._bodies[stream] = octets
        if now:
            self._leaving = stream
        return stream

    def cancel(self, stream: int) -> None:
        """End a stream; what of its body has not been taken never is."""
        self._library.nghttp2_submit_rst_stream(self._session, 0, stream, CANCEL)

    def receive(self, data: bytes, now_ns: int = 0) -> None:
        """Take what the server sent; tells of all that it held, and of this time.

        Raises:
            ConnectionError: It is not HTTP/2.
        """
        self._notes[compiled.NOW] = now_ns
        took = compiled.receive(self._session, np.frombuffer(data, np.uint8), len(data))
        self._settle()
        self._checked(took)

    def take(self, now_ns: int = 0) -> bytes:
        """All that may be sent by now; tells of what ends with it, and of this time.

        Raises:
            ConnectionError: The connection cannot go on.
        """
        self._notes[compiled.NOW] = now_ns
        pieces = []
        while True:
            size = compiled.fill(self._session, self._out, self._piece)
            another = self._settle()
            if self._checked(size):
                pieces.append(self._out[:size].tobytes())
            if size < compiled.FULL_BYTES and not another:
                return b"".join(pieces)

    @property
    def waiting(self) -> bool:
        """Whether a body has not left."""
        return bool(self._bodies)

    def begin_due(self, fd: int, fields: Fields, plan: Plan, until_ns: int, *, busy: bool) -> tuple[Left, bytes]:
        """Begin planned calls over a socket while nothing unusual happens; see `punctual.begin_due`.

        Returns:
            Why it came back, and what the socket did not take.

        Raises:
            ConnectionError: The connection cannot go on.
        """
        how, first, last, plan.begin, plan.read_ns = punctual.begin_due(
            fd,
            self._session,
            self._source_address,
            fields.layout,
            fields.value,
            self._notes,
            self._octets,
            self._out,
            self._piece,
            plan.slots,
            plan.begin,
            plan.end,
            plan.spin_ns,
            plan.most_open,
            until_ns,
            plan.read_ns,
            busy,
        )
        if leaving := int(self._notes[compiled.STREAM]):
            self._leaving, self._bodies[leaving] = leaving, plan.body_of(plan.begin - 1)
        self._settle()
        left = Left(how)
        if left is Left.FAILED:
            self._checked(first)
        return left, self._out[first:last].tobytes() if left is Left.UNSENT else b""

    def close(self) -> None:
        """Free it."""
        self._library.nghttp2_session_del(self._session)

    def _checked(self, result: int) -> int:
        if result < 0:
            raise ConnectionError(f"HTTP/2: {self._library.nghttp2_strerror(result).decode()}")
        return result

    def _settle(self) -> bool:
        """Tell of what happened, and let the next body go where none is leaving; whether there was a next one."""
        self._tell()
        if not self._bodies or self._notes[compiled.STREAM]:
            return False
        self._bodies.pop(self._leaving, None)
        if not self._bodies:
            return False
        self._leaving, body = next(iter(self._bodies.items()))
        compiled.let_go(self._notes, self._leaving, body.ctypes.data, body.size)
        self._library.nghttp2_session_resume_data(self._session, self._leaving)
        return True

    def _tell(self) -> None:
        if not (events := int(self._notes[compiled.EVENTS])):
            return
        noted = self._notes[compiled.FIRST_EVENT :][: compiled.EVENT_WORDS * events]
        rows = noted.reshape(events, compiled.EVENT_WORDS).tolist()
        offset = self._first_free
        octets = self._octets[offset : self._notes[compiled.KEPT]].tobytes()
        self._notes[compiled.EVENTS], self._notes[compiled.KEPT] = 0, offset
        for kind, stream, what, begin, end, at_ns in rows:
            if kind == compiled.HEADER:
                self._on_header(stream, self._names[what], octets[begin - offset : end - offset])
            elif kind == compiled.DATA:
                self._on_data(stream, octets[begin - offset : end - offset])
            elif kind == compiled.CLOSE:
                self._over(stream)
                self._on_close(stream, what, at_ns)
            else:
                self._on_due(kind, stream, what, at_ns)

    def _over(self, stream: int) -> None:
        """What is left of this stream's body never leaves."""
        self._bodies.pop(stream, None)
        if stream == self._notes[compiled.STREAM]:
            self._notes[compiled.STREAM] = 0
