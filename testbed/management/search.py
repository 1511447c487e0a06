"""How much of each route every tenant needs, for a thousand tenants and every route in one sweep of arrays.

A request keeps its busiest stage busy for its virtual size v seconds, and one queue of virtual sizes bounds the wait in
all stages (docs/calculus.md, "Compute stage"). A larger v is a smaller rate and a smaller share, so what is looked for
is the largest v that still meets the deadline; rates above `S/v` are tried too, since they shorten the request's own
transmission. For gaps of Gamma or fixed length and for on-off arrivals the decay of the queue is a closed form of v.

Nothing here is relied upon: what it proposes is confirmed by the admission rule (`testbed.management.admission`),
theorem by theorem, before anything is reserved, and a proposal that were too small would be refused there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from testbed.management.admission import Rule
from testbed.management.routes import Route
from testbed.scenario import guardrails
from testbed.scenario.federation import Intent, RequestArrivals
from testbed.scenario.model import OnOffArrivals, RenewalArrivals
from testbed.traffic import request_demand

FloatArray = npt.NDArray[np.float64]

CONTRACT_FACTOR = 1.25
"""Rate of a tenant's contract over its mean."""

STRETCHES = np.array([1.0, 1.3, 1.7, 2.3, 3.2, 4.5, 6.5, 10.0])
"""Network rates that are tried, as multiples of the one that keeps the network as busy as the server."""

BELOW_LIMIT = 0.999
_BISECTIONS = 40
_KBIT = 1000
_PPM = 1_000_000
_ROUNDING = 1e-6
"""Relative slack for what the closed forms and the calculus round differently."""


@dataclass(frozen=True)
class Wish:
    """An intent in the numbers that planning needs.

    Attributes:
        intent: The intent.
        request_bits: What a request costs on the wire towards the server.
        least_bits: What it costs there at the very least.
        per_s: Requests a second, on average.
        meter_rate_bps: Rate of the contract.
        burst_bits: Burst of the contract, without what TCP holds back.
        crowding: How many packets its requests are for each full one that would carry their bits.
        epsilon: Share of its requests that domains may make late; the rest of the intent's is the emulating host's.
        slow_down: How many times slower the intent is than it was written; what its buckets and queues hold stays.
    """

    intent: Intent
    request_bits: float
    least_bits: float
    per_s: float
    meter_rate_bps: int
    burst_bits: int
    crowding: float
    epsilon: float
    slow_down: float = 1.0

    @classmethod
    def of(cls, intent: Intent, *, host_risk: float = 0.0, slow_down: float = 1.0) -> Wish:
        """What an intent puts on the wire, and the contract that polices it.

        Args:
            intent: The intent.
            host_risk: Share of its epsilon kept for what a host that emulates the domains makes late.
            slow_down: How many times slower the intent is than it was written.
        """
        sizes = np.array([intent.arrivals.size_bits], dtype=np.int64)
        demand = request_demand.Demand(sizes, np.ones(1), request_demand.requests_per_s(intent.arrivals))
        meter = math.ceil(CONTRACT_FACTOR * demand.mean_bps / _KBIT) * _KBIT
        burst = guardrails.request_burst_bits(intent.arrivals, demand, meter, 0)
        least = float(request_demand.least_wire_bits(sizes)[0])
        epsilon = (1.0 - host_risk) * intent.epsilon
        wire_bits = float(demand.wire_bits[0])
        return cls(intent, wire_bits, least, demand.per_s, meter, burst, demand.crowding, epsilon, slow_down)

    @property
    def held_back_s(self) -> float:
        """For how long of its rate TCP may hold back what then leaves at once.

        Slowed down, acknowledgements take as many times as long, and as many bits as ever wait for them.
        """
        return self.slow_down * guardrails.HELD_BACK_S

    @property
    def headroom_s(self) -> float:
        """For how long of its rate its queues have room beyond its bucket."""
        return self.slow_down * guardrails.QUEUE_HEADROOM_S

    @property
    def peak_per_s(self) -> float:
        """Requests a second while they come fastest; infinite where nothing limits them."""
        return peak_per_s(self.intent.arrivals)


def peak_per_s(arrivals: RequestArrivals) -> float:
    """Requests a second while they come fastest; infinite where nothing limits them."""
    match arrivals:
        case OnOffArrivals(peak_bps=peak, size_bits=bits):
            return peak / bits
        case RenewalArrivals(rate_per_s=rate, gap="deterministic"):
            return rate
        case _:
            return math.inf


@dataclass(frozen=True)
class Proposals:
    """The cheapest sufficient reservation of each tenant on each route; all arrays are (tenants, routes).

    Attributes:
        rate_bps: In every domain of the route, whole kbit/s; infinite where no rate is enough.
        share_ppm: Of the route's server.
        price: Per hour.
    """

    rate_bps: FloatArray
    share_ppm: FloatArray
    price: FloatArray

    @property
    def possible(self) -> npt.NDArray[np.bool_]:
        """Where some reservation meets the deadline, whatever it costs and whoever else is there."""
        return np.isfinite(self.price)


def propose(
    rule: Rule, wishes: Sequence[Wish], routes: Sequence[Route], deadlines_s: FloatArray | None = None
) -> Proposals:
    """The cheapest sufficient reservation of each tenant on each route.

    Args:
        rule: The admission rule.
        wishes: The tenants.
        routes: The routes.
        deadlines_s: Deadlines to use in place of the tenants' own, shape (tenants,).
    """
    ways = _Ways.of(routes)
    shape = (len(wishes), len(routes))
    if rule is Rule.NONE:
        return Proposals(np.zeros(shape), np.zeros(shape), np.zeros(shape))
    bits = np.array([wish.request_bits for wish in wishes])[:, None]
    least = np.array([wish.least_bits for wish in wishes])[:, None]
    largest = np.maximum(bits, ways.answer_bits)
    own = (bits + ways.workers * ways.answer_bits) / largest
    deadlines = np.array([w.intent.deadline_s for w in wishes]) if deadlines_s is None else deadlines_s
    spare_s = (deadlines[:, None] - ways.latency_s) * (1 - _ROUNDING)
    meters = np.array([float(wish.meter_rate_bps) for wish in wishes])[:, None]
    contract_v = BELOW_LIMIT * least / meters

    def sizes(stretch: float) -> FloatArray:
        coefficient = own / stretch
        found = np.empty(shape)
        for members, family in _families(rule, wishes):
            found[members] = family(coefficient[members], np.maximum(spare_s[members], 0.0))
        return np.where(spare_s > 0.0, np.minimum(found, contract_v), 0.0)

    best = Proposals(*(np.full(shape, np.inf) for _ in range(3)))
    for stretch in STRETCHES:
        with np.errstate(divide="ignore", invalid="ignore"):
            v = sizes(float(stretch))
            rate = np.ceil(stretch * largest / v / _KBIT) * _KBIT
            # As busy as the network, a server must not be busier with a request that is as small as can be: beside a
            # busier one a tail of the network is worth nothing.
            counted = least if stretch == 1.0 else stretch * largest
            share = np.ceil(_PPM * ways.work_s * rate / (ways.workers * counted))
        price = ways.price_per_mbps * rate / 1e6 + ways.site_price * share / _PPM
        price = np.where((v > 0.0) & (share <= _PPM), price, np.inf)
        better = price < best.price
        best = Proposals(
            np.where(better, rate, best.rate_bps),
            np.where(better, share, best.share_ppm),
            np.where(better, price, best.price),
        )
    return best


@dataclass(frozen=True)
class _Ways:
    """Routes as arrays, (routes,)."""

    latency_s: FloatArray
    price_per_mbps: FloatArray
    site_price: FloatArray
    workers: FloatArray
    work_s: FloatArray
    answer_bits: FloatArray

    @classmethod
    def of(cls, routes: Sequence[Route]) -> _Ways:
        def column(values: Sequence[float]) -> FloatArray:
            return np.array(values, dtype=np.float64)

        return cls(
            column([route.latency_s for route in routes]),
            column([route.price_per_mbps for route in routes]),
            column([route.site.price for route in routes]),
            column([route.site.workers for route in routes]),
            column([route.model.work_s for route in routes]),
            column([answer_wire_bits(route) for route in routes]),
        )


def answer_wire_bits(route: Route) -> float:
    """What the largest answer costs on the way back."""
    return float(request_demand.wire_bits(np.array([route.model.answer_bits]))[0])


class _Family(ABC):
    """Tenants whose arrivals have one closed form: coefficient a and spare time s give the largest v."""

    def __init__(self, wishes: Sequence[Wish]) -> None:
        self._log_inverse = np.array([-math.log(w.epsilon - guardrails.OVERFLOW) for w in wishes])[:, None]

    @abstractmethod
    def __call__(self, a: FloatArray, spare_s: FloatArray) -> FloatArray:
        """The largest v, one row a tenant."""


class _GammaGaps(_Family):
    """Kingman's bound: v = (k/theta) ln(1 + theta m/k) has the decay theta, and the wait is ln(1/eps)/theta."""

    def __init__(self, wishes: Sequence[Wish]) -> None:
        super().__init__(wishes)
        arrivals = [wish.intent.arrivals for wish in wishes]
        self._mean_s = np.array([1.0 / wish.per_s for wish in wishes])[:, None]
        self._shape = np.array([a.cv**-2 if isinstance(a, RenewalArrivals) else 1.0 for a in arrivals])[:, None]

    def __call__(self, a: FloatArray, spare_s: FloatArray) -> FloatArray:
        mean_s, shape, log_inverse = self._mean_s, self._shape, self._log_inverse

        def size(theta: FloatArray) -> FloatArray:
            return np.asarray(shape / theta * np.log1p(theta * mean_s / shape))

        # The wait alone needs theta >= ln(1/eps)/spare; v is below m, so twice that and what a v takes is enough.
        low = log_inverse / np.maximum(spare_s, 1e-12)
        high = low * 1e6
        for _ in range(_BISECTIONS):
            middle = np.sqrt(low * high)
            enough = log_inverse / middle + a * size(middle) <= spare_s
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        return np.where(log_inverse / high + a * size(high) <= spare_s, size(high), 0.0)


class _FixedGaps(_Family):
    """No request waits for another while v is at most the gap."""

    def __init__(self, wishes: Sequence[Wish]) -> None:
        super().__init__(wishes)
        self._gap_s = np.array([1.0 / wish.per_s for wish in wishes])[:, None]

    def __call__(self, a: FloatArray, spare_s: FloatArray) -> FloatArray:
        return np.asarray(np.minimum(BELOW_LIMIT * self._gap_s, spare_s / a))


class _OnOff(_Family):
    """The martingale bound of one on-off flow, whose decay and prefactor are closed forms of v."""

    def __init__(self, wishes: Sequence[Wish]) -> None:
        super().__init__(wishes)
        flows = [w.intent.arrivals for w in wishes if isinstance(w.intent.arrivals, OnOffArrivals)]
        self._peak = np.array([peak_per_s(flow) for flow in flows])[:, None]
        self._on_s = np.array([flow.mean_on_s for flow in flows])[:, None]
        self._off_s = np.array([flow.mean_off_s for flow in flows])[:, None]

    def __call__(self, a: FloatArray, spare_s: FloatArray) -> FloatArray:
        on_share = self._on_s / (self._on_s + self._off_s)
        low = np.minimum(1.0 / self._peak, spare_s / a)
        high = np.broadcast_to(BELOW_LIMIT / (self._peak * on_share), low.shape).copy()
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            enough = self._wait_s(middle, on_share) + a * middle <= spare_s
            low, high = np.where(enough, middle, low), np.where(enough, high, middle)
        return low * (1 - 1e-12)

    def _wait_s(self, v: FloatArray, on_share: FloatArray) -> FloatArray:
        load = self._peak * v
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            theta = 1.0 / (self._on_s * (load - 1.0)) - 1.0 / self._off_s
            prefactor = on_share + (1.0 - on_share) / (1.0 + self._off_s * theta)
            wait_s = (np.log(prefactor / (load * on_share)) + self._log_inverse) / theta
        return np.where(load <= 1.0, 0.0, np.where(theta > 0.0, np.maximum(wait_s, 0.0), np.inf))


class _Contracts(_Family):
    """Everything the contract allows: a burst of B requests, as small on the wire as can be, waits B v."""

    def __init__(self, wishes: Sequence[Wish]) -> None:
        super().__init__(wishes)
        self._requests = np.array([wish.burst_bits / wish.least_bits for wish in wishes])[:, None]

    def __call__(self, a: FloatArray, spare_s: FloatArray) -> FloatArray:
        return np.asarray(spare_s / (self._requests + a))


class _Peaks(_Family):
    """As fast as requests ever come, so that none waits for another beyond the one before it."""

    def __init__(self, wishes: Sequence[Wish]) -> None:
        super().__init__(wishes)
        self._size_s = np.array([BELOW_LIMIT / wish.peak_per_s for wish in wishes])[:, None]

    def __call__(self, a: FloatArray, spare_s: FloatArray) -> FloatArray:
        return np.where((1.0 + a) * self._size_s <= spare_s, self._size_s, 0.0)


def _families(rule: Rule, wishes: Sequence[Wish]) -> list[tuple[npt.NDArray[np.int64], _Family]]:
    """Tenants by closed form: their positions, and the form."""
    by_kind: dict[type[_Family], list[int]] = {}
    for index, wish in enumerate(wishes):
        by_kind.setdefault(_kind(rule, wish.intent.arrivals), []).append(index)
    return [(np.array(members), kind([wishes[i] for i in members])) for kind, members in by_kind.items()]


def _kind(rule: Rule, arrivals: RequestArrivals) -> type[_Family]:
    if rule is Rule.PEAK:
        return _Peaks
    if rule is Rule.DETERMINISTIC:
        return _Contracts
    match arrivals:
        case OnOffArrivals():
            return _OnOff
        case RenewalArrivals(gap="deterministic"):
            return _FixedGaps
        case _:
            return _GammaGaps
