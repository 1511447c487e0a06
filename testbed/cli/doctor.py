"""`testbed doctor`: try what the testbed needs and say which tier this host reaches."""

from __future__ import annotations

import json
import signal
from typing import Annotated

import typer

from testbed.cli.exits import Exit
from testbed.doctor.diagnose import diagnose
from testbed.doctor.findings import Check, Tier


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Answer with JSON.")] = False,
) -> None:
    """Try what a run needs, in throw-away namespaces, and say which tier this host reaches.

    Tiers: none (no network can be built), userspace (Open vSwitch's userspace datapath, zero link delays), kernel (the
    kernel's datapath, with propagation delays). Exit codes: 0 networks can be built here, 2 they cannot.
    """
    # An end by SIGTERM must unwind like Ctrl-C, or a probe's switch would outlive it for a moment.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    diagnosis = diagnose() if as_json else diagnose(_print_check)
    if as_json:
        typer.echo(json.dumps(diagnosis.to_dict(), indent=2))
    else:
        typer.echo(f"\ntier: {diagnosis.tier} ({diagnosis.tier.meaning})")
    if diagnosis.tier is Tier.NONE:
        raise typer.Exit(Exit.WRONG_COMMAND)


def _print_check(check: Check) -> None:
    typer.echo(f"{'ok' if check.ok else 'NO':3} {check.name:19} {check.detail}")
    if check.remedy is not None:
        typer.echo(f"{'':23} > {check.remedy}")
