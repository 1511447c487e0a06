"""Packets of a tenant, sent and received one at a time through a network that is up."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from testbed.emulation import namespace
from testbed.traffic import wire
from tests.integration.spine import Reserved

PORT = 9000
SENT = 300
EACH_S = 0.004
_RCVBUFFORCE = 33
_BUFFER_BYTES = 4 << 20
"""All that is sent before anything is read."""


class Pair:
    """A tenant's client and the server it sends to, by sockets in their namespaces."""

    def __init__(self, made: Reserved, tenant: int) -> None:
        path = made.network.layout.path(tenant)
        with namespace.entered(made.network.hosts[path.server.host].namespace):
            self.server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.server.bind((path.server.address, PORT + tenant))
        self.server.settimeout(2.0)
        self.server.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _BUFFER_BYTES)
        with namespace.entered(made.network.hosts[path.client.host].namespace):
            self.client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.client.connect((path.server.address, PORT + tenant))
        self.tenant = tenant

    def send(self, sequence: int) -> None:
        self.client.send(wire.HEADER.pack(wire.MAGIC, self.tenant, 0, sequence, 0))

    def received(self) -> int:
        return int(wire.HEADER.unpack(self.server.recv(2048))[3])

    def all_received(self) -> list[int]:
        found = []
        try:
            while True:
                found.append(self.received())
        except TimeoutError:
            return found

    def lost(self, count: int = SENT) -> set[int]:
        """Which of so many packets do not arrive; the others do so in order."""
        for sequence in range(count):
            self.send(sequence)
            time.sleep(EACH_S)
        arrived = self.all_received()
        assert arrived == sorted(arrived)
        return set(range(count)) - set(arrived)


@contextmanager
def pair(made: Reserved, tenant: int) -> Iterator[Pair]:
    found = Pair(made, tenant)
    with found.client, found.server:
        yield found
