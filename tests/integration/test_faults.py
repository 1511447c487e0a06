"""Faults done to a real network within a measured window: who failed, who did not, and how soon it was over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from testbed.emulation.journal import RUNS
from testbed.report.record import FaultRecord, RunRecord, read_record
from testbed.run.pipeline import Options, run
from testbed.run.progress import Silent
from testbed.scenario.faults import Fault, FaultKind
from testbed.scenario.loader import load
from tests.integration.conftest import ROOT

pytestmark = pytest.mark.network

FAULTS = ROOT / "topologies" / "faults.yaml"


def fault(kind: FaultKind, at_s: float, *, fails: bool = True, domain: str | None = "east", **more: object) -> Fault:
    """Half a second of it, in the domain that only the tenant far crosses."""
    told = ("far",) if fails else ()
    return Fault(kind.value, kind, at_s, 0.5, 1.0, domain=domain, fails=told, **more)  # type: ignore[arg-type]


def run_with(out: Path, *faults: Fault) -> RunRecord:
    """One run with these faults; a host that could not keep up is no failure of the code: up to three tries."""
    scenario = replace(load(FAULTS), faults=faults)
    before = set(RUNS.iterdir()) if RUNS.is_dir() else set()
    for attempt in range(3):
        record = read_record(run(scenario, Options(out=out / str(attempt)), Silent()))
        print(record.verdict, [gate for gate in record.gates if not gate.ok], record.faults)
        if record.verdict != "INVALID":
            break
    assert record.verdict in {"PASS", "UNDETERMINED"}
    assert not any(tenant.bound_broken for tenant in record.tenants)
    assert set(RUNS.iterdir()) <= before
    return record


def by_name(record: RunRecord) -> dict[str, FaultRecord]:
    return {fault.name: fault for fault in record.faults}


def test_whoever_crosses_what_breaks_fails_and_recovers_and_nobody_else_notices(tmp_path: Path) -> None:
    record = run_with(
        tmp_path,
        fault(FaultKind.LINK_DOWN, 0.5),
        fault(FaultKind.RATE_CHANGE, 2.2, tenant="far", rate_bps=500_000),
        fault(FaultKind.LOSS, 4.0, share=0.3),
        fault(FaultKind.DELAY, 5.7, delay_s=0.06),
    )
    assert all(each.met for each in record.faults)
    near, far = record.tenants
    assert near.in_faults == 0
    assert far.in_faults > 0
    for each in record.faults:
        (recovered,) = [one for one in each.expectations if one.seconds is not None]
        assert (recovered.tenant, len(each.expectations)) == ("far", 3)
    excused = {gate.name for gate in record.gates if gate.excused_by}
    assert excused <= {f"queue counters, fault {name}" for name in by_name(record)}


def test_a_killed_controller_is_no_business_of_the_data_plane(tmp_path: Path) -> None:
    record = run_with(tmp_path, fault(FaultKind.CONTROLLER_KILLED, 1.0, fails=False))
    assert all(each.met for each in record.faults)
    assert all(gate.ok for gate in record.gates)
    assert [tenant.in_faults for tenant in record.tenants] == [0, 0]
