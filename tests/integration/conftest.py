"""What integration tests share: the command as a user types it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., subprocess.CompletedProcess[str]]

AWAKE = ("--keep-awake",)
"""What a user does about a virtual machine."""
QUIETED = ("--isolate", *AWAKE)
"""What a user does about one that is busy, too."""
INVALID = 3
"""Exit code of a run whose host could not keep up."""

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


def run_until_valid(
    testbed: Command, scenario: Path, folder: Path, *, first: Sequence[str] = QUIETED
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Run a scenario until the host keeps up, at most three times, each shown: one that cannot is no fault of the code.

    Any other end counts at once.

    Returns:
        How the last run ended, and its folder.
    """
    for attempt, quieted in enumerate((first, QUIETED, QUIETED)):
        out = folder / str(attempt)
        ended = testbed("run", str(scenario), "--out", str(out), *quieted)
        print(ended.stdout, ended.stderr)
        if ended.returncode != INVALID:
            break
    assert out.is_dir(), ended.stderr
    (made,) = out.iterdir()
    return ended, made


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
