"""What a server's stamps support is promised and signed, and a run that contradicts it is found out."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from testbed.cli.envelope import app
from testbed.envelope import Envelope, Stage, Validity
from testbed.envelope.errors import CalibrationError
from testbed.envelope.files import Federation, make_federation, read_root, verify_file
from testbed.management.compute_envelope import calibrate_compute, calibrate_files, contradictions
from testbed.traffic.request_records import OK, RequestRecord
from testbed.traffic.request_schedules import RequestSchedule

WORK_S = 2e-3
BYTES = 2_500
N = 60_000
DAY_S = 86_400
VALIDITY = Validity(0, 1_000)


def run(seed: int, *, load: float = 0.6, stall_s: float = 0.01, slower: float = 1.0, n: int = N) -> RequestRecord:
    """Requests of one tenant with half a worker that now and then stalls, as its server would stamp them."""
    rng = np.random.default_rng(seed)
    received = np.cumsum(rng.exponential(WORK_S / 0.5 / load, n))
    work = slower * WORK_S * rng.uniform(0.8, 1.0, n)
    held = work / 0.5 + np.where(rng.random(n) < 2e-3, rng.exponential(stall_s, n), 0.0)
    finished = np.empty(n)
    free = 0.0
    for k in range(n):
        free = finished[k] = max(free, received[k]) + held[k]
    return RequestRecord(
        tenant=1,
        images=8,
        deadline_s=10.0,
        start_monotonic_ns=0,
        start_realtime_ns=0,
        schedule=RequestSchedule(received, np.full(n, BYTES), np.zeros(n, dtype=np.int64)),
        sent_s=received,
        received_s=finished,
        server_s=np.stack((received, received, finished - work, finished), axis=1),
        status=np.zeros(n, dtype=np.int16),
        request_bytes=np.full(n, BYTES),
        response_bytes=np.full(n, 400),
        correct=np.full(n, 8, dtype=np.int32),
    )


def calibrated(record: RequestRecord, capacity: float = 0.5) -> Envelope:
    return calibrate_compute(
        record, domain="core", tenant="vision", model="digits-medium", capacity=capacity, validity=VALIDITY
    )


@pytest.fixture(scope="module")
def envelope() -> Envelope:
    return calibrated(run(1))


def test_the_rate_is_that_of_the_share_at_the_speed_measured(envelope: Envelope) -> None:
    assert envelope.subject.stage is Stage.COMPUTE
    assert envelope.guardrails.reserved_rate_bps == pytest.approx(0.5 * 8 * BYTES / WORK_S, rel=0.03)


def test_the_latency_covers_all_but_a_hundredth_of_the_requests(envelope: Envelope) -> None:
    assert envelope.tail is not None
    assert 0.005 < envelope.tail.exceedance(0.0) < 0.1
    assert WORK_S < envelope.latency_s < 10 * WORK_S


@pytest.mark.parametrize("seed", range(2, 12))
def test_another_run_of_the_same_server_does_not_contradict_it(envelope: Envelope, seed: int) -> None:
    assert contradictions(envelope, run(seed)) == []


@pytest.mark.parametrize("worse", [{"stall_s": 0.1}, {"slower": 1.4}])
def test_a_run_of_a_worse_server_contradicts_it(envelope: Envelope, worse: dict[str, float]) -> None:
    assert contradictions(envelope, run(2, **worse))


def test_a_tenant_that_broke_its_contract_proves_nothing(envelope: Envelope) -> None:
    with pytest.raises(CalibrationError, match="the tenant broke its contract"):
        contradictions(envelope, run(2, load=1.5))
    larger = run(2, n=2_000)
    with pytest.raises(CalibrationError, match="the tenant broke its contract"):
        contradictions(envelope, replace(larger, request_bytes=larger.request_bytes * 2))


def test_more_than_the_share_computes_supports_no_promise() -> None:
    with pytest.raises(CalibrationError, match="send less or ask for a larger share"):
        calibrated(run(1, load=1.2))


def test_what_was_never_answered_supports_no_promise() -> None:
    record = run(1, n=100)
    with pytest.raises(CalibrationError, match="no answered request"):
        calibrated(replace(record, status=np.full(100, grpc.StatusCode.UNAVAILABLE.value[0], dtype=np.int16)))


def answered(record: RequestRecord, number: int) -> RequestRecord:
    """The same run, of which only the first requests were answered."""
    status = np.full(len(record.status), grpc.StatusCode.UNAVAILABLE.value[0], dtype=np.int16)
    status[:number] = OK
    return replace(record, status=status)


def test_requests_that_all_came_at_one_moment_support_no_promise() -> None:
    with pytest.raises(CalibrationError, match=r"answered \(1\) received at one moment, expected requests over"):
        calibrated(answered(run(1, n=100), 1))


def test_a_server_made_worse_on_purpose_supports_no_promise() -> None:
    record = run(1, n=100)
    touched = replace(record, impaired=(np.arange(100) < 3).astype(np.uint8), lost_time_s=np.zeros((100, 3)))
    with pytest.raises(CalibrationError, match=r"impaired on purpose \(3 by slow-down\)"):
        calibrated(touched)


def test_failures_are_counted_as_loss_and_as_errors(envelope: Envelope) -> None:
    record = run(1)
    status = record.status.copy()
    status[:600] = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    status[600:1200] = grpc.StatusCode.INTERNAL.value[0]
    worse = calibrated(replace(record, status=status))
    for probability in ("loss_probability", "error_probability"):
        assert getattr(worse, probability) > 0.01 > getattr(envelope, probability)


def test_it_is_signed_when_no_other_run_contradicts_it(tmp_path: Path) -> None:
    made = make_federation(tmp_path / "keys", ["core"], federation="test", not_after_s=2_000_000_000)
    good, other, bad = (tmp_path / f"{name}.npz" for name in ("good", "other", "bad"))
    for path, record in ((good, run(1)), (other, run(2)), (bad, run(3, stall_s=0.1))):
        record.save(path)
    again = tmp_path / "again.npz"
    again.write_bytes(good.read_bytes())
    keys = [made.domain_keys["core"]]
    promise = {"domain": "core", "tenant": "vision", "model": "digits-medium", "capacity": 0.5}
    signed = tmp_path / "signed.json"
    signed.write_bytes(calibrate_files(good, [other], keys, now_s=1_000_000_000, days=1, **promise))
    read = verify_file(signed, read_root([made.root]), 1_000_000_100)
    assert read.subject.service == "digits-medium"
    with pytest.raises(CalibrationError, match=r"bad\.npz: contradicts"):
        calibrate_files(good, [other, bad], keys, now_s=1_000_000_000, days=1, **promise)
    with pytest.raises(CalibrationError, match=r"again\.npz: found the run that .*good\.npz is of"):
        calibrate_files(good, [other, again], keys, now_s=1_000_000_000, days=1, **promise)
    with pytest.raises(CalibrationError, match=r"signed\.json: found no"):
        calibrate_files(signed, [other], keys, now_s=1_000_000_000, days=1, **promise)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with records of a server: `good`, `other`, `bad`, of a worse one, and `single`, of one answer."""
    folder = tmp_path_factory.mktemp("records")
    single = answered(run(1, n=100), 1)
    for name, record in (("good", run(1)), ("other", run(2)), ("bad", run(3, stall_s=0.1)), ("single", single)):
        record.save(folder / f"{name}.npz")
    return folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    folder = tmp_path_factory.mktemp("keys") / "keys"
    return make_federation(folder, ["core"], federation="test", not_after_s=int(time.time()) + 10 * DAY_S)


def calibrate_by_command(
    records: Path, keys: Federation, *more: object, made_from: str = "good", held_out: str = "other"
) -> Result:
    promise = ("--domain", "core", "--tenant", "vision", "--model", "digits-medium", "--capacity", 0.5)
    files = (records / f"{made_from}.npz", "--held-out", records / f"{held_out}.npz", "--key", keys.domain_keys["core"])
    arguments = ("calibrate-compute", *files, *promise, *more)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_signs_a_promise_that_others_accept(records: Path, keys: Federation, tmp_path: Path) -> None:
    signed = tmp_path / "compute.json"
    ended = calibrate_by_command(records, keys, "--days", 3, "--out", signed)
    assert (ended.exit_code, ended.output) == (0, "")
    read = verify_file(signed, read_root([keys.root]), time.time())
    assert (read.domain, read.subject.tenant, read.subject.service) == ("core", "vision", "digits-medium")
    assert read.subject.stage is Stage.COMPUTE
    assert read.validity.not_after_s - read.validity.not_before_s == 3 * DAY_S
    assert read.guardrails.reserved_rate_bps == pytest.approx(0.5 * 8 * BYTES / WORK_S, rel=0.03)


def test_without_a_place_to_write_the_command_gives_the_signed_bytes(
    records: Path, keys: Federation, tmp_path: Path
) -> None:
    signed = tmp_path / "compute.json"
    signed.write_bytes(calibrate_by_command(records, keys).stdout_bytes)
    assert verify_file(signed, read_root([keys.root]), time.time()).domain == "core"


@pytest.mark.parametrize(
    ("held_out", "said"), [("bad", r"bad\.npz: contradicts what .*good\.npz supports"), ("good", "found the run that")]
)
def test_the_command_signs_nothing_that_no_other_run_confirms(
    records: Path, keys: Federation, tmp_path: Path, held_out: str, said: str
) -> None:
    ended = calibrate_by_command(records, keys, "--out", tmp_path / "compute.json", held_out=held_out)
    assert ended.exit_code == 1
    assert re.match(f"refused: no-evidence: .*{said}", ended.stderr), ended.stderr
    assert not (tmp_path / "compute.json").exists()


def test_the_command_refuses_a_record_of_one_answer(records: Path, keys: Federation) -> None:
    ended = calibrate_by_command(records, keys, made_from="single")
    assert ended.exit_code == 1
    assert ended.stderr.startswith("refused: no-evidence: compute of digits-medium for vision: found all that was")


@pytest.mark.parametrize("wrong", [("--capacity", 0), ("--days", 0), ("--held-out", "none.npz")])
def test_a_command_that_makes_no_sense_ends_with_2(records: Path, keys: Federation, wrong: tuple[object, ...]) -> None:
    assert calibrate_by_command(records, keys, *wrong).exit_code == 2
