"""A batch that is not full waits for more, and what that and its companions cost a share has a bound."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from inference_server.scheduler import Scheduler
from testbed.calculus import SharedStage, Workers
from tests.unit.inference.scheduling import (
    Clock,
    Item,
    _taking,
    batching,
    computed,
    named,
    random_system,
    resting,
    worst_lag_s,
)
from tests.unit.inference.serving import LONG_S, until


class Waits:
    """In place of a scheduler's condition: a worker waits on `Clock`, until a request arrives or its time is over."""

    def __init__(self, queue: Scheduler[Item], arrivals: list[tuple[float, Item]]) -> None:
        self._queue = queue
        self._coming = [(round(at_s * 1e9), item) for at_s, item in reversed(arrivals)]

    def notify(self) -> None:
        """The only worker is not asleep."""

    def wait(self, timeout_s: float | None) -> None:
        ends_ns = [] if timeout_s is None else [Clock.now_ns + max(1, math.ceil(timeout_s * 1e9))]
        ends_ns += [at_ns for at_ns, _ in self._coming[-1:]]
        self._queue._lock.release()
        self.pass_to(max(Clock.now_ns, min(ends_ns)))
        self._queue._lock.acquire()

    def pass_to(self, now_ns: int) -> None:
        """Let what has arrived by this time be submitted when it did."""
        while self._coming and self._coming[-1][0] <= now_ns:
            Clock.now_ns, item = self._coming.pop()
            self._queue.submit(item)
        Clock.now_ns = now_ns


def computed_by_one(queue: Scheduler[Item], arrivals: list[tuple[float, Item]]) -> list[float]:
    """When each of these, in the order of arrival, is done by a worker whose batches wait for more."""
    Clock.now_ns = 0
    waits, done = Waits(queue, arrivals), dict[int, float]()
    queue._ready = waits  # type: ignore[assignment]
    waits.pass_to(0)
    while len(done) < len(arrivals):
        batch = queue.take()
        waits.pass_to(Clock.now_ns + round(sum(item.work_s for item in batch) * 1e9))
        done |= dict.fromkeys(map(id, batch), Clock.now_ns / 1e9)
    return [done[id(item)] for _, item in arrivals]


@pytest.mark.parametrize("capped_workers", [None, 1])
@pytest.mark.parametrize("delay_s", [0.1, 5.0])
def test_a_batch_that_waits_makes_a_share_lag_by_the_delay_more_at_most(
    delay_s: float, capped_workers: int | None
) -> None:
    rows, worst = 3, 0.0
    for seed in range(30):
        shares, most_s, arrivals = random_system(np.random.default_rng(seed), 1)
        stage = SharedStage(Workers(1, most_s[0]), float(shares[0]), tuple(most_s[1:].tolist()))
        queue = batching(
            rows, delay_s, limit=10**6, now_ns=lambda: Clock.now_ns, capped_workers=capped_workers, **named(shares)
        )
        lag_s = worst_lag_s(arrivals, computed_by_one(queue, arrivals), stage.work_per_s)
        worst = max(worst, lag_s / (stage.latency_s + 2 * (rows - 1) * most_s.max() + delay_s))
    assert 0.5 < worst <= 1.0


def test_a_request_that_misses_a_full_batch_waits_for_it_and_is_finished_with_its_own() -> None:
    mine = (0.1, Item("alpha", batch="same"))
    flood = [(0.0, Item("bravo", batch="same")) for _ in range(100)]
    for rows, done_s in ((1, 2.0), (10, 20.0)):
        queue = batching(rows, now_ns=lambda: 0, alpha=0.5, bravo=0.5)
        assert computed(queue, [*flood, mine], 1)[-1] == done_s


def test_a_batch_that_waits_grows_by_capped_requests_as_they_become_due() -> None:
    queue = batching(3, 3600.0, capped_workers=1, alpha=0.5)
    for _ in range(3):
        queue.submit(Item("alpha", work_s=0.01, batch="same"))
    thread, taken = _taking(queue)
    thread.join(LONG_S)
    assert len(taken) == 3


def test_a_batch_that_waits_ends_once_a_capped_request_that_cannot_join_it_is_due() -> None:
    queue = batching(3, 3600.0, capped_workers=1, alpha=0.5, bravo=0.5)
    first, mine, other = Item("bravo", work_s=0.1), Item("alpha", batch="same"), Item("bravo", batch="other")
    queue.submit(first)
    assert queue.take() == [first]
    due_s = time.monotonic() + 0.1
    queue.submit(mine)
    queue.submit(other)
    thread, taken = _taking(queue)
    thread.join(LONG_S)
    assert taken == [mine]
    assert time.monotonic() > due_s, "what is not due ends no batch"


def test_a_capped_request_whose_deadline_passes_while_a_batch_waits_is_dropped_then() -> None:
    dropped: list[Item] = []
    queue = batching(3, 3600.0, capped_workers=1, dropped=dropped, alpha=0.5, bravo=0.5)
    first, mine = Item("bravo", work_s=1e6), Item("alpha", batch="same")
    queue.submit(first)
    assert queue.take() == [first]
    hurried = Item("bravo", deadline_ns=time.monotonic_ns() + 50_000_000)
    queue.submit(mine)
    queue.submit(hurried)
    thread, taken = _taking(queue)
    until(lambda: dropped == [hurried])
    assert thread.is_alive()
    queue.close()
    thread.join(LONG_S)
    assert taken == [mine]


def test_a_worker_whose_batch_ends_wakes_another_for_what_is_not_due_yet() -> None:
    queue, grown, found = batching(3, 0.3, capped_workers=2, alpha=0.5), list[list[Item]](), list[list[Item]]()
    first, second = Item("alpha", work_s=1.0, batch="same"), Item("alpha", batch="same")
    growing = resting(queue, grown)
    queue.submit(first)
    until(lambda: queue._resting == 0 and len(queue) == 0)
    worker = resting(queue, found)
    queue.submit(second)
    growing.join(LONG_S)
    worker.join(LONG_S)
    assert (grown, found) == ([[first]], [[second]])
