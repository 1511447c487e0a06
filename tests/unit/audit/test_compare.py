"""Two runs compared: what was set differently, what came out differently, and what is only noise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from testbed.audit.compare import BoundChange, Comparison, Setting, compare_evidence, compare_runs
from testbed.audit.crossing import PacketCrossing
from testbed.audit.evidence import RunEvidence, read_evidence
from testbed.cli.app import app
from testbed.errors import TestbedError
from testbed.report.record import read_record, write_record
from tests.unit.audit.test_folder import folder, window

FIGURES = ("p50", "p99", "p99.9", "miss rate")


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> RunEvidence:
    return read_evidence(folder(tmp_path_factory.mktemp("run") / "run", [window(1)]))


def measured(evidence: RunEvidence, seed: int, pause_share: float = 0.0) -> RunEvidence:
    """The same run with other chances."""
    return replace(
        evidence, crossings={"alice": PacketCrossing.of([window(seed, 30_000, pause_share=pause_share)], [])}
    )


def figures(found: Comparison) -> dict[str, bool]:
    return {difference.figure: difference.real for difference in found.differences}


def sayable(found: Comparison) -> dict[str, bool]:
    """Without p99.9, of which half a minute cannot say enough."""
    return {figure: real for figure, real in figures(found).items() if figure != "p99.9"}


def test_runs_of_the_same_thing_hardly_ever_differ_although_their_packets_cling_together(evidence: RunEvidence) -> None:
    (tenant,) = evidence.record.tenants
    often_missed = tenant.model_copy(update={"deadline_s": 0.005, "epsilon": 0.1})
    missing = replace(evidence, record=evidence.record.model_copy(update={"tenants": (often_missed,)}))
    found = [compare_evidence(measured(missing, 2 * i), measured(missing, 2 * i + 1)) for i in range(40)]
    assert all(difference.first for comparison in found for difference in comparison.differences)
    assert np.mean([bool(comparison.real) for comparison in found]) <= 0.05


def test_a_pause_that_few_packets_meet_is_seen_in_the_tail_and_not_in_the_median(evidence: RunEvidence) -> None:
    found = compare_evidence(measured(evidence, 1), measured(evidence, 2, pause_share=0.002))
    assert sayable(found) == {"p50": False, "p99": True, "miss rate": True}
    slower = next(difference for difference in found.differences if difference.figure == "p99")
    assert slower.first is not None
    assert slower.second is not None
    assert slower.lower is not None
    assert slower.upper is not None
    assert 0 < slower.lower < slower.second - slower.first < slower.upper


def test_turning_the_runs_round_turns_every_interval_round(evidence: RunEvidence) -> None:
    one, other = measured(evidence, 1), measured(evidence, 2, pause_share=0.002)
    ahead, back = compare_evidence(one, other), compare_evidence(other, one)
    for there, here in zip(ahead.differences, back.differences, strict=True):
        assert (there.first, there.second, there.real) == (here.second, here.first, here.real)
        assert there.lower == (None if here.upper is None else -here.upper)


def test_a_higher_confidence_makes_every_interval_wider(evidence: RunEvidence) -> None:
    one, other = measured(evidence, 1), measured(evidence, 2, pause_share=0.002)
    wide, narrow = (compare_evidence(one, other, confidence).differences[0] for confidence in (0.999, 0.8))
    assert None not in {wide.lower, wide.upper, narrow.lower, narrow.upper}
    assert wide.upper - wide.lower > narrow.upper - narrow.lower  # type: ignore[operator]


def test_packets_that_were_never_answered_are_a_difference_and_still_json(evidence: RunEvidence) -> None:
    lossy = window(2)
    lossy.border_s[::50, 3] = np.nan
    lost = replace(evidence, crossings={"alice": PacketCrossing.of([lossy], [])})
    found = compare_evidence(measured(evidence, 1), lost)
    assert sayable(found) == {"p50": False, "p99": True, "miss rate": True}
    assert "Infinity" not in json.dumps(found.to_dict())
    assert not compare_evidence(lost, lost).real


def test_what_was_set_differently_is_named_and_so_is_a_bound_that_moved(evidence: RunEvidence) -> None:
    record = evidence.record
    (tenant,) = record.tenants
    changed = record.model_copy(
        update={
            "scenario": {"tenants": [{"name": "alice", "promise": {"confidence": 0.9}}], "seed": 3},
            "tenants": (tenant.model_copy(update={"bound_s": 0.05}),),
            "host": {"cpu_count": 4},
        }
    )
    found = compare_evidence(evidence, replace(evidence, record=changed))
    assert found.settings == (
        Setting("host.cpu_count", None, 4),
        Setting("scenario.seed", None, 3),
        Setting("scenario.tenants[alice].promise.confidence", 0.95, 0.9),
    )
    assert found.bounds == (BoundChange("alice", None, 0.05),)


def test_misses_of_different_deadlines_are_not_compared(evidence: RunEvidence) -> None:
    (tenant,) = evidence.record.tenants
    other = evidence.record.model_copy(update={"tenants": (tenant.model_copy(update={"deadline_s": 1.0}),)})
    found = compare_evidence(evidence, replace(evidence, record=other))
    assert tuple(figures(found)) == FIGURES[:-1]


def test_delays_of_a_run_whose_host_could_not_keep_up_are_not_compared(evidence: RunEvidence, tmp_path: Path) -> None:
    bad = read_evidence(folder(tmp_path / "bad", [window(2)], valid=False))
    found = compare_evidence(evidence, bad)
    assert (found.invalid, found.differences) == (("made-up",), ())


def test_runs_without_a_tenant_in_common_are_refused_by_name(evidence: RunEvidence) -> None:
    (tenant,) = evidence.record.tenants
    other = evidence.record.model_copy(update={"tenants": (tenant.model_copy(update={"name": "zoe"}),)})
    with pytest.raises(TestbedError, match=r"\(alice\).*\(zoe\).*no tenant in common"):
        compare_evidence(evidence, replace(evidence, record=other))


def test_a_folder_is_the_same_as_itself(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", [window(1)])
    found = compare_runs(run, run)
    assert (found.settings, found.bounds, found.real) == ((), (), ())
    assert tuple(figures(found)) == FIGURES


@pytest.mark.parametrize(
    ("pause_share", "valid", "code", "says"),
    [
        (0.0, True, 0, "nothing measured differs by more than noise"),
        (0.002, True, 1, "more than noise (95% confidence for all rows together): p99 of alice"),
        (0.0, False, 3, "the host could not keep up, so delays are not compared"),
    ],
)
def test_the_command_exits_as_it_says(tmp_path: Path, pause_share: float, valid: bool, code: int, says: str) -> None:
    first = folder(tmp_path / "first", [window(1)])
    second = folder(tmp_path / "second", [window(2, pause_share=pause_share)], valid=valid)
    record = read_record(second)
    write_record(second, record.model_copy(update={"scenario": {**record.scenario, "seed": 2}}))
    ended = CliRunner().invoke(app, ["compare", str(first), str(second)])
    assert (ended.exit_code, says in ended.output) == (code, True), ended.output
    assert "scenario.seed" in ended.output
    answered = CliRunner().invoke(app, ["compare", str(first), str(second), "--json"])
    assert (answered.exit_code, len(json.loads(answered.output)["differences"])) == (code, 4 if valid else 0)
