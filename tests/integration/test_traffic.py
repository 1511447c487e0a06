"""Senders and sinks as the processes they are, across a veth pair between two network namespaces of the test's own."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from testbed.scenario.model import OnOffArrivals, PoissonArrivals
from testbed.telemetry import pcap
from testbed.traffic import wire
from testbed.traffic.arrivals import schedule
from testbed.traffic.records import NOT_ATTEMPTED, SenderSpec, SendRecord
from testbed.traffic.schedules import Schedule

pytestmark = [pytest.mark.network, pytest.mark.timeout(120)]

CLIENT, SERVER = "10.1.0.5", "10.2.0.1"
TENANT = 5
SIZE = 11_200


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass
class Pair:
    """Two namespaces joined by a veth pair: `a` for the client, `b` for the compute host."""

    folder: Path
    a: str = f"tlt-trf{os.getpid()}-a"
    b: str = f"tlt-trf{os.getpid()}-b"
    built: list[str] = field(default_factory=list)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def build(self) -> None:
        for name in (self.a, self.b):
            run("ip", "netns", "add", name)
            self.built.append(name)
            run("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        run("ip", "-n", self.a, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", self.b)
        for name, address in ((self.a, CLIENT), (self.b, SERVER)):
            run("ip", "-n", name, "addr", "add", f"{address}/8", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")

    def remove(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for name in self.built:
            run("ip", "netns", "del", name)

    def start(self, namespace: str, *command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def sink(self) -> subprocess.Popen[str]:
        process = self.start(self.b, sys.executable, "-m", "testbed.traffic.sink", SERVER)
        assert ready_line(process) == {"ready": True, "port": wire.SERVER_PORT}
        return process

    def sender(self, packets: Schedule, **changes: object) -> subprocess.Popen[str]:
        packets.save(self.folder / "schedule.npz")
        spec = SenderSpec(
            tenant=TENANT,
            source=CLIENT,
            destination=SERVER,
            schedule=str(self.folder / "schedule.npz"),
            result=str(self.record),
            clock_offset_ns=time.time_ns() - time.monotonic_ns(),
        )
        replace(spec, **changes).save(self.folder / "spec.json")  # type: ignore[arg-type]
        process = self.start(self.a, sys.executable, "-m", "testbed.traffic.sender", str(self.folder / "spec.json"))
        assert ready_line(process) == {"ready": True, "tenant": TENANT, "packets": len(packets)}
        return process

    @property
    def record(self) -> Path:
        return self.folder / "record.npz"

    def sent_packets(self) -> int:
        """Packets that the client's interface has transmitted."""
        (link,) = json.loads(run("ip", "-n", self.a, "-s", "-j", "link", "show", "eth0"))
        return int(link["stats64"]["tx"]["packets"])


def ready_line(process: subprocess.Popen[str]) -> dict[str, object]:
    assert process.stdout is not None
    return dict(json.loads(process.stdout.readline()))


def go(process: subprocess.Popen[str], in_ns: int = 50_000_000) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps({"start_monotonic_ns": time.monotonic_ns() + in_ns}) + "\n")
    process.stdin.flush()


def ended(process: subprocess.Popen[str]) -> dict[str, object]:
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    return dict(json.loads(out))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    built = Pair(tmp_path)
    try:
        built.build()
        yield built
    finally:
        built.remove()


def poisson(rate_per_s: float, duration_s: float) -> Schedule:
    return schedule(PoissonArrivals(rate_per_s, SIZE), seed=1, duration_s=duration_s)


@pytest.mark.parametrize("spin_ns", [0, 40_000], ids=["sleeping", "watching the clock"])
def test_every_packet_arrives_as_scheduled_and_none_before_its_time(pair: Pair, spin_ns: int) -> None:
    packets = schedule(OnOffArrivals(20e6, 0.005, 0.0075, SIZE), seed=1, duration_s=1.5)
    capture = pair.folder / "border.pcap"
    tcpdump = pair.start(
        pair.b, "tcpdump", "-i", "eth0", "-Q", "in", "-s", "96", "--time-stamp-precision=nano",
        "-B", "8192", "-Z", "root", "--immediate-mode", "-U", "-w", str(capture), "udp",
    )  # fmt: skip
    assert tcpdump.stderr is not None
    assert "listening" in tcpdump.stderr.readline()
    sink = pair.sink()
    sender = pair.sender(packets, flags=wire.OUTSIDE_WINDOW, spin_ns=spin_ns)
    go(sender)
    summary = ended(sender)
    sink.terminate()
    assert ended(sink) == {"discarded": len(packets), "icmp_unreachable_sent": 0}
    tcpdump.send_signal(signal.SIGINT)
    tcpdump.communicate(timeout=60)

    assert (summary["sent"], summary["errors"], summary["complete"]) == (len(packets), {}, True)
    record = SendRecord.load(pair.record)
    seen = pcap.read(capture).packets
    assert np.array_equal(seen.sequence, np.arange(len(packets)))
    assert np.array_equal(seen.size_bits, packets.size_bits)
    assert np.array_equal(seen.intended_ns, record.start_realtime_ns + np.rint(packets.time_s * 1e9).astype(np.int64))
    assert set(seen.tenant.tolist()) == {TENANT}
    assert set(seen.flags.tolist()) == {wire.LAST_OF_REQUEST | wire.OUTSIDE_WINDOW}
    assert set(seen.source_port.tolist()) == {wire.client_port(TENANT)}
    sent_ns = record.start_realtime_ns + np.rint(record.sent_s * 1e9).astype(np.int64)
    assert np.all(sent_ns >= seen.intended_ns)
    assert np.all(seen.time_ns >= sent_ns)


def test_packets_that_are_overdue_leave_at_once_in_order_with_their_lateness_recorded(pair: Pair) -> None:
    packets = poisson(2000, 5.0)
    pair.sink()
    sender = pair.sender(packets)
    go(sender, in_ns=-10_000_000_000)
    summary = ended(sender)
    record = SendRecord.load(pair.record)
    assert summary["sent"] == len(packets)
    # A closed loop would have waited: the whole window leaves in less than the window's length.
    assert record.sent_s[-1] - record.sent_s[0] < packets.time_s[-1] - packets.time_s[0]
    assert np.all(np.diff(record.sent_s) >= 0)
    assert record.lateness_s.min() > 5.0


def test_without_a_sink_errors_are_counted_and_the_schedule_goes_on(pair: Pair) -> None:
    packets = poisson(200, 1.0)
    sender = pair.sender(packets)
    go(sender)
    summary = ended(sender)
    errors = summary["errors"]
    assert isinstance(errors, dict)
    assert set(errors) == {"ECONNREFUSED"}
    assert summary["sent"] == len(packets) - errors["ECONNREFUSED"]
    record = SendRecord.load(pair.record)
    assert np.array_equal(np.isnan(record.sent_s), record.error == errno.ECONNREFUSED)


def test_a_packet_too_large_for_the_link_is_an_error_and_not_two_fragments(pair: Pair) -> None:
    run("ip", "-n", pair.a, "link", "set", "eth0", "mtu", "1000")
    sink = pair.sink()
    packets = Schedule(
        np.array([0.0, 0.01, 0.02]), np.array([8 * 1014, 8 * 1015, 8 * 66], dtype=np.int32), np.ones(3, dtype=np.bool_)
    )
    sender = pair.sender(packets)
    go(sender)
    assert ended(sender)["errors"] == {"EMSGSIZE": 1}
    assert SendRecord.load(pair.record).error.tolist() == [0, errno.EMSGSIZE, 0]
    sink.terminate()
    assert ended(sink)["discarded"] == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sender_ended_early_leaves_a_record_of_what_it_did(pair: Pair, number: signal.Signals) -> None:
    packets = poisson(500, 300.0)
    pair.sink()
    sender = pair.sender(packets)
    go(sender)
    while pair.sent_packets() <= 100:
        assert sender.poll() is None
    sender.send_signal(number)
    summary = ended(sender)
    record = SendRecord.load(pair.record)
    sent = int(np.sum(record.error == 0))
    assert (summary["complete"], summary["sent"]) == (False, sent)
    assert 90 < sent < len(packets)
    assert np.all(record.error[:sent] == 0)
    assert np.all(record.error[sent:] == NOT_ATTEMPTED)


def test_a_sender_ended_before_its_window_sends_nothing(pair: Pair) -> None:
    sender = pair.sender(poisson(500, 1.0))
    before = pair.sent_packets()
    sender.terminate()
    assert sender.wait(timeout=60) == 2
    assert not pair.record.exists()
    assert pair.sent_packets() == before


def test_a_sender_whose_supervisor_is_gone_before_the_start_ends_too(pair: Pair) -> None:
    sender = pair.sender(poisson(500, 1.0))
    _, err = sender.communicate(timeout=60)
    assert (sender.returncode, err.count("\n")) == (2, 1)
    assert "found no start" in err


def test_the_priority_is_the_one_asked_for(pair: Pair) -> None:
    pair.sink()
    granted = {}
    for priority in (7, None):
        sender = pair.sender(poisson(500, 0.1), priority=priority)
        granted[priority] = (os.sched_getscheduler(sender.pid), os.sched_getparam(sender.pid).sched_priority)
        go(sender)
        assert ended(sender)["realtime"] is (priority is not None)
    assert granted == {7: (os.SCHED_FIFO, 7), None: (os.SCHED_OTHER, 0)}


def test_a_port_that_is_taken_is_one_clear_line(pair: Pair) -> None:
    pair.sink()
    second = pair.start(pair.b, sys.executable, "-m", "testbed.traffic.sink", SERVER)
    out, err = second.communicate(timeout=60)
    assert (second.returncode, out, err.count("\n")) == (2, "", 1)
    assert f"{SERVER}:{wire.SERVER_PORT}" in err


def test_a_specification_that_cannot_be_used_is_one_clear_line(pair: Pair) -> None:
    (pair.folder / "spec.json").write_text('{"tenant": 1}')
    sender = pair.start(pair.a, sys.executable, "-m", "testbed.traffic.sender", str(pair.folder / "spec.json"))
    out, err = sender.communicate(timeout=60)
    assert (sender.returncode, out, err.count("\n")) == (2, "", 1)
    assert "missing" in err
