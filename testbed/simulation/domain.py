"""The servers of one domain, in the order in which packets pass them: host, meters, port, impairments, stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from testbed.errors import ScenarioError
from testbed.simulation.compute import ComputeStage
from testbed.simulation.fifo import Bucket, FifoLink, Passed
from testbed.simulation.host_time import Host
from testbed.simulation.impairment import Delayer, Loser
from testbed.simulation.link import priority_link, weighted_link
from testbed.simulation.meter import Meter
from testbed.simulation.reserved import ReservedLink
from testbed.simulation.system import Hop, Scheduler
from testbed.simulation.tally import LATER_METER, METER, QUEUE, RANDOM
from testbed.simulation.wave import Wave

Lose = Callable[[Wave, int], None]
"""Told of packets that were dropped, and why."""


class Server(Protocol):
    """Anything packets pass through."""

    def push(self, wave: Wave, horizon_ps: int) -> Passed:
        """Take a wave and give what leaves; every arrival before `horizon_ps` is in this wave or an earlier one."""


class SimulatedDomain:
    """The servers of one domain for one company of sources.

    Args:
        hop: What it is.
        members: Indices of the sources.
        seed: Of its impairments and computations in this window.
        computes: Whether packets of some source end here, so that its stage serves them.
        first: Whether it is the first of the path, whose meter drops what breaks the contract.
    """

    def __init__(
        self, hop: Hop, members: Sequence[int], seed: np.random.SeedSequence, *, computes: bool, first: bool
    ) -> None:
        loss, excess, compute = seed.spawn(3)
        self.delay_ps = hop.delay_ps
        self._servers: list[tuple[Server, int]] = []
        if hop.host is not None:
            self._servers.append((Host(hop.host), RANDOM))
        if any(policy is not None for policy in hop.meters):
            self._servers.append((Meter(hop.meters), METER if first else LATER_METER))
        self._servers.append((_port(hop, members), QUEUE))
        if hop.excess is not None:
            self._servers.append((Delayer(hop.excess, excess), RANDOM))
        if hop.loss > 0:
            self._servers.append((Loser(hop.loss, loss), RANDOM))
        self._compute = ComputeStage(hop.compute, compute) if hop.compute is not None and computes else None

    @property
    def has_compute(self) -> bool:
        """Whether requests are served here."""
        return self._compute is not None

    def carry(self, wave: Wave, horizon_ps: int, lose: Lose) -> Wave:
        """Packets through all servers of the domain."""
        for server, cause in self._servers:
            wave, lost = server.push(wave, horizon_ps)
            lose(lost, cause)
        return wave

    def compute(self, wave: Wave, horizon_ps: int) -> Wave:
        """Requests through the compute stage, if there is one."""
        return wave if self._compute is None else self._compute.push(wave, horizon_ps).on


def _port(hop: Hop, members: Sequence[int]) -> Server:
    match hop.scheduler:
        case Scheduler.FIFO:
            return FifoLink(hop.link_bps, hop.delay_ps, *hop.limits)
        case Scheduler.PRIORITY:
            return priority_link(hop.link_bps, hop.ranks, delay_ps=hop.delay_ps, limits=hop.limits)
        case Scheduler.WEIGHTED:
            return weighted_link(hop.link_bps, hop.weights, delay_ps=hop.delay_ps, limits=hop.limits)
        case Scheduler.RESERVED:
            drain_bps = hop.drain_bps or hop.link_bps
            return ReservedLink(drain_bps, hop.classes, root_bps=hop.link_bps, delay_ps=hop.delay_ps)
        case Scheduler.SHARED | Scheduler.ISOLATED:
            own = hop.classes[members[0]]
            if own.rate_bps is not None:
                return Bucket(own.rate_bps, own.burst_bits, hop.delay_ps, own.limit_packets)
            left_bps = hop.link_bps - sum(one.rate_bps or 0.0 for one in hop.classes)
            if left_bps <= 0:
                raise ScenarioError(
                    f"domain {hop.name}: found a link of {hop.link_bps:g} bit/s that is reserved to its last bit, "
                    "expected some rate left for best effort behind isolated ports; raise link-rate, or choose the "
                    "scheduler reserved"
                )
            return FifoLink(left_bps, hop.delay_ps, own.limit_packets)
