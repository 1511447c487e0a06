"""Children: recorded before use, ready before anyone relies on them, watched, and ended whatever they do."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.emulation import entries, journal, processes
from testbed.emulation.journal import Journal
from testbed.emulation.supervisor import Supervisor
from testbed.errors import FidelityError, PreflightError

READY = "import json, signal; print(json.dumps({'ready': True, 'port': 7}), flush=True); "
WAITS = READY + "signal.pause()"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAITS


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def opened(tmp_path: Path) -> Journal:
    return Journal.create(tmp_path)


@pytest.fixture
def supervisor(opened: Journal) -> Iterator[Supervisor]:
    with Supervisor(opened) as made:
        yield made


def test_a_child_that_says_ready_is_recorded_and_carries_the_runs_mark(supervisor: Supervisor, opened: Journal) -> None:
    child = supervisor.start("one", python(WAITS))
    assert child.announcement == {"ready": True, "port": 7}
    _, recorded = journal.read(opened.directory)
    assert entries.Process(child.pid, child.start_ticks, " ".join(child.argv)) in recorded
    assert processes.marked_with(opened.owner.mark) == [child.pid]


def test_a_child_that_puts_something_back_has_time_to_when_its_run_is_undone(
    supervisor: Supervisor, opened: Journal, tmp_path: Path
) -> None:
    back = tmp_path / "back"
    code = "import signal, sys, time; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); " + READY
    code += "signal.sigwait([signal.SIGTERM]); time.sleep(0.3); open(sys.argv[1], 'x')"
    supervisor.start("one", [*python(code), str(back)], restores=True)
    opened.undo()
    assert back.exists()


def test_ctrl_c_at_the_terminal_does_not_reach_a_child(supervisor: Supervisor) -> None:
    child = supervisor.start("one", python("import os; " + READY + "print(os.getpgrp(), flush=True); signal.pause()"))
    assert child.pid != 0
    assert Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()[2] == str(child.pid)


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("raise SystemExit('no licence')", r"ended with status 1 before it was ready; it last said:\nno licence"),
        ("print('hello', flush=True); import signal; signal.pause()", r"announced itself with 'hello' instead of"),
        ("print('[1]', flush=True); import signal; signal.pause()", r"announced itself with '\[1\]'"),
        ("print('{\"ready\": false}', flush=True); import signal; signal.pause()", "announced itself with"),
        ("import signal; signal.pause()", r"was not ready after 0.3 s; it last said:\n\(it wrote nothing\)"),
    ],
    ids=["ends early", "other words", "other JSON", "not ready", "silence"],
)
def test_a_child_that_does_not_become_ready_is_ended_and_quoted(
    supervisor: Supervisor, code: str, problem: str
) -> None:
    with pytest.raises(PreflightError, match=problem):
        supervisor.start("one", python(code), timeout_s=0.3 if "not ready after" in problem else 20.0)
    assert supervisor.children == {}


def test_what_a_child_says_before_it_ends_counts(supervisor: Supervisor) -> None:
    child = supervisor.start("one", python(READY))
    assert child.wait(20.0) == 0
    assert supervisor.deaths() == ()


def test_a_tool_may_announce_itself_on_its_standard_error(supervisor: Supervisor) -> None:
    code = "import signal, sys; print('listening on x', file=sys.stderr, flush=True); signal.pause()"
    supervisor.start("one", python(code), ready=re.compile("^listening on", re.MULTILINE))


def test_a_program_that_is_not_there_is_an_error_of_the_child(supervisor: Supervisor) -> None:
    with pytest.raises(PreflightError, match=r"one \(no-such-program\) ended with status 127"):
        supervisor.start("one", ["no-such-program"])


def test_a_name_is_used_once(supervisor: Supervisor) -> None:
    supervisor.start("one", python(WAITS))
    with pytest.raises(PreflightError, match="a child named one exists already"):
        supervisor.start("one", python(WAITS))


def test_a_child_that_dies_by_itself_is_reported_with_its_last_words(supervisor: Supervisor) -> None:
    child = supervisor.start("one", python(READY + "raise SystemExit('out of paper')"))
    child.process.wait()
    with pytest.raises(FidelityError, match=r"one died with status 1; it last said:\nout of paper"):
        supervisor.check()


def test_a_child_that_was_ended_or_awaited_is_no_death(supervisor: Supervisor) -> None:
    ended, awaited = supervisor.start("one", python(WAITS)), supervisor.start("two", python(READY))
    assert supervisor.end(ended) == -signal.SIGTERM
    assert awaited.wait(20.0) == 0
    supervisor.check()


def test_a_child_can_be_told_something_if_it_listens(supervisor: Supervisor) -> None:
    code = READY + "import sys; sys.exit(json.loads(sys.stdin.readline())['status'])"
    child = supervisor.start("one", python(code), listens=True)
    child.tell({"status": 5})
    assert child.wait(20.0) == 5
    deaf = supervisor.start("two", python(WAITS))
    with pytest.raises(FidelityError, match=r"two .* cannot be told"):
        deaf.tell({})


def test_a_child_that_does_not_end_is_not_waited_for_for_ever(supervisor: Supervisor) -> None:
    child = supervisor.start("one", python(WAITS))
    with pytest.raises(FidelityError, match=r"one \(pid \d+\) is still running after 0.05 s"):
        child.wait(0.05)


def test_leaving_ends_all_children_also_those_that_do_not_listen(opened: Journal) -> None:
    with Supervisor(opened) as made:
        willing, deaf = made.start("one", python(WAITS)), made.start("two", python(DEAF))
        made.end_all(grace_s=0.05)
        assert (willing.process.returncode, deaf.process.returncode) == (-signal.SIGTERM, -signal.SIGKILL)
    assert processes.marked_with(opened.owner.mark) == []


def test_a_child_killed_on_purpose_is_no_death_and_may_be_started_again(supervisor: Supervisor) -> None:
    first = supervisor.start("one", python(WAITS))
    supervisor.kill(first)
    assert supervisor.deaths() == ()
    again = supervisor.start(first.name, first.argv)
    assert again.pid != first.pid
    again.process.kill()
    again.process.wait()
    assert [death.name for death in supervisor.deaths()] == ["one"]


def test_children_of_a_slow_host_may_take_so_many_times_as_long(opened: Journal) -> None:
    with Supervisor(opened, patience=100.0) as patient:
        late = patient.start("one", python("import time; time.sleep(0.3); " + WAITS), timeout_s=0.1)
        assert late.announcement == {"ready": True, "port": 7}
        with pytest.raises(PreflightError, match=r"was not ready after 0\.4 s"):
            patient.start("two", python("import signal; signal.pause()"), timeout_s=0.004)
