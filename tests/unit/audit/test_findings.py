"""Findings of tables and runs, and what becomes of them when somebody computes them again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from testbed.audit.evidence import read_evidence
from testbed.audit.findings import Outcome, recompute, run_statements, table_statements
from testbed.audit.folder import audit_run
from testbed.audit.record import Promise
from testbed.audit.statements import attribution_statement
from testbed.audit.table import read_series
from testbed.envelope import strict_json
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
    promise, tail, envelopes = run_statements(evidence)
    assert (promise["kind"], promise["subject"]) == ("compliance", "alice")
    assert [item["verdict"] == "BROKEN" for item in envelopes["findings"]] == [False, True, False]
    again = recompute([promise, tail, envelopes], read_evidence(tmp_path / "run"))
    assert [item.outcome for item in again] == [Outcome.SAME] * 3
    assert "metro for alice BROKEN" in again[2].about


def test_whose_a_tail_is_is_a_finding_with_shares_causes_and_what_would_have_been(tmp_path: Path) -> None:
    path = folder(tmp_path / "run", [window(1, pause_share=0.005), window(2, pause_share=0.005)])
    (tail,) = (found for found in run_statements(read_evidence(path)) if found["kind"] == "attribution")
    (tenant,) = audit_run(path).tenants
    assert tenant.audit.attribution is not None
    assert (tail["subject"], tail["seed"], tail["n"]) == ("alice", 0, 60_000)
    assert (tail["by_place"]["named"], tail["by_cause"]["named"]) == ("metro", "metro")
    for name, blame in tenant.audit.attribution.blame.items():
        (part,) = (part for part in tail["by_place"]["parts"] if part["name"] == name)
        for method, share in (("euler", blame.euler), ("shapley", blame.shapley)):
            assert share.lower is not None
            assert share.upper is not None
            ppm = {"share_ppm": share.share, "lower_ppm": share.lower, "upper_ppm": share.upper}
            assert part[method] == {limit: round(value * 1e6) for limit, value in ppm.items()}
    assert "tenant's own burst" in {part["name"] for part in tail["by_cause"]["parts"]}
    (line,), (said,) = tail["counterfactuals"], tenant.counterfactuals
    assert (line["domain"], line["level_ppm"]) == ("metro", 999_000)
    assert (line["measured_ns"], line["kept_ns"]) == (round(said.measured_s * 1e9), round(said.kept_s * 1e9))
    (again,) = recompute([strict_json.loads(strict_json.dumps(tail), "finding")], read_evidence(path))
    assert (again.outcome, again.about) == (Outcome.SAME, "tail of alice: metro is named")


def cut_table(path: Path, *, unanswered: int = 0, seed: int = 1) -> Path:
    """Requests over two domains with strange names, the second with pauses; the first rows were never answered."""
    rng = np.random.default_rng(seed)
    north, south = rng.exponential(0.002, (2, 20_000))
    south += np.where(rng.random(20_000) < 0.01, 0.03, 0.0)
    rows = [
        f"{'' if i < unanswered else repr(a + b)},{a!r},{b!r}"
        for i, (a, b) in enumerate(zip(north.tolist(), south.tolist(), strict=True))
    ]
    path.write_text("\n".join(["latency_s,domain_nörd_s,domain_south_s", *rows]) + "\n")
    return path


def test_a_finding_of_an_unknown_kind_is_said_to_be_one(tmp_path: Path) -> None:
    (again,) = recompute([{"kind": "weather", "subject": "everyone"}], table(tmp_path / "t.csv"))
    assert (again.outcome, again.about) == (Outcome.ELSEWHERE, "a finding of kind weather, which is not known here")


def test_the_tail_of_a_table_is_a_finding_that_counts_what_has_no_latency(tmp_path: Path) -> None:
    path = cut_table(tmp_path / "t.csv", unanswered=7)
    promise, tail = table_statements(path, PROMISE)
    assert (promise["kind"], tail["kind"], tail["by_cause"]) == ("compliance", "attribution", None)
    assert [part["name"] for part in tail["by_place"]["parts"]] == ["n%C3%B6rd", "south"]
    assert (tail["by_place"]["named"], tail["by_place"]["unshared"]) == ("south", 7)
    assert [item.outcome for item in recompute([promise, tail], path)] == [Outcome.SAME, Outcome.SAME]


def test_a_changed_blame_differs_and_other_parts_of_the_same_latencies_are_other_evidence(tmp_path: Path) -> None:
    path = cut_table(tmp_path / "t.csv")
    _, tail = table_statements(path, PROMISE)
    for change in ({"confidence_ppm": 900_000}, {"seed": 1}, {"by_place": tail["by_place"] | {"named": "n%C3%B6rd"}}):
        assert recompute([tail | change], path)[0].outcome is Outcome.DIFFERS
    (series,) = read_series(path)
    reseeded = attribution_statement("everyone", series.latency_s, series.parts, seed=1)
    assert reseeded is not None
    assert reseeded["by_place"] != tail["by_place"]
    assert recompute([reseeded], path)[0].outcome is Outcome.SAME
    # The same latencies with one domain's column gone: what it took is left elsewhere.
    other = tmp_path / "other.csv"
    other.write_text("\n".join(line.rsplit(",", 1)[0] for line in path.read_text().splitlines()) + "\n")
    assert recompute([tail], other)[0].outcome is Outcome.ELSEWHERE


def test_requests_are_a_finding_that_is_computed_again_from_the_folder(tmp_path: Path) -> None:
    seen = asking.failed(asking.window(1), timeout=30, to_come=10)
    path = folder(tmp_path / "run", [seen], deadline_s=0.04)
    promise, tail, envelopes = run_statements(read_evidence(path))
    assert (promise["subject"], promise["n"], promise["misses"]) == ("vision", 19_990, 30)
    assert [item["domain"] for item in envelopes["findings"]] == list(asking.DOMAINS)
    assert {part["name"] for part in tail["by_cause"]["parts"]} >= {"west", "east", "compute"}
    again = recompute([promise, tail, envelopes], read_evidence(path))
    assert [item.outcome for item in again] == [Outcome.SAME] * 3


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
