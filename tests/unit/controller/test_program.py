from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from controller.program import DomainProgram, ProgramError
from tests.unit.controller.programs import hop, program, rule


def test_a_program_survives_the_wire() -> None:
    sent = program(rule(1), rule(2, meter=None), hops=(hop(server_ports=(("10.2.0.1", "d0i-h"),)), hop("d0e", 18)))
    assert DomainProgram.from_dict(json.loads(json.dumps(sent.to_dict()))) == sent


REFUSED = [
    ("a float rate", ("rules", 0, "queue", "rate_bps"), 5e6, "rate_bps: 5000000.0 is not an integer"),
    ("a rate as text", ("rules", 0, "queue", "rate_bps"), "5000000", "rate_bps: '5000000' is not an integer"),
    ("a truth value for a number", ("rules", 0, "meter", "burst_kbit"), True, "burst_kbit: True is not an integer"),
    ("a float link rate", ("link_rate_bps",), 4e7, "link_rate_bps: 40000000.0 is not an integer"),
    ("an unknown key", ("rules", 0, "colour"), "red", r"Rule: unknown keys \['colour'\]"),
]


@pytest.mark.parametrize(("path", "value", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_a_switch_would_misread_is_refused_at_the_edge(path: tuple[Any, ...], value: object, message: str) -> None:
    data: dict[str, Any] = json.loads(json.dumps(program().to_dict()))
    inner: Any = data
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(ProgramError, match=message):
        DomainProgram.from_dict(data)


def test_a_missing_key_is_named() -> None:
    data = program().to_dict()
    del data["datapath"]
    with pytest.raises(ProgramError, match=r"missing keys \['datapath'\]"):
        DomainProgram.from_dict(data)


def test_the_controller_imports_nothing_of_the_testbed() -> None:
    for path in (Path(__file__).parents[3] / "controller").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "testbed"], path.name
