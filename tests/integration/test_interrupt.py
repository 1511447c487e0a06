"""Ctrl-C at a run: the terminal's signal to the whole process group, at any moment, once or twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed.emulation import clean
from testbed.emulation.journal import RUNS
from testbed.report.record import read_record
from tests.integration.conftest import ROOT
from tests.integration.controller_lab import wait_for
from tests.integration.spine import small

pytestmark = pytest.mark.network

DURATION_S = 5


@dataclass(frozen=True)
class Run:
    """A run in a process group of its own, as a shell starts one."""

    process: subprocess.Popen[str]
    out: Path
    errors: Path
    others: frozenset[Path]

    @property
    def said(self) -> str:
        return self.errors.read_text()

    def interrupt_when(self, condition: Callable[[], bool], what: str) -> None:
        # A whole warm-up and a probe may lie before that moment, on a host with other work.
        wait_for(lambda: condition() or self.process.poll() is not None, what, deadline_s=120.0)
        assert self.process.poll() is None, self.said
        os.killpg(self.process.pid, signal.SIGINT)

    def made(self, pattern: str) -> bool:
        """Whether the run has made such a file in its own directory."""
        return any(list(folder.glob(pattern)) for folder in set(RUNS.glob("*")) - self.others)

    def captured(self, window: int) -> bool:
        """Whether more than a capture's header has been written in a window."""
        return any(path.stat().st_size > 20_000 for path in self.out.glob(f"*/window-{window}/*.pcap"))

    def end(self) -> int:
        return self.process.wait(timeout=60)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run that has just been started; whatever becomes of it must be gone at the end."""
    namespaces = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    runs = frozenset(RUNS.glob("*"))
    scenario = small(tmp_path, duration_s=DURATION_S)
    command = [sys.executable, "-c", "from testbed.cli import main; main()", "run", str(scenario), "--out"]
    out, errors = tmp_path / "out", tmp_path / "errors"
    with errors.open("w") as file:
        process = subprocess.Popen(
            [*command, str(out)], stdout=subprocess.PIPE, stderr=file, text=True, cwd=ROOT, start_new_session=True
        )
    try:
        yield Run(process, out, errors, runs)
        assert subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout == namespaces
        assert set(RUNS.glob("*")) == runs
        assert clean.left_behind() == ()
    finally:
        process.kill()
        process.communicate()
        clean.clean()


BEFORE: dict[str, Callable[[Run], bool]] = {
    "while the network is built": lambda run: run.made("ovs/db.sock"),
    "while reserving": lambda run: "reserving" in run.said,
    "in the warm-up": lambda run: run.captured(0),
    "while probing": lambda run: "probing" in run.said,
}


QUICK = "while the network is built"


@pytest.mark.parametrize(
    "moment", [QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in BEFORE if name != QUICK)]
)
def test_before_anything_is_measured_it_ends_with_one_line_and_leaves_nothing(run: Run, moment: str) -> None:
    run.interrupt_when(lambda: BEFORE[moment](run), moment)
    assert run.end() == 130, run.said
    assert run.said.rstrip().endswith("testbed: interrupted before anything was measured; nothing is left behind")
    assert "Traceback" not in run.said
    assert list(run.out.glob("*")) == []


def test_in_the_measured_window_it_ends_with_what_there_is_marked_as_partial(run: Run) -> None:
    run.interrupt_when(lambda: run.captured(1), "packets in the measured window")
    assert run.end() == 130, run.said
    assert "Traceback" not in run.said
    (folder,) = run.out.iterdir()
    record = read_record(folder)
    assert record.partial
    steady = record.tenants[0]
    # What there is may be enough for a promise of 98 %; it is less than the whole window would have held.
    assert 0 < steady.n < DURATION_S * 1e6 / (8 * 200)
    assert steady.verdict != "FAIL"
    assert run.process.stdout is not None
    assert "partial: interrupted before the end" in run.process.stdout.read()
    assert "partial: interrupted before the end" in (folder / "report.html").read_text()
    assert not list(folder.glob("**/*.pcap"))


@pytest.mark.slow
def test_at_the_very_start_of_the_measured_window_there_is_nothing_to_judge_and_it_says_so(run: Run) -> None:
    run.interrupt_when(lambda: any(run.out.glob("*/window-1/*.pcap")), "the measured window")
    assert run.end() == 130, run.said
    assert "Traceback" not in run.said


@pytest.mark.slow
def test_a_second_one_breaks_off_at_once_and_still_leaves_nothing(run: Run) -> None:
    run.interrupt_when(lambda: "probing" in run.said, "the probe")
    run.interrupt_when(lambda: "once more breaks off" in run.said, "the answer to the first")
    assert run.end() == 130, run.said
    assert "Traceback" not in run.said
