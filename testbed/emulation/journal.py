"""The undo of everything a run does to the host, on disk before it is done.

A journal is an append-only file of JSON lines, `<root>/<runid>/journal.jsonl`: first who runs, then one entry per
change, each forced to disk before the change is made. Undoing walks it backwards, skips what is already gone, leaves
alone what turns out to belong to somebody else, and goes on past what cannot be undone. The same walk ends a run that
is alive and cleans up after one that was killed (`testbed.emulation.clean`). A journal that cannot be read is not
guessed at: nothing it may name is touched.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
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
_RUNID = re.compile(r"[0-9a-f]{6}")


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
    """What the undo of one entry came to, or would come to.

    Attributes:
        what: The change, as a message names it.
        state: What had become of it, None if that could not be told.
        problem: Why it could not be undone, None if it could or if there was nothing to undo.
    """

    what: str
    state: State | None
    problem: str | None = None


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

    def record_process(self, pid: int, command: str, grace_s: float = 0.0) -> entries.Process:
        """Record a child just started, that nobody has waited for yet; call it before using it.

        Args:
            pid: The child's.
            command: What a message calls it.
            grace_s: How long whoever undoes it waits between TERM and KILL.

        Raises:
            CleanupError: There is no such process.
        """
        started = processes.start_ticks(pid)
        if started is None:
            raise CleanupError(f"process {pid} ({command}) is not there to be recorded; start it first")
        entry = entries.Process(pid, started, command, grace_s)
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
        outcomes = undo(self.directory)
        problems = problems_of(self.directory, outcomes)
        if problems:
            raise CleanupError(problems)
        return outcomes

    def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        size = os.fstat(self._descriptor).st_size
        if os.write(self._descriptor, line) != len(line):
            # The next entry would be glued to the half of this one, and neither could be read.
            os.ftruncate(self._descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.directory / _FILE))
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

    A last line that is not whole belongs to a change that was not made: it was cut off while being written. A run's
    directory that holds not even a first line, nor anything else, belongs to a run that died before it changed
    anything: its owner is None.

    Raises:
        CleanupError: It is no journal of a run, or a line before the last is not a journal line.
    """
    path = directory / _FILE
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    if not whole:
        strangers = [item.name for item in directory.iterdir() if item.name != _FILE]
        if strangers or not _RUNID.fullmatch(directory.name):
            raise CleanupError(
                f"{directory} is no run's directory: it has no journal and holds {', '.join(strangers) or 'nothing'}; "
                "nothing in it was touched: move it elsewhere"
            )
        return None, ()
    try:
        records = [json.loads(line) for line in whole]
        return _owner_in(records[0], directory.name), tuple(entries.from_dict(record) for record in records[1:])
    except (ValueError, CleanupError) as error:
        raise CleanupError(
            f"{path} is damaged ({error}); nothing it names was touched: undo that by hand, then remove {directory}"
        ) from error


def _owner_in(record: Any, runid: str) -> Owner:
    """The owner that a journal's first line names.

    Raises:
        ValueError: It names none, or another run's.
    """
    wanted = {field.name: {"str": str, "int": int}[str(field.type)] for field in fields(Owner)}
    if not isinstance(record, dict) or record.get("kind") != "run":
        raise ValueError(f"its first line is {record!r} and does not say who runs")
    found = {name: record.get(name) for name in wanted}
    wrong = [f"{name} {value!r}" for name, value in found.items() if type(value) is not wanted[name]]
    if wrong:
        raise ValueError(f"its first line has {', '.join(wrong)}")
    if found["runid"] != runid:
        raise ValueError(f"it is of run {found['runid']} and lies in the directory of {runid}")
    return Owner(**found)  # type: ignore[arg-type]


def undo(directory: Path, *, dry_run: bool = False) -> tuple[Undone, ...]:
    """Undo all that the journal in `directory` names, latest first.

    The directory goes with it, unless something could not be undone: then it stays, so that undoing can be repeated.

    Args:
        directory: Of one run.
        dry_run: Only look what there is to undo.

    Raises:
        CleanupError: The journal cannot be read.
    """
    _, recorded = read(directory)
    outcomes = tuple(_undo_entry(entry, dry_run=dry_run) for entry in reversed(recorded))
    if not dry_run and not any(item.problem for item in outcomes):
        shutil.rmtree(directory)
    return outcomes


def problems_of(directory: Path, outcomes: Sequence[Undone]) -> tuple[str, ...]:
    """What `undo` could not undo, a sentence each, and where that is written down; empty if there is nothing."""
    problems = [item.problem for item in outcomes if item.problem]
    return (*problems, f"the journal is kept: {directory / _FILE}; repeat with testbed clean") if problems else ()


def _undo_entry(entry: Entry, *, dry_run: bool) -> Undone:
    what, state = entry.describe(), None
    try:
        state = entry.state()
        if state is State.PRESENT and not dry_run:
            entry.remove()
    except (CleanupError, OSError) as error:
        return Undone(what, state, f"{what} could not be undone: {error}")
    return Undone(what, state)
