"""One tenant's open-loop sender of requests: `python -m testbed.traffic.requests SPEC.json` in the client's namespace.

Before anything is measured it makes sure that the server is ready, has the model, and answers the largest request of
the window; where not, it ends with one line that says why. Then it prints one JSON line, reads
`{"start_monotonic_ns": N}` from its standard input, begins every call at its intended time whatever became of the
earlier ones, and ends with one JSON line that sums up; every request's fate is in the record file. SIGTERM or SIGINT
end it early with what it has. If its input ends before a start, so does it.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt

from inference_server.digits import held_out
from inference_server.generated.open_inference_pb2 import (
    ModelInferResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ServerReadyRequest,
    ServerReadyResponse,
)
from inference_server.protocol import LostTime, Stamps, impaired_by, method
from testbed.errors import PreflightError
from testbed.traffic.request_records import IMPAIRMENTS, NOT_ATTEMPTED, OK, OVERDUE, SKIPPED, RequestRecord, RequestSpec
from testbed.traffic.request_schedules import RequestSchedule
from testbed.traffic.request_wire import Maker, RequestMaker, TextMaker
from testbed.traffic.schedules import load_arrays
from testbed.traffic.sender import Stop, become_punctual, leave, read_start, step_back

IntArray = npt.NDArray[np.int64]

_SLICE_S = 0.05
"""Longest sleep, so that a signal which arrives just before one is not slept through."""
_SWITCH_INTERVAL_S = 5e-5
"""A thread that has an answer in its hands, and the one that must send, wait no longer for each other than this."""
_LAST_ANSWERS_S = 2.0
"""How long after the last deadline a call may take to end; gRPC ends it at its deadline, give or take a busy host."""
_ASK_AGAIN_S = 0.1

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # One connection of its own, no bandwidth probes, nothing sent twice: what is on the wire is what was asked for.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.http2.bdp_probe", 0),
    # Answers stay in order: none waits for a part of a window that others have used up.
    ("grpc.http2.lookahead_bytes", 1 << 26),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    # A server that starts again is to be found again soon, not after the usual seconds of backing off.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]


def open_channel(target: str) -> grpc.Channel:
    """A channel whose calls share one TCP connection."""
    return grpc.insecure_channel(target, options=_OPTIONS)


def check(channel: grpc.Channel, spec: RequestSpec, maker: Maker, largest_bytes: int) -> None:
    """Make sure that the server can answer what is about to be sent.

    Args:
        channel: The channel of the window.
        spec: Whom to ask for what.
        maker: Makes the probe.
        largest_bytes: Size of the largest message of the window.

    Raises:
        PreflightError: It is not ready, does not have the model or has another one, or refuses the largest request.
    """
    where = f"server {spec.target}"
    _wait_ready(channel, spec)
    metadata: Callable[..., ModelMetadataResponse] = channel.unary_unary(
        method("ModelMetadata"),
        request_serializer=ModelMetadataRequest.SerializeToString,
        response_deserializer=ModelMetadataResponse.FromString,
    )
    probe: Callable[..., ModelInferResponse] = channel.unary_unary(
        method("ModelInfer"), response_deserializer=ModelInferResponse.FromString
    )
    try:
        found = metadata(ModelMetadataRequest(name=spec.model), timeout=spec.ready_s)
        takes = [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in found.inputs]
        if takes != maker.takes or [tensor.name for tensor in found.outputs] != [maker.gives]:
            wanted = " and ".join(f"{datatype} {shape} named {name!r}" for name, datatype, shape in maker.takes)
            raise PreflightError(
                f"{where}: model {spec.model} takes {takes}, expected {wanted} and an output named {maker.gives!r}; "
                "choose a model of that kind"
            )
        answer = probe(maker.probe(largest_bytes), timeout=spec.ready_s)
    except grpc.RpcError as error:
        raise PreflightError(
            f"{where}: found {error.code().name} ({error.details()}) when asked for model {spec.model} in "
            f"{largest_bytes} bytes, the window's largest request; expected an answer"
        ) from error
    if not maker.answered(answer):
        raise PreflightError(
            f"{where}: model {spec.model} answered a probe without the {maker.gives} it asked for; is it of that kind?"
        )


def _wait_ready(channel: grpc.Channel, spec: RequestSpec) -> None:
    ready: Callable[..., ServerReadyResponse] = channel.unary_unary(
        method("ServerReady"),
        request_serializer=ServerReadyRequest.SerializeToString,
        response_deserializer=ServerReadyResponse.FromString,
    )
    deadline_s = time.monotonic() + spec.ready_s
    reason = "it answers that it is not ready"
    while (left_s := deadline_s - time.monotonic()) > 0:
        try:
            if ready(ServerReadyRequest(), timeout=left_s, wait_for_ready=True).ready:
                return
        except grpc.RpcError as error:
            reason = f"{error.code().name} ({error.details()})"
        time.sleep(min(_ASK_AGAIN_S, max(left_s, 0.0)))
    raise PreflightError(
        f"server {spec.target}: found it not ready after {spec.ready_s:g} s: {reason}; start it, and wait for its "
        "ready line"
    )


@dataclass(eq=False)
class Calls:
    """A window's calls while they happen. Arrays are filled, not merely allocated: a page fault would be a late call.

    Attributes:
        spec: What was asked for.
        schedule: The requests.
        maker: Makes them.
        sent_ns: CLOCK_MONOTONIC when each was handed to gRPC, -1 where not.
        received_ns: CLOCK_MONOTONIC when each came back, -1 where not.
        status: See `RequestRecord`.
        request_bytes: See `RequestRecord`.
        answers: The answers as they came; they are read when the window is over.
    """

    spec: RequestSpec
    schedule: RequestSchedule
    maker: Maker
    sent_ns: IntArray = field(init=False)
    received_ns: IntArray = field(init=False)
    status: npt.NDArray[np.int16] = field(init=False)
    request_bytes: IntArray = field(init=False)
    answers: list[bytes] = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.schedule)
        self.sent_ns = np.full(n, -1, dtype=np.int64)
        self.received_ns = np.full(n, -1, dtype=np.int64)
        self.status = np.full(n, NOT_ATTEMPTED, dtype=np.int16)
        self.request_bytes = np.zeros(n, dtype=np.int64)
        self.answers = [b""] * n
        self._slots = threading.Semaphore(self.spec.in_flight)
        self._open: dict[int, grpc.Future[bytes]] = {}

    def run(self, channel: grpc.Channel, start_ns: int, stop: Stop) -> None:
        """Begin every call when it is due, the window starting at `start_ns` (CLOCK_MONOTONIC), then await the last."""
        infer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method("ModelInfer"))
        due_ns = (start_ns + np.rint(self.schedule.time_s * 1e9).astype(np.int64)).tolist()
        sizes, images = self.schedule.message_bytes.tolist(), self.schedule.first_image.tolist()
        deadline_ns = int(self.spec.deadline_s * 1e9)
        gc.disable()
        for k, due in enumerate(due_ns):
            message = self.maker.message(k, images[k], sizes[k])
            self._wait(due, stop)
            if stop.requested:
                break
            self._begin(infer, k, message, due + deadline_ns)
        gc.enable()
        self._finish(stop)

    def record(self, start_ns: int) -> RequestRecord:
        """Read the answers and put everything together."""
        n = len(self.schedule)
        server_s = np.full((n, 4), np.nan)
        correct = np.full(n, -1, dtype=np.int32)
        impaired, lost_time_s = np.zeros(n, dtype=np.uint8), np.zeros((n, 3))
        for k in np.flatnonzero(self.status == OK).tolist():
            answer = ModelInferResponse.FromString(self.answers[k])
            correct[k] = self.maker.correct(answer, int(self.schedule.first_image[k]))
            stamps = Stamps.read(answer)
            if stamps is not None:
                moments = (stamps.received_ns, stamps.queued_ns, stamps.started_ns, stamps.finished_ns)
                server_s[k] = [(moment - start_ns) / 1e9 for moment in moments]
            if kinds := impaired_by(answer):
                impaired[k] = sum(1 << bit for bit, kind in enumerate(IMPAIRMENTS) if kind in kinds)
                lost_time_s[k] = [ns / 1e9 for ns in astuple(LostTime.read(answer))]
        touched = bool(impaired.any())
        return RequestRecord(
            tenant=self.spec.tenant,
            images=self.spec.images,
            deadline_s=self.spec.deadline_s,
            start_monotonic_ns=start_ns,
            start_realtime_ns=start_ns + self.spec.clock_offset_ns,
            schedule=self.schedule,
            sent_s=_seconds(self.sent_ns, start_ns),
            received_s=_seconds(self.received_ns, start_ns),
            server_s=server_s,
            status=self.status,
            request_bytes=self.request_bytes,
            response_bytes=np.array([len(answer) for answer in self.answers], dtype=np.int64),
            correct=correct,
            impaired=impaired if touched else None,
            lost_time_s=lost_time_s if touched else None,
        )

    def _wait(self, due_ns: int, stop: Stop) -> None:
        while not stop.requested:
            left_s = (due_ns - self.spec.spin_ns - time.monotonic_ns()) / 1e9
            if left_s <= 0:
                break
            time.sleep(min(left_s, _SLICE_S))
        while time.monotonic_ns() < due_ns and not stop.requested:
            pass

    def _begin(self, infer: grpc.UnaryUnaryMultiCallable[bytes, bytes], k: int, message: bytes, until_ns: int) -> None:
        if not self._slots.acquire(blocking=False):
            self.status[k] = SKIPPED
            return
        now_ns = time.monotonic_ns()
        if now_ns >= until_ns:
            self._slots.release()
            self.status[k] = OVERDUE
            return
        self.sent_ns[k] = now_ns
        self.request_bytes[k] = len(message)
        call = infer.future(message, timeout=(until_ns - now_ns) / 1e9)
        self._open[k] = call
        call.add_done_callback(partial(self._ended, k))

    def _ended(self, k: int, call: grpc.Future[bytes]) -> None:
        """Called by gRPC from a thread of its own, or at once where a call failed before it began."""
        self.received_ns[k] = time.monotonic_ns()
        if call.cancelled():
            code = grpc.StatusCode.CANCELLED
        else:
            failure = call.exception()
            code = failure.code() if isinstance(failure, grpc.RpcError) else grpc.StatusCode.OK
        if code is grpc.StatusCode.OK:
            self.answers[k] = call.result()
        self.status[k] = code.value[0]
        del self._open[k]
        self._slots.release()

    def _finish(self, stop: Stop) -> None:
        deadline_s = time.monotonic() + self.spec.deadline_s + _LAST_ANSWERS_S
        # Asleep, not counting slots: other senders of the host may still be within their window.
        while self._open:
            if stop.requested or time.monotonic() > deadline_s:
                for call in list(self._open.values()):
                    call.cancel()
            time.sleep(_SLICE_S)


def _maker(spec: RequestSpec) -> Maker:
    if spec.tokens is None:
        return RequestMaker(spec.name, spec.model, spec.images, held_out())
    return TextMaker(spec.name, spec.model, load_arrays(Path(spec.tokens), ("tokens",))["tokens"].astype(np.int64))


def _seconds(moments_ns: IntArray, start_ns: int) -> npt.NDArray[np.float64]:
    return np.where(moments_ns >= 0, (moments_ns - start_ns) / 1e9, np.nan)


def main(arguments: list[str] | None = None) -> int:
    """Run one sender; the exit code is 0 after a window, 2 where it could not begin."""
    parser = argparse.ArgumentParser(prog="testbed.traffic.requests", description="Send one tenant's requests.")
    parser.add_argument("spec", type=Path, help="JSON file with the fields of RequestSpec")
    options = parser.parse_args(arguments)
    stop = Stop()
    try:
        spec = RequestSpec.load(options.spec)
        schedule = RequestSchedule.load(Path(spec.schedule))
        maker = _maker(spec)
    except (OSError, ValueError) as error:
        print(f"requests: {options.spec}: {error}", file=sys.stderr)
        return 2
    with open_channel(spec.target) as channel:
        try:
            check(channel, spec, maker, int(schedule.message_bytes.max(initial=maker.smallest_bytes)))
        except PreflightError as error:
            print(f"requests: tenant {spec.name}: {error}", file=sys.stderr)
            return 2
        calls = Calls(spec, schedule, maker)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        realtime = become_punctual(spec.priority)
        print(json.dumps({"ready": True, "tenant": spec.tenant, "requests": len(schedule)}), flush=True)
        start_ns = read_start(stop)
        if start_ns is None:
            print("requests: found no start on standard input, expected a line start_monotonic_ns", file=sys.stderr)
            return 2
        calls.run(channel, start_ns, stop)
        step_back()
    record = calls.record(start_ns)
    record.save(Path(spec.result))
    print(json.dumps(record.summary() | {"complete": not stop.requested, "realtime": realtime}), flush=True)
    return 0


if __name__ == "__main__":
    leave(main())
