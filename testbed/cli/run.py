"""`testbed run`: the scenario on a real network, the bound beside the measurement."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from testbed.cli.exits import Exit, exit_of_verdict
from testbed.report.html import REPORT_NAME
from testbed.report.record import RECORD_NAME, read_record
from testbed.report.terminal import print_summary
from testbed.run.pipeline import Options
from testbed.run.pipeline import run as run_scenario
from testbed.run.progress import Step
from testbed.scenario.loader import load


class _Interrupt:
    """The first Ctrl-C asks for an early end with what there is, the second one breaks off."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGINT, self._ask)
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nending early with what there is; once more breaks off\n")

    def __call__(self) -> bool:
        return self.asked


class _Bar:
    def __init__(self, progress: Progress, task: object) -> None:
        self._progress = progress
        self._task = task

    def advance(self, fraction: float) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=fraction)  # type: ignore[arg-type]


class _Shown:
    """Steps as bars on a terminal, or as one line each where output is not a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Show a bar until the step ends."""
        task = self._progress.add_task(name, total=1.0)
        if not self._progress.console.is_terminal:
            self._progress.console.print(f"{name} ...", highlight=False)
        yield _Bar(self._progress, task)
        self._progress.update(task, completed=1.0)


def run(
    file: Annotated[Path, typer.Argument(help="Scenario file.")],
    seeds: Annotated[int, typer.Option(min=1, help="Measured windows to pool, each with a seed of its own.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder that receives the run's folder.")] = Path("runs"),
    keep_captures: Annotated[bool, typer.Option("--keep-captures", help="Keep the pcap files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run's record instead of a table.")] = False,
) -> None:
    """Run a scenario on a real network: promise, enforce, replay, measure, judge.

    Ctrl-C ends it early: with what is measured by then, marked partial, or with nothing left behind.

    Exit codes: 0 PASS, 1 FAIL or a broken bound, 2 cannot run, 3 INVALID, 4 UNDETERMINED, 130 interrupted.
    """
    scenario = load(file)
    options = Options(
        out=out,
        seeds=seeds,
        keep_captures=keep_captures,
        command=("testbed", "run", *sys.argv[2:]),
        stop=_Interrupt(),
    )
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        folder = run_scenario(scenario, options, _Shown(progress))
    record = read_record(folder)
    if as_json:
        typer.echo((folder / RECORD_NAME).read_text(encoding="utf-8"))
    else:
        print_summary(record)
        typer.echo(f"report: {folder / REPORT_NAME}")
    if record.partial:
        raise typer.Exit(Exit.INTERRUPTED)
    if any(tenant.bound_broken for tenant in record.tenants):
        raise typer.Exit(Exit.FAIL)
    raise typer.Exit(exit_of_verdict(record.verdict))
