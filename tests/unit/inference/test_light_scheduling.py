"""What is light is taken in its turn in place of a worker that rests, and everything else is left to a worker."""

from __future__ import annotations

import time

import pytest

from inference_server.scheduler import Batching, Scheduler
from tests.unit.inference.scheduling import Clock, Item, capped, resting, scheduler
from tests.unit.inference.serving import LONG_S, until

pytestmark = pytest.mark.usefixtures("clock_from_zero")


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


def test_light_requests_of_capped_tenants_wait_for_each_other_however_many_workers_rest() -> None:
    light_s, begun_s = 5e-4, dict[str, float]()
    queue, found = capped(2, alpha=0.5, bravo=0.5), list[list[Item]]()
    workers = [resting(queue, found, number) for number in (1, 2)]
    for tenant in ("alpha", "bravo"):
        queue.submit(Item(tenant, work_s=light_s), wake=False)
    while batch := queue.take_light(lambda _: True):
        begun_s[batch[0].tenant] = Clock.now_ns / 1e9
        Clock.now_ns += round(light_s * 1e9)
        queue.done()
    # Servers of either share alone would begin both at once, and two workers might as well.
    assert begun_s == {"alpha": 0.0, "bravo": light_s}
    queue.close()
    for worker in workers:
        worker.join()
    assert found == [[], []]


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
