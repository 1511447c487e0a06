"""Processes as the kernel shows them: identity that survives pid reuse, marks in the environment, and ending them.

A pid alone names whoever holds it now. Pid and start time name one process for the life of the kernel, and a pidfd
keeps that pairing while a signal is delivered. Starting processes is the supervisor's business.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PROC = Path("/proc")


def _state_and_start(pid: int) -> tuple[str, int] | None:
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command in parentheses may itself hold blanks and parentheses: fields are counted from the last one.
    state, *rest = stat[stat.rindex(")") + 2 :].split()
    return state, int(rest[18])


def start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot, None if nobody has that pid; an unreaped child has one."""
    found = _state_and_start(pid)
    return None if found is None else found[1]


def is_alive(pid: int, started: int) -> bool:
    """Whether the process that had this pid at this start time still runs."""
    found = _state_and_start(pid)
    return found is not None and found[0] not in {"Z", "X"} and found[1] == started


def boot_id() -> str:
    """Identity of this boot of the kernel: pids and start times of another boot mean nothing."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def pid_namespace() -> int:
    """Identity of the pid namespace in which this process reads pids."""
    return (_PROC / "self/ns/pid").stat().st_ino


def marked_with(mark: str) -> list[int]:
    """Pids, other than our own, whose initial environment holds the entry `mark` (`NAME=value`)."""
    wanted = mark.encode()
    found = []
    for entry in _PROC.iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0"):
            found.append(int(entry.name))
    return found


@contextmanager
def pidfd(pid: int, started: int) -> Iterator[int | None]:
    """A pidfd of exactly this process, None if it is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # Checked after opening: from here on the descriptor cannot come to mean another process.
        yield descriptor if is_alive(pid, started) else None
    finally:
        os.close(descriptor)


def wait_gone(descriptor: int, timeout_s: float) -> bool:
    """Wait until the process of a pidfd has ended; False if it still runs after `timeout_s`."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


def end(pid: int, started: int, *, grace_s: float = 0.0, timeout_s: float = 10.0) -> bool:
    """End exactly this process: TERM and `grace_s` to comply if that is positive, then KILL.

    Returns:
        Whether it is gone; False means that even KILL did not take effect within `timeout_s`.
    """
    with pidfd(pid, started) as descriptor:
        if descriptor is None:
            return True
        try:
            if grace_s > 0:
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
                if wait_gone(descriptor, grace_s):
                    return True
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except ProcessLookupError:
            return True
        return wait_gone(descriptor, timeout_s)
