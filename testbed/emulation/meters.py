"""Reads what a bridge's meters have counted, over the socket at which the switch takes OpenFlow from its own host.

The probe looks at meters hundreds of times, many of them while a flood comes in. A process for each look
(`ovs-ofctl`) takes 7 ms on a good host, in which a fast meter's bucket comes back; a question on an open connection
takes one round of the switch's loop. The controller, which has a connection, is what is being checked and is not
asked. Nothing is installed or changed here.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controller.counters import MeterCounters
from testbed.errors import PreflightError

ALL_METERS = 0xFFFF_FFFF

# OpenFlow 1.3.5, sections A.1 (header), A.3.5 (multipart), A.3.5.9 (meter statistics) and A.4.4 (errors).
_VERSION = 4
_HELLO, _ERROR, _ECHO_REQUEST, _ECHO_REPLY, _MULTIPART_REQUEST, _MULTIPART_REPLY = 0, 1, 2, 3, 18, 19
_METER_STATISTICS, _MORE = 9, 1
_HEADER = struct.Struct("!BBHI")
_MULTIPART = struct.Struct("!HH4x")
_WHICH_METERS = struct.Struct("!I4x")
_STATISTICS = struct.Struct("!IH6xIQQII")
_BAND = struct.Struct("!QQ")
_NO_SUCH_METER = struct.pack("!HH", 12, 3)
_TIMEOUT_S = 20.0


class MeterConnection:
    """A bridge that can be asked for its meters again and again; made by `connected`, and not for keeping.

    A switch that hears nothing for a minute asks whether anybody is there, and hangs up on who does not answer.
    """

    def __init__(self, switch: socket.socket, management: Path) -> None:
        self._switch = switch
        self._management = management
        self._number = 0

    def read(self, meter_id: int = ALL_METERS) -> dict[int, MeterCounters]:
        """Counters by meter id, of one meter or of all; of a meter that the switch does not have, none.

        Raises:
            PreflightError: The switch does not answer, or not with OpenFlow 1.3.
        """
        found: dict[int, MeterCounters] = {}
        with _told(self._management):
            for part in self._ask(_WHICH_METERS.pack(meter_id)):
                found.update(_statistics(part))
        return found

    def _ask(self, which: bytes) -> Iterator[bytes]:
        """Bodies of the reply's messages, up to the last one."""
        self._number += 1
        request = _MULTIPART.pack(_METER_STATISTICS, 0) + which
        self._switch.sendall(_message(_MULTIPART_REQUEST, request, self._number))
        more = True
        while more:
            kind, number, body = _receive(self._switch)
            if kind == _ERROR and number == self._number and body.startswith(_NO_SUCH_METER):
                return
            if kind == _ERROR:
                raise PreflightError(f"the switch refused to show its meters: OpenFlow error {body.hex()}")
            if kind == _ECHO_REQUEST:
                self._switch.sendall(_message(_ECHO_REPLY, body, number))
            if kind == _MULTIPART_REPLY and number == self._number:
                _, flags = _MULTIPART.unpack_from(body)
                more = bool(flags & _MORE)
                yield body[_MULTIPART.size :]


@contextmanager
def connected(management: Path) -> Iterator[MeterConnection]:
    """A connection to a bridge.

    Args:
        management: The bridge's socket, `BRIDGE.mgmt` in the switch's run directory.

    Raises:
        PreflightError: There is no such switch.
    """
    with socket.socket(socket.AF_UNIX) as switch:
        with _told(management):
            switch.settimeout(_TIMEOUT_S)
            switch.connect(str(management))
            switch.sendall(_message(_HELLO))
        yield MeterConnection(switch, management)


@contextmanager
def _told(management: Path) -> Iterator[None]:
    """Whatever goes wrong with the socket becomes one sentence."""
    try:
        yield
    except (OSError, struct.error) as error:
        raise PreflightError(
            f"{management}: found {error or type(error).__name__}, expected the switch's meters; is ovs-vswitchd alive?"
        ) from error


def _receive(switch: socket.socket) -> tuple[int, int, bytes]:
    """Type, number and body of the next message."""
    version, kind, length, number = _HEADER.unpack(_exactly(switch, _HEADER.size))
    if kind == _HELLO and version < _VERSION:
        raise PreflightError(f"the switch speaks OpenFlow's wire version {version}, expected {_VERSION} (1.3)")
    return kind, number, _exactly(switch, length - _HEADER.size)


def _exactly(switch: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        some = switch.recv(count - len(received))
        if not some:
            raise ConnectionError("the end of the connection")
        received += some
    return bytes(received)


def _message(kind: int, body: bytes = b"", number: int = 0) -> bytes:
    return _HEADER.pack(_VERSION, kind, _HEADER.size + len(body), number) + body


def _statistics(part: bytes) -> Iterator[tuple[int, MeterCounters]]:
    start = 0
    while start < len(part):
        meter_id, length, _, packets, size, _, _ = _STATISTICS.unpack_from(part, start)
        bands = list(_BAND.iter_unpack(part[start + _STATISTICS.size : start + length]))
        dropped = [sum(column) for column in zip(*bands, strict=True)] or [0, 0]
        yield meter_id, MeterCounters(packets, size, *dropped)
        start += length
