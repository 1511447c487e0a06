"""Why an intent is refused, and the nearest one that would not be.

Every route is asked what it would take: a lower accuracy, another domain, a longer deadline, a higher price. The
nearest is the one whose changes, each as the logarithm of its ratio, add up to least; what it changes is what binds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from testbed.management import market
from testbed.management.admission import Rule
from testbed.management.routes import Route
from testbed.management.search import Proposals, Wish, propose
from testbed.scenario.federation import Intent

STRETCHES = (1.0, 1.02, 1.05, 1.1, 1.2, 1.35, 1.6, 2.0, 3.0, 5.0, 10.0)
"""Deadlines that are tried, as multiples of the one asked for."""

_REFINEMENTS = 7
_DOMAIN = 0.5
"""What crossing a domain that was not allowed counts for: as much as a deadline 1.65 times as long."""

_STEP = 1e-4
"""New prices and deadlines are rounded up to this relative step, so that asking again with them is enough."""


@dataclass(frozen=True)
class Refusal:
    """Why not.

    Attributes:
        because: One sentence that names the binding constraint.
        binding: Names of what the nearest feasible intent changes: task, accuracy, domains, deadline, price, capacity.
        nearest: An intent that would be accepted now, None where there is none.
    """

    because: str
    binding: tuple[str, ...]
    nearest: Intent | None = None


@dataclass(frozen=True)
class _Way:
    """A route under `stretch` times the deadline asked for, and how far off the intent is that accepts it."""

    route: Route
    intent: Intent
    changed: tuple[str, ...]
    distance: float
    stretch: float


def explain(rule: Rule, wish: Wish, routes: Sequence[Route], free: Mapping[str, Mapping[str, int]]) -> Refusal:
    """Why no route was taken.

    Args:
        rule: The admission rule.
        wish: What was asked.
        routes: All routes.
        free: What each domain has left of each resource.
    """
    intent = wish.intent
    if not routes:
        return Refusal("there is none", ("domains",))
    able = [route for route in routes if route.model.task == intent.task]
    if not able:
        known = ", ".join(sorted({route.model.task for route in routes}))
        return Refusal(f"nobody serves the task {intent.task}; there are {known or 'none'}", ("task",))
    stretches = np.array(STRETCHES)
    proposals = propose(rule, [wish] * stretches.size, able, stretches * intent.deadline_s)
    ways = [
        way
        for row, stretch in enumerate(STRETCHES)
        for column, route in enumerate(able)
        if (way := _way(wish, route, proposals, (row, column), float(stretch), free)) is not None
    ]
    if not ways:
        return _hopeless(rule, able, proposals, free)
    nearest = min(ways, key=lambda way: way.distance)
    # Between two deadlines of the grid another route may give up the same and be nearer than the nearest on it.
    alike = [way for way in ways if way.changed == nearest.changed]
    for way in sorted(alike, key=_promise):
        if _promise(way) < nearest.distance:
            nearest = min(nearest, _refined(rule, wish, way, free), key=lambda way: way.distance)
    return Refusal(_sentence(intent, nearest), nearest.changed, nearest.intent)


def _promise(way: _Way) -> float:
    """The least distance that a way may have once its deadline is refined."""
    shorter = [stretch for stretch in STRETCHES if stretch < way.stretch]
    return way.distance - math.log(way.stretch / shorter[-1]) if shorter else way.distance


def _way(  # noqa: PLR0917 - everything that a way depends on
    wish: Wish,
    route: Route,
    proposals: Proposals,
    at: tuple[int, int],
    stretch: float,
    free: Mapping[str, Mapping[str, int]],
) -> _Way | None:
    """What the intent must give up for one route at one deadline; None where there is no room or no rate."""
    price = float(proposals.price[at])
    if not math.isfinite(price) or shortage(route, proposals.rate_bps[at], proposals.share_ppm[at], free):
        return None
    intent, changed, distance = wish.intent, [], 0.0
    accepted = intent
    if route.model.accuracy < intent.accuracy:
        accepted = replace(accepted, accuracy=route.model.accuracy)
        changed.append("accuracy")
        distance += math.log((1.0 - route.model.accuracy) / max(1.0 - intent.accuracy, 1e-6))
    if intent.domains is not None and not intent.domains.issuperset(route.domains):
        more = set(route.domains) - intent.domains
        accepted = replace(accepted, domains=intent.domains | more)
        changed.append("domains")
        distance += _DOMAIN * len(more)
    if stretch > 1.0:
        accepted = replace(accepted, deadline_s=_up(stretch * intent.deadline_s))
        changed.append("deadline")
        distance += math.log(stretch)
    if price > intent.price:
        accepted = replace(accepted, price=_up(price))
        changed.append("price")
        distance += math.log(price / max(intent.price, 1e-9))
    return _Way(route, accepted, tuple(changed), distance, stretch)


def _refined(rule: Rule, wish: Wish, coarse: _Way, free: Mapping[str, Mapping[str, int]]) -> _Way:
    """The same way with the shortest deadline that still does, between two of those tried."""
    if "deadline" not in coarse.changed:
        return coarse
    best = coarse
    high = coarse.stretch
    low = max(stretch for stretch in STRETCHES if stretch < high)
    for _ in range(_REFINEMENTS):
        middle = math.sqrt(low * high)
        found = propose(rule, [wish], [coarse.route], np.array([middle * wish.intent.deadline_s]))
        way = _way(wish, coarse.route, found, (0, 0), middle, free)
        if way is not None and way.distance <= best.distance:
            best, high = way, middle
        else:
            low = middle
    return best


def shortage(route: Route, rate_bps: float, share_ppm: float, free: Mapping[str, Mapping[str, int]]) -> str:
    """What a route is short of for a purchase, empty if nothing."""
    for name in route.domains:
        if rate_bps > free[name][market.NETWORK]:
            return f"{name} has {free[name][market.NETWORK]:,} bit/s left, {rate_bps:,.0f} are needed"
        if rate_bps and free[name][market.CLASSES] < 1:
            return f"{name} has no class left"
    left = free[route.where]
    if share_ppm > left[market.COMPUTE]:
        has, needs = left[market.COMPUTE] / 1e4, share_ppm / 1e4
        return f"the server of {route.where} has {has:.1f} % left, {needs:.1f} % are needed"
    if share_ppm and left[market.SEATS] < 1:
        return f"the server of {route.where} has no seat left"
    return ""


def _hopeless(
    rule: Rule, able: Sequence[Route], proposals: Proposals, free: Mapping[str, Mapping[str, int]]
) -> Refusal:
    """No change of accuracy, domains, deadline or price helps: either everything is sold, or no rate is enough."""
    for row, column in np.argwhere(proposals.possible).tolist():
        short = shortage(able[column], proposals.rate_bps[row, column], proposals.share_ppm[row, column], free)
        return Refusal(f"everything that would do is sold: {short}", ("capacity",))
    quickest = min(able, key=lambda route: route.latency_s)
    return Refusal(
        f"no rate keeps even {STRETCHES[-1]:g} times its deadline by the rule {rule}: {quickest} alone takes "
        f"{1e3 * quickest.latency_s:.3g} ms",
        ("deadline",),
    )


def _sentence(asked: Intent, nearest: _Way) -> str:
    accepted, said = nearest.intent, []
    if "accuracy" in nearest.changed:
        said.append(f"an accuracy of {asked.accuracy:g}, while {accepted.accuracy:g} is what would fit")
    if "domains" in nearest.changed:
        more = ", ".join(sorted((accepted.domains or frozenset()) - (asked.domains or frozenset())))
        said.append(f"the domains allowed, without {more}")
    if "deadline" in nearest.changed:
        said.append(f"a deadline of {1e3 * asked.deadline_s:.4g} ms, while {1e3 * accepted.deadline_s:.4g} ms would do")
    if "price" in nearest.changed:
        said.append(f"a price of at most {asked.price:g}, while {accepted.price:.4g} would do")
    if not said:
        return f"the bound of {nearest.route} does not confirm what its closed form proposes"
    return f"{' and '.join(said)} ({nearest.route})"


def _up(value: float) -> float:
    """A little more, in few digits."""
    step = 10.0 ** (math.floor(math.log10(value)) - 4)
    return math.ceil(value * (1 + _STEP) / step) * step
