"""`testbed audit`: promises judged from latencies, findings signed, logs of findings checked and computed again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from testbed.audit import ledger
from testbed.audit.evidence import read_evidence
from testbed.audit.findings import Outcome, recompute, run_statements, table_statements
from testbed.audit.folder import audit_evidence
from testbed.audit.record import Promise
from testbed.audit.sequential import Alarm, Monitor
from testbed.audit.stream import Watch
from testbed.audit.table import audit_rows, read_series
from testbed.cli.audit_options import head_of, named_promise, promise_of, public_keys, seconds_of, share_of, signing_key
from testbed.cli.exits import Exit, exit_of_verdict
from testbed.cli.pictures import require_folder
from testbed.envelope.keys import SigningKey
from testbed.report.audit_section import run_sections, table_sections, write_page
from testbed.report.audit_terminal import print_run_audit, print_table_audit
from testbed.report.record import read_record

LOG_NAME = "findings.log"


class _JudgeByDefault(TyperGroup):
    """`testbed audit FILE` is `testbed audit judge FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the verb in where the first word is no verb."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["judge", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_JudgeByDefault,
    no_args_is_help=True,
    help="Judge promises from latencies: testbed audit RUN|FILE [OPTIONS] is short for testbed audit judge.",
)


_Json = Annotated[bool, typer.Option("--json", help="Answer with JSON.")]
_Log = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Log of findings.")]
_Keys = Annotated[
    list[Path], typer.Option("--key", exists=True, dir_okay=False, help="Public key of the auditor; repeat for more.")
]


@app.command()
def judge(
    source: Annotated[Path, typer.Argument(metavar="RUN|FILE", help="Folder of a run, or a CSV or Parquet file.")],
    *,
    deadline: Annotated[
        float | None,
        typer.Option(parser=seconds_of, metavar="TIME", help="Promised latency of a FILE: 80ms, or 0.08 in seconds."),
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(parser=share_of, metavar="SHARE", help="Promised largest share of misses; default: 0.001."),
    ] = None,
    as_json: _Json = False,
    full: Annotated[bool, typer.Option("--full", help="With --json: everything that is known of a FILE.")] = False,
    sign: Annotated[
        Path | None,
        typer.Option(metavar="KEY", exists=True, dir_okay=False, help="Sign the findings and append them to the log."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="PAGE", dir_okay=False, help="Write a page with plots as well."),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help=f"With --sign: the log; default: {LOG_NAME} in RUN, or beside FILE."),
    ] = None,
) -> None:
    """Judge promises from latencies, with limits that know how misses cling together.

    A FILE has a column latency_s (seconds; empty: never answered) and may have time_s, run, tenant and domain_NAME_s.
    A RUN brings its promises along. Exit codes: 0 PASS, 1 FAIL, 2 the command or the file is wrong, 3 the run is
    INVALID, 4 UNDETERMINED; 0 also where nothing was judged: NONE without a promise, EXCUSED where every tenant that
    has one broke its own contract.
    """
    key = signing_key(sign)
    log = _log(source, log, key)
    if html is not None:
        require_folder(html, "--html")
    if source.is_dir():
        if deadline is not None or epsilon is not None:
            raise typer.BadParameter("a run has promises of its own; --deadline and --epsilon are for a FILE")
        evidence = read_evidence(source)
        run = audit_evidence(evidence)
        if as_json:
            typer.echo(json.dumps(run.to_dict(), indent=1, allow_nan=False))
        else:
            print_run_audit(run)
        if html is not None:
            write_page(html, f"run {run.run_id}", run.verdict, run_sections(evidence, run))
        _append(log, run_statements(evidence), key)
        raise typer.Exit(exit_of_verdict(run.verdict))
    promise = promise_of(deadline, epsilon)
    if key is not None and promise is None:
        raise typer.BadParameter("without --deadline there is no finding to sign")
    series = tuple(read_series(source))
    table = audit_rows(series, promise)
    if as_json:
        typer.echo(json.dumps(table.to_dict() if full else table.answer(), indent=1, allow_nan=False))
    else:
        print_table_audit(source.name, table)
    if html is not None:
        write_page(html, source.name, str(table.verdict or "NONE"), table_sections(source.name, series, table))
    if promise is not None:
        _append(log, table_statements(source, promise), key)
    raise typer.Exit(exit_of_verdict(table.verdict or "NONE"))


@app.command()
def watch(
    source: Annotated[
        typer.FileText,
        typer.Argument(
            metavar="FILE", help="One latency a line, or a table with latency_s and tenant; - is standard input."
        ),
    ],
    *,
    deadline: Annotated[
        float | None,
        typer.Option(parser=seconds_of, metavar="TIME", help="Latency promised to every tenant not named otherwise."),
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(
            parser=share_of,
            metavar="SHARE",
            help="With --deadline: promised largest share of misses, at most 0.1; default: 0.001.",
        ),
    ] = None,
    promise: Annotated[
        list[str] | None,
        typer.Option(metavar="TENANT=TIME@SHARE", help="Promise to one tenant; repeat for more."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="RUN", exists=True, file_okay=False, help="Take the promises of this run's tenants."),
    ] = None,
    false_alarms: Annotated[
        float,
        typer.Option(
            parser=share_of, metavar="SHARE", help="Largest probability of ever alarming falsely of a tenant."
        ),
    ] = 0.05,
    as_json: _Json = False,
) -> None:
    """Watch a stream and alarm as soon as it refutes a promise, with a stated probability of a false alarm.

    An empty latency was never answered. A stream without tenants ends with its alarm; of several tenants each is
    watched until its own. No certificate is given: that nothing was found is no proof. Exit codes: 0 the stream ended
    without an alarm, 1 alarm, 2 the command or a line is wrong.
    """
    promises = (_promises_of(run) if run is not None else {}) | dict(map(named_promise, promise or ()))
    otherwise = promise_of(deadline, epsilon)
    if not promises and otherwise is None:
        raise typer.BadParameter("nothing to watch for; name a --deadline, a --promise, or a --run that promised")
    try:
        watched = Watch(promises, otherwise, false_alarms)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    for tenant, alarm in watched.follow(source):
        # At once, and not in the middle of a document: the stream may have no end.
        typer.echo(_alarmed(tenant, alarm), err=as_json)
    several = None not in watched.monitors
    if as_json:
        found = {str(tenant): _watched(monitor) for tenant, monitor in watched.monitors.items()}
        rates = {
            "false_alarm_rate": false_alarms,
            "family_false_alarm_rate": watched.family_false_alarm_rate,
            "unwatched": watched.unwatched,
        }
        typer.echo(json.dumps({"tenants": found} | rates if several else found["None"], indent=1))
    else:
        for tenant, monitor in watched.monitors.items():
            if monitor.alarm is None:
                evidence = f"evidence {monitor.evidence:.3g} of {1 / false_alarms:.3g}"
                who = "" if tenant is None else f"{tenant}: "
                typer.echo(f"{who}no alarm in {monitor.samples} samples; {evidence}")
        if several:
            count = len(watched.monitors)
            typer.echo(
                f"false alarms: with probability at most {false_alarms:g} about each tenant, "
                f"{watched.family_false_alarm_rate:g} about any of {count}"
            )
        if watched.unwatched:
            typer.echo(f"{watched.unwatched} samples are of tenants to whom nothing is promised")
    alarms = [monitor.alarm for monitor in watched.monitors.values() if monitor.alarm is not None]
    raise typer.Exit(Exit.FAIL if alarms else Exit.PASS)


@app.command()
def verify(
    log: _Log,
    *,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            "--key",
            exists=True,
            dir_okay=False,
            help="Public key of the auditor; repeat for more. Without: no signature is checked, and that is said.",
        ),
    ] = None,
    head: Annotated[
        ledger.Head | None,
        typer.Option(
            parser=head_of, metavar="ENTRIES:SHA256", help="A head seen earlier; the log must still contain it."
        ),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Detect edits, deletions, reordering and truncation of a log of findings.

    Remember the head that is printed: whoever cuts the log and restores an old head can only be found out by it.
    Without --key places, hashes and counts are checked and no signature: whoever can write both the log and its head
    could have written all of it anew. Exit codes: 0 what was checked is intact, 1 it is not.
    """
    found = ledger.verify(log, public_keys(key) if key else None, head)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "intact": found.intact,
                    "signatures_checked": found.signatures_checked,
                    "signers": sorted(found.signers),
                    "entries": found.head.entries,
                    "last": found.head.last,
                    "unsealed": found.unsealed,
                    "problems": list(found.problems),
                    "findings": list(found.findings),
                },
                indent=1,
            )
        )
    else:
        unproven = "" if found.signatures_checked else "; signatures NOT checked"
        typer.echo(f"{'intact' if found.intact else 'NOT INTACT'}: {found.head.entries} findings{unproven}")
        typer.echo(f"head: {found.head.entries}:{found.head.last}")
        if found.unsealed:
            typer.echo(f"the last {found.unsealed} are signed and chained, and not yet named by the head")
        if not found.signatures_checked:
            typer.echo(f"it says that it is signed by: {', '.join(sorted(found.signers)) or 'nobody'}")
            typer.echo("not proven: who wrote it; name the auditor's public key with --key")
    for problem in found.problems:
        typer.echo(f"testbed: {log}: {problem}", err=True)
    raise typer.Exit(Exit.PASS if found.intact else Exit.FAIL)


@app.command(name="recompute")
def recompute_(
    log: _Log,
    source: Annotated[Path, typer.Argument(metavar="RUN|FILE", exists=True, help="The evidence.")],
    key: _Keys,
    *,
    as_json: _Json = False,
) -> None:
    """Compute the findings of a log again from the evidence and compare them byte for byte.

    Findings that rest on other evidence are named and left out. Exit codes: 0 all that rest on this evidence are the
    same, 1 one differs, none rests on it, or the log is not intact.
    """
    found = ledger.verify(log, public_keys(key))
    for problem in found.problems:
        typer.echo(f"testbed: {log}: {problem}", err=True)
    again = recompute(found.findings, read_evidence(source) if source.is_dir() else source)
    if as_json:
        lines = [{"line": item.line, "about": item.about, "outcome": str(item.outcome)} for item in again]
        typer.echo(json.dumps({"intact": found.intact, "findings": lines}, indent=1))
    else:
        for item in again:
            typer.echo(f"{item.outcome:<9} line {item.line}: {item.about}")
    outcomes = {item.outcome for item in again}
    if Outcome.SAME not in outcomes and Outcome.DIFFERS not in outcomes:
        typer.echo(f"testbed: no finding of {log} rests on {source} as it is", err=True)
    agreed = found.intact and Outcome.SAME in outcomes and Outcome.DIFFERS not in outcomes
    raise typer.Exit(Exit.PASS if agreed else Exit.FAIL)


def _promises_of(run: Path) -> dict[str, Promise]:
    return {
        tenant.name: Promise.rounded(tenant.deadline_s, tenant.epsilon)
        for tenant in read_record(run).tenants
        if tenant.deadline_s is not None and tenant.epsilon is not None
    }


def _alarmed(tenant: str | None, alarm: Alarm) -> str:
    who = "" if tenant is None else f" about {tenant}"
    return (
        f"ALARM{who} at sample {alarm.sample}, {alarm.misses} misses so far. Refuted: {alarm.null}. "
        f"This is false with probability at most {alarm.false_alarm_rate:g}."
    )


def _watched(monitor: Monitor) -> dict[str, Any]:
    return {
        "samples": monitor.samples,
        "evidence": monitor.evidence,
        "memory": monitor.memory,
        "alarm": asdict(monitor.alarm) if monitor.alarm else None,
    }


def _log(source: Path, named: Path | None, key: SigningKey | None) -> Path:
    """Where findings are signed to; that it can be is known before anything is judged."""
    if key is None and named is not None:
        raise typer.BadParameter("a log holds signed findings; name the --sign KEY too", param_hint="--log")
    log = named or (source / LOG_NAME if source.is_dir() else source.with_name(LOG_NAME))
    if key is not None:
        ledger.require_appendable(log)
    return log


def _append(log: Path, statements: Iterable[Any], key: SigningKey | None) -> None:
    if key is None:
        return
    head = None
    for statement in statements:
        head = ledger.append(log, statement, key)
    if head is None:
        typer.echo("nothing to sign: no promise could be judged", err=True)
    else:
        typer.echo(f"signed: {log}, head {head.entries}:{head.last}", err=True)
