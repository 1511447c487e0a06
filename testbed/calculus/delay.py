"""Delay bounds for a tenant on a path: the delay for a probability, the probability for a delay, the rate for both.

This is the front door of the package. It tries every theorem that applies to the flow, combines each with the promises
of the path, and keeps the smallest result together with all others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from testbed.calculus.arrivals.base import Arrival, QueueMethod
from testbed.calculus.errors import (
    CalculusError,
    NotApplicableError,
    UnstableError,
    require_not_negative,
    require_probability,
)
from testbed.calculus.numeric import FloatArray
from testbed.calculus.result import Candidate, DelayBound, Part
from testbed.calculus.tails import Per, QueueBound
from testbed.calculus.tandem import Allocation, PromisedPath, PromisedService, log_violation, spend_risk

UNION = "nothing about dependence between domains (union bound over one packet's terms)"
FIFO = "each domain keeps the tenant's packets in order"
PROMISE = "each domain keeps its envelope for any conforming arrivals"


def _usable(arrival: Arrival, rate_bps: float, per: Per, method: str) -> tuple[dict[str, QueueBound], list[Candidate]]:
    """Every theorem asked for that applies, and why the others do not.

    Raises:
        CalculusError: No theorem applies; the message says why for each.
    """
    methods: Mapping[str, QueueMethod] = arrival.queue_methods()
    if method != "best":
        if method not in methods:
            raise CalculusError(
                f"method {method!r} does not exist for {type(arrival).__name__}; "
                f"expected best or one of {', '.join(methods)}"
            )
        methods = {method: methods[method]}
    found: dict[str, QueueBound] = {}
    refused: list[Candidate] = []
    errors: list[CalculusError] = []
    for name, bound in methods.items():
        try:
            found[name] = bound(rate_bps, per)
        except CalculusError as error:
            errors.append(error)
            refused.append(Candidate(name, math.inf, str(error)))
    if not found:
        kind = UnstableError if any(isinstance(error, UnstableError) for error in errors) else NotApplicableError
        raise kind(dict.fromkeys(str(error) for error in errors))
    return found, refused


def _risk_left(path: PromisedPath, epsilon: float) -> float:
    require_probability("epsilon", epsilon)
    if not path.loss < epsilon:
        raise CalculusError(
            f"sum of loss probabilities < epsilon fails: {path.loss:g} against {epsilon:g}; "
            "no delay can make up for packets that are lost"
        )
    return epsilon - path.loss


def delay_bound(
    arrival: Arrival,
    servers: Sequence[PromisedService],
    epsilon: float,
    per: Per = "packet",
    method: str = "best",
) -> DelayBound:
    """The smallest delay that theory guarantees but for a probability epsilon.

    Args:
        arrival: What the tenant sends.
        servers: One service for each domain, in path order.
        epsilon: Probability that a packet is late or lost.
        per: Count packets (bits, for a fluid) or time.
        method: A theorem's name, or best.

    Returns:
        The bound with its parts, its assumptions and the rejected candidates.

    Raises:
        UnstableError: The flow's rate reaches the smallest reserved rate.
        CalculusError: Parameters that describe no system, or losses that exceed epsilon.
    """
    path = PromisedPath.of(servers)
    left = _risk_left(path, epsilon)
    found, refused = _usable(arrival, path.rate_bps, per, method)
    spent = {name: spend_risk(path, queue.tail, left) for name, queue in found.items()}
    tried = sorted(
        (Candidate(name, float(allocation.delay_s) + path.latency_s) for name, allocation in spent.items()),
        key=lambda candidate: candidate.delay_s,
    )
    best = tried[0]
    queue = found[best.method]
    several = len(path.names) > 1 or bool(path.uncertain)
    return DelayBound(
        delay_s=best.delay_s,
        sojourn_s=_sojourn(arrival, path, queue, left, best.delay_s),
        epsilon=epsilon,
        per=per,
        method=best.method,
        exact=queue.exact and not path.uncertain and len(path.names) == 1,
        rate_bps=path.rate_bps,
        assumptions=(*queue.assumptions, *((FIFO, PROMISE, UNION) if several else ())),
        parts=tuple(_parts(path, spent[best.method])),
        candidates=(*tried, *refused),
    )


def _sojourn(arrival: Arrival, path: PromisedPath, queue: QueueBound, epsilon: float, delay_s: float) -> float | None:
    """The wait with the packet's own transmission in the last domain."""
    largest = arrival.largest_packet_bits
    if math.isfinite(largest):
        return delay_s + largest / path.last_rate_bps
    if queue.sojourn is None:
        return None
    return float(spend_risk(path, queue.sojourn, epsilon).delay_s) + path.latency_s


def _parts(path: PromisedPath, allocation: Allocation) -> list[Part]:
    """The terms of a bound, the tenant's own queue first."""
    price = math.exp(float(allocation.log_price))

    def risk(log_risk: FloatArray | float) -> float:
        return math.exp(float(log_risk))

    queue_risk = risk(allocation.queue_log_risk)
    parts = [Part("own burst", "queue", float(allocation.queue_s), queue_risk, price if queue_risk > 0.0 else 0.0)]
    excess = {index: position for position, index in enumerate(path.uncertain)}
    for index, name in enumerate(path.names):
        parts.append(Part(name, "latency", path.latencies_s[index], 0.0, 0.0))
        if index in excess:
            position = excess[index]
            delay = float(allocation.excess_s[position])
            taken = risk(allocation.excess_log_risk[position])
            parts.append(Part(name, "excess", delay, taken, min(price, taken * float(path.decay[position]))))
        if path.losses[index] > 0.0:
            parts.append(Part(name, "loss", 0.0, path.losses[index], 0.0))
    return parts


def delay_curve(
    arrival: Arrival,
    servers: Sequence[PromisedService],
    epsilons: FloatArray,
    per: Per = "packet",
    method: str = "best",
) -> FloatArray:
    """The bound for many probabilities at once: the complementary distribution function, read sideways.

    Args:
        arrival: What the tenant sends.
        servers: One service for each domain, in path order.
        epsilons: Probabilities, any shape.
        per: Count packets or time.
        method: A theorem's name, or best.

    Returns:
        Delays in seconds, shape of epsilons; infinite where the losses alone exceed epsilon.
    """
    path = PromisedPath.of(servers)
    left = np.asarray(epsilons, dtype=np.float64) - path.loss
    usable = np.where(left > 0.0, left, 0.5)
    found, _ = _usable(arrival, path.rate_bps, per, method)
    best = np.minimum.reduce([spend_risk(path, queue.tail, usable).delay_s for queue in found.values()])
    return np.where(left > 0.0, best + path.latency_s, np.inf)


def violation_curve(
    arrival: Arrival,
    servers: Sequence[PromisedService],
    delays_s: FloatArray,
    per: Per = "packet",
    method: str = "best",
) -> FloatArray:
    """Bounds on P(delay > d) for many delays at once, losses included; shape of delays_s, at most 1.

    Args:
        arrival: What the tenant sends.
        servers: One service for each domain, in path order.
        delays_s: Delays, any shape.
        per: Count packets or time.
        method: A theorem's name, or best.
    """
    path = PromisedPath.of(servers)
    found, _ = _usable(arrival, path.rate_bps, per, method)
    logs = [log_violation(path, queue.tail, delays_s) for queue in found.values()]
    return np.asarray(np.minimum(1.0, np.exp(np.minimum.reduce(logs)) + path.loss))


def violation_probability(
    arrival: Arrival,
    servers: Sequence[PromisedService],
    delay_s: float,
    per: Per = "packet",
    method: str = "best",
) -> float:
    """The smallest bound on the probability that a packet is lost or later than delay_s; arguments as `delay_bound`.

    Raises:
        UnstableError: The flow's rate reaches the smallest reserved rate.
        CalculusError: Parameters that describe no system.
    """
    require_not_negative("delay", delay_s)
    return float(violation_curve(arrival, servers, np.asarray(delay_s), per, method))


def required_rate(
    arrival: Arrival,
    servers: Sequence[PromisedService],
    delay_s: float,
    epsilon: float,
    *,
    per: Per = "packet",
    method: str = "best",
) -> float:
    """The smallest rate which, reserved in every domain, keeps the delay bound at or below delay_s.

    The latencies and excesses are taken as they are; the rates of `servers` only start the search.

    Raises:
        CalculusError: No rate is enough, because the latencies and the excesses alone exceed the deadline.
    """

    def enough(rate_bps: float) -> bool:
        try:
            reserved = [replace(server, rate_bps=rate_bps) for server in servers]
            return delay_bound(arrival, reserved, epsilon, per, method).delay_s <= delay_s
        except UnstableError:
            return False

    low = arrival.mean_bps
    high = max(low * 1.001, min(server.rate_bps for server in servers))
    for _ in range(60):
        if enough(high):
            break
        low, high = high, 2.0 * high
    else:
        raise CalculusError(
            f"delay bound <= deadline fails at any rate: the latencies and excesses alone exceed {delay_s:g} s"
        )
    while high - low > 1e-9 * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
