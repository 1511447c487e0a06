"""Isolation: one tenant among aggressors whose bursts fall together with its own, more and more.

The victim sends the very same packets at every correlation; the aggressors, each keeping its own law, follow the
victim's on and off periods to a strength from 0 (independent) to 1 (together). In a shared FIFO the victim waits behind
them; behind a reservation it waits for itself alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from testbed.management.admission import Rule
from testbed.scenario.model import Misbehaviour
from testbed.simulation.clock import to_ps
from testbed.simulation.experiments.point import ExperimentPoint, quality
from testbed.simulation.experiments.workload import (
    Reservation,
    Workload,
    drain_bps,
    reservation,
    shared_bound_s,
    smallest_burst_bits,
)
from testbed.simulation.system import Hop, Scheduler, Source, System
from testbed.simulation.tally import Tally, merge
from testbed.simulation.window import Plan, simulate
from testbed.simulation.workers import carry_out

CORRELATIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
SCHEDULERS = (Scheduler.FIFO, Scheduler.RESERVED)
GROUP = "together"


@dataclass(frozen=True)
class IsolationOptions:
    """How the experiment is carried out.

    Attributes:
        workload: The victim, and each aggressor.
        aggressors: How many; None: as many as the rule admits beside the victim.
        correlations: Strengths.
        duration_s: Length of a window.
        replications: Windows of each point.
        seed: Root of every random stream.
        workers: Processes.
    """

    workload: Workload = Workload()  # noqa: RUF009 - frozen
    aggressors: int | None = None
    correlations: tuple[float, ...] = CORRELATIONS
    duration_s: float = 500.0
    replications: int = 5
    seed: int = 1
    workers: int = 1


@dataclass(frozen=True)
class _Window:
    options: IsolationOptions
    correlation: float
    scheduler: Scheduler
    given: Reservation
    window: int


def isolation(
    options: IsolationOptions,
    *,
    advance: Callable[[float], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[ExperimentPoint]:
    """Every correlation under every scheduler; points that were not finished when it was stopped are left out."""
    given = reservation(Rule.STOCHASTIC, options.workload, smallest_burst_bits(options.workload))
    tasks = [
        _Window(options, correlation, scheduler, given, window)
        for correlation in options.correlations
        for scheduler in SCHEDULERS
        for window in range(1, options.replications + 1)
    ]
    found = list(carry_out(_simulate, tasks, workers=options.workers, advance=advance, stop=stop))
    points = []
    for correlation in options.correlations:
        for scheduler in SCHEDULERS:
            tallies = [
                result[1]
                for result in found
                if result is not None and (result[0].correlation, result[0].scheduler) == (correlation, scheduler)
            ]
            if len(tallies) == options.replications:
                points.append(_point(options, correlation, scheduler, given, merge(tallies)))
    return points


def system(options: IsolationOptions, correlation: float, scheduler: Scheduler, given: Reservation) -> System:
    """The victim first, then the aggressors."""
    workload = options.workload
    sources = tuple(
        Source(
            name="victim" if number == 1 else f"aggressor-{number - 1}",
            number=number,
            arrivals=workload.arrivals,
            packets_per_s=workload.packets_per_s,
            hops=workload.domains,
            deadline_ps=to_ps(workload.deadline_s),
            misbehaviour=Misbehaviour("correlated", group=GROUP),
            strength=1.0 if number == 1 else correlation,
        )
        for number in range(1, tenants(options, given) + 1)
    )
    hop = Hop(
        name="domain",
        scheduler=scheduler,
        link_bps=workload.link_bps,
        drain_bps=drain_bps(workload),
        classes=(given.shaped,) * len(sources),
    )
    return System(sources, (hop,) * workload.domains)


def tenants(options: IsolationOptions, given: Reservation) -> int:
    """How many there are, the victim included."""
    if options.aggressors is not None:
        return options.aggressors + 1
    return int(options.workload.link_bps / given.rate_bps)


def _simulate(
    task: _Window, *, advance: Callable[[float], None] = lambda _: None, stop: Callable[[], bool] = lambda: False
) -> tuple[_Window, Tally] | None:
    options = task.options
    built = system(options, task.correlation, task.scheduler, task.given)
    outcome = simulate(built, Plan(options.seed, task.window, options.duration_s), advance=advance, stop=stop)
    return None if outcome.duration_s < options.duration_s else (task, outcome.tally.only(0))


def _point(
    options: IsolationOptions, correlation: float, scheduler: Scheduler, given: Reservation, victim: Tally
) -> ExperimentPoint:
    p999_s, interval_s, compliance, limits = quality(victim)
    workload = options.workload
    carried = float(victim.fine.sum()) * workload.arrivals.size_bits
    return ExperimentPoint(
        varied="correlation",
        value=correlation,
        contender="scheduler",
        name=str(scheduler),
        p999_s=p999_s,
        p999_interval_s=interval_s,
        compliance=compliance,
        compliance_interval=limits,
        admitted=1.0,
        admitted_interval=(1.0, 1.0),
        utilisation=carried / (workload.link_bps * options.duration_s * options.replications),
        bound_s=given.bound_s if scheduler is Scheduler.RESERVED else shared_bound_s(workload, tenants(options, given)),
        packets=int(victim.n[0]),
    )
