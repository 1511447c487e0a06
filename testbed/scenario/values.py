"""The values a file format is made of: each kind checks a node of a document and describes itself.

One definition therefore serves both readers of a scenario: the loader, through `check`, and editors, through `schema`
(JSON Schema draft 2020-12). A schema cannot say everything `check` knows (ranges of quantities), but whatever it
refuses is refused by `check` too. Mappings and lists of them are `testbed.scenario.fields`'.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, Protocol

from testbed.scenario import units
from testbed.scenario.document import Node, Scalar, Sequence, describe
from testbed.scenario.problems import Report, did_you_mean
from testbed.scenario.units import Dimension

NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
"""What may become part of an interface, a file name and a terminal column."""


class _Unusable:
    """The type of `UNUSABLE`."""

    def __repr__(self) -> str:
        return "UNUSABLE"


UNUSABLE = _Unusable()
"""What `check` returns for a value that is wrong; the reason is in the report."""


class Kind(Protocol):
    """A kind of value."""

    @property
    def expected(self) -> str:
        """What messages say should stand there."""

    def check(self, node: Node, where: str, report: Report) -> Any:
        """Value of `node`, or `UNUSABLE` with the reason in `report`."""

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the values `check` may accept."""


@dataclass(frozen=True)
class Name:
    """An identifier that may become part of an interface, a file name and a terminal column."""

    expected: str = "a name of lower-case letters, digits and hyphens that starts with a letter, at most 31 characters"

    def check(self, node: Node, where: str, report: Report) -> Any:
        """The name."""
        if isinstance(node, Scalar) and node.kind == "text" and NAME.fullmatch(node.text):
            return node.text
        suggestion = re.sub(r"[^a-z0-9]+", "-", node.text.lower()).strip("-") if isinstance(node, Scalar) else ""
        remedy = f"did you mean {suggestion}?" if NAME.fullmatch(suggestion) else "choose such a name"
        return refuse(node, where, report, self.expected, remedy)

    def schema(self) -> dict[str, Any]:
        """A string with a pattern."""
        return {"type": "string", "pattern": f"^{NAME.pattern}$"}


@dataclass(frozen=True)
class Text:
    """A text of any content, such as a path."""

    expected: str

    def check(self, node: Node, where: str, report: Report) -> Any:
        """The text."""
        if isinstance(node, Scalar) and node.kind == "text" and node.text.strip():
            return node.text
        return refuse(node, where, report, self.expected, "write it as text")

    def schema(self) -> dict[str, Any]:
        """A string."""
        return {"type": "string", "minLength": 1}


@dataclass(frozen=True)
class Names:
    """A list of identifiers, each once."""

    what: str
    most: int

    @property
    def expected(self) -> str:
        """The number of entries."""
        return f"a list of 1 to {self.most} names of {self.what}s"

    def check(self, node: Node, where: str, report: Report) -> Any:
        """A tuple of (name, line); UNUSABLE if one of them is no name."""
        if not isinstance(node, Sequence) or not 0 < len(node.items) <= self.most:
            return refuse(node, where, report, self.expected, "write them in brackets, with commas between")
        names = [(Name().check(item, where, report), item.line) for item in node.items]
        return UNUSABLE if any(name is UNUSABLE for name, _ in names) else tuple(names)

    def schema(self) -> dict[str, Any]:
        """An array of names."""
        return {"type": "array", "minItems": 1, "maxItems": self.most, "items": Name().schema(), "uniqueItems": True}


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    @property
    def expected(self) -> str:
        """The words."""
        return "one of " + ", ".join(self.words)

    def check(self, node: Node, where: str, report: Report) -> Any:
        """The word."""
        if isinstance(node, Scalar) and node.text in self.words:
            return node.text
        written = node.text if isinstance(node, Scalar) else ""
        return refuse(node, where, report, self.expected, did_you_mean(written, self.words, "choose one of these"))

    def schema(self) -> dict[str, Any]:
        """An enumeration."""
        return {"enum": list(self.words)}


@dataclass(frozen=True)
class Boolean:
    """True or false."""

    expected: str = "true or false"

    def check(self, node: Node, where: str, report: Report) -> Any:
        """The truth value."""
        if isinstance(node, Scalar) and node.kind == "boolean" and node.text.lower() in {"true", "false"}:
            return node.text.lower() == "true"
        return refuse(node, where, report, self.expected, "write true or false, without quotes")

    def schema(self) -> dict[str, Any]:
        """A boolean."""
        return {"type": "boolean"}


@dataclass(frozen=True)
class Number:
    """A number without a dimension.

    Attributes:
        what: What messages call it.
        smallest: Least allowed value.
        largest: Greatest allowed value.
        whole: Whether only integers are meant.
        remedy: What to do about a value out of range.
    """

    what: str
    smallest: float
    largest: float
    whole: bool = False
    remedy: str = "choose a value in this range"

    @property
    def expected(self) -> str:
        """The range."""
        return f"{self.what} from {self.smallest:g} to {self.largest:{'d' if self.whole else 'g'}}"

    def check(self, node: Node, where: str, report: Report) -> Any:
        """An int where `whole`, else a float."""
        kinds = ("integer",) if self.whole else ("integer", "number")
        if not isinstance(node, Scalar) or node.kind not in kinds:
            return refuse(node, where, report, self.expected, "write a plain number, without quotes or a unit")
        try:
            value = Decimal(node.text)
        except InvalidOperation:
            return refuse(node, where, report, self.expected, "write it in decimal digits")
        if not self.smallest <= value <= self.largest:
            return refuse(node, where, report, self.expected, self.remedy)
        return int(value) if self.whole else float(value)

    def schema(self) -> dict[str, Any]:
        """A number with its range."""
        kind = "integer" if self.whole else "number"
        return {"type": kind, "minimum": self.smallest, "maximum": self.largest}


@dataclass(frozen=True)
class Numbers:
    """A list of numbers without a dimension."""

    number: Number
    most: int

    @property
    def expected(self) -> str:
        """The number of entries, and what each is."""
        return f"a list of 1 to {self.most} numbers, each {self.number.expected}"

    def check(self, node: Node, where: str, report: Report) -> Any:
        """A tuple; UNUSABLE if one of them is no such number."""
        if not isinstance(node, Sequence) or not 0 < len(node.items) <= self.most:
            return refuse(node, where, report, self.expected, "write them in brackets, with commas between")
        numbers = tuple(self.number.check(item, where, report) for item in node.items)
        return UNUSABLE if any(number is UNUSABLE for number in numbers) else numbers

    def schema(self) -> dict[str, Any]:
        """An array of numbers."""
        return {"type": "array", "minItems": 1, "maxItems": self.most, "items": self.number.schema()}


@dataclass(frozen=True)
class Quantity:
    """A number with a unit.

    Attributes:
        dimension: Its dimension.
        smallest: Least allowed value in the base unit.
        largest: Greatest allowed value in the base unit.
        multiple_of: Smallest step in the base unit, None for any value.
        why: Reason for the step, a clause.
    """

    dimension: Dimension
    smallest: Fraction
    largest: Fraction
    multiple_of: int | None = None
    why: str = ""

    @property
    def expected(self) -> str:
        """The dimension, with an example."""
        return f"{self.dimension.name} with its unit, such as {self.dimension.example}"

    def check(self, node: Node, where: str, report: Report) -> Any:
        """A `Fraction` in the base unit of the dimension."""
        if not isinstance(node, Scalar) or node.kind in {"boolean", "nothing"}:
            return refuse(node, where, report, self.expected, "write a number and a unit")
        try:
            value = units.parse(node.text, self.dimension)
        except units.UnitError as error:
            return refuse(node, where, report, self.expected, error.remedy)
        return self._within(value, node, where, report)

    def _within(self, value: Fraction, node: Node, where: str, report: Report) -> Any:
        if not self.smallest <= value <= self.largest:
            low, high = (units.quantity(limit, self.dimension) for limit in (self.smallest, self.largest))
            expected = f"{self.dimension.name} from {low} to {high}"
            return refuse(node, where, report, expected, "choose a value in this range")
        if self.multiple_of is not None and value % self.multiple_of:
            below = value - value % self.multiple_of
            near = below if below >= self.smallest else below + self.multiple_of
            step = units.quantity(self.multiple_of, self.dimension)
            expected = f"a whole multiple of {step}, because {self.why}"
            return refuse(node, where, report, expected, f"write {units.quantity(near, self.dimension)}")
        return value

    def schema(self) -> dict[str, Any]:
        """A string with a pattern."""
        return {"type": "string", "pattern": self.dimension.pattern, "examples": [self.dimension.example]}


@dataclass(frozen=True)
class ArrivalRate:
    """A mean rate written in bits or in packets; `check` returns (dimension, value)."""

    bits: Quantity
    packets: Quantity

    @property
    def expected(self) -> str:
        """Both ways of writing it."""
        return f"{self.bits.expected} or {self.packets.dimension.example}"

    def check(self, node: Node, where: str, report: Report) -> Any:
        """The dimension found and the value in its base unit."""
        in_packets = isinstance(node, Scalar) and re.search(r"(packet|request)s?|[pr]ps", node.text)
        kind = self.packets if in_packets else self.bits
        value = kind.check(node, where, report)
        return UNUSABLE if value is UNUSABLE else (kind.dimension, value)

    def schema(self) -> dict[str, Any]:
        """Either of the two patterns."""
        return {"anyOf": [self.bits.schema(), self.packets.schema()]}


def refuse(node: Node, where: str, report: Report, expected: str, remedy: str) -> Any:
    """Report what was found instead of what is expected; the value that `check` returns then."""
    report.add(node.line, where, found=describe(node), expected=expected, remedy=remedy)
    return UNUSABLE
