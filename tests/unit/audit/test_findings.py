"""Findings of tables and runs, and what becomes of them when somebody computes them again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from testbed.audit.evidence import read_evidence
from testbed.audit.findings import Outcome, recompute, run_statements, table_statements
from testbed.audit.record import Promise
from tests.unit.audit import asking
from tests.unit.audit.test_folder import folder, window

PROMISE = Promise(0.025, 0.001)


def table(path: Path, *, tenants: bool = False, seed: int = 1) -> Path:
    latency = np.random.default_rng(seed).exponential(0.002, 6000).tolist()
    rows = [f"{value!r},{'näive' if i % 2 else 'plain'}" if tenants else repr(value) for i, value in enumerate(latency)]
    path.write_text("\n".join(["latency_s,tenant" if tenants else "latency_s", *rows]) + "\n")
    return path


def test_each_tenant_of_a_table_is_a_finding_under_a_name_that_can_be_signed(tmp_path: Path) -> None:
    found = list(table_statements(table(tmp_path / "t.csv", tenants=True), PROMISE))
    assert [finding["subject"] for finding in found] == ["n%C3%A4ive", "plain"]
    assert all(finding["verdict"] == "PASS" for finding in found)


def test_a_table_without_tenants_is_one_finding(tmp_path: Path) -> None:
    (found,) = table_statements(table(tmp_path / "t.csv"), PROMISE)
    assert (found["subject"], found["deadline_ns"], found["epsilon_ppb"]) == ("everyone", 25_000_000, 1_000_000)


def test_the_same_table_gives_the_same_bytes_and_another_one_is_told_apart(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", tenants=True)
    found = list(table_statements(path, PROMISE))
    assert [item.outcome for item in recompute(found, path)] == [Outcome.SAME, Outcome.SAME]
    other = table(tmp_path / "u.csv", tenants=True, seed=2)
    assert [item.outcome for item in recompute(found, other)] == [Outcome.ELSEWHERE, Outcome.ELSEWHERE]


@pytest.mark.parametrize(
    ("name", "value"), [("verdict", "FAIL"), ("misses", 1), ("miss_rate_upper_ppb", 1), ("deadline_ns", 1)]
)
def test_an_answer_or_a_question_that_was_changed_differs(tmp_path: Path, name: str, value: object) -> None:
    path = table(tmp_path / "t.csv")
    (found,) = table_statements(path, PROMISE)
    (again,) = recompute([found | {name: value}], path)
    assert again.outcome is Outcome.DIFFERS


def test_a_run_gives_a_finding_for_each_promise_and_one_for_all_envelopes(tmp_path: Path) -> None:
    evidence = read_evidence(folder(tmp_path / "run", [window(1, pause_share=0.005)]))
    promise, envelopes = run_statements(evidence)
    assert (promise["kind"], promise["subject"]) == ("compliance", "alice")
    assert [item["verdict"] == "BROKEN" for item in envelopes["findings"]] == [False, True, False]
    again = recompute([promise, envelopes], read_evidence(tmp_path / "run"))
    assert [item.outcome for item in again] == [Outcome.SAME, Outcome.SAME]
    assert "metro for alice BROKEN" in again[1].about


def test_requests_are_a_finding_that_is_computed_again_from_the_folder(tmp_path: Path) -> None:
    seen = asking.failed(asking.window(1), timeout=30, to_come=10)
    path = folder(tmp_path / "run", [seen], deadline_s=0.04)
    promise, envelopes = run_statements(read_evidence(path))
    assert (promise["subject"], promise["n"], promise["misses"]) == ("vision", 19_990, 30)
    assert [item["domain"] for item in envelopes["findings"]] == list(asking.DOMAINS)
    again = recompute([promise, envelopes], read_evidence(path))
    assert [item.outcome for item in again] == [Outcome.SAME, Outcome.SAME]


def test_a_changed_accusation_differs_and_another_run_is_other_evidence(tmp_path: Path) -> None:
    evidence = read_evidence(folder(tmp_path / "run", [window(1, pause_share=0.005)]))
    *_, envelopes = run_statements(evidence)
    envelopes["findings"][0]["verdict"] = "BROKEN"
    assert recompute([envelopes], evidence)[0].outcome is Outcome.DIFFERS
    other = read_evidence(folder(tmp_path / "other", [window(2)]))
    assert recompute([envelopes], other)[0].outcome is Outcome.ELSEWHERE


def test_an_invalid_run_gives_no_finding_and_a_flood_none_about_its_promise(tmp_path: Path) -> None:
    assert list(run_statements(read_evidence(folder(tmp_path / "invalid", [window(1)], valid=False)))) == []
    (only,) = run_statements(read_evidence(folder(tmp_path / "flood", [window(1)], nonconforming=9)))
    assert {item["verdict"] for item in only["findings"]} == {"EXCUSED"}
