"""What of the host a test may have changed and must not leave changed: looked at, and compared.

Only what these tests could have made is looked at, and what another run or another session of tests on this host has in
use is nobody's leftover. Tests that leave the host as it was prove it of their own run; this is about all of them.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from testbed.emulation import journal, processes
from testbed.emulation.namespace import NAMES
from testbed.emulation.network import HOST_SETTINGS
from testbed.errors import CleanupError
from testbed.telemetry.host import SYSCTLS

MARK = "TAIL_LATENCY_TESTBED_TESTS"
"""Name of the variable by which whatever a session of tests starts is known."""

FOLDERS = tuple(Path(name) for name in ("/tmp", "/var/tmp", "/run", "/dev/shm"))  # noqa: S108 - looked at, not written to
NAMED = re.compile(r"tlt|tail-latency-testbed-|bench-|kernel-tests-|uml[.-]|vm_file-")
"""How the temporary files of this project, its tests and its scripts begin, and the memory of an emulated kernel."""

_PID = re.compile(r"(?:^tlt-[a-z]+|-)(\d+)$")
"""What is named after a process; the random end of a temporary folder's name may have digits of its own."""

_OUR_OWN = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")
"""Helpers that Python keeps until the process that needed them ends."""

_SYSTEM_SWITCH = Path("/var/run/openvswitch/db.sock")
_TOOL_TIMEOUT_S = 20
_GOING_S = 10.0
"""How long what was told to end may take to be gone."""


@dataclass(frozen=True)
class Foreign:
    """What runs and processes that are not this session's have in use.

    Attributes:
        runs: Ids of their runs.
        commands: Command lines of all processes that do not have the mark, one after the other.
        pids: Of these.
    """

    runs: frozenset[str]
    commands: str
    pids: frozenset[int]

    @classmethod
    def now(cls, mark: str) -> Foreign:
        ours = {*processes.marked_with(mark), os.getpid()}
        others = frozenset(int(p.name) for p in _paths(Path("/proc")) if p.name.isdecimal() and int(p.name) not in ours)
        return cls(
            runs=frozenset(path.name for path in _paths(journal.RUNS) if _owned_by(path, others)),
            commands="\n".join(_command(pid) for pid in others),
            pids=others,
        )

    def uses(self, name: str) -> bool:
        """Whether a thing of this name is somebody else's: by a run's id, a process's id, or on a command line."""
        if any(run in name for run in self.runs):
            return True
        last = Path(name).name
        number = _PID.search(last)
        named = NAMED.match(last) is not None
        return named and (last in self.commands or (number is not None and int(number[1]) in self.pids))


@dataclass(frozen=True)
class Host:
    """The host at one moment: of each kind of thing, what there is by name, and its state where it has one.

    Attributes:
        namespaces: Named network namespaces.
        links: Network interfaces of the root namespace.
        qdiscs: Queueing disciplines of the root namespace.
        bridges: Bridges of the system's own Open vSwitch, where it runs.
        runs: Directories of runs, with their journals, databases and sockets.
        processes: Processes with the mark of this session of tests.
        settings: Sysctls that a run sets, records, or could set.
        files: Temporary files and folders.
        foreign: What of all this others have in use.
    """

    namespaces: Mapping[str, str]
    links: Mapping[str, str]
    qdiscs: Mapping[str, str]
    bridges: Mapping[str, str]
    runs: Mapping[str, str]
    processes: Mapping[str, str]
    settings: Mapping[str, str]
    files: Mapping[str, str]
    foreign: Foreign

    @classmethod
    def now(cls, mark: str) -> Host:
        """Look at this host.

        Args:
            mark: `NAME=value` in the environment of everything that this session of tests starts.
        """
        return cls(
            namespaces=_entries(NAMES),
            links=_entries(Path("/sys/class/net")),
            qdiscs=_qdiscs(),
            bridges=_bridges(),
            runs=_entries(journal.RUNS),
            processes=_processes(mark),
            settings=_settings(),
            files={
                str(path): "" for folder in FOLDERS for path in _paths(folder) if NAMED.match(path.name.lstrip("."))
            },
            foreign=Foreign.now(mark),
        )


def left_behind(before: Host, after: Host) -> list[str]:
    """What is there that was not, is gone that was there, or is not as it was; a line each.

    Args:
        before: The host before the tests.
        after: The host after them.
    """
    found = []
    others = (before.foreign, after.foreign)
    for field in fields(Host):
        if field.name == "foreign" or (field.name == "settings" and any(each.runs for each in others)):
            continue  # whoever runs beside these tests sets some, and puts them back when it ends
        old, new = getattr(before, field.name), getattr(after, field.name)
        for name in sorted({*old, *new}):
            if old.get(name) == new.get(name) or any(each.uses(name) for each in others):
                continue
            state = "gone" if name not in new else "left behind" if name not in old else "changed"
            values = (
                f": was {old[name]!r}, is {new[name]!r}" if state == "changed" else f" {new.get(name, '')}".rstrip()
            )
            found.append(f"{field.name}: {name} {state}{values}")
    return found


def left_since(before: Host, mark: str) -> list[str]:
    """As `left_behind`, of the host as it is once what was told to end has had its time."""
    deadline = time.monotonic() + _GOING_S
    while (found := left_behind(before, Host.now(mark))) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


@contextmanager
def host_as_before() -> Iterator[None]:
    """Whatever is done within must leave the host as it was.

    Raises:
        AssertionError: It did not; with what is left, a line each.
    """
    mark = f"{MARK}={os.environ[MARK]}"
    before = Host.now(mark)
    yield
    found = left_since(before, mark)
    assert not found, "\n".join(found)


def _owned_by(run: Path, pids: frozenset[int]) -> bool:
    try:
        owner, _ = journal.read(run)
    except (CleanupError, OSError):
        return False
    return owner is not None and owner.is_alive() and owner.pid in pids


def _paths(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return []


def _entries(folder: Path) -> dict[str, str]:
    return {path.name: "" for path in _paths(folder)}


def _qdiscs() -> dict[str, str]:
    # How many hold a reference to a device says nothing of who changed it.
    lines = (re.sub(r" refcnt \d+", "", line).strip() for line in _output("tc", "qdisc", "show").splitlines())
    return dict.fromkeys(lines, "")


def _bridges() -> dict[str, str]:
    return dict.fromkeys(_output("ovs-vsctl", "list-br").split(), "") if _SYSTEM_SWITCH.is_socket() else {}


def _processes(mark: str) -> dict[str, str]:
    found = {pid: _command(pid) for pid in processes.marked_with(mark)}
    helpers = tuple(text.decode() for text in _OUR_OWN)
    return {f"pid {pid}": command for pid, command in found.items() if not any(name in command for name in helpers)}


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _settings() -> dict[str, str]:
    root = Path("/proc/sys")
    core = [f"net/core/{path.name}" for path in _paths(root / "net/core")]
    found = {}
    for name in sorted({*SYSCTLS, *HOST_SETTINGS, *core}):
        try:
            found[name] = (root / name).read_text().strip()
        except OSError:
            continue
    return found


def _output(*command: str) -> str:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TOOL_TIMEOUT_S)
    except FileNotFoundError:
        return ""
    return ended.stdout
