"""Puts captures into one pcapng file, in the order of time and with names, for a human's Wireshark.

Every border becomes an interface of the file, called what the run calls it, and every host's address gets its name, so
a packet can be followed from domain to domain with the eye. Nothing of the testbed reads such a file again: what is
measured comes from the captures themselves (`testbed.telemetry.pcap`). The format is that of
draft-ietf-opsawg-pcapng: a section header, one description an interface, a name resolution block, then the packets.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import numpy.typing as npt

from testbed.telemetry.pcap import Records, read_records

ByteArray = npt.NDArray[np.uint8]

_SECTION, _INTERFACE, _NAMES, _PACKET = 0x0A0D0D0A, 1, 4, 6
_BYTE_ORDER, _UNKNOWN_LENGTH = 0x1A2B3C4D, -1
_ETHERNET = 1
_WHOLE_FRAMES = 0
_IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL = 2, 3, 9
_NANOSECONDS = 9
_IPV4_NAME = 1
_PACKET_HEADER_BYTES = 28
_BLOCK_TRAILER_BYTES = 4

_ENTRY = np.dtype([(name, np.int64) for name in ("interface", "time_ns", "at", "kept", "wire")])


@dataclass(frozen=True)
class Place:
    """One capture: where it was taken and what that place is.

    Attributes:
        path: The classic pcap file.
        interface: Name of the interface.
        description: What is seen there, for a reader.
    """

    path: Path
    interface: str
    description: str


def write_together(path: Path, places: Sequence[Place], names: Mapping[str, str]) -> int:
    """Write all captures into one file that only its owner can read.

    Args:
        path: The pcapng file to make.
        places: The captures; each becomes an interface.
        names: Name of each IPv4 address.

    Returns:
        How many packets are in it.

    Raises:
        FidelityError: A capture cannot be read.
        FileExistsError: The file is there already.
    """
    captures = [read_records(place.path) for place in places]
    packets = _packets(captures)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(_block(_SECTION, struct.pack("<IHHq", _BYTE_ORDER, 1, 0, _UNKNOWN_LENGTH)))
        for place in places:
            file.write(_interface(place))
        file.write(_name_resolution(names))
        packets.tofile(file)
    return sum(capture.time_ns.size for capture in captures)


def _block(kind: int, body: bytes) -> bytes:
    """A block: its length stands before and behind its body."""
    length = 8 + len(body) + _BLOCK_TRAILER_BYTES
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)


_END = _option(0, b"")
"""Ends a list of options, and, being all zeros, also one of names."""


def _interface(place: Place) -> bytes:
    options = [
        _option(_IF_NAME, place.interface.encode()),
        _option(_IF_DESCRIPTION, place.description.encode()),
        _option(_IF_TSRESOL, bytes([_NANOSECONDS])),
        _END,
    ]
    return _block(_INTERFACE, struct.pack("<HHI", _ETHERNET, 0, _WHOLE_FRAMES) + b"".join(options))


def _name_resolution(names: Mapping[str, str]) -> bytes:
    records = [
        _option(_IPV4_NAME, socket.inet_aton(address) + name.encode() + b"\0") for address, name in names.items()
    ]
    return _block(_NAMES, b"".join([*records, _END]))


def _packets(captures: Sequence[Records]) -> ByteArray:
    """The packet blocks of all captures in the order of their stamps, earlier captures first where those are equal."""
    start, tables = 0, []
    for number, capture in enumerate(captures):
        table = np.empty(capture.time_ns.size, _ENTRY)
        table["interface"] = number
        table["time_ns"] = capture.time_ns
        table["at"] = start + capture.frame_at
        table["kept"] = capture.kept_bytes
        table["wire"] = capture.wire_bytes
        tables.append(table)
        start += capture.data.size
    entries = np.concatenate(tables)
    data = np.concatenate([capture.data for capture in captures])
    return np.asarray(_written(data, entries[np.argsort(entries["time_ns"], kind="stable")]))


@numba.njit(cache=True)
def _put(out: ByteArray, at: int, value: int) -> None:
    """The lower 32 bits, the least significant byte first."""
    for i in range(4):
        out[at + i] = (value >> (8 * i)) & 0xFF


@numba.njit(cache=True)
def _written(data: ByteArray, entries: npt.NDArray[np.void]) -> ByteArray:
    padded = (entries["kept"] + 3) // 4 * 4
    out = np.zeros(padded.sum() + entries.size * (_PACKET_HEADER_BYTES + _BLOCK_TRAILER_BYTES), np.uint8)
    at = 0
    for i in range(entries.size):
        entry = entries[i]
        kept, time_ns, length = entry["kept"], entry["time_ns"], _PACKET_HEADER_BYTES + padded[i] + _BLOCK_TRAILER_BYTES
        _put(out, at, _PACKET)
        _put(out, at + 4, length)
        _put(out, at + 8, entry["interface"])
        _put(out, at + 12, time_ns >> 32)
        _put(out, at + 16, time_ns)
        _put(out, at + 20, kept)
        _put(out, at + 24, entry["wire"])
        frame = at + _PACKET_HEADER_BYTES
        out[frame : frame + kept] = data[entry["at"] : entry["at"] + kept]
        _put(out, at + length - _BLOCK_TRAILER_BYTES, length)
        at += length
    return out
