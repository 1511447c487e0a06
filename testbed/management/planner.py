"""From intents to decisions: a model, a site and a reservation in every domain, or what stands in the way.

Network and compute are bought together: the cheapest sufficient purchase on every route is found for all tenants at
once (`testbed.management.search`), then tenants are decided one after the other, each by the admission rule, on what
the ones before have left. Nothing is reserved here and nobody is asked; prospectuses come in, decisions go out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from testbed.calculus import DelayBound, EnvelopeService, ExcessTail, RequestClass, RequestPath, TokenBucket
from testbed.management import market
from testbed.management.admission import Claim, Demand, Rule, confirm
from testbed.management.bounds import HOST_RISK
from testbed.management.market import Prospectus
from testbed.management.refusal import Refusal, explain
from testbed.management.requests import SignedStage, metered_arrival, request_arrival, request_path
from testbed.management.routes import Barred, Route, routes
from testbed.management.search import Proposals, Wish, answer_wire_bits, peak_per_s, propose
from testbed.scenario import guardrails
from testbed.scenario.federation import Intent, Market
from testbed.scenario.model import OnOffArrivals, RenewalArrivals, whole_kbit

_CHUNK = 256
"""Tenants whose proposals are computed in one sweep: their arrays stay in the processor's cache."""

_METHODS = {"none": "best", "peak": "deterministic", "deterministic": "deterministic"}


@dataclass(frozen=True)
class Purchase:
    """What a tenant is to reserve in one domain.

    Attributes:
        domain: The domain.
        rate_bps: Rate of its queue.
        meter_rate_bps: Rate of its meter.
        burst_bits: Burst of its meter there.
        queue_bits: Limit of its queue.
        latency_s: What the domain promises, one way.
        price: Per hour, the server included.
        share_ppm: Of the domain's server, 0 where it only forwards.
    """

    domain: str
    rate_bps: int
    meter_rate_bps: int
    burst_bits: int
    queue_bits: int
    latency_s: float
    price: float
    share_ppm: int = 0


@dataclass(frozen=True)
class Share:
    """A line of the bound: where the time goes, and the risk.

    Attributes:
        stage: Own burst, a domain, the server, or a domain on the way back.
        delay_s: Its part of the bound.
        epsilon: Its part of the risk.
    """

    stage: str
    delay_s: float
    epsilon: float


@dataclass(frozen=True)
class Decision:
    """What becomes of one intent.

    Attributes:
        tenant: Whose.
        route: The route chosen, None where refused.
        purchases: What is to be reserved, in path order.
        bound_s: The latency that this promises at the intent's epsilon, None where refused or nothing is promised.
        method: The theorem behind the bound.
        budget: The bound, part by part.
        price: Per hour.
        refusal: Why not, None where admitted.
    """

    tenant: str
    route: Route | None = None
    purchases: tuple[Purchase, ...] = ()
    bound_s: float | None = None
    method: str = ""
    budget: tuple[Share, ...] = ()
    price: float = 0.0
    refusal: Refusal | None = None

    @property
    def admitted(self) -> bool:
        """Whether it may enter."""
        return self.refusal is None


class Planner:
    """Decides intents on what a set of domains has left; remembers what it has given away.

    Args:
        rule: The admission rule.
        segments: Names, in path order.
        prospectuses: What each domain sells and has left.
        slow_down: How many times slower than it was written everything is.
    """

    def __init__(
        self, rule: Rule, segments: Sequence[str], prospectuses: Iterable[Prospectus], *, slow_down: float = 1.0
    ) -> None:
        self.rule = rule
        self._slow_down = slow_down
        known = {prospectus.operator.name: prospectus for prospectus in prospectuses}
        self.routes = routes(segments, known)
        self.free = {name: dict(prospectus.free) for name, prospectus in known.items()}
        emulated = any(prospectus.operator.host_allowance_s > 0.0 for prospectus in known.values())
        self._host_risk = HOST_RISK if emulated else 0.0

    def wish(self, intent: Intent) -> Wish:
        """An intent as it is planned: where domains grant an emulating host time, it gets its share of the risk too."""
        return Wish.of(intent, host_risk=self._host_risk, slow_down=self._slow_down)

    def decide(self, intents: Sequence[Intent], barred: Mapping[str, Barred] = MappingProxyType({})) -> list[Decision]:
        """Decide intents in their order; what is admitted is gone for those behind.

        Args:
            intents: Each of another tenant.
            barred: Tenant to routes that it is not to take.
        """
        decisions = []
        for start in range(0, len(intents), _CHUNK):
            wishes = [self.wish(intent) for intent in intents[start : start + _CHUNK]]
            proposals = propose(self.rule, wishes, self.routes)
            allowed = np.array([[permits(wish.intent, route) for route in self.routes] for wish in wishes])
            for row, wish in enumerate(wishes):
                if wish.intent.tenant in barred:
                    allowed[row] &= ~np.array([barred[wish.intent.tenant].bars(route) for route in self.routes])
            prices = np.where(allowed, proposals.price, np.inf)
            order = np.argsort(prices, axis=1, kind="stable")
            for row, wish in enumerate(wishes):
                affordable = [int(i) for i in order[row] if prices[row, i] <= wish.intent.price]
                decisions.append(self._decide(wish, row, affordable, proposals, barred.get(wish.intent.tenant)))
        return decisions

    def give_back(self, decision: Decision) -> None:
        """Undo what an admission took."""
        self._take(decision, -1)

    def _decide(
        self, wish: Wish, row: int, affordable: Sequence[int], proposals: Proposals, barred: Barred | None
    ) -> Decision:
        for index in affordable:
            found = self._try(wish, self.routes[index], proposals.rate_bps[row, index], proposals.share_ppm[row, index])
            if found is not None:
                self._take(found, 1)
                return found
        left = self.routes if barred is None else [route for route in self.routes if not barred.bars(route)]
        return Decision(wish.intent.tenant, refusal=explain(self.rule, wish, left, self.free))

    def _try(self, wish: Wish, route: Route, rate_bps: float, share_ppm: float) -> Decision | None:
        """The decision for one route by the admission rule; None where the rule refuses."""
        rate, share = int(rate_bps), int(share_ppm)
        path = None if self.rule is Rule.NONE else path_of(wish, route, rate, share)
        demand = demand_of(self.rule, wish, path, rate)
        services = () if path is None else path.services
        method = _METHODS.get(str(self.rule)) or wish_method(wish)
        decision, bound = confirm(self.rule, demand, services, claims_on(route, rate, share, self.free), method=method)
        if not decision.admitted:
            return None
        return Decision(
            tenant=wish.intent.tenant,
            route=route,
            purchases=() if path is None else purchases(self.rule, wish, route, rate, share),
            bound_s=decision.bound_s,
            method="" if bound is None else bound.method,
            budget=() if bound is None else budget_of(bound),
            price=route.price_per_mbps * rate / 1e6 + route.site.price * share / market.WHOLE_PPM,
        )

    def _take(self, decision: Decision, sign: int) -> None:
        for bought in decision.purchases:
            left = self.free[bought.domain]
            left[market.NETWORK] -= sign * bought.rate_bps
            left[market.CLASSES] -= sign
            if bought.share_ppm:
                left[market.COMPUTE] -= sign * bought.share_ppm
                left[market.SEATS] -= sign


def plan(sold: Market) -> list[Decision]:
    """Every decision of a market file, on what its operators have when nobody is there yet.

    Raises:
        ReservationError: A segment without an operator.
    """
    prospectuses = [Prospectus.of(operator) for operator in sold.operators]
    return Planner(Rule(sold.rule), sold.segments, prospectuses, slow_down=sold.slow_down).decide(sold.intents)


def permits(intent: Intent, route: Route) -> bool:
    """Whether a route does what is asked, where it is asked, as well as is asked."""
    inside = intent.domains is None or intent.domains.issuperset(route.domains)
    return inside and route.model.task == intent.task and route.model.accuracy >= intent.accuracy


def claims_on(route: Route, rate_bps: int, share_ppm: int, free: Mapping[str, Mapping[str, int]]) -> list[Claim]:
    """What a purchase would hold of everything on its route."""
    if rate_bps == 0:
        return []
    claims = []
    for name in route.domains:
        claims.append(Claim(f"the rate of {name} (bit/s)", rate_bps, free[name][market.NETWORK]))
        claims.append(Claim(f"the classes of {name}", 1, free[name][market.CLASSES]))
    claims.append(Claim(f"the server of {route.where} (ppm)", share_ppm, free[route.where][market.COMPUTE]))
    claims.append(Claim(f"the seats of {route.where}", 1, free[route.where][market.SEATS]))
    return claims


def path_of(wish: Wish, route: Route, rate_bps: int, share_ppm: int) -> RequestPath:
    """A purchase as the calculus sees it, from what the prospectuses say."""
    services = [
        EnvelopeService(float(rate_bps), latency_s, name=name)
        for name, latency_s in zip(route.domains, route.latencies_s, strict=True)
    ]
    share = share_ppm / market.WHOLE_PPM
    work_per_s = share * route.site.workers * wish.request_bits / route.model.work_s
    stage = SignedStage(work_per_s, route.compute_s, route.site.workers, wish.request_bits)
    return request_path_of(wish, route, services, stage)


def request_path_of(
    wish: Wish,
    route: Route,
    services: Sequence[EnvelopeService],
    stage: SignedStage,
    *,
    excess: ExcessTail | None = None,
    loss: float = 0.0,
) -> RequestPath:
    """Requests out along the services, through the server, and back; see `request_path` for what it exceeds."""
    kinds = RequestClass((wish.request_bits,), (wish.request_bits,), (answer_wire_bits(route),))
    back = [replace(service, name=f"{service.name} back") for service in reversed(services)]
    return request_path(kinds, services, stage, back, excess=excess, loss=loss)


def demand_of(rule: Rule, wish: Wish, path: RequestPath | None, rate_bps: int) -> Demand:
    """What the admission rule is asked: the tenant's requests in the virtual time of a path."""
    intent = wish.intent
    if path is None:
        contract = TokenBucket(float(wish.meter_rate_bps), float(wish.burst_bits))
        return Demand(intent.tenant, None, contract, intent.deadline_s, wish.epsilon)
    contract = metered_arrival(wish.meter_rate_bps, meter_burst_bits(rule, wish, rate_bps), path, [wish.least_bits])
    peak = peak_per_s(intent.arrivals)
    if rule is Rule.PEAK and math.isfinite(peak):
        contract = replace(contract, peak_bps=max(peak * contract.packet_bits, contract.rate_bps))
    return Demand(
        tenant=intent.tenant,
        flow=request_arrival(intent.arrivals, path) if rule is Rule.STOCHASTIC else None,
        contract=contract,
        deadline_s=intent.deadline_s,
        epsilon=wish.epsilon,
        meter_loss=guardrails.OVERFLOW,
    )


def meter_burst_bits(rule: Rule, wish: Wish, rate_bps: int) -> int:
    """Burst of the first meter, in whole kbit.

    A rule that counts on the contract alone gets the contract; where the model is believed, the bucket also holds what
    TCP may have held back, so that no conforming request is dropped for it.
    """
    if rule is not Rule.STOCHASTIC:
        return wish.burst_bits
    return whole_kbit(wish.burst_bits + wish.held_back_s * rate_bps)


def wish_method(wish: Wish) -> str:
    """The sharpest theorem for the tenant's arrivals."""
    match wish.intent.arrivals:
        case OnOffArrivals():
            return "martingale"
        case RenewalArrivals():
            return "kingman"
        case _:
            return "lundberg"


def purchases(rule: Rule, wish: Wish, route: Route, rate_bps: int, share_ppm: int) -> tuple[Purchase, ...]:
    """What is to be reserved in each domain; a later meter lets through what earlier domains may have bunched."""
    found = []
    burst_bits = float(meter_burst_bits(rule, wish, rate_bps))
    for operator, latency_s in zip(route.operators, route.latencies_s, strict=True):
        last = operator is route.operators[-1]
        burst = whole_kbit(burst_bits)
        price = market.network_price(operator, rate_bps)
        found.append(
            Purchase(
                domain=operator.name,
                rate_bps=rate_bps,
                meter_rate_bps=wish.meter_rate_bps,
                burst_bits=burst,
                queue_bits=guardrails.request_queue_bits(
                    burst, rate_bps, wish.crowding, wish.intent.deadline_s, headroom_s=wish.headroom_s
                ),
                latency_s=latency_s,
                price=price + (market.compute_price(route.site, share_ppm / market.WHOLE_PPM) if last else 0.0),
                share_ppm=share_ppm if last else 0,
            )
        )
        burst_bits += wish.meter_rate_bps * latency_s
    return tuple(found)


def budget_of(bound: DelayBound) -> tuple[Share, ...]:
    """The bound by stage: everything a stage contributes added up, in path order."""
    stages: dict[str, tuple[float, float]] = {}
    for part in bound.parts:
        delay_s, epsilon = stages.get(part.domain, (0.0, 0.0))
        stages[part.domain] = (delay_s + part.delay_s, epsilon + part.epsilon)
    return tuple(Share(stage, delay_s, epsilon) for stage, (delay_s, epsilon) in stages.items())
