"""Whose request is computed next: a bounded queue for each tenant and a guaranteed share of the workers.

The order is that of start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): the head of each queue carries the
virtual time at which a server of the tenant's share alone would begin it, and the smallest is taken. A request is then
done no later than one largest request of every other tenant, over the workers, and its own computation at full speed
after such a server would have begun it, which is what a bound on a shared compute stage allows for. By the times at
which it would end (self-clocked fair queueing) a small share waits for its own computation at the speed of its share
as well. A tenant that floods fills its own queue and nobody else's. What computing means, and who waits for the
answer, this module does not know.

Shares may be capped: then the virtual time is the clock's, and no request begins before its tenant's own server would
have begun it, even while workers rest. What is left over is nobody's, as behind a class of HTB whose rate is its
ceiling, and what a tenant's requests take no longer depends on what others do but for the one request of each that is
before its own. The bound is the same.

A batch is a stretch of that order: it ends before the first request that cannot join, so batching changes nobody's
turn. A request may find a batch begun where it would have found one request, and is finished with its own batch instead
of alone: with batches of N rows it is later by at most the work of 2(N - 1) rows. A batch that is not full waits for
more only while nothing else is due, so it is late by at most the delay. All of it adds to the latency of a share and
takes none of its rate: whatever has a full batch waiting never waits for more. Each request is charged as if it were
computed alone, so what batching saves makes the server faster and nobody's share smaller.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, KeysView, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from inference_server.errors import ExhaustedError

EVERYBODY_ELSE = ""
"""Name of the share of tenants that have none of their own."""


class Work(Protocol):
    """What is queued."""

    @property
    def tenant(self) -> str:
        """Whose it is."""

    @property
    def work_s(self) -> float:
        """What it is expected to take of one worker."""

    @property
    def deadline_ns(self) -> int | None:
        """CLOCK_MONOTONIC time after which nobody wants it, None for never."""

    @property
    def begin_by_ns(self) -> int | None:
        """CLOCK_MONOTONIC time from which on it is not begun, None for none: at the latest the deadline."""

    @property
    def rows(self) -> int:
        """What it counts for in a batch."""

    @property
    def batch(self) -> Hashable | None:
        """What all requests of a batch have in common; None for a request that is computed alone."""


W = TypeVar("W", bound=Work)


@dataclass(frozen=True, slots=True)
class Batching:
    """When requests are computed together.

    Attributes:
        rows: Most rows of a batch, 1 for no batching. A request with more is computed alone.
        delay_s: How long a batch that is not full waits for more.
    """

    rows: int = 1
    delay_s: float = 0.0

    def __post_init__(self) -> None:
        if self.rows < 1 or not 0 <= self.delay_s < float("inf"):
            raise ValueError(
                f"batching: found {self.rows} rows and {self.delay_s} s, expected at least 1 row and a delay of at "
                "least 0 that ends"
            )


@dataclass(slots=True)
class _Share(Generic[W]):
    """One tenant's queue, with the virtual time before which its own server does not begin each.

    `free_s` is the virtual time at which that server is done with what was taken.
    """

    fraction: float
    limit: int
    free_s: float = 0.0
    queue: OrderedDict[int, tuple[W, float]] = field(default_factory=OrderedDict)

    def head(self) -> W:
        return next(iter(self.queue.values()))[0]

    def pop(self) -> W:
        work, _ = self.queue.popitem(last=False)[1]
        return work

    @property
    def due_s(self) -> float:
        """The virtual time at which its own server begins the head."""
        return max(self.free_s, next(iter(self.queue.values()))[1])


class Scheduler(Generic[W]):
    """Queues of all tenants; every method may be called from any thread."""

    def __init__(
        self,
        shares: Mapping[str, float],
        *,
        queue_limit: int,
        now_ns: Callable[[], int],
        expired: Callable[[W], None],
        queue_limits: Mapping[str, int] | None = None,
        batching: Batching | None = None,
        capped_workers: int | None = None,
    ) -> None:
        """Make the queues.

        Args:
            shares: Fraction of the workers that each named tenant is guaranteed; what is left is everybody else's.
            queue_limit: Most requests that wait in each queue.
            now_ns: The clock of the deadlines.
            expired: Told of requests that are dropped because their deadline passed, from the thread that took them
                and while the queues are locked.
            queue_limits: Most requests that wait in the queues of these tenants, instead of `queue_limit`.
            batching: When requests are computed together; never, if left out.
            capped_workers: How many workers there are, of which no share gets more than its fraction; None where who
                has work gets what others leave.

        Raises:
            ValueError: Fractions that are not above 0, or more than 1 together; a limit below 1; a limit for a tenant
                without a share.
        """
        left = 1.0 - sum(shares.values())
        if any(not fraction > 0 for fraction in shares.values()) or left < -1e-9:
            raise ValueError(f"shares: found {dict(shares)}, expected fractions above 0 and at most 1 together")
        limits = dict.fromkeys((*shares, EVERYBODY_ELSE), queue_limit) | dict(queue_limits or {})
        if unknown := sorted(set(limits) - {*shares, EVERYBODY_ELSE}):
            raise ValueError(f"queue limits: found tenants {unknown} without a share, expected some of {list(shares)}")
        if too_small := {name: limit for name, limit in limits.items() if limit < 1}:
            raise ValueError(f"queue limit: found {min(too_small.values())}, expected at least 1")
        self._shares: dict[str, _Share[W]] = {name: _Share(part, limits[name]) for name, part in shares.items()}
        if left > 1e-9:
            self._shares[EVERYBODY_ELSE] = _Share(left, limits[EVERYBODY_ELSE])
        self._batching = batching or Batching()
        self._capped_workers = capped_workers
        self._now_ns = now_ns
        self._expired = expired
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._virtual_s = 0.0
        self._waiting = self._resting = 0
        self._closed = False

    def __len__(self) -> int:
        return sum(self.waiting().values())

    def waiting(self) -> dict[str, int]:
        """Requests that wait, by share."""
        with self._lock:
            return {name: len(share.queue) for name, share in self._shares.items()}

    @property
    def shares(self) -> KeysView[str]:
        """Names of all shares."""
        return self._shares.keys()

    @property
    def capped(self) -> bool:
        """Whether no share gets more than its fraction."""
        return self._capped_workers is not None

    @property
    def idle(self) -> bool:
        """Whether nothing waits and a worker rests."""
        return not self._waiting and self._resting > 0

    def share_of(self, tenant: str) -> str:
        """Name of the share that a tenant uses."""
        return tenant if tenant in self._shares else EVERYBODY_ELSE

    def submit(self, work: W, *, wake: bool = True) -> None:
        """Queue a request.

        Args:
            work: What is asked for.
            wake: Whether to wake a worker for it; who says no calls `take_light` next.

        Raises:
            ExhaustedError: Its tenant's queue is full, or it has no share.
        """
        share = self._shares.get(self.share_of(work.tenant))
        if share is None:
            raise ExhaustedError(
                f"tenant {work.tenant!r}: found no share of the server, expected one of {sorted(self._shares)}: "
                "they hold all of it"
            )
        with self._lock:
            if len(share.queue) >= share.limit:
                raise ExhaustedError(
                    f"tenant {work.tenant!r}: found {len(share.queue)} requests waiting, expected less than the limit "
                    "of its queue; send less or ask for a larger share"
                )
            share.queue[id(work)] = work, self._virtual_s if self._capped_workers is None else self._now_ns() / 1e9
            self._waiting += 1
            if wake:
                self._ready.notify()

    def withdraw(self, work: W) -> bool:
        """Take a request back that nobody waits for any more; False where it is no longer queued."""
        with self._lock:
            share = self._shares.get(self.share_of(work.tenant))
            if share is None or share.queue.pop(id(work), None) is None:
                return False
            self._waiting -= 1
            return True

    def take(self) -> list[W]:
        """Wait for the next requests to compute; none when closed and empty. Expired ones cost their tenant nothing."""
        with self._lock:
            while (share := self._next()) is None:
                self._rest()
                if self._closed and not self._waiting:
                    return []
                self._resting += 1
                self._ready.wait(self._next_due_s())
                self._resting -= 1
            return self._taken(share)

    def take_light(self, light: Callable[[W], bool]) -> list[W]:
        """The next requests, for the caller to compute in place of a worker that rests; never waits.

        None where nothing waits, and where all workers compute: they take what waits when they are done. Where the
        next request is not light or not due, or a batch of it would have to wait for more, a worker is woken for it.
        Who was given something says with `done` that it has been computed.
        """
        with self._lock:
            if not self._resting:
                self._ready.notify()  # a worker whose batch waits for more may want it
                return []
            if (share := self._next()) is None:
                if self._waiting:
                    self._ready.notify()
                return []
            if self._batching.delay_s > 0 or not light(share.head()):
                self._ready.notify()
                return []
            return self._taken(share)

    def done(self) -> bool:
        """Say that what `take_light` gave has been computed; whether nothing waits any more."""
        with self._lock:
            if self._waiting:
                return False
            self._rest()
            return True

    def close(self) -> None:
        """Let `take` return nothing once all queues are empty."""
        with self._lock:
            self._closed = True
            self._ready.notify_all()

    def _taken(self, share: _Share[W]) -> list[W]:
        first = self._pop(share)
        batch = [first]
        if first.batch is not None and first.rows < self._batching.rows:
            self._grow(batch)
            if self._waiting and self._batching.delay_s > 0:
                self._ready.notify()  # it may have woken this worker, while that waited, in place of one that rests
        return batch

    def _grow(self, batch: list[W]) -> None:
        """Add what comes next in the fair order, until something cannot join or the batch has waited long enough."""
        room = self._batching.rows - batch[0].rows
        until_ns = self._now_ns() + int(self._batching.delay_s * 1e9)
        while room > 0 and not self._closed:
            if (share := self._next()) is None:
                deadlines = [work.deadline_ns for work in batch if work.deadline_ns is not None]
                if deadlines:
                    until_ns = min(until_ns, min(deadlines) - int(sum(work.work_s for work in batch) * 1e9))
                left_s = (until_ns - self._now_ns()) / 1e9
                if left_s <= 0:
                    return
                due_s = self._next_due_s()
                self._ready.wait(left_s if due_s is None else min(left_s, due_s))
                continue
            following = share.head()
            if following.batch != batch[0].batch or following.rows > room:
                return
            batch.append(self._pop(share))
            room -= following.rows

    def _pop(self, share: _Share[W]) -> W:
        self._virtual_s = share.due_s
        work = share.pop()
        self._waiting -= 1
        share.free_s = self._virtual_s + work.work_s / share.fraction / (self._capped_workers or 1)
        return work

    def _rest(self) -> None:
        """Nothing waits: who comes next owes nothing to who came before, or a lone request would let a flood pass."""
        for share in self._shares.values():
            self._virtual_s = max(self._virtual_s, share.free_s)

    def _next(self) -> _Share[W] | None:
        """Whose turn it is, once heads of queues that nobody wants any more are gone; None where nothing is due."""
        if not self._waiting:
            return None
        now_ns, first = self._now_ns(), None
        for share in self._shares.values():
            while share.queue and (until_ns := share.head().begin_by_ns) is not None and until_ns <= now_ns:
                self._waiting -= 1
                self._expired(share.pop())
            if not share.queue or (self._capped_workers is not None and share.due_s * 1e9 > now_ns):
                continue
            if first is None or share.due_s < first.due_s:
                first = share
        return first

    def _next_due_s(self) -> float | None:
        """How long until `_next` may say something else of what waits; None where nothing waits."""
        heads = [(share, share.head()) for share in self._shares.values() if share.queue]
        moments_s = [share.due_s for share, _ in heads]
        moments_s += [head.begin_by_ns / 1e9 for _, head in heads if head.begin_by_ns is not None]
        return max(0.0, min(moments_s) - self._now_ns() / 1e9) if moments_s else None
