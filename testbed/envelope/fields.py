"""Reading and checking the fields of wire documents, all problems of one document at once.

Constructors call the checks, `from_dict` the readers. The module knows JSON shapes and ranges, not what they promise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, ClassVar, Self

from testbed.envelope.errors import MalformedError
from testbed.envelope.strict_json import MAX_INTEGER, Json

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,63}")
SENTENCE = re.compile(r"[ !#-\[\]-~]{1,160}")
DIGEST = re.compile(r"[0-9a-f]{64}")

ONE_IN_PPB = 1_000_000_000
ONE_IN_PPM = 1_000_000


class Record:
    """Mixin of flat wire objects: one JSON member for each field of the dataclass, under the field's name."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, document: Json) -> Self:
        """Inverse of `to_dict`; raises `MalformedError`."""
        return cls(**members(document, cls.__name__.lower(), cls.__dataclass_fields__))


class Problems:
    """Collects what is wrong with one object, then raises it all together.

    Args:
        of: What is being checked, for messages.
    """

    __slots__ = ("_found", "_of")

    def __init__(self, of: str) -> None:
        self._of = of
        self._found: list[str] = []

    def integer(self, name: str, value: object, low: int, high: int = MAX_INTEGER) -> None:
        """Demand a true integer (no bool) of a range."""
        if type(value) is not int or not low <= value <= high:
            self._found.append(f"{self._of}.{name}: found {value!r}, expected an integer from {low} to {high}")

    def text(self, name: str, value: object, pattern: re.Pattern[str], expected: str) -> None:
        """Demand text of a pattern."""
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            self._found.append(f"{self._of}.{name}: found {value!r:.80}, expected {expected}")

    def name(self, name: str, value: object) -> None:
        """Demand an identifier."""
        self.text(name, value, NAME, "1 to 64 letters, digits or . _ : / @ + -, beginning with a letter or digit")

    def kind(self, name: str, value: object, kind: type, *, optional: bool = False) -> None:
        """Demand an instance."""
        if not (isinstance(value, kind) or (optional and value is None)):
            self._found.append(f"{self._of}.{name}: found {type(value).__name__}, expected {kind.__name__}")

    def add(self, problem: str) -> None:
        """Note a complete sentence about a relation between fields."""
        self._found.append(f"{self._of}: {problem}")

    def __bool__(self) -> bool:
        return bool(self._found)

    def check(self) -> None:
        """Raise `MalformedError` with everything found, if anything was."""
        if self._found:
            raise MalformedError(self._found)


def members(document: Json, what: str, expected: Iterable[str]) -> dict[str, Any]:
    """The members of an object that has exactly the expected ones.

    A field that a reader does not know may be a restriction, so it is refused rather than skipped; a new field needs a
    new schema version.

    Raises:
        MalformedError: Not an object, or members missing or unknown.
    """
    wanted = set(expected)
    if not isinstance(document, dict):
        raise MalformedError(f"{what}: found {type(document).__name__}, expected an object of {sorted(wanted)}")
    if document.keys() != wanted:
        unknown, missing = sorted(document.keys() - wanted), sorted(wanted - document.keys())
        raise MalformedError(f"{what}: found unknown members {unknown} and missing members {missing}")
    return document


def require_schema(document: Json, what: str, version: int) -> None:
    """Demand the one schema version this reader knows, before complaining about members it does not.

    Raises:
        MalformedError: Another version, or none.
    """
    found = document.get("schema") if isinstance(document, dict) else None
    if type(found) is not int or found != version:
        raise MalformedError(f"{what}.schema: found {found!r}, expected {version}; another needs another reader")
