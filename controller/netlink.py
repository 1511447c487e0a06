"""A route netlink socket: batches of requests in one system call, dumps, attributes; it knows no qdisc.

A thousand tenants are fifteen thousand kernel objects, so requests travel many to a system call and only the last of
each batch is acknowledged (an error always is). General netlink libraries encode one message at a time and do not know
`u32` hash tables. Everything here acts on the network namespace of the calling process.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from controller.errors import KernelError

ROUTE = 0
REQUEST, ACK, DUMP, DUMP_INTERRUPTED = 0x01, 0x04, 0x300, 0x10
REPLACE, EXCLUSIVE, CREATE = 0x100, 0x200, 0x400
ERROR, DONE = 2, 3

_SOL_NETLINK, _EXTENDED_ACK, _SHORT_ACK = 270, 11, 10
_MESSAGE_ATTRIBUTE = 1
_NESTED_MASK = 0x3FFF
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_BATCH_BYTES = 32 * 1024
_RECEIVE_BYTES = 64 * 1024
_RECEIVE_BUFFER = 4 * 1024 * 1024
_SO_RCVBUFFORCE = 33
_DUMP_ATTEMPTS = 16


@dataclass(frozen=True)
class Request:
    """One message to the kernel.

    Attributes:
        kind: Message type (RTM_...).
        flags: CREATE, REPLACE, EXCLUSIVE; REQUEST and ACK are added on the way out.
        body: Fixed header and attributes.
        subject: The object concerned, for error messages.
    """

    kind: int
    flags: int
    body: bytes
    subject: str


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes of a message or of a nested attribute, by type; a repeated type keeps its last value."""
    found: dict[int, bytes] = {}
    position, end = 0, len(data)
    while position + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if length < 4:
            break
        found[kind & _NESTED_MASK] = data[position + 4 : position + length]
        position += (length + 3) & ~3
    return found


class RouteSocket:
    """A NETLINK_ROUTE socket; a context manager."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        self._socket.setsockopt(_SOL_NETLINK, _EXTENDED_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _SHORT_ACK, 1)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._socket.close()

    def execute(self, requests: Sequence[Request]) -> None:
        """Send `requests` in order and wait until the kernel has handled all of them.

        Raises:
            KernelError: One problem for each request that was refused; the others have taken effect.
        """
        problems: list[str] = []
        for chunk in _chunks(requests):
            problems.extend(self._execute_chunk(chunk))
        if problems:
            raise KernelError(problems)

    def _execute_chunk(self, chunk: Sequence[Request]) -> Iterator[str]:
        first = self._sequence + 1
        parts = []
        for request in chunk:
            self._sequence += 1
            acknowledged = ACK if request is chunk[-1] else 0
            flags = REQUEST | request.flags | acknowledged
            parts.append(_HEADER.pack(16 + len(request.body), request.kind, flags, self._sequence, 0))
            parts.append(request.body)
        self._socket.send(b"".join(parts))
        for kind, _, sequence, payload in self._receive():
            if kind != ERROR or sequence < first:
                continue
            code = -struct.unpack_from("=i", payload)[0]
            if code:
                yield f"{chunk[sequence - first].subject}: the kernel answered {os.strerror(code)}{_detail(payload)}"
            if sequence == self._sequence:
                return

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Bodies of every object of one type; repeated when the kernel says the list changed under the dump."""
        for _ in range(_DUMP_ATTEMPTS):
            self._sequence += 1
            self._socket.send(_HEADER.pack(16 + len(body), kind, REQUEST | DUMP, self._sequence, 0) + body)
            bodies: list[bytes] = []
            interrupted = False
            for answer, flags, sequence, payload in self._receive():
                if sequence != self._sequence:
                    continue
                interrupted |= bool(flags & DUMP_INTERRUPTED)
                if answer == ERROR:
                    code = -struct.unpack_from("=i", payload)[0]
                    raise KernelError(f"dump of type {kind}: the kernel answered {os.strerror(code)}")
                if answer == DONE:
                    break
                bodies.append(payload)
            if not interrupted:
                return bodies
        raise KernelError(f"dump of type {kind}: the kernel's list changed during each of {_DUMP_ATTEMPTS} readings")

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        while True:
            data = self._socket.recv(_RECEIVE_BYTES)
            position = 0
            while position + 16 <= len(data):
                length, kind, flags, sequence, _ = _HEADER.unpack_from(data, position)
                yield kind, flags, sequence, data[position + 16 : position + length]
                position += (length + 3) & ~3


def _chunks(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    start = size = 0
    for index, request in enumerate(requests):
        length = 16 + len(request.body)
        if size and size + length > _BATCH_BYTES:
            yield requests[start:index]
            start, size = index, 0
        size += length
    if size:
        yield requests[start:]


def _detail(payload: bytes) -> str:
    """The kernel's own words, when it gave any (extended acknowledgement)."""
    text = attributes(payload[20:]).get(_MESSAGE_ATTRIBUTE, b"").rstrip(b"\0").decode(errors="replace")
    return f" ({text})" if text else ""
