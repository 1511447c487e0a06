"""Writes pcap files byte by byte, from the formats' descriptions and not from the code that reads them."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

NANOSECOND, MICROSECOND = 0xA1B23C4D, 0xA1B2C3D4


def udp_frame(
    *,
    tenant: int = 1,
    flags: int = 1,
    sequence: int = 0,
    intended_ns: int = 0,
    source: str = "10.1.0.1",
    destination: str = "10.2.0.3",
    payload_bytes: int = 1358,
    magic: bytes = b"TLT1",
) -> bytes:
    payload = struct.pack("!4sHHQq", magic, tenant, flags, sequence, intended_ns).ljust(payload_bytes, b"\0")
    addresses = bytes(int(part) for address in (source, destination) for part in address.split("."))
    udp = struct.pack("!HHHH", 40000 + tenant, 9000, 8 + len(payload), 0) + payload
    ipv4 = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 7, 0x4000, 64, 17, 0) + addresses + udp
    return b"\2" * 6 + b"\4" * 6 + struct.pack("!H", 0x0800) + ipv4


def pcap(
    frames: Iterable[tuple[int, bytes]], *, order: str = "<", magic: int = NANOSECOND, link: int = 1, snap: int = 96
) -> bytes:
    """A file of (stamp in ns, frame) pairs, each frame cut at `snap` bytes."""
    unit = 1 if magic == NANOSECOND else 1000
    out = [struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, snap, link)]
    for time_ns, frame in frames:
        second, nanosecond = divmod(time_ns, 1_000_000_000)
        kept = frame[:snap]
        out.append(struct.pack(f"{order}IIII", second, nanosecond // unit, len(kept), len(frame)) + kept)
    return b"".join(out)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
