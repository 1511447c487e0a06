"""Tells users which tenants a verb that knows packets only leaves out."""

from __future__ import annotations

import typer

from testbed.scenario.model import Scenario


def left_out(scenario: Scenario) -> list[str]:
    """Names of the tenants that send requests."""
    return [tenant.name for tenant in scenario.tenants if tenant.requests is not None]


def say_left_out(scenario: Scenario, why: str) -> None:
    """Name them on standard error, if there are any, with what keeps them out."""
    if names := left_out(scenario):
        typer.echo(f"left out: {', '.join(names)}: requests, {why}; `testbed run` has them", err=True)
