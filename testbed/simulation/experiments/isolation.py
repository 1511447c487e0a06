"""Isolation: one tenant among aggressors whose bursts fall together with its own, more and more.

The victim sends the very same packets at every correlation; the aggressors, each keeping its own law, follow the
victim's on and off periods to a strength from 0 (independent) to 1 (together). In a shared FIFO the victim waits behind
them; behind a reservation it waits for itself alone, and its meter holds it to the contract that its bound counts on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from testbed.management.admission import Rule
from testbed.run.progress import Progress
from testbed.scenario.model import Misbehaviour
from testbed.simulation.clock import to_ps
from testbed.simulation.experiments.point import ExperimentPoint, fates, keeping, mean_limits, quality
from testbed.simulation.experiments.windows import Windows, complete, point_folder, windows
from testbed.simulation.experiments.workload import (
    Reservation,
    Workload,
    capacity,
    path,
    reservation,
    shared_bound_s,
    smallest_burst_bits,
)
from testbed.simulation.system import Scheduler, Source, System
from testbed.simulation.tally import merge
from testbed.simulation.window import Plan

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


def isolation(
    options: IsolationOptions, out: Path, progress: Progress, *, stop: Callable[[], bool] = lambda: False
) -> list[ExperimentPoint]:
    """Every correlation under every scheduler; points that were not finished when it was stopped are left out.

    Args:
        options: How it is carried out.
        out: Folder in which finished windows are kept, and found again.
        progress: Told how far it has come.
        stop: Asked now and then whether to end early.

    Raises:
        PreflightError: The folder cannot be made.
    """
    given = reservation(Rule.STOCHASTIC, options.workload, smallest_burst_bits(options.workload))
    plans = [Plan(options.seed, window, options.duration_s) for window in range(1, options.replications + 1)]
    points = []
    for correlation in options.correlations:
        for scheduler in SCHEDULERS:
            built = system(options, correlation, scheduler, given)
            folder = point_folder(out, "correlation", correlation, str(scheduler))
            points.append(windows(folder, correlation, str(scheduler), [built] * len(plans), plans))
    done = complete(points, out, progress, workers=options.workers, stop=stop)
    return [_point(options, given, point) for point in done]


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
    return System(sources, path(workload, scheduler, given, len(sources)))


def tenants(options: IsolationOptions, given: Reservation) -> int:
    """How many there are, the victim included."""
    if options.aggressors is not None:
        return options.aggressors + 1
    return capacity(options.workload, given.rate_bps)


def _point(options: IsolationOptions, given: Reservation, point: Windows) -> ExperimentPoint:
    workload = options.workload
    alone = [tally.only(0) for tally in point.tallies()]
    victim = merge(alone)
    p999_s, interval_s, compliance, limits = quality(victim)
    carried = np.array([tally.within.sum() for tally in alone]) * workload.arrivals.size_bits
    used = carried / (workload.link_bps * options.duration_s)
    reserved = point.name == Scheduler.RESERVED
    return ExperimentPoint(
        varied="correlation",
        value=point.value,
        contender="scheduler",
        name=point.name,
        p999_s=p999_s,
        p999_interval_s=interval_s,
        compliance=compliance,
        compliance_interval=limits,
        kept=keeping([fates(tally) for tally in alone], workload.epsilon, apart=reserved),
        admitted=1.0,
        admitted_interval=(1.0, 1.0),
        utilisation=float(used.mean()),
        utilisation_interval=mean_limits(used),
        bound_s=given.bound_s if reserved else shared_bound_s(workload, tenants(options, given)),
        packets=int(victim.n[0]),
    )
