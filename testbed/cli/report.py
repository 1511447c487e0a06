"""`testbed report`: the page of a run, made again from its folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from testbed.errors import PreflightError
from testbed.report.html import write_report
from testbed.report.record import read_record
from testbed.report.terminal import print_summary


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the run's record instead of a table.")] = False,
) -> None:
    """Write report.html of a run folder again and print its table."""
    record = read_record(folder)
    try:
        page = write_report(folder)
    except PermissionError as error:
        raise PreflightError(
            f"{error.filename}: not permitted ({error.strerror}); run as the user whose folder it is"
        ) from error
    if as_json:
        typer.echo(record.model_dump_json(indent=1))
        return
    print_summary(record)
    typer.echo(f"report: {page}")
