"""The tenants of the experiments: bursty sources, the contracts they declare, and what a rule reserves for them.

The ratio between rules depends on the contract, and a chosen burst could make any ratio. Here the burst is the smallest
with which the meter drops less than a tenth of epsilon of a conforming tenant's packets, measured, and the contract's
rate is stated as a multiple of the mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from testbed.calculus import CalculusError, DependentSum, MarkovOnOff, RateLatency, TokenBucket, delay_bound
from testbed.calculus.delay import smallest_rate
from testbed.errors import ReservationError
from testbed.management.admission import Demand, Rule, confirm
from testbed.management.sizing import DRAIN_BPS, ClassDemand, design_classes
from testbed.scenario.model import OnOffArrivals, whole_kbit
from testbed.simulation.clock import PS_PER_S
from testbed.simulation.meter import Meter, Policy
from testbed.simulation.reserved import Reserved
from testbed.simulation.streams import stream
from testbed.simulation.system import Hop, Scheduler
from testbed.simulation.wave import Wave

BURST_SEED = 20_000
"""Of the stream on which the smallest burst is found."""


@dataclass(frozen=True)
class Workload:
    """Equal tenants on a tandem of equal domains.

    Attributes:
        arrivals: What a tenant sends.
        contract_factor: Rate of its contract over its mean.
        deadline_s: Its promise.
        epsilon: Share of its packets that may miss it.
        link_bps: Rate of every domain's link.
        domains: How many it crosses.
        host_s: What an emulating host may add on the path, part of the deadline; 0 where there is none.
        host_risk: Share of epsilon kept for packets that the host makes later than that.
    """

    arrivals: OnOffArrivals = OnOffArrivals(peak_bps=20e6, mean_on_s=5e-3, mean_off_s=45e-3, size_bits=11_200)  # noqa: RUF009 - frozen
    contract_factor: float = 1.25
    deadline_s: float = 0.1
    epsilon: float = 1e-3
    link_bps: float = 100e6
    domains: int = 3
    host_s: float = 0.0
    host_risk: float = 0.0

    @property
    def mean_bps(self) -> float:
        """Mean rate of a tenant."""
        on_s, off_s = self.arrivals.mean_on_s, self.arrivals.mean_off_s
        return self.arrivals.peak_bps * on_s / (on_s + off_s)

    @property
    def packets_per_s(self) -> float:
        """Mean packet rate of a tenant."""
        return self.mean_bps / self.arrivals.size_bits


@dataclass(frozen=True)
class Reservation:
    """What a rule gives every tenant of a workload.

    Attributes:
        rule: The rule.
        rate_bps: Reserved rate, 0 for none.
        bound_s: Latency promised, None for none.
        shaped: The class of every port.
        policy: The meter at the entry of the first domain; None where nothing is reserved, as on a network.
    """

    rule: Rule
    rate_bps: float
    bound_s: float | None
    shaped: Reserved
    policy: Policy | None


@cache
def smallest_burst_bits(workload: Workload, *, duration_s: float = 20_000.0) -> float:
    """The smallest bucket that drops less than a tenth of epsilon of a long stream's packets, as a meter holds it.

    It is sought in whole packets.
    """
    times = stream(workload.arrivals, np.random.SeedSequence(BURST_SEED)).until(round(duration_s * PS_PER_S)).time_ps
    n = times.size
    sizes = np.full(n, workload.arrivals.size_bits, np.int32)
    wave = Wave(times, times, np.arange(n), sizes, np.zeros(n, np.int32), np.ones(n, np.bool_))
    rate_bps = workload.contract_factor * workload.mean_bps

    def enough(packets: int) -> bool:
        dropped = Meter([Policy(rate_bps, packets * workload.arrivals.size_bits)]).push(wave, 0).lost
        return len(dropped) < workload.epsilon / 10 * n

    low, high = 1, 2
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return float(whole_kbit(high * workload.arrivals.size_bits))


def demand(workload: Workload, burst_bits: float) -> Demand:
    """What one tenant of the workload asks for."""
    arrivals = workload.arrivals
    return Demand(
        tenant="bursty",
        flow=MarkovOnOff(arrivals.peak_bps, arrivals.mean_on_s, arrivals.mean_off_s, packet_bits=arrivals.size_bits),
        contract=TokenBucket(
            workload.contract_factor * workload.mean_bps,
            burst_bits,
            peak_bps=arrivals.peak_bps,
            packet_bits=arrivals.size_bits,
        ),
        deadline_s=workload.deadline_s - workload.host_s,
        epsilon=(1 - workload.host_risk) * workload.epsilon,
        meter_loss=workload.epsilon / 10,
    )


def capacity(workload: Workload, rate_bps: float) -> int:
    """How many reservations of a rate a link of the workload carries."""
    return int(workload.link_bps / rate_bps)


def reservation(rule: Rule, workload: Workload, burst_bits: float) -> Reservation:
    """What a rule gives every tenant, for a link full of them.

    The latency of a port depends on how many classes share it and on their rate, and the rate on the latency. So a rate
    is judged together with the port that a link full of such reservations makes, and the smallest that keeps the
    promise there is found by bisection, to nine digits. The one that is returned was itself judged to keep it; that
    none below does rests on more rate never breaking a promise, since it never means more classes.

    Raises:
        CalculusError: No rate up to the link's keeps the promise.
    """
    if rule is Rule.NONE:
        return Reservation(rule, 0.0, None, Reserved(None), None)
    asked = demand(workload, burst_bits)
    rate_bps = asked.contract.peak_rate_bps
    if rule is not Rule.PEAK:
        requirement = f"bound by the rule {rule} <= {asked.deadline_s:g} s"
        rate_bps = smallest_rate(
            lambda rate: promised(rule, workload, asked, rate) is not None, workload.mean_bps, requirement
        )
    found = promised(rule, workload, asked, rate_bps)
    if found is None or rate_bps > workload.link_bps:
        raise CalculusError(
            f"reservation by the rule {rule}: found {rate_bps:g} bit/s, expected a rate up to the link's "
            f"{workload.link_bps:g} with which all but {workload.epsilon:g} of the packets meet "
            f"{workload.deadline_s:g} s; allow a longer deadline or a faster link"
        )
    shaped, bound_s = found
    policy = Policy(asked.contract.rate_bps, burst_bits)
    return Reservation(rule, rate_bps, bound_s + workload.host_s, shaped, policy)


def promised(rule: Rule, workload: Workload, asked: Demand, rate_bps: float) -> tuple[Reserved, float] | None:
    """The class that a reservation gets on a link full of its like, and the latency that it promises.

    Args:
        rule: The rule that confirms it.
        workload: The tenants.
        asked: What each of them asks for.
        rate_bps: The rate that is proposed.

    Returns:
        The class, and the bound in seconds without the host's share; None where the promise would not be kept.
    """
    each = ClassDemand("each", math.ceil(rate_bps), workload.arrivals.size_bits)
    demands = [replace(each, tenant=str(k)) for k in range(max(1, capacity(workload, rate_bps)))]
    try:
        port = design_classes(demands, drain_bps=drain_bps(workload))[demands[0].tenant]
    except (CalculusError, ReservationError):
        return None
    services = [RateLatency(rate_bps, port.latency_s, f"domain {d}") for d in range(workload.domains)]
    decision, bound = confirm(rule, asked, services)
    if bound is None or not decision.admitted:
        return None
    return Reserved(rate_bps, 8.0 * port.burst_bytes), bound.delay_s


def path(
    workload: Workload, scheduler: Scheduler, given: Reservation, tenants: int, *, limit_packets: int | None = None
) -> tuple[Hop, ...]:
    """The domains for so many tenants of the workload.

    Reserved tenants pass their meters where they enter, as on a network, whose later meters are wide enough for all
    that the first ones let through. In a shared queue nobody is metered.

    Args:
        workload: The tenants.
        scheduler: Of every port.
        given: What each of them has reserved.
        tenants: How many there are.
        limit_packets: Packets that a shared queue holds; None for any number.
    """
    hop = Hop(
        name="domain",
        scheduler=scheduler,
        link_bps=workload.link_bps,
        drain_bps=drain_bps(workload),
        classes=(given.shaped,) * tenants,
        limits=(limit_packets,) if scheduler is Scheduler.FIFO else (),
    )
    metered = scheduler is Scheduler.RESERVED
    first = replace(hop, meters=(given.policy,) * tenants) if metered else hop
    return (first, *[hop] * (workload.domains - 1))


def shared_bound_s(workload: Workload, tenants: int) -> float:
    """Bound on one tenant's latency where so many share a FIFO queue at the link's rate, however they depend.

    Hoelder's inequality over all of them, and the packets of one counted (`testbed.calculus.DependentSum`): a bound
    that took them for independent would be broken by bursts that coincide. At the workload's epsilon.

    Raises:
        CalculusError: Together they send more than the link carries.
    """
    arrivals = workload.arrivals
    one = MarkovOnOff(arrivals.peak_bps, arrivals.mean_on_s, arrivals.mean_off_s, packet_bits=arrivals.size_bits)
    link = RateLatency(workload.link_bps, arrivals.size_bits / workload.link_bps)
    links = [replace(link, name=f"domain {d}") for d in range(workload.domains)]
    epsilon = (1 - workload.host_risk) * workload.epsilon
    return delay_bound(DependentSum((one,) * tenants, observer=0), links, epsilon).delay_s + workload.host_s


def drain_bps(workload: Workload) -> float:
    """Rate at which a port of reservations drains."""
    return max(DRAIN_BPS, workload.link_bps)
