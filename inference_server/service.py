"""The calls of the protocol: checks a request, queues it, waits, answers; every refusal with the status it deserves.

One event loop serves the network and never computes. `ModelInfer` takes and gives plain bytes, so that the first stamp
is taken before a message is parsed, and a message that cannot be parsed is the client's mistake rather than ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from inference_server import __version__, tensors
from inference_server.errors import InferenceError, InvalidRequestError, NotFoundError, UnavailableError
from inference_server.generated.open_inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    ServerLiveRequest,
    ServerLiveResponse,
    ServerMetadataRequest,
    ServerMetadataResponse,
    ServerReadyRequest,
    ServerReadyResponse,
)
from inference_server.models import Cost, Model
from inference_server.protocol import SERVICE, TENANT
from inference_server.scheduler import EVERYBODY_ELSE, Scheduler
from inference_server.workers import Answer, Job

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

NAME = "tail-latency-testbed"
EXTENSIONS = ("server_stamps", "tenant_shares")


class InferenceService:
    """All six calls over one scheduler.

    Attributes:
        accepting: False while models load and once the server drains.
        models: What is served, by name; filled when loading is done.
    """

    def __init__(self, scheduler: Scheduler[Job]) -> None:
        self.accepting = False
        self.models: Mapping[str, Model] = {}
        self._costs: Mapping[str, Cost] = {}
        self._scheduler = scheduler
        self._unanswered = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def serve(self, models: Sequence[Model]) -> None:
        """Serve these models from now on."""
        self._costs = {model.name: model.measure_cost() for model in models}
        self.models = {model.name: model for model in models}
        self.accepting = True

    async def drain(self, longest_s: float) -> None:
        """Refuse what is new, and wait until everything admitted has been answered, or for so long."""
        self.accepting = False
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), longest_s)

    def handler(self) -> grpc.GenericRpcHandler:
        """The service, to be added to a server."""
        calls: dict[str, tuple[Callable[..., Any], type[Any]]] = {
            "ServerLive": (self._live, ServerLiveRequest),
            "ServerReady": (self._ready, ServerReadyRequest),
            "ModelReady": (self._model_ready, ModelReadyRequest),
            "ServerMetadata": (self._metadata, ServerMetadataRequest),
            "ModelMetadata": (self._model_metadata, ModelMetadataRequest),
        }
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(
                call, request_deserializer=request.FromString, response_serializer=_serialised
            )
            for name, (call, request) in calls.items()
        }
        handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self._infer)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    async def _live(self, _request: ServerLiveRequest, _context: Context) -> ServerLiveResponse:
        return ServerLiveResponse(live=True)

    async def _ready(self, _request: ServerReadyRequest, _context: Context) -> ServerReadyResponse:
        return ServerReadyResponse(ready=self.accepting)

    async def _model_ready(self, request: ModelReadyRequest, _context: Context) -> ModelReadyResponse:
        model = self.models.get(request.name)
        return ModelReadyResponse(ready=self.accepting and model is not None and request.version in {"", model.version})

    async def _metadata(self, _request: ServerMetadataRequest, _context: Context) -> ServerMetadataResponse:
        return ServerMetadataResponse(name=NAME, version=__version__, extensions=EXTENSIONS)

    async def _model_metadata(self, request: ModelMetadataRequest, context: Context) -> ModelMetadataResponse:
        try:
            model = self._model(request.name, request.version)
        except InferenceError as error:
            await context.abort(error.code, str(error))
        response = ModelMetadataResponse(name=model.name, versions=[model.version], platform=model.platform)
        for specs, into in ((model.inputs, response.inputs), (model.outputs, response.outputs)):
            for spec in specs:
                into.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        return response

    async def _infer(self, message: bytes, context: Context) -> bytes:
        received_ns = time.monotonic_ns()
        try:
            request = _parsed(message)
            job = self._admitted(request, context, received_ns)
            answer = await self._computed(job)
        except InferenceError as error:
            await context.abort(error.code, str(error))
        response = ModelInferResponse(model_name=job.model.name, model_version=job.model.version, id=request.id)
        answer.stamps.write(response.parameters)
        wanted = tensors.wanted_outputs(request, job.model.outputs)
        tensors.put_outputs(response, wanted, answer.outputs, raw=bool(request.raw_input_contents))
        return response.SerializeToString()

    def _admitted(self, request: ModelInferRequest, context: Context, received_ns: int) -> Job:
        """Check a request and queue it."""
        model = self._model(request.model_name, request.model_version)
        inputs = tensors.inputs_of(request, model.inputs)
        tensors.wanted_outputs(request, model.outputs)
        rows = model.rows(inputs)
        remaining_s = context.time_remaining()
        job = Job(
            tenant=_tenant(request, context),
            work_s=self._costs[model.name].of(rows),
            deadline_ns=None if remaining_s is None else time.monotonic_ns() + int(remaining_s * 1e9),
            received_ns=received_ns,
            queued_ns=time.monotonic_ns(),
            model=model,
            inputs=inputs,
            answer=asyncio.get_running_loop().create_future(),
        )
        self._scheduler.submit(job)
        return job

    async def _computed(self, job: Job) -> Answer:
        self._unanswered += 1
        self._idle.clear()
        try:
            return await job.answer
        except asyncio.CancelledError:
            # The client hung up or its deadline passed: what has not begun shall not begin.
            self._scheduler.withdraw(job)
            raise
        finally:
            self._unanswered -= 1
            if self._unanswered == 0:
                self._idle.set()

    def _model(self, name: str, version: str) -> Model:
        if not self.accepting:
            raise UnavailableError("the server still loads its models, or drains before it ends; try again later")
        model = self.models.get(name)
        if model is None:
            raise NotFoundError(f"model {name!r}: found no such model, expected one of {sorted(self.models)}")
        if version not in {"", model.version}:
            raise NotFoundError(f"model {name!r}: found no version {version!r}, expected {model.version!r} or none")
        return model


def _parsed(message: bytes) -> ModelInferRequest:
    try:
        return ModelInferRequest.FromString(message)
    except DecodeError as error:
        raise InvalidRequestError(f"found {len(message)} bytes that are no ModelInferRequest ({error})") from error


def _tenant(request: ModelInferRequest, context: Context) -> str:
    """The tenant a request names in its parameters, else in the call's metadata, else everybody else."""
    if TENANT in request.parameters:
        return request.parameters[TENANT].string_param
    for key, value in context.invocation_metadata() or ():
        if key == TENANT:
            return value if isinstance(value, str) else value.decode()
    return EVERYBODY_ELSE


def _serialised(response: Any) -> bytes:
    return bytes(response.SerializeToString())
