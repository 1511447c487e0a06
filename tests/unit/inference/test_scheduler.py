"""Shares are kept, floods stay in their own queue, and what nobody wants any more costs nothing."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
import pytest

from inference_server.errors import ExhaustedError
from inference_server.scheduler import Batching, Scheduler
from testbed.calculus import SharedStage, Workers
from tests.unit.inference.serving import LONG_S, until


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


def capped(workers: int = 1, limit: int = 10**6, **shares: float) -> Scheduler[Item]:
    return Scheduler(
        shares, queue_limit=limit, now_ns=lambda: Clock.now_ns, expired=lambda _: None, capped_workers=workers
    )


@pytest.fixture(autouse=True)
def _from_zero() -> None:
    Clock.now_ns = 0


def taken(queue: Scheduler[Item], count: int) -> list[Item]:
    return [item for _ in range(count) for item in queue.take()]


@pytest.mark.parametrize(("alpha", "bravo"), [(0.5, 0.5), (0.75, 0.25), (0.9, 0.1)])
def test_backlogged_tenants_are_served_in_proportion_to_their_shares(alpha: float, bravo: float) -> None:
    queue = scheduler(alpha=alpha, bravo=bravo)
    for _ in range(200):
        queue.submit(Item("alpha"))
        queue.submit(Item("bravo"))
    counts = Counter(item.tenant for item in taken(queue, 100))
    assert counts["alpha"] == pytest.approx(100 * alpha, abs=1)


def test_shares_are_of_work_and_not_of_requests() -> None:
    queue = scheduler(alpha=0.5, bravo=0.5)
    for _ in range(200):
        queue.submit(Item("alpha", work_s=4.0))
        queue.submit(Item("bravo", work_s=1.0))
    counts = Counter(item.tenant for item in taken(queue, 100))
    assert counts["alpha"] == pytest.approx(20, abs=1)


def test_behind_a_flood_a_tenant_waits_for_one_foreign_request_at_most() -> None:
    queue = scheduler(alpha=0.3, bravo=0.7)
    for _ in range(500):
        queue.submit(Item("bravo"))
    taken(queue, 250)
    mine = Item("alpha", work_s=0.3)
    queue.submit(mine)
    assert mine in taken(queue, 2)


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


@pytest.mark.parametrize(("rows", "systems"), [(1, 200), (2, 60), (5, 60)])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_share_lags_an_ideal_server_of_its_rate_by_its_stages_latency_and_two_batches_at_most(
    workers: int, rows: int, systems: int
) -> None:
    worst = 0.0
    for seed in range(systems):
        shares, most_s, arrivals = random_system(np.random.default_rng(seed), workers)
        stage = SharedStage(Workers(workers, most_s[0]), float(shares[0]), tuple(most_s[1:].tolist()), workers)
        queue = batching(rows, limit=10**6, now_ns=lambda: 0, **named(shares))
        lag_s = worst_lag_s(arrivals, computed(queue, arrivals, workers), stage.work_per_s)
        worst = max(worst, lag_s / (stage.latency_s + 2 * (rows - 1) * most_s.max()))
    assert 0.5 < worst <= 1.0


def test_an_idle_tenant_saves_nothing_up() -> None:
    queue = scheduler(alpha=0.5, bravo=0.5)
    for _ in range(300):
        queue.submit(Item("bravo"))
    taken(queue, 200)
    for _ in range(100):
        queue.submit(Item("alpha"))
    # The newcomer's first goes before what is due at the same moment.
    assert Counter(item.tenant for item in taken(queue, 20))["alpha"] in {10, 11}


def test_each_tenant_is_served_in_the_order_it_asked() -> None:
    queue = scheduler(alpha=0.5, bravo=0.5)
    items = [Item(name) for _ in range(20) for name in ("alpha", "bravo")]
    for item in items:
        queue.submit(item)
    order = taken(queue, 40)
    for name in ("alpha", "bravo"):
        assert [i for i in order if i.tenant == name] == [i for i in items if i.tenant == name]


def test_tenants_without_a_share_have_what_is_left_together() -> None:
    queue = scheduler(alpha=0.5)
    for _ in range(50):
        queue.submit(Item("alpha"))
        queue.submit(Item("charlie"))
        queue.submit(Item("delta"))
    counts = Counter(item.tenant for item in taken(queue, 40))
    assert counts == {"alpha": 20, "charlie": 10, "delta": 10}


def test_where_nothing_is_left_others_are_refused() -> None:
    with pytest.raises(ExhaustedError, match=r"'charlie': found no share .* \['alpha', 'bravo'\]"):
        scheduler(alpha=0.5, bravo=0.5).submit(Item("charlie"))


def test_a_full_queue_refuses_its_own_tenant_only() -> None:
    queue = scheduler(limit=2, alpha=0.5, bravo=0.5)
    queue.submit(Item("alpha"))
    queue.submit(Item("alpha"))
    with pytest.raises(ExhaustedError, match="'alpha': found 2 requests waiting"):
        queue.submit(Item("alpha"))
    queue.submit(Item("bravo"))


def test_what_expired_is_dropped_at_no_cost_to_its_tenant() -> None:
    dropped: list[Item] = []
    queue = scheduler(dropped, alpha=0.5, bravo=0.5)
    late = [Item("alpha", deadline_ns=5) for _ in range(10)]
    for item in (*late, *(Item("alpha", deadline_ns=50) for _ in range(10)), *(Item("bravo") for _ in range(20))):
        queue.submit(item)
    Clock.now_ns = 10
    try:
        assert Counter(item.tenant for item in taken(queue, 10))["alpha"] == 5
        assert dropped == late
    finally:
        Clock.now_ns = 0


def test_what_is_withdrawn_leaves_no_credit_behind() -> None:
    queue = scheduler(alpha=0.5, bravo=0.5)
    for _ in range(100):
        queue.submit(Item("bravo"))
    taken(queue, 50)
    first = Item("alpha")
    queue.submit(first)
    for _ in range(20):
        queue.submit(Item("alpha"))
    queue.withdraw(first)
    assert Counter(item.tenant for item in taken(queue, 20))["alpha"] in {10, 11}


def test_what_is_withdrawn_is_not_taken() -> None:
    queue = scheduler(alpha=1.0)
    first, second = Item("alpha"), Item("alpha")
    queue.submit(first)
    queue.submit(second)
    assert queue.withdraw(first)
    assert not queue.withdraw(first)
    assert queue.take() == [second]
    assert len(queue) == 0


def test_a_worker_that_waits_is_woken_by_a_request_and_by_the_end() -> None:
    queue = scheduler(alpha=1.0)
    seen: list[list[Item]] = []
    worker = threading.Thread(target=lambda: seen.extend([queue.take(), queue.take()]))
    worker.start()
    item = Item("alpha")
    queue.submit(item)
    queue.close()
    worker.join(10)
    assert seen == [[item], []]


def test_what_is_queued_when_the_queue_closes_is_still_taken() -> None:
    queue = scheduler(alpha=1.0)
    item = Item("alpha")
    queue.submit(item)
    queue.close()
    assert [queue.take(), queue.take()] == [[item], []]


@pytest.mark.parametrize("shares", [{"alpha": 0.0}, {"alpha": -0.1}, {"alpha": 0.7, "bravo": 0.4}])
def test_shares_that_make_no_sense_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected fractions above 0 and at most 1 together"):
        scheduler(**shares)


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


def test_a_batch_is_what_comes_next_in_the_fair_order_and_changes_nobodys_turn() -> None:
    order: list[list[Item]] = []
    items = [Item(name, batch="same") for name in ("alpha", "bravo") for _ in range(12)]
    for queue in (batching(1, alpha=0.75, bravo=0.25), batching(5, alpha=0.75, bravo=0.25)):
        for item in items:
            queue.submit(item)
        order.append([])
        while len(queue):
            order[-1] += queue.take()
    assert order[0] == order[1]


def test_a_batch_has_no_more_rows_than_allowed() -> None:
    queue = batching(8, alpha=1.0)
    for rows in (3, 3, 3, 9, 1):
        queue.submit(Item("alpha", rows=rows, batch="same"))
    assert [[item.rows for item in queue.take()] for _ in range(4)] == [[3, 3], [3], [9], [1]]


def test_a_batch_ends_before_what_cannot_join_it() -> None:
    queue = batching(8, alpha=1.0)
    for kind in ("one", "one", "two", "one", None, None):
        queue.submit(Item("alpha", batch=kind))
    found = []
    while len(queue):
        found.append([item.batch for item in queue.take()])
    assert found == [["one", "one"], ["two"], ["one"], [None], [None]]


def test_without_a_delay_a_batch_waits_for_nobody() -> None:
    queue = batching(8, alpha=1.0)
    queue.submit(Item("alpha", batch="same"))
    assert len(queue.take()) == 1


def _taking(queue: Scheduler[Item]) -> tuple[threading.Thread, list[Item]]:
    taken: list[Item] = []
    thread = threading.Thread(target=lambda: taken.extend(queue.take()), daemon=True)
    thread.start()
    return thread, taken


def test_a_batch_that_waits_is_taken_as_soon_as_it_is_full() -> None:
    queue = batching(3, 3600.0, alpha=1.0)
    queue.submit(Item("alpha", batch="same"))
    thread, taken = _taking(queue)
    until(lambda: len(queue) == 0)
    for _ in range(2):
        queue.submit(Item("alpha", batch="same"))
    thread.join(30)
    assert len(taken) == 3


def test_a_batch_does_not_wait_while_something_that_cannot_join_it_waits() -> None:
    queue = batching(3, 3600.0, alpha=0.5, bravo=0.5)
    thread, taken = _taking(queue)
    first, other = Item("alpha", batch="same"), Item("bravo", batch="other")
    queue.submit(first)
    queue.submit(other)
    thread.join(30)
    assert len(taken) == 1
    assert len(queue) == 1


def test_a_batch_does_not_wait_beyond_the_deadline_of_a_request_in_it() -> None:
    queue = batching(3, 3600.0, alpha=1.0)
    queue.submit(Item("alpha", work_s=0.0, deadline_ns=time.monotonic_ns() + 20_000_000, batch="same"))
    assert len(queue.take()) == 1


@pytest.mark.parametrize("others_deadline_s", [None, 3600.0])
def test_a_batch_does_not_wait_beyond_the_deadline_of_the_first_of_several_that_waited(
    others_deadline_s: float | None,
) -> None:
    queue = batching(3, 1e5, alpha=1.0)
    now_ns = time.monotonic_ns()
    others_ns = None if others_deadline_s is None else now_ns + int(others_deadline_s * 1e9)
    queue.submit(Item("alpha", work_s=0.0, deadline_ns=now_ns + 200_000_000, batch="same"))
    queue.submit(Item("alpha", work_s=0.0, deadline_ns=others_ns, batch="same"))
    thread, taken = _taking(queue)
    thread.join(LONG_S)
    assert len(taken) == 2


def test_a_batch_begins_so_early_that_all_of_it_is_done_by_the_deadline() -> None:
    queue = batching(4, 1e5, alpha=1.0)
    now_ns = time.monotonic_ns()
    for _ in range(3):
        queue.submit(Item("alpha", work_s=20.0, deadline_ns=now_ns + 61_000_000_000, batch="same"))
    thread, taken = _taking(queue)
    thread.join(LONG_S)
    assert len(taken) == 3


def test_what_is_batched_is_charged_as_if_it_were_alone() -> None:
    queue = batching(4, alpha=0.5, bravo=0.5)
    for _ in range(100):
        queue.submit(Item("alpha", batch="same"))
        queue.submit(Item("bravo"))
    assert Counter(item.tenant for item in taken(queue, 40))["alpha"] == pytest.approx(20, abs=1)


def test_a_tenant_has_the_queue_limit_of_its_own() -> None:
    queue: Scheduler[Item] = Scheduler(
        {"alpha": 0.5}, queue_limit=2, queue_limits={"alpha": 1}, now_ns=lambda: 0, expired=lambda _: None
    )
    queue.submit(Item("alpha"))
    with pytest.raises(ExhaustedError, match="1 requests waiting"):
        queue.submit(Item("alpha"))
    queue.submit(Item("charlie"))
    queue.submit(Item("charlie"))
    assert queue.waiting() == {"alpha": 1, "": 2}


def test_a_queue_limit_without_a_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tenants \['bravo'\] without a share"):
        Scheduler({"alpha": 0.5}, queue_limit=2, queue_limits={"bravo": 1}, now_ns=lambda: 0, expired=print)


def resting(queue: Scheduler[Item], found: list[list[Item]]) -> threading.Thread:
    """A worker that has nothing to do; what it is given goes into `found`."""
    worker = threading.Thread(target=lambda: found.append(queue.take()), daemon=True)
    worker.start()
    until(lambda: queue._resting == 1)
    return worker


def test_what_is_light_is_taken_in_the_fair_order_in_place_of_a_worker_that_rests() -> None:
    queue, found = scheduler(alpha=0.9, bravo=0.1), list[list[Item]]()
    worker = resting(queue, found)
    for tenant in ("bravo", "bravo", "alpha", "alpha", "alpha"):
        queue.submit(Item(tenant), wake=False)
    order = [queue.take_light(lambda _: True)[0].tenant for _ in range(5)]
    assert order == ["alpha", "bravo", "alpha", "alpha", "bravo"]
    assert queue.take_light(lambda _: True) == []
    assert not found
    queue.close()
    worker.join()
    assert found == [[]]


def test_a_worker_is_woken_for_what_is_not_light_and_whatever_comes_after_it_waits() -> None:
    queue, found = scheduler(alpha=1.0), list[list[Item]]()
    worker = resting(queue, found)
    heavy, light = Item("alpha", work_s=5.0), Item("alpha", work_s=1.0)
    for item in (heavy, light):
        queue.submit(item, wake=False)
    assert queue.take_light(lambda item: item.work_s < 2.0) == []
    worker.join()
    assert found == [[heavy]]
    assert queue.take_light(lambda _: True) == [], "the only worker computes"
    assert queue.take() == [light]


def test_a_batch_that_waits_for_more_is_left_to_a_worker() -> None:
    batching = Batching(rows=4, delay_s=1e-3)
    queue: Scheduler[Item] = Scheduler(
        {"alpha": 1.0}, queue_limit=9, now_ns=time.monotonic_ns, expired=lambda _: None, batching=batching
    )
    found = list[list[Item]]()
    worker = resting(queue, found)
    item = Item("alpha", batch="same")
    queue.submit(item, wake=False)
    assert queue.take_light(lambda _: True) == []
    worker.join()
    assert found == [[item]]


def test_a_tenant_that_returns_once_all_light_work_is_done_owes_nothing() -> None:
    queue, found = scheduler(alpha=0.5, bravo=0.5), list[list[Item]]()
    worker = resting(queue, found)
    for _ in range(5):
        queue.submit(Item("alpha"), wake=False)
    for left in (4, 3, 2, 1, 0):
        assert len(queue.take_light(lambda _: True)) == 1
        assert queue.done() is (left == 0)
    for tenant in ("bravo", "bravo", "alpha"):
        queue.submit(Item(tenant), wake=False)
    assert queue.take_light(lambda _: True)[0].tenant == "alpha", "begins as early as bravo, and is named before it"
    queue.close()
    worker.join()


def test_what_cannot_join_a_batch_that_waits_for_more_goes_to_a_worker_that_rests() -> None:
    queue: Scheduler[Item] = Scheduler(
        {}, queue_limit=9, now_ns=time.monotonic_ns, expired=lambda _: None, batching=Batching(rows=4, delay_s=1e6)
    )
    first, other = Item("", batch="same"), Item("", batch="other")
    grown, found = list[list[Item]](), list[list[Item]]()
    growing = resting(queue, grown)
    queue.submit(first)
    until(lambda: queue._resting == 0 and len(queue) == 0)
    worker = resting(queue, found)
    queue.submit(other)
    growing.join()
    until(lambda: queue._resting == 0)
    queue.close()
    worker.join()
    assert (grown, found) == ([[first]], [[other]])


def test_light_work_fills_a_batch_that_waits_for_more() -> None:
    queue: Scheduler[Item] = Scheduler(
        {}, queue_limit=9, now_ns=time.monotonic_ns, expired=lambda _: None, batching=Batching(rows=2, delay_s=1e6)
    )
    first, second = Item("", batch="same"), Item("", batch="same")
    grown = list[list[Item]]()
    growing = resting(queue, grown)
    queue.submit(first)
    until(lambda: queue._resting == 0 and len(queue) == 0)
    queue.submit(second, wake=False)
    assert queue.take_light(lambda _: True) == []
    growing.join(LONG_S)
    assert grown == [[first, second]]
    queue.close()
