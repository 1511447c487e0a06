"""The tenants of the experiments: bursty sources, the contracts they declare, and what a rule reserves for them.

The ratio between rules depends on the contract, and a chosen burst could make any ratio. Here the burst is the smallest
with which the meter drops less than a tenth of epsilon of a conforming tenant's packets, measured, and the contract's
rate is stated as a multiple of the mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from testbed.calculus import DependentSum, MarkovOnOff, RateLatency, TokenBucket, delay_bound
from testbed.management.admission import Demand, Rule, reserve
from testbed.management.sizing import DRAIN_BPS, ClassDemand, design_classes
from testbed.scenario.model import OnOffArrivals
from testbed.simulation.clock import PS_PER_S
from testbed.simulation.link import Reserved
from testbed.simulation.meter import Meter, Policy
from testbed.simulation.streams import stream
from testbed.simulation.wave import Wave

_ROUNDS = 6
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
        policy: The meter.
    """

    rule: Rule
    rate_bps: float
    bound_s: float | None
    shaped: Reserved
    policy: Policy


def smallest_burst_bits(workload: Workload, *, duration_s: float = 20_000.0) -> float:
    """The smallest bucket, in whole packets, that drops less than a tenth of epsilon of a long stream's packets."""
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
    return float(high * workload.arrivals.size_bits)


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


def reservation(rule: Rule, workload: Workload, burst_bits: float) -> Reservation:
    """What a rule gives every tenant, for a link full of them.

    The latency of a port depends on how many classes share it and these on the rate, so both are found together.

    Raises:
        CalculusError: No rate meets the deadline.
        ReservationError: No burst lets so many classes keep their rate.
    """
    size_bits = workload.arrivals.size_bits
    asked = demand(workload, burst_bits)
    policy = Policy(asked.contract.rate_bps, burst_bits)
    if rule is Rule.NONE:
        return Reservation(rule, 0.0, None, Reserved(None), policy)
    path = [RateLatency(workload.arrivals.peak_bps, 0.0, f"domain {d}") for d in range(workload.domains)]
    rate_bps, bound_s = reserve(rule, asked, path)
    for _ in range(_ROUNDS):
        number = max(1, int(workload.link_bps / rate_bps))
        classes = design_classes([ClassDemand(str(k), round(rate_bps), size_bits) for k in range(number)])
        port = next(iter(classes.values()))
        path = [replace(one, latency_s=port.latency_s) for one in path]
        rate_bps, bound_s = reserve(rule, asked, path)
    shaped = Reserved(rate_bps, 8.0 * port.burst_bytes)
    return Reservation(rule, rate_bps, None if bound_s is None else bound_s + workload.host_s, shaped, policy)


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
    path = [replace(link, name=f"domain {d}") for d in range(workload.domains)]
    epsilon = (1 - workload.host_risk) * workload.epsilon
    return delay_bound(DependentSum((one,) * tenants, observer=0), path, epsilon).delay_s + workload.host_s


def drain_bps(workload: Workload) -> float:
    """Rate at which a port of reservations drains."""
    return max(DRAIN_BPS, workload.link_bps)
