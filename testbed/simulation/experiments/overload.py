"""Overload: tenants come and go, more of them than fit, and a rule decides who may enter.

Tenants arrive as a Poisson process and stay for exponential times, so that the offered load is the mean rate of all who
ask over the link's. Every rule and load sees the same tenants in the same order with the same packets. Without control
they share a FIFO link; a rule's tenants have classes of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from testbed.management.admission import Rule, fits
from testbed.simulation.clock import to_ps
from testbed.simulation.experiments.point import ExperimentPoint, mean_limits, pooled, quality
from testbed.simulation.experiments.workload import (
    Reservation,
    Workload,
    drain_bps,
    reservation,
    smallest_burst_bits,
)
from testbed.simulation.system import Hop, Scheduler, Source, System
from testbed.simulation.tally import Tally, merge
from testbed.simulation.window import Plan, simulate
from testbed.simulation.workers import carry_out

LOADS = (0.5, 0.8, 1.0, 1.2, 1.5, 1.8)
STAY_S = 20.0
FIFO_LIMIT_PACKETS = 1000


@dataclass(frozen=True)
class OverloadOptions:
    """How the experiment is carried out.

    Attributes:
        workload: The tenants.
        loads: Offered loads.
        duration_s: Length of a window.
        replications: Windows of each point.
        seed: Root of every random stream.
        workers: Processes.
    """

    workload: Workload = Workload()  # noqa: RUF009 - frozen
    loads: tuple[float, ...] = LOADS
    duration_s: float = 120.0
    replications: int = 5
    seed: int = 1
    workers: int = 1


@dataclass(frozen=True)
class Visit:
    """A tenant that asks to enter: when, and when it leaves."""

    number: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class _Window:
    """One window of one point, for a worker."""

    options: OverloadOptions
    load: float
    given: Reservation
    window: int


@dataclass(frozen=True)
class _Result:
    window: _Window
    tally: Tally
    admitted: float
    utilisation: float


def overload(
    options: OverloadOptions,
    *,
    advance: Callable[[float], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[ExperimentPoint]:
    """Every load under every rule; points that were not finished when it was stopped are left out."""
    burst_bits = smallest_burst_bits(options.workload)
    given = [reservation(rule, options.workload, burst_bits) for rule in Rule]
    tasks = [
        _Window(options, load, one, window)
        for load in options.loads
        for one in given
        for window in range(1, options.replications + 1)
    ]
    found = list(carry_out(_simulate, tasks, workers=options.workers, advance=advance, stop=stop))
    return list(_points(options, given, found))


def visits(options: OverloadOptions, load: float, window: int) -> list[Visit]:
    """Who asks to enter in a window, those who are there when it opens first.

    Load compresses the time between arrivals, so that every load sees the same tenants.
    """
    rng = np.random.default_rng(np.random.SeedSequence(options.seed, spawn_key=(0, window)))
    workload = options.workload
    present = load * workload.link_bps / workload.mean_bps
    rate_per_s = present / STAY_S
    # A Poisson number of tenants is there at the start, each with an exponential rest of its stay.
    gaps = rng.standard_exponential(round(4 * (present + rate_per_s * options.duration_s)) + 100)
    stays_s = rng.standard_exponential(gaps.size) * STAY_S
    births = np.cumsum(gaps)
    initial = int(np.searchsorted(births, present))
    starts_s = np.concatenate((np.zeros(initial), (births[initial:] - present) / rate_per_s))
    return [
        Visit(number, float(start), float(start + stay))
        for number, (start, stay) in enumerate(zip(starts_s, stays_s, strict=True), start=1)
        if start < options.duration_s
    ]


def admit(asking: Sequence[Visit], given: Reservation, workload: Workload) -> list[Visit]:
    """Those that the rule lets enter, in the order in which they ask."""
    inside: list[Visit] = []
    present: list[Visit] = []
    for visit in asking:
        present = [other for other in present if other.end_s > visit.start_s]
        if fits(given.rate_bps, workload.link_bps - given.rate_bps * len(present)):
            inside.append(visit)
            present.append(visit)
    return inside


def _simulate(
    task: _Window, *, advance: Callable[[float], None] = lambda _: None, stop: Callable[[], bool] = lambda: False
) -> _Result | None:
    options, workload = task.options, task.options.workload
    asking = visits(options, task.load, task.window)
    inside = admit(asking, task.given, workload)
    plan = Plan(options.seed, task.window, options.duration_s)
    outcome = simulate(_system(task, inside), plan, advance=advance, stop=stop)
    if outcome.duration_s < options.duration_s:
        return None
    carried = int(outcome.tally.fine.sum()) * workload.arrivals.size_bits
    return _Result(
        task,
        pooled(outcome.tally),
        len(inside) / len(asking),
        carried / (workload.link_bps * options.duration_s),
    )


def _system(task: _Window, inside: Sequence[Visit]) -> System:
    options, workload, given = task.options, task.options.workload, task.given
    sources = tuple(
        Source(
            name=f"tenant-{visit.number}",
            number=visit.number,
            arrivals=workload.arrivals,
            packets_per_s=workload.packets_per_s * min(1.0, (visit.end_s - visit.start_s) / options.duration_s),
            hops=workload.domains,
            deadline_ps=to_ps(workload.deadline_s),
            present_ps=((to_ps(visit.start_s), to_ps(min(visit.end_s, options.duration_s))),),
        )
        for visit in inside
    )
    uncontrolled = given.rule is Rule.NONE
    hop = Hop(
        name="domain",
        scheduler=Scheduler.FIFO if uncontrolled else Scheduler.RESERVED,
        link_bps=workload.link_bps,
        drain_bps=drain_bps(workload),
        classes=(given.shaped,) * len(sources),
        limit_packets=FIFO_LIMIT_PACKETS,
    )
    first = replace(hop, meters=(given.policy,) * len(sources))
    return System(sources, (first, *[hop] * (workload.domains - 1)))


def _points(
    options: OverloadOptions, given: Sequence[Reservation], found: Sequence[_Result | None]
) -> Iterator[ExperimentPoint]:
    for load in options.loads:
        for one in given:
            windows = [
                result
                for result in found
                if result is not None and result.window.load == load and result.window.given == one
            ]
            if len(windows) < options.replications:
                continue
            whole = merge([result.tally for result in windows])
            p999_s, interval_s, compliance, compliance_limits = quality(whole)
            shares, used = ([getattr(result, what) for result in windows] for what in ("admitted", "utilisation"))
            yield ExperimentPoint(
                varied="load",
                value=load,
                contender="rule",
                name=str(one.rule),
                p999_s=p999_s,
                p999_interval_s=interval_s,
                compliance=compliance,
                compliance_interval=compliance_limits,
                admitted=float(np.mean(shares)),
                admitted_interval=mean_limits(shares),
                utilisation=float(np.mean(used)),
                utilisation_interval=mean_limits(used),
                bound_s=one.bound_s,
                packets=int(whole.n[0]),
            )
