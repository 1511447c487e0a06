"""`testbed clean`: undo what runs that died left on this host."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer

from testbed.emulation import clean as emulation
from testbed.errors import CleanupError


def clean(
    as_json: Annotated[bool, typer.Option("--json", help="Answer with JSON.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be undone, and undo nothing.")] = False,
) -> None:
    """Undo exactly what the journals of dead runs name, and nothing else.

    A journal that cannot be read, or a change that cannot be undone, is reported after the rest has been undone.

    Exit codes: 0 nothing is left, 1 something could not be undone.
    """
    runs = emulation.left_behind() if dry_run else emulation.clean()
    if as_json:
        answer = [
            {"runid": run.runid, "undone": list(emulation.present(run)), "problems": list(run.problems)} for run in runs
        ]
        typer.echo(json.dumps({"dry_run": dry_run, "runs": answer}, indent=1))
    else:
        _print(runs, "would undo" if dry_run else "undone")
    problems = [problem for run in runs for problem in run.problems]
    if problems:
        raise CleanupError(problems)


def _print(runs: Sequence[emulation.Cleaned], verb: str) -> None:
    if not runs:
        typer.echo("nothing to clean: no run left anything behind")
    for run in runs:
        typer.echo(f"run {run.runid}:{'' if emulation.present(run) else ' nothing was there'}")
        for what in emulation.present(run):
            typer.echo(f"  {verb}: {what}")
