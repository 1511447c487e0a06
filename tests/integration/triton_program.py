"""Drives a server with Triton's client, in that client's environment, and prints what it saw as one JSON object.

`triton_program.py HOST:PORT` knows nothing of the server but its address and the names of its models.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import aio, model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

MODEL = "digits-small"
LONG_S = 30.0


def inputs(module: Any = triton, rows: int = 1, width: int = 64, datatype: str = "FP32") -> list[Any]:
    tensor = module.InferInput("pixels", [rows, width], datatype)
    values = np.arange(rows * width, dtype={"FP32": "<f4", "FP64": "<f8"}[datatype])
    tensor.set_data_from_numpy(values.reshape(rows, width))
    return [tensor]


def refused(call: Callable[[], Any]) -> str:
    try:
        call()
    except InferenceServerException as error:
        return str(error.status())
    return "answered"


def plain(client: triton.InferenceServerClient) -> dict[str, Any]:
    config = client.get_model_config(MODEL).config
    metadata = client.get_model_metadata(MODEL)
    result = client.infer(MODEL, inputs(rows=3), request_id="seven", client_timeout=LONG_S)
    found = client.get_inference_statistics(MODEL).model_stats[0]
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(MODEL),
        "no_model_ready": client.is_model_ready("digits-huge"),
        "server": client.get_server_metadata().name,
        "inputs": [[tensor.name, tensor.datatype, list(tensor.shape)] for tensor in metadata.inputs],
        "config": [config.name, config.max_batch_size, list(config.input[0].dims), config.input[0].data_type],
        "index": sorted(model.name for model in client.get_model_repository_index().models if model.state == "READY"),
        "shape": list(result.as_numpy("logits").shape),
        "id": result.get_response().id,
        "stamped": sorted(result.get_response().parameters),
        "statistics": [found.name, found.inference_count, found.execution_count, found.inference_stats.success.count],
    }


def asynchronous(client: triton.InferenceServerClient) -> list[list[int]]:
    answers: queue.Queue[Any] = queue.Queue()
    for rows in (1, 2, 3):
        client.async_infer(MODEL, inputs(rows=rows), lambda result, error: answers.put(error or result))
    found = [answers.get(timeout=LONG_S) for _ in range(3)]
    return sorted(list(result.as_numpy("logits").shape) for result in found)


def streaming(client: triton.InferenceServerClient) -> list[str]:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error or result))
    client.async_stream_infer(MODEL, inputs(), request_id="1")
    client.async_stream_infer("digits-huge", inputs(), request_id="2")
    client.async_stream_infer(MODEL, inputs(), request_id="3")
    found = [answers.get(timeout=LONG_S) for _ in range(3)]
    client.stop_stream()
    return [str(each) if isinstance(each, InferenceServerException) else each.get_response().id for each in found]


def errors(client: triton.InferenceServerClient) -> dict[str, str]:
    output = [triton.InferRequestedOutput("labels")]
    huge = inputs(rows=1 << 16)
    return {
        "unknown model": refused(lambda: client.infer("digits-huge", inputs())),
        "unknown version": refused(lambda: client.infer(MODEL, inputs(), model_version="2")),
        "unknown output": refused(lambda: client.infer(MODEL, inputs(), outputs=output)),
        "wrong shape": refused(lambda: client.infer(MODEL, inputs(width=63))),
        "wrong datatype": refused(lambda: client.infer(MODEL, inputs(datatype="FP64"))),
        "too large": refused(lambda: client.infer(MODEL, huge)),
        "deadline": refused(lambda: client.infer(MODEL, inputs(rows=3000), client_timeout=1e-6)),
        "metadata": refused(lambda: client.get_model_metadata("digits-huge")),
        "config": refused(lambda: client.get_model_config("digits-huge")),
        "statistics": refused(lambda: client.get_inference_statistics("digits-huge")),
    }


async def cooperative(target: str) -> dict[str, Any]:
    async with aio.InferenceServerClient(target) as client:
        results = await asyncio.gather(*(client.infer(MODEL, inputs(aio, rows=rows)) for rows in (1, 2)))

        async def requests() -> Any:
            for name in ("1", "2"):
                yield {"model_name": MODEL, "inputs": inputs(aio), "request_id": name}

        streamed = [result.get_response().id async for result, error in client.stream_infer(requests()) if not error]
        return {
            "live": await client.is_server_live(),
            "ready": await client.is_model_ready(MODEL),
            "shapes": [list(result.as_numpy("logits").shape) for result in results],
            "streamed": streamed,
        }


def described() -> dict[str, dict[str, list[Any]]]:
    """Every message the client knows: number, type and kind of each field."""
    found: dict[str, dict[str, list[Any]]] = {}

    def describe(message: Any) -> None:
        found[message.full_name] = {
            field.name: [field.number, field.type, field.is_repeated] for field in message.fields
        }
        for nested in message.nested_types:
            describe(nested)

    for file in (service_pb2, model_config_pb2):
        for message in file.DESCRIPTOR.message_types_by_name.values():
            describe(message)
    return found


def main(target: str) -> None:
    with triton.InferenceServerClient(target) as client:
        report = {
            "plain": plain(client),
            "asynchronous": asynchronous(client),
            "streaming": streaming(client),
            "errors": errors(client),
        }
    print(json.dumps(report | {"aio": asyncio.run(cooperative(target)), "messages": described()}))


if __name__ == "__main__":
    main(sys.argv[1])
