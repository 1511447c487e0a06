"""What integration tests share: the command as a user types it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., subprocess.CompletedProcess[str]]

AWAKE = ("--keep-awake",)
"""What a user does about a virtual machine."""
QUIETED = ("--isolate", *AWAKE)
"""What a user does about one that is busy, too."""

_NOISE = (
    "longest stall",
    "stalled share",
    "CPU ",
    "cpu pressure",
    "memory pressure",
    "io pressure",
    "sender lateness",
    "host allowance",
    "replay",
    "tail shift",
)


def is_noise(gate: str) -> bool:
    """Whether a gate judges what a busy host did to a run, and not what was installed, counted and captured there."""
    return gate.startswith(_NOISE)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """A shell starts jobs in the background with SIGINT ignored, which what these tests start would inherit."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def testbed() -> Command:
    """Run `testbed ARGUMENTS` and return what it printed and its exit code."""

    def run(*arguments: str, timeout_s: float = 150.0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from testbed.cli import main; main()", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s, cwd=ROOT)

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List how long recovery took, where a test measured it."""
    found = [
        (dict(report.user_properties)["recovery_s"], report.nodeid.partition("[")[2].rstrip("]"))
        for report in terminalreporter.getreports("passed")
        if "recovery_s" in dict(report.user_properties)
    ]
    if found:
        terminalreporter.section("recovery")
        for recovery_s, name in found:
            terminalreporter.write_line(f"{recovery_s:7.2f} s  {name}")
