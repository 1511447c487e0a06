"""A server whose models load is live, not ready, and refuses what it cannot answer yet; health says when that ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inference_server import repository
from inference_server.generated import open_inference_pb2 as pb
from inference_server.protocol import SERVICE
from inference_server.server import InferenceServer, Settings
from tests.unit.inference.serving import LONG_S, infer, request
from tests.unit.inference.test_calls import call
from tests.unit.inference.test_triton import stream

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@dataclass
class Loading:
    """A server that reads its models once the test lets it."""

    server: InferenceServer
    begun: threading.Event = field(default_factory=threading.Event)
    may: threading.Event = field(default_factory=threading.Event)
    loop: asyncio.AbstractEventLoop | None = None
    ending: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        self.loop = asyncio.get_running_loop()
        async with self.server:
            await self.ended.wait()

    def end(self) -> None:
        """Drain it, unless that was asked for before: its loop may be closed by now."""
        assert self.loop is not None
        if not self.ending:
            self.ending = True
            self.loop.call_soon_threadsafe(self.ended.set)


@contextmanager
def loading(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loading]:
    """A server until the block ends, which finds it loading."""
    loads = repository.load
    found = Loading(InferenceServer(Settings(listen="127.0.0.1:0", models=["digits-small"], device="cpu")))

    def load(*names: Any, **options: Any) -> Any:
        found.begun.set()
        assert found.may.wait(LONG_S)
        return loads(*names, **options)

    monkeypatch.setattr(repository, "load", load)
    thread = threading.Thread(target=lambda: asyncio.run(found.run()))
    thread.start()
    try:
        assert found.begun.wait(LONG_S)
        yield found
    finally:
        found.may.set()
        found.end()
        thread.join(LONG_S)
        assert not thread.is_alive()


def check(channel: grpc.Channel, service: str) -> Any:
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=LONG_S)


def watch(channel: grpc.Channel, service: str) -> Any:
    return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service), timeout=LONG_S)


def test_a_server_that_loads_is_live_and_not_ready_and_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with loading(monkeypatch) as found, grpc.insecure_channel(f"127.0.0.1:{found.server.port}") as channel:
        assert call(channel, "ServerLive", pb.ServerLiveRequest()).live
        assert call(channel, "ServerMetadata", pb.ServerMetadataRequest()).name
        assert not call(channel, "ServerReady", pb.ServerReadyRequest()).ready
        assert not call(channel, "ModelReady", pb.ModelReadyRequest(name="digits-small")).ready
        assert not call(channel, "RepositoryIndex", pb.RepositoryIndexRequest(ready=True)).models
        assert [check(channel, name).status for name in ("", SERVICE)] == [NOT_SERVING, NOT_SERVING]
        for refused in (
            lambda: infer(channel)(request(), timeout=LONG_S),
            lambda: call(channel, "ModelMetadata", pb.ModelMetadataRequest(name="digits-small")),
        ):
            with pytest.raises(grpc.RpcError, match="still loads its models") as caught:
                refused()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        (answer,) = stream(channel, iter([request()]))
        assert answer.error_message.startswith("[UNAVAILABLE]")


@pytest.mark.parametrize("service", ["", SERVICE])
def test_who_watches_health_from_the_beginning_sees_the_server_begin_and_end(
    monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    with loading(monkeypatch) as found, grpc.insecure_channel(f"127.0.0.1:{found.server.port}") as channel:
        watched = watch(channel, service)
        seen = [next(watched).status]
        found.may.set()
        seen.append(next(watched).status)
        assert infer(channel)(request(), timeout=LONG_S).outputs, "it serves when it says so"
        found.end()
        seen.append(next(watched).status)
        watched.cancel()
    assert seen == [NOT_SERVING, SERVING, NOT_SERVING]


def test_the_health_of_a_service_that_nobody_knows_is_not_found_and_may_be_watched_all_the_same(
    channel: grpc.Channel,
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        check(channel, "inference.Nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watched = watch(channel, "inference.Nobody")
    assert next(watched).status == UNKNOWN
    watched.cancel()
