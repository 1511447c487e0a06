"""Reads traces of real traffic and turns their requests into packets.

The formats are read as their owners publish them: `azure-llm`, Azure's LLM inference traces; `burstgpt`, BurstGPT;
`mooncake`, Mooncake's JSON lines; and `packets`, the frames of a capture. A file is read whole or not at all: every bad
row is counted and the first ones are named with their lines. Which stretch of a trace a tenant replays is for
`testbed.traffic.workloads`; how it is repeated to fill a window, for `testbed.traffic.arrivals`; how bursty it is, for
`testbed.traffic.dispersion`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from testbed.errors import ScenarioError
from testbed.traffic.rows import Rows
from testbed.traffic.schedules import Schedule
from testbed.traffic.wire import OVERHEAD_BYTES, payload_bytes

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_GRID_SLACK_S = 0.002
"""How far a stamp may be off its grid: Mooncake's are a millisecond early now and then."""


class Stamp(Enum):
    """How a format writes time."""

    CALENDAR = "UTC calendar time"
    SECONDS = "seconds"
    MILLISECONDS = "milliseconds"


@dataclass(frozen=True, slots=True)
class Format:
    """How one kind of trace file is read.

    Attributes:
        time: Column of arrival times.
        stamp: How they are written.
        request: Column of what a request carries.
        response: Column of the tokens answered with, None where there is none.
        least: Smallest request that makes sense.
        json_lines: Whether each line is a JSON object; else the file is CSV with a header.
        grid_s: Grid that the recorder is known to have rounded stamps down to, None for none.
    """

    time: str
    stamp: Stamp
    request: str
    response: str | None
    least: int
    json_lines: bool = False
    grid_s: float | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns needed; others are ignored."""
        return tuple(name for name in (self.time, self.request, self.response) if name is not None)


FORMATS = {
    "azure-llm": Format("TIMESTAMP", Stamp.CALENDAR, "ContextTokens", "GeneratedTokens", 1),
    # Requests that failed are recorded without tokens; they were sent all the same.
    "burstgpt": Format("Timestamp", Stamp.SECONDS, "Request tokens", "Response tokens", 0, grid_s=1.0),
    "mooncake": Format(
        "timestamp", Stamp.MILLISECONDS, "input_length", "output_length", 1, json_lines=True, grid_s=3.0
    ),
    "packets": Format("time_s", Stamp.SECONDS, "size_bytes", None, OVERHEAD_BYTES),
}


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A trace as recorded, in its own time.

    Attributes:
        path: The file.
        format: A key of `FORMATS`.
        time_s: Arrival times from the first one, non-decreasing, float64[n].
        request: What each arrival asks the network to carry: context tokens, or bytes of its frame. int64[n].
        response: Tokens generated in answer, 0 for `packets`. int64[n].
        grid_s: Grid that the recorder had rounded the stamps to and from which they were spread, None for none.
    """

    path: Path
    format: str
    time_s: FloatArray
    request: IntArray
    response: IntArray
    grid_s: float | None = None

    @property
    def period_s(self) -> float:
        """Length of the trace when it is repeated: its span and one mean gap."""
        return float(self.time_s[-1]) * self.time_s.size / (self.time_s.size - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """A trace's requests, compressed in time and measured in what they put on the wire.

    Attributes:
        time_s: Arrival times from the first one, float64[n].
        size_bits: L2 bits of all packets of each request, int64[n].
        packet_bits: Size of a request's full packets.
        count: Packets of each request, int64[n].
        period_s: Length of the trace when it is repeated.
    """

    time_s: FloatArray
    size_bits: IntArray
    packet_bits: int
    count: IntArray
    period_s: float

    def packets(self, order: IntArray, time_s: FloatArray) -> Schedule:
        """The packets of the requests numbered `order`, all packets of a request intended at its arrival.

        Args:
            order: Positions of requests, int64[m].
            time_s: When each of them arrives, non-decreasing, float64[m].
        """
        count = self.count[order]
        last = np.cumsum(count) - 1
        sizes = np.full(int(count.sum()), self.packet_bits, dtype=np.int32)
        sizes[last] = self.size_bits[order] - (count - 1) * self.packet_bits
        ends = np.zeros(sizes.size, dtype=np.bool_)
        ends[last] = True
        return Schedule(np.repeat(time_s, count), sizes, ends)


def as_requests(trace: Trace, *, speed_up: float, bits_per_token: int, size_bits: int) -> Requests:
    """The requests of a trace, compressed in time and cut into packets.

    A request of a token trace carries its context tokens as data. Each of its packets holds as much data as fits into
    `size_bits` beside the headers (Ethernet, IPv4, UDP and the 24 bytes that identify a packet), the last one the
    remainder. Each row of `packets` is one frame and is sent as it is.

    Args:
        trace: The trace.
        speed_up: Factor by which its time is compressed.
        bits_per_token: Data that one context token stands for; without meaning for `packets`.
        size_bits: Largest frame.

    Raises:
        ScenarioError: The packets cannot be sent.
    """
    if not speed_up > 0:
        raise ScenarioError(f"trace {trace.path}: found speed-up {speed_up}, expected more than 0")
    try:
        payload_bytes(size_bits)
    except ValueError as error:
        raise ScenarioError(f"trace {trace.path}: {error}") from error
    if trace.format == "packets":
        total_bits = 8 * trace.request
        too_large = np.flatnonzero(total_bits > size_bits)
        if too_large.size:
            raise ScenarioError(
                f"trace {trace.path}: found {too_large.size} frames larger than {size_bits // 8} bytes, "
                f"the first in row {too_large[0] + 1} ({trace.request[too_large[0]]} bytes); raise the packet size"
            )
        count = np.ones(total_bits.size, dtype=np.int64)
    else:
        data_bytes = -(-trace.request * bits_per_token // 8)
        room_bytes = size_bits // 8 - OVERHEAD_BYTES
        if room_bytes < 1:
            raise ScenarioError(
                f"trace {trace.path}: found packets of {size_bits // 8} bytes, expected more than {OVERHEAD_BYTES}: "
                "nothing is left for data beside the headers"
            )
        count = np.maximum(-(-data_bytes // room_bytes), 1)
        total_bits = 8 * (data_bytes + count * OVERHEAD_BYTES)
    return Requests(trace.time_s / speed_up, total_bits, size_bits, count, trace.period_s / speed_up)


def read_trace(path: Path, format: str) -> Trace:  # noqa: A002 - the scenario's word for it
    """Read a trace file.

    Args:
        path: The file.
        format: A key of `FORMATS`.

    Raises:
        ScenarioError: Unknown format, unreadable file, missing columns, too few rows, or bad rows (all of them
            counted, the first ones named).
    """
    if format not in FORMATS:
        raise ScenarioError(f"trace {path}: found format {format!r}, expected one of {sorted(FORMATS)}")
    how = FORMATS[format]
    rows = Rows.from_json_lines(path, how.columns) if how.json_lines else Rows.from_csv(path, how.columns)
    ticks, per_second = _times(rows, how)
    request = rows.whole(how.request, at_least=how.least)
    response = np.zeros_like(request) if how.response is None else rows.whole(how.response, at_least=0)
    rows.check_order(ticks)
    rows.refuse_bad()
    # Subtracted before the division: a calendar time in ns has more digits than a float.
    time_s = (ticks - ticks[0]) / per_second
    grid_s = how.grid_s if _on_grid(ticks / per_second, how.grid_s) else None
    if grid_s is not None:
        time_s = _spread(time_s, grid_s)
    if not time_s[-1] > 0:
        raise ScenarioError(
            f"trace {path}: found all {time_s.size} rows at one instant, expected at least two arrival times; "
            "a trace without gaps has no rate"
        )
    return Trace(path, format, time_s, request, response, grid_s)


def _times(rows: Rows, how: Format) -> tuple[IntArray | FloatArray, float]:
    """Arrival times as the file counts them, and how many of its units are a second."""
    match how.stamp:
        case Stamp.CALENDAR:
            return rows.stamps_ns(how.time), 1e9
        case Stamp.SECONDS:
            return rows.decimals(how.time, how.stamp.value), 1.0
        case Stamp.MILLISECONDS:
            return rows.decimals(how.time, how.stamp.value), 1e3


def _on_grid(time_s: FloatArray, grid_s: float | None) -> bool:
    if grid_s is None:
        return False
    return bool(np.all(np.abs(time_s - np.rint(time_s / grid_s) * grid_s) <= _GRID_SLACK_S))


def _spread(time_s: FloatArray, grid_s: float) -> FloatArray:
    """Undo a recorder's rounding: place each stamp at random within its bin, in the order of the file.

    Replayed as recorded, the requests of a bin would arrive as one batch, which they never were. The places are the
    same at every reading, so that a trace remains one definite sequence.
    """
    bins = np.rint(time_s / grid_s)
    within = np.random.default_rng(0).random(time_s.size)
    spread = np.sort(bins + within) * grid_s
    return np.asarray(spread - spread[0])
