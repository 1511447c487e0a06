"""A stream of latencies, one a line, watched against one promise until an alarm or the stream's end.

Constant memory, whatever the length. The statistics are `testbed.audit.sequential`'s; a file that is there as a whole
says more to `testbed.audit.table`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from testbed.audit.sequential import Alarm, Monitor
from testbed.audit.table import NUMBER, TableError


def watch(lines: Iterable[str], monitor: Monitor) -> Alarm | None:
    """Feed a monitor line by line until it alarms.

    Args:
        lines: Latencies in seconds in order of intended sending; an empty line: never answered.
        monitor: Of the promise.

    Returns:
        The alarm, as soon as there is one; None if the stream ended without.

    Raises:
        TableError: A line that is no latency.
    """
    for number, line in enumerate(lines, start=1):
        if (alarm := monitor.observe(_latency_s(number, line))) is not None:
            return alarm
    return None


def _latency_s(number: int, line: str) -> float:
    text = line.strip()
    if not text:
        return math.nan
    value = float(text) if NUMBER.fullmatch(text) else math.nan
    if not value >= 0:
        raise TableError(f"line {number} is {text!r:.40}, expected a latency in seconds, or nothing if never answered")
    return value
