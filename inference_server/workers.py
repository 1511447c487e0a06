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
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from inference_server import batches
from inference_server.call_cost import CallCost
from inference_server.direct import ROWS
from inference_server.errors import AbandonedError, ExpiredError, FailedError
from inference_server.forms import Form
from inference_server.impairments import Impairments
from inference_server.protocol import NOTHING_LOST, LostTime, Stamps
from inference_server.scheduler import Scheduler
from inference_server.statistics import Execution, Statistics
from inference_server.tensors import DTYPES, Array

_LOG = logging.getLogger(__name__)

LIGHT_S = 5e-4
"""Work that the event loop may do itself: beside a busy loop a worker takes about that longer, since it waits for the
interpreter after every layer."""
TURN_NS = 200_000
"""How long the event loop computes before the network has its turn: about what reading a request takes."""


class Answer(NamedTuple):
    """What a worker made of a request.

    Attributes:
        outputs: By name.
        stamps: When.
        impaired: Kinds of impairment that touched it.
        lost: What they cost it.
        contents: Raw contents of the only output where that was computed directly, instead of `outputs`.
    """

    outputs: Mapping[str, Array]
    stamps: Stamps
    impaired: tuple[str, ...] = ()
    lost: LostTime = NOTHING_LOST
    contents: bytes | None = None


class Job:
    """An admitted request.

    Attributes:
        form: What it asks for.
        tenant: Whose share it uses.
        id: What its sender calls it.
        contents: Checked raw contents of its only input, where its answer can be computed from these directly.
        answer: Where the event loop waits.
        deadline_ns: CLOCK_MONOTONIC, None for none.
        received_ns: See `Stamps`.
        queued_ns: See `Stamps`.
        parts: Where the event loop waits for what is there before the answer, with None at its end; None where it
            waits for the answer only.
        model: Of the form.
        work_s: Of the form.
        rows: Of the form.
        batch: Of the form.
        begin_by_ns: CLOCK_MONOTONIC from which on it is not begun, None for none.
    """

    __slots__ = (
        "_inputs",
        "answer",
        "batch",
        "begin_by_ns",
        "contents",
        "deadline_ns",
        "form",
        "id",
        "model",
        "parts",
        "queued_ns",
        "received_ns",
        "rows",
        "tenant",
        "work_s",
    )

    def __init__(
        self,
        form: Form,
        tenant: str,
        name: str,
        inputs: Mapping[str, Array] | memoryview,
        answer: asyncio.Future[Answer],
        *,
        deadline_ns: int | None,
        received_ns: int,
        queued_ns: int,
        parts: asyncio.Queue[Mapping[str, Array] | None] | None = None,
    ) -> None:
        """Take what was admitted; `inputs` are the arrays by name, or the raw contents of the only one."""
        self.form, self.tenant, self.id, self.answer = form, tenant, name, answer
        self._inputs: Mapping[str, Array] | None = None
        self.contents: memoryview | None = None
        if isinstance(inputs, memoryview):
            self.contents = inputs
        else:
            self._inputs = inputs
        self.deadline_ns, self.received_ns, self.queued_ns, self.parts = deadline_ns, received_ns, queued_ns, parts
        self.model, self.work_s, self.rows, self.batch = form.model, form.work_s, form.rows, form.batch
        self.begin_by_ns = None if deadline_ns is None else deadline_ns - form.least_ns

    @property
    def inputs(self) -> Mapping[str, Array]:
        """Checked inputs by name."""
        if self._inputs is None:
            (spec,) = self.model.inputs
            array = np.frombuffer(self.contents or b"", DTYPES[spec.datatype]).reshape(self.form.shape)
            self._inputs = {spec.name: array}
        return self._inputs

    def resolve(self, outcome: Answer | Exception) -> None:
        """Hand the outcome to whoever waits, if somebody still does; from any thread."""
        self.answer.get_loop().call_soon_threadsafe(self.settle, outcome)

    def emit(self, outputs: Mapping[str, Array]) -> None:
        """Hand over a part of what will be the answer, where it is waited for; from any thread."""
        if self.parts is not None:
            self.answer.get_loop().call_soon_threadsafe(self.parts.put_nowait, outputs)

    def expire(self) -> None:
        """Say that the answer cannot be there before the deadline."""
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


class _Parts:
    """Who waits for a request's parts, as a computation sees it: impairs each, and keeps what the answer is to repeat.

    Attributes:
        spoilt: Whether a part was wrong on purpose.
        slowed_ns: How much longer than they had to the parts took.
    """

    def __init__(self, job: Job, called: str, started_ns: int, impairments: Impairments) -> None:
        self._job, self._called, self._impairments = job, called, impairments
        self._sent: dict[str, list[Array]] = {}
        self._since_ns = started_ns
        self.spoilt, self.slowed_ns = False, 0

    def wanted(self) -> bool:
        """Whether somebody still waits, and not in vain."""
        return self._job.wanted()

    def emit(self, outputs: Mapping[str, Array]) -> None:
        """Hand over a part."""
        self.slow_down()
        outputs, wrong = self._impairments.part(self._job.tenant, self._called, outputs)
        self.spoilt |= wrong
        for name, array in outputs.items():
            self._sent.setdefault(name, []).append(array)
        self._job.emit(outputs)

    def slow_down(self) -> None:
        """Make what was computed since the last part take longer."""
        self.slowed_ns += self._impairments.slow_down(time.monotonic_ns() - self._since_ns)
        self._since_ns = time.monotonic_ns()

    def whole(self) -> Mapping[str, Array]:
        """All that was handed over."""
        return {name: np.concatenate(parts) for name, parts in self._sent.items()}


Outcome: TypeAlias = tuple[Job, Answer | Exception]
_Compute: TypeAlias = Callable[[Sequence[Job], int], list[Outcome]]
"""Computes a batch that was begun at a time, CLOCK_MONOTONIC."""


class Workers:
    """Compute threads, and the event loop in their place.

    Attributes:
        calls: What calls take beside.
    """

    def __init__(
        self, scheduler: Scheduler[Job], count: int, threads: int, statistics: Statistics, impairments: Impairments
    ) -> None:
        self._cpu_threads = threads
        self._scheduler = scheduler
        self._statistics = statistics
        self._impairments = impairments
        self.calls = CallCost()
        self._turn_is_due = False
        self._threads = [threading.Thread(target=self._run, name=f"compute-{i}", daemon=True) for i in range(count)]

    @property
    def computed(self) -> int:
        """Requests computed so far."""
        with self._statistics.read():
            return sum(counts.compute.infer.count for counts in self._statistics.models.values())

    @property
    def free(self) -> bool:
        """Whether the event loop may compute now: nothing waits, a worker rests, and none is impaired."""
        return self._scheduler.idle and not self._impairments.any

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
        self._scheduler.submit(job, wake=not job.form.light)
        if job.form.light:
            self._turn_soon()

    def join(self) -> None:
        """Wait until every worker has ended; the scheduler must have been closed."""
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        torch.set_num_threads(self._cpu_threads)  # a setting of the thread that computes
        while batch := self._scheduler.take():
            self._impairments.wait_out_pause()
            if outcomes := self._outcomes(batch, self._computed):
                batch[0].answer.get_loop().call_soon_threadsafe(_settle, outcomes)

    def _turn_soon(self) -> None:
        """Take a turn once every request that has arrived by now is queued, so that the order is among all of them."""
        if not self._turn_is_due:
            self._turn_is_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Compute what waits and is light, for as long as one light request may take; then the network has its turn."""
        self._turn_is_due = False
        until_ns = time.monotonic_ns() + TURN_NS
        while batch := self._scheduler.take_light(self._light):
            _settle(self._outcomes(batch, self._computed_here))
            if self._scheduler.done():
                return
            if time.monotonic_ns() >= until_ns:
                self._turn_soon()
                return

    def _light(self, job: Job) -> bool:
        """Whether the event loop may compute it: it must not wait out a pause, or be slowed down."""
        return job.form.light and not self._impairments.any

    def _outcomes(self, batch: Sequence[Job], compute: _Compute) -> list[Outcome]:
        """What became of the requests of a batch; nothing of those that nobody waits for."""
        # The time that is compared with deadlines is the one that answers name as the beginning, so none begins late.
        wanted, started_ns = [], time.monotonic_ns()
        for job in batch:
            if job.begin_by_ns is not None and job.begin_by_ns <= started_ns:
                job.expire()
            elif not job.answer.done():
                wanted.append(job)
        if not wanted:
            return []
        try:
            return self._counted(wanted, started_ns, compute)
        except AbandonedError:
            if wanted[0].expired():
                wanted[0].expire()
            return []
        # A model may raise anything; that is its requests' outcome and not the worker's end.
        except Exception as error:  # noqa: BLE001
            return self._failed(wanted, error, compute)

    def _counted(self, batch: Sequence[Job], started_ns: int, compute: _Compute) -> list[Outcome]:
        spent_ns = time.thread_time_ns()
        try:
            return compute(batch, started_ns)
        finally:
            self.calls.computed((time.thread_time_ns() - spent_ns) * self._cpu_threads)

    def _failed(self, batch: Sequence[Job], error: Exception, compute: _Compute) -> list[Outcome]:
        """The outcome of a request that failed; of several, each is computed alone to find out whose fault it was."""
        if len(batch) == 1:
            _LOG.error("model %s failed", batch[0].model.name, exc_info=error)
            return [(batch[0], FailedError(f"model {batch[0].model.name!r}: {type(error).__name__}: {error}"))]
        return [outcome for job in batch for outcome in self._outcomes([job], compute)]

    def _computed(self, batch: Sequence[Job], started_ns: int) -> list[Outcome]:
        model, rows = batch[0].model, [job.rows for job in batch]
        called = [self._impairments.called(job.id) for job in batch]
        if batch[0].parts is None:
            spoilt = None
            watch = batch[0] if len(batch) == 1 else None
            computed = model.compute(batches.joined([job.inputs for job in batch]), watch)
            divided = batches.divided(computed.outputs, rows)
            slowed_ns = self._impairments.slow_down(time.monotonic_ns() - started_ns)
        else:
            parts = _Parts(batch[0], called[0], started_ns, self._impairments)
            computed = model.compute(batch[0].inputs, parts)
            parts.slow_down()
            divided, spoilt, slowed_ns = [parts.whole()], parts.spoilt, parts.slowed_ns
        finished_ns = time.monotonic_ns()
        self._statistics.executed(model.name, computed.execution, requests=len(batch), rows=sum(rows))
        outcomes: list[Outcome] = []
        for job, name, mine in zip(batch, called, divided, strict=True):
            stamps = Stamps(job.received_ns, job.queued_ns, started_ns, finished_ns)
            outputs, kinds, lost = self._impairments.applied(job.tenant, name, mine, stamps, slowed_ns, spoilt=spoilt)
            outcomes.append((job, Answer(outputs, stamps, kinds, lost)))
        return outcomes

    def _computed_here(self, batch: Sequence[Job], started_ns: int) -> list[Outcome]:
        """Compute in the event loop, where nothing is impaired: directly, where all of the batch can be."""
        model, rows = batch[0].model, sum([job.rows for job in batch])
        contents = [job.contents for job in batch if job.contents is not None]
        if model.direct is None or len(contents) < len(batch) or rows > ROWS:
            return self._computed(batch, started_ns)
        found, ready_ns, computed_ns = model.direct.many(contents)
        finished_ns = time.monotonic_ns()
        execution = Execution(ready_ns - started_ns, computed_ns - ready_ns, finished_ns - computed_ns)
        self._statistics.executed(model.name, execution, requests=len(batch), rows=rows)
        return [
            (job, Answer({}, Stamps(job.received_ns, job.queued_ns, started_ns, finished_ns), contents=mine))
            for job, mine in zip(batch, found, strict=True)
        ]


def _settle(outcomes: Sequence[Outcome]) -> None:
    for job, outcome in outcomes:
        job.settle(outcome)
