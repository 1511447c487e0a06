"""Child processes of a run: started in the right namespace, recorded before use, watched, and ended by pid.

Children die with the thread that started them (PR_SET_PDEATHSIG), carry the run's mark in their environment, and write
their output to files of the run's directory, from which a failure quotes. A child that announces itself prints one line
of JSON, `{"ready": true, ...}`, on standard output. What the children do is none of the supervisor's business.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from testbed.emulation import namespace, processes
from testbed.emulation.journal import Journal
from testbed.emulation.placement import Placement, Role
from testbed.errors import FidelityError, PreflightError

Readiness = bool | re.Pattern[str] | Callable[[], bool]

# Python and its libraries take a second or two, and over twenty on an emulated processor beside much other work.
READY_WITHIN_S = 60.0
RESTORES_WITHIN_S = 5.0
"""What who cleans up after a killed run gives a child that puts something of the host back."""
_LOOK_EVERY_S = 0.002
_TAIL_LINES = 12


@dataclass
class Child:
    """One supervised process.

    Attributes:
        name: Unique in the run; names its output files.
        argv: What was started.
        process: The process itself.
        start_ticks: Start time, which with the pid identifies it.
        output: File that receives its standard output.
        errors: File that receives its standard error.
        announcement: The JSON object of its ready line, empty if none was asked for.
        role: What it is to packets, None for nothing.
    """

    name: str
    argv: tuple[str, ...]
    process: subprocess.Popen[bytes]
    start_ticks: int
    output: Path
    errors: Path
    announcement: dict[str, Any] = field(default_factory=dict)
    role: Role | None = None
    ending: bool = False

    @property
    def pid(self) -> int:
        """Its pid, also inside the namespaces: no pid namespace is made."""
        return self.process.pid

    def tail(self) -> str:
        """The last lines it wrote to standard error, or to standard output if there are none."""
        for path in (self.errors, self.output):
            lines = path.read_text(errors="replace").strip().splitlines()
            if lines:
                return "\n".join(lines[-_TAIL_LINES:])
        return "(it wrote nothing)"

    def tell(self, message: Mapping[str, Any]) -> None:
        """Write one line of JSON to the standard input of a child that was started with `listens`.

        Raises:
            FidelityError: It does not listen, or it ended before it could read.
        """
        try:
            if self.process.stdin is None:
                raise BrokenPipeError("it was started without a standard input")
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise FidelityError(f"{self.name} (pid {self.pid}) cannot be told {message}: {error}") from error

    def wait(self, timeout_s: float) -> int:
        """Wait for a child that ends by itself and return its exit status.

        Raises:
            FidelityError: It is still running after `timeout_s`.
        """
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise FidelityError(
                f"{self.name} (pid {self.pid}) is still running after {timeout_s:g} s; it last said:\n{self.tail()}"
            ) from error
        self.ending = True
        self.hang_up()
        return status

    def hang_up(self) -> None:
        """Close our end of its standard input; what it has not read by now was meant for nobody."""
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()


@dataclass(frozen=True)
class Death:
    """A child that ended without being asked to."""

    name: str
    status: int
    tail: str


class Supervisor:
    """Starts, watches and ends the children of one run; a context manager that ends them all, latest first."""

    def __init__(self, journal: Journal, placement: Placement | None = None, patience: float = 1.0) -> None:
        """Start nothing yet.

        Args:
            journal: Receives every child before it is used.
            placement: Where children with a role run; like any other process if None.
            patience: How many times as long as usual children may take to be ready, on a host that is known to be slow.
        """
        self._journal = journal
        self.placement = placement or Placement()
        self._patience = patience
        self._logs = journal.directory / "log"
        self._logs.mkdir(mode=0o700, exist_ok=True)
        self.children: dict[str, Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_all()

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        host_pid: int | None = None,
        environment: Mapping[str, str] | None = None,
        ready: Readiness = True,
        listens: bool = False,
        restores: bool = False,
        role: Role | None = None,
        timeout_s: float = READY_WITHIN_S,
        grace_s: float = 3.0,
    ) -> Child:
        """Start a child and wait until it is ready.

        Args:
            name: Unique in the run.
            argv: Program and arguments; no shell.
            host_pid: A process whose network namespace the child joins (a Mininet host's shell); None for that of the
                calling thread.
            environment: Added to this process's environment.
            ready: True: wait for the JSON line. A pattern: wait until it matches standard error (tools that announce
                themselves there). A function: wait until it returns true. False: do not wait.
            listens: Whether it is told something later through `Child.tell`; otherwise its standard input is closed.
            restores: Whether it puts something of the host back when it gets TERM: who cleans up after a run that was
                killed gives it time to.
            role: What it is to packets, which decides its place.
            timeout_s: How long to wait, on a host of usual speed.
            grace_s: How long a child that never became ready gets between TERM and KILL.

        Raises:
            PreflightError: It cannot be started, ended early or was not ready in time; with what it last said.
        """
        if name in self.children:
            raise PreflightError(f"a child named {name} exists already; give each child a name of its own")
        child = self._spawn(name, argv, host_pid, environment, listens=listens, restores=restores)
        self.children[name] = child
        child.role = role
        self.placement.put(child.pid, role)
        if ready is not False:
            self._await(child, ready, self._patience * timeout_s, grace_s)
        return child

    def _await(self, child: Child, ready: Readiness, timeout_s: float, grace_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        problem = None
        with processes.pidfd(child.pid, child.start_ticks) as descriptor:
            while problem is None:
                # In this order: what a child says before it ends counts.
                ended = descriptor is None or processes.wait_gone(descriptor, _LOOK_EVERY_S)
                if self._is_ready(child, ready):
                    return
                if ended:
                    problem = f"ended with status {child.process.wait()} before it was ready"
                elif time.monotonic() > deadline:
                    problem = f"was not ready after {timeout_s:g} s"
        self.end(child, grace_s=grace_s)
        raise PreflightError(f"{child.name} ({' '.join(child.argv)}) {problem}; it last said:\n{child.tail()}")

    def deaths(self) -> tuple[Death, ...]:
        """Children that ended although nobody ended or awaited them."""
        return tuple(
            Death(child.name, status, child.tail())
            for child in self.children.values()
            if not child.ending and (status := child.process.poll()) is not None
        )

    def misplaced(self) -> tuple[str, ...]:
        """Children of which some thread no longer runs where, and before whom, it was put."""
        return self.placement.differences(
            {child.name: (child.pid, child.role) for child in self.children.values() if child.role is not None}
        )

    def check(self) -> None:
        """Fail if any child died.

        Raises:
            FidelityError: With the last words of each that did.
        """
        deaths = self.deaths()
        if deaths:
            raise FidelityError(
                [f"{death.name} died with status {death.status}; it last said:\n{death.tail}" for death in deaths]
            )

    def end(self, child: Child, *, grace_s: float = 3.0) -> int:
        """End one child, TERM first, KILL if it is still there after `grace_s`, and return its exit status."""
        child.ending = True
        self.children.pop(child.name, None)
        if child.process.poll() is None:
            processes.end(child.pid, child.start_ticks, grace_s=grace_s)
        child.hang_up()
        return child.process.wait()

    def kill(self, child: Child) -> None:
        """Kill one child on purpose, as a crash would; it may then be started again under its name."""
        child.ending = True
        self.children.pop(child.name, None)
        child.process.kill()
        child.process.wait()
        child.hang_up()

    def end_all(self, *, grace_s: float = 3.0) -> None:
        """Ask all children to end, latest first, then end those that did not within `grace_s`, counted once."""
        latest_first = list(reversed(self.children.values()))
        for child in latest_first:
            child.ending = True
            if child.process.poll() is None:
                child.process.terminate()
        deadline = time.monotonic() + grace_s
        poller = select.poll()
        waiting = {os.pidfd_open(child.pid): child for child in latest_first if child.process.poll() is None}
        for descriptor in waiting:
            poller.register(descriptor, select.POLLIN)
        while waiting and (left := deadline - time.monotonic()) > 0:
            for descriptor, _ in poller.poll(left * 1000):
                poller.unregister(descriptor)
                os.close(descriptor)
                waiting.pop(descriptor)
        for descriptor in waiting:
            os.close(descriptor)
        for child in latest_first:
            if child.process.poll() is None:
                child.process.kill()
            child.process.wait()
            child.hang_up()
        self.children.clear()

    def _spawn(
        self,
        name: str,
        argv: Sequence[str],
        host_pid: int | None,
        environment: Mapping[str, str] | None,
        *,
        listens: bool,
        restores: bool,
    ) -> Child:
        # Both helpers replace themselves by what they start, so the pid stays the one we fork.
        prefix = ["setpriv", "--pdeathsig", "KILL", "--"]
        if host_pid is not None:
            prefix = ["nsenter", f"--net={namespace.of_process(host_pid)}", "--", *prefix]
        output, errors = self._logs / f"{name}.out", self._logs / f"{name}.err"
        with output.open("wb") as out, errors.open("wb") as err:
            process = subprocess.Popen(
                [*prefix, *argv],
                stdin=subprocess.PIPE if listens else subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **(environment or {}), **self._journal.environment},
                # Ctrl-C is for us to answer, not for the whole network at once.
                process_group=0,
            )
        grace_s = RESTORES_WITHIN_S if restores else 0.0
        recorded = self._journal.record_process(process.pid, " ".join(argv), grace_s)
        return Child(name, tuple(argv), process, recorded.start_ticks, output, errors)

    def _is_ready(self, child: Child, ready: Readiness) -> bool:
        if isinstance(ready, re.Pattern):
            return ready.search(child.errors.read_text(errors="replace")) is not None
        if callable(ready):
            return ready()
        line, newline, _ = child.output.read_text(errors="replace").partition("\n")
        if not newline:
            return False
        try:
            announcement = json.loads(line)
        except ValueError:
            announcement = None
        if not isinstance(announcement, dict) or announcement.get("ready") is not True:
            self.end(child)
            raise PreflightError(f'{child.name} announced itself with {line!r} instead of {{"ready": true}}')
        child.announcement = announcement
        return True
