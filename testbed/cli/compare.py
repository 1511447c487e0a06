"""`testbed compare`: what is different about two runs, and whether it is more than noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from testbed.audit.compare import compare_runs
from testbed.cli.exits import Exit
from testbed.report.compare_terminal import print_comparison


def compare(
    first: Annotated[Path, typer.Argument(help="Folder of a run.")],
    second: Annotated[Path, typer.Argument(help="Folder of another run.")],
    confidence: Annotated[
        float, typer.Option(min=0.5, max=0.9999, help="With which all intervals hold together.")
    ] = 0.95,
    as_json: Annotated[bool, typer.Option("--json", help="Answer with JSON.")] = False,
) -> None:
    """Compare two runs: settings, bounds, and every tenant's delays and misses.

    A difference counts only if it is more than two runs of the very same thing would show.

    Exit codes: 0 nothing measured differs by more than noise, 1 something does, 2 not two runs that can be compared,
    3 a run is INVALID, so that delays say nothing.
    """
    found = compare_runs(first, second, confidence)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    else:
        print_comparison(found)
    if found.invalid:
        raise typer.Exit(Exit.INVALID)
    raise typer.Exit(Exit.FAIL if found.real else Exit.PASS)
