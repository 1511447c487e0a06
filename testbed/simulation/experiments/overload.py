"""Overload: tenants come and go, more of them than fit, and a rule decides who may enter.

Tenants arrive as a Poisson process and stay for exponential times, so that the offered load is the mean rate of all who
ask over the link's. Every rule and load sees the same tenants in the same order with the same packets. Without control
they share a FIFO link; a rule's tenants have classes of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from testbed.management.admission import Rule, fits
from testbed.run.progress import Progress
from testbed.simulation.clock import to_ps
from testbed.simulation.experiments.point import (
    ExperimentPoint,
    fates,
    keeping,
    mean_limits,
    pooled,
    quality,
)
from testbed.simulation.experiments.windows import Windows, complete, point_folder, windows
from testbed.simulation.experiments.workload import (
    Reservation,
    Workload,
    path,
    reservation,
    smallest_burst_bits,
)
from testbed.simulation.system import Scheduler, Source, System
from testbed.simulation.tally import merge
from testbed.simulation.window import Plan

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


def overload(
    options: OverloadOptions, out: Path, progress: Progress, *, stop: Callable[[], bool] = lambda: False
) -> list[ExperimentPoint]:
    """Every load under every rule; points that were not finished when it was stopped are left out.

    Args:
        options: How it is carried out.
        out: Folder in which finished windows are kept, and found again.
        progress: Told how far it has come.
        stop: Asked now and then whether to end early.

    Raises:
        PreflightError: The folder cannot be made.
    """
    burst_bits = smallest_burst_bits(options.workload)
    given = {str(rule): reservation(rule, options.workload, burst_bits) for rule in Rule}
    points = [_windows(options, out, load, one) for load in options.loads for one in given.values()]
    done = complete(points, out, progress, workers=options.workers, stop=stop)
    return [_point(options, given[point.name], point) for point in done]


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


def _windows(options: OverloadOptions, out: Path, load: float, given: Reservation) -> Windows:
    numbers = range(1, options.replications + 1)
    systems = [system(options, admit(visits(options, load, k), given, options.workload), given) for k in numbers]
    plans = [Plan(options.seed, k, options.duration_s) for k in numbers]
    name = str(given.rule)
    return windows(point_folder(out, "load", load, name), load, name, systems, plans)


def system(options: OverloadOptions, inside: Sequence[Visit], given: Reservation) -> System:
    """Those who were admitted, each for as long as it stays."""
    workload = options.workload
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
    scheduler = Scheduler.FIFO if given.rule is Rule.NONE else Scheduler.RESERVED
    return System(sources, path(workload, scheduler, given, len(sources), limit_packets=FIFO_LIMIT_PACKETS))


def _point(options: OverloadOptions, given: Reservation, point: Windows) -> ExperimentPoint:
    workload = options.workload
    whole, each, used = [], [], []
    for tally in point.tallies():
        whole.append(pooled(tally))
        each.append(fates(tally))
        carried_bits = int(tally.within.sum()) * workload.arrivals.size_bits
        used.append(carried_bits / (workload.link_bps * options.duration_s))
    together = merge(whole)
    p999_s, interval_s, compliance, compliance_limits = quality(together)
    admitted = [len(task.system.sources) / len(visits(options, point.value, task.plan.window)) for task in point.tasks]
    return ExperimentPoint(
        varied="load",
        value=point.value,
        contender="rule",
        name=point.name,
        p999_s=p999_s,
        p999_interval_s=interval_s,
        compliance=compliance,
        compliance_interval=compliance_limits,
        kept=keeping(each, workload.epsilon, apart=given.rule is not Rule.NONE),
        admitted=float(np.mean(admitted)),
        admitted_interval=mean_limits(admitted),
        utilisation=float(np.mean(used)),
        utilisation_interval=mean_limits(used),
        bound_s=given.bound_s,
        packets=int(together.n[0]),
    )
