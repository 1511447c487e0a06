"""One time axis for all windows of a run, one after the other: what pictures with time on an axis have in common."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from testbed.report.record import RunRecord, WindowRecord

FloatArray = npt.NDArray[np.float64]


def starts(record: RunRecord) -> Iterator[tuple[float, WindowRecord]]:
    """Each window with its start on the axis, seconds."""
    start_s = 0.0
    for window in record.windows:
        yield start_s, window
        start_s += window.duration_s


def load_stalls(record: RunRecord) -> FloatArray:
    """When a core of the host was away, and for how long: seconds, [n, 2]."""
    found = [(start_s + at_s, late_s) for start_s, window in starts(record) for at_s, late_s in window.stalls]
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def load_on_purpose(record: RunRecord) -> FloatArray:
    """From when until when something was broken on purpose: seconds, [k, 2]."""
    started_s = {window.index: start_s for start_s, window in starts(record)}
    found = [
        (started_s[fault.window] + fault.begin_s, started_s[fault.window] + fault.end_s)
        for fault in record.faults
        if fault.window in started_s
    ]
    for start_s, window in starts(record):
        for each in window.impairments:
            end_s = window.duration_s if each.end_s is None else min(each.end_s, window.duration_s)
            found.append((start_s + max(each.begin_s, 0.0), start_s + end_s))
    return np.array(found, dtype=np.float64).reshape(-1, 2)
