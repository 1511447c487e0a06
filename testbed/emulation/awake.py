"""Cores that hardly sleep: `python -m testbed.emulation.awake` wakes each ten thousand times a second.

A virtual processor with nothing to do gives its core back, and its hypervisor may take milliseconds to return it for
the next packet. KVM waits some 200 us before it lets a core go; whoever wakes up within that time has it at once. On
the machine this was written on, timers of an idle virtual processor are late by 0.9 to 2.7 ms at p99.9, and by 0.1 to
0.2 ms where it never sleeps longer than 100 us, for a twelfth of a core. The waking threads are of the scheduling class
SCHED_IDLE, so whatever else wants to run goes before them, and while it does they need nothing. They nap rather than
spin: the scheduler hands waiting tasks only to a core that is idle, and a spinning one never is (gRPC calls then took a
third longer).

Ten times in each half second a core is let go for 5 ms all the same. To a hypervisor, a core that it watches is busy,
and one that limits its guests to the processors they have, counted over 100 ms (the usual period of Linux's bandwidth
control), lets a guest of which no core ever sleeps stand still for the rest of such a period: cores were away for 98 to
100 ms once every few minutes, and no longer are.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading

import numba
import numpy as np
from numba import types

from testbed.emulation.supervisor import Child, Supervisor

_NAP_NS = 100_000
_NAPS = 450
_REST_NS = 5_000_000
_CLOCK_MONOTONIC = 1
_PR_SET_TIMERSLACK = 29

_clock_nanosleep = types.ExternalFunction(
    "clock_nanosleep", types.int32(types.int32, types.int32, types.voidptr, types.voidptr)
)


def keep_awake(supervisor: Supervisor) -> Child:
    """Keep all cores that this process may use awake, from now until the child ends."""
    return supervisor.start("awake", [sys.executable, "-m", "testbed.emulation.awake"])


@numba.njit("void(int64, int64)", cache=True, nogil=True)
def _nap(nap_ns: int, times: int) -> None:
    timespec = np.zeros(2, np.int64)
    timespec[1] = nap_ns
    for _ in range(times):
        _clock_nanosleep(_CLOCK_MONOTONIC, 0, timespec.ctypes, 0)


def _wake(core: int, threads: dict[int, int], ready: threading.Semaphore) -> None:
    os.sched_setaffinity(0, {core})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)
    threads[core] = threading.get_native_id()
    ready.release()
    while True:
        _nap(_NAP_NS, _NAPS)
        _nap(_REST_NS, 1)


def main() -> None:
    """Wake every core until a signal ends the process."""
    threads: dict[int, int] = {}
    ready = threading.Semaphore(0)
    for core in sorted(os.sched_getaffinity(0)):
        threading.Thread(target=_wake, args=(core, threads, ready), daemon=True).start()
        ready.acquire()
    print(json.dumps({"ready": True, "threads": threads}), flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
