"""What every test shares: a look at the host before the first one and after the last."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest
from hypothesis import settings

from testbed.cli import machine_code
from tests.leftovers import MARK, Host, left_since

# No example is too slow: how long one takes is the host's, and a test says nothing about it.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Before a test imports what is compiled.
machine_code.forget_stale()


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """Fail the last test of a session, by name of what is left, if the host is not as it was before the first one."""
    token = secrets.token_hex(8)
    mark = f"{MARK}={token}"
    os.environ[MARK] = token
    before = Host.now(mark)
    yield
    found = left_since(before, mark)
    del os.environ[MARK]
    if found:
        pytest.fail("the tests of this session changed the host:\n" + "\n".join(found), pytrace=False)
