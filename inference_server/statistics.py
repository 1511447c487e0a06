"""What the server has done so far, counted: requests by how they ended, and how long each part of them took.

Workers and the event loop write, the `ModelStatistics` call and the metrics page read. Counting costs about a
microsecond a request and nothing is ever forgotten; rates and quantiles over time are the reader's to make.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc

from inference_server.protocol import Stamps

BOUNDS_S = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper bounds of the histograms' buckets; one more bucket has no bound."""


@dataclass(slots=True)
class Duration:
    """How often, and how long together."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Count something that took this long each time."""
        self.count += count
        self.ns += ns * count


@dataclass(slots=True)
class Histogram:
    """Durations by size.

    Attributes:
        counts: How many fell into each bucket of `BOUNDS_S`, and beyond the last.
        sum_s: All together.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds


@dataclass(frozen=True, slots=True)
class Execution:
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
    """Counts of all models and shares; hold `lock` while reading more than one of them.

    Attributes:
        lock: Held for every change.
        models: By name of the model, `""` for requests whose model is unknown.
        shares: By names of model and share.
        impaired: Requests touched by an impairment, by its kind.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.models: Mapping[str, ModelCounts] = defaultdict(ModelCounts)
        self.shares: Mapping[tuple[str, str], ShareCounts] = defaultdict(ShareCounts)
        self.impaired: dict[str, int] = defaultdict(int)

    def executed(self, model: str, execution: Execution, *, requests: int, rows: int) -> None:
        """Count one execution of a batch."""
        with self.lock:
            counts = self.models[model]
            counts.rows += rows
            counts.last_ms = time.time_ns() // 1_000_000
            counts.compute.add(execution, requests)
            counts.batches[rows].add(execution)

    def answered(self, model: str, share: str, stamps: Stamps) -> None:
        """Count a request that was computed and answered."""
        queue_ns = stamps.started_ns - stamps.queued_ns
        server_ns = stamps.finished_ns - stamps.received_ns
        with self.lock:
            counts, mine = self.models[model], self.shares[model, share]
            counts.success.add(server_ns)
            counts.queue.add(queue_ns)
            mine.endings[grpc.StatusCode.OK] += 1
            mine.queue_s.add(queue_ns / 1e9)
            mine.compute_s.add((stamps.finished_ns - stamps.started_ns) / 1e9)
            mine.server_s.add(server_ns / 1e9)

    def refused(self, model: str, share: str, code: grpc.StatusCode, spent_ns: int) -> None:
        """Count a request that ended in anything but an answer."""
        with self.lock:
            self.models[model].fail.add(spent_ns)
            self.shares[model, share].endings[code] += 1

    def touched(self, kind: str, requests: int) -> None:
        """Count requests that an impairment touched."""
        with self.lock:
            self.impaired[kind] += requests
