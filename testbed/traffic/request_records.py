"""What a sender of requests is told and what it hands back, as files, so that either end can be another program.

`RequestSpec` is one JSON object, `RequestRecord` one `.npz`. A record holds what both ends of the path saw; what
happened between them is the captures' to tell.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import numpy.typing as npt

from inference_server.protocol import Kind
from testbed.traffic.request_schedules import RequestSchedule
from testbed.traffic.schedules import load_arrays, save_arrays
from testbed.traffic.specs import load_spec, require, save_spec, upper

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

OK = 0
SKIPPED = -1
"""Status of a request that was due while as many as allowed were in flight: never sent, and a miss."""
OVERDUE = -2
"""Status of a request whose deadline had passed before this host came to send it: never sent, and a miss."""
NOT_ATTEMPTED = -3
"""Status of the requests that were still to come when a sender was ended."""

IMPAIRMENTS = tuple(Kind)
"""Kinds of impairment that an answer may name; bit k of a record's `impaired` stands for the k-th."""

GAVE_UP: int = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
"""Status of a request whose client waited no longer."""
_REJECTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
_NAMES = {SKIPPED: "SKIPPED", OVERDUE: "OVERDUE", NOT_ATTEMPTED: "NOT_ATTEMPTED"} | {
    code.value[0]: code.name for code in grpc.StatusCode
}


@dataclass(frozen=True, slots=True)
class Endings:
    """How requests that were due ended, and whether the answers were right.

    Attributes:
        answered: With an answer, in time or not.
        timeouts: Without an answer in time.
        rejected: Refused by the server's queue or limits.
        errors: Ended in another error.
        skipped: Never sent, because as many as allowed were unanswered.
        overdue: Never sent, because the host came to them after their deadline.
        accuracy: Share of the images answered for that were classified rightly; None without an answer. No promise is
            about it.
        impaired: Answers that the server says an impairment touched, by its kind; none of another kind.
    """

    answered: int
    timeouts: int
    rejected: int
    errors: int
    skipped: int
    overdue: int
    accuracy: float | None
    impaired: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        status: npt.NDArray[np.int16],
        correct: npt.NDArray[np.int32],
        images: int,
        impaired: npt.NDArray[np.uint8] | None = None,
    ) -> Self:
        """Count statuses.

        Args:
            status: As in `RequestRecord`, of requests that were due, [n].
            correct: Images classified rightly, -1 where that is not known, [n].
            images: Images in each request.
            impaired: As in `RequestRecord`, [n]; None where no answer was touched.
        """
        codes = (OK, GAVE_UP, _REJECTED, SKIPPED, OVERDUE)
        answered, timeouts, rejected, skipped, overdue = (int(np.count_nonzero(status == code)) for code in codes)
        judged = correct[(status == OK) & (correct >= 0)]
        return cls(
            answered=answered,
            timeouts=timeouts,
            rejected=rejected,
            errors=status.size - answered - timeouts - rejected - skipped - overdue,
            skipped=skipped,
            overdue=overdue,
            accuracy=float(judged.sum() / (judged.size * images)) if judged.size else None,
            impaired={} if impaired is None else count_impaired(impaired),
        )

    def __str__(self) -> str:
        """The counts in one sentence."""
        kinds = {
            "timed out": self.timeouts,
            "were rejected": self.rejected,
            "ended in an error": self.errors,
            "were never sent with too many unanswered": self.skipped,
            "were never sent past their deadline": self.overdue,
        }
        failed = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        right = "" if self.accuracy is None else f"; {self.accuracy:.2%} of the images were classified rightly"
        touched = ", ".join(f"{count} by {kind}" for kind, count in self.impaired.items())
        impaired = f" Answers that were impaired on purpose: {touched}." if touched else ""
        return f"{self.answered} requests were answered{', ' + failed if failed else ''}{right}.{impaired}"


def count_impaired(impaired: npt.NDArray[np.uint8]) -> dict[str, int]:
    """How many answers each kind of impairment touched; kinds that touched none are left out."""
    counts = {kind.value: int(np.count_nonzero(impaired >> bit & 1)) for bit, kind in enumerate(IMPAIRMENTS)}
    return {kind: count for kind, count in counts.items() if count}


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """One request tenant's sender in one window.

    Attributes:
        tenant: Tenant number.
        name: Tenant name, by which the server finds its share.
        target: `HOST:PORT` of the server.
        model: Name of the model.
        images: Images in each request.
        schedule: File of `RequestSchedule.save`.
        result: Where the `RequestRecord` goes.
        clock_offset_ns: CLOCK_REALTIME minus CLOCK_MONOTONIC, the same for all senders and servers of a run.
        deadline_s: How long after its intended time an answer is worth anything.
        in_flight: Most requests that may be unanswered; those due beyond it are skipped.
        ready_s: How long the server may take to be ready, and to answer a probe.
        priority: SCHED_FIFO priority, used where the host permits it; None for the normal scheduler.
        tokens: `.npz` file with an int64[n, 2] named `tokens` where a model of text is asked: bytes of context and
            bytes to generate of each row of the trace; None for a digit classifier.
        spin_ns: How long before a request is due the sender stops sleeping and watches the clock instead, reading
            answers until the last 100 us; a wake-up is late by some 50 us as a rule, which costs 1 % of a core at 100
            requests/s and 20 % at 2,000.
    """

    tenant: int
    name: str
    target: str
    model: str
    images: int
    schedule: str
    result: str
    clock_offset_ns: int
    deadline_s: float
    in_flight: int = 10_000
    ready_s: float = 30.0
    priority: int | None = 1
    tokens: str | None = None
    spin_ns: int = 100_000

    def save(self, path: Path) -> None:
        """Write the specification as JSON."""
        save_spec(path, self)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a specification.

        Raises:
            ValueError: No JSON object, an unknown or missing key, or a value of the wrong type or range.
            OSError: The file cannot be read.
        """
        spec = load_spec(path, cls)
        require(
            path,
            spec,
            whole=("tenant", "images", "clock_offset_ns", "in_flight", "spin_ns"),
            text=("name", "target", "model", "schedule", "result"),
        )
        for name in ("deadline_s", "ready_s"):
            value = getattr(spec, name)
            if type(value) not in {int, float} or not value > 0:
                raise ValueError(f"{path}: {name} is {value!r}, expected a number above 0")
        if spec.tokens is not None and type(spec.tokens) is not str:
            raise ValueError(f"{path}: tokens is {spec.tokens!r}, expected text or null")
        if spec.images < (spec.tokens is None) or spec.in_flight < 1:
            raise ValueError(f"{path}: found {spec.images} images and {spec.in_flight} in flight, expected at least 1")
        return spec


@dataclass(frozen=True, slots=True, eq=False)
class RequestRecord:
    """What became of a schedule's requests; numbers of requests are positions in these arrays, each of shape [n].

    Times are seconds from the start of the window; NaN where it did not happen or nobody told.

    Attributes:
        tenant: Tenant number.
        images: Images in each request.
        deadline_s: How long after its intended time an answer was worth anything.
        start_monotonic_ns: Start of the window, CLOCK_MONOTONIC.
        start_realtime_ns: The same instant, CLOCK_REALTIME.
        schedule: The requests as intended.
        sent_s: When each was handed to the connection, float64.
        received_s: When its answer or its failure came back, float64.
        server_s: The server's stamps: received, queued, started, finished; float64[n, 4].
        status: gRPC's status code (0 is OK), `SKIPPED`, `OVERDUE` or `NOT_ATTEMPTED`, int16.
        request_bytes: Size of the message, 0 where it was not sent, int64.
        response_bytes: Size of the answer's message, 0 where there was none, int64.
        correct: Images classified rightly, -1 without an answer, int32.
        impaired: The kinds of impairment that the answer says touched it, a bit for each of `IMPAIRMENTS`, uint8; None
            where none touched any.
        lost_time_s: What impairments cost it, as the answer says: waiting while workers were paused, waiting behind
            others that were slowed down, and in its own computation; float64 [n, 3], None with `impaired`.
    """

    tenant: int
    images: int
    deadline_s: float
    start_monotonic_ns: int
    start_realtime_ns: int
    schedule: RequestSchedule
    sent_s: FloatArray
    received_s: FloatArray
    server_s: FloatArray
    status: npt.NDArray[np.int16]
    request_bytes: npt.NDArray[np.int64]
    response_bytes: npt.NDArray[np.int64]
    correct: npt.NDArray[np.int32]
    impaired: npt.NDArray[np.uint8] | None = None
    lost_time_s: FloatArray | None = None

    def take(self, chosen: BoolArray) -> Self:
        """Some of the requests, [n]."""
        known = [name for name in (*_COLUMNS, *_IMPAIRED) if getattr(self, name) is not None]
        columns = {name: getattr(self, name)[chosen] for name in known}
        return replace(self, schedule=self.schedule.take(chosen), **columns)

    @property
    def attempted(self) -> BoolArray:
        """Requests that were due before the sender ended: the ones a verdict is about."""
        return np.asarray(self.status != NOT_ATTEMPTED)

    @property
    def answered(self) -> BoolArray:
        """Requests with an answer."""
        return np.asarray(self.status == OK)

    @property
    def latency_s(self) -> FloatArray:
        """Answer minus intended sending, NaN without an answer."""
        return np.where(self.answered, self.received_s - self.schedule.time_s, np.nan)

    @property
    def missed(self) -> BoolArray:
        """Requests without an answer by their deadline, for whatever reason."""
        return self.attempted & ~(self.latency_s <= self.deadline_s)

    @property
    def lateness_s(self) -> FloatArray:
        """How much later than intended each request was handed to the connection; NaN where it was not."""
        return np.asarray(self.sent_s - self.schedule.time_s)

    @property
    def accuracy(self) -> float:
        """Share of answered images that were classified rightly, NaN without answers."""
        judged = self.correct[self.answered & (self.correct >= 0)]
        return float(judged.sum() / (judged.size * self.images)) if judged.size else float("nan")

    def summary(self) -> dict[str, Any]:
        """Counts and upper quantiles, JSON-ready."""
        codes, counts = np.unique(self.status, return_counts=True)
        accuracy = self.accuracy
        return {
            "tenant": self.tenant,
            "requests": len(self.schedule),
            "status": {_NAMES.get(int(c), str(c)): int(k) for c, k in zip(codes, counts, strict=True)},
            "missed": int(self.missed.sum()),
            "accuracy": None if np.isnan(accuracy) else accuracy,
            "latency_s": upper(self.latency_s),
            "lateness_s": upper(self.lateness_s),
        }

    def save(self, path: Path) -> None:
        """Write the record to an `.npz` file that only its owner can read, all at once or not at all."""
        window = (self.tenant, self.images, self.start_monotonic_ns, self.start_realtime_ns)
        arrays = {name: getattr(self, name) for name in _COLUMNS}
        arrays |= {name: found for name in _IMPAIRED if (found := getattr(self, name)) is not None}
        arrays |= {
            "window": np.array(window, dtype=np.int64),
            "deadline_s": np.array(self.deadline_s),
            "time_s": self.schedule.time_s,
            "message_bytes": self.schedule.message_bytes,
            "first_image": self.schedule.first_image,
        }
        save_arrays(path, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record written by `save`.

        Raises:
            ValueError: The file is no record of requests.
            OSError: The file cannot be read.
        """
        arrays = load_arrays(path, ("window", "deadline_s", *_COLUMNS), optional=_IMPAIRED)
        tenant, images, monotonic_ns, realtime_ns = (int(value) for value in arrays["window"])
        record = cls(
            tenant,
            images,
            float(arrays["deadline_s"]),
            monotonic_ns,
            realtime_ns,
            RequestSchedule.load(path),
            *(arrays[name] for name in _COLUMNS),
        )
        return replace(record, impaired=arrays.get("impaired"), lost_time_s=arrays.get("lost_time_s"))


_COLUMNS = ("sent_s", "received_s", "server_s", "status", "request_bytes", "response_bytes", "correct")
_IMPAIRED = ("impaired", "lost_time_s")
