"""Tells from captures when each byte of a TCP connection was seen at each place, and puts its streams back together.

A byte is named by its offset in its direction's stream, so it is the same byte at every border, however packets were
cut, repeated or swapped on the way. What the bytes mean is `testbed.telemetry.http2`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numba
import numpy as np
import numpy.typing as npt

from testbed.errors import FidelityError
from testbed.telemetry.pcap import Records

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
ByteArray = npt.NDArray[np.uint8]

NEVER_NS = np.iinfo(np.int64).max
"""When a byte that was not seen was seen."""

_ETHERNET_BYTES = 14
_LEAST_HEADER_BYTES = _ETHERNET_BYTES + 20 + 20
_ETHERTYPE_IPV4 = 0x0800
_PROTOCOL_TCP = 6
_SYN = 0x02


class Flow(NamedTuple):
    """One direction of a connection: IPv4 addresses as numbers, and ports."""

    source: int
    source_port: int
    destination: int
    destination_port: int

    @property
    def reverse(self) -> Flow:
        """The other direction."""
        return Flow(self.destination, self.destination_port, self.source, self.source_port)


@dataclass(frozen=True)
class Segments:
    """Packets of one flow at one place, in the order they were captured; arrays of shape [n].

    Attributes:
        time_ns: Capture stamp, CLOCK_REALTIME.
        start: Stream offset of the first payload byte.
        payload_bytes: Length of the payload; 0 for a mere acknowledgement.
        size_bits: L2 frame without FCS.
        payload_at: Where in the capture's bytes the payload begins.
        kept_bytes: How much of the payload the capture holds.
        base: Sequence number of offset 0.
    """

    time_ns: IntArray
    start: IntArray
    payload_bytes: IntArray
    size_bits: IntArray
    payload_at: IntArray
    kept_bytes: IntArray
    base: int

    def __len__(self) -> int:
        return self.time_ns.size

    @property
    def end(self) -> IntArray:
        """Stream offset behind the last payload byte; [n]."""
        return self.start + self.payload_bytes

    def within(self, start_ns: int, end_ns: int) -> Self:
        """The packets captured in [start_ns, end_ns)."""
        chosen = (self.time_ns >= start_ns) & (self.time_ns < end_ns)
        return replace(self, **{name: getattr(self, name)[chosen] for name in _ARRAYS})

    def seen_ns(self, start: IntArray, end: IntArray, *, again: bool = False) -> IntArray:
        """When all bytes of each range had been seen here, each byte for the first time; [m].

        Args:
            start: First offset of each range, [m].
            end: Offset behind its last byte, [m].
            again: Each byte for the last time instead.

        Returns:
            CLOCK_REALTIME ns; `NEVER_NS` where a byte was not seen.
        """
        filled = self.payload_bytes > 0
        first, last = self.start[filled], self.end[filled]
        edges = np.unique(np.concatenate((first, last, start, end)))
        pieces = np.full(edges.size, NEVER_NS, dtype=np.int64)
        sign = -1 if again else 1
        _first_seen(np.searchsorted(edges, first), np.searchsorted(edges, last), sign * self.time_ns[filled], pieces)
        pieces[pieces != NEVER_NS] *= sign
        return np.asarray(_latest(np.searchsorted(edges, start), np.searchsorted(edges, end), pieces))

    def wire_bits(self, start: IntArray, end: IntArray) -> FloatArray:
        """Bits on the wire that carried each range, packets' headers shared by their payload bytes; [m].

        A byte that was sent again counts again: it took the line twice.
        """
        filled = self.payload_bytes > 0
        density = self.size_bits[filled] / self.payload_bytes[filled]
        at = np.concatenate((self.start[filled], self.end[filled]))
        order = np.argsort(at, kind="stable")
        slope = np.cumsum(np.concatenate((density, -density))[order])
        if at.size == 0:
            return np.zeros(start.size)
        edges = at[order].astype(np.float64)
        total = np.concatenate(([0.0], np.cumsum(slope[:-1] * np.diff(edges))))
        return np.asarray(np.interp(end, edges, total) - np.interp(start, edges, total))

    def finishing_start(self, end: IntArray) -> IntArray:
        """Where the packet begins that was the first to carry the byte before an offset; [m].

        Args:
            end: Offsets, [m].

        Returns:
            Offset of its first byte; the offset asked for where the packets never came so far.
        """
        filled = self.payload_bytes > 0
        furthest = np.maximum.accumulate(self.end[filled])
        at = np.searchsorted(furthest, end)
        start = np.append(self.start[filled], NEVER_NS)[at]
        return np.asarray(np.minimum(start, end))

    def stream(self, data: ByteArray) -> ByteArray:
        """The bytes from offset 0 on, put together from a capture that kept whole packets.

        Args:
            data: The capture's bytes.

        Raises:
            FidelityError: A byte before the last one is missing.
        """
        filled = (self.payload_bytes > 0) & (self.end > 0)
        start, kept = self.start[filled], self.kept_bytes[filled]
        size = int((start + kept).max(initial=0))
        stream, known = np.zeros(size, dtype=np.uint8), np.zeros(size, dtype=np.bool_)
        _assemble(data, np.stack((self.payload_at[filled], start, kept), axis=1), stream, known)
        missing = np.flatnonzero(~known)
        if missing.size:
            cut = int(np.count_nonzero(self.kept_bytes < self.payload_bytes))
            raise FidelityError(
                f"TCP stream: found {missing.size} of {size} bytes missing from offset {missing[0]} on ({cut} packets "
                "are cut short), expected every byte; capture whole packets (snap length 0) and let none be dropped"
            )
        return stream


_ARRAYS = ("time_ns", "start", "payload_bytes", "size_bits", "payload_at", "kept_bytes")


def flows(records: Records, *, server_port: int) -> dict[Flow, npt.NDArray[np.intp]]:
    """Positions of the TCP packets of each flow to or from a port, in the order captured.

    Fragments and frames cut before the end of their TCP header are left out.
    """
    packets = _Headers.of(records)
    chosen = np.flatnonzero(
        packets.tcp & ((packets.source_port == server_port) | (packets.destination_port == server_port))
    )
    columns = (packets.source, packets.source_port, packets.destination, packets.destination_port)
    keys = np.stack([column[chosen] for column in columns], axis=1)
    distinct, member = np.unique(keys, axis=0, return_inverse=True)
    members = member.reshape(-1)
    return {Flow(*(int(part) for part in key)): chosen[members == i] for i, key in enumerate(distinct)}


def segments(records: Records, packets: npt.NDArray[np.intp], *, base: int | None = None) -> Segments:
    """The packets of one flow with their stream offsets.

    Args:
        records: The capture.
        packets: Positions of the flow's packets, see `flows`.
        base: Sequence number of offset 0, taken from another capture of the same flow. None: the first byte of the
            connection, or where the capture began later, of the earliest packet in it.
    """
    headers = _Headers.of(records)
    sequence = headers.sequence[packets]
    payload = headers.payload_bytes[packets]
    # Sequence numbers wrap around; the step from one packet to the next is small, in either direction.
    steps = np.diff(sequence).astype(np.uint32).view(np.int32).astype(np.int64)
    walked = np.concatenate((np.zeros(min(1, sequence.size), np.int64), np.cumsum(steps)))
    if base is None:
        base = _first_byte(sequence, walked, payload, headers.flags[packets])
    begin = int(np.uint32((int(sequence[0]) - base) & 0xFFFFFFFF).view(np.int32)) if sequence.size else 0
    opens = (headers.flags[packets] & _SYN) != 0
    frame_bytes = records.wire_bytes[packets]
    payload_at = headers.payload_at[packets]
    kept = records.frame_at[packets] + records.kept_bytes[packets] - payload_at
    return Segments(
        time_ns=records.time_ns[packets],
        start=walked + begin + opens,
        payload_bytes=payload,
        size_bits=8 * frame_bytes,
        payload_at=payload_at,
        kept_bytes=np.clip(kept, 0, payload),
        base=base,
    )


def _first_byte(sequence: IntArray, walked: IntArray, payload: IntArray, flags: npt.NDArray[np.uint8]) -> int:
    opening = np.flatnonzero(flags & _SYN)
    if opening.size:
        return (int(sequence[opening[0]]) + 1) & 0xFFFFFFFF
    filled = np.flatnonzero(payload)
    if not filled.size:
        return int(sequence[0]) if sequence.size else 0
    return int(sequence[filled[np.argmin(walked[filled])]])


@dataclass(frozen=True)
class _Headers:
    """Fields of every record, meaningful where `tcp`; arrays of shape [n]."""

    tcp: npt.NDArray[np.bool_]
    source: IntArray
    destination: IntArray
    source_port: IntArray
    destination_port: IntArray
    sequence: IntArray
    flags: npt.NDArray[np.uint8]
    payload_bytes: IntArray
    payload_at: IntArray

    @classmethod
    def of(cls, records: Records) -> Self:
        long_enough = records.kept_bytes >= _LEAST_HEADER_BYTES
        # Frames that are too short are read as if they began where the file does, and then ignored.
        frame = np.where(long_enough, records.frame_at, 0)
        if records.data.size < _LEAST_HEADER_BYTES:
            frame = frame[:0]
        data, ip = records.data, frame + _ETHERNET_BYTES
        ip_bytes = 4 * (data[ip] & 0x0F).astype(np.int64)
        tcp = np.where(long_enough & (ip_bytes >= 20), ip + ip_bytes, 0)
        tcp_bytes = 4 * (data[np.minimum(tcp + 12, data.size - 1)] >> 4).astype(np.int64)
        header_bytes = tcp + tcp_bytes - frame
        fits = long_enough & (ip_bytes >= 20) & (tcp_bytes >= 20) & (records.kept_bytes >= header_bytes)
        tcp = np.where(fits, tcp, 0)
        ours = (
            fits
            & (_big(data, frame + 12, 2) == _ETHERTYPE_IPV4)
            & (data[ip] >> 4 == 4)
            & (data[ip + 9] == _PROTOCOL_TCP)
            & (_big(data, ip + 6, 2) & 0x3FFF == 0)
        )
        return cls(
            tcp=ours,
            source=_big(data, ip + 12, 4),
            destination=_big(data, ip + 16, 4),
            source_port=_big(data, tcp, 2),
            destination_port=_big(data, tcp + 2, 2),
            sequence=_big(data, tcp + 4, 4),
            flags=data[tcp + 13],
            payload_bytes=_big(data, ip + 2, 2) - ip_bytes - tcp_bytes,
            payload_at=tcp + tcp_bytes,
        )


def _big(data: ByteArray, at: IntArray, size: int) -> IntArray:
    """Big-endian numbers of `size` bytes."""
    value = np.zeros(at.size, dtype=np.int64)
    for i in range(size):
        value = value * 256 + data[at + i]
    return value


@numba.njit(cache=True)
def _first_seen(first: IntArray, last: IntArray, time_ns: IntArray, pieces: IntArray) -> None:
    for packet in range(first.size):
        for piece in range(first[packet], last[packet]):
            pieces[piece] = min(pieces[piece], time_ns[packet])


@numba.njit(cache=True)
def _latest(first: IntArray, last: IntArray, pieces: IntArray) -> IntArray:
    latest = np.empty(first.size, np.int64)
    for i in range(first.size):
        moment = np.int64(-(2**63))
        for piece in range(first[i], last[i]):
            moment = max(moment, pieces[piece])
        latest[i] = moment
    return latest


@numba.njit(cache=True)
def _assemble(data: ByteArray, packets: npt.NDArray[np.int64], stream: ByteArray, known: npt.NDArray[np.bool_]) -> None:
    """Copy each packet (row: place in the capture, stream offset, bytes kept) to where it belongs."""
    for at, start, kept in packets:
        for i in range(max(0, -start), kept):
            stream[start + i] = data[at + i]
            known[start + i] = True
