"""CLOCK_REALTIME stepped while a process lives: `python -m testbed.emulation.clock_step NANOSECONDS`.

It prints one JSON line when the clock is stepped, and steps it back by as much when it gets SIGTERM or SIGINT, or when
whoever started it dies: a run that is killed gives the host its time back. Both steps are relative, so what keeps the
host's clock in time meanwhile is left in place. The exit code is 2 where the clock may not be set.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence

from testbed.emulation import syscalls

_ENDS = (signal.SIGTERM, signal.SIGINT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Step the clock, wait to be ended, step it back."""
    parser = argparse.ArgumentParser(prog="testbed.emulation.clock_step", description="Step the clock for a while.")
    parser.add_argument("nanoseconds", type=int, help="how far, negative for back")
    by_ns = parser.parse_args(arguments).nanoseconds
    # Blocked first, so that none strikes between the two steps; the death of the parent is one of them from here on.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    parent = os.getppid()
    syscalls.die_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        return 0
    try:
        syscalls.step_clock(by_ns)
    except OSError as error:
        print(f"clock: cannot be stepped ({error.strerror}); it needs CAP_SYS_TIME", file=sys.stderr)
        return 2
    print(json.dumps({"ready": True, "stepped_ns": by_ns}), flush=True)
    signal.sigwait(_ENDS)
    syscalls.step_clock(-by_ns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
