"""The frozen description of one experiment, in SI units, that every later step reads.

A `Scenario` is what remains after a file has been checked: no text with units, no defaults left to guess, nothing that
contradicts itself. It says what operators and tenants want; it does not say what was measured, calibrated or installed.
Sizes are L2 frames without FCS, the one accounting rule of meters, queues, bounds and captures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from testbed.errors import ScenarioError
from testbed.scenario.faults import Fault
from testbed.traffic.modulation import stationary

FULL_FRAME_BITS = 8 * 1514
"""The largest L2 frame without FCS: what TCP cuts large messages into."""


class Datapath(StrEnum):
    """Which Open vSwitch datapath carries the packets."""

    AUTO = "auto"
    USERSPACE = "userspace"
    KERNEL = "kernel"


@dataclass(frozen=True, slots=True)
class ExcessLatency:
    """Random latency that a domain adds to packets, exponential; it holds up everything behind them.

    Attributes:
        mean_s: Mean of it.
        share: Share of the packets that have any.
    """

    mean_s: float
    share: float = 1.0


@dataclass(frozen=True)
class Domain:
    """One operator's domain: an ingress switch, an egress switch and the link that leaves it.

    Attributes:
        name: Unique; lower-case letters, digits and hyphens.
        link_rate_bps: Rate of the domain's links; the sum of reservations may not exceed it.
        link_delay_s: One-way propagation delay of every link that leaves the domain, towards the next domain and
            towards its compute host, so that a promise is the same for whoever crosses it. Needs netem.
        compute: Whether the domain offers a compute host behind its egress switch.
        segment: Part of the path that it sells, beside others that sell the same; None for a part of its own.
        shared_queue_bits: Size of the one FIFO queue that all tenants share at each of the domain's ports; None where
            everybody has a queue of its own.
        excess: Latency that it adds at random, in a simulation; None for none.
        loss: Probability that it loses a packet at random, in a simulation.
    """

    name: str
    link_rate_bps: int
    link_delay_s: float = 0.0
    compute: bool = False
    segment: str | None = None
    shared_queue_bits: int | None = None
    excess: ExcessLatency | None = None
    loss: float = 0.0

    @property
    def is_impaired(self) -> bool:
        """Whether it does to packets what no emulated domain does."""
        return self.excess is not None or self.loss > 0


@dataclass(frozen=True)
class PoissonArrivals:
    """Packets (or requests) at the points of a Poisson process."""

    rate_per_s: float
    size_bits: int


@dataclass(frozen=True)
class OnOffArrivals:
    """Markov on-off fluid cut into packets; an unfinished packet carries over to the next burst."""

    peak_bps: float
    mean_on_s: float
    mean_off_s: float
    size_bits: int


@dataclass(frozen=True)
class RenewalArrivals:
    """Independent identically distributed gaps.

    Attributes:
        rate_per_s: Mean rate.
        gap: `deterministic`, `erlang`, `gamma` or `hyperexponential`.
        cv: Coefficient of variation of the gap (0 for deterministic; 1/sqrt(k) for Erlang k).
        size_bits: Size of each packet.
    """

    rate_per_s: float
    gap: str
    cv: float
    size_bits: int


@dataclass(frozen=True)
class MmppArrivals:
    """Packets of a Poisson process whose rate follows a hidden Markov chain.

    Attributes:
        rates_per_s: Packet rate in each state, length k.
        switch_per_s: Transition rates between states, k rows of k; the diagonal is ignored.
        size_bits: Size of each packet.
    """

    rates_per_s: tuple[float, ...]
    switch_per_s: tuple[tuple[float, ...], ...]
    size_bits: int

    @property
    def rate_per_s(self) -> float:
        """Mean rate.

        Raises:
            ScenarioError: The rates do not describe such a chain.
        """
        return float(stationary(self.switch_per_s) @ self.rates_per_s)


@dataclass(frozen=True)
class TraceArrivals:
    """Requests replayed from a file, each sent as the packets its size needs.

    Attributes:
        path: The file, absolute.
        format: `azure-llm`, `burstgpt` or `mooncake` (requests, as their owners publish them), `servegen` (a client
            that requests are drawn from) or `packets` (time_s, size_bytes).
        speed_up: Factor by which the trace's time is compressed.
        bits_per_token: Payload bits that one context token stands for (0 for `packets`).
        size_bits: Largest packet; a request is cut into packets of this size and a remainder.
        start_s: Where in the trace's own time the stretch that is replayed begins.
        span_s: How much of the trace's own time it holds; None for the rest of a recording.
    """

    path: Path
    format: str
    speed_up: float
    bits_per_token: int
    size_bits: int
    start_s: float = 0.0
    span_s: float | None = None


Arrivals = PoissonArrivals | OnOffArrivals | RenewalArrivals | MmppArrivals | TraceArrivals


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Requests are as large as the model's input makes them."""


@dataclass(frozen=True, slots=True)
class DrawnSize:
    """Requests of independent sizes; one size means that all are padded to it.

    Attributes:
        size_bits: Possible sizes of the message.
        weights: How often each occurs, relative to the others; equally often when empty.
    """

    size_bits: tuple[int, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.size_bits or any(bits <= 0 or bits % 8 for bits in self.size_bits):
            raise ScenarioError(f"request sizes: found {self.size_bits} bits, expected whole bytes above 0")
        if self.weights and (len(self.weights) != len(self.size_bits) or not min(self.weights) > 0):
            raise ScenarioError(f"request sizes: found weights {self.weights}, expected one above 0 for each size")


@dataclass(frozen=True, slots=True)
class TokenSize:
    """A trace's context tokens, each as so many bits of message (the trace's `bits_per_token`)."""


RequestSize: TypeAlias = ModelSize | DrawnSize | TokenSize


@dataclass(frozen=True, slots=True)
class Work:
    """How long a worker that does nothing else computes a request.

    Attributes:
        mean_s: Mean.
        cv: Coefficient of variation; 0 where every computation takes the same.
    """

    mean_s: float
    cv: float = 0.0


@dataclass(frozen=True)
class Requests:
    """What a tenant asks of the inference server at its site, one request for each arrival.

    Attributes:
        model: Name of a model that ships with the server.
        images: Images in each request; 0 where the model generates text from a trace's tokens.
        size: How large the messages are.
        in_flight: Most requests that may be unanswered; those due beyond it are never sent, and missed.
        timeout_s: How long after its intended time an answer is waited for.
        compute_share: Share of the server that the tenant is guaranteed.
        token_scale: Bytes of context, and of generated text, that one token of the trace stands for.
        work: How long a request is computed where nothing computes it, in a simulation; None where a run tells.
    """

    model: str
    images: int
    size: RequestSize
    in_flight: int
    timeout_s: float
    compute_share: float
    token_scale: float = 1.0
    work: Work | None = None


def whole_kbit(bits: float) -> int:
    """The bucket of a meter that is to hold so many bits: OpenFlow counts bursts in kbit, and holds no bit less here.

    Whatever speaks of a meter's burst (what is asked for, signed, installed, bounded and simulated) has passed through
    here, so that it is one number. Rounded up, or a packet that the asker counted on would be dropped.
    """
    return math.ceil(bits / 1000) * 1000


@dataclass(frozen=True)
class Reservation:
    """What the tenant buys in every domain of the path.

    Attributes:
        rate_bps: Rate R of the tenant's queue.
        meter_rate_bps: Rate r of the tenant's meter, below R and above the tenant's mean.
        burst_bits: Burst b of the tenant's meter in the first domain, as the meter holds it: in whole kbit, to which
            what is asked for is rounded up.
        queue_bits: Limit of the tenant's queue in each domain (its leaf), from which the excess cap follows.
    """

    rate_bps: int
    meter_rate_bps: int
    burst_bits: int
    queue_bits: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "burst_bits", whole_kbit(self.burst_bits))


@dataclass(frozen=True)
class Promise:
    """P(latency > deadline or never answered) <= epsilon, at the stated confidence."""

    deadline_s: float
    epsilon: float
    confidence: float = 0.95


@dataclass(frozen=True)
class Misbehaviour:
    """A contract breach on purpose.

    Attributes:
        kind: `flood` (the arrival process is sped up to `offered_bps`) or `correlated` (bursts share the modulating
            process named `group` with other tenants).
        offered_bps: Offered L2 rate of a flood, else None.
        group: Name of the shared modulating process, else None.
        strength: How strongly the tenant follows its group, from 0 (independent) to 1 (together); None where everybody
            of the group is on and off at the very same times.
    """

    kind: str
    offered_bps: float | None = None
    group: str | None = None
    strength: float | None = None


Interval: TypeAlias = tuple[float, float]
"""From when until when, in seconds of a window."""


@dataclass(frozen=True)
class Tenant:
    """One tenant: its arrivals and, unless it is best effort, its reservation and promise.

    Attributes:
        name: Unique; lower-case letters, digits and hyphens.
        arrivals: The declared, conforming arrival process.
        site: Domain whose compute host the tenant talks to; its path is every domain up to and including that one.
        reservation: None for best effort.
        promise: None where nothing is promised.
        misbehaviour: A breach of the declared process on purpose, None for a conforming tenant.
        requests: What each arrival asks of an inference server; None where arrivals are packets. The size of arrivals
            is then that of a message, before the network adds its headers.
        way: Domains its packets cross, the site last, one of each segment; None for all of them up to the site.
        present_s: When it is there in a measured window, in order; its arrivals stand still in between. None: always.
    """

    name: str
    arrivals: Arrivals
    site: str
    reservation: Reservation | None = None
    promise: Promise | None = None
    misbehaviour: Misbehaviour | None = None
    requests: Requests | None = None
    way: tuple[str, ...] | None = None
    present_s: tuple[Interval, ...] | None = None

    @property
    def keeps_its_law(self) -> bool:
        """Whether what it sends has the declared law by itself, whatever others do at the same time.

        Bursts that coincide with those of others do: only the joint law of the group is not that of independent ones.
        """
        return self.misbehaviour is None or self.follows_a_group

    @property
    def follows_a_group(self) -> bool:
        """Whether its bursts coincide with those of others."""
        return self.misbehaviour is not None and self.misbehaviour.kind == "correlated"

    @property
    def packet_bits(self) -> int:
        """Largest L2 frame the tenant sends."""
        return self.arrivals.size_bits if self.requests is None else FULL_FRAME_BITS

    @property
    def mean_bps(self) -> float | None:
        """Mean rate of the declared (conforming) arrivals, None where only the trace file knows it.

        L2 bits of packets; message bits of requests.
        """
        match self.arrivals:
            case PoissonArrivals() | RenewalArrivals() | MmppArrivals():
                return self.arrivals.rate_per_s * self.arrivals.size_bits
            case OnOffArrivals(peak_bps=peak, mean_on_s=on, mean_off_s=off):
                return peak * on / (on + off)
            case TraceArrivals():
                return None


@dataclass(frozen=True)
class Scenario:
    """Everything that decides a run, apart from the host it runs on.

    Attributes:
        name: Short name, used in the run folder.
        domains: In the order a packet crosses them.
        tenants: In the order of the file; index + 1 is the tenant's number in addresses, classes and meters.
        seed: Root of every random stream of the run.
        warmup_s: Calibration traffic before the measured window.
        duration_s: Length of the measured window.
        cooldown_s: Calibration traffic behind each measured window, 0 for none.
        datapath: Datapath wanted.
        allow_zero_delay: Whether link delays may become zero (in the network and in the bound) without netem.
        source: The file it came from, None if built in Python.
        slow_down: How many times slower it is than it was written: all its rates were divided, all its times
            multiplied by this (`testbed.scenario.slow_down`).
        faults: What is broken on purpose in each measured window.
    """

    name: str
    domains: tuple[Domain, ...]
    tenants: tuple[Tenant, ...]
    seed: int
    warmup_s: float
    duration_s: float
    datapath: Datapath = Datapath.AUTO
    allow_zero_delay: bool = False
    source: Path | None = None
    slow_down: float = 1.0
    faults: tuple[Fault, ...] = ()
    cooldown_s: float = 0.0

    def path(self, tenant: Tenant) -> tuple[Domain, ...]:
        """Domains that carry `tenant`, in the order its packets cross them."""
        names = [domain.name for domain in self.domains]
        if tenant.way is not None:
            return tuple(self.domains[names.index(name)] for name in tenant.way)
        return self.domains[: names.index(tenant.site) + 1]

    @property
    def segments(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the domains, from 1, by segment; domains of one segment stand beside each other."""
        grouped: dict[str, list[int]] = {}
        for number, domain in enumerate(self.domains, 1):
            grouped.setdefault(domain.segment or f"({number})", []).append(number)
        return tuple(tuple(numbers) for numbers in grouped.values())
