"""Reads the tenants' packets out of a classic pcap file, a million records in about a second.

Only what `testbed.traffic.wire` writes is extracted: UDP over IPv4 without options, with this testbed's header. Other
frames are counted and skipped; they are not an error, ARP is part of life. It does not dissect protocols, follow
fragments or read pcapng.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numba
import numpy as np
import numpy.typing as npt

from testbed.errors import FidelityError
from testbed.traffic import wire

IntArray = npt.NDArray[np.int64]
ByteArray = npt.NDArray[np.uint8]

_FILE_HEADER_BYTES = 24
_RECORD_HEADER_BYTES = 16
_LINKTYPE_ETHERNET = 1
_LARGEST_RECORD_BYTES = 262_144
"""libpcap's own limit on one record; a larger length means that the scan has lost its place."""

_NS_PER_FRACTION = {0xA1B23C4D: 1, 0xA1B2C3D4: 1000}
"""Magic number of a classic pcap file: what one unit of its fraction of a second is."""
_PCAPNG = b"\x0a\x0d\x0d\x0a"

_FRAME = np.dtype(
    [
        ("ethernet", "V12"),
        ("ethertype", ">u2"),
        ("version_ihl", "u1"),
        ("dscp", "u1"),
        ("total_length", ">u2"),
        ("identification", ">u2"),
        ("fragment", ">u2"),
        ("ttl", "u1"),
        ("protocol", "u1"),
        ("checksum", ">u2"),
        ("source", ">u4"),
        ("destination", ">u4"),
        ("source_port", ">u2"),
        ("destination_port", ">u2"),
        ("udp_length", ">u2"),
        ("udp_checksum", ">u2"),
        ("header", wire.HEADER_DTYPE),
    ]
)


def _record_dtype(order: str) -> np.dtype[np.void]:
    """Layout of a record: its header in the file's byte order (`<` or `>`), its frame in network order."""
    word = f"{order}u4"
    return np.dtype([("second", word), ("fraction", word), ("kept", word), ("length", word), ("frame", _FRAME)])


@dataclass(frozen=True)
class PacketTable:
    """Packets of one capture, in the order they were captured; every array has shape [n].

    Attributes:
        time_ns: Capture stamp, CLOCK_REALTIME.
        size_bits: Length on the wire: the L2 frame without FCS.
        source: IPv4 source address.
        destination: IPv4 destination address.
        source_port: UDP source port.
        destination_port: UDP destination port.
        tenant: Tenant number of the header.
        flags: Flags of the header (`wire.LAST_OF_REQUEST`, `wire.OUTSIDE_WINDOW`).
        sequence: Sequence number of the header.
        intended_ns: Intended send time of the header, CLOCK_REALTIME.
    """

    time_ns: IntArray
    size_bits: npt.NDArray[np.int32]
    source: npt.NDArray[np.uint32]
    destination: npt.NDArray[np.uint32]
    source_port: npt.NDArray[np.uint16]
    destination_port: npt.NDArray[np.uint16]
    tenant: npt.NDArray[np.uint16]
    flags: npt.NDArray[np.uint16]
    sequence: IntArray
    intended_ns: IntArray

    def __len__(self) -> int:
        return self.time_ns.size

    def take(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Self:
        """The packets that a mask or an index array chooses."""
        return type(self)(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    def by_tenant(self) -> dict[int, Self]:
        """One table per tenant number, each still in the order of capture."""
        order = np.argsort(self.tenant, kind="stable")
        numbers, counts = np.unique(self.tenant, return_counts=True)
        ends = np.cumsum(counts)
        return {
            int(number): self.take(order[end - count : end])
            for number, count, end in zip(numbers, counts, ends, strict=True)
        }


@dataclass(frozen=True)
class PcapFile:
    """What one file held.

    Attributes:
        packets: The tenants' packets.
        foreign: Complete records that are not a tenant's packet.
        truncated: Whether the file ends inside a record (the capture was killed); that record is not counted.
    """

    packets: PacketTable
    foreign: int
    truncated: bool


@dataclass(frozen=True)
class Records:
    """The complete records of a file, whatever they hold; arrays of shape [n], in the order they were captured.

    Attributes:
        path: The file.
        data: All its bytes.
        frame_at: Where in `data` each frame begins.
        time_ns: Capture stamp, CLOCK_REALTIME.
        kept_bytes: How much of each frame is in the file.
        wire_bytes: Length of each frame on the wire, without FCS.
        truncated: Whether the file ends inside a record.
    """

    path: Path
    data: ByteArray
    frame_at: IntArray
    time_ns: IntArray
    kept_bytes: IntArray
    wire_bytes: IntArray
    truncated: bool


@dataclass(frozen=True)
class _Format:
    order: str
    ns_per_fraction: int


@dataclass(frozen=True)
class _Scanned:
    data: ByteArray
    layout: _Format
    offsets: IntArray
    matches: npt.NDArray[np.bool_]
    truncated: bool


def read(path: Path) -> PcapFile:
    """Reads a classic pcap file of Ethernet frames, of either byte order, with nano- or microsecond stamps.

    Microsecond stamps are widened to nanoseconds; whether a microsecond is fine enough is for the caller to know.

    Raises:
        FidelityError: Not such a file, or a record that cannot be one.
    """
    found = _scanned(path)
    chosen = found.offsets[found.matches]
    records = _records(found.data, chosen, _record_dtype(found.layout.order))
    return PcapFile(_table(records, found.layout.ns_per_fraction), found.offsets.size - chosen.size, found.truncated)


def read_records(path: Path) -> Records:
    """Reads such a file without looking into its frames.

    Raises:
        FidelityError: Not such a file, or a record that cannot be one.
    """
    found = _scanned(path)
    word = f"{found.layout.order}u4"
    header = np.dtype([("second", word), ("fraction", word), ("kept", word), ("length", word)])
    headers = _records(found.data, found.offsets, header)
    return Records(
        path=path,
        data=found.data,
        frame_at=found.offsets + _RECORD_HEADER_BYTES,
        time_ns=_time_ns(headers, found.layout.ns_per_fraction),
        kept_bytes=headers["kept"].astype(np.int64),
        wire_bytes=headers["length"].astype(np.int64),
        truncated=found.truncated,
    )


def _scanned(path: Path) -> _Scanned:
    data = np.fromfile(path, dtype=np.uint8)
    layout = _format(path, data)
    offsets, matches, end, sane = _scan(data, layout.order == ">")
    if not sane:
        raise FidelityError(
            f"{path}: the record at byte {end} claims more than {_LARGEST_RECORD_BYTES} bytes; "
            "the file is damaged, so the run must be repeated"
        )
    return _Scanned(data, layout, offsets, matches, bool(end < data.size))


def _format(path: Path, data: ByteArray) -> _Format:
    head = data[:_FILE_HEADER_BYTES].tobytes()
    for order in ("<", ">") if len(head) == _FILE_HEADER_BYTES else ():
        magic, link = struct.unpack_from(f"{order}I16xI", head)
        if magic not in _NS_PER_FRACTION:
            continue
        if link & 0xFFFF != _LINKTYPE_ETHERNET:
            raise FidelityError(f"{path}: found link type {link & 0xFFFF}, expected {_LINKTYPE_ETHERNET} (Ethernet)")
        return _Format(order, _NS_PER_FRACTION[magic])
    if head.startswith(_PCAPNG):
        raise FidelityError(f"{path}: found pcapng, expected classic pcap; convert it with `tcpdump -r IN -w OUT`")
    found = head[:4].hex() or "nothing"
    raise FidelityError(f"{path}: found {found} at its beginning, expected the magic number of a classic pcap file")


def _records(data: ByteArray, offsets: IntArray, dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """The fixed-size beginning of each record, gathered without a loop."""
    if offsets.size == 0:
        return np.empty(0, dtype)
    windows = np.lib.stride_tricks.sliding_window_view(data, dtype.itemsize)
    return windows[offsets].view(dtype).reshape(-1)


def _time_ns(records: npt.NDArray[np.void], ns_per_fraction: int) -> IntArray:
    seconds, fraction = records["second"].astype(np.int64), records["fraction"].astype(np.int64)
    return np.asarray(seconds * 1_000_000_000 + fraction * ns_per_fraction)


def _table(records: npt.NDArray[np.void], ns_per_fraction: int) -> PacketTable:
    frame, header = records["frame"], records["frame"]["header"]
    return PacketTable(
        time_ns=_time_ns(records, ns_per_fraction),
        size_bits=(records["length"] * 8).astype(np.int32),
        source=frame["source"].astype(np.uint32),
        destination=frame["destination"].astype(np.uint32),
        source_port=frame["source_port"].astype(np.uint16),
        destination_port=frame["destination_port"].astype(np.uint16),
        tenant=header["tenant"].astype(np.uint16),
        flags=header["flags"].astype(np.uint16),
        sequence=header["sequence"].astype(np.int64),
        intended_ns=header["intended_ns"].astype(np.int64),
    )


@numba.njit(cache=True)
def _word(data: ByteArray, at: int, big: bool) -> int:
    value = 0
    for i in range(4):
        value = value * 256 + int(data[at + i if big else at + 3 - i])
    return value


@numba.njit(cache=True)
def _scan(data: ByteArray, big: bool) -> tuple[IntArray, npt.NDArray[np.bool_], int, bool]:
    """Walks the records, which only a loop can do: each one's place depends on the one before.

    Returns:
        Offsets of the complete records, whether each holds a tenant's packet, where the walk ended, and whether it
        ended for a good reason.
    """
    room = 1 + data.size // _RECORD_HEADER_BYTES
    offsets = np.empty(room, np.int64)
    matches = np.empty(room, np.bool_)
    at, count = _FILE_HEADER_BYTES, 0
    while at + _RECORD_HEADER_BYTES <= data.size:
        kept = _word(data, at + 8, big)
        if kept > _LARGEST_RECORD_BYTES:
            return offsets[:count], matches[:count], at, False
        if at + _RECORD_HEADER_BYTES + kept > data.size:
            break
        offsets[count] = at
        matches[count] = kept >= _FRAME_BYTES and _is_ours(data, at + _RECORD_HEADER_BYTES)
        count += 1
        at += _RECORD_HEADER_BYTES + kept
    return offsets[:count], matches[:count], at, True


_FRAME_BYTES = _FRAME.itemsize
_PAYLOAD = wire.ENCAPSULATION_BYTES
_MAGIC = tuple(wire.MAGIC)


@numba.njit(cache=True)
def _is_ours(data: ByteArray, at: int) -> bool:
    """Whether the frame is unfragmented UDP over option-less IPv4 whose payload begins with the testbed's magic."""
    ipv4 = data[at + 12] == 0x08 and data[at + 13] == 0x00 and data[at + 14] == 0x45
    whole = (data[at + 20] & 0x3F) == 0 and data[at + 21] == 0
    udp = data[at + 23] == 17
    if not (ipv4 and whole and udp):
        return False
    start = at + _PAYLOAD
    return bool(
        data[start] == _MAGIC[0]
        and data[start + 1] == _MAGIC[1]
        and data[start + 2] == _MAGIC[2]
        and data[start + 3] == _MAGIC[3]
    )
