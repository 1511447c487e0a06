"""What operators sell and what tenants intend, before anybody has decided who serves whom.

A `Market` is the counterpart of a `Scenario`: there every tenant has a site and a reservation; here it has an intent,
segments have several operators, and sites have models of different accuracy and cost. Turning one into the other is
planning (`testbed.management.planner`). Prices are per hour, in whatever currency the federation settles in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from testbed.scenario.faults import Fault
from testbed.scenario.model import FULL_FRAME_BITS, Datapath, OnOffArrivals, PoissonArrivals, RenewalArrivals

RequestArrivals = PoissonArrivals | OnOffArrivals | RenewalArrivals
"""Arrival processes of requests; `size_bits` is that of a message, and `peak_bps` counts message bits."""


@dataclass(frozen=True)
class ServedModel:
    """A model that a site serves.

    Attributes:
        name: Its name.
        task: What it answers.
        accuracy: Share of answers that are right, on data it has not seen.
        work_s: Longest computation of a request, on one worker.
        answer_bits: Largest answer's message.
    """

    name: str
    task: str
    accuracy: float
    work_s: float
    answer_bits: int = 8 * 1024


@dataclass(frozen=True)
class Site:
    """A domain's inference server.

    Attributes:
        workers: Workers.
        seats: Most tenants that share it; one request of each other may be in a tenant's way.
        price: Of the whole server.
        models: What it serves.
    """

    workers: int
    seats: int
    price: float
    models: tuple[ServedModel, ...]


@dataclass(frozen=True)
class Operator:
    """A domain that sells: an ingress switch, an egress switch, the link that leaves it, and perhaps a site.

    Attributes:
        name: Of the domain.
        segment: The part of the path that it can carry; operators of one segment compete.
        link_rate_bps: Rate of its links.
        reservable_bps: Largest sum of reservations it sells.
        classes: Most reservations it sells.
        drain_bps: Rate at which its ports are drained, from which its latency follows.
        price_per_mbps: Of a reserved Mbit/s.
        link_delay_s: One-way propagation delay of the link that leaves it.
        host_allowance_s: Part of its latency that the emulating host gets.
        packet_bits: Largest packet.
        site: Its inference server, None if it has none.
        calibrated: Whether it signs how late packets were when it measured; else it declares that none is later than
            its guardrails say.
    """

    name: str
    segment: str
    link_rate_bps: int
    reservable_bps: int
    classes: int
    drain_bps: float
    price_per_mbps: float
    link_delay_s: float = 0.0
    host_allowance_s: float = 0.0
    packet_bits: int = FULL_FRAME_BITS
    site: Site | None = None
    calibrated: bool = False


@dataclass(frozen=True)
class Intent:
    """What a tenant wants, in its own words.

    Attributes:
        tenant: Name.
        task: What is to be answered.
        accuracy: Least accuracy.
        deadline_s: From the intended time of a request to its answer.
        epsilon: Share of requests that may miss it.
        arrivals: How requests arrive, and how large they are.
        price: The most it pays.
        domains: The only domains it may cross, None for any.
    """

    tenant: str
    task: str
    accuracy: float
    deadline_s: float
    epsilon: float
    arrivals: RequestArrivals
    price: float
    domains: frozenset[str] | None = None


@dataclass(frozen=True)
class Market:
    """Everything a plan is made from.

    Attributes:
        name: Short name.
        segments: In the order in which requests cross them.
        operators: In the order of the file.
        intents: In the order in which they are to be decided.
        rule: Name of the admission rule.
        seed: Root of every random stream of a run.
        warmup_s: Calibration traffic before the measured window.
        duration_s: Length of the measured window.
        cooldown_s: Calibration traffic behind each measured window, 0 for none.
        datapath: Datapath wanted.
        allow_zero_delay: Whether link delays may become zero (in the network and in the bound) without netem.
        source: The file it came from, None if built in Python.
        faults: What is broken on purpose in each measured window.
        slow_down: How many times slower it is than it was written (`testbed.scenario.slow_down`).
    """

    name: str
    segments: tuple[str, ...]
    operators: tuple[Operator, ...]
    intents: tuple[Intent, ...]
    rule: str = "stochastic"
    seed: int = 1
    warmup_s: float = 10.0
    duration_s: float = 60.0
    cooldown_s: float = 0.0
    datapath: Datapath = Datapath.AUTO
    allow_zero_delay: bool = False
    source: Path | None = None
    faults: tuple[Fault, ...] = ()
    slow_down: float = 1.0
