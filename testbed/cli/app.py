"""Registers the verbs and turns errors into one readable line each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

import testbed
from testbed.cli.exits import Exit, exit_of_error
from testbed.cli.machine_code import ensure_place
from testbed.errors import TestbedError

_VERBS = {
    "validate": "validate",
    "run": "run",
    "simulate": "simulate",
    "sweep": "sweep",
    "experiment": "experiment",
    "bound": "bound",
    "report": "report",
    "compare": "compare",
    "doctor": "doctor",
    "clean": "clean",
    "plan": "plan_verb",
    "audit": "app",
    "envelope": "app",
}
"""What carries a verb out, in the module of the same name: a function, or an application with verbs of its own."""


class _Verbs(TyperGroup):
    """Imports the module of a verb when it is wanted: a verb that needs no plots and no calculus answers at once."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - what it overrides has it
        """Names of the verbs, as the help lists them."""
        return list(_VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - what it overrides has it
        """The verb of this name, None if there is none."""
        if cmd_name not in _VERBS:
            # Among these the nearest is looked for, to be suggested.
            self.commands.update((name, TyperCommand(name)) for name in _VERBS)
            return None
        ensure_place()
        found = getattr(import_module(f"testbed.cli.{cmd_name}"), _VERBS[cmd_name])
        holder = typer.Typer(rich_markup_mode=None)
        if isinstance(found, typer.Typer):
            holder.add_typer(found, name=cmd_name)
        else:
            holder.command(name=cmd_name)(found)
        return typer.main.get_group(holder).commands[cmd_name]


app = typer.Typer(
    name="testbed",
    cls=_Verbs,
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


def main() -> None:
    """Entry point: run the verb, print each problem on a line of its own, exit as documented."""
    try:
        app(standalone_mode=True)
    except TestbedError as error:
        _print(error.problems)
        sys.exit(exit_of_error(error))
    except OSError as error:
        # What the host refuses is no broken promise, which the 1 of a traceback would say.
        _print([str(error)])
        sys.exit(Exit.WRONG_COMMAND)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)


def _print(problems: Sequence[str]) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for problem in problems:
        console.print(f"testbed: {problem}", markup=False)
