"""The calls of the protocol: checks a request, queues it, waits, answers; every refusal with the status it deserves.

One event loop serves the network; what else it does is for `workers` to say. Inferences take and give plain bytes, so
that the first stamp is taken before a message is parsed, and a message that cannot be parsed is the client's mistake
rather than ours. How many inferences share one call is `streams`' business, what Triton asks beside them `triton`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import grpc
import numpy as np

from inference_server import __version__, answers, batches, tensors, triton
from inference_server.direct import ROWS
from inference_server.errors import InferenceError, InvalidRequestError, NotFoundError, UnavailableError
from inference_server.forms import Form, Forms
from inference_server.generated import open_inference_pb2 as pb
from inference_server.messages import parameter, parsed, timeout_ns
from inference_server.models import Model
from inference_server.protocol import SERVICE, TENANT, Stamps
from inference_server.scheduler import EVERYBODY_ELSE, Scheduler
from inference_server.statistics import Execution, Statistics
from inference_server.streams import Stream
from inference_server.tensors import DTYPES, Array
from inference_server.triton import Serving
from inference_server.workers import LIGHT_S, Answer, Job, Workers

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

NAME = "tail-latency-testbed"
_SURELY = 0.5
"""The part of its expected work, the least of several measurements, that no computation is ever below."""
EXTENSIONS = ("server_stamps", "tenant_shares", "model_configuration", "statistics", "model_repository")


class InferenceService:
    """All calls over one scheduler.

    Attributes:
        accepting: False while models load and once the server drains.
        models: What is served, by name; filled when loading is done.
        statistics: What has been done.
    """

    def __init__(self, scheduler: Scheduler[Job], workers: Workers, statistics: Statistics, serving: Serving) -> None:
        self.accepting = False
        self.models: Mapping[str, Model] = {}
        self.statistics = statistics
        self._serving = serving
        self._costs: Mapping[str, Callable[[Mapping[str, Array]], float]] = {}
        self._forms = Forms()
        self._scheduler = scheduler
        self._workers = workers
        # In the order in which they come: nobody has a share of the workers, and no batch waits for more.
        self._in_order = scheduler.shares == {EVERYBODY_ELSE} and serving.batch_delay_s == 0
        self._unanswered = 0
        self._all_answered = asyncio.Event()

    def serve(self, models: Sequence[Model]) -> None:
        """Serve these models from now on."""
        self._costs = {model.name: model.cost for model in models}
        self.models = {model.name: model for model in models}
        self._forms.clear()
        self.accepting = True

    async def drain(self, longest_s: float) -> None:
        """Refuse what is new, and wait until everything admitted has been answered, or for so long."""
        self.accepting = False
        self._all_answered.clear()
        if self._unanswered:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_answered.wait(), longest_s)

    def handler(self) -> grpc.GenericRpcHandler:
        """The service, to be added to a server."""
        calls: dict[str, tuple[Callable[..., Any], type[Any]]] = {
            "ServerLive": (self._live, pb.ServerLiveRequest),
            "ServerReady": (self._ready, pb.ServerReadyRequest),
            "ModelReady": (self._model_ready, pb.ModelReadyRequest),
            "ServerMetadata": (self._metadata, pb.ServerMetadataRequest),
            "ModelMetadata": (self._model_metadata, pb.ModelMetadataRequest),
            "ModelConfig": (self._model_config, pb.ModelConfigRequest),
            "ModelStatistics": (self._model_statistics, pb.ModelStatisticsRequest),
            "RepositoryIndex": (self._index, pb.RepositoryIndexRequest),
        }
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(_refusing(call, request), response_serializer=_serialised)
            for name, (call, request) in calls.items()
        }
        # The same to its client: of a stream of messages the server hears even if none comes.
        handlers["ModelInfer"] = (
            grpc.stream_unary_rpc_method_handler(self._infer_counted)
            if self._scheduler.capped
            else grpc.unary_unary_rpc_method_handler(self._infer)
        )
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def admitted(self, message: bytes, context: Context, *, streaming: bool = False) -> Job:
        """Check a request and queue it; whoever calls this awaits `computed` next.

        Args:
            message: The request, serialised.
            context: Its call.
            streaming: Whether the call can have several answers.

        Raises:
            InferenceError: It is refused; that has been counted.
        """
        received_ns = time.monotonic_ns()
        known = self._forms.find(message) if self.accepting else None
        if known is not None:
            form, name, contents = known
            with contextlib.suppress(UnicodeDecodeError):  # a mistake that protobuf words
                return self._known(form, name.decode(), contents, context, received_ns=received_ns, streaming=streaming)
        return self._parsed(message, context, received_ns, streaming=streaming)

    async def computed(self, job: Job) -> Answer:
        """Wait for the answer to a request that was admitted.

        Raises:
            InferenceError: It is refused; that has been counted.
        """
        self._unanswered += 1
        try:
            answer = await job.answer
        except asyncio.CancelledError:
            # The client hung up or its deadline passed: what has not begun shall not begin.
            self._scheduler.withdraw(job)
            code = grpc.StatusCode.DEADLINE_EXCEEDED if job.expired() else grpc.StatusCode.CANCELLED
            self._refused(job.model.name, job.tenant, code, job.received_ns)
            raise
        except InferenceError as error:
            self._refused(job.model.name, job.tenant, error.code, job.received_ns)
            raise
        finally:
            self._unanswered -= 1
            if self._unanswered == 0 and not self.accepting:
                self._all_answered.set()
        self.statistics.answered(job.model.name, self._scheduler.share_of(job.tenant), answer.stamps)
        return answer

    async def _live(self, _request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def _ready(self, _request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self.accepting)

    async def _model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        model = self.models.get(request.name)
        ready = self.accepting and model is not None and request.version in {"", model.version}
        return pb.ModelReadyResponse(ready=ready)

    async def _metadata(self, _request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=NAME, version=__version__, extensions=EXTENSIONS)

    async def _model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        model = self._model(request.name, request.version)
        response = pb.ModelMetadataResponse(name=model.name, versions=[model.version], platform=model.platform)
        for specs, into in ((model.inputs, response.inputs), (model.outputs, response.outputs)):
            for spec in specs:
                into.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        return response

    async def _model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        return pb.ModelConfigResponse(config=triton.config(self._model(request.name, request.version), self._serving))

    async def _model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        models = [self._model(request.name, request.version)] if request.name else self.models.values()
        with self.statistics.read():
            found = [triton.statistics(model, self.statistics.models[model.name]) for model in models]
        return pb.ModelStatisticsResponse(model_stats=found)

    async def _index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        models = [] if request.ready and not self.accepting else self.models.values()
        return triton.index(models, accepting=self.accepting)

    async def _infer(self, message: bytes, context: Context) -> bytes:
        try:
            if self._in_order and (found := self._at_once(message, context)) is not None:
                return found
            job = self.admitted(message, context)
            answer = await self.computed(job)
        except InferenceError as error:
            await _abort(context, error)
        return answers.encoded(job.form, job.id.encode(), answer)

    async def _infer_counted(self, _messages: AsyncIterator[bytes], context: Context) -> bytes:
        """`_infer` where calls are charged: those that are given up before they are read are told from the others."""
        message: Any = grpc.aio.EOF
        try:
            message = await context.read()
        finally:
            if message is grpc.aio.EOF:
                self._workers.calls.unread()
        if message is grpc.aio.EOF:
            await _abort(context, InvalidRequestError("found no message, expected a ModelInferRequest"))
        return await self._infer(message, context)

    async def _stream(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async with contextlib.aclosing(Stream(self, context).answers(requests)) as found:
            async for answer in found:
                yield answer

    def _at_once(self, message: bytes, context: Context) -> bytes | None:
        """The answer to a request that is light, of a known form, and would be the next to be computed; else None.

        It would be where nothing waits and a worker rests, as long as requests are computed in the order in which they
        come. Whatever is wrong with it, the way of all others finds out again.
        """
        received_ns = time.monotonic_ns()
        if not (self.accepting and self._workers.free) or (known := self._forms.find(message)) is None:
            return None
        form, name, contents = known
        direct = form.model.direct
        if not (form.light and form.direct and name.isascii()) or direct is None:
            return None
        deadline_ns = _deadline_ns(form.timeout_ns, context, received_ns)
        started_ns = time.monotonic_ns()
        if deadline_ns is not None and deadline_ns - form.least_ns <= started_ns:
            return None
        try:
            found, ready_ns, computed_ns = direct.one(contents)
        except RuntimeError:
            return None
        finished_ns = time.monotonic_ns()
        stamps = Stamps(received_ns, started_ns, started_ns, finished_ns)
        execution = Execution(ready_ns - started_ns, computed_ns - ready_ns, finished_ns - computed_ns)
        self.statistics.executed(form.model.name, execution, requests=1, rows=form.rows)
        self.statistics.answered(form.model.name, EVERYBODY_ELSE, stamps)
        return answers.encoded(form, name, Answer({}, stamps, contents=found))

    def _known(
        self,
        form: Form,
        name: str,
        contents: memoryview,
        context: Context,
        *,
        received_ns: int,
        streaming: bool,
    ) -> Job:
        """Queue a request of a form that has been checked."""
        tenant = _named(context) if form.tenant is None else form.tenant
        inputs: memoryview | Mapping[str, Array] = contents
        if streaming or not form.direct:
            (spec,) = form.model.inputs
            inputs = {spec.name: np.frombuffer(contents, DTYPES[spec.datatype]).reshape(form.shape)}
        try:
            return self._queued(form, tenant, name, inputs, context, received_ns=received_ns)
        except InferenceError as error:
            self._refused(form.model.name, tenant, error.code, received_ns)
            raise

    def _parsed(self, message: bytes, context: Context, received_ns: int, *, streaming: bool) -> Job:
        """Check a request by what protobuf reads in it, queue it, and remember its form."""
        request = pb.ModelInferRequest()
        tenant = EVERYBODY_ELSE
        try:
            parsed(message, request)
            named = parameter(request, TENANT, "string_param")
            tenant = _named(context) if named is None else named
            form, inputs = self._form(request, named)
            parts = streaming and form.model.decoupled
            job = self._queued(form, tenant, request.id, inputs, context, received_ns=received_ns, parts=parts)
        except InferenceError as error:
            name = request.model_name if request.model_name in self.models else ""
            self._refused(name, tenant, error.code, received_ns)
            raise
        self._forms.learn(message, form)
        return job

    def _form(self, request: pb.ModelInferRequest, tenant: str | None) -> tuple[Form, Mapping[str, Array]]:
        model = self._model(request.model_name, request.model_version)
        inputs = tensors.inputs_of(request, model.inputs)
        outputs = tensors.wanted_outputs(request, model.outputs)
        rows = model.rows(inputs)
        work_s = self._costs[model.name](inputs)
        raw, single = bool(request.raw_input_contents), len(model.inputs) == 1
        form = Form(
            model=model,
            tenant=tenant,
            timeout_ns=timeout_ns(request),
            outputs=tuple(outputs),
            raw=raw,
            shape=inputs[model.inputs[0].name].shape if single else (),
            rows=rows,
            batch=batches.key(model, inputs) if self._serving.batch_rows > 1 else None,
            work_s=work_s,
            light=model.steady and work_s <= LIGHT_S,
            direct=raw and single and rows <= ROWS and model.direct is not None and tuple(outputs) == model.outputs,
            least_ns=int(_SURELY * work_s * 1e9) if model.steady else 0,
        )
        return form, inputs

    def _queued(
        self,
        form: Form,
        tenant: str,
        name: str,
        inputs: Mapping[str, Array] | memoryview,
        context: Context,
        *,
        received_ns: int,
        parts: bool = False,
    ) -> Job:
        deadline_ns = _deadline_ns(form.timeout_ns, context, received_ns)
        job = Job(
            form,
            tenant,
            name,
            inputs,
            asyncio.get_running_loop().create_future(),
            deadline_ns=deadline_ns,
            received_ns=received_ns,
            queued_ns=time.monotonic_ns(),
            parts=asyncio.Queue() if parts else None,
        )
        if self._scheduler.capped:
            job.work_s += self._workers.calls.of(form)
        self._workers.submit(job)
        return job

    def _refused(self, model: str, tenant: str, code: grpc.StatusCode, received_ns: int) -> None:
        share = self._scheduler.share_of(tenant)
        self.statistics.refused(model, share, code, time.monotonic_ns() - received_ns)

    def _model(self, name: str, version: str) -> Model:
        if not self.accepting:
            raise UnavailableError("the server still loads its models, or drains before it ends; try again later")
        model = self.models.get(name)
        if model is None:
            raise NotFoundError(f"model {name!r}: found no such model, expected one of {sorted(self.models)}")
        if version not in {"", model.version}:
            raise NotFoundError(f"model {name!r}: found no version {version!r}, expected {model.version!r} or none")
        return model


def _refusing(call: Callable[[Any], Any], kind: type[Any]) -> Callable[[bytes, Context], Any]:
    """A call that takes messages of this kind, whose errors become the status they name."""

    async def answered(message: bytes, context: Context) -> Any:
        try:
            return await call(parsed(message, kind()))
        except InferenceError as error:
            await _abort(context, error)

    return answered


async def _abort(context: Context, error: InferenceError) -> NoReturn:
    """End a call with its status, unless it has ended by itself: the deadline may have passed on both sides at once."""
    if context.done():
        raise asyncio.CancelledError
    try:
        await context.abort(error.code, str(error))
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from error


def _deadline_ns(timeout_ns: int | None, context: Context, received_ns: int) -> int | None:
    """The earlier of the call's deadline and the request's own."""
    remaining_s = context.time_remaining()
    own_ns = None if timeout_ns is None else received_ns + timeout_ns
    if remaining_s is None:
        return own_ns
    deadline_ns = time.monotonic_ns() + int(remaining_s * 1e9)
    return deadline_ns if own_ns is None else min(deadline_ns, own_ns)


def _named(context: Context) -> str:
    """The tenant that a call's metadata names, else everybody else."""
    for key, value in context.invocation_metadata() or ():
        if key == TENANT:
            return value if isinstance(value, str) else value.decode()
    return EVERYBODY_ELSE


def _serialised(response: Any) -> bytes:
    return bytes(response.SerializeToString())
