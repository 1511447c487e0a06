"""Registers the verbs and turns errors into one readable line each."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

import testbed
from testbed.cli import audit, envelope
from testbed.cli.bound import bound
from testbed.cli.clean import clean
from testbed.cli.compare import compare
from testbed.cli.doctor import doctor
from testbed.cli.exits import Exit, exit_of_error
from testbed.cli.experiment import experiment
from testbed.cli.plan import plan_verb
from testbed.cli.report import report
from testbed.cli.run import run
from testbed.cli.simulate import simulate
from testbed.cli.sweep import sweep
from testbed.cli.validate import validate
from testbed.errors import TestbedError

app = typer.Typer(
    name="testbed",
    help="Validate tail-latency promises on a real data plane: the analytical bound beside the measurement.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"testbed {testbed.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Validate tail-latency promises on a real data plane: the analytical bound beside the measurement.

    Exit codes: 0 PASS, 1 FAIL, 2 the command was wrong or cannot run here, 3 INVALID, 4 UNDETERMINED, 130 interrupted.
    """


for verb in (validate, run, simulate, sweep, experiment, bound, report, compare, doctor, clean):
    app.command()(verb)
app.command(name="plan")(plan_verb)
app.add_typer(audit.app, name="audit")
app.add_typer(envelope.app, name="envelope")


def main() -> None:
    """Entry point: run the verb, print each problem on a line of its own, exit as documented."""
    try:
        app(standalone_mode=True)
    except TestbedError as error:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        for problem in error.problems:
            console.print(f"testbed: {problem}", markup=False)
        sys.exit(exit_of_error(error))
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
