"""Whether a process and its children get huge pages."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.emulation import syscalls
from testbed.emulation.huge_pages import small_pages

_STATUS = "import pathlib; print(pathlib.Path('/proc/self/status').read_text())"


def enabled(status: str) -> bool:
    (line,) = (line for line in status.splitlines() if line.startswith("THP_enabled:"))
    return line.split()[1] == "1"


def here() -> bool:
    return enabled(Path("/proc/self/status").read_text())


def of_a_child() -> bool:
    return enabled(subprocess.run([sys.executable, "-c", _STATUS], capture_output=True, text=True, check=True).stdout)


def test_a_run_and_its_children_have_none_until_it_ends() -> None:
    assert here()
    with small_pages():
        assert not here()
        assert not of_a_child()
    assert here()
    assert of_a_child()


def test_who_had_none_before_has_none_afterwards() -> None:
    with small_pages():
        with small_pages():
            pass
        assert not here()
    assert here()


def test_they_are_back_after_a_run_that_failed() -> None:
    with pytest.raises(ValueError, match="a run"), small_pages():
        raise ValueError("a run")
    assert here()


@pytest.mark.parametrize(("number", "refused"), [(errno.EINVAL, False), (errno.EPERM, True)])
def test_a_kernel_that_knows_none_is_no_error(monkeypatch: pytest.MonkeyPatch, number: int, *, refused: bool) -> None:
    def fail() -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(syscalls, "huge_pages_disabled", fail)
    if refused:
        with pytest.raises(OSError, match=os.strerror(number)), small_pages():
            pass
    else:
        with small_pages():
            assert here()
