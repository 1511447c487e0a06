"""Servers compared at the same tail: what each answers, and how late, as more and more calls are left unanswered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Load:
    """A server at one load.

    Attributes:
        calls: Left unanswered at any time.
        per_s: Answers a second.
        p99_ms: Of their latency.
    """

    calls: int
    per_s: float
    p99_ms: float


def busiest(loads: Sequence[Load]) -> Load:
    """Where a server answers the most."""
    return max(loads, key=lambda load: load.per_s)


def within(loads: Sequence[Load], p99_ms: float) -> float:
    """The most answers a second with a p99 of at most this, straight lines between one load and the next; 0 for none.

    Args:
        loads: By rising number of calls.
        p99_ms: The level.
    """
    found = [load.per_s for load in loads if load.p99_ms <= p99_ms]
    for one, other in pairwise(loads):
        low, high = sorted((one, other), key=lambda load: load.p99_ms)
        if low.p99_ms <= p99_ms < high.p99_ms:
            part = (p99_ms - low.p99_ms) / (high.p99_ms - low.p99_ms)
            found.append(low.per_s + part * (high.per_s - low.per_s))
    return max(found, default=0.0)
