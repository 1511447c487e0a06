"""Requests are drawn, made and sent as declared: open loop, counted truthfully, and not at all where they cannot be."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from inference_server.digits import held_out
from inference_server.generated.open_inference_pb2 import (
    Impairment,
    ImpairRequest,
    ModelInferRequest,
    ModelInferResponse,
)
from inference_server.server import Settings
from testbed.errors import PreflightError, ScenarioError
from testbed.scenario.model import (
    DrawnSize,
    Misbehaviour,
    ModelSize,
    OnOffArrivals,
    PoissonArrivals,
    TokenSize,
    TraceArrivals,
)
from testbed.traffic.arrivals import group_seed, tenant_seed
from testbed.traffic.grpc_connection import Connection
from testbed.traffic.modulation import on_off_path
from testbed.traffic.request_records import (
    NOT_ATTEMPTED,
    OK,
    OVERDUE,
    SKIPPED,
    Endings,
    RequestRecord,
    RequestSpec,
    count_impaired,
)
from testbed.traffic.request_schedules import RequestSchedule, request_schedule
from testbed.traffic.request_wire import PROBE_ID, RequestMaker, sequences
from testbed.traffic.requests import Calls, check
from testbed.traffic.sender import Stop
from tests.unit.inference.serving import LONG_S, Running, serving

MAKER = RequestMaker("alpha", "digits-small", 4, held_out())
EXPIRED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(Settings(listen="127.0.0.1:0", device="cpu", message_bytes=1 << 20)) as server:
        yield server


@pytest.fixture
def stop() -> Iterator[Stop]:
    """A sender's stop switch, which takes the signals over; they are given back."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield Stop()
    for number, handler in kept.items():
        signal.signal(number, handler)


def at_once(count: int, size_bytes: int = 0) -> RequestSchedule:
    sizes = MAKER.message_bytes(np.full(count, size_bytes))
    return RequestSchedule(np.zeros(count), sizes, np.arange(count))


def spec(running: Running, **fields: Any) -> RequestSpec:
    told: dict[str, Any] = {
        "tenant": 1, "name": "alpha", "target": running.target, "model": "digits-small", "images": 4,
        "schedule": "", "result": "", "clock_offset_ns": 0, "deadline_s": LONG_S,
    }  # fmt: skip
    return RequestSpec(**(told | fields))


def sent(running: Running, schedule: RequestSchedule, stop: Stop, **fields: Any) -> RequestRecord:
    told = spec(running, **fields)
    with Connection(told.target) as connection:
        calls = Calls(told, schedule, replace(MAKER, model=told.model), connection)
        start_ns = time.monotonic_ns()
        calls.run(start_ns, stop)
    return calls.record(start_ns)


def write_trace(path: Path, rows: list[tuple[float, int]]) -> Path:
    lines = [f"2023-11-16 18:{int(t) // 60:02d}:{t % 60:010.7f},{tokens},7" for t, tokens in rows]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n")
    return path


@pytest.mark.parametrize("wanted", [1200, 1300, 4096, 8000, 16_500, 70_000, 300_000])
def test_a_message_is_as_large_as_wanted_and_is_still_the_same_request(wanted: int) -> None:
    message = MAKER.message(7, 3, int(MAKER.message_bytes(np.array([wanted]))[0]))
    assert wanted - 2 <= len(message) <= wanted
    read = ModelInferRequest.FromString(message)
    assert (read.id, read.model_name, read.parameters["tenant"].string_param) == ("0000000007", "digits-small", "alpha")
    assert np.array_equal(np.frombuffer(read.raw_input_contents[0], "<f4").reshape(4, 64), MAKER.digits.pixels[3:7])


@pytest.mark.parametrize("wanted", [0, 1, 500, MAKER.smallest_bytes, MAKER.smallest_bytes + 3])
def test_no_message_is_smaller_than_its_images(wanted: int) -> None:
    size = int(MAKER.message_bytes(np.array([wanted]))[0])
    assert size == MAKER.smallest_bytes == len(MAKER.message(0, 0, size))


def test_requests_wrap_around_the_images() -> None:
    last = len(MAKER.digits) - 1
    read = ModelInferRequest.FromString(MAKER.message(0, last, 0))
    pixels = np.frombuffer(read.raw_input_contents[0], "<f4").reshape(4, 64)
    assert np.array_equal(pixels, MAKER.digits.pixels[[last, 0, 1, 2]])


def test_a_message_is_recognised_by_its_first_bytes_and_a_probe_is_none() -> None:
    messages = [
        MAKER.message(12, 0, 4000),
        MAKER.probe(4000),
        b"",
        b"\x1a\x0a12",
        ModelInferRequest().SerializeToString(),
    ]
    assert sequences(messages).tolist() == [12, -1, -1, -1, -1]
    assert ModelInferRequest.FromString(messages[1]).id == PROBE_ID


def test_what_is_no_answer_to_the_images_is_not_judged() -> None:
    answer = ModelInferResponse()
    assert MAKER.correct(answer, 0) == -1
    answer.outputs.add(name="logits", datatype="FP32", shape=[4, 10])
    answer.raw_output_contents.append(bytes(4 * 3 * 10))
    assert MAKER.correct(answer, 0) == -1


def test_right_answers_are_counted_image_by_image() -> None:
    labels = MAKER.digits.labels[5:9]
    logits = np.eye(10, dtype="<f4")[labels]
    logits[2] = np.roll(logits[2], 1)
    answer = ModelInferResponse(raw_output_contents=[logits.tobytes()])
    answer.outputs.add(name="logits", datatype="FP32", shape=[4, 10])
    assert MAKER.correct(answer, 5) == 3


def test_sizes_follow_the_model_a_distribution_or_the_tokens(tmp_path: Path) -> None:
    poisson = PoissonArrivals(2000.0, 8000)
    model = request_schedule(poisson, ModelSize(), MAKER, seed=1, duration_s=5.0)
    assert set(model.message_bytes.tolist()) == {MAKER.smallest_bytes}
    drawn = request_schedule(poisson, DrawnSize((16_000, 64_000), (3.0, 1.0)), MAKER, seed=1, duration_s=5.0)
    assert set(drawn.message_bytes.tolist()) == {2000, 8000}
    assert np.mean(drawn.message_bytes == 8000) == pytest.approx(0.25, abs=0.02)
    assert np.array_equal(model.time_s, drawn.time_s), "when requests arrive does not depend on how large they are"
    path = write_trace(tmp_path / "trace.csv", [(0.0, 100), (1.0, 2000), (2.0, 3000)])
    trace = TraceArrivals(path, "azure-llm", speed_up=2.0, bits_per_token=16, size_bits=12_000)
    tokens = request_schedule(trace, TokenSize(), MAKER, seed=1, duration_s=30.0)
    assert sorted(set(tokens.message_bytes.tolist())) == [MAKER.smallest_bytes, 4000, 6000]
    assert np.diff(tokens.time_s) == pytest.approx(0.5), "at twice the speed, the gap behind the last row included"


@pytest.mark.parametrize("strength", [None, 1.0, 0.0])
def test_requests_of_a_group_come_in_the_same_bursts_as_strongly_as_asked(strength: float | None) -> None:
    arrivals = OnOffArrivals(peak_bps=2e6, mean_on_s=0.1, mean_off_s=0.4, size_bits=10_000)
    breach = Misbehaviour("correlated", group="storm", strength=strength)
    path = on_off_path(0.1, 0.4, rng=np.random.default_rng(group_seed(7, "storm", 0)), duration_s=200.0)
    counts = []
    for number in (1, 2):
        drawn = request_schedule(
            arrivals,
            ModelSize(),
            MAKER,
            seed=tenant_seed(7, number, 0),
            duration_s=200.0,
            misbehaviour=breach,
            modulators={"storm": path},
            group=group_seed(7, "storm", 0),
        )
        counts.append(np.bincount((drawn.time_s / 0.05).astype(int), minlength=4000))
    together = float(np.corrcoef(counts[0], counts[1])[0, 1])
    assert together < 0.1 if strength == 0.0 else together > 0.9
    assert counts[0].sum() == pytest.approx(counts[1].sum() if strength != 0.0 else 200 * 40, rel=0.25)


def test_one_arrival_of_any_process_is_one_request() -> None:
    source = OnOffArrivals(peak_bps=1e6, mean_on_s=0.5, mean_off_s=0.5, size_bits=10_000)
    drawn = request_schedule(source, ModelSize(), MAKER, seed=3, duration_s=200.0)
    assert len(drawn) / 200.0 == pytest.approx(50.0, rel=0.2)
    gaps = np.diff(drawn.time_s)
    assert np.median(gaps) == pytest.approx(0.01)


def test_a_trace_with_bad_rows_is_refused_with_their_lines(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "trace.csv", [(0.0, 100), (1.0, 200)])
    path.write_text(path.read_text() + "2023-11-16 18:00:02.0000000,many,7\n")
    trace = TraceArrivals(path, "azure-llm", speed_up=1.0, bits_per_token=16, size_bits=12_000)
    with pytest.raises(ScenarioError, match="line 4"):
        request_schedule(trace, TokenSize(), MAKER, seed=1, duration_s=10.0)


def test_token_sizes_need_a_trace_of_tokens() -> None:
    with pytest.raises(ScenarioError, match="found PoissonArrivals, expected the trace of a format that counts tokens"):
        request_schedule(PoissonArrivals(1.0, 8), TokenSize(), MAKER, seed=1, duration_s=10.0)


@pytest.mark.parametrize("size", [((),), ((0,),), ((12,),), ((16, 8), (1.0,)), ((16,), (0.0,))])
def test_sizes_that_make_no_sense_are_refused(size: tuple[Any, ...]) -> None:
    with pytest.raises(ScenarioError, match="request sizes"):
        DrawnSize(*size)


def test_a_schedule_and_a_record_come_back_as_they_were_saved(tmp_path: Path, running: Running, stop: Stop) -> None:
    record = sent(running, at_once(3), stop)
    record.save(tmp_path / "r.npz")
    loaded = RequestRecord.load(tmp_path / "r.npz")
    for name in ("sent_s", "received_s", "server_s", "status", "request_bytes", "response_bytes", "correct"):
        assert np.array_equal(getattr(loaded, name), getattr(record, name))
    assert loaded.summary() == record.summary()
    assert np.array_equal(loaded.schedule.message_bytes, record.schedule.message_bytes)


def test_every_request_is_answered_judged_and_stamped(running: Running, stop: Stop) -> None:
    record = sent(running, at_once(200, 4000), stop)
    assert record.summary()["status"] == {"OK": 200}
    assert record.missed.sum() == 0
    assert record.accuracy == pytest.approx(0.876, abs=0.05)
    moments = np.column_stack((record.sent_s, record.server_s, record.received_s))
    assert np.all(np.diff(moments, axis=1) >= 0)
    assert np.all(record.request_bytes == 4000)
    assert np.all(record.response_bytes > 160)


def test_every_message_is_made_once_and_in_its_turn_also_those_made_ahead(
    running: Running, stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []
    plainly = RequestMaker.message

    def message(maker: RequestMaker, sequence: int, first_image: int, size_bytes: int) -> bytes:
        made.append((sequence, first_image))
        return plainly(maker, sequence, first_image, size_bytes)

    monkeypatch.setattr(RequestMaker, "message", message)
    schedule = replace(at_once(60), time_s=np.arange(60) * 0.003, first_image=np.arange(60)[::-1].copy())
    made.clear()
    record = sent(running, schedule, stop)
    assert made == [(k, 59 - k) for k in range(60)]
    assert record.summary()["status"] == {"OK": 60}


def test_answers_are_read_while_the_clock_is_watched_for_long(running: Running, stop: Stop) -> None:
    due_s = np.array([0.0, 0.5])
    schedule = replace(at_once(2), time_s=due_s)
    record = sent(running, schedule, stop, spin_ns=10**9)
    assert record.status.tolist() == [OK, OK]
    assert record.received_s[0] < due_s[1] <= record.sent_s[1]


def test_calls_begin_whatever_became_of_the_earlier_ones(running: Running, stop: Stop) -> None:
    running.gate.close()
    schedule = at_once(5)
    with Connection(running.target) as connection:
        calls = Calls(spec(running, model="gate"), schedule, replace(MAKER, model="gate"), connection)
        start_ns = time.monotonic_ns()
        sender = threading.Thread(target=calls.run, args=(start_ns, stop))
        sender.start()
        deadline = time.monotonic() + LONG_S
        while np.any(calls.sent_ns < 0):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert np.all(calls.status == NOT_ATTEMPTED), "all have been sent and none has been answered"
        running.gate.open.set()
        sender.join(LONG_S)
    assert np.all(calls.record(start_ns).status == OK)


def test_what_is_due_beyond_the_cap_is_skipped_and_missed(running: Running, stop: Stop) -> None:
    running.gate.close()
    record = sent(running, at_once(5), stop, model="gate", in_flight=2, deadline_s=0.3)
    running.gate.open.set()
    assert record.status.tolist() == [EXPIRED, EXPIRED, SKIPPED, SKIPPED, SKIPPED]
    assert record.missed.all()
    assert np.isnan(record.sent_s[2:]).all()
    assert record.request_bytes[2:].tolist() == [0, 0, 0]


def test_what_this_host_is_too_late_to_send_is_overdue_and_missed(running: Running, stop: Stop) -> None:
    told = spec(running, deadline_s=0.5)
    with Connection(told.target) as connection:
        calls = Calls(told, at_once(2), MAKER, connection)
        start_ns = time.monotonic_ns() - 1_000_000_000
        calls.run(start_ns, stop)
    record = calls.record(start_ns)
    assert record.status.tolist() == [OVERDUE, OVERDUE]
    assert record.missed.all()


def test_errors_are_counted_by_their_status_and_are_misses(running: Running, stop: Stop) -> None:
    record = sent(running, at_once(2), stop, model="broken")
    assert record.summary()["status"] == {"INTERNAL": 2}
    assert record.missed.all()
    assert np.isnan(record.accuracy)


def test_a_sender_that_is_ended_cancels_what_is_open_and_has_not_attempted_the_rest(
    running: Running, stop: Stop
) -> None:
    running.gate.close()
    schedule = RequestSchedule(np.array([0.0, 3600.0]), MAKER.message_bytes(np.zeros(2)), np.zeros(2, np.int64))
    ending = threading.Thread(target=lambda: (running.gate.entered.acquire(), setattr(stop, "requested", True)))
    ending.start()
    record = sent(running, schedule, stop, model="gate")
    ending.join(LONG_S)
    running.gate.open.set()
    assert record.status.tolist() == [grpc.StatusCode.CANCELLED.value[0], NOT_ATTEMPTED]
    assert record.missed.tolist() == [True, False]


REFUSED = {
    "an unknown model": ({"model": "digits-huge"}, 0, "NOT_FOUND .*'digits-huge'"),
    "a model that takes something else": ({"model": "other"}, 0, "NOT_FOUND"),
    "a request larger than the server accepts": ({}, (1 << 20) + 100, "RESOURCE_EXHAUSTED .* 1048676 bytes"),
    "more images than the server accepts": ({"images": 1025}, 0, "INVALID_ARGUMENT .*1025 rows"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_server_would_refuse_is_found_before_the_window(running: Running, what: str) -> None:
    fields, size, said = REFUSED[what]
    told = spec(running, **fields)
    maker = replace(MAKER, model=told.model, images=told.images)
    with Connection(told.target) as connection, pytest.raises(PreflightError, match=said):
        check(connection, told, maker, max(size, maker.smallest_bytes))


def test_a_server_that_is_not_ready_is_found_before_the_window(running: Running) -> None:
    running.server.service.accepting = False
    try:
        told = spec(running, ready_s=0.3)
        with Connection(told.target) as connection, pytest.raises(PreflightError, match=r"not ready after 0\.3 s"):
            check(connection, told, MAKER, MAKER.smallest_bytes)
    finally:
        running.server.service.accepting = True


def test_the_process_says_ready_waits_for_its_start_and_sums_up(tmp_path: Path, running: Running) -> None:
    at_once(20).save(tmp_path / "s.npz")
    told = spec(running, schedule=str(tmp_path / "s.npz"), result=str(tmp_path / "r.npz"))
    told.save(tmp_path / "spec.json")
    command = [sys.executable, "-m", "testbed.traffic.requests", str(tmp_path / "spec.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"ready": True, "tenant": 1, "requests": 20}
        process.stdin.write(json.dumps({"start_monotonic_ns": time.monotonic_ns()}) + "\n")
        process.stdin.flush()
        summary = json.loads(process.stdout.readline())
        assert process.wait(LONG_S) == 0
    assert summary["status"] == {"OK": 20}
    assert summary["complete"]
    assert RequestRecord.load(tmp_path / "r.npz").summary() == {k: summary[k] for k in summary if k in _SUMMARY}


_SUMMARY = {"tenant", "requests", "status", "missed", "accuracy", "latency_s", "lateness_s"}


def test_the_process_ends_with_one_line_where_there_is_no_server(tmp_path: Path, running: Running) -> None:
    at_once(1).save(tmp_path / "s.npz")
    told = spec(running, schedule=str(tmp_path / "s.npz"), target="127.0.0.1:1", ready_s=0.3)
    told.save(tmp_path / "spec.json")
    command = [sys.executable, "-m", "testbed.traffic.requests", str(tmp_path / "spec.json")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("requests: tenant alpha: server 127.0.0.1:1: found it not ready after 0.3 s")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("images", 0), ("images", 1.5), ("deadline_s", 0), ("deadline_s", "1"), ("target", 5), ("priority", "high"),
     ("in_flight", 0), ("unknown", 1)],
)  # fmt: skip
def test_a_specification_that_makes_no_sense_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    good = RequestSpec(1, "alpha", "127.0.0.1:1", "digits-small", 4, "s", "r", 0, 1.0)
    (tmp_path / "spec.json").write_text(json.dumps(asdict(good) | {key: value}))
    with pytest.raises(ValueError, match="expected"):
        RequestSpec.load(tmp_path / "spec.json")


def test_what_a_server_says_it_suffered_is_on_record_request_by_request(stop: Stop, tmp_path: Path) -> None:
    plan = ImpairRequest(
        seed=7,
        impairments=[
            Impairment(kind="slow-down", to_s=1e6, factor=20.0),
            Impairment(kind="wrong-answers", to_s=1e6, rate=0.5),
        ],
    )
    with serving(Settings(listen="127.0.0.1:0", models=["digits-small"], device="cpu", impair=plan)) as impaired:
        record = sent(impaired, at_once(40), stop)
    assert record.impaired is not None
    assert record.lost_time_s is not None
    counts = count_impaired(record.impaired)
    assert counts["slow-down"] == 40
    assert 5 <= counts["wrong-answers"] <= 35
    assert set(counts) == {"slow-down", "wrong-answers"}
    assert record.accuracy < 0.9
    wait_s, work_s = record.server_s[:, 2] - record.server_s[:, 1], record.server_s[:, 3] - record.server_s[:, 2]
    paused_s, behind_s, slowed_s = record.lost_time_s.T
    assert not paused_s.any()
    assert np.all(behind_s <= wait_s + 1e-6)
    assert np.all(slowed_s <= work_s + 1e-6)
    # One worker, one burst: nearly all that computations took, and what was waited for them, was lost on purpose.
    assert slowed_s.sum() > 0.7 * work_s.sum()
    assert behind_s.sum() > 0.5 * wait_s.sum()
    record.save(tmp_path / "record.npz")
    back = RequestRecord.load(tmp_path / "record.npz")
    assert np.array_equal(back.impaired, record.impaired)
    assert np.array_equal(back.lost_time_s, record.lost_time_s)
    ends = Endings.of(record.status, record.correct, record.images, record.impaired)
    assert str(ends).endswith(f"impaired on purpose: 40 by slow-down, {counts['wrong-answers']} by wrong-answers.")


def test_a_record_of_a_sound_server_says_nothing_of_impairments(running: Running, stop: Stop, tmp_path: Path) -> None:
    record = sent(running, at_once(3), stop)
    record.save(tmp_path / "record.npz")
    back = RequestRecord.load(tmp_path / "record.npz")
    assert (back.impaired, back.lost_time_s) == (None, None)
    assert "impaired" not in str(Endings.of(record.status, record.correct, record.images))
