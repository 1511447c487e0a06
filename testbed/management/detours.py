"""What is left for an intent that a domain refused: which ways are barred to it now, and the nearest intent they bear.

A plan rests on prospectuses, which bind nobody, so a domain may refuse what it seemed to sell. Its refusal says nothing
about other ways; they are planned as if the barred ones did not exist. Nothing is reserved here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from testbed.envelope.errors import RefusedError
from testbed.errors import TestbedError
from testbed.management.planner import Planner
from testbed.management.refusal import Refusal
from testbed.management.routes import Barred, Route
from testbed.scenario.federation import Intent


@dataclass(frozen=True)
class Setback:
    """Why a planned reservation did not come about.

    Attributes:
        because: What the domain said, or what was wrong with what it said.
        domain: Which one; empty where what several signed does not keep the promise together.
        answered: Whether it is known that nothing is held, so that another way may be tried at once.
    """

    because: str
    domain: str = ""
    answered: bool = True

    def bars(self, route: Route | None) -> Barred:
        """The ways that are not to be tried again: all by way of the domain, or the one that was planned."""
        if self.domain:
            return Barred(domains=frozenset({self.domain}))
        return Barred(ways=frozenset() if route is None else frozenset({str(route)}))


def because_of(error: TestbedError) -> str:
    """What went wrong; an envelope's refusal begins with its name."""
    return f"{error.reason}: {error}" if isinstance(error, RefusedError) else str(error)


def refusal_after(planner: Planner, intent: Intent, barred: Barred, because: str) -> Refusal:
    """Why an intent is refused and the nearest one that would be accepted past what is barred.

    Args:
        planner: What is left everywhere.
        intent: What was asked.
        barred: The ways that failed.
        because: Why the last of them did.

    Returns:
        `nearest` stays None where no other way does, or where the planner, asked again with it, would choose a way
        that is barred: only what failed there can say when it will do again.
    """
    (left,) = planner.decide([intent], {intent.tenant: barred})
    if left.refusal is None:
        planner.give_back(left)
        if left.route is None:
            return Refusal(because, ("domain",))
        other = replace(intent, domains=frozenset(left.route.domains))
        said = f"{because}; {left.route} would do"
        return Refusal(said, ("domain",), _nearest(planner, other, barred))
    nearest = left.refusal.nearest
    if nearest is not None and barred.domains:
        allowed = planner.free.keys() if nearest.domains is None else nearest.domains
        nearest = replace(nearest, domains=frozenset(allowed) - barred.domains)
    said = f"{because}; on every other way: {left.refusal.because}"
    return Refusal(said, ("domain", *left.refusal.binding), _nearest(planner, nearest, barred))


def _nearest(planner: Planner, nearest: Intent | None, barred: Barred) -> Intent | None:
    """The intent, if it is planned past what is barred when it is asked again."""
    if nearest is None:
        return None
    (again,) = planner.decide([nearest])
    if again.refusal is not None or again.route is None:
        return None
    planner.give_back(again)
    return None if barred.bars(again.route) else nearest
