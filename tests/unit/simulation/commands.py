"""The command as a user types it: a process where one is to be killed, and else this one, as starting takes seconds."""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess
import sys

import pytest

from testbed.cli import main

COMMAND = [sys.executable, "-c", "from testbed.cli import main; main()"]


def ended(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What `testbed ARGUMENTS` prints and its exit code, carried out in this process."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["testbed", *arguments])
        try:
            with pytest.raises(SystemExit) as exit_:
                main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    code = exit_.value.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(["testbed", *arguments], code, out.getvalue(), err.getvalue())
