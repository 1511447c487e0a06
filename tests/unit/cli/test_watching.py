"""What a user at a terminal is shown of a long verb."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys
from testbed.cli.watching import Interrupt, shown
stop = Interrupt()
with shown(stop) as progress:
    with progress.step("building"):
        pass
    with progress.step("measuring"):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
    with progress.step("judging"):
        pass
"""
NOTICE = "ending early with what there is; once more breaks off"
STEPS = ["building", "measuring", "judging"]


def on_terminal(program: str) -> list[str]:
    """Run a program on a terminal of its own: the lines that are left on it."""
    leader, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    try:
        command = [sys.executable, "-c", program]
        process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
        os.close(terminal)
        written = b""
        try:
            while read := os.read(leader, 65536):
                written += read
        except OSError:
            pass  # the other end is closed
        assert process.wait() == 0, written.decode()
    finally:
        os.close(leader)
    return screen(written.decode())


def screen(written: str) -> list[str]:
    """The lines that a terminal shows of this: as much of one as bars need, which are drawn from a line's beginning."""
    lines, row = [""], 0
    for sign in re.findall(r"\x1b\[\??[0-9;]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", written):
        if sign == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif up := re.fullmatch(r"\x1b\[([0-9]+)A", sign):
            row -= int(up[1])
        elif sign == "\x1b[2K":
            lines[row] = ""
        elif not sign.startswith(("\x1b", "\r")):
            lines[row] += sign
    return [line.strip() for line in lines if line.strip()]


def test_after_ctrl_c_every_bar_and_the_notice_are_on_the_terminal_once() -> None:
    lines = on_terminal(PROGRAM)
    assert lines[0] == NOTICE
    assert [next(step for step in STEPS if step in line) for line in lines[1:]] == STEPS


def test_without_a_terminal_the_notice_is_a_line_of_its_own() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert [line for line in ended.stderr.splitlines() if line] == [
        "building ...",
        "measuring ...",
        NOTICE,
        "judging ...",
    ]


@pytest.mark.parametrize(("written", "shown"), [("a\r\nb\x1b[1A\r\x1b[2Kc", ["c", "b"]), ("a\x1b[2Kb", ["b"])])
def test_the_terminal_of_these_tests_moves_up_and_erases(written: str, shown: list[str]) -> None:
    assert screen(written) == shown
