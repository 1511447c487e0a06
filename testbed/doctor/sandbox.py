"""A place to try things in: nameless network namespaces, journalled processes, nothing left when it closes.

The namespaces have no name on the host, so the kernel removes them, with all their links and qdiscs, when the last
descriptor and process is gone, even after a kill -9. What else is made (one directory, processes) is in a journal like
that of a run, for `testbed clean`. A sandbox is entered by the calling thread.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbed.emulation import links, namespace, syscalls
from testbed.emulation.journal import Journal
from testbed.emulation.supervisor import Supervisor
from testbed.errors import PreflightError
from testbed.traffic import wire

# linux/asm-generic/socket.h; Python does not name them.
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35
_TIMESPEC = struct.Struct("qq")
_OURS = Path("/proc/thread-self/ns/net")
_SENDER, _RECEIVER = "10.9.0.1", "10.9.0.2"
_RECEIVE_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Host:
    """An end of a link in a namespace of its own.

    Attributes:
        namespace: Path of the namespace.
        interface: Its only interface.
        address: IPv4 address.
    """

    namespace: Path
    interface: str
    address: str

    def socket(self, kind: socket.SocketKind) -> socket.socket:
        """An IPv4 socket of this host; it stays the host's wherever it is used."""
        with namespace.entered(self.namespace):
            return socket.socket(socket.AF_INET, kind)


@dataclass(frozen=True)
class Sandbox:
    """An open sandbox.

    Attributes:
        journal: Undo of what is not in a nameless namespace.
        supervisor: Owner of the child processes.
    """

    journal: Journal
    supervisor: Supervisor


@contextmanager
def opened() -> Iterator[Sandbox]:
    """Open a sandbox and enter its namespace, which has nothing but a loopback that is up.

    Raises:
        PreflightError: The host does not allow it.
    """
    with ExitStack() as stack:
        journal = Journal.create()
        stack.callback(journal.undo)
        stack.enter_context(namespace.entered(stack.enter_context(fresh_namespace())))
        links.disable_ipv6()
        links.run(["ip", "link", "set", "lo", "up"])
        yield Sandbox(journal, stack.enter_context(Supervisor(journal)))


@contextmanager
def fresh_namespace() -> Iterator[Path]:
    """A new network namespace without a name; it lives as long as the context or a process inside it.

    Raises:
        PreflightError: The host does not allow it.
    """
    outcome: list[int | OSError] = []

    def make() -> None:
        try:
            syscalls.unshare_network()
            outcome.append(os.open(_OURS, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            outcome.append(error)

    # unshare moves the calling thread for good, so a thread is spent on it.
    maker = threading.Thread(target=make)
    maker.start()
    maker.join()
    (made,) = outcome
    if isinstance(made, OSError):
        raise PreflightError(f"a network namespace cannot be made: {made}")
    try:
        yield Path(f"/proc/{os.getpid()}/fd/{made}")
    finally:
        os.close(made)


@contextmanager
def neighbours() -> Iterator[tuple[Host, Host]]:
    """The calling thread's namespace as a host, and another host that is linked to it."""
    with fresh_namespace() as inner:
        here, host = Host(_OURS, "p1", _RECEIVER), Host(inner, "h1", _SENDER)
        attach(host, here.interface)
        links.run(["ip", "address", "add", f"{here.address}/24", "dev", here.interface])
        yield here, host


@contextmanager
def sender_and_receiver() -> Iterator[tuple[Host, Host]]:
    """Two hosts whose interfaces end in the calling thread's namespace as `p1` and `p2`, offloads off, ARP static."""
    with fresh_namespace() as left, fresh_namespace() as right:
        hosts = Host(left, "h1", _SENDER), Host(right, "h2", _RECEIVER)
        for number, host in enumerate(hosts, start=1):
            attach(host, f"p{number}")
        for host, peer in (hosts, hosts[::-1]):
            with namespace.entered(host.namespace):
                links.set_neighbours(host.interface, [(peer.address, _mac(peer))])
        yield hosts


def attach(host: Host, port: str) -> None:
    """Connect `host` to a new interface `port` of the calling thread's namespace."""
    links.run(["ip", "link", "add", port, "type", "veth", "peer", "name", host.interface, "address", _mac(host)])
    links.run(["ip", "link", "set", host.interface, "netns", str(host.namespace)])
    _bring_up(port)
    with namespace.entered(host.namespace):
        links.disable_ipv6()
        links.run(["ip", "address", "add", f"{host.address}/24", "dev", host.interface])
        _bring_up(host.interface)


def send(sender: Host, receiver: Host, *, count: int, size_bytes: int) -> list[int]:
    """Send `count` frames as fast as possible and wait until nothing more arrives.

    Args:
        sender: Where from.
        receiver: Where to.
        count: How many.
        size_bytes: Of each frame without FCS.

    Returns:
        Kernel receive stamps (CLOCK_REALTIME, ns) of those that arrived, in order.
    """
    with receiver.socket(socket.SOCK_DGRAM) as sink, sender.socket(socket.SOCK_DGRAM) as source:
        sink.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
        sink.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        sink.bind((receiver.address, wire.SERVER_PORT))
        padding = bytes(size_bytes - wire.OVERHEAD_BYTES)
        for sequence in range(count):
            header = wire.HEADER.pack(wire.MAGIC, 1, wire.OUTSIDE_WINDOW, sequence, time.time_ns())
            source.sendto(header + padding, (receiver.address, wire.SERVER_PORT))
        return list(_arrivals(sink, count))


def _arrivals(sink: socket.socket, most: int) -> Iterator[int]:
    sink.settimeout(0.5)
    for _ in range(most):
        try:
            _, ancillary, _, _ = sink.recvmsg(2048, socket.CMSG_SPACE(_TIMESPEC.size))
        except TimeoutError:
            return
        seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
        yield seconds * 1_000_000_000 + nanoseconds


def _bring_up(interface: str) -> None:
    # Frames with checksums still to be computed never make it through the userspace datapath as TCP.
    links.run(["ethtool", "-K", interface, "tx", "off", "rx", "off", "tso", "off", "gso", "off", "gro", "off"])
    links.run(["ip", "link", "set", interface, "up"])


def _mac(host: Host) -> str:
    return f"02:00:00:00:00:0{host.address[-1]}"
