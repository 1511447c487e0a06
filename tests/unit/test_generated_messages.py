"""What is committed of generated code is what its source makes."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from inference_server.generate import generate


@pytest.mark.parametrize("name", ["inference_server.generate", "testbed.management.generate"])
def test_the_generated_messages_are_those_of_the_proto_file(tmp_path: Path, name: str) -> None:
    program = import_module(name)
    generate(tmp_path, program.PROTO)
    made = list(tmp_path.iterdir())
    assert len(made) == 2
    for file in made:
        assert file.read_text() == (program.FOLDER / file.name).read_text()
