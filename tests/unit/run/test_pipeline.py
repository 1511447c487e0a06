"""What a run leaves where undoing it fails: its record if there is one to write, and nothing else."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from testbed.errors import CleanupError, FidelityError, InterruptedRunError, PreflightError, ReservationError
from testbed.management.federation import Federation
from testbed.management.paper import on_paper
from testbed.report.record import RunRecord, read_record
from testbed.run import pipeline
from testbed.run.measurement import Evidence
from testbed.run.pipeline import Options, run_reserved
from testbed.run.progress import Silent
from testbed.scenario.loader import load

SCENARIO = load(Path(__file__).parents[3] / "topologies" / "smoke.yaml")
CHECKS = (
    "require_root", "require_limited", "require_sender", "require_few", "require_unimpaired", "require_room",
    "require_memory", "require_warm_up",
)  # fmt: skip
GIVEN_BACK = ReservationError(["domain east: Release was not answered", "domain east: found 2 rules, expected none"])
TAKEN_DOWN = CleanupError(["namespace tlt could not be undone", "repeat with testbed clean"])


class Network:
    """Stands for a network that cannot be taken down."""

    journal, layout = SimpleNamespace(runid="0123ab"), None

    def __init__(self, *_arguments: object, **_options: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        raise TAKEN_DOWN


@contextmanager
def reserving(_network: object, _controllers: Mapping[str, object]) -> Iterator[Federation]:
    federation = on_paper(SCENARIO)
    federation.collect_offers()
    try:
        yield federation
    finally:
        raise GIVEN_BACK


Ended = Callable[..., RunRecord]


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ended:
    """The record of a run that ends for this reason, after it has measured what else is given."""
    for name in CHECKS:
        monkeypatch.setattr(pipeline, name, lambda *_: None)
    monkeypatch.setattr(pipeline.faults, "require", lambda *_: None)
    monkeypatch.setattr(pipeline, "choose_datapath", lambda _: SimpleNamespace(value="userspace"))
    monkeypatch.setattr(pipeline, "TandemNetwork", Network)
    monkeypatch.setattr(pipeline, "start_controller", lambda *_: nullcontext())

    def run(reason: Exception, *measured: Any) -> RunRecord:
        def gather(evidence: Evidence, *_: Any) -> None:
            evidence.measured.extend(measured)
            raise reason

        monkeypatch.setattr(pipeline, "gather", gather)
        return read_record(run_reserved(SCENARIO, Options(out=tmp_path), Silent(), reserving))

    return run


def test_a_record_is_written_where_giving_back_and_taking_down_fail_and_says_both(ended: Ended) -> None:
    record = ended(ReservationError("queue rate at d1e: found 3, expected 6"))
    assert record.verdict == "INVALID"
    assert [(gate.name, gate.detail) for gate in record.gates] == [
        ("measured to the end", "queue rate at d1e: found 3, expected 6"),
        ("given back and taken down", "; ".join((*GIVEN_BACK.problems, *TAKEN_DOWN.problems))),
    ]


def test_an_interrupted_run_that_cannot_be_undone_says_so_and_leaves_no_folder(ended: Ended, tmp_path: Path) -> None:
    with pytest.raises(CleanupError, match="repeat with testbed clean"):
        ended(InterruptedRunError("interrupted before anything was measured; nothing is left behind"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reason", [PreflightError("a sender was not ready"), OSError(errno.EIO, "Input/output error")])
def test_what_was_measured_is_judged_whatever_ended_the_run(
    ended: Ended, monkeypatch: pytest.MonkeyPatch, reason: Exception
) -> None:
    def assemble(*_: Any, failure: list[str], **__: Any) -> None:
        raise FidelityError([f"judged after: {why}" for why in failure])

    monkeypatch.setattr(pipeline, "assemble", assemble)
    with pytest.raises(FidelityError, match=f"judged after: .*{str(reason)[-12:]}"):
        ended(reason, object())
