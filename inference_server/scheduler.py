"""Whose request is computed next: a bounded queue for each tenant and a guaranteed share of the workers.

The order is that of self-clocked fair queueing (Golestani, INFOCOM 1994): the head of each queue carries the virtual
time at which a server of the tenant's share alone would finish it, and the smallest is taken. A tenant with a share of
c workers is then never further behind such a server than one largest request of every other tenant, over c, which is
what a bound on a shared compute stage allows for. A tenant that floods fills its own queue and nobody else's. What
computing means, and who waits for the answer, this module does not know.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
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


W = TypeVar("W", bound=Work)


@dataclass(slots=True)
class _Share(Generic[W]):
    """One tenant's queue. `finish_s` is the virtual time at which its own server is done with all that was taken."""

    fraction: float
    finish_s: float = 0.0
    queue: OrderedDict[int, W] = field(default_factory=OrderedDict)

    def tag_s(self) -> float:
        return self.finish_s + next(iter(self.queue.values())).work_s / self.fraction


class Scheduler(Generic[W]):
    """Queues of all tenants; every method may be called from any thread."""

    def __init__(
        self,
        shares: Mapping[str, float],
        *,
        queue_limit: int,
        now_ns: Callable[[], int],
        expired: Callable[[W], None],
    ) -> None:
        """Make the queues.

        Args:
            shares: Fraction of the workers that each named tenant is guaranteed; what is left is everybody else's.
            queue_limit: Most requests that wait in each queue.
            now_ns: The clock of the deadlines.
            expired: Told of requests that are dropped because their deadline passed, from the thread that took them.

        Raises:
            ValueError: Fractions that are not above 0, or more than 1 together.
        """
        left = 1.0 - sum(shares.values())
        if any(not fraction > 0 for fraction in shares.values()) or left < -1e-9:
            raise ValueError(f"shares: found {dict(shares)}, expected fractions above 0 and at most 1 together")
        if queue_limit < 1:
            raise ValueError(f"queue limit: found {queue_limit}, expected at least 1")
        self._shares: dict[str, _Share[W]] = {name: _Share(fraction) for name, fraction in shares.items()}
        if left > 1e-9:
            self._shares[EVERYBODY_ELSE] = _Share(left)
        self._queue_limit = queue_limit
        self._now_ns = now_ns
        self._expired = expired
        self._ready = threading.Condition()
        self._virtual_s = 0.0
        self._closed = False

    def __len__(self) -> int:
        with self._ready:
            return sum(len(share.queue) for share in self._shares.values())

    def submit(self, work: W) -> None:
        """Queue a request.

        Raises:
            ExhaustedError: Its tenant's queue is full, or it has no share.
        """
        share = self._shares.get(work.tenant) or self._shares.get(EVERYBODY_ELSE)
        if share is None:
            raise ExhaustedError(
                f"tenant {work.tenant!r}: found no share of the server, expected one of {sorted(self._shares)}: "
                "they hold all of it"
            )
        with self._ready:
            if len(share.queue) >= self._queue_limit:
                raise ExhaustedError(
                    f"tenant {work.tenant!r}: found {len(share.queue)} requests waiting, expected less than the limit "
                    "of its queue; send less or ask for a larger share"
                )
            if not share.queue:
                share.finish_s = max(share.finish_s, self._virtual_s)
            share.queue[id(work)] = work
            self._ready.notify()

    def withdraw(self, work: W) -> bool:
        """Take a request back that nobody waits for any more; False where it is no longer queued."""
        with self._ready:
            return any(share.queue.pop(id(work), None) is not None for share in self._shares.values())

    def take(self) -> W | None:
        """Wait for the next request to compute; None when closed and empty. Expired ones cost their tenant nothing."""
        while True:
            with self._ready:
                while (share := self._next()) is None:
                    if self._closed:
                        return None
                    self._ready.wait()
                tag_s = share.tag_s()
                _, work = share.queue.popitem(last=False)
                late = work.deadline_ns is not None and work.deadline_ns <= self._now_ns()
                if not late:
                    share.finish_s = self._virtual_s = tag_s
            if not late:
                return work
            self._expired(work)

    def close(self) -> None:
        """Let `take` return None once all queues are empty."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def _next(self) -> _Share[W] | None:
        waiting = [share for share in self._shares.values() if share.queue]
        return min(waiting, key=_Share.tag_s) if waiting else None
