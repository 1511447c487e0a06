"""What stands in front of a switch's packet socket: how much it drops, whose, and that a longer way is only longer."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from testbed.emulation import delay_line, links, namespace, packet_filter
from testbed.emulation.journal import Journal
from testbed.traffic import wire

pytestmark = pytest.mark.network

CLIENT, OTHER = "10.1.0.1", "10.1.0.2"
# What ovs-vswitchd has on its sockets: nothing that the port itself sends.
OWN = ((0x28, 0, 0, 0xFFFFF004), (0x15, 0, 1, 4), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFF))


def frame(sequence: int, client: str = CLIENT, protocol: int = 17) -> bytes:
    """An Ethernet frame with an IPv4 header, and where a tenant's packet has its number, that number."""
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 52, 0, 0, 64, protocol, 0, socket.inet_aton(client), socket.inet_aton("10.2.0.1")
    )
    return bytes(12) + b"\x08\x00" + ip + bytes(8) + wire.HEADER.pack(wire.MAGIC, 1, 0, sequence, 0)


def number(data: bytes) -> int:
    return int(wire.HEADER.unpack(data[42:66])[3])


class Link:
    """Both ends of a veth; what arrives at `far` is received by a socket as a switch's."""

    def __init__(self) -> None:
        links.run(["ip", "link", "add", "near", "type", "veth", "peer", "name", "far"])
        links.disable_ipv6()
        for end in ("near", "far"):
            links.run(["ip", "link", "set", end, "up"])
        self.sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.sender.bind(("near", 0))
        self.receiver = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        packet_filter.attach(self.receiver, OWN)
        self.receiver.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)
        self.receiver.bind(("far", 3))
        self.receiver.settimeout(0.5)

    def received(self) -> list[bytes]:
        found = []
        try:
            while True:
                found.append(self.receiver.recv(2048))
        except TimeoutError:
            return found


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    opened = Journal.create(tmp_path)
    try:
        with namespace.entered(namespace.create(opened)):
            made = Link()
            yield made
            made.sender.close()
            made.receiver.close()
    finally:
        opened.undo()


def lost(link: Link, seed: int, *, share: float = 0.3, client: str | None = None, **header: object) -> set[int]:
    """Which of 4,000 packets do not arrive."""
    with packet_filter.in_front(link.receiver, packet_filter.losing(share, seed, client)):
        for sequence in range(4000):
            link.sender.send(frame(sequence, **header))  # type: ignore[arg-type]
        arrived = {number(data) for data in link.received()}
    assert packet_filter.read(link.receiver) == OWN
    return set(range(4000)) - arrived


def test_a_burst_of_loss_takes_its_share_independently_and_the_same_packets_again(link: Link) -> None:
    first = lost(link, 7)
    assert first == lost(link, 7)
    assert first != lost(link, 8)
    # Five standard deviations of 4,000 draws, and of their neighbours' agreement.
    assert abs(len(first) - 1200) < 145
    both = sum(sequence + 1 in first for sequence in first)
    assert abs(both - 360) < 95


def test_packets_without_a_number_are_lost_by_the_kernels_draw(link: Link) -> None:
    assert abs(len(lost(link, 7, protocol=6)) - 1200) < 145


def test_a_loss_for_one_client_takes_nobody_elses_packets(link: Link) -> None:
    assert not lost(link, 7, share=1.0, client=OTHER)
    assert len(lost(link, 7, share=1.0, client=CLIENT)) == 4000


def test_nothing_is_left_on_the_socket(link: Link) -> None:
    with packet_filter.in_front(link.receiver, packet_filter.DROP):
        link.sender.send(frame(1))
        assert not link.received()
    link.sender.send(frame(2))
    assert [number(data) for data in link.received()] == [2]


def test_a_longer_way_delays_every_packet_once_and_keeps_their_order(link: Link) -> None:
    links.run(["tc", "qdisc", "add", "dev", "near", "root", "pfifo", "limit", "1"])
    taken = []
    with delay_line.delayed("near", "far", packet_filter.in_front(link.receiver, delay_line.ONLY_DELAYED), 0.05):
        for sequence in range(50):
            began = time.monotonic()
            link.sender.send(frame(sequence))
            assert number(link.receiver.recv(2048)) == sequence
            taken.append(time.monotonic() - began)
        # What is on its way when it ends arrives at once, in order, once.
        for sequence in range(50, 90):
            link.sender.send(frame(sequence))
        # The first comes no sooner than the delay; all were sent, and so read, long before.
        assert number(link.receiver.recv(2048)) == 50
    assert [number(data) for data in link.received()] == list(range(51, 90))
    assert min(taken) >= 0.05
    assert float(np.median(taken)) < 0.1
    counted = links.run(["tc", "-s", "qdisc", "show", "dev", "near"])
    assert "Sent 5940 bytes 90 pkt" in counted
