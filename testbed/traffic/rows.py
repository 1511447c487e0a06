"""Reads tables of text files by column, and keeps the line of every row that is wrong.

A file is judged whole: callers read the columns they need, each of which notes what it cannot use, and then ask for
all bad rows to be refused together. What the columns mean is `testbed.traffic.traces`' to know.
"""

from __future__ import annotations

import csv
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from testbed.errors import ScenarioError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_SHOWN = 10
"""Bad rows that a message names one by one; the rest is counted."""
_STAMP = r"^\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,9})?(Z|\+00:00)?$"
_WHOLE = r"^\d{1,12}$"
_DECIMAL = r"^\d+(\.\d*)?([eE][+-]?\d{1,2})?$"


class Rows:
    """The columns of one file as text, with what is wrong so far."""

    def __init__(
        self, path: Path, table: pa.Table, lines: IntArray, bad: dict[int, str], *, quoted: bool = False
    ) -> None:
        if table.num_rows < 2 and not bad:
            raise ScenarioError(f"trace {path}: found {table.num_rows} rows, expected at least 2; a trace needs a gap")
        self._path = path
        self._table = table
        self._lines = lines
        self._bad = bad
        self._quoted = quoted

    @classmethod
    def from_csv(cls, path: Path, wanted: tuple[str, ...], *, header: bool = True) -> Rows:
        """Read columns of a CSV file; rows of another width are already bad.

        Args:
            path: The file.
            wanted: Names of the columns to read; all columns, in order, where the file has no header.
            header: Whether the first line names the columns.

        Raises:
            ScenarioError: The file cannot be read, lacks a column, or has fewer than two rows.
        """
        bad: dict[int, str] = {}

        def skip(row: pyarrow.csv.InvalidRow) -> str:
            bad[row.number] = f"found {row.actual_columns} values, expected {row.expected_columns}"
            return "skip"

        try:
            table = pyarrow.csv.read_csv(
                path,
                # Line numbers are only known to a single thread.
                read_options=pyarrow.csv.ReadOptions(use_threads=False, column_names=None if header else wanted),
                parse_options=pyarrow.csv.ParseOptions(
                    invalid_row_handler=skip, ignore_empty_lines=False, newlines_in_values=True
                ),
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
        first = 2 if header else 1
        numbers = np.arange(first, first + table.num_rows + len(bad))
        lines = np.setdiff1d(numbers, np.fromiter(bad, dtype=np.int64))
        filled = np.flatnonzero(np.asarray(pc.not_equal(table[wanted[0]], "")))
        # Blank lines at the end of a file are how editors leave it, not rows.
        rows = int(filled[-1]) + 1 if filled.size else 0
        return cls(path, table.slice(0, rows), lines[:rows], bad, quoted=True)

    @classmethod
    def from_json_lines(cls, path: Path, wanted: tuple[str, ...]) -> Rows:
        """Read the `wanted` members of a file with one JSON object a line; lines without them are already bad.

        Raises:
            ScenarioError: The file cannot be read or has fewer than two rows.
        """
        bad: dict[int, str] = {}
        kept: list[tuple[int, tuple[str, ...]]] = []
        try:
            text = path.read_text(encoding="utf-8").rstrip()
        except (OSError, UnicodeDecodeError) as error:
            raise ScenarioError(f"trace {path}: cannot be read: {error}; name a file that can") from error
        for number, line in enumerate(text.splitlines(), start=1):
            values = _members(line, wanted)
            if isinstance(values, str):
                bad[number] = values
            else:
                kept.append((number, values))
        columns = list(zip(*(values for _, values in kept), strict=True)) or [()] * len(wanted)
        arrays = [pa.chunked_array([pa.array(column, pa.string())]) for column in columns]
        lines = np.fromiter((number for number, _ in kept), dtype=np.int64)
        return cls(path, pa.table(arrays, names=list(wanted)), lines, bad)

    def stamps_ns(self, name: str) -> IntArray:
        """UTC calendar stamps with up to nine digits after the point, in ns since 1970; bad ones are 0."""
        text = pc.replace_substring_regex(self._checked(name, _STAMP, "a UTC time"), r"(Z|\+00:00)$", "")
        seconds = pc.strptime(
            pc.replace_substring(pc.utf8_slice_codeunits(text, 0, 19), "T", " "),
            format="%Y-%m-%d %H:%M:%S",
            unit="s",
            error_is_null=True,
        )
        self.note(name, _mask(pc.and_(pc.is_null(seconds), pc.is_valid(text))), "a UTC time")
        digits = pc.utf8_rpad(pc.utf8_slice_codeunits(text, 20, 29), 9, "0")
        fraction = pc.cast(digits, pa.int64())
        whole = pc.multiply(pc.cast(seconds, pa.int64()), 1_000_000_000)
        return _filled(pc.add(whole, fraction)).astype(np.int64)

    def whole(self, name: str, *, at_least: int) -> IntArray:
        """Whole numbers not below a limit; bad ones are 0."""
        expected = f"a whole number of at least {at_least}"
        text = self._checked(name, _WHOLE, expected)
        values = pc.cast(text, pa.int64())
        self.note(name, _mask(pc.less(values, at_least)), expected)
        return _filled(values).astype(np.int64)

    def decimals(self, name: str, unit: str) -> FloatArray:
        """Decimal numbers not below 0; bad ones are 0."""
        return _filled(pc.cast(self._checked(name, _DECIMAL, unit), pa.float64())).astype(np.float64)

    def words(self, name: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
        """Words of a list."""
        found = tuple(str(word).strip() for word in self._table[name].to_pylist())
        self.note(name, np.array([word not in allowed for word in found], dtype=np.bool_), f"one of {allowed}")
        return found

    def note(self, name: str, wrong: npt.NDArray[np.bool_], expected: str) -> None:
        """Note the rows in which `wrong` is true as bad for what they have in column `name`."""
        for row in np.flatnonzero(wrong):
            found = self._table[name][int(row)].as_py()
            self._bad.setdefault(int(self._lines[row]), f"found {name} {found!r}, expected {expected}")

    def check_order(self, times: IntArray | FloatArray) -> None:
        """Note rows that arrive earlier than a row before them."""
        good = np.isin(self._lines, np.fromiter(self._bad, dtype=np.int64), invert=True)
        lines, times = self._lines[good], times[good]
        if times.size:
            early = np.flatnonzero(times < np.maximum.accumulate(times))
            self._bad |= {int(lines[row]): "is earlier than a row before it; sort the file by time" for row in early}

    def refuse_bad(self) -> None:
        """Raise for all bad rows together.

        Raises:
            ScenarioError: One problem for each of the first bad rows, and one with their count.
        """
        if not self._bad:
            return
        total = len(set(self._lines.tolist()) | set(self._bad))
        begins = _beginnings(self._path) if self._quoted else {}
        problems = [
            f"trace {self._path}, line {begins.get(row, row)}: {self._bad[row]}" for row in sorted(self._bad)[:_SHOWN]
        ]
        problems.append(
            f"trace {self._path}: {len(self._bad):,} of {total:,} rows are bad; correct or remove them, none is skipped"
        )
        raise ScenarioError(problems)

    def _checked(self, name: str, pattern: str, expected: str) -> pa.ChunkedArray:
        """Column `name` with null where the text does not match."""
        text = pc.utf8_trim_whitespace(self._table[name])
        matches = pc.match_substring_regex(text, pattern)
        self.note(name, _mask(pc.invert(matches)), expected)
        return pc.if_else(matches, text, pa.scalar(None, pa.string()))


def _beginnings(path: Path) -> dict[int, int]:
    """The line on which each row of a CSV file begins, both from 1: a quoted value may go over several."""
    found, line = {}, 1
    with path.open(newline="", encoding="utf-8", errors="replace") as file, suppress(csv.Error):
        reader = csv.reader(file)
        for row, _ in enumerate(reader, start=1):
            found[row] = line
            line = reader.line_num + 1
    return found


def _members(line: str, wanted: tuple[str, ...]) -> tuple[str, ...] | str:
    """The wanted members of one JSON line as text, or what is wrong with it."""
    try:
        record: Any = json.loads(line)
    except ValueError:
        return f"found {line[:40]!r}, expected a JSON object"
    if not isinstance(record, dict):
        return f"found {line[:40]!r}, expected a JSON object"
    missing = [name for name in wanted if name not in record]
    if missing:
        return f"found no {', '.join(missing)}, expected {', '.join(wanted)}"
    return tuple(str(record[name]) for name in wanted)


def _filled(values: pa.ChunkedArray) -> npt.NDArray[np.int64] | npt.NDArray[np.float64]:
    return np.asarray(pc.fill_null(values, 0))


def _mask(wrong: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.fill_null(wrong, False)).astype(np.bool_)
