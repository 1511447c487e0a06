"""One server from its first port to its last answer: calls, health, reflection, workers, and a drain.

It answers from the beginning (live, not ready) while models load, and says so once when it is ready. When it is told to
end it refuses what is new, finishes what it has, and then ends.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import torch
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection

from inference_server import repository
from inference_server.errors import ModelError
from inference_server.generated.open_inference_pb2 import ImpairRequest
from inference_server.health import health_handler
from inference_server.impairments import Impairments, impairment_handler, parse
from inference_server.metrics import MetricsPage
from inference_server.protocol import IMPAIRMENTS, SERVICE
from inference_server.scheduler import Batching, Scheduler
from inference_server.security import Security
from inference_server.service import InferenceService
from inference_server.statistics import Statistics
from inference_server.triton import Serving
from inference_server.workers import Job, Workers

CALLS = 16
"""Calls of a connection where tenants have shares: enough to keep a server busy from afar, and soon read."""
CAPPED_CALLS = 4
"""The same where nobody's load shall be felt by others: enough for one that is computed and those that come next."""
MESSAGE_BYTES = 16 * 1024 * 1024
_LARGEST_FRAME_BYTES = (1 << 24) - 1
_WINDOW_BYTES = 1 << 26
"""What may be on its way over one connection: seconds of a fast reservation's backlog."""
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
        queue_limits: Most requests that wait of these tenants, instead of `queue_limit`.
        capped: Whether no share gets more of the workers than its fraction, even while others need less.
        batching: When requests are computed together.
        security: Certificates; None for plain text.
        metrics: `HOST:PORT` of the page for Prometheus, None for none.
        impair: What makes the server worse from the moment it is ready; None for nothing.
        impairment_record: File to append to when impairments begin and end.
        allow_impairments: Whether clients may ask for impairments.
        impairment_socket: Unix socket on which its owner may ask for impairments, whatever clients may; None for none.
        calls: Most calls of one connection that the server has at a time; its client keeps those beyond. None for all.
            Whatever was sent is read in the order in which it came, before anybody knows whose it is: without a limit,
            shares hold for what has been read, and not for who waits to be.
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
    queue_limits: Mapping[str, int] = field(default_factory=dict)
    capped: bool = False
    batching: Batching = field(default_factory=Batching)
    security: Security | None = None
    metrics: str | None = None
    impair: ImpairRequest | None = None
    impairment_record: Path | None = None
    allow_impairments: bool = False
    impairment_socket: Path | None = None
    calls: int | None = None


class InferenceServer:
    """A server as an asynchronous context: ready inside, drained afterwards.

    Attributes:
        port: The port it listens on.
        service: The calls it serves.
        workers: The threads that compute.
        metrics: The page for Prometheus, None where nobody asked for one.
    """

    port: int
    service: InferenceService
    workers: Workers
    metrics: MetricsPage | None = None
    _control: grpc.aio.Server | None = None

    def __init__(self, settings: Settings) -> None:
        """Make the queues.

        Raises:
            ValueError: Shares, a queue limit or an impairment that make no sense.
            OSError: The record of impairments cannot be written.
        """
        self._settings = settings
        statistics = Statistics()
        self._scheduler: Scheduler[Job] = Scheduler(
            settings.shares,
            queue_limit=settings.queue_limit,
            queue_limits=settings.queue_limits,
            batching=settings.batching,
            capped_workers=settings.workers if settings.capped else None,
            now_ns=time.monotonic_ns,
            expired=Job.expire,
        )
        self._impairments = Impairments(
            settings.impairment_record, touched=statistics.touched, workers=settings.workers
        )
        self._due = [] if settings.impair is None else parse(settings.impair, 0)
        serving = Serving(
            workers=settings.workers,
            device=self.device,
            queue_limit=settings.queue_limit,
            batch_rows=settings.batching.rows,
            batch_delay_s=settings.batching.delay_s,
        )
        self.workers = Workers(self._scheduler, settings.workers, settings.threads, statistics, self._impairments)
        self.service = InferenceService(self._scheduler, self.workers, statistics, serving)
        self._health = health.aio.HealthServicer()

    async def __aenter__(self) -> Self:
        """Listen, load, and return when ready.

        Whoever cancels this gives up a thread that goes on loading: nothing can stop that but the end of the process.

        Raises:
            ModelError: A model cannot be loaded.
            OSError: An address cannot be used, or a certificate not be read.
            ValueError: A certificate that is none.
        """
        settings = self._settings
        self._server = grpc.aio.server(options=_options(settings.message_bytes, settings.calls))
        self._server.add_generic_rpc_handlers((self.service.handler(),))
        self._server.add_generic_rpc_handlers((health_handler(self._health),))
        names = [SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME]
        if settings.allow_impairments:
            self._server.add_generic_rpc_handlers((impairment_handler(self._impairments),))
            names.append(IMPAIRMENTS)
        reflection.enable_server_reflection(names, self._server)
        self.port = self._add_port(settings.listen, settings.security)
        await self._say(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()
        try:
            if settings.impairment_socket is not None:
                self._control = await self._controlled(settings.impairment_socket)
            self.service.serve(await self._loaded())
            if settings.metrics is not None:
                self.metrics = MetricsPage(settings.metrics, self.service.statistics, self._scheduler.waiting)
        except BaseException:
            await self._server.stop(None)
            if self._control is not None:
                await self._control.stop(None)
            self._impairments.close()
            raise
        self.workers.start()
        # What is loaded stays: the collector need not look at PyTorch's modules again, in the middle of a request.
        gc.collect()
        gc.freeze()
        # A worker that has an answer must not wait 5 ms, Python's default, for a busy event loop to let it run.
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        await self._say(health_pb2.HealthCheckResponse.SERVING)
        ready_ns = time.monotonic_ns()
        self._impairments.add([each.later(ready_ns) for each in self._due])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Refuse what is new, finish what there is, end."""
        await self._health.enter_graceful_shutdown()
        # The transport is kept until the last answer: once it shuts down, what is new is cut off instead of refused.
        await self.service.drain(self._settings.drain_s)
        await self._server.stop(_FLUSH_S)
        if self._control is not None:
            await self._control.stop(None)
        self._scheduler.close()
        self._impairments.close()
        await asyncio.to_thread(self.workers.join)
        if self.metrics is not None:
            self.metrics.close()

    @property
    def device(self) -> torch.device:
        """Where models compute."""
        wanted = self._settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(wanted)

    async def _loaded(self) -> list[Any]:
        """Load in a thread that the interpreter does not wait for at its end, as it does for those of asyncio."""
        loaded: Future[list[Any]] = Future()
        loaded.set_running_or_notify_cancel()

        def load() -> None:
            try:
                loaded.set_result(self._load())
            except BaseException as error:  # noqa: BLE001 - raised where it is awaited
                loaded.set_exception(error)

        threading.Thread(target=load, name="load", daemon=True).start()
        return await asyncio.wrap_future(loaded)

    def _load(self) -> list[Any]:
        settings = self._settings
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise ModelError(
                "device cuda: found no CUDA device that PyTorch can use, expected one; leave --device out, or say cpu"
            )
        torch.set_num_threads(settings.threads)
        models = repository.load(settings.models, settings.folder, device=self.device, max_rows=settings.max_rows)
        for model in models:
            model.cost  # noqa: B018 - measured here, where nobody's call waits for it
        return models

    def _add_port(self, listen: str, security: Security | None) -> int:
        try:
            if security is None:
                return self._server.add_insecure_port(listen)
            return self._server.add_secure_port(listen, security.credentials())
        except RuntimeError as error:
            raise OSError(f"{listen}: cannot listen there ({error}); is the port taken?") from error

    async def _controlled(self, socket: Path) -> grpc.aio.Server:
        """A server of impairments only, on a Unix socket."""
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((impairment_handler(self._impairments),))
        try:
            server.add_insecure_port(f"unix:{socket}")
        except RuntimeError as error:
            raise OSError(f"impairment socket {socket}: cannot listen there ({error}); is its folder there?") from error
        await server.start()
        return server

    async def _say(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)


def _options(message_bytes: int, calls: int | None) -> list[tuple[str, int]]:
    """Channel arguments that make a connection behave like a queue.

    Large frames keep the requests of one connection in the order they were sent. So does a window larger than any
    backlog: where it is used up, gRPC gives every request in turn a part of what is granted next, and those sent later
    overtake. Without bandwidth probes nothing but requests and their acknowledgements is on the wire.
    """
    # gRPC's own count is of calls that it has not put away yet, which a client cannot know: it refused calls within the
    # limit. Without that protection it counts as HTTP/2 does.
    limit = [] if calls is None else [("grpc.max_concurrent_streams", calls), ("grpc.http.overload_protection", 0)]
    return [
        *limit,
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
        ("grpc.http2.max_frame_size", _LARGEST_FRAME_BYTES),
        ("grpc.http2.lookahead_bytes", max(message_bytes, _WINDOW_BYTES)),
        ("grpc.http2.bdp_probe", 0),
    ]
