"""Whether a tenant may enter with what is reserved for it: the one rule of the management plane and experiments.

A rule says whether a rate keeps a demand's promise, and admits while the rates of a link's tenants fit. What a tenant's
promise does depend on is how much the others of a port or a server can be in its way: `Crowd` computes that
again for everybody at each admission. Pure: no clock, no ledger, no network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from testbed.calculus import (
    Arrival,
    CalculusError,
    DelayBound,
    Metered,
    TokenBucket,
    delay_bound,
)
from testbed.calculus.tandem import PromisedService
from testbed.errors import ReservationError

_ROUNDING = 1 + 1e-12
"""A sum of thousands is off by less; a house that is full to the last place would be called overfull without it."""


class Rule(StrEnum):
    """What is reserved for a tenant.

    NONE: nothing, and everybody enters. PEAK: its peak rate, so that it never waits for itself. DETERMINISTIC: the
    smallest rate at which everything its contract allows meets the deadline. STOCHASTIC: the smallest rate at which all
    but epsilon of what it declares does.
    """

    NONE = "none"
    PEAK = "peak"
    DETERMINISTIC = "deterministic"
    STOCHASTIC = "stochastic"


@dataclass(frozen=True)
class Demand:
    """What a tenant wants promised.

    Attributes:
        tenant: Name, for messages.
        flow: Stochastic model of what it sends, None where only its contract is known.
        contract: What its meter enforces, with its peak rate.
        deadline_s: Promised latency.
        epsilon: Share of packets that may miss it, those that its own meter drops included.
        meter_loss: Largest share of its packets that its meter drops while it keeps to its model.
    """

    tenant: str
    flow: Arrival | None
    contract: TokenBucket
    deadline_s: float
    epsilon: float
    meter_loss: float = 0.0


@dataclass(frozen=True)
class Decision:
    """The answer to a demand.

    Attributes:
        admitted: Whether it may enter.
        rate_bps: What is to be reserved for it in every domain; 0 for nothing.
        bound_s: Latency that this promises at the demand's epsilon; None where nothing is promised.
        reason: Why, in one sentence.
    """

    admitted: bool
    rate_bps: float
    bound_s: float | None
    reason: str


def fits(rate_bps: float, free_bps: float) -> bool:
    """Whether a reservation fits into what a link has left."""
    return rate_bps <= free_bps


@dataclass(frozen=True)
class Claim:
    """What a tenant would take of one resource.

    Attributes:
        resource: Name, for messages.
        wanted: How much.
        free: How much nobody holds.
    """

    resource: str
    wanted: float
    free: float


def confirm(
    rule: Rule, demand: Demand, path: Sequence[PromisedService], claims: Iterable[Claim] = (), *, method: str = "best"
) -> tuple[Decision, DelayBound | None]:
    """Judge a reservation that somebody proposes: the only place where anybody is admitted.

    Args:
        rule: The rule.
        demand: What is wanted.
        path: What each domain would promise, at the rates proposed.
        claims: What would be held of each resource.
        method: The theorem to use, or best.

    Returns:
        The decision, and the bound with its parts; None where nothing is promised or no theorem applies.
    """
    claims = tuple(claims)
    rate_bps = min((service.rate_bps for service in path), default=0.0)
    short = [claim for claim in claims if not fits(claim.wanted, claim.free)]
    if short:
        needs = "; ".join(f"{c.wanted:,.0f} of {c.resource} with {c.free:,.0f} free" for c in short)
        return Decision(False, 0.0, None, f"tenant {demand.tenant}: needs {needs}"), None
    if rule is Rule.NONE:
        return Decision(True, 0.0, None, f"tenant {demand.tenant}: nothing is reserved by the rule {rule}"), None
    if rule is Rule.PEAK and demand.contract.peak_rate_bps > rate_bps * _ROUNDING:
        reason = (
            f"tenant {demand.tenant}: its peak rate is {demand.contract.peak_rate_bps:g}, reserved are {rate_bps:g}"
        )
        return Decision(False, 0.0, None, reason), None
    try:
        bound = delay_bound(_flow(rule, demand), path, _late(demand), method=method)
    except CalculusError as error:
        return Decision(False, 0.0, None, f"tenant {demand.tenant}: no bound: {error}"), None
    if bound.delay_s > demand.deadline_s * _ROUNDING:
        reason = f"tenant {demand.tenant}: its bound is {bound.delay_s:g} s, promised are {demand.deadline_s:g} s"
        return Decision(False, 0.0, bound.delay_s, reason), bound
    return Decision(True, rate_bps, bound.delay_s, f"tenant {demand.tenant}: by the rule {rule}"), bound


def _flow(rule: Rule, demand: Demand) -> Arrival:
    """What a rule believes of a tenant: its contract, or its model behind the meter that enforces the contract."""
    if rule is Rule.STOCHASTIC and demand.flow is not None:
        return Metered(demand.flow, demand.contract)
    return demand.contract


def _late(demand: Demand) -> float:
    """Share of packets that may be late, where those which the meter drops are misses too."""
    return demand.epsilon - demand.meter_loss


@dataclass(frozen=True)
class Guest:
    """One of those who share a port or a server without preemption.

    Attributes:
        tenant: Name.
        weight: What it can put in front of each of the others: bits of a round at a port, seconds at a server.
        bears: How much all others together may put in front of it before its own promise breaks.
    """

    tenant: str
    weight: float
    bears: float


class Crowd:
    """Those who share a resource, and whether everybody's promise holds.

    What stands in the way of one is the sum of all others, so the sum of all may be no more than `bears + weight` of
    anybody: one comparison recomputes every promise whose input a newcomer changes, which is all of them.
    """

    def __init__(self, guests: Iterable[Guest] = ()) -> None:
        self._total, self._limit, self._tightest = 0.0, math.inf, ""
        for guest in guests:
            self._take(guest)

    def broken_by(self, newcomer: Guest) -> str | None:
        """Whose promise breaks if this one comes, the newcomer's own included; None if all hold."""
        after = self._total + newcomer.weight
        if after > self._limit * _ROUNDING:
            return self._tightest
        return newcomer.tenant if self._total > newcomer.bears * _ROUNDING else None

    def require(self, newcomer: Guest) -> None:
        """Check that one could come.

        Raises:
            ReservationError: Somebody's promise would break.
        """
        broken = self.broken_by(newcomer)
        if broken is not None:
            raise ReservationError(
                f"tenant {newcomer.tenant}: would break the promise made to {broken}; try again when somebody has left"
            )

    def admit(self, newcomer: Guest) -> None:
        """Let one in; raises as `require`."""
        self.require(newcomer)
        self._take(newcomer)

    def _take(self, guest: Guest) -> None:
        self._total += guest.weight
        limit = guest.bears + guest.weight
        if limit < self._limit:
            self._limit, self._tightest = limit, guest.tenant
