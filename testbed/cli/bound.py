"""`testbed bound`: what theory promises a scenario's tenants, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from testbed.cli.left_out import left_out, say_left_out
from testbed.management.paper import bounds_on_paper
from testbed.report.bound_plot import BoundCurve, save_bounds
from testbed.report.record import BoundRecord
from testbed.report.terminal import milliseconds
from testbed.scenario.loader import load
from testbed.scenario.model import Scenario

_PICTURES = {".svg", ".png", ".pdf"}


def bound(
    file: Annotated[Path, typer.Argument(help="Scenario file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw every tenant's bound as a CCDF.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where --plot writes: .svg, .png or .pdf.", show_default="SCENARIO-bound.svg"),
    ] = None,
) -> None:
    """Show every tenant's bound at its promised percentile, its method and its budget per domain.

    Tenants that send requests are left out, and named on standard error: their bounds need what a run counts.
    """
    scenario = load(file)
    picture = out or Path(f"{scenario.name}-bound.svg")
    if picture.suffix not in _PICTURES:
        raise typer.BadParameter(
            f"{picture} ends in {picture.suffix!r}; expected .svg, .png or .pdf", param_hint="--out"
        )
    bounds = bounds_on_paper(scenario)
    if as_json:
        rows = [_row(scenario, name, found) for name, found in bounds.items()]
        typer.echo(json.dumps({"tenants": rows, "left_out": left_out(scenario)}, indent=1))
    else:
        _print(scenario, bounds)
    say_left_out(scenario, "whose bounds need what a warm-up counts")
    if plot:
        curves = [
            BoundCurve(name, found, _epsilon(scenario, name), _deadline(scenario, name))
            for name, found in bounds.items()
        ]
        save_bounds(curves, f"{scenario.name}: bounds before any run", picture)
        typer.echo(f"picture: {picture}", err=True)


def _print(scenario: Scenario, bounds: dict[str, BoundRecord]) -> None:
    console = Console()
    table = Table(title=f"{scenario.name}: bounds (ms)", title_justify="left", header_style="bold")
    for heading in ("tenant", "ε", "bound", "method", "made of"):
        table.add_column(heading, justify="left" if heading in {"tenant", "method", "made of"} else "right")
    for name, found in bounds.items():
        parts = " + ".join(f"{part.name} {milliseconds(part.delay_s)}" for part in found.parts)
        table.add_row(name, f"{_epsilon(scenario, name):g}", milliseconds(found.bound_s), found.method, parts)
    console.print(table)
    for name, found in bounds.items():
        console.print(f"\n[bold]{name}[/bold]")
        console.print(found.explanation, markup=False, highlight=False)


def _epsilon(scenario: Scenario, name: str) -> float:
    promise = next(tenant.promise for tenant in scenario.tenants if tenant.name == name)
    return promise.epsilon if promise else 1e-3


def _deadline(scenario: Scenario, name: str) -> float | None:
    promise = next(tenant.promise for tenant in scenario.tenants if tenant.name == name)
    return promise.deadline_s if promise else None


def _row(scenario: Scenario, name: str, found: BoundRecord) -> dict[str, object]:
    return {
        "name": name,
        "epsilon": _epsilon(scenario, name),
        "bound_s": found.bound_s,
        "method": found.method,
        "assumptions": list(found.assumptions),
        "budget": [share.model_dump() for share in found.budget],
        "rejected": found.rejected,
    }
