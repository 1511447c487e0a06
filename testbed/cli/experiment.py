"""`testbed experiment`: the headline experiments, each a list of points."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from testbed.cli.exits import Exit
from testbed.cli.pictures import require_picture
from testbed.cli.watching import Interrupt, shown
from testbed.management.admission import Rule
from testbed.simulation.experiments.isolation import CORRELATIONS, SCHEDULERS, IsolationOptions, isolation
from testbed.simulation.experiments.network import on_network, simulated
from testbed.simulation.experiments.overload import LOADS, OverloadOptions, overload
from testbed.simulation.experiments.plot import draw
from testbed.simulation.experiments.point import ExperimentPoint
from testbed.simulation.experiments.scenarios import NetworkOptions, isolation_plans, overload_plans
from testbed.simulation.experiments.table import WIDTH, summary


class Name(StrEnum):
    """The experiments."""

    OVERLOAD = "overload"
    ISOLATION = "isolation"


class On(StrEnum):
    """Where an experiment is carried out."""

    SIMULATION = "simulation"
    NETWORK = "network"


def experiment(  # noqa: PLR0917 - options of a command line
    name: Annotated[Name, typer.Argument(help="overload: admission rules; isolation: schedulers.")],
    on: Annotated[On, typer.Option("--on", help="In the simulator or, as root, on a network.")] = On.SIMULATION,
    replications: Annotated[
        int | None, typer.Option(min=2, help="Simulated: independent windows of each point.", show_default="5")
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(
            min=1.0, help="Seconds of each window.", show_default="overload 120, isolation 500, on the network 45"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Root of every random stream.")] = 1,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Simulated: processes; they change nothing but the time it takes.", show_default="1"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the simulated windows and the runs, where finished ones are found again.",
            show_default="runs/experiment-NAME",
        ),
    ] = None,
    at_most: Annotated[
        int | None, typer.Option(min=0, help="On the network: new runs to make now; the others can follow later.")
    ] = None,
    isolate: Annotated[
        bool, typer.Option("--isolate", help="On the network: run before everything else on this host.")
    ] = False,
    keep_awake: Annotated[
        bool, typer.Option("--keep-awake", help="On the network: keep idle cores from sleeping.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the points into this file (.svg, .png, .pdf).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the points as JSON instead of a table.")] = False,
) -> None:
    """Carry out a headline experiment: what admission control buys, or what a reservation isolates from.

    On the network it is a small grid, a measured run a point; each point stands beside the same packets in the
    simulator. A run that its gates call INVALID is shown as such and not repeated; delete its folder to have it again.

    What is finished is kept: after an interruption the same command goes on where it was.

    Exit codes: 0 every point is there, 2 the command was wrong, 130 interrupted, or runs are left to be made.
    """
    if plot is not None:
        require_picture(plot, "--plot")
    stop = Interrupt()
    folder = out or Path("runs") / f"experiment-{name}"
    _refuse_of_the_other(
        on,
        simulated={"--replications": replications is not None, "--workers": workers is not None},
        network={"--at-most": at_most is not None, "--isolate": isolate, "--keep-awake": keep_awake},
    )
    if on is On.NETWORK:
        options = NetworkOptions(seed=seed) if duration is None else NetworkOptions(seed=seed, duration_s=duration)
        plans = isolation_plans(options) if name is Name.ISOLATION else overload_plans(options)
        with shown(stop) as progress:
            measured = on_network(
                plans,
                folder,
                progress,
                at_most=at_most,
                isolate=isolate,
                keep_awake=keep_awake,
                stop=stop,
                command=("testbed", "experiment", *sys.argv[2:]),
            )
        done = {(point.value, point.name) for point in measured}
        points = [*measured, *(simulated(plan) for plan in plans if (plan.value, plan.name) in done)]
        wanted, deadline_s = 2 * len(plans), options.workload.deadline_s
    else:
        points, wanted, deadline_s = _simulate(name, folder, duration, replications or 5, seed, workers or 1, stop)
    if plot is not None and points:
        draw(points, deadline_s, plot)
    if as_json:
        typer.echo(json.dumps([point.to_dict() for point in points], indent=1))
    elif points:
        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDTH)
        console.print(summary(points, min(console.width, WIDTH)))
    for point in points:
        if point.invalid and not as_json:
            typer.echo(f"INVALID: {point.varied} {point.value:g}, {point.name}: {'; '.join(point.invalid)}")
    if len(points) < wanted:
        typer.echo(f"points are missing; the same command goes on with what is kept in {folder}", err=True)
        raise typer.Exit(Exit.INTERRUPTED)


def _refuse_of_the_other(on: On, *, simulated: Mapping[str, bool], network: Mapping[str, bool]) -> None:
    """Refuse options that mean nothing where the experiment is carried out.

    Args:
        on: Where that is.
        simulated: Options that only a simulation has, and whether each is given.
        network: Those that only a network has.

    Raises:
        typer.BadParameter: One of them is given; it names the first.
    """
    other, why, options = {
        On.NETWORK: (On.SIMULATION, "where a point is one run after the other", simulated),
        On.SIMULATION: (On.NETWORK, "which makes no runs and leaves this host as it is", network),
    }[on]
    for option, given in options.items():
        if given:
            raise typer.BadParameter(f"found --on {on}, {why}, expected --on {other}; leave it out", param_hint=option)


def _simulate(  # noqa: PLR0917 - options of a command line
    name: Name, folder: Path, duration: float | None, replications: int, seed: int, workers: int, stop: Interrupt
) -> tuple[list[ExperimentPoint], int, float]:
    """The points, how many were wanted, and the deadline."""
    with shown(stop) as progress:
        if name is Name.OVERLOAD:
            loads = OverloadOptions(duration_s=duration or 120.0, replications=replications, seed=seed, workers=workers)
            points = overload(loads, folder, progress, stop=stop)
            return points, len(LOADS) * len(Rule), loads.workload.deadline_s
        steps = IsolationOptions(duration_s=duration or 500.0, replications=replications, seed=seed, workers=workers)
        points = isolation(steps, folder, progress, stop=stop)
        return points, len(CORRELATIONS) * len(SCHEDULERS), steps.workload.deadline_s
