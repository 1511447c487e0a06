"""What a flood does to the tail of another tenant on the same inference server, and what that tenant has without it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import inference_clients as clients
from benchmarks import inference_servers as servers
from benchmarks.figures import Figure, Goal
from testbed.traffic.request_records import OK, RequestRecord

_CAPPED = "--capped-shares"
_OWN, _FLOODER, _FLOOD = 0.5, 0.1, 10.0
"""Shares of the two tenants, and how many times its own the second offers: all that the server computes. The server has
the last core for itself, and its clients the others, or a flood would take its time from it there."""
_FLOOD_IMAGES = 16
_FLOODED_S, _SETTLING_S = 4.0, 1.0
"""How long another rests, offers its own rate, and floods, again and again; and what is left out of each, in which
calls of the one before are still answered or given up."""
_FLOODED_WINDOWS = 9
"""How many windows it takes in all."""
_BOOTSTRAPS = 1000


def heavy_requests(options: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """A tenant alone, beside another that offers what it may, and beside the same when it floods.

    Few enough images that there are many requests, and enough that computing them is most of what they cost. Shares
    that lend what they do not use give a tenant more while others rest, so it has something to lose: those are shown.
    """
    yield from _flooded(options, folder, "isolation", _CAPPED, model=servers.LARGE, images=_FLOOD_IMAGES, goal=10.0)
    yield from _flooded(options, folder, "isolation, shares that lend", model=servers.LARGE, images=_FLOOD_IMAGES)


def light_requests(options: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """The same where most of a request's cost is reading it, with and without a limit to the calls of a connection."""
    how: dict[str, Any] = {"model": servers.MEDIUM, "images": options.images}
    yield from _flooded(options, folder, "light requests", _CAPPED, goal=10.0, **how)
    yield from _flooded(options, folder, "light requests, shares that lend", **how)
    many = ("--calls-per-connection", "any")
    yield from _flooded(options, folder, "the same, any number of calls a connection", *many, **how)


def _flooded(
    options: argparse.Namespace,
    folder: Path,
    title: str,
    *server: str,
    model: str,
    images: int,
    goal: float | None = None,
) -> Iterator[Figure]:
    """A tenant that goes on while another rests, offers what it may, and floods, each for a few seconds in turn.

    So whatever moods the host has, all three have them. All seconds of a kind count as one.
    """
    shares = ("--share", f"alpha={_OWN}", "--share", f"bravo={_FLOODER}:64")
    kinds = (0.0, 1.0, _FLOOD)
    cycle_s = _FLOODED_S * len(kinds)
    cycles = max(2, round(options.seconds * _FLOODED_WINDOWS / cycle_s))
    *rest, last = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        with servers.on_cores([last]):
            target = stack.enter_context(servers.ours("--models", model, *shares, *server))
        stack.enter_context(servers.on_cores(rest or [last]))
        # Whoever has a capped share finds what that has, and not the whole server.
        found_per_s = clients.capacity(folder, target, model, images)
        share = found_per_s if _CAPPED in server else _OWN * found_per_s
        how: dict[str, Any] = {
            "model": model,
            "images": images,
            "seconds": cycles * cycle_s,
            "deadline_s": _SETTLING_S,
        }
        own = clients.Sender(folder, "alpha", target, rate=0.7 * share, seed=options.seed, **how)
        flood = clients.Sender(
            folder,
            "bravo",
            target,
            rate=_FLOOD * share * _FLOODER / _OWN,
            seed=options.seed + 1,
            kept=lambda time_s: _in_turn(time_s, [times / _FLOOD for times in kinds], seed=options.seed),
            **how,
        )
        mine, theirs = clients.records_of(own, flood)
    found, others = (
        {
            times: [record.take(_settled(record, cycle * cycle_s + kind * _FLOODED_S)) for cycle in range(cycles)]
            for kind, times in enumerate(kinds)
        }
        for record in (mine, theirs)
    )
    of_flood, answered = (
        float(np.mean(np.concatenate([each.status for each in records[_FLOOD]]) == OK)) for records in (others, found)
    )
    said = (
        f"{sum(len(each.schedule) for each in found[0.0])} requests at .7 of its share of {share:.0f}/s in {cycles} "
        f"times {_FLOODED_S - _SETTLING_S:g} s, {answered:.1%} of them answered beside the flood, {of_flood:.0%} of it"
    )
    for times, what in ((1.0, "beside another's own rate"), (0.0, "alone")):
        for name, level, most in (("p99", 0.99, None), ("p99.9", 0.999, goal)):
            was, became, limits = _growth(found[times], found[_FLOOD], level)
            note = f"{was:.2f} ms {what}, {became:.2f} ms beside {_FLOOD:g} times its own; {said}"
            about = f"{title}: growth of a tenant's {name} from that {what}"
            figure = Figure(about, 100 * (became / was - 1), "%", note=note, limits=limits)
            yield figure if most is None else replace(figure, goal=Goal.AT_MOST, target=most)


def _in_turn(time_s: npt.NDArray[np.float64], shares: Sequence[float], *, seed: int) -> npt.NDArray[np.bool_]:
    """Which arrivals of a Poisson process are kept, so that its rate takes these shares of itself in turn, [n]."""
    kept = np.array(shares)[(time_s // _FLOODED_S).astype(np.int64) % len(shares)]
    return np.random.default_rng(seed).random(time_s.size) < kept


def _settled(record: RequestRecord, begin_s: float) -> npt.NDArray[np.bool_]:
    """Which requests were due in what began then, once that had settled, [n]."""
    time_s = record.schedule.time_s
    return (time_s >= begin_s + _SETTLING_S) & (time_s < begin_s + _FLOODED_S)


def _growth(
    before: Sequence[RequestRecord], after: Sequence[RequestRecord], level: float
) -> tuple[float, float, tuple[float, float]]:
    """A quantile of the latencies of all turns before and after, ms, and 95 % limits of its growth, per cent.

    A request without an answer takes for ever. The limits come from drawing whole turns anew (percentile bootstrap):
    what a host does outlasts a request.
    """
    turns = [
        tuple(np.where(each.status == OK, each.latency_s, np.inf) for each in turn)
        for turn in zip(before, after, strict=True)
    ]

    def levels(chosen: Sequence[int]) -> tuple[float, float]:
        was, became = (
            float(np.quantile(np.concatenate([turns[k][side] for k in chosen]), level, method="higher")) * 1e3
            for side in (0, 1)
        )
        return was, became

    rng = np.random.default_rng(1)
    drawn = [levels(rng.integers(len(turns), size=len(turns)).tolist()) for _ in range(_BOOTSTRAPS)]
    grown = [100 * (became / was - 1) for was, became in drawn]
    low, high = (float(np.quantile(grown, level, method="nearest")) for level in (0.025, 0.975))
    return *levels(range(len(turns))), (low, high)
