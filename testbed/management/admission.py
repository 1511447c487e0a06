"""Whether a tenant may enter, and what must be reserved for it: the one rule of the management plane and experiments.

A rule turns a demand into the rate that keeps its promise and admits while the rates of a link's tenants fit. With a
reservation of its own nobody's promise depends on who else is admitted, so none has to be computed again. Pure: no
clock, no ledger, no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from testbed.calculus import (
    Arrival,
    CalculusError,
    DelayBound,
    Metered,
    RateLatency,
    TokenBucket,
    delay_bound,
    required_rate,
)


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


def reserve(rule: Rule, demand: Demand, path: Sequence[RateLatency]) -> tuple[float, float | None]:
    """The rate a rule reserves and the latency which that promises.

    Args:
        rule: The rule.
        demand: What is wanted.
        path: A promised service of each domain; their rates only start the search.

    Returns:
        Rate in bit/s, 0 for none, and bound in seconds, None where nothing is promised.

    Raises:
        CalculusError: No rate meets the deadline.
    """
    match rule:
        case Rule.NONE:
            return 0.0, None
        case Rule.PEAK:
            rate_bps = demand.contract.peak_rate_bps
            bound = _bound(demand.contract, demand, path, rate_bps)
            if bound.delay_s > demand.deadline_s:
                raise CalculusError(f"bound <= {demand.deadline_s:g} s fails at the peak rate: it is {bound.delay_s:g}")
        case Rule.DETERMINISTIC:
            rate_bps = required_rate(demand.contract, path, demand.deadline_s, demand.epsilon)
            bound = _bound(demand.contract, demand, path, rate_bps)
        case Rule.STOCHASTIC:
            flow = demand.contract if demand.flow is None else Metered(demand.flow, demand.contract)
            rate_bps = required_rate(flow, path, demand.deadline_s, demand.epsilon - demand.meter_loss)
            bound = _bound(flow, demand, path, rate_bps)
    return rate_bps, bound.delay_s


def fits(rate_bps: float, free_bps: float) -> bool:
    """Whether a reservation fits into what a link has left."""
    return rate_bps <= free_bps


def decide(rule: Rule, demand: Demand, path: Sequence[RateLatency], free_bps: float) -> Decision:
    """Admit a tenant or refuse it.

    Args:
        rule: The rule.
        demand: What is wanted.
        path: A promised service of each domain.
        free_bps: What is not reserved yet on the narrowest link of the path.
    """
    try:
        rate_bps, bound_s = reserve(rule, demand, path)
    except CalculusError as error:
        return Decision(False, 0.0, None, f"tenant {demand.tenant}: no rate keeps its promise: {error}")
    if not fits(rate_bps, free_bps):
        return Decision(
            False,
            0.0,
            None,
            f"tenant {demand.tenant}: needs {rate_bps:,.0f} bit/s by the rule {rule}; {free_bps:,.0f} bit/s are free",
        )
    return Decision(True, rate_bps, bound_s, f"tenant {demand.tenant}: {rate_bps:,.0f} bit/s by the rule {rule}")


def _bound(flow: Arrival, demand: Demand, path: Sequence[RateLatency], rate_bps: float) -> DelayBound:
    return delay_bound(flow, [replace(one, rate_bps=rate_bps) for one in path], demand.epsilon - demand.meter_loss)
