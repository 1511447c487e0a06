"""Every theorem that answers a question about a path, tried one by one; nothing here decides which is best.

A candidate computes its delay at once and its parts only when asked, because most candidates are rejected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from testbed.calculus.arrivals.base import Arrival, QueueMethod
from testbed.calculus.arrivals.bucket import TokenBucket
from testbed.calculus.arrivals.metered import Metered
from testbed.calculus.errors import CalculusError, NotApplicableError, UnstableError
from testbed.calculus.independent import IndependentSum
from testbed.calculus.random_path import (
    INDEPENDENT_SERVERS,
    RandomPath,
    convolved_delay,
    hop_by_hop_delay,
)
from testbed.calculus.result import Candidate, Part
from testbed.calculus.tails import ExponentialTail, Per, QueueBound
from testbed.calculus.tandem import Allocation, PromisedPath, PromisedService, spend_risk

UNION = "nothing about dependence between domains (union bound over one packet's terms)"
INDEPENDENT_DOMAINS = "the excesses of the domains are independent of each other and of the tenant's own queue"
FIFO = "each domain keeps the tenant's packets in order"
PROMISE = "each domain keeps its envelope for any conforming arrivals"
OWN_BURST = "own burst"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Detail:
    """What a candidate's delay is made of."""

    sojourn_s: float | None
    rate_bps: float
    parts: tuple[Part, ...]
    assumptions: tuple[str, ...]
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A candidate's delay, and the rest on demand."""

    method: str
    delay_s: float
    detail: Callable[[], Detail]


def attempt(
    methods: Mapping[str, Callable[[], T]], method: str, subject: str, also: Sequence[str] = ()
) -> tuple[dict[str, T], list[Candidate]]:
    """Try the methods asked for.

    Args:
        methods: All there are.
        method: One of them, or best for all.
        subject: What they are about, for the message when the method does not exist.
        also: Names of methods that exist elsewhere, for the same message.

    Returns:
        The results by name, and the methods that do not apply with the reason.

    Raises:
        UnstableError: No method applies, and one of them because the system is unstable.
        CalculusError: The method does not exist, or none applies; the message gives each reason.
    """
    if method != "best":
        if method not in methods:
            known = ", ".join(dict.fromkeys((*methods, *also)))
            raise CalculusError(f"method {method!r} does not exist for {subject}; expected best or one of {known}")
        methods = {method: methods[method]}
    found: dict[str, T] = {}
    refused: list[Candidate] = []
    errors: list[CalculusError] = []
    for name, compute in methods.items():
        try:
            found[name] = compute()
        except CalculusError as error:
            errors.append(error)
            refused.append(Candidate(name, math.inf, str(error)))
    if not found:
        kind = UnstableError if any(isinstance(error, UnstableError) for error in errors) else NotApplicableError
        raise kind(dict.fromkeys(str(error) for error in errors))
    return found, refused


def queue_bounds(
    arrival: Arrival, rate_bps: float, per: Per, method: str
) -> tuple[dict[str, QueueBound], list[Candidate]]:
    """Every theorem about the flow's own queue at a constant rate that was asked for and applies."""

    def at_rate(bound: QueueMethod) -> Callable[[], QueueBound]:
        return lambda: bound(rate_bps, per)

    methods = {name: at_rate(bound) for name, bound in arrival.queue_methods().items()}
    return attempt(methods, method, f"a {type(arrival).__name__} at a constant rate")


def promised(
    arrival: Arrival,
    servers: Sequence[PromisedService],
    epsilon: float,
    per: Per,
    method: str,
    *,
    independent_domains: bool,
) -> tuple[list[Answer], list[Candidate]]:
    """Candidates on a path of promises: each queue theorem with the split of the risk over the domains."""
    path = PromisedPath.of(servers)
    path.require_countable(per)
    left = risk_left(path, epsilon)
    baseline = _hop_by_hop(arrival, servers)
    if method == "hop-by-hop" and baseline is not None:
        return [baseline], []
    wanted = method.removesuffix("+independent")
    found, refused = queue_bounds(arrival, path.rate_bps, per, wanted)
    answers = []
    for name, queue in found.items():
        answers.append(_union_answer(name, arrival, path, queue, left))
        if independent_domains and path.uncertain and isinstance(queue.tail, ExponentialTail):
            answers.append(_independent_answer(f"{name}+independent", arrival, path, queue, left))
    if baseline is not None and method == "best":
        answers.append(baseline)
    asked = [answer for answer in answers if method in {"best", answer.method}]
    if not asked:
        raise NotApplicableError(
            f"method {method!r} needs independent_domains=True, a domain with an excess, and a queue bound that is one "
            "exponential"
        )
    return asked, refused


def risk_left(path: PromisedPath, epsilon: float) -> float:
    """What of epsilon remains for being late, losses taken off."""
    if not path.loss < epsilon:
        raise CalculusError(
            f"sum of loss probabilities < epsilon fails: {path.loss:g} against {epsilon:g}; "
            "no delay can make up for packets that are lost"
        )
    return epsilon - path.loss


def _union_answer(name: str, arrival: Arrival, path: PromisedPath, queue: QueueBound, epsilon: float) -> Answer:
    allocation = spend_risk(path, queue.tail, epsilon)
    delay = float(allocation.delay_s) + path.latency_s
    several = len(path.names) > 1 or bool(path.uncertain)

    def detail() -> Detail:
        own = spend_risk(path, queue.sojourn, epsilon) if queue.sojourn is not None else None
        return Detail(
            sojourn_s=_sojourn(arrival, path, delay, None if own is None else float(own.delay_s) + path.latency_s),
            rate_bps=path.rate_bps,
            parts=tuple(_allocated_parts(path, allocation)),
            assumptions=(*queue.assumptions, *((FIFO, PROMISE, UNION) if several else ())),
            exact=queue.exact and not several and delay > 0.0 and path.latency_s == 0.0,
        )

    return Answer(name, delay, detail)


def _independent_answer(name: str, arrival: Arrival, path: PromisedPath, queue: QueueBound, epsilon: float) -> Answer:
    tail = queue.tail
    if not isinstance(tail, ExponentialTail):
        raise NotApplicableError("the rule for independent domains needs an exponential bound on the tenant's queue")

    def total(own: ExponentialTail) -> float:
        parts = IndependentSum(
            np.append(own.log_prefactor, path.log_m),
            np.append(own.decay_per_s, path.decay),
            np.append(0.0, path.floor),
        )
        return parts.delay(epsilon) + path.latency_s

    def detail() -> Detail:
        own = total(queue.sojourn) if isinstance(queue.sojourn, ExponentialTail) else None
        slowest = min(tail.decay_per_s, float(path.decay.min()))
        parts = [Part("all domains", "queue", delay - path.latency_s, epsilon, epsilon * slowest)]
        return Detail(
            sojourn_s=_sojourn(arrival, path, delay, own),
            rate_bps=path.rate_bps,
            parts=(*parts, *_sure_parts(path)),
            assumptions=(*queue.assumptions, FIFO, PROMISE, INDEPENDENT_DOMAINS),
        )

    delay = total(tail)
    return Answer(name, delay, detail)


def _hop_by_hop(arrival: Arrival, servers: Sequence[PromisedService]) -> Answer | None:
    """The deterministic baseline that pays the burst in every domain; only for contracts and capped excesses."""
    bucket = arrival.bucket if isinstance(arrival, Metered) else arrival
    worst = math.fsum(server.worst_latency_s for server in servers)
    if not isinstance(bucket, TokenBucket) or len(servers) < 2 or math.isinf(worst):
        return None
    parts = []
    grown = bucket
    for index, server in enumerate(servers):
        if grown.rate_bps > server.rate_bps:
            return None
        name = server.name or f"domain {index + 1}"
        parts.append(Part(name, "queue", grown.backlog_bits(server.rate_bps) / server.rate_bps, 0.0, 0.0))
        parts.append(Part(name, "latency", server.worst_latency_s, 0.0, 0.0))
        grown = TokenBucket(bucket.rate_bps, grown.burst_bits + bucket.rate_bps * server.worst_latency_s)
    delay = math.fsum(part.delay_s for part in parts)
    sojourn = delay + arrival.largest_packet_bits / servers[-1].rate_bps
    rate = min(server.rate_bps for server in servers)
    assumptions = ("the contract is enforced by a meter", FIFO, PROMISE)
    return Answer("hop-by-hop", delay, lambda: Detail(sojourn, rate, tuple(parts), assumptions))


def random(
    arrival: Arrival, path: RandomPath, epsilon: float, per: Per, method: str
) -> tuple[list[Answer], list[Candidate]]:
    """Candidates on a path with left-over servers."""

    def answer(name: str, delay_s: float, theta: float | None) -> Answer:
        def detail() -> Detail:
            slowest = float(path.service_rates(np.asarray(theta or path.search_limit)).min())
            price = epsilon * (theta or 0.0) * slowest
            sure = [
                Part(path.names[index], "latency", getattr(server, "latency_s", 0.0), 0.0, 0.0)
                for index, server in enumerate(path.servers)
                if getattr(server, "latency_s", 0.0) > 0.0
            ]
            spent = delay_s - math.fsum(part.delay_s for part in sure)
            return Detail(
                sojourn_s=delay_s if arrival.largest_packet_bits == 0.0 else None,
                rate_bps=float(path.capacities.min()),
                parts=(Part("own burst and cross traffic", "queue", spent, epsilon, price), *sure),
                assumptions=("all flows are stationary", "all flows have light tails", INDEPENDENT_SERVERS, FIFO),
            )

        return Answer(name, delay_s, detail)

    def convolution() -> Answer:
        delay, theta = convolved_delay(path, epsilon, per)
        return answer("convolution", delay, theta)

    methods = {
        "convolution": convolution,
        "hop-by-hop": lambda: answer("hop-by-hop", hop_by_hop_delay(path, epsilon, per), None),
    }
    found, refused = attempt(methods, method, "a path with left-over servers")
    return list(found.values()), refused


def _sojourn(arrival: Arrival, path: PromisedPath, delay_s: float, by_theorem: float | None) -> float | None:
    """The wait with the packet's own transmission in the last domain."""
    largest = arrival.largest_packet_bits
    if math.isinf(largest):
        return by_theorem
    return min(delay_s + largest / path.last_rate_bps, math.inf if by_theorem is None else by_theorem)


def _sure_parts(path: PromisedPath) -> list[Part]:
    parts = [Part(name, "latency", path.latencies_s[index], 0.0, 0.0) for index, name in enumerate(path.names)]
    return [*parts, *_loss_parts(path)]


def _loss_parts(path: PromisedPath) -> list[Part]:
    return [
        Part(name, "loss", 0.0, loss, 0.0) for name, loss in zip(path.names, path.losses, strict=True) if loss > 0.0
    ]


def _allocated_parts(path: PromisedPath, allocation: Allocation) -> list[Part]:
    """The terms of a split bound, the tenant's own queue first."""
    price = math.exp(min(float(allocation.log_price), 700.0))
    queue_risk = math.exp(float(allocation.queue_log_risk))
    parts = [Part(OWN_BURST, "queue", float(allocation.queue_s), queue_risk, price if queue_risk > 0.0 else 0.0)]
    excess = {index: position for position, index in enumerate(path.uncertain)}
    for index, name in enumerate(path.names):
        parts.append(Part(name, "latency", path.latencies_s[index], 0.0, 0.0))
        if index in excess:
            position = excess[index]
            delay = float(allocation.excess_s[position])
            taken = math.exp(float(allocation.excess_log_risk[position]))
            parts.append(Part(name, "excess", delay, taken, min(price, taken * float(path.decay[position]))))
    return [*parts, *_loss_parts(path)]
