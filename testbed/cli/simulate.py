"""`testbed simulate`: the scenario packet by packet in this computer's memory, the bound beside the result."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from testbed.cli.exits import exit_of_record
from testbed.cli.impairments import impairments
from testbed.cli.kinds import require_reservations
from testbed.cli.watching import Interrupt, shown
from testbed.report.html import REPORT_NAME
from testbed.report.record import RECORD_NAME, read_record
from testbed.report.terminal import print_summary
from testbed.scenario.loader import load
from testbed.simulation.choices import Choices
from testbed.simulation.pipeline import RECORDED_PACKETS, Options, simulate_scenario
from testbed.simulation.system import Scheduler


def simulate(  # noqa: PLR0917 - options of a command line
    file: Annotated[Path, typer.Argument(help="Scenario file.")],
    packets: Annotated[
        int | None, typer.Option(min=1, help="Packets in each window, about; else the scenario's duration decides.")
    ] = None,
    replications: Annotated[int, typer.Option(min=1, help="Independent windows to pool.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes; they change nothing but the time it takes.")] = 1,
    scheduler: Annotated[
        Scheduler, typer.Option(help="Of every domain; reserved and isolated are what the bounds hold for.")
    ] = Scheduler.RESERVED,
    meters: Annotated[bool, typer.Option(help="Police tenants with a reservation.")] = True,
    correlation: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="How strongly correlated tenants burst together; else as in a run."),
    ] = None,
    excess_ms: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[DOMAIN=]MS",
            help="Mean of a random excess latency in every domain, or in one; repeat it for others. Else as the "
            "scenario says.",
        ),
    ] = None,
    excess_share: Annotated[
        list[str] | None, typer.Option(metavar="[DOMAIN=]SHARE", help="Share of packets that have it, else all.")
    ] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[DOMAIN=]P",
            help="Probability that every domain, or one, loses a packet; else as the scenario says.",
        ),
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a run: what messages are on the wire, how long they are computed and how well are taken "
            "from there, by tenant."
        ),
    ] = None,
    record_packets: Annotated[
        int, typer.Option(min=1, help="Packets to record one by one, all windows together; others are counted.")
    ] = RECORDED_PACKETS,
    out: Annotated[
        Path | None, typer.Option(help="Folder that receives the simulation's folder.", show_default="runs")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Folder of an interrupted simulation: simulate only what is missing.")
    ] = None,
    page: Annotated[bool, typer.Option(help="Draw report.html; `testbed report` can do so later.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record instead of a table.")] = False,
) -> None:
    """Simulate a scenario packet by packet; leaves the same folder as a run, for `report` and the audit.

    Requests are computed as long as the scenario says under `work`, or as a run measured that --measured names.

    Exit codes: 0 PASS, 1 FAIL or a broken bound, 2 cannot be simulated, 4 UNDETERMINED, 130 interrupted.
    """
    if resume is not None and out is not None:
        raise typer.BadParameter(
            f"found --resume {resume}, whose folder receives what is missing, expected no other folder; leave it out",
            param_hint="--out",
        )
    require_reservations(file)
    scenario = load(file)
    stop = Interrupt()
    options = Options(
        out=out or Path("runs"),
        packets=packets,
        replications=replications,
        recorded_packets=record_packets,
        workers=workers,
        choices=Choices(scheduler, meters, correlation, **impairments(excess_ms or [], excess_share or [], loss or [])),
        measured=measured,
        command=("testbed", "simulate", *sys.argv[2:]),
        page=page,
        resume=resume,
        stop=stop,
    )
    with shown(stop) as progress:
        folder = simulate_scenario(scenario, options, progress)
    record = read_record(folder)
    if as_json:
        typer.echo((folder / RECORD_NAME).read_text(encoding="utf-8"))
    else:
        print_summary(record)
        typer.echo(f"{record.packets:,} packets, {(record.packet_hops_per_s or 0) / 1e6:.3g} million packet-hops/s")
        typer.echo(f"report: {folder / REPORT_NAME}" if page else f"folder: {folder}")
    raise typer.Exit(exit_of_record(record))
