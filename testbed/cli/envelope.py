"""`testbed envelope`: keys, signatures and what a promise says. Refusals name their reason on standard error."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from testbed.cli.exits import Exit
from testbed.envelope.errors import MalformedError, RefusedError
from testbed.envelope.files import compose_files, issue_file, make_federation, read_root, read_unverified, verify_file
from testbed.envelope.summary import describe, describe_path
from testbed.envelope.units import unix_time

app = typer.Typer(no_args_is_help=True, help="Signed promises: make keys, sign, verify, show, compose.")

_DAY_S = 86_400


def _moment(text: str) -> float:
    try:
        return unix_time(text)
    except MalformedError as error:
        raise typer.BadParameter(str(error)) from error


_File = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Signed envelope.")]
_Now = Annotated[
    float | None,
    typer.Option(parser=_moment, metavar="TIME", help="Unix seconds or ISO 8601 with offset; default: this moment."),
]
_ROOT = typer.Option("--root", exists=True, dir_okay=False, help="Trust root; repeat for its successors, in order.")
_Roots = Annotated[list[Path] | None, _ROOT]
_Json = Annotated[bool, typer.Option("--json", help="Answer with JSON.")]


@contextmanager
def _refusals() -> Iterator[None]:
    """Say why something was refused, the reason's name first, and end with exit code 1."""
    try:
        yield
    except RefusedError as error:
        typer.echo(f"refused: {error.reason}: {error}", err=True)
        raise typer.Exit(Exit.FAIL) from error


@app.command()
def keygen(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder; its name is the default domain.")],
    *,
    domain: Annotated[list[str] | None, typer.Option(help="A domain; repeat for more.")] = None,
    federation: Annotated[str, typer.Option(help="Name of the federation.")] = "federation",
    days: Annotated[int, typer.Option(min=1, help="How long the root may be used.")] = 365,
    root_keys: Annotated[int, typer.Option(min=1, max=16, help="Keys that sign roots.")] = 1,
    threshold: Annotated[int, typer.Option(min=1, help="How many of them must sign.")] = 1,
    as_json: _Json = False,
) -> None:
    """Make keys for domains and the trust root that names them.

    Writes DIR/root.json (give it to everybody), DIR/root-N.key (keep offline) and DIR/DOMAIN.key and .pub. Private keys
    are readable by their owner only and never overwritten.
    """
    with _refusals():
        made = make_federation(
            folder,
            domain or [folder.resolve().name],
            federation=federation,
            not_after_s=int(time.time()) + days * _DAY_S,
            root_keys=root_keys,
            threshold=threshold,
        )
    if as_json:
        keys = {name: str(path) for name, path in made.domain_keys.items()}
        paths = {"root": str(made.root), "root_keys": [str(path) for path in made.root_keys], "domain_keys": keys}
        typer.echo(json.dumps(paths, indent=1))
        return
    typer.echo(f"trust root       {made.root}")
    for path in made.root_keys:
        typer.echo(f"key of the root  {path}")
    for name, path in made.domain_keys.items():
        typer.echo(f"key of {name:<9} {path}")


@app.command()
def issue(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Unsigned envelope, JSON.")],
    key: Annotated[list[Path], typer.Option(exists=True, dir_okay=False, help="Private key; repeat for more.")],
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="Where to write; default: standard output.")] = None,
) -> None:
    """Sign an envelope."""
    with _refusals():
        data = issue_file(file, key)
    if out is None:
        typer.echo(data, nl=False)
    else:
        out.write_bytes(data)


@app.command()
def verify(
    file: _File,
    root: Annotated[list[Path], _ROOT],
    now: _Now = None,
    memory: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Remember accepted versions here; refuse older and repeated ones."),
    ] = None,
) -> None:
    """Check an envelope: exit 0 accepted, 1 refused, with the reason's name on standard error."""
    with _refusals():
        envelope = verify_file(file, read_root(root), time.time() if now is None else now, memory)
    typer.echo(f"accepted: {envelope.domain} for {envelope.subject}, offer {envelope.version}, {envelope.digest}")


@app.command()
def show(file: _File, root: _Roots = None, now: _Now = None, as_json: _Json = False) -> None:
    """Say what an envelope promises; without --root it is not verified, and says so."""
    with _refusals():
        if root:
            envelope = verify_file(file, read_root(root), time.time() if now is None else now)
        else:
            envelope = read_unverified(file)
            _warn_unverified()
    typer.echo(json.dumps(envelope.to_dict(), indent=1) if as_json else "\n".join(describe(envelope)))


@app.command()
def compose(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Signed envelopes, in path order.")],
    root: _Roots = None,
    now: _Now = None,
    epsilon: Annotated[float, typer.Option(min=1e-9, max=0.5, help="Share of packets that may linger longer.")] = 1e-3,
    as_json: _Json = False,
) -> None:
    """Say what several envelopes promise end to end; without --root they are not verified."""
    with _refusals():
        path = compose_files(files, read_root(root) if root else None, time.time() if now is None else now)
        answer = json.dumps(path.to_dict(epsilon), indent=1) if as_json else "\n".join(describe_path(path, epsilon))
    if not root:
        _warn_unverified()
    typer.echo(answer)


def _warn_unverified() -> None:
    typer.echo("not verified: no --root was given", err=True)
