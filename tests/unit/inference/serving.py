"""A server in a thread of the test's own process, and a model that computes only when the test lets it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import torch
from torch import nn

from inference_server.generated.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from inference_server.models import Model
from inference_server.protocol import method
from inference_server.server import InferenceServer, Settings
from inference_server.tensors import TensorSpec

LONG_S = 30.0


class Gate(nn.Module):
    """Gives the first ten pixels as logits, once it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.open.set()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.entered.release()
        if not self.open.wait(LONG_S):
            raise RuntimeError("nobody opened the gate")
        return pixels[:, :10]

    def close(self) -> None:
        """From now on requests stop inside; `entered` then counts them from 0."""
        while self.entered.acquire(blocking=False):
            pass
        self.open.clear()


class Broken(nn.Module):
    """Fails for anything but zeros, as a model does that meets what it was not made for."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if pixels.any():
            raise RuntimeError("out of its depth")
        return pixels[:, :10]


@dataclass
class Running:
    """A server that runs, and the special models it serves beside the digit classifiers."""

    server: InferenceServer
    loop: asyncio.AbstractEventLoop
    end: asyncio.Event
    gate: Gate = field(default_factory=Gate)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.target, options=[("grpc.use_local_subchannel_pool", 1)])


@contextmanager
def serving(settings: Settings) -> Iterator[Running]:
    """Serve until the block ends, then drain; the special models are `gate` and `broken`."""
    started: list[Running] = []
    failed: list[BaseException] = []
    ready = threading.Event()

    async def main() -> None:
        async with InferenceServer(settings) as server:
            running = Running(server, asyncio.get_running_loop(), asyncio.Event())
            specials = [special("gate", running.gate), special("broken", Broken())]
            server.service.serve([*server.service.models.values(), *specials])
            started.append(running)
            ready.set()
            await running.end.wait()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failed.append(error)
            raise
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait(LONG_S)
    assert started, failed
    try:
        yield started[0]
    finally:
        started[0].gate.open.set()
        with suppress(RuntimeError):  # a loop that is closed: the test itself ended the server
            started[0].loop.call_soon_threadsafe(started[0].end.set)
        thread.join(LONG_S)
        assert not thread.is_alive()


def special(name: str, network: nn.Module) -> Model:
    inputs, outputs = (TensorSpec("pixels", "FP32", (-1, 64)),), (TensorSpec("logits", "FP32", (-1, 10)),)
    return Model(name, "1", "test", inputs, outputs, network, torch.device("cpu"), 1024)


def request(model: str = "digits-small", pixels: Any = None, **fields: Any) -> ModelInferRequest:
    """A raw request for zeros, or for these pixels."""
    array = np.zeros((1, 64), dtype="<f4") if pixels is None else np.asarray(pixels, dtype="<f4")
    message = ModelInferRequest(model_name=model, raw_input_contents=[array.tobytes()], **fields)
    message.inputs.add(name="pixels", datatype="FP32", shape=array.shape)
    return message


def infer(channel: grpc.Channel) -> Any:
    return channel.unary_unary(
        method("ModelInfer"),
        request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
        response_deserializer=ModelInferResponse.FromString,
    )


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)
