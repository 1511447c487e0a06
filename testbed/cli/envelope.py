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
from testbed.envelope.files import (
    compose_files,
    cosign_file,
    issue_file,
    make_federation,
    read_root,
    read_unverified,
    rotate_file,
    verify_file,
)
from testbed.envelope.summary import describe, describe_path
from testbed.envelope.units import unix_time
from testbed.management.compute_envelope import calibrate_files

app = typer.Typer(no_args_is_help=True, help="Signed promises: keys, calibration, signing, verification, composition.")

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
_Keys = Annotated[list[Path], typer.Option("--key", exists=True, dir_okay=False, help="Private key; repeat for more.")]
_Out = Annotated[Path | None, typer.Option(dir_okay=False, help="Where to write; default: standard output.")]
_Json = Annotated[bool, typer.Option("--json", help="Answer with JSON.")]


@contextmanager
def _refusals() -> Iterator[None]:
    """Say why something was refused, the reason's name first, and end with 1; with 2 where a file cannot be used."""
    try:
        yield
    except RefusedError as error:
        typer.echo(f"refused: {error.reason}: {error}", err=True)
        raise typer.Exit(Exit.FAIL) from error
    except OSError as error:
        typer.echo(f"{error.filename}: {error.strerror}; name a file that can be written", err=True)
        raise typer.Exit(Exit.WRONG_COMMAND) from error


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

    Writes DIR/root.json (give it to everybody), DIR/root-N.key (keep offline) and DIR/DOMAIN.key, each with its .pub.
    Private keys are readable by their owner only and never overwritten.
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
    key: _Keys,
    out: _Out = None,
) -> None:
    """Sign an envelope."""
    with _refusals():
        data = issue_file(file, key)
    _write(data, out)


@app.command()
def calibrate_compute(
    record: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Record of a sender of requests.")],
    key: _Keys,
    *,
    held_out: Annotated[list[Path], typer.Option(exists=True, dir_okay=False, help="Another run; repeat for more.")],
    domain: Annotated[str, typer.Option(help="Who promises.")],
    tenant: Annotated[str, typer.Option(help="To whom.")],
    model: Annotated[str, typer.Option(help="For which model.")],
    capacity: Annotated[float, typer.Option(min=1e-6, help="The tenant's share times the number of workers.")],
    days: Annotated[int, typer.Option(min=1, help="How long the promise may be used.")] = 30,
    out: _Out = None,
) -> None:
    """Promise what an inference server was measured to do, if no other run contradicts it, and sign."""
    with _refusals():
        data = calibrate_files(
            record,
            held_out,
            key,
            now_s=time.time(),
            days=days,
            domain=domain,
            tenant=tenant,
            model=model,
            capacity=capacity,
        )
    _write(data, out)


@app.command()
def cosign(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Signed envelope or root.")],
    key: _Keys,
    out: _Out = None,
) -> None:
    """Add signatures to an envelope or a root whose keys are not in one place."""
    with _refusals():
        data = cosign_file(file, key)
    _write(data, out)


@app.command()
def rotate(
    root: Annotated[list[Path], _ROOT],
    key: _Keys,
    *,
    domain: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PUB", help="Key of a domain; repeat for all keys it has from now on."),
    ] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A domain that leaves.")] = None,
    root_key: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, help="Public key that signs roots from now on.")
    ] = None,
    threshold: Annotated[int | None, typer.Option(min=1, help="How many of them must sign.")] = None,
    days: Annotated[int, typer.Option(min=1, help="How long the next root may be used.")] = 365,
    out: _Out = None,
) -> None:
    """Make the next trust root: change keys, add and remove domains.

    Readers follow it once a threshold of the present root's keys and of its own have signed: see cosign.
    """
    with _refusals():
        data = rotate_file(
            root,
            key,
            not_after_s=int(time.time()) + days * _DAY_S,
            root_keys=root_key or [],
            threshold=threshold,
            domains=[_domain_key(text) for text in domain or []],
            removed=remove or [],
        )
    _write(data, out)


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


def _domain_key(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise typer.BadParameter(f"{text!r}: expected NAME=FILE.pub", param_hint="--domain")
    return name, Path(path)


def _write(data: bytes, out: Path | None) -> None:
    """The exact bytes: a newline more would be refused."""
    if out is None:
        typer.echo(data, nl=False)
    else:
        with _refusals():
            out.write_bytes(data)


def _warn_unverified() -> None:
    typer.echo("not verified: no --root was given", err=True)
