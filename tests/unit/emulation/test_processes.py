"""Who a pid is, whether it still is, and ending exactly that process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.emulation import processes
from testbed.emulation.entries import Marked, Process, State

WAITING = "import signal, sys; sys.stdout.write('up\\n'); sys.stdout.flush(); signal.pause()"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAITING


def started(code: str, **environment: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, **environment})
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with started(WAITING) as process:
        yield process
        process.kill()


def start_of(process: subprocess.Popen[bytes]) -> int:
    found = processes.start_ticks(process.pid)
    assert found is not None
    return found


def test_a_process_is_alive_under_its_start_time_only(child: subprocess.Popen[bytes]) -> None:
    ticks = start_of(child)
    assert processes.is_alive(child.pid, ticks)
    assert not processes.is_alive(child.pid, ticks - 1)


def test_a_command_name_with_blanks_and_parentheses_does_not_shift_the_start_time() -> None:
    odd = "import ctypes; ctypes.CDLL(None).prctl(15, b') S 1 2 (', 0, 0, 0); " + WAITING
    with started(odd) as process, started(WAITING) as plain:
        hertz = os.sysconf("SC_CLK_TCK")
        assert abs(start_of(process) - start_of(plain)) < 60 * hertz
        assert processes.is_alive(process.pid, start_of(process))
        process.kill()
        plain.kill()


def test_a_child_that_has_ended_and_was_not_waited_for_has_a_start_time_and_is_not_alive(
    child: subprocess.Popen[bytes],
) -> None:
    ticks = start_of(child)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.start_ticks(child.pid) == ticks
    assert not processes.is_alive(child.pid, ticks)


def test_ending_a_reused_pid_leaves_its_new_owner_alone(child: subprocess.Popen[bytes]) -> None:
    assert processes.end(child.pid, start_of(child) - 1)
    assert child.poll() is None
    entry = Process(child.pid, start_of(child) - 1, "somebody else's")
    assert entry.state() is State.FOREIGN


def test_an_entry_follows_its_process_from_present_to_gone(child: subprocess.Popen[bytes]) -> None:
    entry = Process(child.pid, start_of(child), "waits")
    assert entry.state() is State.PRESENT
    entry.remove()
    assert entry.state() is State.GONE
    assert child.wait() == -signal.SIGKILL
    assert entry.state() is State.GONE


def test_ending_asks_first_and_kills_what_does_not_listen(child: subprocess.Popen[bytes]) -> None:
    assert processes.end(child.pid, start_of(child), grace_s=20.0)
    assert child.wait() == -signal.SIGTERM
    with started(DEAF) as deaf:
        assert processes.end(deaf.pid, start_of(deaf), grace_s=0.05)
        assert deaf.wait() == -signal.SIGKILL


def test_a_mark_finds_its_processes_and_no_others(child: subprocess.Popen[bytes]) -> None:
    mark = "TAIL_LATENCY_TESTBED_RUN=unit-00"
    name, value = mark.split("=")
    with (
        started(WAITING, **{name: value}) as first,
        started(WAITING, **{name: value}) as second,
        started(WAITING, **{name: value + "0"}) as similar,
    ):
        assert sorted(processes.marked_with(mark)) == sorted([first.pid, second.pid])
        entry = Marked(mark)
        assert entry.state() is State.PRESENT
        entry.remove()
        assert entry.state() is State.GONE
        assert (first.wait(), second.wait()) == (-signal.SIGKILL, -signal.SIGKILL)
        assert similar.poll() is None
        assert child.poll() is None
        similar.kill()


def test_the_boot_and_the_pid_namespace_have_identities() -> None:
    assert processes.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert processes.pid_namespace() == Path(f"/proc/{os.getpid()}/ns/pid").stat().st_ino
