"""Carries out independent tasks in this process, in several, or on Ray; whoever does them, the results are the same.

Tasks leave their results on disk themselves, so an interruption loses only what was under way.
"""

from __future__ import annotations

import importlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.synchronize import Event
from typing import Any, Protocol, TypeVar

from testbed.errors import PreflightError

TaskT = TypeVar("TaskT")
ResultT_co = TypeVar("ResultT_co", covariant=True)

_LOOK_UP_S = 0.2


class Work(Protocol[TaskT, ResultT_co]):  # type: ignore[misc] # a protocol of one function; tasks only go in
    """A function of the module level that carries out one task."""

    def __call__(
        self, task: TaskT, /, *, advance: Callable[[float], None] = ..., stop: Callable[[], bool] = ...
    ) -> ResultT_co:
        """Carry out a task."""


def carry_out(
    work: Work[TaskT, ResultT_co],
    tasks: Sequence[TaskT],
    *,
    workers: int = 1,
    advance: Callable[[float], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[ResultT_co]:
    """Results as they come; in the order of the tasks only for one worker.

    Args:
        work: What to do.
        tasks: To what.
        workers: Processes; 1 works in this one.
        advance: Told which fraction is done.
        stop: Asked now and then whether to end early: tasks under way end with what they have, others never begin.
    """
    if workers == 1 or len(tasks) == 1:
        for done, task in enumerate(tasks):
            if stop():
                return

            def tell(fraction: float, done: int = done) -> None:
                advance((done + fraction) / len(tasks))

            yield work(task, advance=tell, stop=stop)
        return
    context = multiprocessing.get_context("spawn")
    enough = context.Event()
    with ProcessPoolExecutor(workers, context, _ignore_interrupts, (enough,)) as pool:
        waiting: set[Future[ResultT_co]] = {pool.submit(_work_in_child, work, task) for task in tasks}
        total = len(waiting)
        while waiting:
            done_now, waiting = wait(waiting, timeout=_LOOK_UP_S, return_when=FIRST_COMPLETED)
            advance((total - len(waiting)) / total)
            if stop() and not enough.is_set():
                enough.set()
                waiting = {future for future in waiting if not future.cancel()}
            for future in done_now:
                yield future.result()


def carry_out_on_ray(
    work: Work[TaskT, ResultT_co],
    tasks: Sequence[TaskT],
    *,
    advance: Callable[[float], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[ResultT_co]:
    """The same on Ray: the cluster that this machine belongs to, or one made for the occasion.

    Raises:
        PreflightError: Ray is not installed.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise PreflightError(
            "Ray: found no module ray, expected the extra that brings it; pip install 'tail-latency-testbed[ray]'"
        ) from error
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    remote = ray.remote(max_retries=0)(_plainly)
    waiting = [remote.remote(work, task) for task in tasks]
    total = len(waiting)
    while waiting:
        done_now, waiting = ray.wait(waiting, timeout=_LOOK_UP_S)
        advance((total - len(waiting)) / total)
        yield from ray.get(done_now)
        if stop():
            for one in waiting:
                ray.cancel(one)
            return


def _plainly(work: Callable[[Any], Any], task: Any) -> Any:
    return work(task)


_enough: list[Event] = []


def _ignore_interrupts(enough: Event) -> None:
    """Ctrl-C reaches every process of a terminal; only the one that leads decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _enough.append(enough)


def _work_in_child(work: Work[TaskT, ResultT_co], task: TaskT) -> ResultT_co:
    stopped, looked_at = False, 0.0

    def stop() -> bool:
        nonlocal stopped, looked_at
        # A look at the shared flag costs a system call.
        if not stopped and time.monotonic() > looked_at + _LOOK_UP_S:
            stopped, looked_at = _enough[0].is_set(), time.monotonic()
        return stopped

    return work(task, advance=lambda _: None, stop=stop)
