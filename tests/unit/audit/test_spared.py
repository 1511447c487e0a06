"""What a fault was to touch is left out of a promise, its envelopes and its blame, and shown beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.audit.compare import compare_runs
from testbed.audit.contracts import ContractVerdict
from testbed.audit.evidence import read_evidence
from testbed.audit.findings import Outcome, recompute, run_statements
from testbed.audit.folder import TenantAudit, audit_run
from testbed.report.html import render
from testbed.report.record import FaultRecord, read_record, write_record
from testbed.telemetry.request_samples import RequestSamples
from testbed.telemetry.samples import BoolArray, FloatArray, TenantSamples
from tests.unit.audit import asking
from tests.unit.audit.test_folder import folder, window

MOMENTS_S = tuple(2.0 + 1.5 * k for k in range(24))
"""When something is broken, seconds from the start of a window of 40 s: one outage alone would be one event."""


def cut(begin_s: float, window: int = 1) -> FaultRecord:
    """A tenth of a second of it, with half a second to recover and a deadline of 25 ms."""
    stretch = (begin_s - 0.025, begin_s + 0.6)
    return FaultRecord(
        name=f"cut-{begin_s:g}",
        kind="rate-change",
        window=window,
        what="rate change to 1 Mbit/s, domain metro",
        begin_s=begin_s,
        end_s=begin_s + 0.1,
        left_out={"alice": stretch, "vision": stretch},
    )


CUTS = tuple(map(cut, MOMENTS_S))


def held_up(samples: TenantSamples) -> TenantSamples:
    """Packets of each of these moments wait 50 ms more in metro, which breaks its envelope and the promise."""
    touched = touched_of(samples.intended_s, [(begin_s, begin_s + 0.1) for begin_s in MOMENTS_S])
    border = samples.border_s.copy()
    border[:, 2] = np.maximum.accumulate(border[:, 2] + np.where(touched, 0.05, 0.0))
    border[:, 3] = border[:, 2] + 1e-3
    return replace(samples, border_s=border)


def touched_of(intended_s: FloatArray, stretches: Sequence[tuple[float, float]]) -> BoolArray:
    return np.any([(intended_s >= first_s) & (intended_s <= last_s) for first_s, last_s in stretches], axis=0)


def faulty(
    path: Path, windows: Sequence[TenantSamples | RequestSamples], *faults: FaultRecord, in_faults: int = 0
) -> Path:
    """A run folder in whose second window something was broken."""
    record = read_record(folder(path, windows))
    tenants = tuple(tenant.model_copy(update={"in_faults": in_faults}) for tenant in record.tenants)
    write_record(path, record.model_copy(update={"faults": faults, "tenants": tenants}))
    return path


def only(path: Path) -> TenantAudit:
    (tenant,) = audit_run(path).tenants
    return tenant


@pytest.fixture(scope="module")
def windows() -> list[TenantSamples]:
    return [window(1), held_up(window(2))]


def test_a_fault_costs_the_tenant_no_verdict_and_the_domain_no_accusation(
    tmp_path: Path, windows: list[TenantSamples]
) -> None:
    tenant = only(faulty(tmp_path / "run", windows, *CUTS))
    n = np.count_nonzero(touched_of(windows[1].intended_s, [fault.left_out["alice"] for fault in CUTS]))
    assert (tenant.verdict, tenant.audit.n) == ("PASS", 60_000 - n)
    assert all(finding.verdict is not ContractVerdict.BROKEN for finding in tenant.contracts)
    assert tenant.audit.attribution is not None
    assert tenant.audit.attribution.named == "access"
    assert [(stretch.fault, stretch.window) for stretch in tenant.left_out] == [(fault.name, 1) for fault in CUTS]
    assert sum(stretch.n for stretch in tenant.left_out) == n


def test_what_is_left_out_is_said_with_its_reason_and_what_it_would_have_changed(
    tmp_path: Path, windows: list[TenantSamples]
) -> None:
    tenant = only(faulty(tmp_path / "run", windows, *CUTS))
    n, misses = tenant.left_out[0].n, int(np.count_nonzero(windows[1].latency_s > 0.025))
    assert (
        f"Left out are the {n:,} packets that were due from 1.98 s to 2.60 s of window 1: the fault cut-2 (rate change "
        "to 1 Mbit/s, domain metro), or the recovery from it, was to touch them."
    ) in tenant.sentences()
    (short,) = (said for said in tenant.sentences() if said.startswith("With nothing left out"))
    assert short.startswith(
        f"With nothing left out: FAIL; {misses:,} of 60,000 packets missed 25 ms; the miss rate lies"
    )
    assert short.endswith("; envelopes BROKEN: metro.")


def test_the_json_and_the_page_hold_both(tmp_path: Path, windows: list[TenantSamples]) -> None:
    path = faulty(tmp_path / "run", windows, *CUTS)
    document = json.loads(json.dumps(audit_run(path).to_dict(), allow_nan=False))["tenants"]["alice"]
    assert document["verdict"] == "PASS"
    assert document["left_out"][0]["first_s"] == pytest.approx(1.975)
    everything = document["everything"]
    assert (everything["verdict"], everything["n"], everything["everything"]) == ("FAIL", 60_000, None)
    assert [finding["verdict"] for finding in everything["contracts"]][1] == "BROKEN"
    assert everything["quantiles"]["0.999"]["estimate_s"] > document["quantiles"]["0.999"]["estimate_s"]
    page = render(path)
    assert "60,000, nothing left out" in page
    assert "the fault cut-2" in page


def test_a_run_without_faults_speaks_of_none(tmp_path: Path) -> None:
    path = folder(tmp_path / "run", [window(1)])
    tenant = only(path)
    assert (tenant.left_out, tenant.everything, tenant.untold) == ((), None, "")
    assert "left out" not in " ".join(tenant.sentences())
    assert all("left_out" not in finding for finding in run_statements(read_evidence(path)))


@pytest.mark.parametrize(
    "elsewhere",
    [{"window": 7}, {"left_out": {"bob": (0.0, 40.0)}}],
    ids=["of another window", "of another tenant"],
)
def test_faults_leave_nothing_out_elsewhere(
    tmp_path: Path, windows: list[TenantSamples], elsewhere: dict[str, Any]
) -> None:
    tenant = only(faulty(tmp_path / "run", windows, *(fault.model_copy(update=elsewhere) for fault in CUTS)))
    assert (tenant.verdict, tenant.audit.n, tenant.left_out) == ("FAIL", 60_000, ())


def test_misses_outside_a_fault_are_the_tenants_promise_as_ever(tmp_path: Path, windows: list[TenantSamples]) -> None:
    tenant = only(faulty(tmp_path / "run", windows, *CUTS[:2]))
    assert len(tenant.left_out) == 2
    assert tenant.verdict == "FAIL"
    assert tenant.contracts[1].verdict is ContractVerdict.BROKEN


def test_a_flood_in_a_fault_is_a_flood(tmp_path: Path, windows: list[TenantSamples]) -> None:
    path = folder(tmp_path / "run", windows, nonconforming=9)
    write_record(path, read_record(path).model_copy(update={"faults": CUTS}))
    assert only(path).verdict == "EXCUSED"


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (CUTS[0].model_copy(update={"left_out": {}}), "and does not say which"),
        (
            CUTS[0].model_copy(update={"left_out": {"alice": (-1.0, 1e6)}, "window": 0}),
            "and nothing else would be left",
        ),
    ],
    ids=["in a record of a time when it was not told", "because it is everything"],
)
def test_where_the_run_left_out_what_cannot_be_left_out_here_that_is_said(
    tmp_path: Path, fault: FaultRecord, why: str
) -> None:
    tenant = only(faulty(tmp_path / "run", [window(1)], fault, in_faults=30_000))
    assert (tenant.audit.n, tenant.left_out) == (30_000, ())
    assert f"leaves out 30,000 packets that its faults were to touch, {why}" in tenant.untold
    assert tenant.untold in tenant.sentences()


def test_requests_that_a_fault_was_to_touch_are_no_errors_of_their_domain(tmp_path: Path) -> None:
    seen = asking.window(1)
    status = seen.status.copy()
    touched = (seen.intended_s >= 2.0) & (seen.intended_s <= 2.5)
    status[touched] = asking.UNAVAILABLE
    fault = cut(2.0, window=0)
    tenant = only(faulty(tmp_path / "run", [replace(seen, status=status)], fault))
    assert tenant.endings is not None
    assert (tenant.endings.errors, tenant.audit.unanswered) == (0, 0)
    assert all(finding.verdict is not ContractVerdict.BROKEN for finding in tenant.contracts)
    assert tenant.everything is not None
    assert tenant.everything.endings is not None
    assert tenant.everything.endings.errors == np.count_nonzero(touched)
    assert tenant.everything.contracts[-1].verdict is ContractVerdict.BROKEN
    assert any("requests that were due from" in said for said in tenant.sentences())


def test_a_cause_that_took_time_only_in_a_fault_is_no_cause_of_the_rest(tmp_path: Path) -> None:
    seen = asking.window(1)
    resent = np.zeros((len(seen), 3))
    resent[(seen.intended_s >= 2.0) & (seen.intended_s <= 2.5), 1] = 1e-4
    path = faulty(tmp_path / "run", [replace(seen, resent_s=resent)], cut(2.0, window=0))
    tenant = only(path)
    assert tenant.causes is not None
    assert tenant.everything is not None
    assert tenant.everything.causes is not None
    assert "retransmission" not in tenant.causes.blame
    assert "retransmission" in tenant.everything.causes.blame


def test_findings_name_what_they_leave_out_and_are_followed_by_those_about_everything(
    tmp_path: Path, windows: list[TenantSamples]
) -> None:
    path = faulty(tmp_path / "run", windows, *CUTS)
    found = list(run_statements(read_evidence(path)))
    assert [(finding["kind"], "left_out" in finding) for finding in found] == [
        ("compliance", True),
        ("compliance", False),
        ("attribution", True),
        ("attribution", False),
        ("contracts", True),
        ("contracts", False),
    ]
    assert [found[0]["verdict"], found[1]["verdict"]] == ["PASS", "FAIL"]
    assert found[0]["left_out"] == found[2]["left_out"] == found[4]["left_out"]
    assert found[2]["n"] < found[3]["n"]
    assert (len(found[0]["left_out"]), found[0]["left_out"][0]["first_ns"]) == (24, 1_975_000_000)
    again = recompute(found, read_evidence(path))
    assert [item.outcome for item in again] == [Outcome.SAME] * 6
    silent = {name: value for name, value in found[0].items() if name != "left_out"}
    assert recompute([silent], read_evidence(path))[0].outcome is Outcome.DIFFERS


def test_runs_are_compared_by_what_their_promises_are_judged_by(tmp_path: Path, windows: list[TenantSamples]) -> None:
    plain = folder(tmp_path / "plain", [window(1), window(2)])
    broken = faulty(tmp_path / "broken", windows, *CUTS)
    assert compare_runs(plain, broken).real == ()
    unsaid = faulty(tmp_path / "unsaid", windows)
    assert compare_runs(plain, unsaid).real
