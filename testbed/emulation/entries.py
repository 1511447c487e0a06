"""What a run may do to the host, each as a small record that knows how to tell whether it is still there and undo it.

Every kind carries an identity that a stranger's object of the same name does not have: inode, start time, MAC address,
or the value that was written. Ordering, files and dead runs are the journal's business.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pyroute2 import IPRoute

from testbed.emulation import processes, syscalls
from testbed.errors import CleanupError


class State(StrEnum):
    """What has become of something a journal names."""

    PRESENT = "present"
    GONE = "gone"
    FOREIGN = "not ours"


class Entry(Protocol):
    """One change to the host and its undo."""

    kind: ClassVar[str]

    def describe(self) -> str:
        """What was made, as a message names it."""
        ...

    def state(self) -> State:
        """Whether it is still there and still ours."""
        ...

    def remove(self) -> None:
        """Undo it; called only when `state` says present."""
        ...


@dataclass(frozen=True)
class Marked:
    """Every process started with this mark in its environment: covers the moment between fork and journal entry."""

    kind: ClassVar[str] = "marked"
    mark: str

    def describe(self) -> str:
        """The mark."""
        return f"processes marked {self.mark}"

    def state(self) -> State:
        """Present while any process carries the mark."""
        return State.PRESENT if processes.marked_with(self.mark) else State.GONE

    def remove(self) -> None:
        """Kill them, until a look finds none: one that was forking may have left a child."""
        for _ in range(20):
            pids = processes.marked_with(self.mark)
            if not pids:
                return
            for pid in pids:
                started = processes.start_ticks(pid)
                if started is not None:
                    processes.end(pid, started)
        raise CleanupError(f"processes marked {self.mark} keep coming back: pids {pids}; end them by hand")


@dataclass(frozen=True)
class Process:
    """One process, by pid and start time; one that puts something back as it ends has `grace_s` to do so."""

    kind: ClassVar[str] = "process"
    pid: int
    start_ticks: int
    command: str
    grace_s: float = 0.0

    def describe(self) -> str:
        """Pid and command."""
        return f"process {self.pid} ({self.command})"

    def state(self) -> State:
        """Foreign when the pid now belongs to a younger process."""
        if processes.is_alive(self.pid, self.start_ticks):
            return State.PRESENT
        return State.GONE if processes.start_ticks(self.pid) in {None, self.start_ticks} else State.FOREIGN

    def remove(self) -> None:
        """End it and wait until it is gone."""
        if not processes.end(self.pid, self.start_ticks, grace_s=self.grace_s):
            raise CleanupError(f"{self.describe()} did not end after KILL; it hangs in the kernel, see its wchan")


@dataclass(frozen=True)
class Namespace:
    """A named network namespace: `path` is its name in the file system, device and inode are the namespace itself."""

    kind: ClassVar[str] = "namespace"
    path: str
    device: int
    inode: int

    def describe(self) -> str:
        """Its name."""
        return f"network namespace {Path(self.path).name}"

    def state(self) -> State:
        """Present also when only the empty name was made before the run died."""
        try:
            found = Path(self.path).stat()
        except FileNotFoundError:
            return State.GONE
        if (found.st_dev, found.st_ino) == (self.device, self.inode) or self._is_bare_name():
            return State.PRESENT
        return State.FOREIGN

    def _is_bare_name(self) -> bool:
        return Path(self.path).stat().st_dev == Path(self.path).parent.stat().st_dev

    def remove(self) -> None:
        """Take the name away; the kernel takes its links, qdiscs and addresses with the last process that is in it."""
        path = Path(self.path)
        if not self._is_bare_name():
            syscalls.unmount(path)
        path.unlink()


@dataclass(frozen=True)
class Sysctl:
    """A kernel setting outside our own namespaces."""

    kind: ClassVar[str] = "sysctl"
    path: str
    before: str
    after: str

    def describe(self) -> str:
        """Its path and the change."""
        return f"{self.path}: {self.before} -> {self.after}"

    def state(self) -> State:
        """Foreign when somebody else has changed it since; gone when it has its old value."""
        found = " ".join(Path(self.path).read_text().split())
        if found == self.before:
            return State.GONE
        return State.PRESENT if found == self.after else State.FOREIGN

    def remove(self) -> None:
        """Write the old value back."""
        Path(self.path).write_text(self.before)


@dataclass(frozen=True)
class Link:
    """A network interface outside our own namespaces, by name and the MAC address we chose for it."""

    kind: ClassVar[str] = "link"
    name: str
    address: str

    def describe(self) -> str:
        """Its name."""
        return f"link {self.name} ({self.address})"

    def _found(self) -> tuple[int, str] | None:
        with IPRoute() as ip:
            for link in ip.get_links():
                if link.get("ifname") == self.name:
                    return link["index"], link.get("address")
        return None

    def state(self) -> State:
        """Foreign when a link of that name has another address."""
        found = self._found()
        if found is None:
            return State.GONE
        return State.PRESENT if found[1] == self.address else State.FOREIGN

    def remove(self) -> None:
        """Delete it by index."""
        found = self._found()
        if found is not None:
            with IPRoute() as ip:
                ip.link("del", index=found[0])


@dataclass(frozen=True)
class Directory:
    """A directory. Inode 0: recorded before it was made, so that only an empty one can be ours."""

    kind: ClassVar[str] = "directory"
    path: str
    inode: int

    def describe(self) -> str:
        """Its path."""
        return f"directory {self.path}"

    def state(self) -> State:
        """Foreign when another directory took its place."""
        path = Path(self.path)
        try:
            found = path.stat(follow_symlinks=False).st_ino
        except FileNotFoundError:
            return State.GONE
        ours = found == self.inode if self.inode else not any(path.iterdir())
        return State.PRESENT if ours else State.FOREIGN

    def remove(self) -> None:
        """Remove it and, if it is known by inode, all it holds."""
        if self.inode:
            shutil.rmtree(self.path)
        else:
            Path(self.path).rmdir()


KINDS: dict[str, type[Any]] = {kind.kind: kind for kind in (Marked, Process, Namespace, Sysctl, Link, Directory)}


def to_dict(entry: Entry) -> dict[str, Any]:
    """JSON-ready form of an entry."""
    return {"kind": entry.kind, **asdict(entry)}  # type: ignore[call-overload]


def from_dict(data: Any) -> Entry:
    """Inverse of `to_dict`.

    Raises:
        CleanupError: The kind or its fields are unknown, so the record was written by something newer or broken.
    """
    try:
        fields = dict(data)
        entry: Entry = KINDS[fields.pop("kind")](**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise CleanupError(
            f"journal entry {data!r} is of no known form ({error}); use the version of testbed that wrote it"
        ) from error
    return entry
