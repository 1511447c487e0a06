"""A lab for each test that asks for one; whatever it started has ended afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .federation_lab import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    found = Lab(tmp_path)
    yield found
    found.stop()


@pytest.fixture
def watchful(tmp_path: Path) -> Iterator[Lab]:
    """A lab whose agents compare ledger and switches all the time."""
    found = Lab(tmp_path, look_every_s=0.05)
    yield found
    found.stop()
