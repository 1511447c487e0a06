"""What the protocol promises is answered, a client's mistakes have their statuses, and nothing is computed in vain."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from inference_server import repository
from inference_server.digits import held_out
from inference_server.generated import open_inference_pb2 as pb
from inference_server.networks import NETWORKS
from inference_server.protocol import Stamps, method
from inference_server.server import Settings
from testbed.telemetry import http2
from tests.unit.inference.conftest import MESSAGE_BYTES
from tests.unit.inference.serving import LONG_S, Running, infer, request, serving, until

SETTINGS, WINDOW_UPDATE = 0x4, 0x8
INITIAL_WINDOW = 0x4
"""A setting, of every stream; stream 0 is the connection, whose window only updates can raise."""

Call = Callable[..., Any]


def call(channel: grpc.Channel, name: str, message: Any) -> Any:
    response = getattr(pb, f"{name}Response")
    stub = channel.unary_unary(
        method(name), request_serializer=type(message).SerializeToString, response_deserializer=response.FromString
    )
    return stub(message, timeout=LONG_S)


def logits(answer: pb.ModelInferResponse) -> np.ndarray:
    return np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(answer.outputs[0].shape)


def test_a_ready_server_says_so_of_itself_and_of_its_models(channel: grpc.Channel) -> None:
    assert call(channel, "ServerLive", pb.ServerLiveRequest()).live
    assert call(channel, "ServerReady", pb.ServerReadyRequest()).ready
    assert call(channel, "ModelReady", pb.ModelReadyRequest(name="digits-large")).ready
    assert call(channel, "ModelReady", pb.ModelReadyRequest(name="digits-large", version="1")).ready
    assert not call(channel, "ModelReady", pb.ModelReadyRequest(name="digits-large", version="2")).ready
    assert not call(channel, "ModelReady", pb.ModelReadyRequest(name="digits-huge")).ready


def test_a_backlog_of_many_messages_fits_into_the_window_so_that_requests_stay_in_order(running: Running) -> None:
    preface, settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
    with socket.create_connection(("127.0.0.1", running.server.port), timeout=LONG_S) as client:
        client.sendall(preface + settings)
        received, granted = b"", dict[int, int]()
        while granted.keys() != {0, 4}:
            received += client.recv(4096)
            stream = np.frombuffer(received, np.uint8)
            frames = http2.walk(stream)
            for start, end, kind in zip(frames.start, frames.end, frames.kind, strict=True):
                body = received[start + http2.HEADER_BYTES : end]
                if kind == SETTINGS:
                    granted |= {key: value for key, value in struct.iter_unpack(">HI", body) if key == INITIAL_WINDOW}
                elif kind == WINDOW_UPDATE:
                    granted[0] = int.from_bytes(body, "big")
    assert min(granted.values()) > 60 * MESSAGE_BYTES


def test_the_server_names_itself_and_what_it_adds_to_the_protocol(channel: grpc.Channel) -> None:
    found = call(channel, "ServerMetadata", pb.ServerMetadataRequest())
    assert found.name == "tail-latency-testbed"
    assert {"server_stamps", "tenant_shares", "statistics", "model_configuration"} <= set(found.extensions)
    assert found.version


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_model_says_what_it_takes_and_gives(channel: grpc.Channel, name: str) -> None:
    found = call(channel, "ModelMetadata", pb.ModelMetadataRequest(name=name))
    assert (found.name, list(found.versions), found.platform) == (name, ["1"], "pytorch")
    assert [(t.name, t.datatype, list(t.shape)) for t in found.inputs] == [("pixels", "FP32", [-1, 64])]
    assert [(t.name, t.datatype, list(t.shape)) for t in found.outputs] == [("logits", "FP32", [-1, 10])]


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_accuracy_on_record_is_the_accuracy_of_the_answers(channel: grpc.Channel, name: str) -> None:
    digits = held_out()
    answer = infer(channel)(request(name, digits.pixels), timeout=LONG_S)
    right = float((logits(answer).argmax(axis=1) == digits.labels).mean())
    assert right == repository.record()["models"][name]["held_out_accuracy"]


def test_typed_and_raw_contents_mean_the_same_and_are_answered_in_kind(channel: grpc.Channel) -> None:
    pixels = held_out().pixels[:3]
    raw = infer(channel)(request(pixels=pixels, id="seven"), timeout=LONG_S)
    typed = pb.ModelInferRequest(model_name="digits-small", id="seven")
    typed.inputs.add(name="pixels", datatype="FP32", shape=[3, 64]).contents.fp32_contents.extend(pixels.ravel())
    answer = infer(channel)(typed, timeout=LONG_S)
    assert not answer.raw_output_contents
    assert not raw.outputs[0].HasField("contents")
    assert np.allclose(np.reshape(answer.outputs[0].contents.fp32_contents, (3, 10)), logits(raw))
    assert raw.id == answer.id == "seven"


def test_the_stamps_of_an_answer_lie_in_order_between_call_and_answer(channel: grpc.Channel) -> None:
    before = time.monotonic_ns()
    stamps = Stamps.read(infer(channel)(request(), timeout=LONG_S))
    after = time.monotonic_ns()
    assert stamps is not None
    moments = [before, stamps.received_ns, stamps.queued_ns, stamps.started_ns, stamps.finished_ns, after]
    assert moments == sorted(moments)


def test_an_answer_of_another_server_has_no_stamps() -> None:
    assert Stamps.read(pb.ModelInferResponse()) is None


def _with(change: Callable[[pb.ModelInferRequest], object]) -> pb.ModelInferRequest:
    message = request()
    change(message)
    return message


def _typed(datatype: str, field: str, values: list[Any]) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="digits-small")
    contents = message.inputs.add(name="pixels", datatype=datatype, shape=[1, 64]).contents
    getattr(contents, field).extend(values)
    return message


WRONG: dict[str, tuple[pb.ModelInferRequest | bytes, grpc.StatusCode, str]] = {
    "a model that is not there": (request("digits-huge"), grpc.StatusCode.NOT_FOUND, "expected one of"),
    "a version that is not there": (request(model_version="2"), grpc.StatusCode.NOT_FOUND, "no version '2'"),
    "a wrong shape": (request(pixels=np.zeros((1, 63))), grpc.StatusCode.INVALID_ARGUMENT, r"found shape \[1, 63\]"),
    "no rows": (request(pixels=np.zeros((0, 64))), grpc.StatusCode.INVALID_ARGUMENT, r"found shape \[0, 64\]"),
    "a wrong number of dimensions": (
        request(pixels=np.zeros(64)), grpc.StatusCode.INVALID_ARGUMENT, r"found shape \[64\], expected FP32 \[n, 64\]",
    ),
    "a wrong datatype": (
        _with(lambda m: setattr(m.inputs[0], "datatype", "FP64")), grpc.StatusCode.INVALID_ARGUMENT, "datatype 'FP64'",
    ),
    "raw contents of another length": (
        _with(lambda m: m.raw_input_contents.__setitem__(0, b"123")), grpc.StatusCode.INVALID_ARGUMENT, "found 3 bytes",
    ),
    "raw contents for one of two inputs": (
        _with(lambda m: m.inputs.add(name="more")), grpc.StatusCode.INVALID_ARGUMENT, "1 raw contents for 2 inputs",
    ),
    "an unknown input": (
        _with(lambda m: setattr(m.inputs[0], "name", "image")), grpc.StatusCode.INVALID_ARGUMENT, "named 'pixels'",
    ),
    "typed beside raw contents": (
        _with(lambda m: m.inputs[0].contents.fp32_contents.append(1.0)), grpc.StatusCode.INVALID_ARGUMENT, "beside raw",
    ),
    "an unknown output": (
        _with(lambda m: m.outputs.add(name="labels")), grpc.StatusCode.INVALID_ARGUMENT, "requested outputs",
    ),
    "contents of another datatype": (
        _typed("FP32", "fp64_contents", [0.0] * 64), grpc.StatusCode.INVALID_ARGUMENT, "expected them in",
    ),
    "too few typed values": (
        _typed("FP32", "fp32_contents", [0.0] * 63), grpc.StatusCode.INVALID_ARGUMENT, "found 63 values",
    ),
    "more rows than accepted": (
        request(pixels=np.zeros((1025, 64))), grpc.StatusCode.INVALID_ARGUMENT, "found 1025 rows, expected at most",
    ),
    "bytes that are no request": (b"\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT, "no ModelInferRequest"),
    "a message larger than accepted": (bytes(MESSAGE_BYTES + 1), grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"),
    "a tenant that is no text": (
        _with(lambda m: setattr(m.parameters["tenant"], "int64_param", 5)),
        grpc.StatusCode.INVALID_ARGUMENT, "'tenant': found int64_param, expected string_param",
    ),
    "a timeout that is no whole number": (
        _with(lambda m: setattr(m.parameters["timeout"], "string_param", "5")),
        grpc.StatusCode.INVALID_ARGUMENT, "'timeout': found string_param, expected int64_param",
    ),
    "a model that fails": (
        request("broken", np.ones((1, 64))), grpc.StatusCode.INTERNAL, "RuntimeError: out of its depth",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_request_gets_its_status_and_says_what_was_found(channel: grpc.Channel, what: str) -> None:
    message, code, said = WRONG[what]
    with pytest.raises(grpc.RpcError, match=said) as caught:
        infer(channel)(message, timeout=LONG_S)
    assert caught.value.code() is code
    assert infer(channel)(request(), timeout=LONG_S).outputs, "the next request is answered all the same"


@pytest.mark.parametrize(
    "name",
    ["ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics",
     "RepositoryIndex"],
)  # fmt: skip
def test_bytes_that_are_no_request_are_the_clients_mistake_in_every_call(channel: grpc.Channel, name: str) -> None:
    with pytest.raises(grpc.RpcError, match=f"found 3 bytes that are no {name}Request") as caught:
        channel.unary_unary(method(name))(b"\xff\xff\xff", timeout=LONG_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_metadata_of_an_unknown_model_is_not_found(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError, match="digits-huge") as caught:
        call(channel, "ModelMetadata", pb.ModelMetadataRequest(name="digits-huge"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_server_that_is_not_ready_refuses_and_says_it_may_be_later(running: Running, channel: grpc.Channel) -> None:
    running.server.service.accepting = False
    try:
        assert not call(channel, "ServerReady", pb.ServerReadyRequest()).ready
        assert call(channel, "ServerLive", pb.ServerLiveRequest()).live
        with pytest.raises(grpc.RpcError, match="try again later") as caught:
            infer(channel)(request(), timeout=LONG_S)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        running.server.service.accepting = True


def _held(running: Running, channel: grpc.Channel, count: int, **options: Any) -> list[Any]:
    """One request inside the closed gate, and `count` more behind it in the queue."""
    running.gate.close()
    send = infer(channel)
    calls = [send.future(request("gate"), timeout=LONG_S)]
    assert running.gate.entered.acquire(timeout=LONG_S)
    calls += [send.future(request("gate"), **({"timeout": LONG_S} | options)) for _ in range(count)]
    until(lambda: len(running.server._scheduler) == count)
    return calls


def test_a_full_queue_refuses_its_tenant_and_nobody_else(running: Running, channel: grpc.Channel) -> None:
    calls = _held(running, channel, 3)
    with pytest.raises(grpc.RpcError, match="3 requests waiting") as caught:
        infer(channel)(request(), timeout=LONG_S)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    running.gate.open.set()
    assert [len(each.result(LONG_S).outputs) for each in calls] == [1, 1, 1, 1]


def test_a_cancelled_call_leaves_the_queue_at_once_and_is_never_computed(
    running: Running, channel: grpc.Channel
) -> None:
    first, second = _held(running, channel, 1)
    computed = running.server.workers.computed
    second.cancel()
    until(lambda: len(running.server._scheduler) == 0)
    running.gate.open.set()
    first.result(LONG_S)
    infer(channel)(request(), timeout=LONG_S)
    assert running.server.workers.computed == computed + 2


def test_a_request_whose_deadline_passed_in_the_queue_is_never_computed(
    running: Running, channel: grpc.Channel
) -> None:
    first, second = _held(running, channel, 1, timeout=0.2)
    computed = running.server.workers.computed
    assert second.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # Its client is told first: the server counts the time it was given from when it arrived.
    until(lambda: len(running.server._scheduler) == 0)
    running.gate.open.set()
    first.result(LONG_S)
    infer(channel)(request(), timeout=LONG_S)
    assert running.server.workers.computed == computed + 2


def test_health_is_that_of_the_whole_and_of_the_service(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", "inference.GRPCInferenceService"):
        found = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=LONG_S)
        assert found.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_names_the_service(channel: grpc.Channel) -> None:
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    answer = next(iter(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(asked, timeout=LONG_S)))
    names = [service.name for service in answer.list_services_response.service]
    assert "inference.GRPCInferenceService" in names


def test_tenants_are_told_apart_by_parameter_or_by_metadata() -> None:
    settings = Settings(
        listen="127.0.0.1:0", models=["digits-small"], shares={"alpha": 0.6, "bravo": 0.4}, device="cpu"
    )
    with serving(settings) as running, running.channel() as channel:
        named = request()
        named.parameters["tenant"].string_param = "alpha"
        assert infer(channel)(named, timeout=LONG_S).outputs
        assert infer(channel)(request(), timeout=LONG_S, metadata=[("tenant", "bravo")]).outputs
        with pytest.raises(grpc.RpcError, match="they hold all of it") as caught:
            infer(channel)(request(), timeout=LONG_S)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_drain_answers_what_it_has_and_refuses_what_is_new() -> None:
    with serving(Settings(listen="127.0.0.1:0", models=["digits-small"], device="cpu")) as running:
        channel = running.channel()
        calls: list[Future[Any]] = _held(running, channel, 1)
        running.loop.call_soon_threadsafe(running.end.set)
        until(lambda: not running.server.service.accepting)
        with pytest.raises(grpc.RpcError) as caught:
            infer(channel)(request(), timeout=LONG_S)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        running.gate.open.set()
        assert [len(each.result(LONG_S).outputs) for each in calls] == [1, 1]
        channel.close()


def test_a_call_that_takes_longer_than_a_drain_is_ended() -> None:
    with serving(Settings(listen="127.0.0.1:0", models=["digits-small"], device="cpu", drain_s=0.2)) as running:
        channel = running.channel()
        (only,) = _held(running, channel, 0)
        begin = time.monotonic()
        running.loop.call_soon_threadsafe(running.end.set)
        assert only.code() is grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() - begin >= 0.2, "it may take as long as was said"
        assert not running.gate.open.is_set()
        channel.close()
