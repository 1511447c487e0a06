"""One server from its first port to its last answer: calls, health, reflection, workers, and a drain.

It answers from the beginning (live, not ready) while models load, and says so once when it is ready. When it is told to
end it refuses what is new, finishes what it has, and then ends.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from inference_server import repository
from inference_server.protocol import SERVICE
from inference_server.scheduler import Scheduler
from inference_server.service import InferenceService
from inference_server.workers import Job, Workers

MESSAGE_BYTES = 16 * 1024 * 1024
_LARGEST_FRAME_BYTES = (1 << 24) - 1
_SWITCH_INTERVAL_S = 1e-4
_FLUSH_S = 1.0
"""How long answers that have been computed may take to leave."""


@dataclass(frozen=True)
class Settings:
    """What a server is told.

    Attributes:
        listen: `HOST:PORT`; port 0 picks one.
        models: Names to serve, None for all there are.
        folder: The user's own models, see `repository`.
        shares: Fraction of the workers guaranteed to each named tenant.
        queue_limit: Most requests that wait for each tenant.
        workers: Threads that compute.
        threads: CPU threads inside each computation.
        device: `cpu`, `cuda`, or None: CUDA where there is one.
        message_bytes: Largest message accepted; a larger one is answered RESOURCE_EXHAUSTED.
        max_rows: Most rows of a request; one with more is answered INVALID_ARGUMENT.
        drain_s: How long the end waits for requests in progress.
    """

    listen: str = "127.0.0.1:8001"
    models: Sequence[str] | None = None
    folder: Path | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    queue_limit: int = 1024
    workers: int = 1
    threads: int = 1
    device: str | None = None
    message_bytes: int = MESSAGE_BYTES
    max_rows: int = 1024
    drain_s: float = 10.0


class InferenceServer:
    """A server as an asynchronous context: ready inside, drained afterwards.

    Attributes:
        port: The port it listens on.
        service: The calls it serves.
        workers: The threads that compute.
    """

    port: int
    service: InferenceService
    workers: Workers

    def __init__(self, settings: Settings) -> None:
        """Make the queues.

        Raises:
            ValueError: Shares or a queue limit that make no sense.
        """
        self._settings = settings
        self._scheduler: Scheduler[Job] = Scheduler(
            settings.shares, queue_limit=settings.queue_limit, now_ns=time.monotonic_ns, expired=Job.expire
        )
        self.service = InferenceService(self._scheduler)
        self._health = health.aio.HealthServicer()

    async def __aenter__(self) -> Self:
        """Listen, load, and return when ready.

        Raises:
            ModelError: A model cannot be loaded.
            OSError: The address cannot be used.
        """
        settings = self._settings
        self._server = grpc.aio.server(options=_options(settings.message_bytes))
        self._server.add_generic_rpc_handlers((self.service.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        try:
            self.port = self._server.add_insecure_port(settings.listen)
        except RuntimeError as error:
            raise OSError(f"{settings.listen}: cannot listen there ({error}); is the port taken?") from error
        await self._say(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()
        try:
            self.service.serve(await asyncio.to_thread(self._load))
        except BaseException:
            await self._server.stop(None)
            raise
        self.workers = Workers(self._scheduler, settings.workers, settings.threads)
        # What is loaded stays: the collector need not look at PyTorch's modules again, in the middle of a request.
        gc.collect()
        gc.freeze()
        # A worker that has an answer must not wait 5 ms, Python's default, for a busy event loop to let it run.
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        await self._say(health_pb2.HealthCheckResponse.SERVING)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Refuse what is new, finish what there is, end."""
        await self._health.enter_graceful_shutdown()
        # The transport is kept until the last answer: once it shuts down, what is new is cut off instead of refused.
        await self.service.drain(self._settings.drain_s)
        await self._server.stop(_FLUSH_S)
        self._scheduler.close()
        await asyncio.to_thread(self.workers.join)

    @property
    def device(self) -> torch.device:
        """Where models compute."""
        wanted = self._settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(wanted)

    def _load(self) -> list[Any]:
        settings = self._settings
        torch.set_num_threads(settings.threads)
        return repository.load(settings.models, settings.folder, device=self.device, max_rows=settings.max_rows)

    async def _say(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)


def _options(message_bytes: int) -> list[tuple[str, int]]:
    """Channel arguments that make a connection behave like a queue.

    Large frames keep the requests of one connection in the order they were sent, a window as large as a message lets
    no request wait for the window of another, and without bandwidth probes nothing but requests and their
    acknowledgements is on the wire.
    """
    return [
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
        ("grpc.http2.max_frame_size", _LARGEST_FRAME_BYTES),
        ("grpc.http2.lookahead_bytes", message_bytes),
        ("grpc.http2.bdp_probe", 0),
    ]
