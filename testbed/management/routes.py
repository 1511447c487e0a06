"""The ways there are to serve a task: one operator for each segment up to a site, and a model at that site.

A route is what can be chosen; how much of it a tenant needs is `testbed.management.search`, and which one it gets is
`testbed.management.planner`. Routes are made from prospectuses and know nothing of tenants.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from testbed.errors import ReservationError
from testbed.management.market import Prospectus, compute_latency_s, network_latency_s
from testbed.scenario.federation import Operator, ServedModel, Site


@dataclass(frozen=True)
class Route:
    """Operators in the order in which a request crosses them, the last one with the site.

    Attributes:
        operators: One for each segment up to the site's.
        site: The server at the end.
        model: What answers there.
    """

    operators: tuple[Operator, ...]
    site: Site
    model: ServedModel

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the operators."""
        return tuple(operator.name for operator in self.operators)

    @property
    def where(self) -> str:
        """The domain that serves."""
        return self.operators[-1].name

    @cached_property
    def latencies_s(self) -> tuple[float, ...]:
        """Promised latency of each domain, one way."""
        return tuple(network_latency_s(operator) for operator in self.operators)

    @cached_property
    def compute_s(self) -> float:
        """Promised latency of the server."""
        return compute_latency_s(self.site, self.model)

    @property
    def latency_s(self) -> float:
        """All that no rate changes: both ways and the server."""
        return 2 * sum(self.latencies_s) + self.compute_s

    @property
    def price_per_mbps(self) -> float:
        """Of a Mbit/s in every domain."""
        return sum(operator.price_per_mbps for operator in self.operators)

    def __str__(self) -> str:
        return f"{self.model.name} at {self.where} by way of {' > '.join(self.domains)}"


@dataclass(frozen=True)
class Barred:
    """Routes that are not to be taken.

    Attributes:
        domains: No route that crosses one of these.
        ways: None of these routes, as text.
    """

    domains: frozenset[str] = frozenset()
    ways: frozenset[str] = frozenset()

    def bars(self, route: Route) -> bool:
        """Whether a route is one of them."""
        return not self.domains.isdisjoint(route.domains) or (bool(self.ways) and str(route) in self.ways)

    def __or__(self, other: Barred) -> Barred:
        """What either bars."""
        return Barred(self.domains | other.domains, self.ways | other.ways)


def routes(segments: Sequence[str], prospectuses: Mapping[str, Prospectus]) -> tuple[Route, ...]:
    """Every combination of one operator a segment, with every model of the last one's site.

    Args:
        segments: Names, in the order in which requests cross them.
        prospectuses: By domain.

    Raises:
        ReservationError: A segment that nobody sells; nothing behind it can be reached.
    """
    offered = [[p.operator for p in prospectuses.values() if p.operator.segment == segment] for segment in segments]
    missing = [segment for segment, operators in zip(segments, offered, strict=True) if not operators]
    if missing:
        raise ReservationError(f"segments {', '.join(missing)}: found no operator, expected at least one of each")
    return tuple(
        Route(way, way[-1].site, model)
        for length in range(1, len(segments) + 1)
        for way in itertools.product(*offered[:length])
        if way[-1].site is not None
        for model in way[-1].site.models
    )
