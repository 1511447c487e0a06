"""Findings kept so that nobody can quietly change, drop, reorder or cut them off: a signed, hash-chained log.

One line is one entry, signed, which names its place and the SHA-256 of the line before it. Beside the log lies its
head, signed as well, which names how many lines there are and the last one's hash; without it a log cut off at the end
would look complete. Whoever cuts the log *and* brings back an old head can only be found out by someone who remembers a
later head, so `verify` takes one: give the head to those who rely on the log. What a finding means is not known here
(`testbed.audit.statements`).

Sources: https://github.com/secure-systems-lab/dsse for the signatures; RFC 6962, section 3.5, for the signed head.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from testbed.envelope import strict_json
from testbed.envelope.dsse import Sealed, seal
from testbed.envelope.errors import RefusedError
from testbed.envelope.fields import DIGEST, Problems, members, require_schema
from testbed.envelope.keys import PublicKey, SigningKey
from testbed.errors import TestbedError

ENTRY_TYPE = "application/vnd.tail-latency-finding+json"
HEAD_TYPE = "application/vnd.tail-latency-findings-head+json"
SCHEMA_VERSION = 1
GENESIS = "0" * 64
"""What the first entry names as the line before it."""

_MAX_LINE_BYTES = 1 << 20


class LedgerError(TestbedError):
    """A log of findings that cannot be continued."""


@dataclass(frozen=True, slots=True)
class Head:
    """How far a log reaches: what to remember of it.

    Attributes:
        entries: Number of lines.
        last: SHA-256 of the last line without its line break, `GENESIS` for none.
    """

    entries: int
    last: str


@dataclass(frozen=True, slots=True)
class LedgerReport:
    """What verification found.

    Attributes:
        head: As far as the log is intact.
        findings: The findings up to there, in order.
        unsealed: Entries after those that the head names, as after a crash while appending; signed and chained.
        problems: Everything that is wrong, in one sentence each; empty for an intact log.
        signers: Ids of the keys that signed the lines up to there and the head, or that these say they are signed by if
            signatures were not checked.
        signatures_checked: Whether signatures were checked. If not, anybody may have written the log.
    """

    head: Head
    findings: tuple[strict_json.Json, ...]
    unsealed: int
    problems: tuple[str, ...]
    signers: frozenset[str]
    signatures_checked: bool

    @property
    def intact(self) -> bool:
        """Whether nothing that was checked is wrong."""
        return not self.problems


def head_path(log: Path) -> Path:
    """Where the head of a log lies."""
    return log.with_name(log.name + ".head")


def require_appendable(log: Path) -> None:
    """See whether a finding could be added, before one is worked for. Nothing is written.

    Raises:
        LedgerError: The file or its folder cannot be written to, or the log cannot be continued.
    """
    if not log.parent.is_dir():
        raise LedgerError(f"{log}: there is no folder {log.parent}; make it, or name another log")
    if not os.access(log.parent, os.W_OK) or (log.exists() and not os.access(log, os.W_OK)):
        raise LedgerError(f"{log}: it cannot be written to; name a log in a folder that can")
    if log.exists():
        _continuable(log, _read(log))


def append(log: Path, finding: strict_json.Json, key: SigningKey) -> Head:
    """Add a finding to a log, which is created if there is none.

    The line is on disk before the head is, so a crash in between leaves a signed entry that the head does not name yet;
    the next entry seals both.

    Args:
        log: The file.
        finding: A statement of `testbed.audit.statements`.
        key: Signs the entry and the head; the same key as before, or one that the readers trust as well.

    Raises:
        LedgerError: The log on disk is not intact as far as its chain and head say, or cannot be written to.
        MalformedError: A finding that has no canonical form.
    """
    with _locked(log) as file:
        head = _continuable(log, file.read())
        document = {"schema": SCHEMA_VERSION, "sequence": head.entries, "previous": head.last, "finding": finding}
        line = seal(ENTRY_TYPE, document, [key])
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())
        head = Head(head.entries + 1, _digest(line))
        _write_head(log, head, key)
    return head


def verify(log: Path, keys: Mapping[str, PublicKey] | None, remembered: Head | None = None) -> LedgerReport:
    """Check every line, the chain and the head.

    Args:
        log: The file.
        keys: Trusted keys by key id. None to check no signature: that finds a log which was edited, shortened or
            reordered by whoever could not write chain and head anew, and does not tell who wrote it.
        remembered: A head seen earlier; the log must still contain it.

    Raises:
        LedgerError: There is no such file.
    """
    lines, torn = _lines(_read(log))
    findings, intact, problems = [], Head(0, GENESIS), []
    signers: set[str] = set()
    for number, line in enumerate(lines, start=1):
        try:
            sequence, previous, finding, signed_by = _entry(line, keys)
        except RefusedError as error:
            problems.append(f"line {number}: {error}")
            break
        if (sequence, previous) != (intact.entries, intact.last):
            problems.append(
                f"line {number}: it is entry {sequence} and follows {previous[:16]}..., expected entry "
                f"{intact.entries} following {intact.last[:16]}...; lines were removed, added or exchanged"
            )
            break
        findings.append(finding)
        signers |= signed_by
        intact = Head(number, _digest(line))
    if torn:
        problems.append(f"line {len(lines) + 1}: it has no line break; it was cut off, or is still being written")
    named, sealed_by, trouble = _read_head(log, keys)
    signers |= sealed_by
    problems += trouble
    digests = _digests(lines)
    for head, whose in ((named, "the signed head"), (remembered, "the remembered head")):
        if head is not None and not _contains(digests, head):
            problems.append(
                f"{whose} names {head.entries} entries ending in {head.last[:16]}..., the log has {len(lines)}; it was "
                "cut off or replaced"
            )
    unsealed = max(0, intact.entries - named.entries) if named is not None else 0
    return LedgerReport(intact, tuple(findings), unsealed, tuple(problems), frozenset(signers), keys is not None)


def _entry(line: bytes, keys: Mapping[str, PublicKey] | None) -> tuple[int, str, strict_json.Json, frozenset[str]]:
    """Place, what it follows, finding and signers of a line; without keys signatures are not checked."""
    sealed = Sealed.from_bytes(line, ENTRY_TYPE, max_bytes=_MAX_LINE_BYTES)
    if keys is not None:
        sealed.verify(keys)
    document = sealed.read("entry")
    require_schema(document, "entry", SCHEMA_VERSION)
    found = members(document, "entry", ("schema", "sequence", "previous", "finding"))
    return found["sequence"], found["previous"], found["finding"], frozenset(sealed.signatures)


def _write_head(log: Path, head: Head, key: SigningKey) -> None:
    """Replace the head in one step."""
    document = {"schema": SCHEMA_VERSION, "entries": head.entries, "last": head.last}
    target = head_path(log)
    partial = target.with_name(target.name + ".partial")
    with partial.open("wb") as file:
        file.write(seal(HEAD_TYPE, document, [key]))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)


def _read_head(log: Path, keys: Mapping[str, PublicKey] | None) -> tuple[Head | None, frozenset[str], list[str]]:
    """The head beside a log, its signers and what is wrong with it; without keys its signature is not checked."""
    path = head_path(log)
    try:
        sealed = Sealed.from_bytes(path.read_bytes(), HEAD_TYPE)
        if keys is not None:
            sealed.verify(keys)
        document = sealed.read("head")
        require_schema(document, "head", SCHEMA_VERSION)
        found = members(document, "head", ("schema", "entries", "last"))
        problems = Problems("head")
        problems.integer("entries", found["entries"], 0)
        problems.text("last", found["last"], DIGEST, "64 lower-case hexadecimal digits")
        problems.check()
    except OSError as error:
        why = f"{path}: {error.strerror}; without its signed head a log may have been cut off unnoticed"
        return None, frozenset(), [why]
    except RefusedError as error:
        return None, frozenset(), [f"{path}: {error}"]
    return Head(found["entries"], found["last"]), frozenset(sealed.signatures), []


def _continuable(log: Path, data: bytes) -> Head:
    """The head of a log that may go on."""
    lines, torn = _lines(data)
    head = Head(len(lines), _digest(lines[-1]) if lines else GENESIS)
    if torn:
        raise LedgerError(f"{log}: its last line has no end; verify the log, then remove that line to go on")
    if not lines and not head_path(log).exists():
        return head
    named, _, trouble = _read_head(log, None)
    if named is None:
        raise LedgerError(trouble)
    if not _contains(_digests(lines), named):
        raise LedgerError(
            f"{log}: its head names {named.entries} entries, found {head.entries} that end otherwise; it was cut off "
            "or edited, so nothing is added; verify it and restore a copy"
        )
    return head


def _read(log: Path) -> bytes:
    try:
        return log.read_bytes()
    except OSError as error:
        raise LedgerError(f"{log}: {error.strerror}; expected a log of findings") from error


def _lines(data: bytes) -> tuple[list[bytes], bool]:
    """Complete lines, and whether an incomplete one follows."""
    *lines, rest = data.split(b"\n")
    return lines, bool(rest)


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _digests(lines: list[bytes]) -> list[str]:
    """What a head names after each number of entries, from none on."""
    return [GENESIS, *map(_digest, lines)]


def _contains(digests: list[str], head: Head) -> bool:
    return head.entries < len(digests) and digests[head.entries] == head.last


@contextmanager
def _locked(log: Path) -> Iterator[BinaryIO]:
    """The log, open for appending by this process alone."""
    try:
        opened = log.open("a+b")
    except OSError as error:
        raise LedgerError(f"{log}: {error.strerror}; name a log in a folder that can be written to") from error
    with opened as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        yield file
