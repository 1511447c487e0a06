"""A batch changes nobody's turn, and waits for more only while that costs no request in it its deadline."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from inference_server.scheduler import Batching, Scheduler
from tests.unit.inference.scheduling import Item, _taking, batching, resting, taken
from tests.unit.inference.serving import LONG_S, until


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
