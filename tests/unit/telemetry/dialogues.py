"""Writes the packets of an HTTP/2 conversation byte by byte, from the formats' descriptions and not from our code."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from tests.unit.telemetry.frames import pcap

CLIENT, SERVER = ("10.1.0.1", 51000), ("10.2.0.3", 8001)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SYN, ACK = 0x02, 0x10


def frame(kind: int, stream: int, payload: bytes, flags: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def headers(stream: int, size: int = 40, flags: int = 4) -> bytes:
    return frame(1, stream, bytes(size), flags)


def data(stream: int, payload: bytes, flags: int = 0) -> bytes:
    return frame(0, stream, payload, flags)


def message(number: int, size: int = 200) -> bytes:
    """A gRPC message that begins with a request's number."""
    body = b"\x1a\x0a" + f"{number:010d}".encode()
    body += bytes(size - len(body))
    return b"\0" + len(body).to_bytes(4, "big") + body


def tcp_frame(
    payload: bytes,
    *,
    sequence: int,
    back: bool = False,
    flags: int = ACK,
    options: int = 12,
    protocol: int = 6,
    client: tuple[str, int] = CLIENT,
) -> bytes:
    (source, sport), (target, tport) = (SERVER, client) if back else (client, SERVER)
    words = 5 + options // 4
    tcp = struct.pack("!HHIIBBHHH", sport, tport, sequence % 2**32, 0, words << 4, flags, 500, 0, 0) + bytes(options)
    addresses = bytes(int(part) for address in (source, target) for part in address.split("."))
    body = tcp + payload
    ipv4 = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 7, 0x4000, 64, protocol, 0) + addresses + body
    return b"\2" * 6 + b"\4" * 6 + struct.pack("!H", 0x0800) + ipv4


@dataclass
class Line:
    """What went by at one place: (stamp in ns, frame) pairs."""

    base: int = 1000
    back: bool = False
    client: tuple[str, int] = CLIENT
    packets: list[tuple[int, bytes]] = field(default_factory=list)

    def open(self, time_ns: int) -> Line:
        opening = tcp_frame(b"", sequence=self.base - 1, back=self.back, flags=SYN, client=self.client)
        self.packets.append((time_ns, opening))
        return self

    def see(self, time_ns: int, start: int, payload: bytes) -> Line:
        """A packet that carries these bytes of the stream from this offset on."""
        carried = tcp_frame(payload, sequence=self.base + start, back=self.back, client=self.client)
        self.packets.append((time_ns, carried))
        return self

    def write(self, path: Path, *, snap: int = 65_535) -> Path:
        path.write_bytes(pcap(self.packets, snap=snap))
        return path
