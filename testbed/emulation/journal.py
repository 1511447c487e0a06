"""The undo of everything a run does to the host, on disk before it is done.

A journal is an append-only file of JSON lines, `<root>/<runid>/journal.jsonl`: first who runs, then one entry per
change, each forced to disk before the change is made. Undoing walks it backwards, skips what is already gone, and
leaves alone what turns out to belong to somebody else. The same walk ends a run that is alive and cleans up after one
that was killed (`testbed.emulation.clean`).
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from testbed.emulation import entries, processes
from testbed.emulation.entries import Entry, State
from testbed.errors import CleanupError, PreflightError

RUNS = Path("/run/tail-latency-testbed")
MARK = "TAIL_LATENCY_TESTBED_RUN"
_FILE = "journal.jsonl"


@dataclass(frozen=True)
class Owner:
    """The process a journal belongs to.

    Attributes:
        runid: Six hexadecimal digits, unique among the runs of this host.
        mark: `NAME=value` in the environment of every process the run starts.
        pid: Of the process that supervises the run.
        start_ticks: Its start time.
        boot_id: Boot of the kernel in which pid and start time mean something.
        pid_namespace: Namespace in which the pid was read.
    """

    runid: str
    mark: str
    pid: int
    start_ticks: int
    boot_id: str
    pid_namespace: int

    def is_alive(self) -> bool:
        """Whether the run may still be going on; a run in another pid namespace counts as alive."""
        if self.boot_id != processes.boot_id():
            return False
        if self.pid_namespace != processes.pid_namespace():
            return True
        return processes.is_alive(self.pid, self.start_ticks)


@dataclass(frozen=True)
class Undone:
    """What the undo of one entry came to: present means that it was there and has been undone."""

    what: str
    state: State


class Journal:
    """The journal of a run that is going on.

    Attributes:
        owner: Who runs.
        directory: The run's directory for sockets, logs and the journal; mode 0700.
    """

    def __init__(self, owner: Owner, directory: Path) -> None:
        self.owner = owner
        self.directory = directory
        self._descriptor = os.open(directory / _FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._write({"kind": "run", **asdict(owner)})
        self.record(entries.Marked(owner.mark))

    @classmethod
    def create(cls, root: Path = RUNS) -> Journal:
        """Start the journal of a new run.

        Raises:
            PreflightError: The directory cannot be made.
        """
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(root):
                runid = secrets.token_hex(3)
                while (root / runid).exists():
                    runid = secrets.token_hex(3)
                (root / runid).mkdir(mode=0o700)
                return cls(_owner(runid), root / runid)
        except PermissionError as error:
            raise PreflightError(
                f"cannot write the run's journal under {root} ({error.strerror}); run as root"
            ) from error

    @property
    def runid(self) -> str:
        """The run's id."""
        return self.owner.runid

    @property
    def environment(self) -> dict[str, str]:
        """What every process of the run must have in its environment."""
        name, value = self.owner.mark.split("=")
        return {name: value}

    def record(self, entry: Entry) -> None:
        """Force one undo to disk; call it before doing what it undoes."""
        self._write(entries.to_dict(entry))

    def record_process(self, pid: int, command: str) -> entries.Process:
        """Record a child just started, that nobody has waited for yet; call it before using it.

        Raises:
            CleanupError: There is no such process.
        """
        started = processes.start_ticks(pid)
        if started is None:
            raise CleanupError(f"process {pid} ({command}) is not there to be recorded; start it first")
        entry = entries.Process(pid, started, command)
        self.record(entry)
        return entry

    def make_directory(self, path: Path) -> Path:
        """Make a directory that is removed, with all it holds, at the end of the run."""
        self.record(entries.Directory(str(path), 0))
        path.mkdir(mode=0o700)
        self.record(entries.Directory(str(path), path.stat().st_ino))
        return path

    def set_sysctl(self, path: Path, value: str) -> None:
        """Change a kernel setting until the end of the run."""
        before = " ".join(path.read_text().split())
        if before != value:
            self.record(entries.Sysctl(str(path), before, value))
            path.write_text(value)

    def undo(self) -> tuple[Undone, ...]:
        """Undo everything, latest first, and remove the run's directory.

        Raises:
            CleanupError: Something could not be undone; the journal is kept for `testbed clean`.
        """
        os.close(self._descriptor)
        return undo(self.directory)

    def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        os.write(self._descriptor, line)
        os.fsync(self._descriptor)


def _owner(runid: str) -> Owner:
    pid = os.getpid()
    started = processes.start_ticks(pid)
    if started is None:
        raise PreflightError("/proc does not show this process; mount proc")
    mark = f"{MARK}={runid}-{secrets.token_hex(8)}"
    return Owner(runid, mark, pid, started, processes.boot_id(), processes.pid_namespace())


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the directory of all runs: nobody else starts a run or cleans up meanwhile."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read(directory: Path) -> tuple[Owner | None, tuple[Entry, ...]]:
    """Owner and entries of the journal in `directory`, in the order written.

    A last line that is not whole belongs to a change that was not made: it was cut off while being written. A
    directory without even a first line belongs to a run that died before it changed anything: its owner is None.

    Raises:
        CleanupError: A line before the last is not a journal line.
    """
    try:
        text = (directory / _FILE).read_text()
    except FileNotFoundError:
        return None, ()
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    try:
        records = [json.loads(line) for line in lines]
    except ValueError as error:
        raise CleanupError(f"{directory / _FILE} is damaged ({error}); undo what it names by hand") from error
    if not records:
        return None, ()
    head = {field.name: records[0].get(field.name) for field in fields(Owner)}
    return Owner(**head), tuple(entries.from_dict(record) for record in records[1:])


def undo(directory: Path) -> tuple[Undone, ...]:
    """Undo all that the journal in `directory` names, latest first, and remove the directory.

    Raises:
        CleanupError: Something could not be undone, each named; the directory stays, so that undoing can be repeated.
    """
    _, recorded = read(directory)
    outcomes: list[Undone] = []
    problems: list[str] = []
    for entry in reversed(recorded):
        try:
            state = entry.state()
            if state is State.PRESENT:
                entry.remove()
            outcomes.append(Undone(entry.describe(), state))
        except CleanupError as error:
            problems.extend(error.problems)
        except OSError as error:
            problems.append(f"{entry.describe()} could not be undone: {error}")
    if problems:
        raise CleanupError([*problems, f"the journal is kept: {directory / _FILE}; repeat with testbed clean"])
    shutil.rmtree(directory)
    return tuple(outcomes)
