"""Drives what was installed before a run may rely on it: every domain at its border, then TCP across the whole path.

A command that succeeded proves nothing on a switch, so every meter and queue is made to act. Domains are probed last
one first: traffic of a domain's probe runs on through the domains behind it, which have been counted by then.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack

from controller.program import DomainProgram
from testbed.emulation import namespace
from testbed.emulation.layout import TenantPath
from testbed.emulation.network import TandemNetwork
from testbed.emulation.probe_checks import ProbeResult, judge
from testbed.emulation.probe_domain import DomainProbe
from testbed.errors import ReservationError

WHOLE_PATH = "(path)"
_TCP_BYTES = 100_000
_TCP_TIMEOUT_S = 10.0
_TCP_PORT = 9001


def probe(
    network: TandemNetwork, programs: Mapping[str, DomainProgram], *, stretch: float = 1.0
) -> tuple[ProbeResult, ...]:
    """Probe every domain's meters and queues and every tenant's path.

    Args:
        network: The network; the calling thread is inside its fabric.
        programs: What each domain's controller installed, by domain.
        stretch: Factor on the length of the timed drives, for hosts that are slow.

    Raises:
        ReservationError: Something does not act as installed; each such thing is named with what was found.
    """
    # Whatever crossed the meters before, after this long their buckets are full.
    meters = [rule.meter for program in programs.values() for rule in program.rules if rule.meter is not None]
    time.sleep(max((meter.burst_kbit / meter.rate_kbps for meter in meters), default=0.0))
    results: list[ProbeResult] = []
    for index in reversed(range(len(network.layout.skeletons))):
        domain = network.layout.skeletons[index].domain
        results += DomainProbe(network, index, programs[domain], stretch=stretch).run()
    results += [_tcp(network, path) for path in network.layout.paths]
    failed = [f"probe of {result}" for result in results if not result.ok]
    if failed:
        raise ReservationError(failed)
    return tuple(results)


def _tcp(network: TandemNetwork, path: TenantPath) -> ProbeResult:
    """Echo a message over TCP between the tenant's client and its server; a ping would miss broken checksums."""
    message = bytes(range(256)) * (_TCP_BYTES // 256)
    try:
        echoed = _echo(network, path, message)
    except OSError as error:
        raise ReservationError(
            f"probe of {WHOLE_PATH}, {path.tenant}: TCP from {path.client.address} to {path.server.address} failed "
            f"({error or type(error).__name__}); look at offloads of the hosts' interfaces and at the reverse flows"
        ) from error
    intact = len(echoed) if echoed == message else 0
    what = "bytes echoed over TCP"
    return judge(WHOLE_PATH, path.tenant, what, found=intact, expected=len(message), tolerance=0)


def _echo(network: TandemNetwork, path: TenantPath, message: bytes) -> bytes:
    # A socket stays in the namespace it was made in, so both ends can be held by this process.
    with ExitStack() as stack:
        with namespace.entered(network.hosts[path.server.host].namespace):
            listener = stack.enter_context(socket.create_server((path.server.address, _TCP_PORT)))
        with namespace.entered(network.hosts[path.client.host].namespace):
            client = stack.enter_context(socket.socket())
        client.settimeout(_TCP_TIMEOUT_S)
        listener.settimeout(_TCP_TIMEOUT_S)
        client.connect((path.server.address, _TCP_PORT))
        server = stack.enter_context(listener.accept()[0])
        server.settimeout(_TCP_TIMEOUT_S)
        echo = threading.Thread(target=_send_back, args=(server, len(message)), daemon=True)
        echo.start()
        client.sendall(message)
        received = _receive(client, len(message))
        echo.join(_TCP_TIMEOUT_S)
        return received


def _send_back(server: socket.socket, count: int) -> None:
    try:
        server.sendall(_receive(server, count))
    except OSError:
        # The client's own time-out tells what matters: nothing came back.
        return


def _receive(end: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        part = end.recv(65536)
        if not part:
            break
        received += part
    return bytes(received)
