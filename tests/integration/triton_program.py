"""Drives servers with Triton's client, in that client's environment, and prints what it saw as one JSON object.

`triton_program.py JSON` knows nothing of them but what that object names: `open`, a server for everybody, `closed`, one
that lives and refuses, and `guarded`, one with shares that asks for a certificate (`authority`, `certificate`, `key`);
and the names of their models.
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

MODEL, TEXT = "digits-small", "text-small"
LONG_S = 30.0
LONGEST = 1024
"""As many bytes as the model of text generates at most; computing them takes much longer than any deadline here."""
HURRY_S = 0.02
HURRY_US = 20_000


def inputs(module: Any = triton, rows: int = 1, width: int = 64, datatype: str = "FP32") -> list[Any]:
    tensor = module.InferInput("pixels", [rows, width], datatype)
    values = np.arange(rows * width, dtype={"FP32": "<f4", "FP64": "<f8"}[datatype])
    tensor.set_data_from_numpy(values.reshape(rows, width))
    return [tensor]


def words(module: Any = triton, count: int = LONGEST) -> list[Any]:
    found = []
    for name, array in (("context", np.frombuffer(b"The data ", np.uint8)), ("count", np.array([count], np.int32))):
        tensor = module.InferInput(name, list(array.shape), "UINT8" if name == "context" else "INT32")
        tensor.set_data_from_numpy(array)
        found.append(tensor)
    return found


def told(error: InferenceServerException) -> list[str]:
    return [str(error.status()), error.message()]


def refused(call: Callable[[], Any]) -> str:
    try:
        call()
    except InferenceServerException as error:
        return str(error.status())
    return "answered"


def refusal(call: Callable[[], Any]) -> list[str]:
    """The status and the words, where who said it matters."""
    try:
        call()
    except InferenceServerException as error:
        return told(error)
    return ["answered", ""]


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
        "too many rows": refused(lambda: client.infer(MODEL, inputs(rows=3000))),
        "metadata": refused(lambda: client.get_model_metadata("digits-huge")),
        "config": refused(lambda: client.get_model_config("digits-huge")),
        "statistics": refused(lambda: client.get_inference_statistics("digits-huge")),
    }


def decoupled(client: triton.InferenceServerClient) -> dict[str, Any]:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error or result))
    client.async_stream_infer(TEXT, words(count=5), request_id="five", enable_empty_final_response=True)
    found = [answers.get(timeout=LONG_S).get_response() for _ in range(6)]
    client.stop_stream()
    return {
        "declared": client.get_model_config(TEXT).config.model_transaction_policy.decoupled,
        "ids": sorted({each.id for each in found}),
        "final": [each.parameters["triton_final_response"].bool_param for each in found],
        "bytes": [list(each.raw_output_contents[0]) for each in found],
        "left": answers.qsize(),
    }


def deadlines(client: triton.InferenceServerClient) -> dict[str, Any]:
    return {
        "server": refusal(lambda: client.infer(TEXT, words(), timeout=HURRY_US)),
        "client": refusal(lambda: client.infer(TEXT, words(), client_timeout=HURRY_S)),
        "enough": refused(lambda: client.infer(TEXT, words(count=2), timeout=int(LONG_S * 1e6))),
        "cancelled": cancelled(client),
        "streamed": hurried_stream(client),
        "stream": hurried_stream(client, stream_timeout=5 * HURRY_S),
        "afterwards": refused(lambda: client.infer(TEXT, words(count=2), client_timeout=LONG_S)),
    }


def cancelled(client: triton.InferenceServerClient) -> list[str]:
    answers: queue.Queue[Any] = queue.Queue()
    client.async_infer(TEXT, words(), lambda result, error: answers.put(error or result)).cancel()
    return told(answers.get(timeout=LONG_S))


def hurried_stream(client: triton.InferenceServerClient, stream_timeout: float | None = None) -> list[list[str]]:
    """What ends a request with a timeout of its own and the one behind it, or a whole stream with one."""
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error or result), stream_timeout=stream_timeout)
    client.async_stream_infer(TEXT, words(), timeout=None if stream_timeout else HURRY_US)
    if stream_timeout is None:
        client.async_stream_infer(TEXT, words(count=1))
    found: list[list[str]] = []
    while len(found) < (2 if stream_timeout is None else 1):
        answer = answers.get(timeout=LONG_S)
        if isinstance(answer, InferenceServerException):
            # A server that sees the stream's deadline first says so in the stream, before its client ends it.
            if stream_timeout is None or answer.status() is not None:
                found.append(told(answer))
        elif answer.get_response().parameters["triton_final_response"].bool_param:
            found.append(["answered", ""])
    client.stop_stream()
    return found


def certified(where: dict[str, str]) -> dict[str, Any]:
    names = {"root_certificates": "authority", "private_key": "key", "certificate_chain": "certificate"}
    return {"ssl": True} | {option: where[name] for option, name in names.items()}


def guarded(where: dict[str, str]) -> dict[str, Any]:
    target, three = where["guarded"], inputs(rows=3)
    with triton.InferenceServerClient(target, **certified(where)) as client:
        found = {
            "parameter": refused(lambda: client.infer(MODEL, three, parameters={"tenant": "alpha"})),
            "header": refused(lambda: client.infer(MODEL, three, headers={"tenant": "bravo"})),
            "nobody": refused(lambda: client.infer(MODEL, three)),
            "no text": refused(lambda: client.infer(MODEL, three, parameters={"tenant": 5})),
            "stream": tenants_of_a_stream(client),
        }
    with triton.InferenceServerClient(target, ssl=True, root_certificates=where["authority"]) as client:
        found["no certificate"] = refused(lambda: client.infer(MODEL, three))
    with triton.InferenceServerClient(target) as client:
        found["no tls"] = refused(lambda: client.infer(MODEL, three))
    return found


def tenants_of_a_stream(client: triton.InferenceServerClient) -> list[str]:
    """A stream whose metadata names one tenant, and whose second request names another."""
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error or result), headers={"tenant": "bravo"})
    client.async_stream_infer(MODEL, inputs(), request_id="1")
    client.async_stream_infer(MODEL, inputs(), request_id="2", parameters={"tenant": "alpha"})
    client.async_stream_infer(MODEL, inputs(), request_id="3", parameters={"tenant": "charlie"})
    found = [answers.get(timeout=LONG_S) for _ in range(3)]
    client.stop_stream()
    return [each.message() if isinstance(each, InferenceServerException) else each.get_response().id for each in found]


def closed(target: str) -> dict[str, Any]:
    with triton.InferenceServerClient(target) as client:
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model ready": client.is_model_ready(MODEL),
            "infer": refusal(lambda: client.infer(MODEL, inputs())),
            "metadata": refused(lambda: client.get_model_metadata(MODEL)),
        }


async def cooperative_errors(where: dict[str, str]) -> dict[str, str]:
    async def refused(call: Any) -> str:
        try:
            await call
        except InferenceServerException as error:
            return str(error.status())
        return "answered"

    async with (
        aio.InferenceServerClient(where["open"]) as client,
        aio.InferenceServerClient(where["closed"]) as late,
        aio.InferenceServerClient(where["guarded"], **certified(where)) as known,
    ):
        return {
            "unknown model": await refused(client.infer("digits-huge", inputs(aio))),
            "wrong shape": await refused(client.infer(MODEL, inputs(aio, width=63))),
            "server's deadline": await refused(client.infer(TEXT, words(aio), timeout=HURRY_US)),
            "client's deadline": await refused(client.infer(TEXT, words(aio), client_timeout=HURRY_S)),
            "closed": await refused(late.infer(MODEL, inputs(aio))),
            "no share": await refused(known.infer(MODEL, inputs(aio))),
            "parameter": await refused(known.infer(MODEL, inputs(aio), parameters={"tenant": "alpha"})),
            "header": await refused(known.infer(MODEL, inputs(aio), headers={"tenant": "bravo"})),
        }


async def cooperative_stream(target: str) -> list[list[Any]]:
    """A stream of text, refused in the middle: the id of each answer, whether it is the last one, and what is wrong."""

    async def requests() -> Any:
        yield {"model_name": TEXT, "inputs": words(aio, count=2), "request_id": "1"}
        yield {"model_name": "digits-huge", "inputs": inputs(aio), "request_id": "2"}
        yield {"model_name": TEXT, "inputs": words(aio, count=1), "request_id": "3"}

    found: list[list[Any]] = []
    async with aio.InferenceServerClient(target) as client:
        async for result, error in client.stream_infer(requests(), stream_timeout=LONG_S):
            if error:
                found.append(["", True, error.message()])
            else:
                response = result.get_response()
                found.append([response.id, response.parameters["triton_final_response"].bool_param, ""])
    return found


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


def main(where: dict[str, str]) -> None:
    with triton.InferenceServerClient(where["open"]) as client:
        report = {
            "plain": plain(client),
            "asynchronous": asynchronous(client),
            "streaming": streaming(client),
            "errors": errors(client),
            "decoupled": decoupled(client),
            "deadlines": deadlines(client),
        }
    report |= {"guarded": guarded(where), "closed": closed(where["closed"]), "messages": described()}
    for name, coroutine in (
        ("aio", cooperative(where["open"])),
        ("aio errors", cooperative_errors(where)),
        ("aio stream", cooperative_stream(where["open"])),
    ):
        report[name] = asyncio.run(coroutine)
    print(json.dumps(report))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
