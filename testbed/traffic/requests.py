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
import time
from dataclasses import astuple, dataclass, field
from pathlib import Path

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
from testbed.traffic import punctual
from testbed.traffic.grpc_connection import Call, CallError, Connection, framed
from testbed.traffic.punctual import Plan
from testbed.traffic.request_records import IMPAIRMENTS, NOT_ATTEMPTED, OK, OVERDUE, SKIPPED, RequestRecord, RequestSpec
from testbed.traffic.request_schedules import RequestSchedule
from testbed.traffic.request_wire import Maker, RequestMaker, TextMaker
from testbed.traffic.schedules import load_arrays
from testbed.traffic.sender import Stop, become_punctual, leave, read_start, step_back

IntArray = npt.NDArray[np.int64]

_SLICE_NS = 50_000_000
"""Longest wait, so that a signal which arrives just before one is not slept through."""
_ASK_AGAIN_S = 0.1
_INFER = method("ModelInfer")


def check(connection: Connection, spec: RequestSpec, maker: Maker, largest_bytes: int) -> None:
    """Make sure that the server can answer what is about to be sent.

    Args:
        connection: The connection of the window.
        spec: Whom to ask for what.
        maker: Makes the probe.
        largest_bytes: Size of the largest message of the window.

    Raises:
        PreflightError: It is not ready, does not have the model or has another one, or refuses the largest request.
    """
    where = f"server {spec.target}"
    _wait_ready(connection, spec)
    try:
        asked = ModelMetadataRequest(name=spec.model).SerializeToString()
        found = ModelMetadataResponse.FromString(connection.ask(method("ModelMetadata"), asked, spec.ready_s))
        takes = [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in found.inputs]
        if takes != maker.takes or [tensor.name for tensor in found.outputs] != [maker.gives]:
            wanted = " and ".join(f"{datatype} {shape} named {name!r}" for name, datatype, shape in maker.takes)
            raise PreflightError(
                f"{where}: model {spec.model} takes {takes}, expected {wanted} and an output named {maker.gives!r}; "
                "choose a model of that kind"
            )
        answer = ModelInferResponse.FromString(connection.ask(_INFER, maker.probe(largest_bytes), spec.ready_s))
    except CallError as error:
        raise PreflightError(
            f"{where}: found {error} when asked for model {spec.model} in "
            f"{largest_bytes} bytes, the window's largest request; expected an answer"
        ) from error
    if not maker.answered(answer):
        raise PreflightError(
            f"{where}: model {spec.model} answered a probe without the {maker.gives} it asked for; is it of that kind?"
        )


def _wait_ready(connection: Connection, spec: RequestSpec) -> None:
    asked = ServerReadyRequest().SerializeToString()
    deadline_s = time.monotonic() + spec.ready_s
    reason = "it answers that it is not ready"
    while (left_s := deadline_s - time.monotonic()) > 0:
        try:
            if ServerReadyResponse.FromString(connection.ask(method("ServerReady"), asked, left_s)).ready:
                return
        except CallError as error:
            reason = str(error)
        connection.serve(time.monotonic_ns() + int(1e9 * min(_ASK_AGAIN_S, max(left_s, 0.0))))
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
        connection: Carries them.
        sent_ns: CLOCK_MONOTONIC when each was handed to the connection, -1 where not.
        received_ns: CLOCK_MONOTONIC when each came back, -1 where not.
        status: See `RequestRecord`.
        request_bytes: See `RequestRecord`.
        answers: The answers as they came; they are read when the window is over.
    """

    spec: RequestSpec
    schedule: RequestSchedule
    maker: Maker
    connection: Connection
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
        self._open = 0
        self._planned_bytes = np.zeros(n, dtype=np.int64)
        self._plan = Plan(_INFER, self.spec.spin_ns, self.spec.in_flight, self._due, self._ended)

    def run(self, start_ns: int, stop: Stop) -> None:
        """Begin every call when it is due, the window starting at `start_ns` (CLOCK_MONOTONIC), then await the last."""
        due_ns = (start_ns + np.rint(self.schedule.time_s * 1e9).astype(np.int64)).tolist()
        deadline_ns = int(self.spec.deadline_s * 1e9)
        gc.disable()
        made, time_to_make = 0, True
        while not stop.requested and self._plan.begin < len(due_ns):
            if time_to_make and made < len(due_ns) and not self._plan.full:
                message = self._make(made)
                self._planned_bytes[made] = len(message)
                self._plan.add(due_ns[made], due_ns[made] + deadline_ns, framed(message))
                made += 1
            busy = made < len(due_ns) and not self._plan.full
            time_to_make = self.connection.begin_due(self._plan, time.monotonic_ns() + _SLICE_NS, busy=busy)
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

    def _make(self, k: int) -> bytes:
        return self.maker.message(k, int(self.schedule.first_image[k]), int(self.schedule.message_bytes[k]))

    def _due(self, kind: int, k: int, at_ns: int) -> None:
        if kind == punctual.BEGUN:
            self.sent_ns[k] = at_ns
            self.request_bytes[k] = self._planned_bytes[k]
            self._open += 1
        else:
            self.status[k] = SKIPPED if kind == punctual.SKIPPED else OVERDUE

    def _ended(self, k: int, call: Call) -> None:
        self.received_ns[k] = call.ended_ns
        self.status[k] = call.code.value[0]
        self.answers[k] = call.answer
        self._open -= 1

    def _finish(self, stop: Stop) -> None:
        while self._open:
            if stop.requested:
                self.connection.cancel_all()
            self.connection.serve(time.monotonic_ns() + _SLICE_NS)


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
        connection = Connection(spec.target)
    except (OSError, ValueError) as error:
        print(f"requests: {options.spec}: {error}", file=sys.stderr)
        return 2
    with connection:
        try:
            check(connection, spec, maker, int(schedule.message_bytes.max(initial=maker.smallest_bytes)))
        except PreflightError as error:
            print(f"requests: tenant {spec.name}: {error}", file=sys.stderr)
            return 2
        calls = Calls(spec, schedule, maker, connection)
        realtime = become_punctual(spec.priority)
        print(json.dumps({"ready": True, "tenant": spec.tenant, "requests": len(schedule)}), flush=True)
        start_ns = read_start(stop)
        if start_ns is None:
            print("requests: found no start on standard input, expected a line start_monotonic_ns", file=sys.stderr)
            return 2
        calls.run(start_ns, stop)
        step_back()
    record = calls.record(start_ns)
    record.save(Path(spec.result))
    print(json.dumps(record.summary() | {"complete": not stop.requested, "realtime": realtime}), flush=True)
    return 0


if __name__ == "__main__":
    leave(main())
