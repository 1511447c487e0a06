"""`testbed plan`: who would serve every intent of a federation, at what bound and price; nothing is changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from testbed.cli.kinds import require_intents
from testbed.management.plan_record import plan_record
from testbed.management.planner import Decision, plan
from testbed.report.terminal import milliseconds
from testbed.scenario.federation import Market
from testbed.scenario.market import load, schema_text

_PLAIN_WIDTH = 130


def plan_verb(
    file: Annotated[Path | None, typer.Argument(help="Federation file (YAML).", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer with JSON.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of federation files and exit.")
    ] = False,
) -> None:
    """Resolve every intent to a model, a site and reservations, or say what stands in the way; nothing is changed.

    Exit codes: 0 planned, refusals included; 2 the file is wrong.
    """
    if schema:
        typer.echo(schema_text(), nl=False)
        return
    if file is None:
        raise typer.BadParameter("name a federation file, or --schema", param_hint="FILE")
    require_intents(file)
    sold = load(file)
    decisions = plan(sold)
    if as_json:
        typer.echo(json.dumps(plan_record(sold, decisions), indent=1))
    else:
        _print(sold, decisions)


def _print(sold: Market, decisions: list[Decision]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    table = Table(title=f"{sold.name}: plan by the rule {sold.rule}", title_justify="left", header_style="bold")
    for heading in (
        "tenant",
        "model",
        "site",
        "by way of",
        "rate (Mbit/s)",
        "server",
        "bound (ms)",
        "deadline",
        "price",
    ):
        table.add_column(heading, justify="left" if heading in {"tenant", "model", "site", "by way of"} else "right")
    for intent, decision in zip(sold.intents, decisions, strict=True):
        if decision.route is None:
            table.add_row(decision.tenant, "refused")
            continue
        last = decision.purchases[-1] if decision.purchases else None
        table.add_row(
            decision.tenant,
            decision.route.model.name,
            decision.route.where,
            " > ".join(decision.route.domains),
            "–" if last is None else f"{last.rate_bps / 1e6:.3f}",
            "–" if last is None else f"{last.share_ppm / 1e4:.1f} %",
            "–" if decision.bound_s is None else milliseconds(decision.bound_s),
            milliseconds(intent.deadline_s),
            f"{decision.price:.3f}",
        )
    console.print(table)
    for decision in decisions:
        if decision.refusal is not None:
            console.print(f"{decision.tenant}: refused because of {decision.refusal.because}", markup=False)
        else:
            parts = " + ".join(f"{share.stage} {milliseconds(share.delay_s)}" for share in decision.budget)
            console.print(
                f"{decision.tenant}: {parts or 'nothing promised'} ({decision.method or 'no bound'})", markup=False
            )
