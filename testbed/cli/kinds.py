"""Which of the two kinds of file a verb takes; the other kind is refused by name, not by all the keys it lacks."""

from __future__ import annotations

from pathlib import Path

from testbed.errors import ScenarioError
from testbed.scenario import market


def require_reservations(file: Path) -> None:
    """Refuse a federation file, whose tenants have intents only.

    Raises:
        ScenarioError: It is one.
    """
    if market.is_market(file):
        raise ScenarioError(
            f"{file}: found a federation, whose tenants reserve nothing until they are planned, expected a scenario "
            "with reservations; use testbed run, or write down the reservations that testbed plan shows"
        )


def require_intents(file: Path) -> None:
    """Refuse a scenario file, whose tenants have their reservations already.

    Raises:
        ScenarioError: It is one.
    """
    if market.is_scenario(file):
        raise ScenarioError(
            f"{file}: found a scenario, whose domains and reservations are chosen already, expected a federation with "
            "segments and intents; use testbed bound or run, or start from topologies/federation.yaml"
        )
