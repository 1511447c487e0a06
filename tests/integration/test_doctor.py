"""The doctor on a real host: right where things work, right where one thing is broken, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed.doctor import host, sandbox, switch
from testbed.doctor.findings import Tier
from testbed.doctor.host import ProbeError
from testbed.emulation import journal, links, namespace
from testbed.emulation.ovs import OpenVSwitch
from testbed.scenario.model import Datapath
from testbed.telemetry import capture

pytestmark = pytest.mark.network

ROOT = Path(__file__).resolve().parents[2]
DOCTOR = [sys.executable, "-c", "from testbed.cli import main; main()", "doctor"]
MARK = re.compile(rb"TAIL_LATENCY_TESTBED_RUN=\w+-\w+")


def marked_processes() -> set[bytes]:
    """Marks of all runs that have a process."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found |= set(MARK.findall(path.read_bytes()))
        except OSError:
            continue
    return found


def traces() -> dict[str, set[str]]:
    """Everything on the host that a doctor could leave, apart from what other runs on it come and go with."""
    interfaces = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    return {
        "interfaces": set(re.findall(r"^\d+: ([^:@]+)", interfaces, re.MULTILINE)),
        "mounts": {line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()},
    }


def own_directories(before: set[str]) -> set[str]:
    return {path.name for path in journal.RUNS.glob("*")} - before if journal.RUNS.exists() else set()


def own_children() -> set[str]:
    """Processes of this test program; some were there before, such as the fork server of a laboratory used earlier."""
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    ours, descriptors = namespace.of_process(os.getpid()).stat().st_ino, len(list(Path("/proc/self/fd").iterdir()))
    before, children = traces(), own_children()
    yield
    assert namespace.of_process(os.getpid()).stat().st_ino == ours, "a probe left this thread in its namespace"
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors, "a probe left a descriptor open"
    assert traces() == before
    assert own_children() <= children, "a probe left a process"


PROBES: dict[str, Callable[[], str]] = {
    "privileges": host.privileges,
    "tools": host.tools,
    "real-time": host.real_time,
    "namespaces": host.namespaces,
    "tun": host.tun,
    "descriptors": host.descriptors,
    "capture": host.capture,
    "datapath": lambda: switch.forwarding(Datapath.USERSPACE),
    "meter": lambda: switch.meter(Datapath.USERSPACE),
    "queue": lambda: switch.queue(Datapath.USERSPACE),
    "tcp": lambda: switch.tcp(Datapath.USERSPACE),
}


@pytest.mark.parametrize("name", PROBES)
def test_what_the_userspace_tier_needs_works_on_a_host_that_runs_these_tests(name: str) -> None:
    assert PROBES[name]()


def test_a_meter_without_burst_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    ofctl = OpenVSwitch.ofctl

    def forgetful(self: OpenVSwitch, *arguments: str, lines: tuple[str, ...] = ()) -> str:
        return ofctl(
            self, *(re.sub(",burst,|,burst_size=[0-9]+", ",", text).rstrip(",") for text in arguments), lines=lines
        )

    monkeypatch.setattr(OpenVSwitch, "ofctl", forgetful)
    with pytest.raises(ProbeError, match=r"^1 of 60 frames passed a bucket of 12"):
        switch.meter(Datapath.USERSPACE)


def test_set_queue_on_the_userspace_datapath_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch.Lab, "forward", _forward_by_set_queue(switch.Lab.forward))
    run = links.run
    monkeypatch.setattr(links, "run", lambda command, *rest: "" if "filter" in command else run(command, *rest))
    with pytest.raises(ProbeError, match="60 of 60 frames arrived, 0 counted in their class"):
        switch.queue(Datapath.USERSPACE)


def _forward_by_set_queue(forward: Callable[[switch.Lab, str], None]) -> Callable[[switch.Lab, str], None]:
    return lambda lab, actions: forward(lab, f"set_queue:16,{actions}")


def test_a_queue_at_another_rate_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    run = links.run
    slower = [("4000000bit", "3000000bit")]

    def lowered(command: list[str], *rest: str) -> str:
        return run([dict(slower).get(word, word) for word in command], *rest)

    monkeypatch.setattr(links, "run", lowered)
    with pytest.raises(ProbeError, match=r"left their class at .* Mbit/s, reserved 4"):
        switch.queue(Datapath.USERSPACE)


def test_tcp_with_checksum_offload_on_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_bring_up", lambda interface: links.run(["ip", "link", "set", interface, "up"]))
    monkeypatch.setattr(switch, "_TCP_TIMEOUT_S", 0.5)
    with pytest.raises(ProbeError, match="no 1000 kB within"):
        switch.tcp(Datapath.USERSPACE)


def test_captures_in_microseconds_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    command = capture.arguments

    def coarse(*arguments: str, **options: int) -> list[str]:
        return [word.replace("=nano", "=micro") for word in command(*arguments, **options)]

    monkeypatch.setattr(capture, "arguments", coarse)
    with pytest.raises(ProbeError, match="whole microseconds"):
        host.capture()


def test_a_switch_that_forwards_without_a_flow_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    add_bridges = OpenVSwitch.add_bridges

    def learning(self: OpenVSwitch, bridges: object) -> None:
        add_bridges(self, bridges)  # type: ignore[arg-type]
        self.add_flows("br0", ["priority=0,actions=NORMAL"])

    monkeypatch.setattr(OpenVSwitch, "add_bridges", learning)
    with pytest.raises(ProbeError, match="no flow 1 of 1"):
        switch.forwarding(Datapath.USERSPACE)


def test_the_whole_examination_is_json_and_reaches_the_userspace_tier_at_least() -> None:
    result = subprocess.run([*DOCTOR, "--json"], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
    data = json.loads(result.stdout)
    failed = {check["name"]: check for check in data["checks"] if not check["ok"]}
    assert Tier(data["tier"]) in {Tier.USERSPACE, Tier.KERNEL}, failed
    assert result.returncode == 0
    assert all(check["remedy"] for check in failed.values())


def test_without_capabilities_every_check_still_answers_and_the_tier_is_none() -> None:
    result = subprocess.run(
        ["setpriv", "--bounding-set=-all", *DOCTOR, "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
    )
    data = json.loads(result.stdout)
    assert data["tier"] == "none"
    assert result.returncode == 2
    assert result.stderr == ""
    checks = {check["name"]: check for check in data["checks"]}
    assert "without net_admin" in checks["privileges"]["detail"]
    assert checks["userspace-meter"]["detail"] == "not tried without userspace-datapath"
    assert checks["userspace-meter"]["remedy"] == checks["privileges"]["remedy"]


def wait_for_a_switch(doctor: subprocess.Popen[str]) -> None:
    """Return when the doctor has an ovs-vswitchd: in the middle of a probe that has the most to leave."""
    for line in iter(doctor.stdout.readline, "") if doctor.stdout else ():
        if line.startswith("ok  capture"):
            break
    while doctor.poll() is None:
        children = Path(f"/proc/{doctor.pid}/task/{doctor.pid}/children").read_text().split()
        if any("ovs-vswitchd" in _command(pid) for pid in children):
            return
    pytest.fail("the doctor ended before it could be disturbed")


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_examination_leaves_nothing(number: signal.Signals) -> None:
    directories, marks = own_directories(set()), marked_processes()
    doctor = subprocess.Popen(DOCTOR, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    with doctor:
        wait_for_a_switch(doctor)
        doctor.send_signal(number)
        assert doctor.wait(20) == 130
    assert own_directories(directories) == set()
    assert marked_processes() <= marks


def test_a_killed_examination_leaves_a_directory_for_clean_and_nothing_else() -> None:
    directories, marks = own_directories(set()), marked_processes()
    doctor = subprocess.Popen(DOCTOR, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    with doctor:
        wait_for_a_switch(doctor)
        doctor.kill()
        doctor.wait(20)
    (left,) = own_directories(directories)
    assert {item.what.split()[0] for item in journal.undo(journal.RUNS / left)} >= {"processes"}
    assert marked_processes() <= marks
