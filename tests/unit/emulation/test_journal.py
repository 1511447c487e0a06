"""What is on disk before a change is made, and what undoing makes of it, whole or damaged."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from testbed.emulation import entries, journal, processes
from testbed.emulation.entries import State
from testbed.emulation.journal import Journal
from testbed.errors import CleanupError, PreflightError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "journal.jsonl").read_text().splitlines()]


@dataclass(frozen=True)
class Stubborn:
    """A change that cannot be undone."""

    kind: ClassVar[str] = "stubborn"
    name: str

    def describe(self) -> str:
        return f"stubborn {self.name}"

    def state(self) -> State:
        return State.PRESENT

    def remove(self) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


@pytest.fixture
def _stubborn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(entries.KINDS, Stubborn.kind, Stubborn)


def test_a_journal_says_first_who_runs_and_is_its_owners_alone(root: Path) -> None:
    opened = Journal.create(root)
    (head, mark) = lines(opened.directory)
    assert head["kind"] == "run"
    assert (head["runid"], head["pid"]) == (opened.directory.name, os.getpid())
    assert head["start_ticks"] == processes.start_ticks(os.getpid())
    assert mark == {"kind": "marked", "mark": opened.owner.mark}
    assert opened.directory.stat().st_mode & 0o777 == 0o700
    assert (opened.directory / "journal.jsonl").stat().st_mode & 0o777 == 0o600
    assert opened.owner.is_alive()


def test_the_undo_is_on_disk_before_the_change_is_made(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Journal.create(root)
    target = opened.directory.parent / "made"

    def refuse(path: Path, *arguments: object, **options: object) -> None:
        assert lines(opened.directory)[-1] == {"kind": "directory", "path": str(path), "inode": 0}
        raise PermissionError(errno.EPERM, "refused")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError):
        opened.make_directory(target)
    assert not target.exists()


def test_entries_are_forced_to_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Journal.create(root)
    forced: list[int] = []
    monkeypatch.setattr(os, "fsync", forced.append)
    opened.record(entries.Directory("/nowhere", 0))
    assert len(forced) == 1


def test_undoing_goes_from_the_latest_change_to_the_first(root: Path, tmp_path: Path) -> None:
    opened = Journal.create(root)
    outer = opened.make_directory(tmp_path / "outer")
    opened.make_directory(outer / "inner")
    undone = [item.what for item in opened.undo() if item.state is State.PRESENT]
    assert undone == [f"directory {outer / 'inner'}", f"directory {outer}"]
    assert not outer.exists()
    assert not opened.directory.exists()


def test_undoing_twice_finds_nothing_left(root: Path, tmp_path: Path) -> None:
    opened = Journal.create(root)
    opened.make_directory(tmp_path / "made")
    copy = opened.directory / "journal.jsonl"
    text = copy.read_text()
    opened.undo()
    opened.directory.mkdir()
    copy.write_text(text)
    assert {item.state for item in journal.undo(opened.directory)} == {State.GONE}


def test_a_dry_run_names_what_there_is_and_leaves_it(root: Path, tmp_path: Path) -> None:
    opened = Journal.create(root)
    made = opened.make_directory(tmp_path / "made")
    found = journal.undo(opened.directory, dry_run=True)
    assert [item.what for item in found if item.state is State.PRESENT][:1] == [f"directory {made}"]
    assert made.is_dir()
    assert opened.directory.is_dir()


@pytest.mark.usefixtures("_stubborn")
def test_one_change_that_cannot_be_undone_keeps_the_journal_and_no_other_change(root: Path, tmp_path: Path) -> None:
    opened = Journal.create(root)
    first = opened.make_directory(tmp_path / "first")
    opened.record(Stubborn("mule"))
    last = opened.make_directory(tmp_path / "last")
    with pytest.raises(CleanupError) as caught:
        opened.undo()
    assert not first.exists()
    assert not last.exists()
    problem, kept = caught.value.problems
    assert problem.startswith("stubborn mule could not be undone: [Errno 16] Device or resource busy")
    assert kept == f"the journal is kept: {opened.directory}/journal.jsonl; repeat with testbed clean"
    assert (opened.directory / "journal.jsonl").is_file()


def test_a_setting_gets_its_old_value_back_unless_somebody_else_changed_it_since(root: Path, tmp_path: Path) -> None:
    ours, theirs, same = (tmp_path / name for name in ("ours", "theirs", "same"))
    for setting in (ours, theirs, same):
        setting.write_text("1 \t2\n")
    opened = Journal.create(root)
    opened.set_sysctl(ours, "3")
    opened.set_sysctl(theirs, "3")
    opened.set_sysctl(same, "1 2")
    assert same.read_text() == "1 \t2\n"
    theirs.write_text("4")
    states = {item.what.split(":")[0]: item.state for item in opened.undo()}
    assert states[str(ours)] is State.PRESENT
    assert states[str(theirs)] is State.FOREIGN
    assert str(same) not in states
    assert (ours.read_text(), theirs.read_text()) == ("1 2", "4")


CHANGES = """
import os, signal, sys
from pathlib import Path
from testbed.emulation import journal

class Killed(journal.Journal):
    written = 0
    def _write(self, record):
        super()._write(record)
        self.written += 1
        if self.written == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

opened = Killed.create(Path(sys.argv[1]))
for name in ("first", "second"):
    opened.make_directory(Path(sys.argv[2]) / name)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("entry", range(1, 8))
def test_a_run_killed_after_any_entry_is_undone_from_its_journal(root: Path, tmp_path: Path, entry: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CHANGES, str(root), str(tmp_path), str(entry)], check=False, capture_output=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    (directory,) = root.iterdir()
    owner, _ = journal.read(directory)
    assert owner is not None
    assert not owner.is_alive()
    assert all(item.problem is None for item in journal.undo(directory))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert list(root.iterdir()) == []


def test_a_last_line_that_is_not_whole_belongs_to_a_change_that_was_not_made(root: Path, tmp_path: Path) -> None:
    opened = Journal.create(root)
    with (opened.directory / "journal.jsonl").open("a") as file:
        file.write(f'{{"kind":"directory","path":"{tmp_path}","inode":{tmp_path.stat().st_ino}')
    _, found = journal.read(opened.directory)
    assert found == (entries.Marked(opened.owner.mark),)


def test_a_disk_that_is_full_stops_the_change_and_leaves_a_journal_that_can_be_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Journal.create(root)
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, line: whole(descriptor, line[:7]))
    with pytest.raises(OSError, match="No space left"):
        opened.record(entries.Directory("/nowhere", 0))
    monkeypatch.undo()
    opened.record(entries.Directory("/elsewhere", 0))
    _, found = journal.read(opened.directory)
    assert found[1:] == (entries.Directory("/elsewhere", 0),)


HEAD = {
    "kind": "run",
    "runid": "abcdef",
    "mark": "TAIL_LATENCY_TESTBED_RUN=abcdef-00",
    "pid": 1,
    "start_ticks": 1,
    "boot_id": "b",
    "pid_namespace": 1,
}


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("]\n", "Expecting value"),
        (f"{json.dumps(HEAD)}\nnonsense\n{{}}\n", "Expecting value"),
        ("[]\n", r"its first line is \[\] and does not say who runs"),
        ('{"kind":"directory","path":"/","inode":2}\n', "does not say who runs"),
        (json.dumps({**HEAD, "pid": "1"}) + "\n", "its first line has pid '1'"),
        (json.dumps({k: v for k, v in HEAD.items() if k != "mark"}) + "\n", "its first line has mark None"),
        (json.dumps({**HEAD, "runid": "123456"}) + "\n", "it is of run 123456 and lies in the directory of abcdef"),
        (f'{json.dumps(HEAD)}\n{{"kind":"planet","name":"mars"}}\n', "of no known form"),
        (f'{json.dumps(HEAD)}\n{{"kind":"directory","path":"/"}}\n', "of no known form"),
        (f'{json.dumps(HEAD)}\n"text"\n', "of no known form"),
        (b"\xff\xfe\n", "can't decode"),
    ],
    ids=[
        "a first line that is not JSON",
        "a line in the middle that is not JSON",
        "a first line that is not an object",
        "a first line that is an entry",
        "a pid that is text",
        "no mark",
        "another run's journal",
        "an entry of an unknown kind",
        "an entry without its fields",
        "an entry that is not an object",
        "bytes that are no text",
    ],
)
def test_a_damaged_or_foreign_journal_is_named_and_nothing_is_touched(
    root: Path, text: str | bytes, finding: str
) -> None:
    directory = root / "abcdef"
    directory.mkdir(parents=True)
    path = directory / "journal.jsonl"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(CleanupError, match=rf"abcdef/journal.jsonl is damaged \(.*{finding}.*nothing it names was"):
        journal.undo(directory)
    assert path.is_file()


@pytest.mark.parametrize(
    ("name", "holds", "ours"),
    [
        ("abcdef", (), True),
        ("abcdef", ("journal.jsonl",), True),
        ("abcdef", ("precious",), False),
        ("abcdef", ("journal.jsonl", "precious"), False),
        ("somebody", (), False),
    ],
)
def test_only_an_empty_directory_of_a_runs_name_counts_as_one_that_died_at_once(
    root: Path, name: str, holds: tuple[str, ...], ours: bool
) -> None:
    directory = root / name
    directory.mkdir(parents=True)
    for item in holds:
        (directory / item).touch()
    if ours:
        assert journal.undo(directory) == ()
        assert not directory.exists()
    else:
        with pytest.raises(CleanupError, match="is no run's directory"):
            journal.undo(directory)
        assert directory.is_dir()


def test_an_owner_is_dead_once_its_pid_belongs_to_a_younger_process_or_the_machine_was_booted(root: Path) -> None:
    owner = Journal.create(root).owner
    assert owner.is_alive()
    assert not replace(owner, start_ticks=owner.start_ticks - 1).is_alive()
    assert not replace(owner, boot_id="another").is_alive()


def test_a_run_in_another_pid_namespace_counts_as_alive(root: Path) -> None:
    owner = Journal.create(root).owner
    assert replace(owner, pid_namespace=owner.pid_namespace + 1, start_ticks=0).is_alive()


def test_a_child_that_is_not_there_cannot_be_recorded(root: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with pytest.raises(CleanupError, match=rf"process {child.pid} \(x\) is not there"):
        Journal.create(root).record_process(child.pid, "x")


def test_a_place_that_cannot_be_written_is_refused_with_a_remedy(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PreflightError, match=r"cannot write the run's journal .*\(Permission denied\); run as root"):
        Journal.create(root)
