"""Inference servers as service: workers, batches, and how a stage that counts requests joins stages that count bits.

Rates are in requests (or units of work) and bits do not convert to requests by their mean: a request's own sizes decide
which stage it loads most. Its *virtual size* is the longest time it keeps any stage busy; one Lindley queue of virtual
sizes then bounds the wait in all stages (docs/calculus.md, "Compute stage").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from testbed.calculus.amounts import Empirical
from testbed.calculus.errors import CalculusError, require_not_negative, require_positive
from testbed.calculus.numeric import FloatArray
from testbed.calculus.service.promised import EnvelopeService, ExcessTail


class ComputeStage(Protocol):
    """A stage that serves requests."""

    @property
    def work_per_s(self) -> float:
        """mu: units of work per second that the stage guarantees the tenant."""

    @property
    def latency_s(self) -> float:
        """T_c: the longest a request's departure lags the start of its service in an ideal queue at mu."""

    @property
    def overtaking_work(self) -> float:
        """The most work that can start after a request and finish before it; 0 when requests leave in order."""


@dataclass(frozen=True, slots=True)
class Workers:
    """c workers, each at speed 1, first come first served.

    Attributes:
        count: c.
        most_work_s: The longest service time of a request, alone on a worker.
    """

    count: int
    most_work_s: float

    def __post_init__(self) -> None:
        if self.count < 1:
            raise CalculusError(f"a compute stage has {self.count} workers; expected at least 1")
        require_positive("longest service time", self.most_work_s)

    @property
    def work_per_s(self) -> float:
        """C seconds of work per second."""
        return float(self.count)

    @property
    def latency_s(self) -> float:
        """`(c - 1)/c w` until the service starts, and w for the service."""
        return (self.count - 1) / self.count * self.most_work_s + self.most_work_s

    @property
    def overtaking_work(self) -> float:
        """What the other workers can do while one is busy with the longest request."""
        return (self.count - 1) * self.most_work_s


@dataclass(frozen=True, slots=True)
class Batches:
    """Workers that each take up to B requests (or units of work, such as tokens) at a time.

    Attributes:
        largest: B.
        full_batch_s: s(B), the service time of a full batch; the time per request must not grow with the batch.
        longest_wait_s: How long a batch may wait to fill.
        workers: How many workers take batches, an idle one the next.
    """

    largest: float
    full_batch_s: float
    longest_wait_s: float = 0.0
    workers: int = 1

    def __post_init__(self) -> None:
        require_positive("largest batch", self.largest)
        require_positive("service time of a full batch", self.full_batch_s)
        require_not_negative("longest wait of a batch", self.longest_wait_s)
        if self.workers < 1:
            raise CalculusError(f"a compute stage has {self.workers} workers; expected at least 1")

    @property
    def work_per_s(self) -> float:
        """B/s(B) of each worker."""
        return self.workers * self.largest / self.full_batch_s

    @property
    def latency_s(self) -> float:
        """`s(B) + max(s(B), delta)`: a request can just miss a batch, and then wait for it or for the timer."""
        return self.full_batch_s + max(self.full_batch_s, self.longest_wait_s)

    @property
    def overtaking_work(self) -> float:
        """A batch of every other worker: smaller batches take longer for each request."""
        return (self.workers - 1) * self.largest


@dataclass(frozen=True, slots=True)
class SharedStage:
    """A non-preemptive share of a stage that other tenants use too.

    Attributes:
        stage: The stage when it is the tenant's alone.
        share: The fraction of it that the tenant is guaranteed.
        foreign_batch_s: Largest service time of a batch of each other tenant.
        workers: Over how many workers the foreign batches spread.
    """

    stage: ComputeStage
    share: float
    foreign_batch_s: tuple[float, ...]
    workers: int = 1

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise CalculusError(f"share of a stage is {self.share!r}; expected above 0 and at most 1")
        if self.workers < 1:
            raise CalculusError(f"a compute stage has {self.workers} workers; expected at least 1")

    @property
    def work_per_s(self) -> float:
        """Mu times the share."""
        return self.stage.work_per_s * self.share

    @property
    def latency_s(self) -> float:
        """One largest foreign batch of each other tenant more, and what other workers do while one is busy with it."""
        spread = math.fsum(self.foreign_batch_s) / self.workers
        busy = (self.workers - 1) / self.workers * max(self.foreign_batch_s, default=0.0)
        return self.stage.latency_s + spread + busy

    @property
    def overtaking_work(self) -> float:
        """That of the stage."""
        return self.stage.overtaking_work


@dataclass(frozen=True)
class RequestClass:
    """What requests ask for, as equally likely kinds or with weights.

    Attributes:
        up_bits: Bits sent to the server, per kind.
        work: Units of work, per kind.
        down_bits: Bits sent back, per kind.
        weights: Relative frequencies; equal when empty.
    """

    up_bits: tuple[float, ...]
    work: tuple[float, ...]
    down_bits: tuple[float, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.up_bits) == len(self.work) == len(self.down_bits) > 0:
            counts = (len(self.up_bits), len(self.work), len(self.down_bits))
            raise CalculusError(f"a request class needs as many up, work and down sizes, at least 1; found {counts}")
        if min(*self.up_bits, *self.work, *self.down_bits) < 0.0:
            raise CalculusError("sizes of requests must be at least 0")


@dataclass(frozen=True)
class RequestPath:
    """Requests through an uplink, a compute stage and a downlink, as one queue of virtual sizes.

    Attributes:
        requests: Sizes of the requests.
        up: Services on the way to the server.
        stage: The compute stage.
        down: Services on the way back.
        stage_excess: Tail of what the stage lags beyond its latency, or None.
        stage_loss: Probability that the stage drops, rejects or fails a request.
        resequenced: Whether answers are put back in order before they are sent; if not, those that overtake are
            charged to the way back.
    """

    requests: RequestClass
    up: Sequence[EnvelopeService]
    stage: ComputeStage
    down: Sequence[EnvelopeService]
    stage_excess: ExcessTail | None = None
    stage_loss: float = 0.0
    resequenced: bool = False

    def __post_init__(self) -> None:
        if not self.up and not self.down:
            raise CalculusError("a request path needs a network service before or after the compute stage")

    @property
    def virtual_sizes_s(self) -> FloatArray:
        """v* of each kind in seconds: the longest time a request keeps a stage busy, shape (kinds,)."""
        up = np.array(self.requests.up_bits) * _seconds_per_bit(self.up)
        return np.asarray(np.maximum(up, self.served_sizes_s))

    @property
    def served_sizes_s(self) -> FloatArray:
        """The same without the way to the server: what keeps the stage or the way back busy, shape (kinds,)."""
        work = np.array(self.requests.work) / self.stage.work_per_s
        down = np.array(self.requests.down_bits) * _seconds_per_bit(self.down)
        return np.asarray(np.maximum(work, down))

    @property
    def size(self) -> Empirical:
        """Virtual sizes in bits of a server of 1 bit/s: the packet sizes of the request arrivals."""
        return Empirical(tuple(self.virtual_sizes_s.tolist()), self.requests.weights)

    @property
    def services(self) -> tuple[EnvelopeService, ...]:
        """The stages in virtual time (rate 1), each with what a request costs beyond the common queue as its latency.

        A request enters the compute stage, and leaves the path, when its last bit has arrived: its own transmission
        counts once in each direction. The largest request is charged, not the request itself: with its own size the
        bound fails (docs/calculus.md, "Compute stage").
        """
        down = _in_virtual_time(self.down, max(self.requests.down_bits))
        if down and not self.resequenced:
            slowest = min(service.rate_bps for service in self.down)
            extra = overtaking_latency(self.stage, self.requests, slowest)
            down[0] = replace(down[0], latency_s=down[0].latency_s + extra)
        return (
            *_in_virtual_time(self.up, max(self.requests.up_bits)),
            EnvelopeService(1.0, self.stage.latency_s, self.stage_excess, self.stage_loss, "compute"),
            *down,
        )


def _seconds_per_bit(services: Sequence[EnvelopeService]) -> float:
    return 1.0 / min((service.rate_bps for service in services), default=math.inf)


def _in_virtual_time(services: Sequence[EnvelopeService], request_bits: float) -> list[EnvelopeService]:
    own = request_bits * _seconds_per_bit(services)
    last = len(services) - 1
    return [
        replace(service, rate_bps=1.0, latency_s=service.latency_s + (own if index == last else 0.0))
        for index, service in enumerate(services)
    ]


def overtaking_latency(stage: ComputeStage, requests: RequestClass, rate_bps: float) -> float:
    """Extra latency of the network behind a stage that finishes requests out of order, without resequencing.

    Answers that overtake a request carry at most the stage's overtaking work times the largest ratio of bits to work.

    Raises:
        CalculusError: A kind of request sends bits back without doing work, so that any number can overtake.
    """
    if stage.overtaking_work == 0.0:
        return 0.0
    if any(bits > 0.0 and work <= 0.0 for bits, work in zip(requests.down_bits, requests.work, strict=True)):
        raise CalculusError("requests without work can overtake in any number; resequence behind the workers")
    ratio = max(
        (bits / work for bits, work in zip(requests.down_bits, requests.work, strict=True) if work > 0.0), default=0.0
    )
    return stage.overtaking_work * ratio / rate_bps
