"""`testbed run`: the scenario on a real network, the bound beside the measurement."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from testbed.cli.exits import exit_of_record
from testbed.cli.watching import Interrupt, shown
from testbed.report.html import REPORT_NAME
from testbed.report.record import RECORD_NAME, read_record
from testbed.report.terminal import print_summary
from testbed.run.agents import run_market
from testbed.run.pipeline import Options
from testbed.run.pipeline import run as run_scenario
from testbed.scenario import market
from testbed.scenario.loader import load
from testbed.scenario.slow_down import slowed


def run(
    file: Annotated[Path, typer.Argument(help="Scenario or federation file.")],
    *,
    seeds: Annotated[int, typer.Option(min=1, help="Measured windows to pool, each with a seed of its own.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder that receives the run's folder.")] = Path("runs"),
    keep_captures: Annotated[
        bool,
        typer.Option("--keep-captures", help="Keep the captures as pcapng with names, and put them together."),
    ] = False,
    isolate: Annotated[
        bool,
        typer.Option("--isolate", help="Run before everything else on this host, on cores of its own where it can."),
    ] = False,
    keep_awake: Annotated[
        bool,
        typer.Option("--keep-awake", help="Keep idle cores from sleeping; those of a virtual machine wake up late."),
    ] = False,
    slow_down: Annotated[
        float,
        typer.Option(
            metavar="K",
            help="Divide every rate by K and multiply every time by it, for a host that cannot keep up otherwise.",
        ),
    ] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run's record instead of a table.")] = False,
) -> None:
    """Run a scenario on a real network: promise, enforce, replay, measure, judge.

    A federation file's intents are planned, offered, reserved and released by its domains' agents.

    Ctrl-C ends it early: with what is measured by then, marked partial, or with nothing left behind.

    Exit codes: 0 PASS, 1 FAIL or a broken bound, 2 cannot run, 3 INVALID, 4 UNDETERMINED, 130 interrupted.
    """
    sold = market.load(file) if market.is_market(file) else None
    stop = Interrupt()
    options = Options(
        out=out,
        seeds=seeds,
        keep_captures=keep_captures,
        isolate=isolate,
        keep_awake=keep_awake,
        command=("testbed", "run", *sys.argv[2:]),
        stop=stop,
    )
    with shown(stop) as progress:
        if sold is not None:
            folder = run_market(sold, options, progress, slow_down=slow_down)
        else:
            folder = run_scenario(slowed(load(file), slow_down), options, progress)
    record = read_record(folder)
    if as_json:
        typer.echo((folder / RECORD_NAME).read_text(encoding="utf-8"))
    else:
        print_summary(record)
        typer.echo(f"report: {folder / REPORT_NAME}")
    raise typer.Exit(exit_of_record(record))
