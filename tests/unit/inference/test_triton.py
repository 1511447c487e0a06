"""The calls that Triton adds to the protocol say what is true of our models, and streams answer in order."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from inference_server.generated import open_inference_pb2 as pb
from inference_server.protocol import Stamps, method
from inference_server.scheduler import Batching
from inference_server.server import Settings
from inference_server.streams import Stream
from tests.unit.inference.conftest import MESSAGE_BYTES
from tests.unit.inference.serving import LONG_S, Running, infer, request, serving, until
from tests.unit.inference.test_calls import WRONG, _held, _typed, call


@pytest.fixture(scope="module")
def together() -> Iterator[Running]:
    """A server that computes up to 8 rows together."""
    settings = Settings(listen="127.0.0.1:0", models=["digits-small"], batching=Batching(8), device="cpu")
    with serving(settings) as server:
        yield server


def stream(channel: grpc.Channel, requests: Iterator[Any]) -> Any:
    open_ = channel.stream_stream(
        method("ModelStreamInfer"),
        request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    return open_(requests, timeout=LONG_S)


def statistics(channel: grpc.Channel, model: str) -> pb.ModelStatistics:
    (found,) = call(channel, "ModelStatistics", pb.ModelStatisticsRequest(name=model)).model_stats
    return found


def test_the_configuration_says_how_a_model_is_served(together: Running) -> None:
    with together.channel() as channel:
        found = call(channel, "ModelConfig", pb.ModelConfigRequest(name="digits-small")).config
    assert (found.name, found.platform, found.max_batch_size) == ("digits-small", "pytorch", 1024)
    assert [(t.name, t.data_type, list(t.dims)) for t in found.input] == [("pixels", pb.TYPE_FP32, [64])]
    assert [(t.name, t.data_type, list(t.dims)) for t in found.output] == [("logits", pb.TYPE_FP32, [10])]
    assert list(found.dynamic_batching.preferred_batch_size) == [8]
    assert found.dynamic_batching.default_queue_policy.max_queue_size == 1024
    assert not found.model_transaction_policy.decoupled


def test_a_server_without_batching_says_so(channel: grpc.Channel) -> None:
    found = call(channel, "ModelConfig", pb.ModelConfigRequest(name="digits-small")).config
    assert not found.HasField("dynamic_batching")


def test_the_index_names_every_model_and_its_state(running: Running, channel: grpc.Channel) -> None:
    found = call(channel, "RepositoryIndex", pb.RepositoryIndexRequest()).models
    assert {"digits-small", "digits-medium", "digits-large"} <= {model.name for model in found}
    assert {model.state for model in found} == {"READY"}
    running.server.service.accepting = False
    try:
        found = call(channel, "RepositoryIndex", pb.RepositoryIndexRequest()).models
        assert {model.state for model in found} == {"UNAVAILABLE"}
        assert not call(channel, "RepositoryIndex", pb.RepositoryIndexRequest(ready=True)).models
    finally:
        running.server.service.accepting = True


@pytest.mark.parametrize("name", ["ModelConfig", "ModelStatistics"])
def test_what_is_asked_of_an_unknown_model_is_not_found(channel: grpc.Channel, name: str) -> None:
    with pytest.raises(grpc.RpcError, match="digits-huge") as caught:
        call(channel, name, getattr(pb, f"{name}Request")(name="digits-huge"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_statistics_count_requests_rows_failures_and_time(channel: grpc.Channel) -> None:
    before = statistics(channel, "digits-medium")
    answer = infer(channel)(request("digits-medium", np.zeros((3, 64))), timeout=LONG_S)
    with pytest.raises(grpc.RpcError):
        infer(channel)(request("digits-medium", np.zeros((3, 63))), timeout=LONG_S)
    after = statistics(channel, "digits-medium")
    stamps = Stamps.read(answer)
    assert stamps is not None
    assert after.inference_count - before.inference_count == 3
    assert after.execution_count - before.execution_count == 1
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1
    spent = {name: getattr(after.inference_stats, name).ns - getattr(before.inference_stats, name).ns
             for name in ("success", "queue", "compute_input", "compute_infer", "compute_output")}  # fmt: skip
    assert spent["success"] == stamps.finished_ns - stamps.received_ns
    assert spent["queue"] == stamps.started_ns - stamps.queued_ns
    parts = spent["compute_input"] + spent["compute_infer"] + spent["compute_output"]
    assert 0 < parts <= stamps.finished_ns - stamps.started_ns
    assert 3 in {batch.batch_size for batch in after.batch_stats}


def test_statistics_without_a_name_are_those_of_all_models(channel: grpc.Channel) -> None:
    found = call(channel, "ModelStatistics", pb.ModelStatisticsRequest()).model_stats
    assert {"digits-small", "digits-medium", "digits-large"} <= {model.name for model in found}


def test_requests_that_wait_are_computed_together_and_each_gets_its_own_rows(together: Running) -> None:
    rng = np.random.default_rng(1)
    pixels = [rng.uniform(0, 16, (rows, 64)).astype("<f4") for rows in (1, 2, 3)]
    with together.channel() as channel:
        alone = [infer(channel)(request(pixels=each), timeout=LONG_S) for each in pixels]
        before = statistics(channel, "digits-small")
        together.gate.close()
        held = infer(channel).future(request("gate"), timeout=LONG_S)
        assert together.gate.entered.acquire(timeout=LONG_S)
        calls = []
        for waiting, each in enumerate(pixels, start=1):
            calls.append(infer(channel).future(request(pixels=each), timeout=LONG_S))
            until(lambda waiting=waiting: len(together.server._scheduler) == waiting)
        together.gate.open.set()
        answers = [each.result(LONG_S) for each in calls]
        held.result(LONG_S)
        after = statistics(channel, "digits-small")
    assert after.execution_count - before.execution_count == 1
    assert after.inference_stats.compute_infer.count - before.inference_stats.compute_infer.count == 3
    for mine, batched in zip(alone, answers, strict=True):
        expected, found = (np.frombuffer(each.raw_output_contents[0], "<f4") for each in (mine, batched))
        assert np.allclose(found, expected, atol=1e-5)
        assert list(batched.outputs[0].shape) == list(mine.outputs[0].shape)


def test_a_request_that_fails_in_a_batch_does_not_fail_its_companions(together: Running) -> None:
    with together.channel() as channel:
        together.gate.close()
        held = infer(channel).future(request("gate"), timeout=LONG_S)
        assert together.gate.entered.acquire(timeout=LONG_S)
        calls = [
            infer(channel).future(request("broken", np.full((1, 64), value)), timeout=LONG_S) for value in (0.0, 1.0)
        ]
        until(lambda: len(together.server._scheduler) == 2)
        together.gate.open.set()
        assert held.result(LONG_S).outputs
        assert calls[0].result(LONG_S).outputs
        assert calls[1].code() is grpc.StatusCode.INTERNAL


def test_a_stream_answers_in_order_and_goes_on_after_a_refusal(channel: grpc.Channel) -> None:
    wanted = [request(id="first"), request("digits-huge", id="second"), b"\xff\xff", request(id="last")]
    answers = list(stream(channel, iter(wanted)))
    assert [answer.infer_response.id for answer in answers] == ["first", "second", "", "last"]
    assert [bool(answer.error_message) for answer in answers] == [False, True, True, False]
    assert answers[1].error_message.startswith("[NOT_FOUND] model 'digits-huge'")
    assert answers[2].error_message.startswith("[INVALID_ARGUMENT]")
    assert answers[0].infer_response.parameters["triton_final_response"].bool_param


@pytest.mark.parametrize("what", [name for name in WRONG if name != "a message larger than accepted"])
def test_a_wrong_request_of_a_stream_gets_its_status_and_the_next_is_answered(channel: grpc.Channel, what: str) -> None:
    message, code, said = WRONG[what]
    first, second = stream(channel, iter([message, request(id="next")]))
    assert re.match(rf"\[{code.name}\] .*{said}", first.error_message), first.error_message
    assert (second.error_message, second.infer_response.id) == ("", "next")


def test_a_message_larger_than_accepted_ends_its_stream(channel: grpc.Channel) -> None:
    answered = threading.Event()

    def requests() -> Iterator[Any]:
        yield request(id="first")
        answered.wait(LONG_S)
        yield bytes(MESSAGE_BYTES + 1)

    answers = stream(channel, requests())
    assert next(answers).infer_response.id == "first"
    answered.set()
    with pytest.raises(grpc.RpcError, match="larger than max") as caught:
        next(answers)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("typed", [False, True])
def test_a_stream_is_refused_what_a_call_is_refused_for_want_of_room_or_of_time_or_of_a_server(
    running: Running, channel: grpc.Channel, typed: bool
) -> None:
    def asked(**parameters: int) -> pb.ModelInferRequest:
        message = _typed("FP32", "fp32_contents", [0.0] * 64) if typed else request()
        for name, value in parameters.items():
            message.parameters[name].int64_param = value
        return message

    (first,) = _held(running, channel, 0)
    answers = stream(channel, iter([asked(timeout=1_000), asked(), asked(), asked()]))
    until(lambda: len(running.server._scheduler) == 3)
    due_ns = time.monotonic_ns() + 50_000_000
    until(lambda: time.monotonic_ns() > due_ns)
    running.gate.open.set()
    first.result(LONG_S)
    said = [answer.error_message.partition(" ")[0] for answer in answers]
    assert said == ["[DEADLINE_EXCEEDED]", "", "", "[RESOURCE_EXHAUSTED]"]
    running.server.service.accepting = False
    try:
        (refused,) = stream(channel, iter([asked()]))
    finally:
        running.server.service.accepting = True
    assert refused.error_message.startswith("[UNAVAILABLE]")


def test_a_drain_answers_what_a_stream_has_asked_and_refuses_what_it_asks_then() -> None:
    asked_more = threading.Event()
    with serving(Settings(listen="127.0.0.1:0", models=["digits-small"], device="cpu")) as running:
        channel = running.channel()
        (first,) = _held(running, channel, 0)

        def requests() -> Iterator[pb.ModelInferRequest]:
            yield request(id="before")
            asked_more.wait(LONG_S)
            yield request(id="after")

        answers = stream(channel, requests())
        until(lambda: len(running.server._scheduler) == 1)
        running.loop.call_soon_threadsafe(running.end.set)
        until(lambda: not running.server.service.accepting)
        asked_more.set()
        failed = running.server.service.statistics.models[""].fail
        until(lambda: failed.count + running.server.service.statistics.models["digits-small"].fail.count > 0)
        running.gate.open.set()
        first.result(LONG_S)
        before, after = answers
        assert (before.infer_response.id, before.error_message) == ("before", "")
        assert (after.infer_response.id, after.error_message[:13]) == ("after", "[UNAVAILABLE]")
        channel.close()


def test_what_a_stream_left_in_the_queue_is_never_computed_once_its_client_hung_up(
    running: Running, channel: grpc.Channel
) -> None:
    (first,) = _held(running, channel, 0)
    computed = running.server.workers.computed
    closing = threading.Event()

    def requests() -> Iterator[pb.ModelInferRequest]:
        yield request()
        yield request()
        closing.wait(LONG_S)

    opened = stream(channel, requests())
    until(lambda: len(running.server._scheduler) == 2)
    opened.cancel()
    closing.set()
    until(lambda: len(running.server._scheduler) == 0)
    running.gate.open.set()
    first.result(LONG_S)
    infer(channel)(request(), timeout=LONG_S)
    assert running.server.workers.computed == computed + 2


def alone(running: Running) -> Stream:
    """A stream of this server without a call around it."""
    context: Any = SimpleNamespace(time_remaining=lambda: None, invocation_metadata=lambda: ())
    return Stream(running.server.service, context)


def kept() -> int:
    """How many requests are in memory."""
    gc.collect()
    return sum(isinstance(each, pb.ModelInferRequest) for each in gc.get_objects())


def test_nothing_of_a_refused_request_is_kept_until_its_turn_but_the_refusal(running: Running) -> None:
    messages = [request("digits-huge", np.zeros((512, 64)), id=str(i)).SerializeToString() for i in range(5)]

    async def requests() -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    async def refused() -> tuple[int, list[str]]:
        opened, sent, before = alone(running), requests(), kept()
        await opened._read(sent)
        more = kept() - before
        answers = [pb.ModelStreamInferResponse.FromString(each) async for each in opened.answers(sent)]
        return more, [answer.infer_response.id for answer in answers]

    more, ids = asyncio.run_coroutine_threadsafe(refused(), running.loop).result(LONG_S)
    assert more <= 0
    assert ids == ["0", "1", "2", "3", "4"]


def test_a_request_is_withdrawn_whose_stream_is_cancelled_in_the_moment_in_which_it_is_queued(
    running: Running, channel: grpc.Channel
) -> None:
    (first,) = _held(running, channel, 0)
    computed = running.server.workers.computed
    endings = running.server.service.statistics.shares["digits-small", ""].endings
    cancelled = endings[grpc.StatusCode.CANCELLED]

    async def hung_up() -> int:
        async def requests() -> AsyncIterator[bytes]:
            answering.cancel()
            yield request().SerializeToString()

        async def answered() -> None:
            async for _ in alone(running).answers(requests()):
                pass

        answering = asyncio.create_task(answered())
        await asyncio.wait({answering})
        return len(running.server._scheduler)

    assert asyncio.run_coroutine_threadsafe(hung_up(), running.loop).result(LONG_S) == 0
    assert endings[grpc.StatusCode.CANCELLED] == cancelled + 1
    running.gate.open.set()
    first.result(LONG_S)
    infer(channel)(request(), timeout=LONG_S)
    assert running.server.workers.computed == computed + 2


def test_a_request_may_say_itself_how_long_the_server_may_take(running: Running, channel: grpc.Channel) -> None:
    (first,) = _held(running, channel, 0)
    computed = running.server.workers.computed
    hurried = request()
    hurried.parameters["timeout"].int64_param = 1_000
    call_ = infer(channel).future(hurried, timeout=LONG_S)
    until(lambda: len(running.server._scheduler) == 1)
    due_ns = time.monotonic_ns() + 1_000_000
    until(lambda: time.monotonic_ns() > due_ns)
    running.gate.open.set()
    first.result(LONG_S)
    assert call_.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert running.server.workers.computed == computed + 1
