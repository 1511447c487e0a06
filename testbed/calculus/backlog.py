"""Backlog bounds: the bits for a probability, the probability for bits, and the rate for both.

What bounds the wait W0 at the smallest rate R bounds the backlog: the queue holds R W0 bits, and a latency T lets R T
more pile up. On left-over servers the convolution at delay zero does the same for the whole path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from testbed.calculus.arrivals.base import Arrival
from testbed.calculus.candidates import attempt, queue_bounds
from testbed.calculus.delay import smallest_rate, with_rate
from testbed.calculus.errors import CalculusError, UnstableError, require_not_negative, require_per, require_probability
from testbed.calculus.numeric import FloatArray, minimum
from testbed.calculus.random_path import AnyService, RandomPath, log_backlog_prefactor
from testbed.calculus.service.left_over import LeftOver
from testbed.calculus.tails import Per


@dataclass(frozen=True, slots=True)
class BacklogCandidate:
    """One method that was tried: its bound in bits, infinite when it gives none, and why."""

    method: str
    backlog_bits: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class BacklogBound:
    """A backlog that is exceeded with probability at most epsilon.

    Attributes:
        backlog_bits: The bound, on all bits of the tenant inside the path.
        epsilon: Probability of exceeding it.
        per: Whether the probability counts packets (before they join) or time.
        method: The theorem that gave the smallest bound.
        assumptions: What must hold.
        candidates: Every method tried, the best first.
    """

    backlog_bits: float
    epsilon: float
    per: Per
    method: str
    assumptions: tuple[str, ...]
    candidates: tuple[BacklogCandidate, ...]


def backlog_bound(
    arrival: Arrival,
    servers: Sequence[AnyService],
    epsilon: float,
    per: Per = "time",
    method: str = "best",
) -> BacklogBound:
    """The smallest bound on the bits that a tenant has inside a path.

    Args:
        arrival: What the tenant sends.
        servers: One service for each domain, in path order; none with an excess, which bounds delay and not backlog.
        epsilon: Probability of exceeding the bound.
        per: Count time, or packets before they join.
        method: A theorem's name, or best.

    Raises:
        UnstableError: The flow's rate reaches the smallest rate on the path.
        CalculusError: Parameters that describe no system.
    """
    require_probability("epsilon", epsilon)
    require_per(per)
    if any(isinstance(server, LeftOver) for server in servers):
        path = RandomPath.of(arrival, servers)

        def convolution() -> tuple[float, tuple[str, ...]]:
            return _convolved_backlog(path, epsilon, per), ("cross traffic is independent at each server",)

        found, refused = attempt({"convolution": convolution}, method, "a path with left-over servers")
    else:
        rate, stored = _rate_and_stored(servers)
        bounds, refused = queue_bounds(arrival, rate, per, method)
        found = {
            name: (float(queue.tail.delay(epsilon)) * rate + stored, queue.assumptions)
            for name, queue in bounds.items()
        }
    tried = sorted((bits, name) for name, (bits, _) in found.items())
    bits, name = tried[0]
    useless = [BacklogCandidate(candidate.method, math.inf, candidate.note) for candidate in refused]
    listed = (*(BacklogCandidate(other, value) for value, other in tried), *useless)
    return BacklogBound(bits, epsilon, per, name, found[name][1], listed)


def backlog_violation(
    arrival: Arrival, servers: Sequence[AnyService], backlog_bits: float, per: Per = "time", method: str = "best"
) -> float:
    """The smallest bound on the probability that the backlog exceeds backlog_bits; arguments as `backlog_bound`."""
    require_not_negative("backlog", backlog_bits)
    require_per(per)
    if any(isinstance(server, LeftOver) for server in servers):
        path = RandomPath.of(arrival, servers)

        def value(theta: FloatArray) -> FloatArray:
            return log_backlog_prefactor(path, theta, per) - theta * backlog_bits

        theta = minimum(value, 0.0, path.search_limit)
        return math.exp(min(0.0, float(value(theta[None])[0])))
    rate, stored = _rate_and_stored(servers)
    if backlog_bits < stored:
        return 1.0
    found, _ = queue_bounds(arrival, rate, per, method)
    logs = [float(queue.tail.log_probability((backlog_bits - stored) / rate)) for queue in found.values()]
    return math.exp(min(logs))


def required_rate_for_backlog(
    arrival: Arrival, servers: Sequence[AnyService], backlog_bits: float, epsilon: float, per: Per = "time"
) -> float:
    """The smallest rate which, given to every server, keeps the backlog bound at or below backlog_bits.

    Raises:
        CalculusError: No rate is enough.
    """

    def meets(rate_bps: float) -> bool:
        try:
            reserved = [with_rate(server, rate_bps) for server in servers]
            return backlog_bound(arrival, reserved, epsilon, per).backlog_bits <= backlog_bits
        except UnstableError:
            return False

    return smallest_rate(meets, arrival.mean_bps, f"backlog bound <= {backlog_bits:g} bits")


def _rate_and_stored(servers: Sequence[AnyService]) -> tuple[float, float]:
    """The smallest rate, and the bits that the latencies hold at that rate."""
    promised = [server for server in servers if not isinstance(server, LeftOver)]
    if not promised:
        raise CalculusError("a path has 0 servers; expected at least 1")
    uncertain = [server.name for server in promised if server.excess is not None]
    if uncertain:
        raise CalculusError(
            f"domain {uncertain[0]!r} promises an excess tail, which bounds the delay of packets and no backlog"
        )
    rate = min(server.rate_bps for server in promised)
    return rate, rate * math.fsum(server.latency_s for server in promised)


def _convolved_backlog(path: RandomPath, epsilon: float, per: Per) -> float:
    def bits(theta: FloatArray) -> FloatArray:
        return np.asarray((log_backlog_prefactor(path, theta, per) - math.log(epsilon)) / theta)

    theta = minimum(bits, 0.0, path.search_limit)
    return max(0.0, float(bits(theta[None])[0]))
