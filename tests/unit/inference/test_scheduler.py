"""Shares are kept, floods stay in their own queue, and what nobody wants any more costs nothing."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest

from inference_server.errors import ExhaustedError
from inference_server.scheduler import Scheduler
from testbed.calculus import SharedStage, Workers
from tests.unit.inference.scheduling import (
    Clock,
    Item,
    batching,
    computed,
    named,
    random_system,
    scheduler,
    taken,
    worst_lag_s,
)

pytestmark = pytest.mark.usefixtures("clock_from_zero")


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
