"""`testbed validate`: check a scenario file and say everything that is wrong with it, or what it amounts to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from testbed.cli.exits import Exit
from testbed.scenario import market, summary
from testbed.scenario.definition import schema_text
from testbed.scenario.dictionary import to_dict
from testbed.scenario.loader import load
from testbed.scenario.problems import ScenarioFileError


def validate(
    file: Annotated[Path | None, typer.Argument(help="Scenario or federation file (YAML).", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer with JSON.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of scenario files and exit.")] = False,
) -> None:
    """Check a scenario file; report everything that is wrong with it at once.

    Exit codes: 0 the scenario can be run as written, 2 it cannot.
    """
    if schema:
        typer.echo(schema_text(), nl=False)
        return
    if file is None:
        raise typer.BadParameter("name a scenario file, or --schema", param_hint="FILE")
    if as_json:
        _answer_in_json(file)
    elif market.is_market(file):
        typer.echo("\n".join(summary.market_lines(market.load(file))))
    else:
        typer.echo("\n".join(summary.lines(load(file))))


def _answer_in_json(file: Path) -> None:
    try:
        scenario = summary.market_record(market.load(file)) if market.is_market(file) else to_dict(load(file))
    except ScenarioFileError as error:
        problems = [
            {"file": str(found.file), "line": found.line, "where": found.where, "message": found.message}
            for found in error.findings
        ]
        typer.echo(json.dumps({"ok": False, "problems": problems}, indent=2))
        raise typer.Exit(Exit.WRONG_COMMAND) from error
    typer.echo(json.dumps({"ok": True, "problems": [], "scenario": scenario}, indent=2))
