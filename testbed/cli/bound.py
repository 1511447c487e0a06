"""`testbed bound`: what theory promises a scenario's tenants, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from testbed.cli.kinds import require_reservations
from testbed.cli.pictures import require_picture
from testbed.management.bounds import Bounds
from testbed.report.bound_plot import BoundCurve, save_bounds
from testbed.report.terminal import milliseconds
from testbed.scenario.loader import load
from testbed.scenario.model import Scenario
from testbed.simulation.bounds import bounds_on_paper


def bound(
    file: Annotated[Path, typer.Argument(help="Scenario file.")],
    measured: Annotated[
        Path | None,
        typer.Option(help="Folder of a run that measured requests, as for testbed simulate."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw every tenant's bound as a CCDF.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where --plot writes: .svg, .png or .pdf.", show_default="SCENARIO-bound.svg"),
    ] = None,
) -> None:
    """Show every tenant's bound at its promised percentile, its method and its budget per domain.

    Of tenants that send requests, computations take as long as the scenario says under `work`, or as a run measured
    that --measured names; where neither is known the table says so.
    """
    require_reservations(file)
    scenario = load(file)
    picture = out or Path(f"{scenario.name}-bound.svg")
    require_picture(picture, "--out")
    bounds = bounds_on_paper(scenario, measured)
    if as_json:
        rows = [_row(scenario, tenant.name, bounds) for tenant in scenario.tenants if tenant.reservation]
        typer.echo(json.dumps({"tenants": rows}, indent=1))
    else:
        _print(scenario, bounds)
    if plot:
        curves = [
            BoundCurve(name, found, _epsilon(scenario, name), _deadline(scenario, name))
            for name, found in bounds.found.items()
        ]
        save_bounds(curves, f"{scenario.name}: bounds before any run", picture)
        typer.echo(f"picture: {picture}", err=True)


def _print(scenario: Scenario, bounds: Bounds) -> None:
    console = Console()
    table = Table(title=f"{scenario.name}: bounds (ms)", title_justify="left", header_style="bold")
    for heading in ("tenant", "ε", "bound", "method", "made of"):
        table.add_column(heading, justify="left" if heading in {"tenant", "method", "made of"} else "right")
    for tenant in scenario.tenants:
        if (found := bounds.found.get(tenant.name)) is not None:
            parts = " + ".join(f"{part.name} {milliseconds(part.delay_s)}" for part in found.parts)
            row = (milliseconds(found.bound_s), found.method, parts)
        elif tenant.name in bounds.missing:
            row = (milliseconds(None), "none", bounds.missing[tenant.name])
        else:
            continue
        table.add_row(tenant.name, f"{_epsilon(scenario, tenant.name):g}", *row)
    console.print(table)
    for name, found in bounds.found.items():
        console.print(f"\n[bold]{name}[/bold]")
        console.print(found.explanation, markup=False, highlight=False)


def _epsilon(scenario: Scenario, name: str) -> float:
    promise = next(tenant.promise for tenant in scenario.tenants if tenant.name == name)
    return promise.epsilon if promise else 1e-3


def _deadline(scenario: Scenario, name: str) -> float | None:
    promise = next(tenant.promise for tenant in scenario.tenants if tenant.name == name)
    return promise.deadline_s if promise else None


def _row(scenario: Scenario, name: str, bounds: Bounds) -> dict[str, object]:
    """One tenant with a reservation; `why` says what is missing where it has no bound."""
    found = bounds.found.get(name)
    return {
        "name": name,
        "epsilon": _epsilon(scenario, name),
        "bound_s": None if found is None else found.bound_s,
        "network_bound_s": None if found is None else found.network_bound_s,
        "method": None if found is None else found.method,
        "assumptions": [] if found is None else list(found.assumptions),
        "budget": [] if found is None else [share.model_dump() for share in found.budget],
        "rejected": {} if found is None else found.rejected,
        "why": bounds.missing.get(name),
    }
