"""The text of a YAML file as a small tree in which every value knows its line.

This is the only module that knows the YAML library. It refuses what is not YAML (and what is too large, or refers to
itself) and reports keys that occur twice, which YAML loaders tend to resolve silently. What the keys mean is
`testbed.scenario.definition`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from testbed.scenario.problems import Report

LARGEST_FILE_BYTES = 1_000_000
_DEEPEST = 20
_SCALARS = {"int": "integer", "float": "number", "bool": "boolean", "null": "nothing"}


@dataclass(frozen=True)
class Scalar:
    """A single value as written: `kind` is `integer`, `number`, `boolean`, `nothing` or `text`."""

    line: int
    text: str
    kind: str


@dataclass(frozen=True)
class Sequence:
    """A list."""

    line: int
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Mapping:
    """Keys and values, in the order of the file, without duplicates.

    Attributes:
        line: Line of the first key.
        entries: (key, line of the key, value).
    """

    line: int
    entries: tuple[tuple[str, int, Node], ...]

    def __iter__(self) -> Iterator[tuple[str, int, Node]]:
        return iter(self.entries)

    def get(self, key: str) -> Node | None:
        """Value of `key`, None if there is none."""
        return next((value for name, _, value in self.entries if name == key), None)


Node = Scalar | Sequence | Mapping


def describe(node: Node) -> str:
    """`node` as a message shows it."""
    match node:
        case Scalar(kind="nothing"):
            return "nothing"
        case Scalar(text=text, kind="text"):
            shown = text if len(text) <= 60 else text[:57] + "..."
            return f'"{shown}"'
        case Scalar(text=text):
            return text
        case Sequence(items=items):
            return f"a list of {len(items)}" if items else "an empty list"
        case Mapping(entries=()):
            return "an empty mapping"
        case Mapping(entries=entries):
            keys = [key for key, _, _ in entries]
            return "a mapping with the keys " + ", ".join(keys[:6]) + (", ..." if len(keys) > 6 else "")


def read(path: Path, report: Report) -> Node | None:
    """The tree of the file at `path`; None, with the reason in `report`, if it has none."""
    text = _read_text(path, report)
    return None if text is None else parse(text, report)


def parse(text: str, report: Report) -> Node | None:
    """The tree of `text`; None, with the reason in `report`, if it has none."""
    try:
        root = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        report.add(
            None if mark is None else mark.line + 1,
            "syntax",
            found=f"text that is not YAML ({error.problem or error.context})",
            expected="one YAML document",
            remedy="correct this line or the one above it (indentation, a missing colon, bracket or quote)",
        )
        return None
    except (YAMLError, RecursionError) as error:
        nested = isinstance(error, RecursionError)
        report.add(
            None,
            "syntax",
            found="values nested too deeply to read" if nested else "a character that YAML does not allow",
            expected="one YAML document in UTF-8",
            remedy="start from one of the files in topologies/",
        )
        return None
    if root is None:
        report.add(
            None,
            "file",
            found="nothing in it",
            expected="a scenario",
            remedy="start from one of the files in topologies/",
        )
        return None
    return _Converter(report).convert(root, ())


def _read_text(path: Path, report: Report) -> str | None:
    def refuse(found: str, expected: str, remedy: str) -> None:
        report.add(None, "file", found=found, expected=expected, remedy=remedy)

    try:
        if not path.exists():
            refuse("no such file", "a scenario file", "check the spelling of the path; examples are in topologies/")
        elif not path.is_file():
            refuse("something that is not a regular file", "a scenario file", "give the path of a YAML file")
        elif path.stat().st_size > LARGEST_FILE_BYTES:
            refuse(
                f"{path.stat().st_size:,} bytes",
                f"at most {LARGEST_FILE_BYTES:,} bytes",
                "a scenario is a description; keep traces in files of their own and name them under arrivals",
            )
        else:
            return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        refuse(f"a byte that is not UTF-8 at offset {error.start}", "text in UTF-8", "save the file as UTF-8")
    except OSError as error:
        refuse(f"an error when reading it: {error.strerror}", "a readable file", "check its permissions")
    return None


class _Converter:
    """Turns the library's nodes into ours, each once: an anchor used many times costs what it costs once."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._done: dict[int, Node] = {}

    def convert(self, node: Any, parents: tuple[int, ...]) -> Node | None:
        line = node.start_mark.line + 1
        if id(node) in self._done:
            return self._done[id(node)]
        if id(node) in parents or len(parents) > _DEEPEST:
            self._report.add(
                line,
                "structure",
                found="a value that contains itself or is nested too deeply",
                expected=f"at most {_DEEPEST} levels",
                remedy="replace the alias (*) by what it stands for",
            )
            return None
        inside = (*parents, id(node))
        if node.id == "scalar":
            converted: Node = _scalar(node, line)
        elif node.id == "sequence":
            items = (self.convert(item, inside) for item in node.value)
            converted = Sequence(line, tuple(item for item in items if item is not None))
        else:
            converted = self._mapping(node, line, inside)
        self._done[id(node)] = converted
        return converted

    def _mapping(self, node: Any, line: int, inside: tuple[int, ...]) -> Mapping:
        entries: dict[str, tuple[str, int, Node]] = {}
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            if key_node.id != "scalar":
                self._report.add(
                    key_line,
                    "structure",
                    found="a list or mapping used as a key",
                    expected="a word",
                    remedy="write the key as one word followed by a colon",
                )
                continue
            key = str(key_node.value)
            if key in entries:
                self._report.add(
                    key_line,
                    f"key {key}",
                    found=f"a second {key} beside the one in line {entries[key][1]}",
                    expected="every key once",
                    remedy="delete one of the two",
                )
                continue
            value = self.convert(value_node, inside)
            if value is not None:
                entries[key] = (key, key_line, value)
        return Mapping(line, tuple(entries.values()))


def _scalar(node: Any, line: int) -> Scalar:
    tag = str(node.tag).rsplit(":", 1)[-1]
    return Scalar(line, str(node.value), _SCALARS.get(tag, "text"))
