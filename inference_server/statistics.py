"""What the server has done so far, counted: requests by how they ended, and how long each part of them took.

Workers and the event loop write, the `ModelStatistics` call and the metrics page read. Answers are noted as they come
and counted some hundreds at a time, or when somebody reads. Nothing is ever forgotten; rates and quantiles over time
are the reader's to make.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import grpc
import numpy as np
import numpy.typing as npt

from inference_server.protocol import Stamps

BOUNDS_S = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper bounds of the histograms' buckets; one more bucket has no bound."""
_NOTED = 256
"""Answers that are counted together."""


@dataclass(slots=True)
class Duration:
    """How often, and how long together."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Count something that took this long each time."""
        self.count += count
        self.ns += ns * count

    def sum_up(self, ns: npt.NDArray[np.int64]) -> None:
        """Count things that took these, [n]."""
        self.count += ns.size
        self.ns += int(ns.sum())


@dataclass(slots=True)
class Histogram:
    """Durations by size.

    Attributes:
        counts: How many fell into each bucket of `BOUNDS_S`, and beyond the last.
        sum_s: All together.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def add(self, seconds: npt.NDArray[np.float64]) -> None:
        """Count durations, [n]."""
        fallen = np.bincount(np.searchsorted(BOUNDS_S, seconds), minlength=len(self.counts))
        self.counts = [count + more for count, more in zip(self.counts, fallen.tolist(), strict=True)]
        self.sum_s += float(seconds.sum())


class Execution(NamedTuple):
    """How long one computation took in its three parts, nanoseconds.

    Attributes:
        input_ns: Arrays became tensors on the device.
        infer_ns: The network computed.
        output_ns: Tensors became arrays.
    """

    input_ns: int
    infer_ns: int
    output_ns: int


@dataclass(slots=True)
class Parts:
    """The parts of executions, summed."""

    input: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)

    def add(self, execution: Execution, count: int = 1) -> None:
        """Count an execution, once for each of `count` requests."""
        self.input.add(execution.input_ns, count)
        self.infer.add(execution.infer_ns, count)
        self.output.add(execution.output_ns, count)


@dataclass(slots=True)
class ModelCounts:
    """One model.

    Attributes:
        rows: Rows computed.
        last_ms: When the last execution ended, milliseconds since the epoch; 0 before the first.
        success: Requests answered, from received to finished.
        fail: Requests that were not, from received to refused.
        queue: Time in the queue of requests that were computed.
        compute: Parts, once for each request.
        batches: Parts by rows of the batch, once for each execution.
    """

    rows: int = 0
    last_ms: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute: Parts = field(default_factory=Parts)
    batches: dict[int, Parts] = field(default_factory=lambda: defaultdict(Parts))

    @property
    def executions(self) -> int:
        """Computations, batches counted once."""
        return sum(parts.infer.count for parts in self.batches.values())


@dataclass(slots=True)
class ShareCounts:
    """The requests of one share for one model.

    Attributes:
        endings: Requests by status.
        queue_s: From queued to started.
        compute_s: From started to finished.
        server_s: From received to finished.
    """

    endings: dict[grpc.StatusCode, int] = field(default_factory=lambda: defaultdict(int))
    queue_s: Histogram = field(default_factory=Histogram)
    compute_s: Histogram = field(default_factory=Histogram)
    server_s: Histogram = field(default_factory=Histogram)


class Statistics:
    """Counts of all models and shares; read them in `read`.

    Attributes:
        models: By name of the model, `""` for requests whose model is unknown.
        shares: By names of model and share.
        impaired: Requests touched by an impairment, by its kind.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: deque[tuple[str, str, Stamps]] = deque()
        self._executions: deque[tuple[str, Execution, int, int, int]] = deque()
        self.models: Mapping[str, ModelCounts] = defaultdict(ModelCounts)
        self.shares: Mapping[tuple[str, str], ShareCounts] = defaultdict(ShareCounts)
        self.impaired: dict[str, int] = defaultdict(int)

    @contextmanager
    def read(self) -> Iterator[None]:
        """Everything that has been noted is counted, and nothing changes inside."""
        with self._lock:
            self._count()
            yield

    def executed(self, model: str, execution: Execution, *, requests: int, rows: int) -> None:
        """Count one execution of a batch."""
        self._executions.append((model, execution, requests, rows, time.time_ns()))
        self._count_many(self._executions)

    def answered(self, model: str, share: str, stamps: Stamps) -> None:
        """Count a request that was computed and answered."""
        self._answers.append((model, share, stamps))
        self._count_many(self._answers)

    def refused(self, model: str, share: str, code: grpc.StatusCode, spent_ns: int) -> None:
        """Count a request that ended in anything but an answer."""
        with self._lock:
            self.models[model].fail.add(spent_ns)
            self.shares[model, share].endings[code] += 1

    def touched(self, kind: str, requests: int) -> None:
        """Count requests that an impairment touched."""
        with self._lock:
            self.impaired[kind] += requests

    def _count_many(self, noted: Sized) -> None:
        if len(noted) >= _NOTED:
            with self._lock:
                self._count()

    def _count(self) -> None:
        """Count what has been noted by now; what is noted meanwhile waits for the next time."""
        for _ in range(len(self._executions)):
            model, execution, requests, rows, ended_ns = self._executions.popleft()
            counts = self.models[model]
            counts.rows += rows
            counts.last_ms = ended_ns // 1_000_000
            counts.compute.add(execution, requests)
            counts.batches[rows].add(execution)
        noted = defaultdict[tuple[str, str], list[Stamps]](list)
        for _ in range(len(self._answers)):
            model, share, stamps = self._answers.popleft()
            noted[model, share].append(stamps)
        for (model, share), all_stamps in noted.items():
            received_ns, queued_ns, started_ns, finished_ns = np.array(all_stamps, dtype=np.int64).T
            queue_ns, compute_ns = started_ns - queued_ns, finished_ns - started_ns
            server_ns = finished_ns - received_ns
            counts, mine = self.models[model], self.shares[model, share]
            counts.success.sum_up(server_ns)
            counts.queue.sum_up(queue_ns)
            mine.endings[grpc.StatusCode.OK] += len(all_stamps)
            mine.queue_s.add(queue_ns / 1e9)
            mine.compute_s.add(compute_ns / 1e9)
            mine.server_s.add(server_ns / 1e9)
