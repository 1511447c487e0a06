"""`ModelStreamInfer`: many inferences over one call, each answered or refused in the order of the requests.

Requests are queued as they come, so they are computed like those of other calls; only their answers wait for each
other. A model that is decoupled says what it has before it is done. A refusal is a message of the stream and does not
end it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from inference_server import answers
from inference_server.errors import InferenceError
from inference_server.generated import open_inference_pb2 as pb
from inference_server.workers import Answer, Job

if TYPE_CHECKING:
    from inference_server.service import Context, InferenceService

MOST_UNANSWERED = 1024
"""Requests of one stream that may be unanswered; those beyond are not read until some are answered."""

FINAL = "triton_final_response"
"""Parameter of an answer (boolean): whether it is the request's last one."""


@dataclass(frozen=True, slots=True)
class _Admitted:
    job: Job
    answer: asyncio.Task[Answer]


class Stream:
    """One call."""

    def __init__(self, inferences: InferenceService, context: Context) -> None:
        self._service = inferences
        self._context = context
        self._room = asyncio.Semaphore(MOST_UNANSWERED)
        self._admitted: asyncio.Queue[_Admitted | bytes | None] = asyncio.Queue()
        self._computing: dict[asyncio.Task[Answer], Job] = {}

    async def answers(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Answer until the client has sent its last request, or hangs up."""
        reading = asyncio.create_task(self._read(requests))
        try:
            while (admitted := await self._admitted.get()) is not None:
                if isinstance(admitted, bytes):
                    yield admitted
                else:
                    async for answer in _answer(admitted):
                        yield answer
                self._room.release()
            await reading
        finally:
            # Where the client hung up, nothing of this call shall be computed any more. Answers are cancelled and not
            # tasks: one that has not begun would end without withdrawing its request.
            reading.cancel()
            for job in self._computing.values():
                job.answer.cancel()
            await asyncio.gather(reading, *self._computing, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        try:
            async for message in requests:
                await self._room.acquire()
                try:
                    job = self._service.admitted(message, self._context, streaming=True)
                except InferenceError as error:
                    # Not the error: its traceback would keep the whole request until its turn.
                    self._admitted.put_nowait(_refused(message, error))
                    continue
                task = asyncio.create_task(self._service.computed(job))
                self._computing[task] = job
                task.add_done_callback(self._computing.pop)
                self._admitted.put_nowait(_Admitted(job, task))
        finally:
            self._admitted.put_nowait(None)


async def _answer(admitted: _Admitted) -> AsyncIterator[bytes]:
    job = admitted.job
    try:
        while job.parts is not None and (part := await job.parts.get()) is not None:
            yield _message(answers.response_with(job.form, job.id, part), final=False)
        answer = await admitted.answer
        yield _message(answers.response_to(job.form, job.id, answer), final=True)
    except InferenceError as error:
        yield _refusal(job.model.name, job.id, error)


def _refused(message: bytes, error: InferenceError) -> bytes:
    """The refusal of a request that was never queued, with what can be read of it: its id, as a rule."""
    request = pb.ModelInferRequest()
    try:
        request.ParseFromString(message)
    except DecodeError:
        request.Clear()
    return _refusal(request.model_name, request.id, error)


def _message(response: pb.ModelInferResponse, *, final: bool) -> bytes:
    response.parameters[FINAL].bool_param = final
    return pb.ModelStreamInferResponse(infer_response=response).SerializeToString()


def _refusal(model: str, name: str, error: InferenceError) -> bytes:
    """A refusal within the stream; clients know which request it is about by the id."""
    refused = pb.ModelInferResponse(model_name=model, id=name)
    message = pb.ModelStreamInferResponse(error_message=f"[{error.code.name}] {error}", infer_response=refused)
    return message.SerializeToString()
