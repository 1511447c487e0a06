"""A capped share gets no more than its fraction, so that nothing others do takes anything from it."""

from __future__ import annotations

import threading
import time
from heapq import heappop, heappush

import numpy as np
import pytest

from inference_server.scheduler import Scheduler
from testbed.calculus import SharedStage, Workers
from tests.unit.inference.scheduling import Clock, Item, capped
from tests.unit.inference.serving import LONG_S, until

pytestmark = pytest.mark.usefixtures("clock_from_zero")


def begun(queue: Scheduler[Item], arrivals: list[tuple[float, Item]], workers: int) -> list[float]:
    """When each of these, in the order of arrival, is begun by so many workers behind capped shares."""
    queue.close()
    free, found, coming = [0.0] * workers, dict[int, float](), 0
    while len(found) < len(arrivals):
        now_s = heappop(free)
        Clock.now_ns = round(now_s * 1e9)
        while coming < len(arrivals) and arrivals[coming][0] <= now_s:
            queue.submit(arrivals[coming][1])
            coming += 1
        # In whole nanoseconds, so what is due in less is due.
        if (due_s := queue._next_due_s()) is not None and due_s < 1e-9:
            Clock.now_ns += 1
            (item,) = queue.take()
            found[id(item)] = now_s
            now_s += item.work_s
        else:
            moments = [now_s + due_s] if due_s is not None else []
            moments += [arrivals[coming][0]] if coming < len(arrivals) else []
            if not moments:
                continue
            now_s = max(now_s, min(moments))
        heappush(free, now_s)
    return [found[id(item)] for _, item in arrivals]


def test_a_capped_share_gets_no_more_than_its_fraction_while_all_else_rests() -> None:
    arrivals = [(0.0, Item("alpha", 1.0)) for _ in range(8)] + [(50.0, Item("alpha", 2.0)), (50.0, Item("alpha"))]
    assert begun(capped(alpha=0.25), arrivals, 1) == pytest.approx([0, 4, 8, 12, 16, 20, 24, 28, 50, 58])
    assert begun(capped(2, alpha=0.25), arrivals, 2) == pytest.approx([0, 2, 4, 6, 8, 10, 12, 14, 50, 54])


@pytest.mark.parametrize("workers", [1, 2])
def test_behind_capped_shares_a_flood_moves_no_other_by_more_than_what_is_before_it(workers: int) -> None:
    worst = 0.0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        shares = {"alpha": rng.uniform(0.2, 0.6), "bravo": 0.2, "charlie": 0.2}
        longest_s = dict(zip(shares, rng.uniform(0.1, 1.0, 3).tolist(), strict=True))
        times_s = np.cumsum(rng.exponential(0.6 / shares["alpha"] / workers, 100)).tolist()
        mine = [(at_s, Item("alpha", longest_s["alpha"] * rng.uniform(0.3, 1.0))) for at_s in times_s]
        flood = [(0.0, Item(name, longest_s[name])) for name in ("bravo", "charlie") for _ in range(400)]
        alone = begun(capped(workers, **shares), mine, workers)
        beside = begun(capped(workers, **shares), flood + mine, workers)[len(flood) :]
        moved_s = np.subtract(beside, alone)
        assert moved_s.min() > -1e-6, "no request begins before its own server would have begun it"
        stage = SharedStage(
            Workers(workers, longest_s["alpha"]), shares["alpha"], (longest_s["bravo"], longest_s["charlie"]), workers
        )
        worst = max(worst, moved_s.max() / stage.latency_s)
    assert 0.2 < worst <= 1.0


def test_a_worker_that_waits_for_a_capped_request_wakes_when_it_is_due_and_ends_when_all_is_taken() -> None:
    queue: Scheduler[Item] = Scheduler(
        {"alpha": 0.1}, queue_limit=9, now_ns=time.monotonic_ns, expired=lambda _: None, capped_workers=1
    )
    first, second = Item("alpha", work_s=0.005), Item("alpha")
    begun_s = time.monotonic()
    queue.submit(first)
    queue.submit(second)
    queue.close()
    assert [queue.take(), queue.take(), queue.take()] == [[first], [second], []]
    assert time.monotonic() - begun_s >= 0.05


def test_a_light_request_that_is_not_due_is_left_to_a_worker() -> None:
    queue = capped(alpha=0.5)
    seen: list[list[Item]] = []
    worker = threading.Thread(target=lambda: seen.append(queue.take()))
    worker.start()
    until(lambda: queue._resting == 1)
    first, second = Item("alpha"), Item("alpha")
    queue.submit(first, wake=False)
    queue.submit(second, wake=False)
    assert queue.take_light(lambda _: True) == [first]
    assert not queue.done()
    Clock.now_ns = 1
    assert queue.take_light(lambda _: True) == []
    Clock.now_ns = 2 * 10**9
    queue.close()
    worker.join(LONG_S)
    assert seen == [[second]]
