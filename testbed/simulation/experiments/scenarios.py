"""The points of the experiments as scenarios, small enough for an emulated network, so that both can carry them out.

A scenario says everything: the rule's reservations or one queue for everybody, how strongly bursts coincide, and who is
there when. Tenants of the overload experiment come and go, a network's hosts do not; so visits that do not overlap sit
on one seat after the other, and a seat keeps its reservation while nobody sits on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from testbed.management.admission import Rule
from testbed.management.bounds import HOST_RISK
from testbed.scenario import guardrails
from testbed.scenario.model import Domain, Misbehaviour, OnOffArrivals, Promise, Scenario, Tenant
from testbed.scenario.model import Reservation as Reserved
from testbed.simulation.experiments.isolation import GROUP
from testbed.simulation.experiments.overload import FIFO_LIMIT_PACKETS, OverloadOptions, Visit, admit, visits
from testbed.simulation.experiments.workload import (
    Reservation,
    Workload,
    capacity,
    reservation,
    shared_bound_s,
    smallest_burst_bits,
)
from testbed.simulation.system import Scheduler

SMALL = Workload(
    arrivals=OnOffArrivals(peak_bps=10e6, mean_on_s=5e-3, mean_off_s=20e-3, size_bits=11_200),
    link_bps=17e6,
    host_s=20e-3,
    host_risk=HOST_RISK,
)
"""What two processor cores can emulate: some 1,500 packets a second over three domains."""

NETWORK_LOADS = (0.5, 1.0, 1.8)
NETWORK_RULES = (Rule.NONE, Rule.STOCHASTIC)
NETWORK_CORRELATIONS = (0.0, 0.5, 1.0)
NETWORK_SCHEDULERS = (Scheduler.FIFO, Scheduler.RESERVED)
_KBIT = 1000


@dataclass(frozen=True)
class NetworkOptions:
    """How an experiment is carried out on a network.

    Attributes:
        workload: The tenants.
        duration_s: Length of the measured window of each point.
        warmup_s: Calibration traffic before it.
        seed: Root of every random stream.
        loads: Offered loads of the overload experiment.
        correlations: Strengths of the isolation experiment.
    """

    workload: Workload = SMALL
    duration_s: float = 45.0
    warmup_s: float = 6.0
    seed: int = 1
    loads: tuple[float, ...] = NETWORK_LOADS
    correlations: tuple[float, ...] = NETWORK_CORRELATIONS


@dataclass(frozen=True)
class PointPlan:
    """One point of an experiment before it is carried out.

    Attributes:
        varied: Name of what is on the horizontal axis.
        value: Its value.
        contender: Name of what is compared.
        name: Which one this is.
        scenario: What is run, or simulated.
        judged: Names of the tenants that the point is about.
        refused: Whether each tenant that asked was refused, in the order in which they asked; empty where none can be.
        deadline_s: What they want.
        epsilon: Share of their packets that may miss it.
        shared_bound_s: What holds in a shared queue whatever its tenants' dependence, the host's share of the workload
            included, which no gate polices there; None where nobody knows who comes, or reservations promise more.
    """

    varied: str
    value: float
    contender: str
    name: str
    scenario: Scenario
    judged: tuple[str, ...]
    refused: tuple[bool, ...]
    deadline_s: float
    epsilon: float
    shared_bound_s: float | None = None

    @property
    def admitted(self) -> float:
        """Share of tenants that were admitted."""
        return 1 - sum(self.refused) / len(self.refused) if self.refused else 1.0


def isolation_plans(options: NetworkOptions) -> list[PointPlan]:
    """Every correlation under every scheduler: a victim among as many aggressors as the rule admits beside it."""
    workload = options.workload
    burst_bits = smallest_burst_bits(workload)
    given = reservation(Rule.STOCHASTIC, workload, burst_bits)
    names = ("victim", *(f"aggressor-{k}" for k in range(1, capacity(workload, given.rate_bps))))

    def plan(correlation: float, scheduler: Scheduler) -> PointPlan:
        shared = scheduler is Scheduler.FIFO
        tenants = tuple(
            _tenant(
                name,
                workload,
                None if shared else _reserved(workload, given, burst_bits),
                promised=name == names[0],
                misbehaviour=Misbehaviour("correlated", group=GROUP, strength=1.0 if name == names[0] else correlation),
            )
            for name in names
        )
        scenario = _scenario(f"isolation-{correlation:g}-{scheduler}", options, tenants, shared=shared)
        return PointPlan(
            varied="correlation",
            value=correlation,
            contender="scheduler",
            name=str(scheduler),
            scenario=scenario,
            judged=names[:1],
            refused=(),
            deadline_s=workload.deadline_s,
            epsilon=workload.epsilon,
            shared_bound_s=shared_bound_s(workload, len(names)) if shared else None,
        )

    return [plan(correlation, scheduler) for correlation in options.correlations for scheduler in NETWORK_SCHEDULERS]


def overload_plans(options: NetworkOptions) -> list[PointPlan]:
    """Every load without control and under the stochastic rule, with the same tenants asking."""
    workload = options.workload
    burst_bits = smallest_burst_bits(workload)
    asked = OverloadOptions(workload=workload, duration_s=options.duration_s, seed=options.seed)

    def plan(load: float, rule: Rule) -> PointPlan:
        asking = visits(asked, load, 1)
        given = reservation(rule, workload, burst_bits)
        inside = admit(asking, given, workload)
        shared = rule is Rule.NONE
        tenants = tuple(
            _tenant(
                f"seat-{number}",
                workload,
                None if shared else _reserved(workload, given, burst_bits),
                promised=not shared,
                present=tuple((visit.start_s, min(visit.end_s, options.duration_s)) for visit in seat),
            )
            for number, seat in enumerate(seats(inside), start=1)
        )
        names = tuple(tenant.name for tenant in tenants)
        scenario = _scenario(f"overload-{load:g}-{rule}", options, tenants, shared=shared)
        return PointPlan(
            varied="load",
            value=load,
            contender="rule",
            name=str(rule),
            scenario=scenario,
            judged=names,
            refused=() if shared else tuple(visit not in inside for visit in asking),
            deadline_s=workload.deadline_s,
            epsilon=workload.epsilon,
        )

    return [plan(load, rule) for load in options.loads for rule in NETWORK_RULES]


def seats(inside: Sequence[Visit]) -> list[list[Visit]]:
    """Visits, in the order in which they begin, each on the first seat that is free then."""
    taken: list[list[Visit]] = []
    for visit in inside:
        free = next((seat for seat in taken if seat[-1].end_s <= visit.start_s), None)
        if free is None:
            taken.append([visit])
        else:
            free.append(visit)
    return taken


def _scenario(name: str, options: NetworkOptions, tenants: tuple[Tenant, ...], *, shared: bool) -> Scenario:
    workload = options.workload
    queue_bits = FIFO_LIMIT_PACKETS * workload.arrivals.size_bits if shared else None
    domains = tuple(
        Domain(
            f"domain-{number}",
            round(workload.link_bps),
            compute=number == workload.domains,
            shared_queue_bits=queue_bits,
        )
        for number in range(1, workload.domains + 1)
    )
    return Scenario(
        # A dot would end a name.
        name=name.replace(".", "-"),
        domains=domains,
        tenants=tenants,
        seed=options.seed,
        warmup_s=options.warmup_s,
        duration_s=options.duration_s,
        allow_zero_delay=True,
    )


def _tenant(
    name: str,
    workload: Workload,
    reserved: Reserved | None,
    *,
    promised: bool,
    misbehaviour: Misbehaviour | None = None,
    present: tuple[tuple[float, float], ...] | None = None,
) -> Tenant:
    promise = Promise(workload.deadline_s, workload.epsilon) if promised and reserved is not None else None
    site = f"domain-{workload.domains}"
    return Tenant(name, workload.arrivals, site, reserved, promise, misbehaviour, present_s=present)


def _reserved(workload: Workload, given: Reservation, burst_bits: float) -> Reserved:
    """The rule's reservation in the whole kbit/s that are installed."""
    rate_bps = _KBIT * math.ceil(given.rate_bps / _KBIT)
    meter_bps = _KBIT * math.ceil(workload.contract_factor * workload.mean_bps / _KBIT)
    return Reserved(rate_bps, meter_bps, round(burst_bits), guardrails.queue_bits(round(burst_bits), rate_bps))
