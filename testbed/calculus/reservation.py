"""The cheapest rates to reserve along a path so that a tenant's deadline holds.

The tenant's own queue and the excesses depend on the smallest rate R alone, and so does nothing else but the latencies
T_d + l_d/R_d. For a given R the risk split is a water-filling, and so are the rates: a domain reserves R, or more where
its latency falls enough for its price. What is left is a search over one number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from testbed.calculus.arrivals.base import Arrival
from testbed.calculus.candidates import queue_bounds, risk_left
from testbed.calculus.delay import delay_bound
from testbed.calculus.errors import CalculusError, UnstableError, require_not_negative, require_positive
from testbed.calculus.numeric import FloatArray
from testbed.calculus.result import DelayBound
from testbed.calculus.service.promised import EnvelopeService, ExcessTail
from testbed.calculus.tandem import PromisedPath, spend_risk

_GRID = 24
_ROUNDS = 6
_BISECTIONS = 50
_HOPELESS = 1e15


@dataclass(frozen=True, slots=True)
class Offer:
    """What a domain sells: rate at a price, with a latency that may fall as the rate grows.

    Attributes:
        price_per_bps: Cost of one bit/s.
        latency_s: The part of the latency that no rate changes.
        latency_bits: The part that does: `latency_bits / rate`, such as the transmission of a packet.
        most_bps: The largest rate it sells.
        excess: Tail of what exceeds the latency, or None.
        loss_probability: Probability of losing a packet.
        name: The domain.
    """

    price_per_bps: float
    latency_s: float
    latency_bits: float = 0.0
    most_bps: float = math.inf
    excess: ExcessTail | None = None
    loss_probability: float = 0.0
    name: str = ""

    def __post_init__(self) -> None:
        require_positive(f"price of domain {self.name!r}", self.price_per_bps)
        require_not_negative(f"latency of domain {self.name!r}", self.latency_s)
        require_not_negative(f"latency bits of domain {self.name!r}", self.latency_bits)

    def service(self, rate_bps: float) -> EnvelopeService:
        """The service bought at a rate."""
        latency = self.latency_s + self.latency_bits / rate_bps
        return EnvelopeService(rate_bps, latency, self.excess, self.loss_probability, self.name)


@dataclass(frozen=True, slots=True)
class Reservation:
    """The cheapest rates found.

    Attributes:
        rates_bps: Rate in each domain, in path order.
        cost: Sum of price times rate.
        cost_per_s: What one second less of deadline would cost, at the margin.
        bound: The delay bound at these rates.
    """

    rates_bps: tuple[float, ...]
    cost: float
    cost_per_s: float
    bound: DelayBound


def cheapest_reservation(arrival: Arrival, offers: Sequence[Offer], deadline_s: float, epsilon: float) -> Reservation:
    """The rates of least total cost whose delay bound meets a deadline.

    Args:
        arrival: What the tenant sends.
        offers: One offer for each domain, in path order.
        deadline_s: The delay to keep.
        epsilon: Probability of exceeding it.

    Raises:
        CalculusError: No rates on offer meet the deadline.
    """
    require_positive("deadline", deadline_s)
    cost, rates = _cheapest(arrival, offers, deadline_s, epsilon)
    less = deadline_s * (1.0 - 1e-4)
    try:
        margin = (_cheapest(arrival, offers, less, epsilon)[0] - cost) / (deadline_s - less)
    except CalculusError:
        margin = math.inf
    services = [offer.service(float(rate)) for offer, rate in zip(offers, rates, strict=True)]
    bound = delay_bound(arrival, services, epsilon)
    return Reservation(tuple(rates.tolist()), cost, max(margin, 0.0), bound)


class _Market:
    """The offers, the deadline, and the cheapest rates as a function of the smallest one."""

    def __init__(self, arrival: Arrival, offers: Sequence[Offer], deadline_s: float, epsilon: float) -> None:
        self._arrival, self._offers, self._epsilon = arrival, offers, epsilon
        self._prices = np.array([offer.price_per_bps for offer in offers])
        self._bits = np.array([offer.latency_bits for offer in offers])
        self._most = np.array([offer.most_bps for offer in offers])
        self._spare_s = deadline_s - math.fsum(offer.latency_s for offer in offers)

    @property
    def most_bps(self) -> float:
        """The largest rate that every domain sells."""
        return float(self._most.min())

    def rates(self, smallest_bps: float) -> FloatArray | None:
        """The cheapest rates of which the smallest is as given, or None when that is not enough."""
        try:
            path = PromisedPath.of([offer.service(smallest_bps) for offer in self._offers])
            left = risk_left(path, self._epsilon)
            found, _ = queue_bounds(self._arrival, smallest_bps, "packet", "best")
        except UnstableError:
            return None
        own = min(float(spend_risk(path, queue.tail, left).delay_s) for queue in found.values())
        return _fill(self._prices, self._bits, self._most, smallest_bps, self._spare_s - own)

    def cost(self, smallest_bps: float) -> float:
        """Their cost; infinite when they are not enough."""
        rates = self.rates(smallest_bps)
        return math.inf if rates is None else float(self._prices @ rates)


def _cheapest(arrival: Arrival, offers: Sequence[Offer], deadline_s: float, epsilon: float) -> tuple[float, FloatArray]:
    market = _Market(arrival, offers, deadline_s, epsilon)
    low = arrival.mean_bps
    high = min(2.0 * low, market.most_bps)
    while math.isinf(market.cost(high)) and high < min(market.most_bps, _HOPELESS * low):
        high = min(2.0 * high, market.most_bps)
    # Below some rate nothing is enough; find it, then look between it and rates far above.
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if math.isfinite(market.cost(middle)) else (middle, high)
    best, left, right = high, high, min(market.most_bps, 64.0 * high)
    for _ in range(_ROUNDS):
        grid = np.geomspace(left, right, _GRID).clip(left, right)
        costs = [market.cost(float(rate)) for rate in grid]
        index = int(np.argmin(costs))
        best = float(grid[index]) if costs[index] < market.cost(best) else best
        left, right = float(grid[max(index - 1, 0)]), float(grid[min(index + 1, _GRID - 1)])
    rates = market.rates(best)
    if rates is None:
        raise CalculusError(
            f"delay bound <= {deadline_s:g} s fails at every rate on offer; "
            "ask for a later deadline or a larger epsilon"
        )
    return market.cost(best), rates


def _fill(prices: FloatArray, bits: FloatArray, most: FloatArray, least: float, slack_s: float) -> FloatArray | None:
    """Rates of least cost with sum bits/rate <= slack: each `sqrt(multiplier bits/price)`, within its limits."""
    if slack_s <= 0.0 or (bits / most).sum() > slack_s:
        return None

    def rates(multiplier: float) -> FloatArray:
        return np.clip(np.sqrt(multiplier * bits / prices), least, most)

    if (bits / least).sum() <= slack_s:
        return np.full_like(prices, least)
    low, high = 0.0, 1.0
    while (bits / rates(high)).sum() > slack_s:
        low, high = high, 4.0 * high
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if (bits / rates(middle)).sum() <= slack_s else (middle, high)
        if high - low <= 1e-14 * high:
            break
    return rates(high)
