"""The threads that compute, and the request they compute as it goes from being admitted to being answered.

A fixed number of workers, each with a fixed number of CPU threads inside PyTorch, takes requests from the scheduler.
Answers go back to the event loop that serves the network; it alone touches futures.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from inference_server.errors import ExpiredError, FailedError
from inference_server.models import Model
from inference_server.protocol import Stamps
from inference_server.scheduler import Scheduler
from inference_server.tensors import Array

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker made of a request."""

    outputs: Mapping[str, Array]
    stamps: Stamps


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """An admitted request.

    Attributes:
        tenant: Whose share it uses.
        work_s: Its expected cost.
        deadline_ns: CLOCK_MONOTONIC, None for none.
        received_ns: See `Stamps`.
        queued_ns: See `Stamps`.
        model: What computes it.
        inputs: Checked inputs.
        answer: Where the event loop waits.
    """

    tenant: str
    work_s: float
    deadline_ns: int | None
    received_ns: int
    queued_ns: int
    model: Model
    inputs: Mapping[str, Array]
    answer: asyncio.Future[Answer]

    def resolve(self, outcome: Answer | Exception) -> None:
        """Hand the outcome to whoever waits, if somebody still does; from any thread."""
        self.answer.get_loop().call_soon_threadsafe(self._settle, outcome)

    def expire(self) -> None:
        """Say that the deadline passed before the request's turn came."""
        self.resolve(ExpiredError(f"model {self.model.name!r}: the deadline passed in the queue; nothing was computed"))

    def _settle(self, outcome: Answer | Exception) -> None:
        if self.answer.done():
            return
        if isinstance(outcome, Exception):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)


class Workers:
    """Running compute threads.

    Attributes:
        computed: Requests computed so far.
    """

    def __init__(self, scheduler: Scheduler[Job], count: int, threads: int) -> None:
        self._cpu_threads = threads
        self.computed = 0
        self._lock = threading.Lock()
        self._scheduler = scheduler
        self._threads = [threading.Thread(target=self._run, name=f"compute-{i}", daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until every worker has ended; the scheduler must have been closed."""
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        torch.set_num_threads(self._cpu_threads)  # a setting of the thread that computes
        while (job := self._scheduler.take()) is not None:
            started_ns = time.monotonic_ns()
            try:
                outputs = job.model.compute(job.inputs)
            # A model may raise anything; that is its request's outcome and not the worker's end.
            except Exception as error:  # noqa: BLE001
                _LOG.exception("model %s failed", job.model.name)
                job.resolve(FailedError(f"model {job.model.name!r}: {type(error).__name__}: {error}"))
                continue
            stamps = Stamps(job.received_ns, job.queued_ns, started_ns, time.monotonic_ns())
            with self._lock:
                self.computed += 1
            job.resolve(Answer(outputs, stamps))
