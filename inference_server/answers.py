"""Messages that carry what was computed; when and in what order they are sent is for the calls to decide."""

from __future__ import annotations

from collections.abc import Mapping

from inference_server import tensors
from inference_server.generated import open_inference_pb2 as pb
from inference_server.protocol import IMPAIRED
from inference_server.tensors import Array
from inference_server.workers import Answer, Job


def response_to(request: pb.ModelInferRequest, job: Job, answer: Answer) -> pb.ModelInferResponse:
    """The answer as a message."""
    response = response_with(request, job, answer.outputs)
    answer.stamps.write(response.parameters)
    if answer.impaired:
        response.parameters[IMPAIRED].string_param = ",".join(answer.impaired)
        answer.lost.write(response.parameters)
    return response


def response_with(request: pb.ModelInferRequest, job: Job, outputs: Mapping[str, Array]) -> pb.ModelInferResponse:
    """A message with outputs, in the form of the request."""
    response = pb.ModelInferResponse(model_name=job.model.name, model_version=job.model.version, id=request.id)
    wanted = tensors.wanted_outputs(request, job.model.outputs)
    tensors.put_outputs(response, wanted, outputs, raw=bool(request.raw_input_contents))
    return response
