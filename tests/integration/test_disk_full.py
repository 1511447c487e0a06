"""A run folder whose disk fills up while a window is measured."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.emulation import clean
from testbed.emulation.journal import RUNS
from testbed.report.record import read_record
from testbed.telemetry import samples
from tests.integration.conftest import ROOT, Command
from tests.integration.controller_lab import wait_for
from tests.integration.spine import small

pytestmark = pytest.mark.network

DISK_BYTES = 48 * 2**20
"""As much as the captures of five seconds may need, and what is held."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, small."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path) -> None:
    """Take what room is left, as whoever else writes there may."""
    with (disk / "other").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def test_what_was_measured_before_a_disk_was_full_is_kept_and_one_sentence_says_why_there_is_no_more(
    disk: Path, tmp_path: Path
) -> None:
    scenario, runs = small(tmp_path), frozenset(RUNS.glob("*"))
    command = [sys.executable, "-c", "from testbed.cli import main; main()", "run", str(scenario), "--seeds", "2"]
    with (tmp_path / "errors").open("w+") as errors:
        command += ["--keep-captures", "--out", str(disk / "runs")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT)

        def captures_again() -> bool:
            return any(disk.glob("runs/*/window-2/*.pcap")) or process.poll() is not None

        try:
            wait_for(captures_again, "the second window's captures", deadline_s=120)
            fill(disk)
            said, _ = process.communicate(timeout=120)
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        assert "Traceback" not in errors.read()
    assert process.returncode == 3
    (folder,) = (disk / "runs").iterdir()
    record = read_record(folder)
    assert (record.verdict, [window.index for window in record.windows]) == ("INVALID", [1])
    (unfinished,) = [gate for gate in record.gates if gate.name == "measured to the end"]
    assert (unfinished.ok, unfinished.window) == (False, 2)
    assert unfinished.detail.startswith(f"{folder}: the disk is full; free space, or choose another folder with --out")
    assert "the disk is full" in " ".join(said.split())
    assert len(samples.read(folder / record.windows[0].samples["steady"])[0]) > 500
    assert (folder / "report.html").exists()
    assert not list(folder.glob("**/*.pcap*"))
    assert set(RUNS.glob("*")) == runs
    assert clean.left_behind() == ()


def test_a_run_does_not_begin_where_its_results_would_not_fit(disk: Path, tmp_path: Path) -> None:
    scenario = small(tmp_path)
    fill(disk)
    command = [sys.executable, "-c", "from testbed.cli import main; main()", "run", str(scenario)]
    ended = subprocess.run(
        [*command, "--out", str(disk / "runs")], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
    )
    assert ended.returncode == 2
    assert "0 MB free, captures of 3 s may need 20 MB" in ended.stderr
    assert list(disk.iterdir()) == [disk / "other"]


FULL = "faults:\n  - {name: full, kind: disk-full, at: 500 ms, spread: 500 ms}\n"


def test_a_scenario_fills_a_disk_of_its_own_in_the_last_window_and_the_one_before_is_kept(
    testbed: Command, disk: Path, tmp_path: Path
) -> None:
    scenario, runs = small(tmp_path), frozenset(RUNS.glob("*"))
    scenario.write_text(scenario.read_text(encoding="utf-8") + FULL, encoding="utf-8")
    refused = testbed("run", str(scenario), "--out", str(tmp_path / "runs"))
    assert refused.returncode == 2
    assert "fault full: " in refused.stderr
    assert not (tmp_path / "runs").exists()

    ended = testbed("run", str(scenario), "--seeds", "2", "--out", str(disk / "runs"))
    print(ended.stdout, ended.stderr)
    assert ended.returncode == 3
    (folder,) = (disk / "runs").iterdir()
    record = read_record(folder)
    assert (record.verdict, [window.index for window in record.windows]) == ("INVALID", [1])
    (full,) = record.faults
    assert (full.name, full.window, full.met) == ("full", 2, True)
    assert 0.5 <= full.begin_s <= 1.1
    (expected,) = full.expectations
    assert "the disk is full" in expected.found
    assert len(samples.read(folder / record.windows[0].samples["steady"])[0]) > 500
    # What filled it is gone.
    assert shutil.disk_usage(disk).free > DISK_BYTES / 2
    assert set(RUNS.glob("*")) == runs
    assert clean.left_behind() == ()
