"""Holds a compute host's UDP port and discards what arrives: `python -m testbed.traffic.sink ADDRESS [--port N]`.

The packets have been captured before they get here, so nobody needs their content; but a closed port would answer each
with an ICMP error. A socket filter drops every packet inside the kernel, which costs next to nothing and counts them.
It prints one JSON line when ready, waits for SIGTERM or SIGINT, and ends with one JSON line of what it saw.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import signal
import socket
import struct
import sys
from pathlib import Path

from testbed.traffic.wire import SERVER_PORT

_SO_ATTACH_FILTER = 26
_SO_MEMINFO = 55
_MEMINFO = struct.Struct("9I")
_MEMINFO_DROPS = 8
_RETURN_ZERO = struct.pack("HBBI", 0x06, 0, 0, 0)
"""The classic BPF program `ret #0`: keep no byte of any packet."""


def discarding_socket(address: str, port: int) -> socket.socket:
    """A bound UDP socket whose packets end in the kernel; the filter is in place before the port opens."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    program = ctypes.create_string_buffer(_RETURN_ZERO, len(_RETURN_ZERO))
    udp.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))
    udp.bind((address, port))
    return udp


def discarded(udp: socket.socket) -> int:
    """Packets that reached the socket so far (the kernel counts what a filter drops as the socket's drops)."""
    counters = _MEMINFO.unpack(udp.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
    return int(counters[_MEMINFO_DROPS])


def unreachables_sent() -> int:
    """ICMP destination-unreachable messages that this network namespace has sent."""
    lines = Path("/proc/self/net/snmp").read_text(encoding="ascii").splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("Icmp:"))
    return int(dict(zip(names, values, strict=True))["OutDestUnreachs"])


def main(arguments: list[str] | None = None) -> int:
    """Hold the port until asked to end; the exit code is 0, or 2 where the port could not be held."""
    parser = argparse.ArgumentParser(prog="testbed.traffic.sink", description="Discard UDP packets in the kernel.")
    parser.add_argument("address", help="IPv4 address of the compute host")
    parser.add_argument("--port", type=int, default=SERVER_PORT, help="UDP port (default %(default)s)")
    options = parser.parse_args(arguments)
    ending = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        udp = discarding_socket(options.address, options.port)
    except OSError as error:
        print(f"sink: {options.address}:{options.port}: {error}", file=sys.stderr)
        return 2
    with udp:
        before = unreachables_sent()
        print(json.dumps({"ready": True, "port": udp.getsockname()[1]}), flush=True)
        signal.sigwait(ending)
        result = {"discarded": discarded(udp), "icmp_unreachable_sent": unreachables_sent() - before}
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
