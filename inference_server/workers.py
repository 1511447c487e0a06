"""The threads that compute, and the request they compute as it goes from being admitted to being answered.

A fixed number of workers, each with a fixed number of CPU threads inside PyTorch, takes requests from the scheduler.
Answers go back to the event loop that serves the network; it alone touches futures. Waking a thread and being woken by
it takes longer than a small computation, so the loop takes the turn of a worker that rests where what comes next is
light; the order is the scheduler's all the same, and never do more compute than there are workers.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from inference_server import batches
from inference_server.errors import AbandonedError, ExpiredError, FailedError
from inference_server.impairments import Impairments
from inference_server.models import Model
from inference_server.protocol import LostTime, Stamps
from inference_server.scheduler import Scheduler
from inference_server.statistics import Statistics
from inference_server.tensors import Array

_LOG = logging.getLogger(__name__)

LIGHT_S = 2e-4
"""Work that the event loop may do itself: about what waking a worker and being woken by it takes."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker made of a request.

    Attributes:
        outputs: By name.
        stamps: When.
        impaired: Kinds of impairment that touched it.
        lost: What they cost it.
    """

    outputs: Mapping[str, Array]
    stamps: Stamps
    impaired: tuple[str, ...] = ()
    lost: LostTime = field(default_factory=LostTime)


@dataclass(slots=True, eq=False)
class Job:
    """An admitted request.

    Attributes:
        tenant: Whose share it uses.
        id: What its sender calls it.
        work_s: Its expected cost.
        deadline_ns: CLOCK_MONOTONIC, None for none.
        received_ns: See `Stamps`.
        queued_ns: See `Stamps`.
        model: What computes it.
        inputs: Checked inputs.
        rows: Rows of its inputs.
        batch: What requests that are computed with it have in common, None if none can be.
        light: Whether computing it takes less than handing it to a worker.
        answer: Where the event loop waits.
        parts: Where the event loop waits for what is there before the answer, with None at its end; None where it
            waits for the answer only.
    """

    tenant: str
    id: str
    work_s: float
    deadline_ns: int | None
    received_ns: int
    queued_ns: int
    model: Model
    inputs: Mapping[str, Array]
    rows: int
    batch: Hashable | None
    light: bool
    answer: asyncio.Future[Answer]
    parts: asyncio.Queue[Mapping[str, Array] | None] | None = None

    def resolve(self, outcome: Answer | Exception) -> None:
        """Hand the outcome to whoever waits, if somebody still does; from any thread."""
        self.answer.get_loop().call_soon_threadsafe(self.settle, outcome)

    def emit(self, outputs: Mapping[str, Array]) -> None:
        """Hand over a part of what will be the answer, where it is waited for; from any thread."""
        if self.parts is not None:
            self.answer.get_loop().call_soon_threadsafe(self.parts.put_nowait, outputs)

    def expire(self) -> None:
        """Say that the deadline passed before the answer was there."""
        self.resolve(ExpiredError(f"model {self.model.name!r}: the deadline passed before the answer was there"))

    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline_ns is not None and self.deadline_ns <= time.monotonic_ns()

    def wanted(self) -> bool:
        """Whether somebody still waits, and not in vain; from any thread."""
        return not self.answer.done() and not self.expired()

    def settle(self, outcome: Answer | Exception) -> None:
        """Give the outcome to whoever waits, if somebody still does; from the event loop."""
        if self.parts is not None:
            self.parts.put_nowait(None)
        if self.answer.done():
            return
        if isinstance(outcome, Exception):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)


Outcome = tuple[Job, Answer | Exception]


class Workers:
    """Compute threads, and the event loop in their place.

    Attributes:
        computed: Requests computed so far.
    """

    def __init__(
        self, scheduler: Scheduler[Job], count: int, threads: int, statistics: Statistics, impairments: Impairments
    ) -> None:
        self._cpu_threads = threads
        self.computed = 0
        self._lock = threading.Lock()
        self._scheduler = scheduler
        self._statistics = statistics
        self._impairments = impairments
        self._turn_is_due = False
        self._threads = [threading.Thread(target=self._run, name=f"compute-{i}", daemon=True) for i in range(count)]

    def start(self) -> None:
        """Compute what is queued from now on; called in the event loop's thread."""
        torch.set_num_threads(self._cpu_threads)
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Queue a request; from the event loop.

        Raises:
            ExhaustedError: Its tenant's queue is full, or it has no share.
        """
        self._scheduler.submit(job, wake=not job.light)
        if job.light:
            self._turn_soon()

    def join(self) -> None:
        """Wait until every worker has ended; the scheduler must have been closed."""
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        torch.set_num_threads(self._cpu_threads)  # a setting of the thread that computes
        while batch := self._scheduler.take():
            self._impairments.wait_out_pause()
            if outcomes := self._outcomes(batch):
                batch[0].answer.get_loop().call_soon_threadsafe(_settle, outcomes)

    def _turn_soon(self) -> None:
        """Take a turn once every request that has arrived by now is queued, so that the order is among all of them."""
        if not self._turn_is_due:
            self._turn_is_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_is_due = False
        if batch := self._scheduler.take_light(self._light):
            _settle(self._outcomes(batch))
            if not self._scheduler.done():
                self._turn_soon()

    def _light(self, job: Job) -> bool:
        """Whether the event loop may compute it: it must not wait out a pause, or be slowed down."""
        return job.light and not self._impairments.any

    def _outcomes(self, batch: Sequence[Job]) -> list[Outcome]:
        """What became of the requests of a batch; nothing of those that nobody waits for."""
        wanted = []
        for job in batch:
            if job.expired():
                job.expire()
            elif not job.answer.done():
                wanted.append(job)
        if not wanted:
            return []
        try:
            return self._computed(wanted)
        except AbandonedError:
            if wanted[0].expired():
                wanted[0].expire()
            return []
        # A model may raise anything; that is its requests' outcome and not the worker's end.
        except Exception as error:  # noqa: BLE001
            return self._failed(wanted, error)

    def _failed(self, batch: Sequence[Job], error: Exception) -> list[Outcome]:
        """The outcome of a request that failed; of several, each is computed alone to find out whose fault it was."""
        if len(batch) == 1:
            _LOG.error("model %s failed", batch[0].model.name, exc_info=error)
            return [(batch[0], FailedError(f"model {batch[0].model.name!r}: {type(error).__name__}: {error}"))]
        return [outcome for job in batch for outcome in self._outcomes([job])]

    def _computed(self, batch: Sequence[Job]) -> list[Outcome]:
        model, rows = batch[0].model, [job.rows for job in batch]
        started_ns = time.monotonic_ns()
        computed = model.compute(batches.joined([job.inputs for job in batch]), batch[0] if len(batch) == 1 else None)
        divided = batches.divided(computed.outputs, rows)
        slowed_ns = self._impairments.slow_down(time.monotonic_ns() - started_ns)
        finished_ns = time.monotonic_ns()
        self._statistics.executed(model.name, computed.execution, requests=len(batch), rows=sum(rows))
        with self._lock:
            self.computed += len(batch)
        outcomes: list[Outcome] = []
        for job, mine in zip(batch, divided, strict=True):
            stamps = Stamps(job.received_ns, job.queued_ns, started_ns, finished_ns)
            outputs, kinds, lost = self._impairments.applied(job.tenant, job.id, mine, stamps, slowed_ns)
            outcomes.append((job, Answer(outputs, stamps, kinds, lost)))
        return outcomes


def _settle(outcomes: Sequence[Outcome]) -> None:
    for job, outcome in outcomes:
        job.settle(outcome)
