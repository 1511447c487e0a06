"""Reads traces of real traffic and turns their requests into packets.

Two formats are read as their owners publish them: `azure-llm`, the requests of Azure's LLM inference traces, and
`packets`, the frames of a capture. A file is read whole or not at all: every bad row is counted and the first ones are
named with their lines. How a trace is repeated to fill a window is decided in `testbed.traffic.arrivals`; how bursty
it is, in `testbed.traffic.dispersion`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from testbed.errors import ScenarioError
from testbed.scenario.model import TraceArrivals
from testbed.traffic.schedules import Schedule
from testbed.traffic.wire import OVERHEAD_BYTES, payload_bytes

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

FORMATS = {
    "azure-llm": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "packets": ("time_s", "size_bytes"),
}
"""The columns that each format needs; others are ignored."""

_SHOWN = 10
"""Bad rows that a message names one by one; the rest is counted."""
_STAMP = r"^\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,9})?(Z|\+00:00)?$"
_WHOLE = r"^\d{1,12}$"
_DECIMAL = r"^\d+(\.\d*)?([eE][+-]?\d{1,2})?$"


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A trace as recorded, in its own time.

    Attributes:
        path: The file.
        format: A key of `FORMATS`.
        time_s: Arrival times from the first one, non-decreasing, float64[n].
        request: What each arrival asks the network to carry: context tokens, or bytes of its frame. int64[n].
        response: Tokens generated in answer, 0 for `packets`. int64[n].
    """

    path: Path
    format: str
    time_s: FloatArray
    request: IntArray
    response: IntArray

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


def read_requests(arrivals: TraceArrivals) -> Requests:
    """Read the requests that `arrivals` describes.

    A request of `azure-llm` carries its context tokens as data. Each of its packets holds as much data as fits into
    `size_bits` beside the headers (Ethernet, IPv4, UDP and the 24 bytes that identify a packet), the last one the
    remainder. Each row of `packets` is one frame and is sent as it is.

    Raises:
        ScenarioError: The trace cannot be read, or its packets cannot be sent.
    """
    if not arrivals.speed_up > 0:
        raise ScenarioError(f"trace {arrivals.path}: found speed-up {arrivals.speed_up}, expected more than 0")
    trace = read_trace(arrivals.path, arrivals.format)
    try:
        payload_bytes(arrivals.size_bits)
    except ValueError as error:
        raise ScenarioError(f"trace {arrivals.path}: {error}") from error
    if arrivals.format == "packets":
        size_bits = 8 * trace.request
        too_large = np.flatnonzero(size_bits > arrivals.size_bits)
        if too_large.size:
            raise ScenarioError(
                f"trace {arrivals.path}: found {too_large.size} frames larger than {arrivals.size_bits // 8} bytes, "
                f"the first in row {too_large[0] + 1} ({trace.request[too_large[0]]} bytes); raise the packet size"
            )
        count = np.ones(size_bits.size, dtype=np.int64)
    else:
        data_bytes = -(-trace.request * arrivals.bits_per_token // 8)
        room_bytes = arrivals.size_bits // 8 - OVERHEAD_BYTES
        if room_bytes < 1:
            raise ScenarioError(
                f"trace {arrivals.path}: found packets of {arrivals.size_bits // 8} bytes, expected more than "
                f"{OVERHEAD_BYTES}: nothing is left for data beside the headers"
            )
        count = -(-data_bytes // room_bytes)
        size_bits = 8 * (data_bytes + count * OVERHEAD_BYTES)
    return Requests(
        trace.time_s / arrivals.speed_up, size_bits, arrivals.size_bits, count, trace.period_s / arrivals.speed_up
    )


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
    rows = _Rows.read(path, FORMATS[format])
    if format == "azure-llm":
        stamp, context, generated = FORMATS[format]
        time_ns = rows.stamps_ns(stamp)
        request, response = rows.whole(context, at_least=1), rows.whole(generated, at_least=0)
        rows.check_order(time_ns)
        rows.refuse_bad()
        time_s = (time_ns - time_ns[0]) / 1e9
    else:
        seconds = rows.decimals("time_s")
        request = rows.whole("size_bytes", at_least=OVERHEAD_BYTES)
        response = np.zeros_like(request)
        rows.check_order(seconds)
        rows.refuse_bad()
        time_s = seconds - seconds[0]
    if not time_s[-1] > 0:
        raise ScenarioError(
            f"trace {path}: found all {time_s.size} rows at one instant, expected at least two arrival times; "
            "a trace without gaps has no rate"
        )
    return Trace(path, format, time_s, request, response)


class _Rows:
    """The columns of one file as text, with what is wrong so far."""

    def __init__(self, path: Path, table: pa.Table, lines: IntArray, bad: dict[int, str]) -> None:
        self._path = path
        self._table = table
        self._lines = lines
        self._bad = bad

    @classmethod
    def read(cls, path: Path, wanted: tuple[str, ...]) -> _Rows:
        """Read the `wanted` columns; rows of another width are already bad."""
        bad: dict[int, str] = {}

        def skip(row: pyarrow.csv.InvalidRow) -> str:
            bad[row.number] = f"found {row.actual_columns} values, expected {row.expected_columns}"
            return "skip"

        try:
            table = pyarrow.csv.read_csv(
                path,
                # Line numbers are only known to a single thread.
                read_options=pyarrow.csv.ReadOptions(use_threads=False),
                parse_options=pyarrow.csv.ParseOptions(invalid_row_handler=skip, ignore_empty_lines=False),
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=list(wanted),
                    column_types=dict.fromkeys(wanted, pa.string()),
                    strings_can_be_null=False,
                ),
            )
        except OSError as error:
            raise ScenarioError(f"trace {path}: cannot be read: {error}; name a file that can") from error
        except (pa.ArrowInvalid, KeyError) as error:
            raise ScenarioError(
                f"trace {path}: found no table with the columns {', '.join(wanted)} ({error}); "
                "check the file and the format"
            ) from error
        lines = np.setdiff1d(np.arange(2, 2 + table.num_rows + len(bad)), np.fromiter(bad, dtype=np.int64))
        filled = np.asarray(pc.not_equal(table[wanted[0]], ""))
        rows = int(np.flatnonzero(filled)[-1]) + 1 if filled.any() else 0
        if rows < 2 and not bad:
            raise ScenarioError(f"trace {path}: found {rows} rows, expected at least 2; a trace needs a gap")
        # Blank lines at the end of a file are how editors leave it, not rows.
        return cls(path, table.slice(0, rows), lines[:rows], bad)

    def stamps_ns(self, name: str) -> IntArray:
        """UTC calendar stamps with up to nine digits after the point, in ns since 1970; bad ones are 0."""
        text = pc.replace_substring_regex(self._checked(name, _STAMP, "a UTC time"), r"(Z|\+00:00)$", "")
        seconds = pc.strptime(
            pc.replace_substring(pc.utf8_slice_codeunits(text, 0, 19), "T", " "),
            format="%Y-%m-%d %H:%M:%S",
            unit="s",
            error_is_null=True,
        )
        self._note(name, pc.and_(pc.is_null(seconds), pc.is_valid(text)), "a UTC time")
        digits = pc.utf8_rpad(pc.utf8_slice_codeunits(text, 20, 29), 9, "0")
        fraction = pc.cast(digits, pa.int64())
        whole = pc.multiply(pc.cast(seconds, pa.int64()), 1_000_000_000)
        return _filled(pc.add(whole, fraction)).astype(np.int64)

    def whole(self, name: str, *, at_least: int) -> IntArray:
        """Whole numbers not below a limit; bad ones are 0."""
        expected = f"a whole number of at least {at_least}"
        text = self._checked(name, _WHOLE, expected)
        values = pc.cast(text, pa.int64())
        self._note(name, pc.less(values, at_least), expected)
        return _filled(values).astype(np.int64)

    def decimals(self, name: str) -> FloatArray:
        """Decimal numbers not below 0; bad ones are 0."""
        return _filled(pc.cast(self._checked(name, _DECIMAL, "seconds"), pa.float64())).astype(np.float64)

    def check_order(self, times: IntArray | FloatArray) -> None:
        """Note rows that arrive earlier than a row before them."""
        good = np.isin(self._lines, np.fromiter(self._bad, dtype=np.int64), invert=True)
        lines, times = self._lines[good], times[good]
        if times.size:
            early = np.flatnonzero(times < np.maximum.accumulate(times))
            self._bad |= {int(lines[row]): "is earlier than a row before it; sort the file by time" for row in early}

    def refuse_bad(self) -> None:
        """Raise for all bad rows together."""
        if not self._bad:
            return
        total = len(set(self._lines.tolist()) | set(self._bad))
        problems = [f"trace {self._path}, line {line}: {self._bad[line]}" for line in sorted(self._bad)[:_SHOWN]]
        problems.append(
            f"trace {self._path}: {len(self._bad):,} of {total:,} rows are bad; correct or remove them, none is skipped"
        )
        raise ScenarioError(problems)

    def _checked(self, name: str, pattern: str, expected: str) -> pa.ChunkedArray:
        """Column `name` with null where the text does not match."""
        text = pc.utf8_trim_whitespace(self._table[name])
        matches = pc.match_substring_regex(text, pattern)
        self._note(name, pc.invert(matches), expected)
        return pc.if_else(matches, text, pa.scalar(None, pa.string()))

    def _note(self, name: str, wrong: pa.ChunkedArray, expected: str) -> None:
        for row in np.flatnonzero(np.asarray(pc.fill_null(wrong, False))):
            found = self._table[name][int(row)].as_py()
            self._bad.setdefault(int(self._lines[row]), f"found {name} {found!r}, expected {expected}")


def _filled(values: pa.ChunkedArray) -> npt.NDArray[np.int64] | npt.NDArray[np.float64]:
    return np.asarray(pc.fill_null(values, 0))
