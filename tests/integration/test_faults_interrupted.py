"""A run that is interrupted or killed while faults are in force: nothing of them stays, and the clock is as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.emulation import clean
from testbed.emulation.journal import RUNS
from testbed.telemetry import host
from tests.integration.conftest import ROOT
from tests.integration.controller_lab import wait_for

pytestmark = [pytest.mark.network, pytest.mark.slow]

NEAR_NS = 1_000_000
"""Half of the step."""
FAULTS = """
faults:
  - {name: squeeze, kind: rate-change, domain: east, tenant: far, to: 500 kbit/s, at: 500 ms, for: 10 s}
  - {name: loss, kind: loss, domain: east, share: 0.3, at: 600 ms, for: 10 s}
  - {name: detour, kind: delay, domain: east, by: 60 ms, at: 700 ms, for: 10 s}
  - {name: orphan, kind: controller-killed, domain: east, at: 800 ms, for: 10 s}
  - {name: hour, kind: clock-stepped, by: 2 ms, at: 900 ms, for: 10 s}
"""


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run in which all of these faults are in force; they and the run must be gone in the end."""
    runs, before_ns = frozenset(RUNS.glob("*")), host.clock_offset_ns()
    shipped = (ROOT / "topologies" / "faults.yaml").read_text().partition("faults:\n")[0]
    scenario, said = tmp_path / "broken.yaml", tmp_path / "said"
    scenario.write_text(shipped.replace("duration: 8 s", "duration: 14 s") + FAULTS)
    command = [sys.executable, "-c", "from testbed.cli import main; main()", "run", str(scenario), "--out"]
    with said.open("w") as file:
        process = subprocess.Popen(
            [*command, str(tmp_path / "out")], stdout=file, stderr=file, text=True, cwd=ROOT, start_new_session=True
        )

        def last_in_force() -> bool:
            return host.clock_offset_ns() - before_ns > NEAR_NS or process.poll() is not None

        try:
            wait_for(last_in_force, "the last of the faults", deadline_s=120)
            assert process.poll() is None, said.read_text()
            yield process
            assert "Traceback" not in said.read_text()
            wait_for(lambda: abs(host.clock_offset_ns() - before_ns) < NEAR_NS, "the clock as it was", deadline_s=5)
            assert set(RUNS.glob("*")) == runs
            assert clean.left_behind() == ()
        finally:
            process.kill()
            process.wait()
            clean.clean()


def test_ctrl_c_takes_the_faults_back(broken: subprocess.Popen[str]) -> None:
    os.killpg(broken.pid, signal.SIGINT)
    assert broken.wait(timeout=60) == 130


def test_a_killed_run_has_its_clock_set_back_at_once_and_the_rest_is_cleaned_up(broken: subprocess.Popen[str]) -> None:
    broken.kill()
    broken.wait()
    assert clean.left_behind() != ()
    clean.clean()
