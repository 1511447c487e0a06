"""Simulators of compute stages and of HTB classes, event by event: how far each departure lags an ideal server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np
from numba import njit


@njit(cache=True)
def ideal_starts(arrivals, sizes, rate):
    """When an ideal first-come-first-served queue of a rate starts each item."""
    starts = np.empty(len(arrivals))
    free = -np.inf
    for n in range(len(arrivals)):
        starts[n] = max(arrivals[n], free)
        free = starts[n] + sizes[n] / rate
    return starts


def worker_departures(arrivals: np.ndarray, work_s: np.ndarray, workers: int) -> np.ndarray:
    """Departures from identical workers at speed 1, first come first served."""
    free = [-np.inf] * workers
    heapify(free)
    departures = np.empty(len(arrivals))
    for n, (arrival, work) in enumerate(zip(arrivals.tolist(), work_s.tolist(), strict=True)):
        departures[n] = max(arrival, heappop(free)) + work
        heappush(free, float(departures[n]))
    return departures


def batch_departures(
    arrivals: np.ndarray, largest: int, service_s: Callable[[int], float], wait_s: float, workers: int = 1
) -> np.ndarray:
    """Departures from workers that take up to `largest` requests at once.

    An idle worker starts as soon as a full batch is there, or when its oldest request has waited for `wait_s`.
    """
    free = [-np.inf] * workers
    heapify(free)
    departures = np.empty(len(arrivals))
    first = 0
    while first < len(arrivals):
        idle = heappop(free)
        full = arrivals[first + largest - 1] if first + largest <= len(arrivals) else np.inf
        start = max(idle, min(full, arrivals[first] + wait_s))
        taken = int(np.searchsorted(arrivals[first : first + largest], start, side="right"))
        departures[first : first + taken] = start + service_s(taken)
        heappush(free, start + service_s(taken))
        first += taken
    return departures


def round_robin_departures(
    arrivals: Sequence[np.ndarray], largest: Sequence[int], service_s: Sequence[Callable[[int], float]]
) -> list[np.ndarray]:
    """Departures of several tenants from one server that offers each a batch in turn; a tenant with none is passed."""
    departures = [np.empty(len(times)) for times in arrivals]
    first = [0] * len(arrivals)
    now, turn, passed = 0.0, 0, 0
    while any(done < len(times) for done, times in zip(first, arrivals, strict=True)):
        times, done = arrivals[turn], first[turn]
        taken = int(np.searchsorted(times[done : done + largest[turn]], now, side="right"))
        if taken:
            now += service_s[turn](taken)
            departures[turn][done : done + taken] = now
            first[turn] += taken
            passed = 0
        else:
            passed += 1
            if passed == len(arrivals):
                now = min(float(t[f]) for t, f in zip(arrivals, first, strict=True) if f < len(t))
                passed = 0
        turn = (turn + 1) % len(arrivals)
    return departures


def fifo_departures(ready: np.ndarray, bits: np.ndarray, rate: float) -> np.ndarray:
    """Departures from a store-and-forward link that serves in order of readiness."""
    order = np.argsort(ready, kind="stable")
    departures = np.empty(len(ready))
    departures[order] = ideal_starts(ready[order], bits[order], rate) + bits[order] / rate
    return departures


class Leaf(NamedTuple):
    """One leaf class of HTB with rate = ceil."""

    rate: float
    burst: float
    quantum: float
    packet: float


class Port(NamedTuple):
    """What all leaves share: the rate at which packets really leave, and how late the timer can be."""

    drain: float
    timer: float


def htb_departures(
    arrivals: np.ndarray, bits: np.ndarray, leaves: Sequence[Leaf], port: Port, rng: np.random.Generator
) -> np.ndarray:
    """Departures of the first leaf's packets while all other leaves are always backlogged."""
    return _htb(arrivals, bits, np.array(leaves, dtype=np.float64), port, rng)


@njit(cache=True)
def _htb(arrivals, bits, leaves, port, rng):
    """As in sch_htb.c: send while tokens >= 0 and go into debt, deficit round robin, a late timer for the throttled."""
    drain, timer = port
    count = len(leaves)
    tokens = leaves[:, 1].copy()
    refilled = np.zeros(count)
    deficit = np.zeros(count)
    awake_at = np.zeros(count)
    pointer = rng.integers(0, count)
    departures = np.empty(len(arrivals))
    done = 0
    now = 0.0
    while done < len(arrivals):
        chosen = -1
        for step in range(count):
            leaf = (pointer + step) % count
            if awake_at[leaf] <= now and (leaf > 0 or arrivals[done] <= now):
                chosen = leaf
                break
        if chosen < 0:
            soonest = np.inf
            for leaf in range(count):
                ready = awake_at[leaf] if leaf > 0 else max(awake_at[leaf], arrivals[done])
                soonest = min(soonest, ready)
            now = soonest
            continue
        size = bits[done] if chosen == 0 else leaves[chosen, 3] * (1.0 if rng.random() < 0.7 else rng.random())
        tokens[chosen] = min(leaves[chosen, 1], tokens[chosen] + leaves[chosen, 0] * (now - refilled[chosen])) - size
        refilled[chosen] = now
        deficit[chosen] -= size
        pointer = chosen
        if deficit[chosen] < 0.0:
            deficit[chosen] += leaves[chosen, 2]
            pointer = (chosen + 1) % count
        if tokens[chosen] < 0.0:
            awake_at[chosen] = now - tokens[chosen] / leaves[chosen, 0] + timer * rng.random()
        now += size / drain
        if chosen == 0:
            departures[done] = now
            done += 1
    return departures
