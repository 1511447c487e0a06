"""Requests for a scheduler, schedulers on a clock of the test's own, and workers that take from them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from inference_server.scheduler import Batching, Scheduler
from tests.unit.inference.serving import until


@dataclass(eq=False)
class Item:
    tenant: str
    work_s: float = 1.0
    deadline_ns: int | None = None
    rows: int = 1
    batch: str | None = None

    @property
    def begin_by_ns(self) -> int | None:
        return self.deadline_ns


class Clock:
    now_ns = 0


def scheduler(dropped: list[Item] | None = None, limit: int = 1000, **shares: float) -> Scheduler[Item]:
    gone = [] if dropped is None else dropped
    return Scheduler(shares, queue_limit=limit, now_ns=lambda: Clock.now_ns, expired=gone.append)


def batching(
    rows: int,
    delay_s: float = 0.0,
    *,
    limit: int = 1000,
    now_ns: Callable[[], int] = time.monotonic_ns,
    capped_workers: int | None = None,
    dropped: list[Item] | None = None,
    **shares: float,
) -> Scheduler[Item]:
    gone = [] if dropped is None else dropped
    return Scheduler(
        shares,
        queue_limit=limit,
        now_ns=now_ns,
        expired=gone.append,
        batching=Batching(rows, delay_s),
        capped_workers=capped_workers,
    )


def taken(queue: Scheduler[Item], count: int) -> list[Item]:
    return [item for _ in range(count) for item in queue.take()]


def _taking(queue: Scheduler[Item]) -> tuple[threading.Thread, list[Item]]:
    taken: list[Item] = []
    thread = threading.Thread(target=lambda: taken.extend(queue.take()), daemon=True)
    thread.start()
    return thread, taken


def capped(workers: int = 1, limit: int = 10**6, **shares: float) -> Scheduler[Item]:
    return Scheduler(
        shares, queue_limit=limit, now_ns=lambda: Clock.now_ns, expired=lambda _: None, capped_workers=workers
    )


def resting(queue: Scheduler[Item], found: list[list[Item]], count: int = 1) -> threading.Thread:
    """A worker that has nothing to do, the last of so many; what it is given goes into `found`."""
    worker = threading.Thread(target=lambda: found.append(queue.take()), daemon=True)
    worker.start()
    until(lambda: queue._resting == count)
    return worker


def computed(queue: Scheduler[Item], arrivals: list[tuple[float, Item]], workers: int) -> list[float]:
    """When each of these, in the order of arrival, is done by so many workers; a batch saves them nothing."""
    free, done, coming = [0.0] * workers, dict[int, float](), 0
    while len(done) < len(arrivals):
        now_s = heappop(free)
        while coming < len(arrivals) and arrivals[coming][0] <= now_s:
            queue.submit(arrivals[coming][1])
            coming += 1
        if not queue.done():
            batch = queue.take()
            now_s += sum(item.work_s for item in batch)
            done |= dict.fromkeys(map(id, batch), now_s)
        elif coming < len(arrivals):
            now_s = max(now_s, arrivals[coming][0])
        else:
            continue
        heappush(free, now_s)
    return [done[id(item)] for _, item in arrivals]


def random_system(rng: np.random.Generator, workers: int) -> tuple[np.ndarray, np.ndarray, list[tuple[float, Item]]]:
    """Shares, the longest work of each, and arrivals in order, floods among them; whose share is asked about is 0."""
    shares = np.maximum(rng.dirichlet(np.full(rng.integers(2, 5), rng.choice([0.3, 1.0, 3.0]))), 0.02)
    shares /= shares.sum()
    most_s = rng.uniform(0.05, 1.0, shares.size)
    arrivals = []
    for k, (share, longest_s) in enumerate(zip(shares, most_s, strict=True)):
        gaps_s = rng.exponential(2 * longest_s / share / workers * rng.uniform(0.3, 1.5), 120)
        times_s = np.cumsum(gaps_s * (rng.random(gaps_s.size) < 0.5))
        if k and rng.random() < 0.4:
            times_s = np.full(300, rng.uniform(0.0, 5.0))  # a flood
        arrivals += [(at_s, Item(str(k), longest_s * rng.uniform(0.3, 1.0), batch="same")) for at_s in times_s]
    return shares, most_s, sorted(arrivals, key=lambda arrival: arrival[0])


def named(shares: np.ndarray) -> dict[str, float]:
    return {str(k): float(share) for k, share in enumerate(shares)}


def worst_lag_s(arrivals: list[tuple[float, Item]], done_s: list[float], work_per_s: float) -> float:
    """How long after an ideal server of tenant 0's rate begins a request of it that is done, at the worst."""
    worst_s = ideal_s = 0.0
    for (at_s, item), finished_s in zip(arrivals, done_s, strict=True):
        if item.tenant == "0":
            begin_s = max(at_s, ideal_s)
            ideal_s = begin_s + item.work_s / work_per_s
            worst_s = max(worst_s, finished_s - begin_s)
    return worst_s
