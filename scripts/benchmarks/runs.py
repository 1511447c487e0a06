"""Runs of the testbed that a benchmark makes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTBED = (sys.executable, "-c", "from testbed.cli import main; main()")


class RunFailedError(Exception):
    """A run ended without a record; the message is what it said."""


def run_scenario(scenario: Path, out: Path, *options: str) -> dict[str, Any]:
    """Make a whole run: its record.

    Ctrl-C reaches the run as well, which then puts back what it changed; it is waited for.

    Raises:
        RunFailedError: It left no record.
    """
    command = [*TESTBED, "run", str(scenario), "--json", "--out", str(out), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        try:
            printed, said = started.communicate()
        except KeyboardInterrupt:
            started.communicate()
            raise
    if not printed.startswith("{"):
        raise RunFailedError(said.strip())
    record: dict[str, Any] = json.loads(printed)
    return record
