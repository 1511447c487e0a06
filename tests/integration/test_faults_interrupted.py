"""A run that is interrupted or killed while faults are in force: nothing of them stays, and the clock is as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed.emulation import clean, processes
from testbed.scenario.faults import FaultKind
from testbed.telemetry import host
from tests.integration.conftest import ROOT
from tests.integration.controller_lab import wait_for
from tests.integration.test_agents_run import FEDERATION, INTENT
from tests.integration.test_faults import ASKING
from tests.leftovers import MARK, host_as_before

pytestmark = [pytest.mark.network, pytest.mark.slow]

NEAR_NS = 1_000_000
"""Half of the step."""
PACKETS = (ROOT / "topologies" / "faults.yaml").read_text().replace("duration: 8 s", "duration: 14 s")
REQUESTS = ASKING.replace("duration: 8 s", "duration: 22 s")
# Pauses of this host are not what is asked about.
INTENTS = FEDERATION.replace("duration: 3 s", "duration: 22 s").replace("host-allowance: 8 ms", "host-allowance: 30 ms")
HOUR = "{name: hour, kind: clock-stepped, by: 2 ms, at: 900 ms, for: 10 s}"
"""The last one to begin, of which the host's clock tells that it has."""


@dataclass(frozen=True)
class Case:
    """Faults that are in force at once.

    Attributes:
        scenario: What they are done to, without its own.
        faults: A line each, the last to begin at the end.
        last: Makes a function that tells whether that has begun.
    """

    scenario: str
    faults: tuple[str, ...]
    last: Callable[[], Callable[[], bool]]


def clock_stepped() -> Callable[[], bool]:
    before_ns = host.clock_offset_ns()
    return lambda: host.clock_offset_ns() - before_ns > NEAR_NS


def agent_gone() -> Callable[[], bool]:
    most = 0

    def fewer() -> bool:
        nonlocal most
        found = agents()
        most = max(most, found)
        return found < most

    return fewer


def agents() -> int:
    """How many agents there are that this session of tests started."""
    found = 0
    for pid in processes.marked_with(f"{MARK}={os.environ[MARK]}"):
        try:
            found += b"testbed.management.service" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
    return found


CASES = {
    "packets": Case(
        PACKETS.partition("faults:\n")[0],
        (
            "{name: squeeze, kind: rate-change, domain: east, tenant: far, to: 500 kbit/s, at: 500 ms, for: 10 s}",
            "{name: loss, kind: loss, domain: east, share: 0.3, at: 600 ms, for: 10 s}",
            "{name: detour, kind: delay, domain: east, by: 60 ms, at: 700 ms, for: 10 s}",
            "{name: orphan, kind: controller-killed, domain: east, at: 800 ms, for: 10 s}",
            HOUR,
        ),
        clock_stepped,
    ),
    "ways": Case(
        PACKETS.partition("faults:\n")[0],
        (
            "{name: cut, kind: link-down, domain: east, at: 500 ms, for: 10 s}",
            "{name: dark, kind: switch-killed, at: 700 ms, for: 10 s}",
            HOUR,
        ),
        clock_stepped,
    ),
    "a server that is bad": Case(
        REQUESTS.partition("faults:\n")[0],
        (
            "{name: slow, kind: server-slowed, domain: east, factor: 10, at: 500 ms, for: 10 s, fails: [vision]}",
            "{name: wrong, kind: server-wrong, domain: east, share: 0.5, at: 700 ms, for: 10 s, fails: [vision]}",
            HOUR,
        ),
        clock_stepped,
    ),
    "a server that is gone": Case(
        REQUESTS.partition("faults:\n")[0],
        (
            "{name: off, kind: server-killed, domain: east, at: 500 ms, for: 10 s, ready-within: 5 s, fails: [vision]}",
            HOUR,
        ),
        clock_stepped,
    ),
    "clerks": Case(
        INTENTS + INTENT.format(name="clinic", deadline="300 ms"),
        (
            "{name: orphan, kind: controller-killed, domain: gold, at: 500 ms, for: 10 s}",
            "{name: clerk, kind: agent-killed, domain: core, at: 700 ms, for: 10 s, ready-within: 8 s}",
        ),
        agent_gone,
    ),
}


@pytest.fixture(params=CASES)
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run in which all of these faults are in force; they and the run must be gone in the end."""
    case = CASES[request.param]
    before_ns, last = host.clock_offset_ns(), case.last()
    scenario, said = tmp_path / "broken.yaml", tmp_path / "said"
    scenario.write_text(case.scenario + "faults:\n" + "".join(f"  - {fault}\n" for fault in case.faults))
    command = [sys.executable, "-c", "from testbed.cli import main; main()", "run", str(scenario), "--out"]
    with host_as_before(), said.open("w") as file:
        process = subprocess.Popen(
            [*command, str(tmp_path / "out")], stdout=file, stderr=file, text=True, cwd=ROOT, start_new_session=True
        )
        try:
            wait_for(lambda: last() or process.poll() is not None, "the last of the faults", deadline_s=120)
            assert process.poll() is None, said.read_text()
            yield process
            assert "Traceback" not in said.read_text()
            wait_for(lambda: abs(host.clock_offset_ns() - before_ns) < NEAR_NS, "the clock as it was", deadline_s=5)
            assert clean.left_behind() == ()
        finally:
            process.kill()
            process.wait()
            clean.clean()


def test_every_kind_of_fault_is_among_them() -> None:
    text = "".join(fault for case in CASES.values() for fault in case.faults)
    # A full disk ends a run by itself, and the file that fills it has no name that could be left.
    assert [kind for kind in FaultKind if f"kind: {kind}," not in text] == [FaultKind.DISK_FULL]


def test_ctrl_c_takes_the_faults_back(broken: subprocess.Popen[str]) -> None:
    os.killpg(broken.pid, signal.SIGINT)
    assert broken.wait(timeout=90) == 130


def test_a_killed_run_has_its_clock_set_back_at_once_and_the_rest_is_cleaned_up(broken: subprocess.Popen[str]) -> None:
    broken.kill()
    broken.wait()
    assert clean.left_behind() != ()
    clean.clean()
