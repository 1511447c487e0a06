"""What makes the server worse on purpose does so when it is told to, says so, and does the same again."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from inference_server.errors import InvalidRequestError
from inference_server.generated import open_inference_pb2 as pb
from inference_server.impairments import CRASHED, Impairment, Impairments, parse, read
from inference_server.protocol import IMPAIRED, Kind, LostTime, Stamps, impaired_by
from inference_server.server import Settings
from tests.unit.inference.serving import LONG_S, Running, infer, request, serving, until

NOW_S = 1_000
LATER_S = 1e6
SOON_S = 10.0


def asked(*items: dict[str, Any], seed: int = 7) -> pb.ImpairRequest:
    return pb.ImpairRequest(seed=seed, impairments=[pb.Impairment(**item) for item in items])


def impairing(*items: dict[str, Any], seed: int = 7, record: Path | None = None, **more: Any) -> Impairments:
    found = Impairments(record, **({"touched": lambda *_: None} | more))
    found.add(parse(asked(*items, seed=seed), time.monotonic_ns()))
    return found


def answered(impairments: Impairments, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    now = time.monotonic_ns()
    outputs = {"logits": np.arange(10, dtype="<f4")[None, :]}
    found, kinds, _ = impairments.applied("alpha", name, outputs, Stamps(now, now, now, now + 1))
    return found["logits"], kinds


WRONG = [
    ({"kind": "haunting"}, "kind 'haunting', expected one of"),
    ({"kind": "pause", "from_s": 2.0, "to_s": 1.0}, "from 2.0 s to 1.0 s"),
    ({"kind": "pause", "from_s": -1.0, "to_s": 1.0}, "0 <= from <= to"),
    ({"kind": "slow-down", "to_s": 1.0, "factor": 0.5}, "a factor of at least 1"),
    ({"kind": "wrong-answers", "to_s": 1.0, "rate": 1.5}, "a rate from 0 to 1"),
    ({"kind": "memory-pressure", "to_s": 1.0}, "bytes above 0"),
    ({"kind": "memory-pressure", "to_s": 1.0, "bytes": 1 << 60}, "at most the [0-9]+ of this machine"),
    ({"kind": "pause", "to_s": 1e300}, r"from <= to <= 1e\+09"),
    ({"kind": "crash", "from_s": float("inf")}, "from inf s"),
    ({"kind": "slow-down", "to_s": 1.0, "factor": float("inf")}, "found inf, expected a factor"),
    ({"kind": "slow-down", "to_s": 1.0, "factor": 1e300}, "found 1e\\+300, expected a factor"),
]


@pytest.mark.parametrize(("item", "said"), WRONG)
def test_an_impairment_that_makes_no_sense_is_refused(item: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        parse(asked(item), 0)


@pytest.mark.parametrize("text", ["{", '{"impairments": [{"kind": "pause", "until": 3}]}', '{"seed": -1}'])
def test_a_file_that_describes_no_impairments_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match=r"plan\.json: .* expected a file with seed and impairments"):
        read(tmp_path / "plan.json")


def test_wrong_answers_come_at_their_rate_and_are_the_same_ones_again() -> None:
    many = {"kind": "wrong-answers", "to_s": LATER_S, "rate": 0.2}
    first, again = (impairing(many) for _ in range(2))
    other = impairing(many, seed=8)
    names = [f"{k:010d}" for k in range(2000)]
    kinds = [[answered(each, name)[1] for name in names] for each in (first, again, other)]
    assert kinds[0] == kinds[1]
    assert kinds[0] != kinds[2]
    assert sum(map(bool, kinds[0])) == pytest.approx(400, abs=4 * (2000 * 0.2 * 0.8) ** 0.5)
    for each in (first, again, other):
        each.close()


def test_a_wrong_answer_names_another_class_and_says_that_it_is_wrong() -> None:
    impairments = impairing({"kind": "wrong-answers", "to_s": LATER_S, "rate": 1.0})
    logits, kinds = answered(impairments, "1")
    assert kinds == ("wrong-answers",)
    assert logits.argmax() != 9
    assert sorted(logits.ravel()) == list(range(10))
    impairments.close()


@pytest.mark.parametrize("array", [np.zeros((1, 4), "<f4"), np.array([True, True]), np.array([[5]], "<i8")])
def test_an_answer_that_looks_the_same_turned_is_made_wrong_otherwise(array: np.ndarray) -> None:
    impairments = impairing({"kind": "wrong-answers", "to_s": LATER_S, "rate": 1.0})
    outputs, _, _ = impairments.applied("alpha", "1", {"y": array}, Stamps(*[time.monotonic_ns()] * 3, 1 << 62))
    assert outputs["y"].dtype == array.dtype
    assert outputs["y"].shape == array.shape
    assert not np.array_equal(outputs["y"], array)
    impairments.close()


def test_a_request_that_a_pause_held_up_says_so_and_others_do_not() -> None:
    impairments = impairing({"kind": "pause", "from_s": NOW_S, "to_s": NOW_S + 1})
    start = impairments._all[0].start_ns
    before = Stamps(0, start - 20, start - 10, start - 5)
    held = Stamps(0, start - 20, start + 10, start + 20)
    assert impairments.applied("alpha", "1", {}, before)[1] == ()
    assert impairments.applied("alpha", "1", {}, held)[1] == ("pause",)
    impairments.close()


def test_a_slow_down_makes_a_computation_take_its_factor() -> None:
    impairments = impairing({"kind": "slow-down", "to_s": LATER_S, "factor": 3.0})
    begun = time.monotonic_ns()
    slowed_ns = impairments.slow_down(10_000_000)
    assert 20_000_000 <= slowed_ns <= time.monotonic_ns() - begun
    impairments.close()


@pytest.mark.parametrize("factors", [[1e6], [1e6, 1e6, 1e6]])
def test_a_slow_down_ends_with_the_server(factors: list[float]) -> None:
    impairments = impairing(*({"kind": "slow-down", "to_s": LATER_S, "factor": factor} for factor in factors))
    slowed: list[int] = []
    worker = threading.Thread(target=lambda: slowed.append(impairments.slow_down(1_000_000_000)), daemon=True)
    worker.start()
    worker.join(0.05)
    assert worker.is_alive()
    impairments.close()
    worker.join(LONG_S)
    assert len(slowed) == 1


def test_a_request_says_how_long_others_before_it_were_slowed_down() -> None:
    impairments = impairing({"kind": "slow-down", "to_s": LATER_S, "factor": 2.0})
    queued = time.monotonic_ns()
    slowed = [impairments.slow_down(5_000_000) for _ in range(2)]
    started = time.monotonic_ns()
    _, kinds, lost = impairments.applied("alpha", "1", {}, Stamps(queued, queued, started, started + 100), 40)
    assert (kinds, lost) == (("slow-down",), LostTime(0, sum(slowed), 40))
    _, _, late = impairments.applied("alpha", "2", {}, Stamps(started, started, started, started + 100))
    assert late == LostTime()
    impairments.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pause_costs_a_request_the_time_it_holds_workers_up_however_many_they_are(workers: int) -> None:
    impairments = impairing({"kind": "pause", "to_s": LATER_S}, workers=workers)
    start = impairments._all[0].start_ns
    impairments._held_up.extend([(start + 10, start + 50, Kind.PAUSE), (start + 20, start + 60, Kind.PAUSE)])
    _, _, lost = impairments.applied("alpha", "1", {}, Stamps(0, start + 15, start + 80, start + 90))
    assert lost == LostTime(paused_ns=45)
    impairments.close()


def test_what_several_workers_lose_to_a_slow_down_is_shared_by_who_waits() -> None:
    impairments = impairing({"kind": "slow-down", "to_s": LATER_S, "factor": 2.0}, workers=2)
    start = impairments._all[0].start_ns
    impairments._held_up.extend([(start, start + 30, Kind.SLOW_DOWN), (start + 10, start + 40, Kind.SLOW_DOWN)])
    _, _, lost = impairments.applied("alpha", "1", {}, Stamps(0, start + 10, start + 80, start + 90))
    assert lost == LostTime(behind_ns=25)
    impairments.close()


def test_a_crash_ends_the_process_with_its_code_and_is_on_record_first(tmp_path: Path) -> None:
    codes: list[int] = []
    crashed = threading.Event()
    record = tmp_path / "record.jsonl"

    def crash(code: int) -> None:
        codes.append(code)
        assert [json.loads(line)["kind"] for line in record.read_text().splitlines()] == ["crash"]
        crashed.set()

    impairments = impairing({"kind": "crash"}, record=record, crash=crash)
    assert crashed.wait(LONG_S)
    assert codes == [CRASHED]
    impairments.close()


def test_memory_pressure_holds_what_it_says_until_it_ends(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    impairments = impairing({"kind": "memory-pressure", "to_s": LATER_S, "bytes": 1 << 20}, record=record)
    deadline = time.monotonic() + LONG_S
    while not (held := list(impairments._held.values())):
        assert time.monotonic() < deadline
    assert [each.nbytes for each in held] == [1 << 20]
    impairments.close()
    assert not impairments._held
    assert [json.loads(line)["event"] for line in record.read_text().splitlines()] == ["begin", "end"]


def test_memory_pressure_that_is_asked_for_twice_is_held_twice(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    impairments = impairing(*[{"kind": "memory-pressure", "to_s": LATER_S, "bytes": 1 << 20}] * 2, record=record)
    until(lambda: len(record.read_text().splitlines()) == 2 and len(impairments._held) == 2)
    impairments.close()
    assert [json.loads(line)["event"] for line in record.read_text().splitlines()] == ["begin", "begin", "end", "end"]


def test_impairments_go_on_where_their_record_cannot_be_written(caplog: pytest.LogCaptureFixture) -> None:
    crashed = threading.Event()
    impairments = impairing(
        {"kind": "memory-pressure", "to_s": 0.05, "bytes": 1 << 20},
        {"kind": "crash", "from_s": 0.1},
        record=Path("/dev/full"),
        crash=lambda _: crashed.set(),
    )
    assert crashed.wait(SOON_S)
    assert not impairments._held
    impairments.close()
    (said,) = caplog.messages
    assert re.match("impairment record /dev/full: cannot be written .*No space left on device.*disk full", said)


def test_memory_that_cannot_be_had_is_told_and_what_is_due_later_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record, crashed = tmp_path / "record.jsonl", threading.Event()
    now = time.monotonic_ns()
    impairments = Impairments(record, touched=lambda *_: None, crash=lambda _: crashed.set())
    impairments.add(
        [
            Impairment(Kind.MEMORY_PRESSURE, now, now + int(LATER_S * 1e9), float(1 << 60), 7),
            Impairment(Kind.CRASH, now + 10_000_000, now + 10_000_000, 0.0, 7),
        ]
    )
    assert crashed.wait(SOON_S)
    assert answered(impairments, "1")[1] == ()
    impairments.close()
    events = [(entry["event"], entry["kind"]) for entry in map(json.loads, record.read_text().splitlines())]
    assert events == [("fail", "memory-pressure"), ("begin", "crash"), ("end", "crash")]
    (said,) = caplog.messages
    assert re.match(rf"impairment memory-pressure: cannot hold {1 << 60} bytes .*; ask for less", said)


def impair(channel: grpc.Channel) -> Callable[..., pb.ImpairResponse]:
    return channel.unary_unary(
        "/inference.Impairments/Impair",
        request_serializer=pb.ImpairRequest.SerializeToString,
        response_deserializer=pb.ImpairResponse.FromString,
    )


def test_clients_may_impair_a_server_that_allows_it_and_the_answers_say_so() -> None:
    settings = Settings(listen="127.0.0.1:0", models=["digits-small"], device="cpu", allow_impairments=True)
    with serving(settings) as running, running.channel() as channel:
        plain = infer(channel)(request(id="1"), timeout=LONG_S)
        assert IMPAIRED not in plain.parameters
        impair(channel)(asked({"kind": "wrong-answers", "to_s": LATER_S, "rate": 1.0}), timeout=LONG_S)
        found = infer(channel)(request(id="1"), timeout=LONG_S)
        assert found.parameters[IMPAIRED].string_param == "wrong-answers"
        assert found.raw_output_contents != plain.raw_output_contents
        assert running.server.service.statistics.impaired == {"wrong-answers": 1}
        wrong = [(asked({"kind": "haunting"}).SerializeToString(), "haunting"), (b"\xff", "no ImpairRequest")]
        for message, said in wrong:
            with pytest.raises(grpc.RpcError, match=said) as caught:
                channel.unary_unary("/inference.Impairments/Impair")(message, timeout=LONG_S)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_clients_may_not_impair_a_server_that_does_not_allow_it(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        impair(channel)(asked({"kind": "crash"}), timeout=LONG_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_request_whose_deadline_passed_during_a_pause_is_never_computed(
    running: Running, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(Impairments, "any", True)
    monkeypatch.setattr(running.server._impairments, "wait_out_pause", lambda: over.wait(LONG_S))
    computed = running.server.workers.computed
    hurried = request()
    hurried.parameters["timeout"].int64_param = 200_000
    call = infer(channel).future(hurried, timeout=LONG_S)
    due_ns = time.monotonic_ns() + 400_000_000
    until(lambda: time.monotonic_ns() > due_ns and len(running.server._scheduler) == 0)
    over.set()
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # The server's word, not the client's, who would have waited for long.
    assert "before the answer was there" in call.details()
    assert running.server.workers.computed == computed


def test_a_plan_counts_from_the_ready_line() -> None:
    plan = asked({"kind": "slow-down", "to_s": LATER_S, "factor": 1.0})
    begun = time.monotonic_ns()
    with serving(Settings(listen="127.0.0.1:0", models=["digits-small"], device="cpu", impair=plan)) as running:
        (only,) = running.server._impairments._all
        assert begun < only.start_ns < time.monotonic_ns()
        with running.channel() as channel:
            found = infer(channel)(request(), timeout=LONG_S)
        assert impaired_by(found) == {Kind.SLOW_DOWN}


def test_an_answer_says_what_a_slow_down_cost_it() -> None:
    plan = asked({"kind": "slow-down", "to_s": LATER_S, "factor": 5.0})
    with (
        serving(Settings(listen="127.0.0.1:0", models=["digits-small"], device="cpu", impair=plan)) as running,
        running.channel() as channel,
    ):
        found = infer(channel)(request(), timeout=LONG_S)
    stamps, lost = Stamps.read(found), LostTime.read(found)
    assert stamps is not None
    computed_ns = stamps.finished_ns - stamps.started_ns
    assert 0.75 * computed_ns < lost.slowed_ns < computed_ns
    assert "paused_ns" not in found.parameters


def test_kinds_that_only_another_server_knows_are_ignored() -> None:
    answer = pb.ModelInferResponse()
    assert impaired_by(answer) == frozenset()
    answer.parameters[IMPAIRED].string_param = "pause,haunting"
    assert impaired_by(answer) == {Kind.PAUSE}
