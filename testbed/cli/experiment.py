"""`testbed experiment`: the headline experiments, each a list of points."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from testbed.cli.exits import Exit
from testbed.cli.watching import Interrupt, shown
from testbed.management.admission import Rule
from testbed.report.terminal import milliseconds
from testbed.simulation.experiments.isolation import CORRELATIONS, SCHEDULERS, IsolationOptions, isolation
from testbed.simulation.experiments.overload import LOADS, OverloadOptions, overload
from testbed.simulation.experiments.plot import draw
from testbed.simulation.experiments.point import ExperimentPoint

_PLAIN_WIDTH = 130


class Name(StrEnum):
    """The experiments."""

    OVERLOAD = "overload"
    ISOLATION = "isolation"


class On(StrEnum):
    """Where an experiment is carried out."""

    SIMULATION = "simulation"


def experiment(  # noqa: PLR0917 - options of a command line
    name: Annotated[Name, typer.Argument(help="overload: admission rules; isolation: schedulers.")],
    on: Annotated[On, typer.Option("--on", help="Where.")] = On.SIMULATION,
    replications: Annotated[int, typer.Option(min=2, help="Independent windows of each point.")] = 5,
    duration: Annotated[float | None, typer.Option(min=1.0, help="Simulated seconds of each window.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Root of every random stream.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes; they change nothing but the time it takes.")] = 1,
    plot: Annotated[Path | None, typer.Option(help="Draw the points into this file (.svg, .png, .pdf).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the points as JSON instead of a table.")] = False,
) -> None:
    """Carry out a headline experiment: what admission control buys, or what a reservation isolates from.

    Exit codes: 0 every point is there, 2 the command was wrong, 130 interrupted.
    """
    del on
    stop = Interrupt()
    with shown() as progress, progress.step(f"experiment {name}") as step:
        if name is Name.OVERLOAD:
            loads = OverloadOptions(duration_s=duration or 120.0, replications=replications, seed=seed, workers=workers)
            points, wanted = overload(loads, advance=step.advance, stop=stop), len(LOADS) * len(Rule)
            deadline_s = loads.workload.deadline_s
        else:
            steps = IsolationOptions(
                duration_s=duration or 500.0, replications=replications, seed=seed, workers=workers
            )
            points, wanted = isolation(steps, advance=step.advance, stop=stop), len(CORRELATIONS) * len(SCHEDULERS)
            deadline_s = steps.workload.deadline_s
    if plot is not None and points:
        draw(points, deadline_s, plot)
    if as_json:
        typer.echo(json.dumps([point.to_dict() for point in points], indent=1))
    elif points:
        console = Console()
        (console if console.is_terminal else Console(width=_PLAIN_WIDTH)).print(_table(points))
    if len(points) < wanted:
        raise typer.Exit(Exit.INTERRUPTED)


def _table(points: list[ExperimentPoint]) -> Table:
    table = Table(title="p99.9 in ms, shares in percent; 95 % limits", title_justify="left", header_style="bold")
    for heading in (points[0].varied, points[0].contender):
        table.add_column(heading)
    for heading in ("bound", "p99.9", "limits", "on time", "limits", "admitted", "used", "packets"):
        table.add_column(heading, justify="right")
    for point in points:
        low, high = point.p999_interval_s
        table.add_row(
            f"{point.value:g}",
            point.name,
            milliseconds(point.bound_s),
            milliseconds(point.p999_s),
            f"{milliseconds(low)} .. {milliseconds(high)}",
            f"{100 * point.compliance:.3f}",
            f"{100 * point.compliance_interval[0]:.3f} .. {100 * point.compliance_interval[1]:.3f}",
            f"{100 * point.admitted:.0f}",
            f"{100 * point.utilisation:.0f}",
            f"{point.packets:,}",
        )
    return table
