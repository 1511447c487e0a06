"""A plan as JSON-ready data, as `testbed plan --json` prints it; SI units in the names, prices per hour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from testbed.management.planner import Decision
from testbed.scenario.federation import Intent, Market


def plan_record(sold: Market, decisions: Sequence[Decision]) -> dict[str, Any]:
    """Every decision, in the order of the intents."""
    return {
        "name": sold.name,
        "rule": sold.rule,
        "decisions": [_decision(intent, one) for intent, one in zip(sold.intents, decisions, strict=True)],
    }


def _decision(intent: Intent, decision: Decision) -> dict[str, Any]:
    written: dict[str, Any] = {"tenant": decision.tenant, "admitted": decision.admitted}
    if decision.refusal is not None:
        nearest = decision.refusal.nearest
        return {
            **written,
            "refused_because": decision.refusal.because,
            "binding": list(decision.refusal.binding),
            "nearest_feasible": None if nearest is None else intent_record(nearest),
        }
    route = decision.route
    return {
        **written,
        "model": None if route is None else route.model.name,
        "accuracy": None if route is None else route.model.accuracy,
        "site": None if route is None else route.where,
        "reservations": [asdict(bought) for bought in decision.purchases],
        "bound_s": decision.bound_s,
        "deadline_s": intent.deadline_s,
        "epsilon": intent.epsilon,
        "method": decision.method,
        "budget": [asdict(share) for share in decision.budget],
        "price": decision.price,
    }


def intent_record(intent: Intent) -> dict[str, Any]:
    """What a tenant asks, without its arrivals, which no refusal changes."""
    return {
        "tenant": intent.tenant,
        "task": intent.task,
        "accuracy": intent.accuracy,
        "deadline_s": intent.deadline_s,
        "epsilon": intent.epsilon,
        "price": intent.price,
        "domains": None if intent.domains is None else sorted(intent.domains),
    }
