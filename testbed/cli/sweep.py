"""`testbed sweep`: a scenario simulated under every combination of some settings."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from testbed.cli.exits import Exit
from testbed.cli.kinds import require_reservations
from testbed.cli.watching import Interrupt, shown
from testbed.report.terminal import STYLES, milliseconds
from testbed.simulation.choices import Choices
from testbed.simulation.grid import axis, points
from testbed.simulation.sweep import SweepOptions
from testbed.simulation.sweep import sweep as sweep_grid
from testbed.simulation.system import Scheduler

_PLAIN_WIDTH = 140


def sweep(  # noqa: PLR0917 - options of a command line
    file: Annotated[Path, typer.Argument(help="Scenario file.")],
    grid: Annotated[
        list[str],
        typer.Option(
            help="KEY=VALUE,VALUE,... once per key: a path into the file (tenants.alpha.arrivals.peak), load, "
            "scheduler, correlation, loss or excess-ms."
        ),
    ],
    packets: Annotated[int | None, typer.Option(min=1, help="Packets in each window, about.")] = None,
    replications: Annotated[int, typer.Option(min=1, help="Independent windows to pool at each point.")] = 1,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes; they change nothing but the time it takes.", show_default="1"),
    ] = None,
    scheduler: Annotated[Scheduler, typer.Option(help="Of every domain, unless in the grid.")] = Scheduler.RESERVED,
    measured: Annotated[
        Path | None, typer.Option(help="Folder of a run that measured requests, as for testbed simulate.")
    ] = None,
    on_ray: Annotated[bool, typer.Option("--ray", help="Use Ray (the extra `ray`) instead of processes.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the sweep; the same one again goes on.")] = Path("sweep"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON instead of a table.")] = False,
) -> None:
    """Simulate a scenario under every combination of some settings; a sweep that was killed goes on where it was.

    Exit codes: 0 every point is simulated, 2 the command was wrong, 130 interrupted.
    """
    if on_ray and workers is not None:
        raise typer.BadParameter(
            "found --ray, which decides how many points it simulates at a time, expected no number; leave it out",
            param_hint="--workers",
        )
    require_reservations(file)
    axes = [axis(text) for text in grid]
    stop = Interrupt()
    options = SweepOptions(
        out=out,
        packets=packets,
        replications=replications,
        workers=workers or 1,
        on_ray=on_ray,
        choices=Choices(scheduler),
        measured=measured,
        command=("testbed", "sweep", *sys.argv[2:]),
        stop=stop,
    )
    with shown(stop) as progress:
        rows = sweep_grid(file, axes, options, progress)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        console = Console()
        (console if console.is_terminal else Console(width=_PLAIN_WIDTH)).print(_table(file, rows))
        for why, places in _unbound(rows).items():
            typer.echo(f"no bound: {', '.join(places)}: {why}")
    if len(rows) < len(points(axes)):
        raise typer.Exit(Exit.INTERRUPTED)


def _unbound(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Tenants that reserve and have no bound, with the point where all that is so of some only, by why."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        where = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
        for tenant in row["tenants"]:
            if tenant["unbound"]:
                found.setdefault(tenant["unbound"], {}).setdefault(tenant["name"], []).append(where)
    return {
        why: [
            name if len(places) == len(rows) else f"{name} at {'; '.join(places)}" for name, places in tenants.items()
        ]
        for why, tenants in found.items()
    }


def _table(file: Path, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{file.stem}: p99.9 in ms", title_justify="left", header_style="bold")
    keys = list(rows[0]["settings"]) if rows else []
    for heading in (*keys, "tenant", "bound", "p99.9", "95 % interval", "packets", "lost", "verdict"):
        table.add_column(heading, justify="left" if heading in {"tenant", "verdict"} else "right")
    for row in rows:
        for tenant in row["tenants"]:
            low, high = tenant["p999_interval_s"] or (None, None)
            table.add_row(
                *row["settings"].values(),
                tenant["name"],
                milliseconds(tenant["bound_s"]),
                milliseconds(tenant["p999_s"]),
                f"{milliseconds(low)} .. {milliseconds(high)}",
                f"{tenant['n']:,}",
                f"{tenant['lost']:,}",
                f"[{STYLES[tenant['verdict']]}]{tenant['verdict']}[/]"
                + " [bold white on red]BOUND BROKEN[/]" * tenant["bound_broken"],
            )
    return table
