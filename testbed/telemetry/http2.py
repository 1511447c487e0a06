"""Walks the frames of an HTTP/2 stream of bytes and says which of them belong to which of a tenant's requests.

On one connection the frames of concurrent calls interleave, so a request is not a range of bytes but a set of frames:
those of one HTTP/2 stream, whose first data bytes carry the request's number (`testbed.traffic.request_wire`). Nothing
is decompressed: which frames are whose does not need it. RFC 9113 has the format.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from testbed.errors import FidelityError
from testbed.traffic.request_wire import GRPC_PREFIX_BYTES, ID_DIGITS, ID_TAG, sequences

IntArray = npt.NDArray[np.int64]
ByteArray = npt.NDArray[np.uint8]

DATA, HEADERS, CONTINUATION = 0x0, 0x1, 0x9
HEADER_BYTES = 9
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_IDENTIFIED_BYTES = GRPC_PREFIX_BYTES + len(ID_TAG) + ID_DIGITS


@dataclass(frozen=True)
class Frames:
    """Frames in the order of the byte stream; arrays of shape [n].

    Attributes:
        start: Stream offset of the frame's header.
        payload_bytes: Length of what follows the header.
        kind: Type of the frame.
        stream: HTTP/2 stream it belongs to, 0 for the connection.
    """

    start: IntArray
    payload_bytes: IntArray
    kind: npt.NDArray[np.uint8]
    stream: IntArray

    def __len__(self) -> int:
        return self.start.size

    @property
    def end(self) -> IntArray:
        """Stream offset behind the frame; [n]."""
        return self.start + HEADER_BYTES + self.payload_bytes

    @property
    def carries_call(self) -> npt.NDArray[np.bool_]:
        """Whether the frame carries a part of a call, rather than managing the connection; [n]."""
        return np.asarray((self.kind == DATA) | (self.kind == HEADERS) | (self.kind == CONTINUATION))


def walk(stream: ByteArray) -> Frames:
    """The complete frames of one direction of a connection.

    Args:
        stream: Its bytes from the beginning of the connection, or from any frame's beginning.

    Raises:
        FidelityError: Something that cannot be a frame: no HTTP/2, or the bytes do not begin at a frame.
    """
    first = len(_PREFACE) if stream[: len(_PREFACE)].tobytes() == _PREFACE else 0
    start, length, kind, owner, lost_at = _walk(stream, first)
    if lost_at >= 0:
        raise FidelityError(
            f"HTTP/2: found {stream[lost_at : lost_at + HEADER_BYTES].tobytes().hex(' ')} at stream offset {lost_at}, "
            "expected the header of a frame; let the capture begin before the connection does, or while it is idle"
        )
    return Frames(start, length, kind, owner)


def request_of_stream(stream: ByteArray, frames: Frames) -> tuple[IntArray, IntArray]:
    """Which request each HTTP/2 stream of a client carries.

    Args:
        stream: The client's bytes.
        frames: Their frames.

    Returns:
        HTTP/2 streams in ascending order, and the number of each one's request; probes and foreign calls are left out.
    """
    data = np.flatnonzero((frames.kind == DATA) & (frames.payload_bytes > 0))
    ids, first = np.unique(frames.stream[data], return_index=True)
    heads = [_head(stream, frames, data, int(at)) for at in first]
    numbers = sequences([head[GRPC_PREFIX_BYTES:] for head in heads])
    return ids[numbers >= 0], numbers[numbers >= 0]


def owners(frames: Frames, ids: IntArray, numbers: IntArray) -> IntArray:
    """The request each frame is a part of, -1 for none; [n].

    Args:
        frames: Frames of either direction.
        ids: HTTP/2 streams in ascending order, see `request_of_stream`.
        numbers: Their requests.
    """
    if ids.size == 0:
        return np.full(len(frames), -1, dtype=np.int64)
    at = np.minimum(np.searchsorted(ids, frames.stream), ids.size - 1)
    return np.where(frames.carries_call & (ids[at] == frames.stream), numbers[at], -1)


def _head(stream: ByteArray, frames: Frames, data: npt.NDArray[np.intp], at: int) -> bytes:
    """The first data bytes of the call whose first data frame is `data[at]`; flow control may have cut them apart."""
    frame = data[at]
    body = int(frames.start[frame]) + HEADER_BYTES
    head = stream[body : body + min(int(frames.payload_bytes[frame]), _IDENTIFIED_BYTES)].tobytes()
    for later in data[at + 1 :]:
        if len(head) >= _IDENTIFIED_BYTES:
            break
        if frames.stream[later] == frames.stream[frame]:
            body = int(frames.start[later]) + HEADER_BYTES
            wanted = min(int(frames.payload_bytes[later]), _IDENTIFIED_BYTES - len(head))
            head += stream[body : body + wanted].tobytes()
    return head


@numba.njit(cache=True)
def _walk(stream: ByteArray, first: int) -> tuple[IntArray, IntArray, npt.NDArray[np.uint8], IntArray, np.int64]:
    """Each frame's place depends on the one before, which only a loop can follow."""
    room = stream.size // 9 + 1
    start, length = np.empty(room, np.int64), np.empty(room, np.int64)
    kind, owner = np.empty(room, np.uint8), np.empty(room, np.int64)
    at, count, lost_at = np.int64(first), 0, np.int64(-1)
    while at + 9 <= stream.size:
        size = (np.int64(stream[at]) << 16) | (np.int64(stream[at + 1]) << 8) | np.int64(stream[at + 2])
        sort = stream[at + 3]
        identity = (
            (np.int64(stream[at + 5]) << 24)
            | (np.int64(stream[at + 6]) << 16)
            | (np.int64(stream[at + 7]) << 8)
            | np.int64(stream[at + 8])
        )
        of_a_call = sort <= 3 or sort in (5, 9)
        of_the_connection = sort in (4, 6, 7)
        sane = (of_a_call and 0 < identity < 1 << 31) or (of_the_connection and identity == 0)
        if not sane and not (sort == 8 and size == 4 and identity < 1 << 31):
            lost_at = at
            break
        if at + 9 + size > stream.size:
            break
        start[count], length[count], kind[count], owner[count] = at, size, sort, identity
        count += 1
        at += 9 + size
    return start[:count], length[:count], kind[:count], owner[:count], lost_at
