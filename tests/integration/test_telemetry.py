"""Captures, tickers and host snapshots against a real kernel, in a network namespace of the test's own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from testbed.emulation import namespace
from testbed.emulation.journal import Journal
from testbed.emulation.supervisor import Child, Supervisor
from testbed.errors import FidelityError, PreflightError
from testbed.telemetry import host, pcap, stalls
from testbed.telemetry.capture import Capture
from testbed.traffic import wire

pytestmark = [pytest.mark.network, pytest.mark.timeout(120)]

CLIENT, SERVER = "10.1.0.5", "10.2.0.1"
PACKETS = 2000
ETH_P_ALL = 3


def stopped(pid: int) -> bool:
    """Whether every thread has come to its stop."""
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@dataclass
class Lab:
    """A namespace with a veth pair; the test is inside it. Packets to `SERVER` leave `left` and arrive at `right`."""

    supervisor: Supervisor
    folder: Path

    def send(self, packets: int = PACKETS) -> None:
        headers = wire.headers(5, np.arange(packets), np.ones(packets, np.bool_))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind((CLIENT, wire.client_port(5)))
            for header in headers:
                udp.sendto(header.tobytes().ljust(1358, b"\0"), (SERVER, wire.SERVER_PORT))

    @contextmanager
    def flood_of_others(self) -> Iterator[None]:
        """Packets that are no tenant's, one after the other."""
        ended = threading.Event()

        def send() -> None:
            while not ended.is_set():
                udp.send(b"x")

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.connect((SERVER, wire.SERVER_PORT + 1))
            flood = threading.Thread(target=send)
            flood.start()
            try:
                yield
            finally:
                ended.set()
                flood.join()

    def capture(self, interface: str = "right") -> Capture:
        return Capture.start(self.supervisor, interface, self.folder / f"{interface}.pcap")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    journal = Journal.create(tmp_path / "journals")
    try:
        with namespace.entered(namespace.create(journal)), Supervisor(journal) as supervisor:
            run("ip", "link", "add", "left", "type", "veth", "peer", "name", "right")
            run("ip", "addr", "add", f"{CLIENT}/8", "dev", "left")
            for interface in ("lo", "left", "right"):
                run("ip", "link", "set", interface, "up")
            run("ip", "neigh", "add", SERVER, "lladdr", "02:00:00:00:00:02", "dev", "left")
            yield Lab(supervisor, tmp_path)
    finally:
        journal.undo()


def test_a_capture_that_ends_right_after_the_last_packet_holds_every_packet(lab: Lab) -> None:
    capture = lab.capture()
    lab.send()
    counts = capture.finish()
    assert (counts.captured, counts.received, counts.missed) == (PACKETS, PACKETS, 0)
    packets = pcap.read(capture.path).packets
    assert packets.sequence.tolist() == list(range(PACKETS))
    assert set(packets.size_bits.tolist()) == {1400 * 8}
    assert np.all(np.diff(packets.time_ns) >= 0)
    assert np.any(packets.time_ns % 1000), "stamps are in nanoseconds"


def test_a_packet_that_arrives_as_a_capture_ends_is_not_missed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    capture, end = lab.capture(), lab.supervisor.end
    lab.send()

    def send_and_end(child: Child) -> int:
        lab.send(1)
        return end(child)

    monkeypatch.setattr(lab.supervisor, "end", send_and_end)
    counts = capture.finish()
    assert (counts.captured, counts.received, counts.missed) == (PACKETS, PACKETS, 0)


def test_a_capture_ignores_what_leaves_and_what_is_not_a_tenants(lab: Lab) -> None:
    capture = lab.capture()
    run("ip", "addr", "add", "10.3.0.1/32", "dev", "right")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("right", 0))
        raw.send(b"\2" * 12 + b"\x08\x06" + b"\0" * 46)
    lab.send(1)
    assert capture.finish().captured == 1


def test_packets_that_come_before_a_capture_has_its_filter_are_not_missed(lab: Lab) -> None:
    with lab.flood_of_others():
        for _ in range(50):
            capture = lab.capture()
            if capture.unfiltered:
                break
            # None fell into the moment between the socket and its filter.
            capture.finish()
            capture.path.unlink()
    lab.send()
    counts = capture.finish()
    assert counts.unfiltered > 0
    assert (counts.captured, counts.received, counts.missed) == (PACKETS, PACKETS + counts.unfiltered, 0)


def test_only_its_owner_can_read_a_capture(lab: Lab) -> None:
    capture = lab.capture()
    assert capture.path.stat().st_mode & 0o777 == 0o600
    capture.finish()
    assert capture.path.stat().st_mode & 0o777 == 0o600


def test_a_capture_never_overwrites_another(lab: Lab) -> None:
    lab.capture().finish()
    with pytest.raises(FileExistsError):
        lab.capture()


def test_an_interface_that_is_not_there_is_named(lab: Lab) -> None:
    with pytest.raises(PreflightError, match="nowhere"):
        lab.capture("nowhere")


def test_a_capture_that_died_is_not_taken_for_an_empty_one(lab: Lab) -> None:
    capture = lab.capture()
    child = lab.supervisor.children["capture-right"]
    os.kill(child.pid, signal.SIGKILL)
    child.process.wait()
    with pytest.raises(FidelityError, match="without its counters"):
        capture.finish()


def test_tickers_record_an_absence_on_every_core_with_its_time(lab: Lab) -> None:
    tickers = stalls.start(lab.supervisor, lab.folder)
    pid = lab.supervisor.children["stalls"].pid
    os.kill(pid, signal.SIGSTOP)
    while not stopped(pid):
        pass
    begin = time.monotonic_ns()
    while time.monotonic_ns() < begin + 60_000_000:
        pass
    end = time.monotonic_ns()
    os.kill(pid, signal.SIGCONT)
    records = tickers.finish()
    assert [record.core for record in records] == sorted(os.sched_getaffinity(0))
    for record in records:
        absence = record.during(begin, end)
        assert absence.longest_s >= 0.05
        assert absence.at_ns[absence.late_ns.argmax()] <= begin + stalls.PERIOD_NS
        assert record.ticks > 0
    assert tickers.path.stat().st_mode & 0o777 == 0o600


def test_settings_that_changed_between_two_snapshots_are_named(lab: Lab) -> None:
    before = host.snapshot(["left"])
    run("ethtool", "-K", "left", "tx", "off")
    run("tc", "qdisc", "add", "dev", "left", "root", "handle", "1:", "pfifo", "limit", "7")
    change = host.between(before, host.snapshot(["left"]))
    text = "\n".join(change.settings)
    assert "left tx-checksumming was on and is off" in text
    assert "left qdisc at root was noqueue" in text
    assert 'pfifo {"limit": 7}' in text


def test_a_counter_of_a_queueing_discipline_is_no_setting(lab: Lab) -> None:
    run("tc", "qdisc", "add", "dev", "left", "root", "handle", "1:", "htb")
    before = host.snapshot(["left"])
    lab.send(10)
    assert host.between(before, host.snapshot(["left"])).settings == ()


def test_packets_that_a_full_socket_dropped_are_counted_on_its_interface(lab: Lab) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.bind(("right", 0))
        before = host.snapshot(["left", "right"])
        lab.send(200)
        after = host.snapshot(["left", "right"])
    change = host.between(before, after)
    assert change.socket_drops.keys() == {"right"}
    assert 150 < change.socket_drops["right"] <= 200
    assert host.between(after, host.snapshot(["right"])).socket_drops == {}, "the socket is gone"


def test_a_snapshot_of_an_interface_that_is_not_there_names_the_command_that_failed(lab: Lab) -> None:
    with pytest.raises(FidelityError, match="ethtool -k nowhere"):
        host.snapshot(["nowhere"])
