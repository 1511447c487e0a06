"""The vocabulary a file format is defined in: every kind of value checks a node of a document and describes itself.

One definition therefore serves both readers of a scenario: the loader, through `check`, and editors, through `schema`
(JSON Schema draft 2020-12). A schema cannot say everything `check` knows (ranges of quantities, rules between values),
but whatever it refuses is refused by `check` too. Rules between several values are `testbed.scenario.rules`'.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, Protocol

from testbed.scenario import units
from testbed.scenario.document import Mapping, Node, Scalar, Sequence, describe
from testbed.scenario.problems import Report, did_you_mean
from testbed.scenario.units import Dimension

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")


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
        if isinstance(node, Scalar) and node.kind == "text" and _NAME.fullmatch(node.text):
            return node.text
        suggestion = re.sub(r"[^a-z0-9]+", "-", node.text.lower()).strip("-") if isinstance(node, Scalar) else ""
        remedy = f"did you mean {suggestion}?" if _NAME.fullmatch(suggestion) else "choose such a name"
        return _refuse(node, where, report, self.expected, remedy)

    def schema(self) -> dict[str, Any]:
        """A string with a pattern."""
        return {"type": "string", "pattern": f"^{_NAME.pattern}$"}


@dataclass(frozen=True)
class Text:
    """A text of any content, such as a path."""

    expected: str

    def check(self, node: Node, where: str, report: Report) -> Any:
        """The text."""
        if isinstance(node, Scalar) and node.kind == "text" and node.text.strip():
            return node.text
        return _refuse(node, where, report, self.expected, "write it as text")

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
            return _refuse(node, where, report, self.expected, "write them in brackets, with commas between")
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
        return _refuse(node, where, report, self.expected, did_you_mean(written, self.words, "choose one of these"))

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
        return _refuse(node, where, report, self.expected, "write true or false, without quotes")

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
            return _refuse(node, where, report, self.expected, "write a plain number, without quotes or a unit")
        try:
            value = Decimal(node.text)
        except InvalidOperation:
            return _refuse(node, where, report, self.expected, "write it in decimal digits")
        if not self.smallest <= value <= self.largest:
            return _refuse(node, where, report, self.expected, self.remedy)
        return int(value) if self.whole else float(value)

    def schema(self) -> dict[str, Any]:
        """A number with its range."""
        kind = "integer" if self.whole else "number"
        return {"type": kind, "minimum": self.smallest, "maximum": self.largest}


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
            return _refuse(node, where, report, self.expected, "write a number and a unit")
        try:
            value = units.parse(node.text, self.dimension)
        except units.UnitError as error:
            return _refuse(node, where, report, self.expected, error.remedy)
        return self._within(value, node, where, report)

    def _within(self, value: Fraction, node: Node, where: str, report: Report) -> Any:
        if not self.smallest <= value <= self.largest:
            low, high = (units.quantity(limit, self.dimension) for limit in (self.smallest, self.largest))
            expected = f"{self.dimension.name} from {low} to {high}"
            return _refuse(node, where, report, expected, "choose a value in this range")
        if self.multiple_of is not None and value % self.multiple_of:
            below = value - value % self.multiple_of
            near = below if below >= self.smallest else below + self.multiple_of
            step = units.quantity(self.multiple_of, self.dimension)
            expected = f"a whole multiple of {step}, because {self.why}"
            return _refuse(node, where, report, expected, f"write {units.quantity(near, self.dimension)}")
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


@dataclass(frozen=True)
class Field:
    """One key of a mapping.

    Attributes:
        key: As written in the file.
        kind: What its value may be.
        help: One or two sentences for the reader of the schema.
        required: Whether leaving it out is an error.
        default: How the file would write the value it has when left out, for the reader of the schema.
    """

    key: str
    kind: Kind
    help: str
    required: bool = False
    default: object = None


@dataclass(frozen=True)
class Section:
    """A checked mapping.

    Attributes:
        where: What messages call it.
        line: Line it starts in.
        values: Usable values by key.
        lines: Lines of all keys written, usable or not.
        unusable: Keys whose value is wrong or missing though required.
    """

    where: str
    line: int
    values: MappingType[str, Any]
    lines: MappingType[str, int]
    unusable: frozenset[str]

    def get(self, key: str, default: Any = None) -> Any:
        """Value of `key`, `default` where it was left out or is unusable."""
        return self.values.get(key, default)

    def line_of(self, key: str) -> int:
        """Line of `key`, or of the section where it was left out."""
        return self.lines.get(key, self.line)

    def settled(self, *keys: str) -> bool:
        """Whether each of `keys` is usable or was properly left out."""
        return self.unusable.isdisjoint(keys)


@dataclass(frozen=True)
class Record:
    """A mapping with known keys."""

    what: str
    fields: tuple[Field, ...]

    @property
    def expected(self) -> str:
        """The keys."""
        return f"{self.what} with the keys " + ", ".join(item.key for item in self.fields)

    def check(self, node: Node, where: str, report: Report) -> Any:
        """A `Section`; with unusable members it is still returned, for the rules that can be checked without them."""
        if not isinstance(node, Mapping):
            remedy = f"write {self.fields[0].key}: and the other keys below"
            return _refuse(node, where or "scenario", report, self.expected, remedy)
        known = {item.key: item for item in self.fields}
        prefix = "" if not where else f"{where}." if ": " in where or " " not in where else f"{where}: "
        values: dict[str, Any] = {}
        unusable: set[str] = set()
        for key, line, value_node in node:
            if key not in known:
                remedy = did_you_mean(key, known, "delete it")
                place = where or "scenario"
                report.add(line, place, found=f"the unknown key {key}", expected=self.expected, remedy=remedy)
                continue
            value = known[key].kind.check(value_node, f"{prefix}{key}", report)
            if value is UNUSABLE:
                unusable.add(key)
            else:
                values[key] = value
        unusable |= self._report_missing(node, where, report)
        lines = {key: line for key, line, _ in node}
        return Section(where, node.line, values, lines, frozenset(unusable))

    def _report_missing(self, node: Mapping, where: str, report: Report) -> set[str]:
        missing = [item for item in self.fields if item.required and node.get(item.key) is None]
        for item in missing:
            expected = f"{item.key}: {item.kind.expected}"
            found = f"no {item.key}"
            report.add(node.line, where or "scenario", found=found, expected=expected, remedy=f"add {item.key}")
        return {item.key for item in missing}

    def schema(self) -> dict[str, Any]:
        """An object without further properties."""
        properties = {item.key: _property(item) for item in self.fields}
        required = [item.key for item in self.fields if item.required]
        schema: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
        return {**schema, "required": required} if required else schema


@dataclass(frozen=True)
class Variants:
    """A mapping whose keys depend on the word under one of them, `tag`."""

    what: str
    tag: str
    records: MappingType[str, Record]
    help: str = field(default="", compare=False)

    @property
    def expected(self) -> str:
        """The words."""
        return f"{self.what} with {self.tag}: " + ", ".join(self.records)

    def check(self, node: Node, where: str, report: Report) -> Any:
        """A `Section` in which `tag` is a key like the others."""
        if not isinstance(node, Mapping):
            return _refuse(node, where, report, self.expected, f"write {self.tag}: and the other keys below")
        word_node = node.get(self.tag)
        if word_node is None:
            found = f"no {self.tag}"
            report.add(node.line, where, found=found, expected=self.expected, remedy=f"add {self.tag}")
            return UNUSABLE
        prefix = f"{where}." if ": " in where else f"{where}: "
        word = Choice(tuple(self.records)).check(word_node, f"{prefix}{self.tag}", report)
        return UNUSABLE if word is UNUSABLE else self._tagged(word).check(node, where, report)

    def _tagged(self, word: str) -> Record:
        record = self.records[word]
        tag = Field(self.tag, Choice((word,)), self.help, required=True)
        return Record(f"{record.what}", (tag, *record.fields))

    def schema(self) -> dict[str, Any]:
        """One of the objects."""
        return {"oneOf": [self._tagged(word).schema() for word in self.records]}


@dataclass(frozen=True)
class ListOf:
    """A list of records that have a `name`."""

    what: str
    record: Record
    most: int

    @property
    def expected(self) -> str:
        """The number of entries."""
        return f"a list of 1 to {self.most} {self.what}s"

    def check(self, node: Node, where: str, report: Report) -> Any:
        """A tuple of the usable `Section`s; UNUSABLE if there is no list or it is empty or too long."""
        if not isinstance(node, Sequence) or not node.items:
            return _refuse(node, where, report, self.expected, f"write each {self.what} below it, after a hyphen")
        if len(node.items) > self.most:
            return _refuse(node, where, report, self.expected, "leave some out")
        sections = (self.record.check(item, self._label(item, i), report) for i, item in enumerate(node.items, start=1))
        return tuple(section for section in sections if section is not UNUSABLE)

    def _label(self, node: Node, number: int) -> str:
        name = node.get("name") if isinstance(node, Mapping) else None
        well_formed = isinstance(name, Scalar) and _NAME.fullmatch(name.text)
        return f"{self.what} {name.text}" if isinstance(name, Scalar) and well_formed else f"{self.what} {number}"

    def schema(self) -> dict[str, Any]:
        """An array."""
        return {"type": "array", "minItems": 1, "maxItems": self.most, "items": self.record.schema()}


def require_unique(what: str, sections: Iterable[Section], report: Report) -> None:
    """Report every record of a list that has the name of one before it."""
    first: dict[str, int] = {}
    for section in sections:
        name = section.get("name")
        if name is None:
            continue
        if name in first:
            report.add(
                section.line_of("name"),
                f"{what} {name}",
                found=f"a second {what} {name} beside the one in line {first[name]}",
                expected=f"a name of its own for every {what}",
                remedy="rename one of the two",
            )
        first.setdefault(name, section.line_of("name"))


def _property(item: Field) -> dict[str, Any]:
    described = {**item.kind.schema(), "description": item.help}
    return described if item.default is None else {**described, "default": item.default}


def _refuse(node: Node, where: str, report: Report, expected: str, remedy: str) -> Any:
    report.add(node.line, where, found=describe(node), expected=expected, remedy=remedy)
    return UNUSABLE
