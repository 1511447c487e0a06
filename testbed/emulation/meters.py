"""Reads what a bridge's meters have counted, over the socket at which the switch takes OpenFlow from its own host.

The probe looks at meters a hundred times, and each `ovs-ofctl` is a process to start; where starting one takes tenths
of a second, a meter has refilled before it is read. The controller, which has a connection, is what is being checked
and is not asked. Nothing is installed or changed here.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from controller.counters import MeterCounters
from testbed.errors import PreflightError

# OpenFlow 1.3.5, sections A.1 (header), A.3.5 (multipart) and A.3.5.9 (meter statistics).
_VERSION = 4
_HELLO, _ERROR, _ECHO_REQUEST, _ECHO_REPLY, _MULTIPART_REQUEST, _MULTIPART_REPLY = 0, 1, 2, 3, 18, 19
_METER_STATISTICS, _MORE, _ALL_METERS = 9, 1, 0xFFFF_FFFF
_HEADER = struct.Struct("!BBHI")
_MULTIPART = struct.Struct("!HH4x")
_WHICH_METERS = struct.Struct("!I4x")
_STATISTICS = struct.Struct("!IH6xIQQII")
_BAND = struct.Struct("!QQ")
_TIMEOUT_S = 20.0


def read_meters(management: Path) -> dict[int, MeterCounters]:
    """Counters of all meters of a bridge, by meter id.

    Args:
        management: The bridge's socket, `BRIDGE.mgmt` in the switch's run directory.

    Raises:
        PreflightError: The switch does not answer, or not with OpenFlow 1.3.
    """
    found: dict[int, MeterCounters] = {}
    try:
        with socket.socket(socket.AF_UNIX) as switch:
            switch.settimeout(_TIMEOUT_S)
            switch.connect(str(management))
            request = _MULTIPART.pack(_METER_STATISTICS, 0) + _WHICH_METERS.pack(_ALL_METERS)
            switch.sendall(_message(_HELLO) + _message(_MULTIPART_REQUEST, request))
            for part in _parts(switch):
                found.update(_statistics(part))
    except (OSError, struct.error) as error:
        raise PreflightError(
            f"{management}: found {error or type(error).__name__}, expected the switch's meters; is ovs-vswitchd alive?"
        ) from error
    return found


def _parts(switch: socket.socket) -> Iterator[bytes]:
    """Bodies of the reply's messages, up to the last one."""
    more = True
    while more:
        kind, number, body = _receive(switch)
        if kind == _ERROR:
            raise PreflightError(f"the switch refused to show its meters: OpenFlow error {body.hex()}")
        if kind == _ECHO_REQUEST:
            switch.sendall(_message(_ECHO_REPLY, body, number))
        if kind == _MULTIPART_REPLY:
            _, flags = _MULTIPART.unpack_from(body)
            more = bool(flags & _MORE)
            yield body[_MULTIPART.size :]


def _receive(switch: socket.socket) -> tuple[int, int, bytes]:
    """Type, number and body of the next message."""
    _, kind, length, number = _HEADER.unpack(_exactly(switch, _HEADER.size))
    return kind, number, _exactly(switch, length - _HEADER.size)


def _exactly(switch: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        some = switch.recv(count - len(received))
        if not some:
            raise ConnectionError("the end of the connection")
        received += some
    return bytes(received)


def _message(kind: int, body: bytes = b"", number: int = 1) -> bytes:
    return _HEADER.pack(_VERSION, kind, _HEADER.size + len(body), number) + body


def _statistics(part: bytes) -> Iterator[tuple[int, MeterCounters]]:
    start = 0
    while start < len(part):
        meter_id, length, _, packets, size, _, _ = _STATISTICS.unpack_from(part, start)
        bands = list(_BAND.iter_unpack(part[start + _STATISTICS.size : start + length]))
        dropped = [sum(column) for column in zip(*bands, strict=True)] or [0, 0]
        yield meter_id, MeterCounters(packets, size, *dropped)
        start += length
