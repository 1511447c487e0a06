"""What a UDP tenant's packet looks like on the wire, for the sender that writes it and the telemetry that reads it.

A packet is an Ethernet frame with an IPv4 and a UDP header and a payload that starts with a 24-byte header of our own,
in network order; the rest of the payload is padding. Sizes are frames without FCS everywhere. Sockets, captures and
the meaning of a lost sequence number belong elsewhere.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

MAGIC = b"TLT1"
LAST_OF_REQUEST = 1
"""Flag: the last packet of its request (every packet of a packet tenant)."""
OUTSIDE_WINDOW = 2
"""Flag: warm-up or probe traffic, never part of a measurement."""

HEADER = struct.Struct("!4sHHQq")
HEADER_DTYPE = np.dtype(
    [("magic", "S4"), ("tenant", ">u2"), ("flags", ">u2"), ("sequence", ">u8"), ("intended_ns", ">i8")]
)
"""The same header as a packed numpy record: tenant number, flags, sequence, intended send time (CLOCK_REALTIME)."""
HEADER_BYTES = HEADER.size

ETHERNET_BYTES = 14
ENCAPSULATION_BYTES = ETHERNET_BYTES + 20 + 8
"""Ethernet, IPv4 (no options) and UDP headers: what a frame has beyond its UDP payload."""
OVERHEAD_BYTES = ENCAPSULATION_BYTES + HEADER_BYTES
"""What a frame has beyond the tenant's own data; the smallest frame that can be identified."""
MTU_BYTES = 1500

SERVER_PORT = 9000
CLIENT_PORT_BASE = 40000
MAX_TENANT = 0xFFFF - CLIENT_PORT_BASE

UintArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]


def client_port(tenant: int) -> int:
    """UDP source port of a tenant.

    Raises:
        ValueError: The number is not one a tenant can have.
    """
    if not 1 <= tenant <= MAX_TENANT:
        raise ValueError(f"tenant number: found {tenant}, expected 1 to {MAX_TENANT}")
    return CLIENT_PORT_BASE + tenant


def payload_bytes(size_bits: npt.ArrayLike, *, mtu_bytes: int = MTU_BYTES) -> IntArray:
    """UDP payload lengths of frames of the given sizes.

    Args:
        size_bits: Frame sizes without FCS, in bits, of any shape.
        mtu_bytes: Largest IP packet of the path.

    Returns:
        Payload lengths in bytes, in the shape of `size_bits`.

    Raises:
        ValueError: A size that is no whole number of bytes, too small for the header or too large for the MTU.
    """
    bits = np.asarray(size_bits)
    smallest, largest = OVERHEAD_BYTES, mtu_bytes + ETHERNET_BYTES
    if bits.size and (np.any(bits % 8 != 0) or bits.min() < 8 * smallest or bits.max() > 8 * largest):
        wrong = bits[(bits % 8 != 0) | (bits < 8 * smallest) | (bits > 8 * largest)].flat[0]
        raise ValueError(
            f"packet size: found {wrong} bits ({wrong / 8:g} bytes), expected whole bytes from {smallest} "
            f"(headers that identify a packet) to {largest} (MTU {mtu_bytes} plus Ethernet); choose a size within"
        )
    return (bits // 8 - ENCAPSULATION_BYTES).astype(np.int64)


def headers(tenant: int, intended_ns: IntArray, last_of_request: npt.NDArray[np.bool_], *, flags: int = 0) -> UintArray:
    """Headers of a whole window of packets, numbered from 0.

    Args:
        tenant: Tenant number.
        intended_ns: Intended send times, CLOCK_REALTIME ns, shape [n].
        last_of_request: Whether each packet completes a request, shape [n].
        flags: Flags that every packet carries.

    Returns:
        Bytes ready to be sent, shape [n, 24].
    """
    records = np.zeros(intended_ns.size, dtype=HEADER_DTYPE)
    records["magic"] = MAGIC
    records["tenant"] = tenant
    records["flags"] = np.where(last_of_request, LAST_OF_REQUEST, 0) | flags
    records["sequence"] = np.arange(intended_ns.size)
    records["intended_ns"] = intended_ns
    return records.view(np.uint8).reshape(-1, HEADER_BYTES)


def parse(payloads: UintArray) -> npt.NDArray[np.void]:
    """Headers of captured payloads, as records of `HEADER_DTYPE`.

    Args:
        payloads: The first 24 (or more) payload bytes of each packet, shape [n, >= 24].

    Returns:
        Records, shape [n]. Whether `magic` is ours is for the caller to check: foreign traffic is not an error.
    """
    first = np.ascontiguousarray(payloads[:, :HEADER_BYTES])
    return first.view(HEADER_DTYPE).reshape(-1)
