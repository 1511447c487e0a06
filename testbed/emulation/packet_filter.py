"""Classic BPF in front of a switch: some packets are dropped, the rest go on as before.

Every packet of a userspace port is received from a packet socket of that port: a program put in front of the socket's
own decides before the switch sees anything, and needs no module of the kernel. The kernel's datapath is handed what the
ingress hook of traffic control let through, so there the same program becomes a filter of that hook. Captures come
before either. Both are taken off again without a trace. What for is decided by `testbed.run.faults`.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address

from testbed.emulation import links
from testbed.traffic import wire

Program = tuple[tuple[int, int, int, int], ...]
"""Instructions: (code, jump if true, jump if false, constant)."""

_SO_ATTACH_FILTER = 26
_SO_GET_FILTER = 26
_MOST = 4096
_INSTRUCTION = struct.Struct("=HBBI")

_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_EQUAL, _AT_LEAST = 0x15, 0x35
_MULTIPLY, _ADD, _SHIFT_RIGHT, _XOR_X, _TO_X = 0x24, 0x04, 0x74, 0xAC, 0x07
_RETURN = 0x06
_ANCILLARY = 0xFFFFF000
_PACKET_TYPE, _MARK, _RANDOM = _ANCILLARY + 4, _ANCILLARY + 20, _ANCILLARY + 56
_OUTGOING = 4
_ALL = 0x40000
_ETHERNET_TYPE, _PROTOCOL, _SOURCE = 12, 23, 26
_IPV4, _UDP = 0x0800, 17
_SEQUENCE = wire.ENCAPSULATION_BYTES + 12
"""Lower half of the sequence number in a packet of a tenant."""

DROP: Program = ((_RETURN, 0, 0, 0),)
"""Lets nothing through."""
_KEEP: Program = ((_RETURN, 0, 0, _ALL),)


def losing(share: float, seed: int, client: str | None = None) -> Program:
    """Drops this share of the packets, and goes on behind itself with the others.

    Which UDP packets of a tenant are dropped follows from the seed and their sequence numbers alone; of all others,
    which have no such number, the kernel draws.

    Args:
        share: From 0 to 1.
        seed: Any number; its last 32 bits count.
        client: Only packets from this address, IPv4; None for all.
    """
    threshold = min(round(share * 2**32), 2**32 - 1)
    # Two rounds of multiply and fold, the finish of MurmurHash3: neighbours in sequence are dropped independently.
    hashed = [
        (_LOAD_WORD, 0, 0, _SEQUENCE),
        (_ADD, 0, 0, (seed * 0x9E3779B9) & 0xFFFFFFFF),
        *_folded(16, 0x85EBCA6B),
        *_folded(13, 0xC2B2AE35),
        *_folded(16, 1),
    ]
    decide = [(_AT_LEAST, 1, 0, threshold), *DROP]
    drawn = [(_LOAD_WORD, 0, 0, _RANDOM)]
    # A tenant's packet jumps over the kernel's draw; its own hash jumps over nothing more than the drop.
    chosen = [
        (_LOAD_BYTE, 0, 0, _PROTOCOL),
        (_EQUAL, 0, len(hashed) + len(decide) + 1, _UDP),
        *hashed,
        *decide,
        (0x05, 0, 0, len(drawn) + len(decide)),
        *drawn,
        *decide,
    ]
    ours = [] if client is None else [(_LOAD_WORD, 0, 0, _SOURCE), (_EQUAL, 0, len(chosen), int(IPv4Address(client)))]
    whole = [*ours, *chosen]
    inbound = [(_LOAD_HALF, 0, 0, _PACKET_TYPE), (_EQUAL, len(whole) + 2, 0, _OUTGOING)]
    return (*inbound, (_LOAD_HALF, 0, 0, _ETHERNET_TYPE), (_EQUAL, 0, len(whole), _IPV4), *whole)


def only_marked(mark: int) -> Program:
    """Drops everything without this mark, and goes on behind itself with what has it."""
    return ((_LOAD_WORD, 0, 0, _MARK), (_EQUAL, 1, 0, mark), *DROP)


def arriving_unmarked(mark: int) -> Program:
    """Takes what comes in without this mark, and nothing that goes out."""
    return (
        (_LOAD_HALF, 0, 0, _PACKET_TYPE),
        (_EQUAL, 3, 0, _OUTGOING),
        (_LOAD_WORD, 0, 0, _MARK),
        (_EQUAL, 1, 0, mark),
        *_KEEP,
        *DROP,
    )


def read(handle: socket.socket) -> Program:
    """The program on a socket; empty if there is none."""
    buffer = ctypes.create_string_buffer(_MOST * _INSTRUCTION.size)
    # The kernel counts instructions here, not bytes, which Python's own getsockopt cannot tell.
    count = ctypes.c_uint32(_MOST)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.getsockopt(handle.fileno(), socket.SOL_SOCKET, _SO_GET_FILTER, buffer, ctypes.byref(count)) != 0:
        raise OSError(ctypes.get_errno(), "SO_GET_FILTER")
    return tuple(_INSTRUCTION.iter_unpack(buffer.raw[: count.value * _INSTRUCTION.size]))


def attach(handle: socket.socket, program: Sequence[tuple[int, int, int, int]]) -> None:
    """Replace the program on a socket, for all who share the socket, in one step."""
    instructions = b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    handle.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(buffer)))


@contextmanager
def in_front(handle: socket.socket, program: Program) -> Iterator[None]:
    """Have a program decide before the one that is on a socket, which must not be empty."""
    own = read(handle)
    if not own:
        raise OSError("a packet socket of the switch has no filter of its own to go on with")
    attach(handle, (*program, *own))
    try:
        yield
    finally:
        attach(handle, own)


@contextmanager
def at_ingress(interface: str, program: Program) -> Iterator[None]:
    """Have a program decide what the kernel's datapath gets of what an interface receives.

    Args:
        interface: In the calling thread's network namespace, without a filter of its own on its ingress.
        program: What it does not drop goes on behind it.

    Raises:
        PreflightError: This kernel or its tools cannot do it, with their words.
    """
    hook = ["dev", interface, "clsact"]
    added = ["tc", "filter", "add", "dev", interface, "ingress", "protocol", "all"]
    links.run(["tc", "qdisc", "add", *hook])
    try:
        # Whatever the program keeps is decided; the filter behind it, last so that all begins at once, takes the rest.
        links.run([*added, "prio", "1", "bpf", "bytecode", _bytecode((*program, *_KEEP)), "action", "ok"])
        links.run([*added, "prio", "2", "bpf", "bytecode", _bytecode(_KEEP), "action", "drop"])
        yield
    finally:
        links.run(["tc", "qdisc", "del", *hook])


def ingress_available() -> bool:
    """Whether this kernel and its tools have what `at_ingress` needs."""

    def attempt() -> None:
        with at_ingress("lo", DROP):
            pass

    return links.tried(attempt)


def _bytecode(program: Program) -> str:
    """As `tc` reads it: the number of instructions, then each."""
    return ",".join([str(len(program)), *(" ".join(map(str, instruction)) for instruction in program)])


def _folded(shift: int, factor: int) -> list[tuple[int, int, int, int]]:
    return [(_TO_X, 0, 0, 0), (_SHIFT_RIGHT, 0, 0, shift), (_XOR_X, 0, 0, 0), (_MULTIPLY, 0, 0, factor)]
