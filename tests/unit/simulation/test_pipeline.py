"""A simulation leaves the folder of a run, whoever works on it and however often it is interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from testbed.audit.evidence import read_evidence
from testbed.audit.findings import Outcome, recompute, run_statements
from testbed.audit.folder import audit_run
from testbed.audit.table import audit_table
from testbed.errors import PreflightError, ScenarioError
from testbed.management import federation
from testbed.report.html import write_report
from testbed.report.record import RECORD_NAME, RunRecord, read_record
from testbed.run.progress import Silent
from testbed.scenario.loader import load
from testbed.simulation.choices import Choices
from testbed.simulation.crossing import Crossing
from testbed.simulation.network import network
from testbed.simulation.pipeline import Options, simulate_scenario
from testbed.simulation.system import Scheduler
from testbed.simulation.tally import Tally
from testbed.simulation.window import Plan
from testbed.simulation.windows import Task, finished, perform
from testbed.telemetry import samples
from testbed.traffic.arrivals import schedules
from tests.unit.simulation.commands import COMMAND, ended
from tests.unit.simulation.systems import mixed

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "topologies" / "smoke.yaml"


LATER = """
name: later
seed: 3
duration: 60 s
allow-zero-delay: true
domains:
  - {name: near, link-rate: 20 Mbit/s}
  - {name: far, link-rate: 20 Mbit/s, compute: true}
tenants:
  - name: steady
    site: far
    arrivals: {model: poisson, rate: 4 Mbit/s, size: 1000 B}
    reservation: {rate: 8 Mbit/s}
    promise: {deadline: 100 ms, epsilon: 0.001}
"""


def simulated(out: Path, **more: object) -> Path:
    return simulate_scenario(mixed(), Options(out=out, page=False, **more), Silent())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated(tmp_path_factory.mktemp("runs"), replications=2)


def test_the_folder_holds_every_packet_that_the_senders_of_a_run_would_send(folder: Path) -> None:
    record = read_record(folder)
    expected = schedules(mixed(), window=1, duration_s=5.0)
    for number, tenant in enumerate(mixed().tenants, start=1):
        seen, _ = samples.read(folder / record.windows[0].samples[tenant.name])
        assert np.abs(seen.intended_s - expected[number].time_s).max() < 1e-9
        assert np.array_equal(seen.size_bits, expected[number].size_bits)


def test_every_bound_lies_above_what_was_simulated_and_near_the_ideal_replay(folder: Path) -> None:
    tenants = {tenant.name: tenant for tenant in read_record(folder).tenants}
    for name in ("bursty", "near"):
        found = tenants[name]
        assert found.bound_s is not None
        assert found.p999_s is not None
        assert found.p999_s < found.bound_s
        assert not found.bound_broken
    bursty = tenants["bursty"]
    # The path of the ideal replay has one queue, and the propagation of all links.
    assert bursty.p999_s == pytest.approx(bursty.ideal_p999_s, abs=1.5e-3)


def test_a_flood_is_excused_and_best_effort_has_no_verdict(folder: Path) -> None:
    verdicts = {tenant.name: tenant.verdict for tenant in read_record(folder).tenants}
    assert verdicts["flood"] == "EXCUSED"
    assert verdicts["bulk"] == "NONE"


def test_audit_and_report_work_on_the_folder(folder: Path) -> None:
    audited = audit_run(folder)
    assert audited.valid
    recorded = {tenant.name: tenant.verdict for tenant in read_record(folder).tenants}
    assert {tenant.tenant: tenant.verdict for tenant in audited.tenants} == recorded
    bursty = next(tenant for tenant in audited.tenants if tenant.tenant == "bursty")
    assert {finding.verdict.value for finding in bursty.contracts} == {"HELD"}
    assert "<svg" in write_report(folder).read_text(encoding="utf-8")


def test_findings_about_a_simulation_are_computed_again_from_its_folder(folder: Path) -> None:
    findings = list(run_statements(read_evidence(folder)))
    assert {finding["kind"] for finding in findings} == {"compliance", "attribution", "contracts"}
    again = recompute(findings, read_evidence(folder))
    assert {item.outcome for item in again} == {Outcome.SAME}


def test_each_file_of_a_window_is_a_table_in_which_lost_packets_were_never_answered(folder: Path) -> None:
    record = read_record(folder)
    for tenant in record.tenants:
        tables = [audit_table(folder / window.samples[tenant.name]) for window in record.windows]
        audits = [audit for table in tables for name, audit in table.tenants if name == tenant.name]
        assert (sum(a.n for a in audits), sum(a.unanswered for a in audits)) == (tenant.n, tenant.lost)
    assert any(tenant.lost for tenant in record.tenants)


def test_of_a_simulation_recorded_in_part_the_audit_judges_that_part_and_says_so(tmp_path: Path) -> None:
    simulated(tmp_path, recorded_packets=2000)
    (folder,) = tmp_path.iterdir()
    counted = {tenant.name: tenant.n for tenant in read_record(folder).tenants}
    for tenant in audit_run(folder).tenants:
        assert tenant.counted == counted[tenant.tenant] > tenant.audit.n
        assert any(
            said.startswith(f"The first {tenant.audit.n:,} of {tenant.counted:,}") for said in tenant.sentences()
        )


def test_counted_and_recorded_packets_give_the_same_answers(folder: Path, tmp_path: Path) -> None:
    recorded = read_record(folder)
    counted = read_record(simulated(tmp_path, replications=2, recorded_packets=2000))
    for one, other in zip(recorded.tenants, counted.tenants, strict=True):
        assert (one.n, one.lost, one.misses, one.verdict) == (other.n, other.lost, other.misses, other.verdict)
        for name in ("p50_s", "p99_s", "p999_s"):
            expected = getattr(one, name)
            wanted = None if expected is None else pytest.approx(expected, rel=1 / 512, abs=2e-9)
            assert getattr(other, name) == wanted
        assert one.offered is not None
        assert other.offered is not None
        assert one.offered.arrivals == one.n
        assert one.offered.wire_late_p999_s == 0.0
        assert other.offered.rate_per_s == pytest.approx(one.offered.rate_per_s, rel=0.3), "of the part it recorded"
    files = [samples.read(tmp_path / counted_path)[0] for counted_path in _sample_paths(tmp_path, counted)]
    assert sum(len(seen) for seen in files) == pytest.approx(2000, rel=0.3)


@pytest.mark.parametrize("recorded", [500, 100_000])
def test_what_a_too_small_meter_of_a_later_domain_drops_is_nobodys_breach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: int
) -> None:
    """It lets two packets in a row pass, so that one in ten of a tenant that keeps its contract is lost to it."""
    monkeypatch.setattr(federation, "_burst_behind", lambda upstream, asked: 16_000 if upstream else asked.burst_bits)
    file = tmp_path / "later.yaml"
    file.write_text(LATER, encoding="utf-8")
    options = Options(out=tmp_path, page=False, packets=20_000, recorded_packets=recorded)
    (row,) = read_record(simulate_scenario(load(file), options, Silent())).tenants
    assert row.conformance is not None
    assert row.conformance.nonconforming == 0
    assert row.conformance.meter_dropped == row.lost > 500
    assert (row.verdict, row.bound_broken) == ("FAIL", True)


def _sample_paths(out: Path, record: RunRecord) -> list[Path]:
    (folder,) = out.iterdir()
    return [folder / path for window in record.windows for path in window.samples.values()]


def results(folder: Path) -> list[dict[str, object]]:
    """What must not depend on who simulated: rows without times."""
    return [tenant.model_dump() for tenant in read_record(folder).tenants]


def test_the_number_of_workers_changes_nothing(folder: Path, tmp_path: Path) -> None:
    several = simulated(tmp_path, replications=2, workers=2)
    assert results(several) == results(folder)
    for window in ("window-1", "window-2"):
        one, other = (Tally.load(path / window / "tally.npz") for path in (folder, several))
        assert np.array_equal(one.fine, other.fine)


@pytest.mark.parametrize("scheduler", Scheduler)
def test_every_scheduler_leaves_a_folder_that_can_be_audited(tmp_path: Path, scheduler: Scheduler) -> None:
    found = simulated(tmp_path, choices=Choices(scheduler), packets=3000)
    record = read_record(found)
    assert record.packets == pytest.approx(3000, rel=0.2)
    assert audit_run(found).run_id == record.run_id
    promised = scheduler in {Scheduler.RESERVED, Scheduler.ISOLATED}
    assert (record.tenants[0].bound_s is not None) == promised


def test_a_deadline_below_what_the_network_takes_fails(tmp_path: Path) -> None:
    strict = mixed()
    promise = strict.tenants[0].promise
    assert promise is not None
    tenants = (replace(strict.tenants[0], promise=replace(promise, deadline_s=1e-3)), *strict.tenants[1:])
    for recorded in (10**6, 500):
        options = Options(out=tmp_path, recorded_packets=recorded, page=False)
        record = read_record(simulate_scenario(replace(strict, tenants=tenants), options, Silent()))
        assert record.tenants[0].verdict == "FAIL"
        assert record.tenants[0].misses == record.tenants[0].n


def test_a_window_longer_than_the_clock_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="53 days"):
        simulated(tmp_path, packets=10**15)


def test_an_interruption_before_the_first_packet_leaves_no_record(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="interrupted"):
        simulated(tmp_path, stop=lambda: True)


def test_an_interruption_keeps_the_windows_that_are_finished(tmp_path: Path) -> None:
    asked = iter(range(10**6))
    # Each window of the default chunk asks a few times; the fifth question falls into the second window or later.
    found = simulated(tmp_path, replications=50, stop=lambda: next(asked) > 5)
    record = read_record(found)
    assert record.partial
    assert 1 <= len(record.windows) < 50
    again = simulated(tmp_path, replications=50, resume=found, packets=None)
    assert not read_record(again).partial
    assert len(read_record(again).windows) == 50


def test_a_window_that_was_cut_short_or_is_of_other_code_is_simulated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = network(mixed(), Choices()).system
    crossings = tuple(
        Crossing(tenant.name, number, ("west", "east"), (), None, 0.0)
        for number, tenant in enumerate(mixed().tenants, start=1)
    )
    task = Task(system, Plan(1, 1, 5.0, 1.0, chunk_packets=1000), crossings, tmp_path / "window-1")
    asked = iter([False, True])
    cut = perform(task, stop=lambda: next(asked, True))
    assert not cut.complete
    assert finished(task) is None
    whole = perform(task)
    assert whole.complete
    assert whole.packets > cut.packets > 0
    assert finished(task) == whole
    assert finished(replace(task, plan=replace(task.plan, seed=2))) is None
    monkeypatch.setattr("testbed.simulation.windows.code_digest", lambda: "another")
    assert finished(task) is None


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not any(folder.glob(pattern)):
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        os.sched_yield()


def test_a_simulation_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    folder.mkdir()
    arguments = ["--packets", "400000", "--replications", "6", "--record-packets", "1000", "--no-page"]
    command = ["simulate", str(DEMO), *arguments, "--resume", str(folder), "--json"]
    process = subprocess.Popen([*COMMAND, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(folder, "window-1/window.json", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("window-*/window.json")}
    assert 1 <= len(kept) < 6
    resumed = ended(*command)
    assert resumed.returncode in {0, 4}, resumed.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    whole = ended("simulate", str(DEMO), *arguments, "--out", str(tmp_path / "fresh"), "--json")
    one, other = json.loads(resumed.stdout), json.loads(whole.stdout)
    assert one["tenants"] == other["tenants"]
    assert one["packets"] == other["packets"] == pytest.approx(6 * 400_000, rel=0.01)
    assert one["packet_hops_per_s"] > 0


def test_a_scenario_that_breaks_a_network_is_refused_before_there_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="found the faults cut, squeeze"):
        simulate_scenario(load(ROOT / "topologies" / "faults.yaml"), Options(out=tmp_path / "runs"), Silent())
    assert not (tmp_path / "runs").exists()


def test_only_a_simulation_is_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match=r"typo: found no such folder"):
        simulated(tmp_path, resume=tmp_path / "typo")
    assert not any(tmp_path.iterdir())
    folder = simulated(tmp_path)
    network_run = (folder / RECORD_NAME).read_text(encoding="utf-8").replace('"simulation"', '"network"')
    (folder / RECORD_NAME).write_text(network_run, encoding="utf-8")
    with pytest.raises(PreflightError, match="found a run of the kind network"):
        simulated(tmp_path, resume=folder)
    assert (folder / RECORD_NAME).read_text(encoding="utf-8") == network_run
