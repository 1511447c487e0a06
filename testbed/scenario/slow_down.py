"""A scenario slowed down: the same theory at a k-th of the rates, for a host that cannot keep up with the original.

Every rate is divided by k and every time multiplied by it; sizes and probabilities stay. A queue's backlog in bits is
then distributed as before, and every delay is k times as long, bounds included: divided by k again, they are the
original's. The host is not slowed down, which is the point: its pauses are a k-th as long in the scenario's own time.
What does not stretch with it is corrected here or refused, and `corrections` says so in words for the run's record.
"""

from __future__ import annotations

from dataclasses import Field, fields, is_dataclass, replace
from typing import Any, TypeVar

from testbed.errors import ScenarioError
from testbed.scenario.federation import Market
from testbed.scenario.model import Reservation, Scenario, TraceArrivals

LARGEST = 1000.0
"""A millisecond becomes a second; nobody waits for more."""

LEAST_RATE_BPS = 8000
"""The slowest queue that is still asked of HTB."""

NOT_STRETCHED = frozenset({"slow_down"})
"""Attributes whose names end like a unit that must stay, or that are set here."""

PER_RATE = frozenset({"price_per_mbps"})
"""Attributes that are multiplied because they are divided by a rate: what is bought costs what it did."""

_RESENT_AFTER_S = 0.2
_RESENT_AFTER_AT_MOST_S = 120.0
"""Linux's TCP_RTO_MIN, and its TCP_RTO_MAX, which nothing changes."""
_KBIT = 1000
_RATE_SHARE = 0.05
"""How far whole kbit/s may be from a rate, as a part of it."""
_T = TypeVar("_T")


def slowed(scenario: Scenario, factor: float) -> Scenario:
    """`scenario` at a `factor`-th of its rates.

    Args:
        scenario: As it was written.
        factor: From 1 to `LARGEST`.

    Raises:
        ScenarioError: No such factor, or a rate that cannot be divided by it.
    """
    _require_factor(factor)
    stretched = _stretched(scenario, factor)
    require_kept(scenario, stretched, factor)
    return replace(stretched, slow_down=scenario.slow_down * factor)


def slowed_market(sold: Market, factor: float) -> Market:
    """A federation at a `factor`-th of its rates: all that operators state of rates and times, and all intents.

    The work that a site declares of its models is stretched with the rest, so that a share of the server is worth the
    same share of what arrives; its computations are as fast as ever, and only sooner done than declared.

    Args:
        sold: As it was written.
        factor: From 1 to `LARGEST`.

    Raises:
        ScenarioError: No such factor.
    """
    _require_factor(factor)
    return replace(_stretched(sold, factor), slow_down=sold.slow_down * factor)


def require_kept(before: Scenario, after: Scenario, factor: float) -> None:
    """Check that what is reserved for each tenant is a `factor`-th of what it was.

    Args:
        before: As it was written.
        after: The same tenants, slowed down.
        factor: How many times.

    Raises:
        ScenarioError: A rate that no queue keeps, or that whole kbit/s move too far.
    """
    found = (
        _problem(one.name, one.reservation, other.reservation, factor)
        for one, other in zip(before.tenants, after.tenants, strict=True)
    )
    if problems := [problem for problem in found if problem is not None]:
        raise ScenarioError(problems)


def corrections(scenario: Scenario) -> tuple[str, ...]:
    """What did not stretch with a slowed scenario, and what was done about it, a sentence each; none if not slowed."""
    factor = scenario.slow_down
    if factor == 1:
        return ()
    share = f"1/{factor:g} of that in the scenario's own time"
    notes = [
        f"pauses of the host and the switch's own work stay as long as they are, {share}, and gates allow for that",
        "a meter still refills every millisecond, and its bucket is as deep as before",
    ]
    if any(tenant.reservation is not None for tenant in scenario.tenants):
        notes.append("queues' rates are whole bit/s and meters' whole kbit/s; bounds use what was installed")
    if any(tenant.requests is not None for tenant in scenario.tenants):
        sold = any(domain.segment is not None for domain in scenario.domains)
        notes += [
            f"a model computes as fast as ever, {share}; its part of a bound is the work that its site declares, which "
            "is stretched"
            if sold
            else f"a model computes as fast as ever; its part of a bound is what the warm-up measured, {share}",
            f"TCP resends nothing before {least_resend_s(factor):g} s have passed, instead of {_RESENT_AFTER_S:g} s",
            f"TCP acknowledges within 40 ms as ever, {share}, so sooner; every call is counted with a packet for that",
        ]
    return tuple(notes)


def least_resend_s(factor: float) -> float:
    """How long TCP waits at the least before it resends, at a slow-down: as often as ever in the scenario's own time.

    With the usual limit it would take what is merely queued for as long as its slowed delay for lost.
    """
    return min(factor * _RESENT_AFTER_S, _RESENT_AFTER_AT_MOST_S)


def _require_factor(factor: float) -> None:
    if not 1 <= factor <= LARGEST:
        raise ScenarioError(f"--slow-down: found {factor:g}, expected a factor from 1 to {LARGEST:g}")


def _stretched(value: _T, factor: float) -> _T:
    """A dataclass with every rate divided and every time multiplied, told apart by the units in their names."""
    changed = {item.name: _attribute(item, getattr(value, item.name), factor) for item in fields(value)}  # type: ignore[arg-type]
    return replace(value, **changed)  # type: ignore[type-var]


def _attribute(item: Field[Any], value: Any, factor: float) -> Any:
    if value is None or item.name in NOT_STRETCHED:
        return value
    if isinstance(value, TraceArrivals):
        return replace(value, speed_up=value.speed_up / factor)
    if is_dataclass(value):
        return _stretched(value, factor)
    if isinstance(value, tuple) and value and is_dataclass(value[0]):
        return tuple(_stretched(part, factor) for part in value)
    return _quantity(item, value, factor)


def _quantity(item: Field[Any], value: Any, factor: float) -> Any:
    if item.name == "meter_rate_bps":
        return max(1, round(value / factor / _KBIT)) * _KBIT
    if item.name in PER_RATE:
        return value * factor
    if item.name.endswith(("_bps", "_per_s")):
        return round(value / factor) if str(item.type).startswith("int") else _multiplied(value, 1 / factor)
    return _multiplied(value, factor) if item.name.endswith("_s") else value


def _multiplied(value: Any, by: float) -> Any:
    """A number, or a tuple of such at any depth."""
    return tuple(_multiplied(part, by) for part in value) if isinstance(value, tuple) else value * by


def _problem(tenant: str, before: Reservation | None, after: Reservation | None, factor: float) -> str | None:
    if before is None or after is None:
        return None
    if after.rate_bps < LEAST_RATE_BPS:
        most = before.rate_bps // LEAST_RATE_BPS
        return (
            f"tenant {tenant}: found {before.rate_bps} bit/s slowed down {factor:g} times, expected at least "
            f"{LEAST_RATE_BPS} bit/s, which a queue can keep; slow down at most {most} times"
        )
    if abs(after.rate_bps * factor / before.rate_bps - 1) > _RATE_SHARE:
        return (
            f"tenant {tenant}: found {after.rate_bps} bit/s reserved, slowed down {factor:g} times, expected about "
            f"{before.rate_bps / factor:.0f} bit/s; slow down less"
        )
    off = abs(after.meter_rate_bps * factor / before.meter_rate_bps - 1)
    if after.meter_rate_bps >= after.rate_bps or off > _RATE_SHARE:
        return (
            f"tenant {tenant}: found a meter of {before.meter_rate_bps} bit/s slowed down {factor:g} times, expected "
            f"whole kbit/s, and {after.meter_rate_bps} bit/s is too far off; slow down less"
        )
    return None
