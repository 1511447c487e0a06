"""Servers to measure and clients that measure them: processes that are started, awaited and ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import grpc
import numpy as np
import numpy.typing as npt

from benchmarks.peers import environment
from inference_server.digits import held_out
from inference_server.generated import open_inference_pb2 as pb
from inference_server.protocol import method
from testbed.scenario.model import ModelSize, PoissonArrivals
from testbed.telemetry import host
from testbed.traffic.request_records import RequestRecord, RequestSpec
from testbed.traffic.request_schedules import RequestSchedule, request_schedule
from testbed.traffic.request_wire import RequestMaker

ROOT = Path(__file__).resolve().parents[2]
SMALL, MEDIUM, LARGE = "digits-small", "digits-medium", "digits-large"
"""Models that the server has."""
INFER = "/inference.GRPCInferenceService/ModelInfer"
_AHEAD_S = 1.0
_SCHEDULED_WITHIN_S = 0.01
"""How far from its time a request of LoadGen may be handed over in the middle of all."""

MLSERVER = ("mlserver==1.7.1",)
PYTRITON = ("nvidia-pytriton==0.7.0",)
_PYTRITON_PYTHON = "/usr/bin/python3"
"""Triton brings a library of CPython of its own, which the modules of 3.11.2 fit and those of 3.11.7 do not."""
LOADGEN = ("mlcommons_loadgen==6.0.17", "grpcio==1.85.1")

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

CLOSED = """
import asyncio, json, sys, time
import grpc
target, method, path, calls, seconds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5])
message = open(path, "rb").read()
async def main():
    taken, answered = [], 1
    async with grpc.aio.insecure_channel(target) as channel:
        infer = channel.unary_unary(method)
        answer = await infer(message, timeout=30, wait_for_ready=True)
        begin = time.perf_counter() + 1.0
        end = begin + seconds
        async def ask():
            nonlocal answered
            while (before := time.perf_counter()) < end:
                await infer(message, timeout=30)
                answered += 1
                if before >= begin: taken.append(time.perf_counter() - before)
        await asyncio.gather(*(ask() for _ in range(calls)))
    taken.sort()
    at = lambda q: taken[min(len(taken) - 1, int(q * len(taken)))] * 1e3
    print(json.dumps({"per_s": len(taken) / seconds, "p50_ms": at(.5), "p99_ms": at(.99), "answer": answer.hex(),
                      "answered": answered}))
asyncio.run(main())
"""
"""So many calls always unanswered, for so long; the first second does not count."""

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

DRIVEN = """
import json, os, re, select, sys, tempfile, threading, time
try: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
except PermissionError: pass
import mlperf_loadgen as lg
target, method, path = sys.argv[1:4]
rate, seconds, seed = float(sys.argv[4]), float(sys.argv[5]), int(sys.argv[6])
sys.path.insert(0, sys.argv[7])
from testbed.traffic.grpc_connection import Connection
message = open(path, "rb").read()
connection, using, over, issued = Connection(target), threading.Lock(), threading.Event(), []
connection.ask(method, message, 30)
def complete(sample):
    return lambda call: lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, 0, 0)])
def issue(samples):
    with using:
        for sample in samples:
            issued.append(time.monotonic_ns())
            connection.begin(method, message, time.monotonic_ns() + 30 * 10**9, complete(sample))
def serve():
    while not over.is_set():
        select.select([connection], [], [], .05)
        with using: connection.serve(0)
serving = threading.Thread(target=serve)
serving.start()
sut = lg.ConstructSUT(issue, lambda: None)
qsl = lg.ConstructQSL(64, 64, lambda _: None, lambda _: None)
wanted = lg.TestSettings()
wanted.scenario, wanted.mode = lg.TestScenario.Server, lg.TestMode.PerformanceOnly
wanted.server_target_qps, wanted.server_target_latency_ns = rate, 10**9
wanted.min_duration_ms = wanted.max_duration_ms = int(seconds * 1000)
wanted.min_query_count = int(rate * seconds * .8)
wanted.schedule_rng_seed = seed
print("ready", flush=True)
start_ns = json.loads(sys.stdin.readline())["start_monotonic_ns"]
time.sleep(max(0, start_ns - time.monotonic_ns()) / 1e9)
with tempfile.TemporaryDirectory() as folder:
    log = lg.LogSettings()
    log.enable_trace = False
    log.log_output.outdir = folder
    lg.StartTestWithLogSettings(sut, qsl, wanted, log)
    text = open(folder + "/mlperf_log_summary.txt").read()
over.set()
serving.join()
found = {name: float(ns) / 1e6 for name, ns in re.findall(r"([0-9.]+) percentile latency \\(ns\\)\\s*: (\\d+)", text)}
print(json.dumps({"ms": {"p50": found["50.00"], "p99": found["99.00"], "p99.9": found["99.90"]}, "issued_ns": issued}))
"""
"""MLPerf LoadGen in its server scenario (Poisson arrivals, latencies from the scheduled times), with requests of ours.

They go over a connection of our sender's kind, from a process of its priority. With gRPC's client, whose threads take
longer than the server, the clients would be compared and not what schedules and times their calls.
"""


def message(model: str, images: int, tenant: str = "alpha") -> bytes:
    """A request for the first images put aside."""
    maker = RequestMaker(tenant, model, images, held_out())
    return maker.message(0, 0, 0)


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
def server(*options: str) -> Iterator[str]:
    """Our server; gives its address."""
    with server_process(*options) as (target, _):
        yield target


@contextmanager
def server_process(*options: str) -> Iterator[tuple[str, int]]:
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


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Have what is started meanwhile run on these cores."""
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)


def answer(target: str, request: Path) -> bytes:
    """What a server answers."""
    return bytes.fromhex(closed(target, request, calls=1, seconds=0.1)["answer"])


def closed(target: str, request: Path, *, calls: int, seconds: float) -> dict[str, Any]:
    """Drive a server with so many calls unanswered at any time."""
    arguments = [target, INFER, str(request), str(calls), str(seconds)]
    run = subprocess.run([sys.executable, "-c", CLOSED, *arguments], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def capacity(folder: Path, target: str, model: str, images: int) -> float:
    """Requests a second that the server computes, one after another without a pause."""
    request = folder / "capacity"
    request.write_bytes(message(model, images))
    return float(closed(target, request, calls=2, seconds=3.0)["per_s"])


@dataclass(frozen=True)
class Driven:
    """What LoadGen did.

    Attributes:
        time_s: When its requests were due, from the first on, float64[n].
        issued_s: When each was handed over, on the same clock but for a constant, float64[n].
        ms: Quantiles of its latencies, by `p50`, `p99` and `p99.9`.
    """

    time_s: npt.NDArray[np.float64]
    issued_s: npt.NDArray[np.float64]
    ms: Mapping[str, float]

    @property
    def late_s(self) -> npt.NDArray[np.float64]:
        """How much later than the earliest each request was handed over, float64[n]."""
        late_s = self.issued_s - self.time_s
        return late_s - late_s.min()


class LoadGen:
    """MLPerf LoadGen with requests of ours: ready when made, sending once started."""

    def __init__(self, target: str, request: Path, *, rate: float, seconds: float, seed: int) -> None:
        python = environment("loadgen", *LOADGEN)
        arguments = [target, INFER, str(request), str(rate), str(seconds), str(seed), str(ROOT)]
        self._rate, self._seed = rate, seed
        self._entered = process([str(python), "-I", "-c", DRIVEN, *arguments])
        self._process, _ = self._entered.__enter__()

    def start(self, start_ns: int) -> None:
        """Begin at this time of the monotonic clock."""
        _begin(self._process, start_ns)

    def driven(self) -> Driven:
        """Wait for the end, and read what it did.

        Raises:
            RuntimeError: It did not end well, or did not send when its seed says.
        """
        said, _ = self._process.communicate()
        self._entered.__exit__(None, None, None)
        if self._process.returncode != 0:
            raise RuntimeError(f"bench: LoadGen ended with {self._process.returncode}")
        found = json.loads(said.splitlines()[-1])
        issued_ns = np.array(found["issued_ns"], dtype=np.int64)
        due_s = poisson_of_loadgen(self._rate, self._seed, issued_ns.size)
        driven = Driven(due_s, (issued_ns - issued_ns[0]) / 1e9, found["ms"])
        if (late_s := float(np.median(driven.late_s))) > _SCHEDULED_WITHIN_S:
            raise RuntimeError(
                f"bench: LoadGen sent {late_s:.3f} s later than its seed {self._seed} says, median of its requests"
            )
        return driven


def poisson_of_loadgen(rate: float, seed: int, count: int) -> npt.NDArray[np.float64]:
    """When LoadGen's server scenario sends, s from the first request on, float64[count].

    It adds up what libstdc++'s `exponential_distribution` makes of a `mt19937`: `-log(1 - u) / rate`, where u is made
    of two of its numbers, the lower half first. numpy seeds its own in the same way.
    """
    halves = np.random.RandomState(seed).randint(0, 1 << 32, (max(0, count - 1), 2), dtype=np.uint32).astype(np.float64)
    uniform = (halves[:, 0] + halves[:, 1] * 2.0**32) / 2.0**64
    gaps_ns = np.floor(-np.log(1.0 - uniform) / rate * 1e9)
    return np.concatenate(([0.0], np.cumsum(gaps_ns))) / 1e9


def like_loadgen(rate: float, seconds: float, seed: int, message_bytes: int) -> RequestSchedule:
    """Requests for a sender of ours at the times at which LoadGen would send from this seed."""
    time_s = poisson_of_loadgen(rate, seed, int(rate * seconds + 10 * (rate * seconds) ** 0.5) + 1)
    time_s = time_s[time_s < seconds]
    return RequestSchedule(time_s, np.full(time_s.size, message_bytes), np.zeros(time_s.size, np.int64))


class Sender:
    """One of our senders: ready when made, sending once started."""

    def __init__(
        self,
        folder: Path,
        name: str,
        target: str,
        *,
        model: str,
        images: int,
        rate: float,
        seconds: float,
        deadline_s: float,
        seed: int,
        schedule: RequestSchedule | None = None,
        kept: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]] | None = None,
    ) -> None:
        maker = RequestMaker(name, model, images, held_out())
        drawn = schedule or request_schedule(
            PoissonArrivals(rate, 8), ModelSize(), maker, seed=seed, duration_s=seconds
        )
        if kept is not None:
            drawn = drawn.take(kept(drawn.time_s))
        self._result = folder / f"{name}.npz"
        drawn.save(folder / f"{name}.schedule.npz")
        spec = RequestSpec(
            tenant=1,
            name=name,
            target=target,
            model=model,
            images=images,
            schedule=str(folder / f"{name}.schedule.npz"),
            result=str(self._result),
            clock_offset_ns=host.clock_offset_ns(),
            deadline_s=deadline_s,
        )
        spec.save(folder / f"{name}.json")
        command = [sys.executable, "-m", "testbed.traffic.requests", str(folder / f"{name}.json")]
        self._entered = process(command, cwd=ROOT)
        self._process, _ = self._entered.__enter__()

    def start(self, after_s: float = 0.0) -> None:
        """Begin the window in a moment, or so much later."""
        self.start_at(in_a_moment(after_s))

    def start_at(self, start_ns: int) -> None:
        """Begin the window at this time of the monotonic clock."""
        _begin(self._process, start_ns)

    def record(self) -> RequestRecord:
        """Wait for the end, and read what became of every request."""
        self._process.wait()
        self._entered.__exit__(None, None, None)
        return RequestRecord.load(self._result)


def records_of(*senders: Sender) -> list[RequestRecord]:
    """Start these together, and read what became of the requests of each."""
    for sender in senders:
        sender.start()
    return [sender.record() for sender in senders]


def in_a_moment(after_s: float = 0.0) -> int:
    """A time of the monotonic clock, ns, at which all who are told now are ready to begin."""
    return time.monotonic_ns() + int((_AHEAD_S + after_s) * 1e9)


def _begin(waiting: subprocess.Popen[str], start_ns: int) -> None:
    print(json.dumps({"start_monotonic_ns": start_ns}), file=cast("IO[str]", waiting.stdin), flush=True)
