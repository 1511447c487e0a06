"""Drives what was installed before a run may rely on it: every domain at its border, then TCP across the whole path.

A command that succeeded proves nothing on a switch, so every meter and queue is made to act. Domains are probed last
one first: traffic of a domain's probe runs on through the domains behind it, which have been counted by then.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

from controller.program import DomainProgram
from testbed.emulation import namespace
from testbed.emulation.layout import TenantPath
from testbed.emulation.network import TandemNetwork
from testbed.emulation.probe_checks import ProbeResult, judge
from testbed.emulation.probe_domain import DomainProbe
from testbed.errors import ReservationError

WHOLE_PATH = "(path)"
_TRIES = 3
_ECHOES_AT_ONCE = 16
_TCP_BYTES, _LEAST_TCP_BYTES = 100_000, 6_000
_TCP_TIMEOUT_S = 10.0
_FIRST_TCP_PORT = 20_000


def probe(
    network: TandemNetwork, programs: Mapping[str, DomainProgram], *, before_each: Callable[[], None] = lambda: None
) -> tuple[ProbeResult, ...]:
    """Probe every domain's meters and queues and every tenant's path.

    A host that stalls can make a right meter or queue look slow, never a wrong one right for long: a domain of which
    nothing but timed values is off is probed again, up to three times in all, for longer and with fewer frames each
    time, and what then counts is named as a later try. A wrong count is never tried again: packets do not go astray
    because a host is slow.

    Args:
        network: The network; the calling thread is inside its fabric.
        programs: What each domain's controller installed, by domain.
        before_each: Called before each domain and before the paths; what it raises ends the probe.

    Raises:
        ReservationError: Something does not act as installed; each such thing is named with what was found.
    """
    results: list[ProbeResult] = []
    installed_s = time.monotonic()
    for index in (number - 1 for part in reversed(network.layout.segments) for number in reversed(part)):
        before_each()
        results += _domain(network, index, programs[network.layout.skeletons[index].domain], installed_s)
    before_each()
    with ThreadPoolExecutor(_ECHOES_AT_ONCE) as pool:
        results += pool.map(lambda path: _tcp(network, path, _message_bytes(path, programs)), network.layout.paths)
    failed = [f"probe of {result}" for result in results if not result.ok]
    if failed:
        raise ReservationError(failed)
    return tuple(results)


def _domain(network: TandemNetwork, index: int, program: DomainProgram, installed_s: float) -> tuple[ProbeResult, ...]:
    # Nothing has been sent through its meters: domains behind it were probed at their own borders.
    results = DomainProbe(network, index, program, untouched_since_s=installed_s).run()
    for attempt in range(2, _TRIES + 1):
        if not _may_be_the_hosts(results):
            break
        again = DomainProbe(network, index, program, stretch=float(attempt)).run()
        results = tuple(replace(result, what=f"{result.what} (try {attempt})") for result in again)
    return results


def _may_be_the_hosts(results: Sequence[ProbeResult]) -> bool:
    """Whether something failed, and all that did is a value that was timed: a count has no tolerance."""
    failed = [result for result in results if not result.ok]
    return bool(failed) and all(result.tolerance > 0 for result in failed)


def _message_bytes(path: TenantPath, programs: Mapping[str, DomainProgram]) -> int:
    """What the tenant's slowest guardrail lets through in about a second, a few full segments at least."""
    rules = [rule for program in programs.values() for rule in program.rules if rule.tenant == path.tenant]
    rates = [rule.queue.ceil_bps for rule in rules] + [1000 * rule.meter.rate_kbps for rule in rules if rule.meter]
    return max(_LEAST_TCP_BYTES, min(_TCP_BYTES, min(rates, default=0) // 8))


def _tcp(network: TandemNetwork, path: TenantPath, count: int) -> ProbeResult:
    """Echo a message over TCP between the tenant's client and its server; a ping would miss broken checksums."""
    message = bytes(number & 0xFF for number in range(count))
    what, intact = "bytes echoed over TCP", 0
    try:
        if _echo(network, path, message) == message:
            intact = count
    except OSError as error:
        what += (
            f" ({path.client.address} to {path.server.address}: {error or type(error).__name__}; look at the offloads "
            "of the hosts' interfaces and at the reverse flows)"
        )
    return judge(WHOLE_PATH, path.tenant, what, found=intact, expected=count, tolerance=0)


def _echo(network: TandemNetwork, path: TenantPath, message: bytes) -> bytes:
    # A socket stays in the namespace it was made in, so both ends can be held by this process.
    port = _FIRST_TCP_PORT + path.number
    with ExitStack() as stack:
        with namespace.entered(network.hosts[path.server.host].namespace):
            listener = stack.enter_context(socket.create_server((path.server.address, port)))
        with namespace.entered(network.hosts[path.client.host].namespace):
            client = stack.enter_context(socket.socket())
        client.settimeout(_TCP_TIMEOUT_S)
        listener.settimeout(_TCP_TIMEOUT_S)
        client.connect((path.server.address, port))
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
