"""Two runs on one host: neither is in the other's network, counters or way, also when one is killed and cleaned."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from controller import traffic_control
from testbed.emulation import clean
from testbed.emulation.probe import probe
from testbed.emulation.probe_traffic import SMALLEST_FRAME_BYTES, Injector, Pacer, Stream, frame
from tests.integration.conftest import ROOT
from tests.integration.controller_lab import wait_for
from tests.integration.spine import Reserved, reserved

pytestmark = pytest.mark.network

FRAMES_PER_S = 300
"""Well below the tenant's meter."""


@contextmanager
def neighbour() -> Iterator[subprocess.Popen[str]]:
    """Another process with a network of the same scenario."""
    command = [sys.executable, "-m", "tests.integration.spine"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        clean.clean()


def heard(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the neighbour ended with {process.wait()}"
    return dict(json.loads(line))


def ask(process: subprocess.Popen[str], word: str) -> dict[str, Any]:
    assert process.stdin is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()
    return heard(process)


class Traffic(threading.Thread):
    """The first tenant's packets into the network whose fabric the starting thread is in, until told to stop."""

    def __init__(self, made: Reserved) -> None:
        super().__init__()
        self._made = made
        self._enough = threading.Event()
        self.sent = 0

    def run(self) -> None:
        path = self._made.network.layout.path(1)
        data = frame(path.number, path.client.address, path.server.address, SMALLEST_FRAME_BYTES)
        with Injector(self._made.network.layout.entry(1).upstream, bypass=True) as injector:
            pacer = Pacer([Stream(injector, data, FRAMES_PER_S)])
            while not self._enough.is_set():
                pacer.run(time.monotonic() + 0.05)
                self.sent = pacer.sent()[0].packets

    def stop(self) -> int:
        """How many packets went out in all."""
        self._enough.set()
        self.join()
        return self.sent


def arrived(made: Reserved) -> int:
    """Packets of the first tenant that left towards its compute host."""
    (port,) = (port for _, port in made.programs["east"].hops[1].server_ports)
    minor = made.programs["east"].rules[0].queue.minor
    return traffic_control.counters([port])[port][minor].sent_packets


def test_two_networks_are_built_read_back_and_probed_at_once_and_one_is_cleaned_under_the_others_traffic() -> None:
    with neighbour() as other, reserved() as ours:
        theirs = heard(other)
        assert theirs["runid"] != ours.network.journal.runid
        assert theirs["drift"] == []
        assert ours.federation.drift() == ()
        assert clean.left_behind() == (), "a run that is alive is not for cleaning"

        # Counts of a probe are exact: one packet of the other network among ours would be found.
        assert all(result.ok for result in probe(ours.network, ours.programs))
        answer = ask(other, "probe")
        assert answer["probed"] > 100
        assert answer["drift"] == []

        before = arrived(ours)
        traffic = Traffic(ours)
        traffic.start()
        wait_for(lambda: arrived(ours) > before, "our traffic")
        other.send_signal(signal.SIGKILL)
        other.wait()
        at_kill = arrived(ours)
        (cleaned,) = clean.clean()
        assert cleaned.runid == theirs["runid"]
        assert cleaned.problems == ()
        assert f"network namespace tlt-{theirs['runid']}" in clean.present(cleaned)
        wait_for(lambda: arrived(ours) > at_kill + 10, "our traffic after the other run was cleaned")
        sent = traffic.stop()
        wait_for(lambda: arrived(ours) - before >= sent, f"the arrival of all {sent} packets")
        assert arrived(ours) - before == sent
        assert ours.federation.drift() == ()
        assert clean.clean() == ()
