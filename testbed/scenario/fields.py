"""Mappings and lists that a file format is defined by: which keys there are, and what their values may be.

Rules between the values of one file are not known here (`testbed.scenario.loader`, `testbed.scenario.tenants`); the
kinds of single values are `testbed.scenario.values`'.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field
from typing import Any

from testbed.scenario.document import Mapping, Node, Scalar, Sequence
from testbed.scenario.problems import Report, did_you_mean
from testbed.scenario.values import NAME, UNUSABLE, Choice, Kind, refuse


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
            return refuse(node, where or "scenario", report, self.expected, remedy)
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
            return refuse(node, where, report, self.expected, f"write {self.tag}: and the other keys below")
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
    record: Record | Variants
    most: int

    @property
    def expected(self) -> str:
        """The number of entries."""
        return f"a list of 1 to {self.most} {self.what}s"

    def check(self, node: Node, where: str, report: Report) -> Any:
        """A tuple of the usable `Section`s; UNUSABLE if there is no list or it is empty or too long."""
        if not isinstance(node, Sequence) or not node.items:
            return refuse(node, where, report, self.expected, f"write each {self.what} below it, after a hyphen")
        if len(node.items) > self.most:
            return refuse(node, where, report, self.expected, "leave some out")
        # A number says nothing without the list it counts in.
        prefix = f"{where}, " if ": " in where else ""
        labels = (self._label(item, prefix, number) for number, item in enumerate(node.items, start=1))
        sections = (self.record.check(item, label, report) for item, label in zip(node.items, labels, strict=True))
        return tuple(section for section in sections if section is not UNUSABLE)

    def _label(self, node: Node, prefix: str, number: int) -> str:
        name = node.get("name") if isinstance(node, Mapping) else None
        well_formed = isinstance(name, Scalar) and NAME.fullmatch(name.text)
        return (
            f"{self.what} {name.text}" if isinstance(name, Scalar) and well_formed else f"{prefix}{self.what} {number}"
        )

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
