"""Words behind `testbed audit` as what they stand for: latencies, shares, promises, heads of logs and keys.

Whatever stands for nothing raises `typer.BadParameter`, which says what was expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import typer

from testbed.audit import ledger
from testbed.audit.record import Promise
from testbed.envelope.errors import RefusedError
from testbed.envelope.keys import PublicKey, SigningKey
from testbed.scenario.units import TIME, UnitError, parse

_LONGEST_S = 9_000_000
"""What whole nanoseconds in a signed finding can hold."""


def seconds_of(text: str) -> float:
    """A deadline: a quantity with its unit, or a bare number of seconds."""
    try:
        value = Fraction(text) if _is_number(text) else parse(text, TIME)
    except UnitError as error:
        raise typer.BadParameter(f"{text!r}: {error.remedy}") from error
    if not 0 < value < _LONGEST_S:
        raise typer.BadParameter(f"{text!r}: expected more than 0 s and less than {_LONGEST_S:,} s")
    return float(value)


def share_of(text: str) -> float:
    """A share of requests, more than none and less than all."""
    if _is_number(text) and 0 < Fraction(text) < 1:
        return float(Fraction(text))
    raise typer.BadParameter(f"{text!r}: expected a share between 0 and 1, such as 0.001")


def named_promise(text: str) -> tuple[str, Promise]:
    """A tenant and what it is promised."""
    tenant, named, terms = text.rpartition("=")
    deadline, _, share = terms.partition("@")
    if not (tenant and named and deadline and share):
        raise typer.BadParameter(f"{text!r}: expected TENANT=TIME@SHARE, such as alice=80ms@0.001")
    try:
        return tenant, Promise.rounded(seconds_of(deadline), share_of(share))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: {error}") from error


def head_of(text: str) -> ledger.Head:
    """The head of a log, as somebody wrote it down."""
    entries, _, last = text.partition(":")
    if not (entries.isdecimal() and len(last) == len(ledger.GENESIS) and set(last) <= set("0123456789abcdef")):
        raise typer.BadParameter(f"{text!r}: expected ENTRIES:SHA256 as `testbed audit verify` prints it")
    return ledger.Head(int(entries), last)


def promise_of(deadline_s: float | None, epsilon: float | None) -> Promise | None:
    """What two options promise together, None where neither is given; of a share left out, one in a thousand."""
    if deadline_s is None and epsilon is not None:
        raise typer.BadParameter("--epsilon is a share of requests that miss a --deadline; name that too")
    if deadline_s is None:
        return None
    try:
        return Promise.rounded(deadline_s, 0.001 if epsilon is None else epsilon)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def signing_key(path: Path | None) -> SigningKey | None:
    """The key in a file, None where none is named."""
    try:
        return None if path is None else SigningKey.load(path)
    except RefusedError as error:
        raise typer.BadParameter(str(error), param_hint="--sign") from error


def public_keys(paths: Sequence[Path]) -> dict[str, PublicKey]:
    """The keys in these files, by their ids."""
    try:
        keys = [PublicKey.load(path) for path in paths]
    except RefusedError as error:
        raise typer.BadParameter(str(error), param_hint="--key") from error
    return {key.key_id: key for key in keys}


def _is_number(text: str) -> bool:
    try:
        Fraction(text)
    except (ValueError, ZeroDivisionError):
        return False
    return True
