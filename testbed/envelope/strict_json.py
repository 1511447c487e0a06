"""JSON that has exactly one reading: canonical, integers only, bounded in size and depth.

Two readers that disagree about a duplicate key, a float's last digit or an escaped character would disagree about what
was signed. So every document here has one byte string: RFC 8785 restricted to what every JSON library agrees on, which
is printable ASCII without quotes or backslashes and integers of magnitude below 2^53. The module knows nothing of
signatures or envelopes.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from testbed.envelope.errors import MalformedError

MAX_BYTES = 16_384
"""A larger document is refused unread, unless its reader allows more."""

MAX_DEPTH = 12
"""Deeper nesting is refused before it is parsed."""

MAX_CONTAINERS = 4096
"""More objects and lists are refused before they are parsed."""

MAX_INTEGER = 2**53 - 1
"""Largest magnitude that every JSON reader keeps exactly."""

Json = Any
"""What `loads` returns: dict, list, str, int, bool or None, nested."""

_MAX_DIGITS = len(str(MAX_INTEGER))
_TEXT = re.compile(rb'"[^"]*"?')
_OPENING = b"[{"
_NOT_BRACKETS = bytes(code for code in range(256) if code not in b"[]{}")
_PLAIN_TEXT = re.compile(r"[ !#-\[\]-~]*")


def dumps(document: Json) -> bytes:
    """The canonical bytes of a document.

    Raises:
        MalformedError: The document holds something that has no canonical form here: a float, an integer beyond
            2^53 - 1, a key that is no string, or text with a quote, a backslash, or a character that is not printable
            ASCII.
    """
    _refuse_ambiguous(document)
    return _encode(document)


def loads(
    data: bytes, what: str, *, max_bytes: int = MAX_BYTES, max_containers: int = MAX_CONTAINERS, canonical: bool = True
) -> Json:
    """Read one document.

    Args:
        data: The bytes, all of them.
        what: What they claim to be, for messages.
        max_bytes: Largest size accepted.
        max_containers: Most objects and lists accepted.
        canonical: Whether the bytes must be the canonical ones; not for drafts that a person wrote.

    Raises:
        MalformedError: Too large or too deep, not JSON, a duplicate key, a float, NaN, an oversized integer, an
            escaped or non-ASCII character, or any other bytes than the canonical ones.
    """
    if len(data) > max_bytes:
        raise MalformedError(f"{what}: found {len(data)} bytes, expected at most {max_bytes}; it is refused unread")
    if (escape := data.find(b"\\")) >= 0:
        raise MalformedError(f"{what}: found an escape at byte {escape}; expected text that needs none")
    _refuse_deep(data, what, max_containers)
    try:
        document = _DECODER.decode(data.decode("ascii"))
    except UnicodeDecodeError as error:
        raise MalformedError(f"{what}: byte {error.start} is not ASCII; expected canonical JSON") from error
    except ValueError as error:
        raise MalformedError(f"{what}: {error}; expected canonical JSON of integers, strings and objects") from error
    if canonical and _encode(document) != data:
        raise MalformedError(
            f"{what}: these bytes are not the canonical form of their content; expected sorted keys and no white space"
        )
    return document


def _refuse_deep(data: bytes, what: str, max_containers: int) -> None:
    if data.count(b"{") + data.count(b"[") <= MAX_DEPTH:
        return
    brackets = _TEXT.sub(b"", data).translate(None, delete=_NOT_BRACKETS)
    if len(brackets) > 2 * max_containers:
        raise MalformedError(f"{what}: found {len(brackets)} brackets, expected at most {2 * max_containers}")
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in _OPENING else -1
        if depth > MAX_DEPTH:
            raise MalformedError(f"{what}: found objects nested deeper than {MAX_DEPTH}")


def _refuse_ambiguous(document: Json) -> None:
    """Raise for a document that could be written but would not be read back, or not by every reader."""
    stack = [document]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if not all(isinstance(key, str) for key in item):
                raise MalformedError(f"keys {list(item)!r}: expected text only")
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, list | tuple):
            stack.extend(item)
        elif isinstance(item, str):
            if _PLAIN_TEXT.fullmatch(item) is None:
                raise MalformedError(f"text {item!r}: expected printable ASCII without quotes or backslashes")
        elif item is not None and not isinstance(item, bool):
            if not isinstance(item, int):
                raise MalformedError(f"value {item!r} of type {type(item).__name__}: expected an integer")
            if abs(item) > MAX_INTEGER:
                raise MalformedError(f"value {item}: expected magnitude up to {MAX_INTEGER}")


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    document = dict(pairs)
    if len(document) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"duplicate key {twice!r}")
    return document


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS + 1 or abs(value := int(text)) > MAX_INTEGER:
        raise ValueError(f"integer of {len(text)} digits, expected magnitude up to {MAX_INTEGER}")
    return value


def _no_float(text: str) -> NoReturn:
    raise ValueError(f"found {text[:24]}, expected an integer")


def _encode(document: Json) -> bytes:
    return _ENCODER.encode(document).encode("ascii")


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_no_float, parse_constant=_no_float
)
