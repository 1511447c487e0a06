"""How late requests are on the wire: a sender and a server in namespaces of their own, and a capture between them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import inference_clients as clients
from benchmarks import inference_servers as servers
from testbed.emulation import namespace
from testbed.emulation.awake import keep_awake
from testbed.emulation.journal import Journal
from testbed.emulation.links import run
from testbed.emulation.supervisor import Supervisor
from testbed.telemetry import pcap
from testbed.telemetry.capture import Capture, CaptureCounts
from testbed.telemetry.request_samples import RequestSamples
from testbed.telemetry.requests import RequestCaptures, match_requests
from testbed.traffic.sender import become_punctual

FloatArray = npt.NDArray[np.float64]

_CLIENT, _SERVER = "10.231.0.1", "10.231.0.2"
_IDLE_S = 5.0
_PRIORITY = 1


@dataclass(frozen=True)
class Wire:
    """A window and its capture.

    Attributes:
        samples: Its requests, as sent and as captured at the client's interface.
        counts: What the capture missed.
        idle_s: By how much a process that only sleeps woke up late just before, at the same rate; [m].
    """

    samples: RequestSamples
    counts: CaptureCounts
    idle_s: FloatArray


class Receiver(StrEnum):
    """Who is sent to."""

    ECHO = "a bare gRPC echo"
    OURS = "our server"


def captured(folder: Path, receiver: Receiver, **how: Any) -> Wire:
    """Send one window over a veth pair, all cores kept awake, and find its requests in the capture.

    The sender has the last core for itself, and receiver and capture share the others: a kernel that preempts nobody
    inside a system call lets even a process of real-time priority wait for one.

    Args:
        folder: Where files go.
        receiver: Who is sent to.
        how: As of `clients.Sender`.

    Raises:
        PreflightError: This is not root, or there is no tcpdump.
        FidelityError: The capture does not hold the whole connection.
    """
    *others, last = sorted(os.sched_getaffinity(0))
    with _pair() as (journal, far, near), Supervisor(journal) as supervisor:
        with namespace.entered(far), servers.on_cores(others or [last]):
            serving = _receiving(folder, receiver, how["model"], how["images"])
            target = serving.__enter__()
        port = int(target.rpartition(":")[2])
        keep_awake(supervisor)
        with servers.on_cores([last]):
            idle_s = _woken(how["rate"], how["seed"])
        with namespace.entered(near), servers.on_cores(others or [last]):
            capture = Capture.start(
                supervisor,
                "client",
                folder / f"{receiver.name}.pcap",
                expression=f"tcp port {port}",
                snap_bytes=0,
                both_ways=True,
            )
        with namespace.entered(near), servers.on_cores([last]):
            sender = clients.Sender(folder, "wire", target, **how)
        sender.start()
        record = sender.record()
        counts = capture.finish()
        serving.__exit__(None, None, None)
    seen = pcap.read_records(capture.path)
    everywhere = RequestCaptures(sent=seen, received=seen, out=[seen, seen], back=seen)
    samples = match_requests("wire", record, everywhere, domains=["wire"], server_port=port).samples
    return Wire(samples, counts, idle_s)


def _receiving(folder: Path, receiver: Receiver, model: str, images: int) -> AbstractContextManager[str]:
    """A receiver that is to be started in this namespace."""
    if receiver is Receiver.OURS:
        return servers.ours("--listen", f"{_SERVER}:0", "--models", model)
    request = folder / "request"
    request.write_bytes(clients.message(model, images))
    run(["ip", "link", "set", "lo", "up"])
    with servers.ours("--models", model) as ours:
        answers = servers.answers(ours, request, model)
    return servers.echo(answers, _SERVER)


@contextmanager
def _pair() -> Iterator[tuple[Journal, Path, Path]]:
    """Namespaces of a server and of a client, connected."""
    journal = Journal.create()
    try:
        far, near = (namespace.create(journal, f"bench-{end}-") for end in ("server", "client"))
        with namespace.entered(far):
            run(["ip", "link", "add", "server", "type", "veth", "peer", "name", "client", "netns", near.name])
        for path, interface, address in ((far, "server", _SERVER), (near, "client", _CLIENT)):
            with namespace.entered(path):
                run(["ip", "addr", "add", f"{address}/24", "dev", interface])
                run(["ip", "link", "set", interface, "up"])
        yield journal, far, near
    finally:
        journal.undo()


def _woken(rate: float, seed: int) -> FloatArray:
    """By how much a process that only sleeps wakes up late, asked for so many moments a second; seconds, [m]."""
    become_punctual(_PRIORITY)
    gaps_s = np.random.default_rng(seed).exponential(1.0 / rate, int(rate * _IDLE_S))
    due_ns = time.monotonic_ns() + np.rint(1e9 * np.cumsum(gaps_s)).astype(np.int64)
    late_ns = []
    for due in due_ns.tolist():
        time.sleep(max(due - time.monotonic_ns(), 0) / 1e9)
        late_ns.append(time.monotonic_ns() - due)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return np.array(late_ns) / 1e9
