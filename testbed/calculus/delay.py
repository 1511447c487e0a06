"""Delay bounds for a tenant on a path: the delay for a probability, the probability for a delay, the rate for both.

This is the front door of the package. It tries every theorem that applies to the flow and the path, and keeps the
smallest result together with all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeGuard

import numpy as np

from testbed.calculus import candidates
from testbed.calculus.arrivals.base import Arrival
from testbed.calculus.errors import (
    CalculusError,
    UnstableError,
    require_not_negative,
    require_per,
    require_probability,
)
from testbed.calculus.numeric import FloatArray
from testbed.calculus.random_path import AnyService, RandomPath, convolved_delay, convolved_log_violation
from testbed.calculus.result import Candidate, DelayBound
from testbed.calculus.service.left_over import LeftOver
from testbed.calculus.tails import Per
from testbed.calculus.tandem import PromisedPath, PromisedService, log_violation, spend_risk


def delay_bound(
    arrival: Arrival,
    servers: Sequence[AnyService],
    epsilon: float,
    per: Per = "packet",
    method: str = "best",
    *,
    independent_domains: bool = False,
) -> DelayBound:
    """The smallest delay that theory guarantees but for a probability epsilon.

    Args:
        arrival: What the tenant sends.
        servers: One service for each domain, in path order.
        epsilon: Probability that a packet is late or lost.
        per: Count packets (bits, for a fluid) or time.
        method: A theorem's name, or best.
        independent_domains: Also use the rule for domains whose excesses are independent of each other and of the
            tenant's queue; it is smaller, and wrong where domains share a host.

    Returns:
        The bound with its parts, its assumptions and the rejected candidates.

    Raises:
        UnstableError: The flow's rate reaches the smallest rate on the path.
        CalculusError: Parameters that describe no system, or losses that exceed epsilon.
    """
    require_probability("epsilon", epsilon)
    require_per(per)
    if _all_promised(servers):
        answers, refused = candidates.promised(
            arrival, servers, epsilon, per, method, independent_domains=independent_domains
        )
    else:
        answers, refused = candidates.random(arrival, RandomPath.of(arrival, servers), epsilon, per, method)
    answers.sort(key=lambda answer: answer.delay_s)
    best = answers[0]
    detail = best.detail()
    return DelayBound(
        delay_s=best.delay_s,
        sojourn_s=detail.sojourn_s,
        epsilon=epsilon,
        per=per,
        method=best.method,
        exact=detail.exact,
        rate_bps=detail.rate_bps,
        assumptions=detail.assumptions,
        parts=detail.parts,
        candidates=(*(Candidate(answer.method, answer.delay_s) for answer in answers), *refused),
    )


def delay_curve(
    arrival: Arrival,
    servers: Sequence[AnyService],
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
    require_per(per)
    epsilons = np.asarray(epsilons, dtype=np.float64)
    if not _all_promised(servers):
        path = _convolvable(arrival, servers, method)
        return _elementwise(lambda epsilon: convolved_delay(path, epsilon, per)[0], epsilons)
    promised = PromisedPath.of(servers)
    promised.require_countable(per)
    left = epsilons - promised.loss
    usable = np.where(left > 0.0, left, 0.5)
    found, _ = candidates.queue_bounds(arrival, promised.rate_bps, per, method)
    best = np.minimum.reduce([spend_risk(promised, queue.tail, usable).delay_s for queue in found.values()])
    return np.where(left > 0.0, best + promised.latency_s, np.inf)


def violation_curve(
    arrival: Arrival,
    servers: Sequence[AnyService],
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
    require_per(per)
    delays_s = np.asarray(delays_s, dtype=np.float64)
    if not _all_promised(servers):
        path = _convolvable(arrival, servers, method)
        return _elementwise(lambda delay: math.exp(convolved_log_violation(path, delay, per)), delays_s)
    promised = PromisedPath.of(servers)
    promised.require_countable(per)
    found, _ = candidates.queue_bounds(arrival, promised.rate_bps, per, method)
    logs = [log_violation(promised, queue.tail, delays_s) for queue in found.values()]
    return np.asarray(np.minimum(1.0, np.exp(np.minimum.reduce(logs)) + promised.loss))


def violation_probability(
    arrival: Arrival,
    servers: Sequence[AnyService],
    delay_s: float,
    per: Per = "packet",
    method: str = "best",
) -> float:
    """The smallest bound on the probability that a packet is lost or later than delay_s; arguments as `delay_bound`.

    Raises:
        UnstableError: The flow's rate reaches the smallest rate on the path.
        CalculusError: Parameters that describe no system.
    """
    require_not_negative("delay", delay_s)
    return float(violation_curve(arrival, servers, np.asarray(delay_s), per, method))


def required_rate(
    arrival: Arrival,
    servers: Sequence[AnyService],
    delay_s: float,
    epsilon: float,
    *,
    per: Per = "packet",
    method: str = "best",
) -> float:
    """The smallest rate which, given to every server, keeps the delay bound at or below delay_s.

    Latencies, excesses and cross traffic are taken as they are; the rates of `servers` only start the search.

    Raises:
        CalculusError: No rate is enough, because the latencies and the excesses alone exceed the deadline.
    """

    def meets(rate_bps: float) -> bool:
        try:
            reserved = [with_rate(server, rate_bps) for server in servers]
            return delay_bound(arrival, reserved, epsilon, per, method).delay_s <= delay_s
        except UnstableError:
            return False

    return smallest_rate(meets, arrival.mean_bps, f"delay bound <= {delay_s:g} s")


def smallest_rate(meets: Callable[[float], bool], above_bps: float, requirement: str) -> float:
    """The smallest rate that meets a requirement which more rate never breaks, to nine digits.

    Args:
        meets: Whether a rate in bits/s is enough.
        above_bps: A rate that is too small.
        requirement: What the rate is for, as an inequality, for the error.

    Raises:
        CalculusError: No rate is enough.
    """
    low, high = above_bps, 2.0 * above_bps
    while not meets(high):
        low, high = high, 2.0 * high
        if high > 1e15 * above_bps:
            raise CalculusError(f"{requirement} fails at any rate: what does not depend on the rate exceeds it alone")
    while high - low > 1e-9 * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def with_rate(server: AnyService, rate_bps: float) -> AnyService:
    """The same server with another rate or capacity."""
    if isinstance(server, LeftOver):
        return replace(server, capacity_bps=rate_bps)
    return replace(server, rate_bps=rate_bps)


def _all_promised(servers: Sequence[AnyService]) -> TypeGuard[Sequence[PromisedService]]:
    return not any(isinstance(server, LeftOver) for server in servers)


def _convolvable(arrival: Arrival, servers: Sequence[AnyService], method: str) -> RandomPath:
    if method not in {"best", "convolution"}:
        raise CalculusError(f"method {method!r} gives no curve on a path with left-over servers; expected convolution")
    return RandomPath.of(arrival, servers)


def _elementwise(f: Callable[[float], float], values: FloatArray) -> FloatArray:
    return np.array([f(float(value)) for value in values.ravel()]).reshape(values.shape)
