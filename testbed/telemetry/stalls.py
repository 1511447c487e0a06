"""A ticker on every core that notes when it could not run: `python -m testbed.telemetry.stalls FILE`.

One thread per core sleeps until the next point of an absolute grid and records by how much it woke too late. It
runs with ordinary priority, as the switch does, so it sees what the switch sees: a frozen virtual machine, a stolen
core, a neighbour that does not yield. It explains why packets were late; whether they were is for the ideal replay to
say. Each tick also compares the two clocks, so that a step of CLOCK_REALTIME is seen even if it is undone at once. The
child prints one JSON line when it ticks and writes its record when it gets SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from testbed.emulation.placement import Role
from testbed.emulation.supervisor import Child, Supervisor
from testbed.errors import FidelityError

IntArray = npt.NDArray[np.int64]

PERIOD_NS = 4_000_000
"""A wake-up from idle costs a virtual machine some 25 us, in C as well: a grid of 1 ms would take 2.5 % of every core
from what is being measured, this one takes 0.6 %. No stall longer than period and threshold goes unseen."""
THRESHOLD_NS = 500_000
"""Half a millisecond late is what a busy scheduler does; less is not worth a record."""
CAPACITY = 1 << 16
"""Overruns that a core can record: four minutes in which every single tick is late."""
CLOCK_RESOLVED_NS = 50_000
"""CLOCK_REALTIME that has moved against CLOCK_MONOTONIC by more than this is recorded anew."""
CLOCK_CAPACITY = 1 << 12
"""Moves of the clock that a core can record: 0.2 s in steps of what is resolved, and a slewed clock does not step."""

_CLOCK_REALTIME, _CLOCK_MONOTONIC, _TIMER_ABSTIME = 0, 1, 1
_READ_WITHIN_NS = 200_000
"""Two clocks are compared by three readings, and the comparison may be off by half of what these took; where that was
longer, something came in between. It is enough for an emulated machine, to which a reading is a system call."""
_PR_SET_TIMERSLACK = 29
_SECOND_NS = 1_000_000_000
_ENDING = (signal.SIGTERM, signal.SIGINT)
_SLICE_TICKS = 25
"""Ticks between two looks at whether the child was asked to end."""

_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.voidptr))
_clock_nanosleep = types.ExternalFunction(
    "clock_nanosleep", types.int32(types.int32, types.int32, types.voidptr, types.voidptr)
)


@dataclass(frozen=True)
class StallRecord:
    """What one core's ticker saw.

    Attributes:
        core: Number of the core.
        ticks: Grid points it woke for.
        start_ns: CLOCK_MONOTONIC of its first grid point.
        end_ns: CLOCK_MONOTONIC of its last look at the clock.
        at_ns: CLOCK_MONOTONIC grid points it missed by more than the threshold, int64 [k].
        late_ns: By how much, int64 [k].
        unrecorded: Overruns beyond the record's capacity.
        clock_at_ns: CLOCK_MONOTONIC when CLOCK_REALTIME was first read and each time it had moved, int64 [m].
        clock_offset_ns: CLOCK_REALTIME minus CLOCK_MONOTONIC from then on, to `CLOCK_RESOLVED_NS`, int64 [m].
    """

    core: int
    ticks: int
    start_ns: int
    end_ns: int
    at_ns: IntArray
    late_ns: IntArray
    unrecorded: int
    clock_at_ns: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    clock_offset_ns: IntArray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def duration_s(self) -> float:
        """How long it ticked."""
        return (self.end_ns - self.start_ns) / 1e9

    def during(self, start_ns: int, end_ns: int) -> Self:
        """The same core's record from `start_ns` to `end_ns` (CLOCK_MONOTONIC) only."""
        start, end = max(start_ns, self.start_ns), min(end_ns, self.end_ns)
        inside = (self.at_ns + self.late_ns > start) & (self.at_ns < end)
        # The last move before the window says how far apart the clocks were when it began.
        in_force = max(0, int(np.searchsorted(self.clock_at_ns, start, side="right")) - 1)
        moves = slice(in_force, int(np.searchsorted(self.clock_at_ns, end, side="right")))
        return replace(
            self,
            start_ns=start,
            end_ns=end,
            at_ns=self.at_ns[inside],
            late_ns=self.late_ns[inside],
            clock_at_ns=self.clock_at_ns[moves],
            clock_offset_ns=self.clock_offset_ns[moves],
        )

    @property
    def longest_s(self) -> float:
        """The longest overrun, 0 if none was recorded."""
        return float(self.late_ns.max(initial=0)) / 1e9

    @property
    def stalled_s(self) -> float:
        """Sum of the recorded overruns."""
        return float(self.late_ns.sum()) / 1e9

    @property
    def clock_moved_s(self) -> float:
        """How far CLOCK_REALTIME moved against CLOCK_MONOTONIC at the most, there and back counted once.

        Infinity where they were never compared: whoever did not look has not seen that nothing moved.
        """
        return float(np.ptp(self.clock_offset_ns)) / 1e9 if self.clock_offset_ns.size else np.inf


_COLUMNS = ("at_ns", "late_ns", "clock_at_ns", "clock_offset_ns")


def save(path: Path, records: Sequence[StallRecord]) -> None:
    """Writes the records of all cores to an `.npz` file that only its owner can read."""
    counts = [(r.core, r.ticks, r.start_ns, r.end_ns, r.at_ns.size, r.unrecorded, r.clock_at_ns.size) for r in records]
    cores = np.array(counts, np.int64).reshape(-1, 7)
    columns: dict[str, Any] = {
        name: np.concatenate([np.empty(0, np.int64), *(getattr(record, name) for record in records)])
        for name in _COLUMNS
    }
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        np.savez_compressed(file, cores=cores, **columns)


def load(path: Path) -> tuple[StallRecord, ...]:
    """Reads what `save` wrote, one record per core.

    Raises:
        FidelityError: The file is not there or is no record of stalls.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            cores, columns = arrays["cores"], {name: arrays[name] for name in _COLUMNS}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise FidelityError(f"{path}: no record of stalls ({error})") from error
    overruns, moves = np.cumsum(cores[:, 4]).tolist(), np.cumsum(cores[:, 6]).tolist()
    records = []
    for row, last, moved in zip(cores.tolist(), overruns, moves, strict=True):
        core, ticks, start, end, size, unrecorded, clock_size = row
        at_ns, late_ns = (columns[name][last - size : last] for name in _COLUMNS[:2])
        clock_at_ns, offset_ns = (columns[name][moved - clock_size : moved] for name in _COLUMNS[2:])
        records.append(StallRecord(core, ticks, start, end, at_ns, late_ns, unrecorded, clock_at_ns, offset_ns))
    return tuple(records)


@dataclass(frozen=True)
class Tickers:
    """The running child."""

    path: Path
    _supervisor: Supervisor
    _child: Child

    @classmethod
    def start(cls, supervisor: Supervisor, folder: Path) -> Self:
        """Starts a ticker on every core; returns when they tick. The record will be `folder/stalls.npz`."""
        path = folder / "stalls.npz"
        command = [sys.executable, "-m", "testbed.telemetry.stalls", str(path)]
        child = supervisor.start("stalls", command, role=Role.TICKER)
        return cls(path, supervisor, child)

    def finish(self) -> tuple[StallRecord, ...]:
        """Ends the child and returns what it saw, one record per core.

        Raises:
            FidelityError: It left no record.
        """
        self._supervisor.end(self._child)
        return load(self.path)


def start(supervisor: Supervisor, folder: Path) -> Tickers:
    """Starts a ticker on every core; see `Tickers.start`."""
    return Tickers.start(supervisor, folder)


@numba.njit("void(int64[::1], int64[:, ::1], int64, int64, int64)", cache=True, nogil=True)
def _compare(state: IntArray, moves: IntArray, now_ns: int, offset_ns: int, took_ns: int) -> None:
    """Notes how far apart the clocks are, if they have moved beyond doubt or are known better than before.

    Args:
        state: As of `_tick`.
        moves: As of `_tick`.
        now_ns: CLOCK_MONOTONIC of the first reading.
        offset_ns: CLOCK_REALTIME minus CLOCK_MONOTONIC, half-way between the first reading and the last.
        took_ns: From the first reading to the last.
    """
    if took_ns > _READ_WITHIN_NS:
        return
    last = state[4] - 1
    if last < 0 or abs(offset_ns - moves[1, last]) > CLOCK_RESOLVED_NS + (took_ns + state[5]) // 2:
        if state[4] < moves.shape[1]:
            moves[0, state[4]], moves[1, state[4]] = now_ns, offset_ns
            state[4], state[5] = state[4] + 1, took_ns
    elif took_ns < state[5]:
        moves[1, last], state[5] = offset_ns, took_ns


@numba.njit("void(int64[::1], int64[:, ::1], int64[:, ::1], int64)", cache=True, nogil=True)
def _tick(state: IntArray, overruns: IntArray, moves: IntArray, ticks: int) -> None:
    """Wakes for so many grid points.

    Args:
        state: The next grid point, ticks and overruns so far, the last look, moves of the clock so far, and how long
            the readings of the last of them took.
        overruns: Grid points missed, and by how much; [2, CAPACITY].
        moves: When the clocks were further apart than before, and by how much they are; [2, CLOCK_CAPACITY].
        ticks: How many.
    """
    timespec = np.zeros(6, np.int64)
    before, real, after = timespec[0:2], timespec[2:4], timespec[4:6]
    for _ in range(ticks):
        due = state[0]
        before[0], before[1] = due // _SECOND_NS, due % _SECOND_NS
        _clock_nanosleep(_CLOCK_MONOTONIC, _TIMER_ABSTIME, before.ctypes, 0)
        _clock_gettime(_CLOCK_MONOTONIC, before.ctypes)
        _clock_gettime(_CLOCK_REALTIME, real.ctypes)
        _clock_gettime(_CLOCK_MONOTONIC, after.ctypes)
        now = before[0] * _SECOND_NS + before[1]
        late = now - due
        if late > THRESHOLD_NS:
            if state[2] < overruns.shape[1]:
                overruns[0, state[2]], overruns[1, state[2]] = due, late
            state[2] += 1
        took = after[0] * _SECOND_NS + after[1] - now
        _compare(state, moves, now, real[0] * _SECOND_NS + real[1] - now - took // 2, took)
        state[0] = due + PERIOD_NS * (1 + late // PERIOD_NS)
        state[1] += 1
        state[3] = now


class _Ticker(threading.Thread):
    """One core's thread and the arrays that its compiled loop fills."""

    def __init__(self, core: int, ready: threading.Semaphore, stop: threading.Event) -> None:
        super().__init__(name=f"ticker-{core}")
        self.core = core
        self._ready, self._stop_asked = ready, stop
        # Filled, not merely allocated: a page fault would be an overrun of our own making.
        self._overruns = np.full((2, CAPACITY), 0, np.int64)
        self._moves = np.full((2, CLOCK_CAPACITY), 0, np.int64)
        self._state = np.zeros(6, np.int64)
        self._start_ns = 0

    def run(self) -> None:
        # No sleep of a ticker is to be cut short.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        os.sched_setaffinity(0, {self.core})
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)
        self._start_ns = (time.monotonic_ns() // PERIOD_NS + 1) * PERIOD_NS
        self._state[0] = self._start_ns
        _tick(self._state, self._overruns, self._moves, 1)
        self._ready.release()
        while not self._stop_asked.is_set():
            _tick(self._state, self._overruns, self._moves, _SLICE_TICKS)

    def record(self) -> StallRecord:
        """What it saw, once it has ended."""
        _, ticks, overruns, now, moves, _ = self._state.tolist()
        kept = min(overruns, CAPACITY)
        at_ns, late_ns = self._overruns[:, :kept]
        clock_at_ns, offset_ns = self._moves[:, :moves]
        return StallRecord(
            self.core, ticks, self._start_ns, now, at_ns, late_ns, overruns - kept, clock_at_ns, offset_ns
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Ticks until told to end."""
    parser = argparse.ArgumentParser(prog="testbed.telemetry.stalls", description="Record when cores did not run.")
    parser.add_argument("file", type=Path, help="the .npz file to write at the end")
    path = parser.parse_args(arguments).file
    asked, asking = os.pipe()
    os.set_blocking(asking, False)
    # Through a pipe and not by sigwait: libraries have threads of their own, and a signal may strike any of them.
    signal.set_wakeup_fd(asking)
    for number in _ENDING:
        signal.signal(number, lambda *_: None)
    cores = sorted(os.sched_getaffinity(0))
    ready, stop = threading.Semaphore(0), threading.Event()
    tickers = [_Ticker(core, ready, stop) for core in cores]
    for ticker in tickers:
        ticker.start()
    for _ in tickers:
        ready.acquire()
    print(json.dumps({"ready": True, "cores": cores}), flush=True)
    os.read(asked, 1)
    stop.set()
    for ticker in tickers:
        ticker.join()
    save(path, [ticker.record() for ticker in tickers])
    return 0


if __name__ == "__main__":
    sys.exit(main())
