"""Whatever a session of tests leaves on the host is named, and what others have in use is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests import leftovers
from tests.leftovers import FOLDERS, Foreign, Host, host_as_before, left_behind

TOKEN = f"{leftovers.MARK}=of-this-test-{os.getpid()}"


@contextmanager
def sleeping(*more: str, mark: str | None = TOKEN) -> Iterator[int]:
    """A process that waits for its input to end, with a mark or without."""
    environment = {name: value for name, value in os.environ.items() if name != leftovers.MARK}
    if mark is not None:
        name, value = mark.split("=")
        environment[name] = value
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", *more]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def test_a_host_that_is_as_it_was_has_nothing_left_behind() -> None:
    assert left_behind(Host.now(TOKEN), Host.now(TOKEN)) == []


def test_a_process_that_still_runs_is_named_with_its_command_and_a_strangers_is_not() -> None:
    before = Host.now(TOKEN)
    with sleeping("forgotten") as pid, sleeping("somebody's", mark=None):
        (line,) = left_behind(before, Host.now(TOKEN))
    assert line.startswith(f"processes: pid {pid} left behind {sys.executable}")
    assert line.endswith("forgotten")


def test_a_temporary_folder_is_named_unless_somebody_else_works_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "FOLDERS", (tmp_path,))
    before = Host.now(TOKEN)
    for name in ("tlt-agents-x1", ".tlt-hidden", "tlt-in-use", "vm_file-x1", "tail-latency-testbed", "notes"):
        (tmp_path / name).mkdir()
    with sleeping(str(tmp_path / "tlt-in-use" / "db.sock"), mark=None):
        found = left_behind(before, Host.now(TOKEN))
    assert found == [f"files: {tmp_path / name} left behind" for name in (".tlt-hidden", "tlt-agents-x1", "vm_file-x1")]
    assert Path("/dev/shm") in FOLDERS  # noqa: S108 - where the memory of an emulated kernel lies


def test_whatever_is_done_within_must_leave_the_host_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "FOLDERS", (tmp_path,))
    monkeypatch.setattr(leftovers, "_GOING_S", 0.0)
    with host_as_before():
        (tmp_path / "notes").touch()
    with pytest.raises(AssertionError, match=f"files: {tmp_path / 'tlt-x'} left behind"), host_as_before():
        (tmp_path / "tlt-x").touch()


def test_a_setting_that_changed_and_a_link_that_is_gone_are_named_with_what_they_were() -> None:
    before = replace(Host.now(TOKEN), foreign=Foreign(runs=frozenset(), commands="", pids=frozenset()))
    other = replace(before, links={**before.links, "tlt9": ""}, settings={**before.settings, "net/core/x": "1"})
    after = replace(before, settings={**before.settings, "net/core/x": "2"})
    assert left_behind(other, after) == [
        "links: tlt9 gone",
        "settings: net/core/x changed: was '1', is '2'",
    ]


def test_what_changes_while_another_run_is_there_may_be_that_runs_doing() -> None:
    before = replace(Host.now(TOKEN), foreign=Foreign(runs=frozenset({"abcdef"}), commands="", pids=frozenset()))
    after = replace(before, settings={**before.settings, "net/core/x": "2"}, runs={}, namespaces={"tlt-fedcba": ""})
    before = replace(before, runs={"abcdef": ""}, namespaces={"tlt-abcdef": ""})
    assert left_behind(before, after) == ["namespaces: tlt-fedcba left behind"]


def test_what_is_named_after_a_process_is_nobodys_leftover_while_that_lives() -> None:
    before = Host.now(TOKEN)
    with sleeping(mark=None) as pid:
        after = replace(
            Host.now(TOKEN),
            namespaces={**before.namespaces, f"tlt-ctl{pid}": "", "tlt-abcdef": ""},
            files={**before.files, f"/run/tlt-ctl-x-{pid}": ""},
        )
        assert left_behind(before, after) == ["namespaces: tlt-abcdef left behind"]
    after = replace(Host.now(TOKEN), namespaces=after.namespaces, files=after.files)
    found = left_behind(before, after)
    assert {f"namespaces: tlt-ctl{pid} left behind", f"files: /run/tlt-ctl-x-{pid} left behind"} <= set(found)
