"""What is simulated, as data: sources, the domains they cross, and how each domain treats them.

A system is more than a scenario says (schedulers other than reservations, impairments, compute stages, correlation) and
can be built by hand; `testbed.simulation.network` builds the one that a scenario describes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from testbed.errors import ScenarioError
from testbed.scenario.model import Arrivals, Misbehaviour
from testbed.simulation.asking import Asking
from testbed.simulation.compute import Compute
from testbed.simulation.host_time import HostTimes
from testbed.simulation.impairment import Excess
from testbed.simulation.meter import Policy
from testbed.simulation.reserved import Reserved


class Scheduler(StrEnum):
    """How a domain's egress port chooses.

    RESERVED is what the data plane installs: an HTB class per tenant on a port that drains at a finite rate. ISOLATED
    is the same on a port that is never busy: buckets that do not know each other, best effort at what they leave.
    SHARED is what the data plane installs for a shared queue: one HTB class for everybody.
    """

    RESERVED = "reserved"
    ISOLATED = "isolated"
    SHARED = "shared"
    FIFO = "fifo"
    PRIORITY = "priority"
    WEIGHTED = "weighted"


@dataclass(frozen=True)
class Source:
    """One tenant.

    Attributes:
        name: Its name.
        number: Its number, which its random streams follow.
        arrivals: The process it declares.
        packets_per_s: Packets it sends a second on average, to choose the size of chunks.
        hops: Domains it crosses, counted from the first.
        deadline_ps: A packet later than this is late; None where there is none.
        misbehaviour: How it departs from the declared process.
        strength: How strongly it follows its group, see `testbed.simulation.streams.stream`.
        present_ps: From when until when it is there, in order; None: always. Its stream stands still in between.
        asking: What each arrival asks of the server behind its last domain; None where arrivals are packets. Its
            latency is that of requests, from the intended time to the answer.
    """

    name: str
    number: int
    arrivals: Arrivals
    packets_per_s: float
    hops: int
    deadline_ps: int | None = None
    misbehaviour: Misbehaviour | None = None
    strength: float | None = None
    present_ps: tuple[tuple[int, int], ...] | None = None
    asking: Asking | None = None


@dataclass(frozen=True)
class Hop:
    """One domain: meters, one egress port, the link behind it.

    Attributes:
        name: Of the domain.
        scheduler: Of the port.
        link_bps: Rate of the link, and of the root class that best effort borrows from.
        drain_bps: Rate at which a port of reservations drains; a software switch's is its processor's.
        delay_ps: Propagation delay of the link.
        classes: Reservation of each source, for RESERVED and ISOLATED; the one class, as everybody's, for SHARED.
        meters: Policy of each source; empty for none.
        ranks: Rank of each source, for PRIORITY.
        weights: Weight of each source, for WEIGHTED.
        limits: Packets that may wait in each queue, None for any number: in the one of FIFO, that of each rank of
            PRIORITY, that of each source of WEIGHTED; empty where any number may wait in all of them.
        excess: Random excess latency behind the port.
        loss: Probability that the domain loses a packet at random.
        compute: Stage through which the packets of sources pass whose last domain this is, unless they ask.
        workers: Of the server that sources ask whose last domain this is.
        host: What a host takes for packets before anything else here is done to them; None for nothing.
    """

    name: str
    scheduler: Scheduler
    link_bps: float
    drain_bps: float | None = None
    delay_ps: int = 0
    classes: tuple[Reserved, ...] = ()
    meters: tuple[Policy | None, ...] = ()
    ranks: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    limits: tuple[int | None, ...] = ()
    excess: Excess | None = None
    loss: float = 0.0
    compute: Compute | None = None
    workers: int = 1
    host: HostTimes | None = None


@dataclass(frozen=True)
class System:
    """Everything that decides a simulation, apart from its length and seed.

    Attributes:
        sources: Tenants.
        hops: Domains in the order crossed.
        contracts: Token bucket of each source that no meter polices where it enters; what is beyond is counted and
            passes. None, or empty, where nothing is counted.

    Raises:
        ScenarioError: Sources or hops that do not fit together.
    """

    sources: tuple[Source, ...]
    hops: tuple[Hop, ...]
    contracts: tuple[Policy | None, ...] = ()

    def __post_init__(self) -> None:
        k = len(self.sources)
        needs = {
            Scheduler.RESERVED: "classes",
            Scheduler.ISOLATED: "classes",
            Scheduler.SHARED: "classes",
            Scheduler.PRIORITY: "ranks",
            Scheduler.WEIGHTED: "weights",
        }
        for hop in self.hops:
            wanted = needs.get(hop.scheduler)
            if wanted is not None and len(getattr(hop, wanted)) != k:
                raise ScenarioError(
                    f"domain {hop.name}: found {len(getattr(hop, wanted))} {wanted} for scheduler {hop.scheduler}, "
                    f"expected one for each of {k} sources; add them"
                )
            queues = {Scheduler.FIFO: 1, Scheduler.PRIORITY: max(hop.ranks, default=0) + 1, Scheduler.WEIGHTED: k}
            if hop.limits and len(hop.limits) != queues.get(hop.scheduler, 0):
                raise ScenarioError(
                    f"domain {hop.name}: found {len(hop.limits)} limits for scheduler {hop.scheduler}, expected "
                    f"{queues.get(hop.scheduler, 0)}, one for each queue; correct them"
                )
        if len(self.asking) > 1 and any(hop.scheduler is Scheduler.ISOLATED for hop in self.hops):
            raise ScenarioError(
                f"sources {', '.join(self.sources[k].name for k in self.asking)}: found isolated ports, which know one "
                "tenant each, before servers that tenants share, expected one tenant with requests at most; choose the "
                "scheduler reserved"
            )
        if len({hop.scheduler is Scheduler.ISOLATED for hop in self.hops}) > 1:
            raise ScenarioError(
                "schedulers: found isolated and shared ports on one path, expected one kind; choose reserved for all"
            )
        wrong = [source.name for source in self.sources if not 1 <= source.hops <= len(self.hops)]
        if wrong:
            raise ScenarioError(
                f"sources {', '.join(wrong)}: found paths of no or too many domains, expected 1 to {len(self.hops)}"
            )

    @property
    def asking(self) -> tuple[int, ...]:
        """Indices of the sources that send requests."""
        return tuple(k for k, source in enumerate(self.sources) if source.asking is not None)

    def way_out(self, source: int) -> int:
        """Row of a tally, behind those of the sources, that counts a source's requests up to the server."""
        return len(self.sources) + self.asking.index(source)

    def companies(self) -> tuple[tuple[int, ...], ...]:
        """Sources that share anything, by index; each company can be simulated on its own."""
        everyone = tuple(range(len(self.sources)))
        if self.hops[0].scheduler is not Scheduler.ISOLATED:
            return (everyone,)
        reserved = [k for k in everyone if self.hops[0].classes[k].rate_bps is not None]
        rest = tuple(k for k in everyone if k not in reserved)
        return (*((k,) for k in reserved), *((rest,) if rest else ()))
