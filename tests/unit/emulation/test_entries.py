"""Records of changes: what they look like on disk, and whether a thing of the same name is the thing that was made."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.emulation import entries
from testbed.emulation.entries import Directory, Entry, Link, Marked, Namespace, Process, State, Sysctl
from testbed.errors import CleanupError

EVERY_KIND: list[Entry] = [
    Marked("TAIL_LATENCY_TESTBED_RUN=1-2"),
    Process(12, 345, "sleep 600"),
    Namespace("/run/netns/tlt-abcdef", 4, 4026532000),
    Sysctl("/proc/sys/net/core/wmem_default", "212992", "1"),
    Link("tlt0", "02:00:00:00:00:01"),
    Directory("/run/tail-latency-testbed/abcdef/x", 77),
]


@pytest.mark.parametrize("entry", EVERY_KIND, ids=lambda entry: entry.kind)
def test_an_entry_survives_the_disk(entry: Entry) -> None:
    assert entries.from_dict(entries.to_dict(entry)) == entry


def test_every_kind_of_entry_is_tested_here() -> None:
    assert {entry.kind for entry in EVERY_KIND} == set(entries.KINDS)


@pytest.mark.parametrize(
    "record", [{"kind": "link", "name": "a"}, {"kind": "directory", "path": "/", "inode": 1, "more": 2}, {}, [], 7]
)
def test_a_record_of_no_known_form_is_named(record: object) -> None:
    with pytest.raises(CleanupError, match="of no known form"):
        entries.from_dict(record)


def test_a_directory_in_the_place_of_ours_is_foreign(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    entry = Directory(str(made), made.stat().st_ino)
    assert entry.state() is State.PRESENT
    made.rename(tmp_path / "moved")
    assert entry.state() is State.GONE
    made.mkdir()
    assert entry.state() is State.FOREIGN


def test_a_link_to_a_directory_in_the_place_of_ours_is_foreign(tmp_path: Path) -> None:
    precious, made = tmp_path / "precious", tmp_path / "made"
    precious.mkdir()
    made.symlink_to(precious)
    assert Directory(str(made), precious.stat().st_ino).state() is State.FOREIGN


def test_a_directory_recorded_before_it_was_made_is_ours_only_while_it_is_empty(tmp_path: Path) -> None:
    made = tmp_path / "made"
    entry = Directory(str(made), 0)
    assert entry.state() is State.GONE
    made.mkdir()
    assert entry.state() is State.PRESENT
    (made / "file").touch()
    assert entry.state() is State.FOREIGN
    (made / "file").unlink()
    entry.remove()
    assert not made.exists()


def test_a_namespace_of_the_same_name_and_another_inode_is_foreign() -> None:
    ours = Path("/proc/self/ns/net").stat()
    assert Namespace("/proc/self/ns/net", ours.st_dev, ours.st_ino).state() is State.PRESENT
    assert Namespace("/proc/self/ns/net", ours.st_dev, ours.st_ino + 1).state() is State.FOREIGN
    assert Namespace("/proc/self/ns/nothing", ours.st_dev, ours.st_ino).state() is State.GONE


def test_a_namespaces_bare_name_is_taken_away(tmp_path: Path) -> None:
    name = tmp_path / "tlt-abcdef"
    name.touch()
    entry = Namespace(str(name), 4, 1)
    assert entry.state() is State.PRESENT
    entry.remove()
    assert entry.state() is State.GONE


def test_an_interface_of_another_address_is_foreign() -> None:
    assert Link("lo", "00:00:00:00:00:00").state() is State.PRESENT
    assert Link("lo", "02:00:00:00:00:01").state() is State.FOREIGN
    assert Link("no-such-link", "02:00:00:00:00:01").state() is State.GONE
