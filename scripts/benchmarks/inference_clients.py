"""Clients that measure inference servers: closed loops, MLPerf LoadGen and our sender, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from benchmarks.inference_servers import ROOT, process
from benchmarks.peers import environment
from inference_server.digits import held_out
from testbed.scenario.model import ModelSize, PoissonArrivals
from testbed.telemetry import host
from testbed.traffic.request_records import RequestRecord, RequestSpec
from testbed.traffic.request_schedules import RequestSchedule, request_schedule
from testbed.traffic.request_wire import RequestMaker

INFER = "/inference.GRPCInferenceService/ModelInfer"
_AHEAD_S = 1.0
_SCHEDULED_WITHIN_S = 0.01
"""How far from its time a request of LoadGen may be handed over in the middle of all."""

LOADGEN = ("mlcommons_loadgen==6.0.17", "grpcio==1.85.1", "numpy==2.4.6", "numba==0.68.1")
"""With what our connection needs, over which it sends."""

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
    if not taken:
        sys.exit(f"bench: found no call that began in {seconds} s after the first, expected some")
    taken.sort()
    at = lambda q: taken[min(len(taken) - 1, int(q * len(taken)))] * 1e3
    print(json.dumps({"per_s": len(taken) / seconds, "p50_ms": at(.5), "p99_ms": at(.99), "answer": answer.hex(),
                      "answered": answered}))
asyncio.run(main())
"""
"""So many calls always unanswered, for so long; the first second does not count."""

DRIVEN = """
import gc, json, os, re, socket, sys, tempfile, threading, time
try: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
except PermissionError: pass
import mlperf_loadgen as lg
target, method, path = sys.argv[1:4]
rate, seconds, seed = float(sys.argv[4]), float(sys.argv[5]), int(sys.argv[6])
sys.path.insert(0, sys.argv[7])
from testbed.traffic.grpc_connection import framed
from testbed.traffic.nghttp2 import Fields, Session
from testbed.traffic.punctual import BEGUN, Left, Plan
body = framed(open(path, "rb").read())
waiting, issued, using, first, over = {}, [], threading.Lock(), threading.Event(), threading.Event()
asked = None
def nothing(*_): pass
def end(why):  # LoadGen would wait for its answers for ever
    print(f"bench: LoadGen's connection: {why}", file=sys.stderr)
    os._exit(1)
def check(stream, name, status):
    if status != b"0": end(f"found gRPC status {status.decode()}, expected 0")
def begun(kind, stream, *_):
    if kind != BEGUN: end(f"found event {kind}, expected a request that was begun")
    waiting[stream] = asked
def tell(stream, error, _):
    if error: end(f"found a stream that ended with error {error} of HTTP/2, expected an answer")
    if (sample := waiting.pop(stream)) is None: first.set()
    else: lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, 0, 0)])
host, port = target.rsplit(":", 1)
connected = socket.create_connection((host, int(port)))
connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
session = Session(names=(b"grpc-status",), on_header=check, on_data=nothing, on_close=tell, on_due=begun)
told = {":method": "POST", ":scheme": "http", ":path": method, ":authority": target, "te": "trailers",
        "content-type": "application/grpc", "user-agent": "loadgen"}
fields = Fields([(name.encode(), value.encode()) for name, value in told.items()], b"grpc-timeout")
plan = Plan(method, 0, 10**6, on_due=nothing, on_end=nothing)
def prepare(): plan.add(0, time.monotonic_ns() + 90 * 10**9, body)  # before it is asked for, and due when it is
def ask(sample):
    global asked
    asked, plan.read_ns = sample, time.monotonic_ns()
    left, unsent = session.begin_due(connected.fileno(), fields, plan, plan.read_ns + 10**9, busy=False)
    connected.sendall(unsent)
    if left not in {Left.TIME, Left.UNSENT}: end(f"found {left.name}, expected a request that was sent")
    prepare()
def issue(samples):
    with using:
        for sample in samples:
            issued.append(time.monotonic_ns())
            ask(sample)
def serve():
    try:
        while data := connected.recv(1024):
            with using:
                session.receive(data)
                connected.sendall(session.take())
    except BaseException as error: end(repr(error))
    if not over.is_set(): end("found it closed by the server, expected answers")
serving = threading.Thread(target=serve)
serving.start()
prepare()
with using:
    connected.sendall(session.take())
    ask(None)
if not first.wait(30): sys.exit("bench: found no answer to LoadGen's first request after 30 s, expected one")
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
gc.disable()
with tempfile.TemporaryDirectory() as folder:
    log = lg.LogSettings()
    log.enable_trace = False
    log.log_output.outdir = folder
    lg.StartTestWithLogSettings(sut, qsl, wanted, log)
    text = open(folder + "/mlperf_log_summary.txt").read()
over.set()
connected.shutdown(socket.SHUT_RDWR)
serving.join()
found = {name: float(ns) / 1e6 for name, ns in re.findall(r"([0-9.]+) percentile latency \\(ns\\)\\s*: (\\d+)", text)}
print(json.dumps({"ms": {"p50": found["50.00"], "p99": found["99.00"], "p99.9": found["99.90"]}, "issued_ns": issued}))
"""
"""MLPerf LoadGen in its server scenario (Poisson arrivals, latencies from the scheduled times), with requests of ours.

They are sent by the compiled code of our sender, from a process of its priority, and LoadGen is told of an answer as
soon as its last byte has been read, which is when our sender stamps it. With gRPC's client, whose threads take longer
than the server, the clients would be compared and not what schedules and times their calls.
"""


def message(model: str, images: int, tenant: str = "alpha") -> bytes:
    """A request for the first images put aside."""
    maker = RequestMaker(tenant, model, images, held_out())
    return maker.message(0, 0, 0)


def answer(target: str, request: Path) -> bytes:
    """What a server answers."""
    return bytes.fromhex(closed(target, request, calls=1, seconds=0.1)["answer"])


def closed(target: str, request: Path, *, calls: int, seconds: float) -> dict[str, Any]:
    """Drive a server with so many calls unanswered at any time."""
    arguments = [target, INFER, str(request), str(calls), str(seconds)]
    run = subprocess.run([sys.executable, "-c", CLOSED, *arguments], check=True, stdout=subprocess.PIPE, text=True)
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
        watching: bool = True,
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
        if not watching:
            spec = replace(spec, spin_ns=0)
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
