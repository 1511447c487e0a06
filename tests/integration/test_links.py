"""Interfaces and routes as a real kernel keeps them, between two network namespaces of the test's own."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from testbed.emulation import links, namespace
from testbed.errors import PreflightError

pytestmark = [pytest.mark.network, pytest.mark.untimed]

_RTO_OFFSET = 8
"""Of `tcpi_rto`, microseconds, in `struct tcp_info`."""


@pytest.fixture
def ends() -> Iterator[tuple[Path, Path]]:
    """Two namespaces with a link: 10.1.0.1 is on `near` in one, 10.2.0.1 on `far` in the other."""
    near, far = (f"tlt-links{os.getpid()}-{end}" for end in ("near", "far"))
    with ExitStack() as stack:
        for name in (near, far):
            links.run(["ip", "netns", "add", name])
            stack.callback(links.run, ["ip", "netns", "delete", name])
        links.run(["ip", "link", "add", "near", "netns", near, "type", "veth", "peer", "name", "far", "netns", far])
        for name, interface, address in ((near, "near", "10.1.0.1"), (far, "far", "10.2.0.1")):
            links.run(["ip", "-netns", name, "address", "add", f"{address}/8", "dev", interface])
            links.run(["ip", "-netns", name, "link", "set", interface, "up"])
        yield namespace.NAMES / near, namespace.NAMES / far


def resends_after_s(near: Path, far: Path) -> float:
    """What TCP in one namespace would wait before it resends to the other."""
    with ExitStack() as stack:
        with namespace.entered(far):
            listening = stack.enter_context(socket.create_server(("10.2.0.1", 8001)))
        with namespace.entered(near):
            client = stack.enter_context(socket.create_connection(listening.getsockname(), 5))
        stack.enter_context(listening.accept()[0])
        information = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64)
        return float(struct.unpack_from("=I", information, _RTO_OFFSET)[0] / 1e6)


def test_tcp_resends_no_sooner_than_it_was_told(ends: tuple[Path, Path]) -> None:
    assert 0.2 <= resends_after_s(*ends) < 0.3
    with namespace.entered(ends[0]):
        links.resend_no_sooner("near", 0.8)
    assert 0.8 <= resends_after_s(*ends) < 0.9


def test_an_interface_without_a_route_is_named(ends: tuple[Path, Path]) -> None:
    with namespace.entered(ends[0]):
        links.run(["ip", "link", "set", "near", "down"])
        with pytest.raises(PreflightError, match="near: found routes with nothing, expected rto_min 800 ms"):
            links.resend_no_sooner("near", 0.8)
