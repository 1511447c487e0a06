"""Inference servers to measure: ours, a bare echo and peers, each in processes that are started, awaited and ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import grpc

from benchmarks.peers import environment
from inference_server.generated import open_inference_pb2 as pb
from inference_server.protocol import method

ROOT = Path(__file__).resolve().parents[2]
SMALL, MEDIUM, LARGE = "digits-small", "digits-medium", "digits-large"
"""Models that the server has."""

MLSERVER = ("mlserver==1.7.1",)
PYTRITON = ("nvidia-pytriton==0.7.0",)
_PYTRITON_PYTHON = "/usr/bin/python3"
"""Triton brings a library of CPython of its own, which the modules of 3.11.2 fit and those of 3.11.7 do not."""

ECHO = """
import asyncio, json, sys
import grpc
answers = {name: bytes.fromhex(answer) for name, answer in json.loads(sys.argv[2]).items()}
work = sys.argv[3] if len(sys.argv) > 3 else ""
def echo(answer):
    async def answered(message, context): return answer
    async def computed(message, context):
        direct.one(memoryview(message)[begin:end])
        return answer
    async def waited(message, context):
        future = loop.create_future()
        loop.call_soon(future.set_result, answer)
        return await future
    async def read(message, context):
        request = pb.ModelInferRequest.FromString(message)
        pixels = request.inputs[0]
        found = (request.model_name, request.parameters["tenant"].string_param, pixels.name, pixels.datatype,
                 tuple(pixels.shape), request.raw_input_contents[0])
        response = pb.ModelInferResponse(model_name=found[0], model_version="1", id=request.id)
        for name in ("received_ns", "queued_ns", "started_ns", "finished_ns"):
            response.parameters[name].int64_param = 1 << 48
        response.outputs.add(name="logits", datatype="FP32", shape=[1, 10])
        response.raw_output_contents.append(bytes(40))
        return response.SerializeToString()
    handlers = {"": answered, "forward": computed, "turn": waited, "protobuf": read}
    return grpc.unary_unary_rpc_method_handler(handlers[work])
async def main():
    global loop
    loop = asyncio.get_running_loop()
    server = grpc.aio.server()
    handlers = {name: echo(answer) for name, answer in answers.items()}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    port = server.add_insecure_port(sys.argv[1] + ":0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()
if work: from inference_server.generated import open_inference_pb2 as pb
if work == "forward":
    import torch
    from inference_server import repository
    torch.set_num_threads(1)
    (model,) = repository.load(["digits-small"], None, device=torch.device("cpu"), max_rows=1)
    direct, message = model.direct, open(sys.argv[4], "rb").read()
    raw = pb.ModelInferRequest.FromString(message).raw_input_contents[0]
    begin = message.index(raw)
    end = begin + len(raw)
asyncio.run(main())
"""
"""A gRPC server that answers the bytes it was given: what is left where nothing is parsed, queued or computed.

Or one that does a part of what an inference server must before it answers them: PyTorch's calls from bytes to bytes, a
turn of the event loop, or request and answer by protobuf.
"""

RUNTIME = """
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

class Digits(MLModel):
    async def load(self):
        self.layers = np.load(self.settings.parameters.uri)
        return True

    async def predict(self, payload):
        x = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32) / np.float32(16)
        x = np.maximum(x @ self.layers["layers.0.weight"].T + self.layers["layers.0.bias"], 0)
        x = x @ self.layers["layers.2.weight"].T + self.layers["layers.2.bias"]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("logits", x)])
"""
"""digits-small for MLServer, in numpy: its environment has no PyTorch, which makes it faster if anything."""

PROXIED = """
import os, signal, sys
said = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

weights = np.load(sys.argv[1])
layers = [weights[f"layers.{k}.{part}"] for k in (0, 2) for part in ("weight", "bias")]

@batch
def digits(pixels):
    x = np.maximum((pixels / np.float32(16)) @ layers[0].T + layers[1], 0)
    return {"logits": x @ layers[2].T + layers[3]}

port = int(sys.argv[2])
config = TritonConfig(http_address="127.0.0.1", http_port=port, grpc_address="127.0.0.1", grpc_port=port + 1,
                      allow_metrics=False)
with Triton(config=config) as triton:
    triton.run()
    triton.bind(model_name="digits-small", infer_func=digits,
                inputs=[Tensor(name="pixels", dtype=np.float32, shape=(64,))],
                outputs=[Tensor(name="logits", dtype=np.float32, shape=(10,))],
                config=ModelConfig(max_batch_size=32))
    print(port + 1, file=said, flush=True)
    signal.pause()
"""
"""digits-small for nvidia-pytriton, in numpy: Triton takes the call and passes it to the process of this program.

Whatever Triton prints goes to standard error, so that the first line is the port.
"""


@contextmanager
def process(command: list[str], **options: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process and the first line it prints; ended afterwards.

    Raises:
        RuntimeError: It ended before it said anything.
    """
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, **options)
    try:
        line = cast("IO[str]", running.stdout).readline()
        if not line:
            raise RuntimeError(f"bench: {command[:4]} ended with {running.wait()} before it was ready")
        yield running, line
    finally:
        running.terminate()
        running.wait()


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Have what is started meanwhile run on these cores."""
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)


@contextmanager
def ours(*options: str) -> Iterator[str]:
    """Our server; gives its address."""
    with ours_process(*options) as (target, _):
        yield target


@contextmanager
def ours_process(*options: str) -> Iterator[tuple[str, int]]:
    """Our server; gives its address and its process's number."""
    command = [sys.executable, "-m", "inference_server", "--listen", "127.0.0.1:0", "--device", "cpu", *options]
    with process(command, cwd=ROOT) as (running, line):
        yield str(json.loads(line)["listen"]), running.pid


@contextmanager
def echo(answers: Mapping[str, bytes], host: str = "127.0.0.1") -> Iterator[str]:
    """The bare server; gives its address.

    Args:
        answers: What it answers, by method.
        host: Where it listens.
    """
    with echo_process(answers, host) as (target, _):
        yield target


@contextmanager
def echo_process(answers: Mapping[str, bytes], host: str = "127.0.0.1", *work: str) -> Iterator[tuple[str, int]]:
    """The bare server; gives its address and its process's number.

    Args:
        answers: What it answers, by method.
        host: Where it listens.
        work: What it does before it answers (`forward`, `turn`, `protobuf`), and the file of a request; nothing by
            default.
    """
    said = json.dumps({name: answer.hex() for name, answer in answers.items()})
    with process([sys.executable, "-c", ECHO, host, said, *work], cwd=ROOT) as (running, line):
        yield f"{host}:{int(line)}", running.pid


def answers(target: str, request: Path, model: str) -> dict[str, bytes]:
    """What a server answers to a request, and to the questions that a sender asks before; without its stamps."""
    with grpc.insecure_channel(target) as channel:
        found = {
            name: channel.unary_unary(method(name))(asked, timeout=30, wait_for_ready=True)
            for name, asked in (
                ("ServerReady", b""),
                ("ModelMetadata", pb.ModelMetadataRequest(name=model).SerializeToString()),
                ("ModelInfer", request.read_bytes()),
            )
        }
    answer = pb.ModelInferResponse.FromString(found["ModelInfer"])
    answer.parameters.clear()
    return found | {"ModelInfer": answer.SerializeToString()}


@contextmanager
def mlserver(folder: Path, weights: Path, port: int) -> Iterator[str]:
    """MLServer with digits-small in its own process, no workers beside it; gives its address."""
    python = environment("mlserver", *MLSERVER)
    (folder / "digits_runtime.py").write_text(RUNTIME)
    settings = {"parallel_workers": 0, "debug": False, "host": "127.0.0.1", "grpc_port": port, "http_port": port + 1,
                "metrics_endpoint": None}  # fmt: skip
    model = {"name": "digits-small", "implementation": "digits_runtime.Digits", "parameters": {"uri": str(weights)}}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    with (folder / "mlserver.log").open("w") as log:
        running = subprocess.Popen([python.with_name("mlserver"), "start", "."], cwd=folder, stdout=log, stderr=log)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            running.terminate()
            running.wait()


@contextmanager
def pytriton(folder: Path, weights: Path, port: int) -> Iterator[str]:
    """Triton with digits-small behind it in a process of Python; gives its address."""
    python = environment("pytriton", *PYTRITON, of=_PYTRITON_PYTHON)
    with (folder / "pytriton.log").open("w") as log:
        command = [str(python), "-c", PROXIED, str(weights), str(port)]
        with process(command, cwd=folder, stderr=log) as (_, line):
            yield f"127.0.0.1:{int(line)}"
