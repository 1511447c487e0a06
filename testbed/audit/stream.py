"""A stream of latencies, of one tenant or of many, watched against their promises until an alarm or the stream's end.

One latency a line, or a table: a first line that names columns, `latency_s` among them, and `tenant` where one stream
holds several. Constant memory for each tenant, whatever the length. The statistics are `testbed.audit.sequential`'s; a
file that is there as a whole says more to `testbed.audit.table`.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping

from testbed.audit.record import Promise
from testbed.audit.sequential import Alarm, Monitor
from testbed.audit.table import TableError


class Watch:
    """Every tenant of a stream, each with a monitor of its own.

    Attributes:
        monitors: By tenant; of a stream without tenants one, under None.
        false_alarm_rate: Largest probability of ever alarming falsely about a tenant.
        unwatched: Samples of tenants to whom nothing is promised.
    """

    def __init__(
        self, promises: Mapping[str, Promise], otherwise: Promise | None = None, false_alarm_rate: float = 0.05
    ) -> None:
        """Start a watch.

        Args:
            promises: By tenant.
            otherwise: The promise to every other tenant, and to a stream that names none; None if there is none.
            false_alarm_rate: Of each tenant.

        Raises:
            ValueError: A promise or a rate that cannot be watched; it says whose.
        """
        self.false_alarm_rate = false_alarm_rate
        self.unwatched = 0
        self._otherwise = otherwise
        self.monitors: dict[str | None, Monitor] = {}
        for tenant, promise in promises.items():
            try:
                self.monitors[tenant] = self._monitor(promise)
            except ValueError as error:
                raise ValueError(f"tenant {tenant}: {error}") from error
        if otherwise is not None:
            self._monitor(otherwise)

    @property
    def family_false_alarm_rate(self) -> float:
        """Largest probability of ever alarming falsely about any tenant, however they depend on each other.

        Source: Boole's inequality.
        """
        return min(1.0, self.false_alarm_rate * len(self.monitors))

    def follow(self, lines: Iterable[str]) -> Iterator[tuple[str | None, Alarm]]:
        """Feed the monitors line by line, until nobody is left of whom there could be an alarm.

        Args:
            lines: In order of intended sending; an empty latency: never answered.

        Yields:
            Each tenant's alarm, as soon as there is one.

        Raises:
            TableError: A line that is no latency, or a stream without the columns that are needed.
        """
        for tenant, latency_s in self._samples(lines):
            monitor = self.monitors.get(tenant)
            if monitor is None:
                if self._otherwise is None:
                    self.unwatched += 1
                    continue
                monitor = self.monitors[tenant] = self._monitor(self._otherwise)
            if monitor.alarm is None and (alarm := monitor.observe(latency_s)) is not None:
                yield tenant, alarm
                others = tenant is not None and self._otherwise is not None
                if not others and all(monitor.alarm is not None for monitor in self.monitors.values()):
                    return

    def _monitor(self, promise: Promise) -> Monitor:
        return Monitor(promise.deadline_s, promise.epsilon, self.false_alarm_rate)

    def _samples(self, lines: Iterable[str]) -> Iterator[tuple[str | None, float]]:
        rest = iter(lines)
        first = next(rest, None)
        columns = [] if first is None else [cell.strip().strip('"') for cell in first.lstrip("\ufeff").split(",")]
        if "tenant" not in columns:
            if self._otherwise is None or self.monitors:
                raise TableError(
                    f"line 1 is {(first or '').strip()!r:.60}, expected the names of columns, latency_s and tenant "
                    "among them, to tell promises apart; a stream without tenants has one promise to all"
                )
            self.monitors[None] = self._monitor(self._otherwise)
        if "latency_s" in columns:
            yield from _rows(columns, rest)
            return
        if "tenant" in columns:
            raise TableError(f"line 1: found columns {', '.join(columns)}, expected latency_s; rename what holds it")
        for number, line in enumerate(itertools.chain([] if first is None else [first], rest), start=1):
            yield None, _latency_s(number, line)


def _rows(columns: list[str], lines: Iterator[str]) -> Iterator[tuple[str | None, float]]:
    """Tenant and latency of each row of a table, behind its first line."""
    latency, tenant = columns.index("latency_s"), columns.index("tenant") if "tenant" in columns else None
    for number, cells in enumerate(csv.reader(lines), start=2):
        # Where latency_s is the only column, an empty line is a request never answered, not a blank to skip.
        if not cells and len(columns) > 1:
            continue
        row = cells or [""]
        if len(row) != len(columns):
            raise TableError(f"line {number} has {len(row)} cells, expected {len(columns)} as the first line has")
        yield None if tenant is None else row[tenant], _latency_s(number, row[latency])


def _latency_s(number: int, line: str) -> float:
    text = line.strip()
    if not text:
        return math.nan
    try:
        # Python's own underscores and foreign digits are no numbers in a table.
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise TableError(f"line {number} is {text!r:.40}, expected a latency in seconds, or nothing if never answered")
    return value
