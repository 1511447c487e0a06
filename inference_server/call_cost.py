"""What calls take of a server's processor beside their computation: reading, checking, answering.

Shares that are capped are of all that a server does, or a tenant of light requests could take as much again by having
them read. Nobody can time what gRPC does for a call, but the process knows its processor time: what it spent since the
call before, less what was computed meanwhile, is a call's on average, and so it is counted for the form of the one that
has just been read. Calls that were given up before they were read cost something too, which is not to be charged to
those that were: it is told apart by how much more was spent where there were some in between.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from inference_server.forms import Form

_WEIGHT = 1 / 32


class CallCost:
    """Moving averages, over all calls and by form.

    Args:
        spent_ns: Processor time of this process.
    """

    def __init__(self, spent_ns: Callable[[], int] = time.process_time_ns) -> None:
        self._clock = spent_ns
        self._spent_ns: int | None = None
        self._lock = threading.Lock()
        self._computed_ns = 0
        self._mean_s: float | None = None
        self._counted = 0
        self._unread = 0
        self._unread_s: float | None = None

    def computed(self, spent_ns: int) -> None:
        """Take so much processor time for a computation; from any thread."""
        with self._lock:
            self._computed_ns += spent_ns

    def unread(self) -> None:
        """Know of a call that was given up before it was read; from the event loop."""
        self._unread += 1

    def of(self, form: Form) -> float:
        """What a call of this form takes, s, now that another one has been read; from the event loop."""
        spent_ns = self._clock()
        with self._lock:
            computed_ns, self._computed_ns = self._computed_ns, 0
        before_ns, self._spent_ns = self._spent_ns, spent_ns
        unread, self._unread = self._unread, 0
        if before_ns is None:
            return 0.0  # all that came before the first call is no call's
        taken_s = (spent_ns - before_ns - computed_ns) / 1e9
        usual_s = self._mean_s if form.call_s is None else form.call_s
        if unread and usual_s is not None:
            each_s = (taken_s - usual_s) / unread
            self._unread_s = each_s if self._unread_s is None else _moved(self._unread_s, each_s)
            taken_s -= unread * max(0.0, self._unread_s)
        self._counted += 1
        self._mean_s = taken_s if self._mean_s is None else _moved(self._mean_s, taken_s, self._counted)
        form.counted += 1
        # What others take counts for one of its own.
        others = int(self._counted > form.counted)
        form.call_s = _moved(self._mean_s if form.call_s is None else form.call_s, taken_s, form.counted + others)
        return max(0.0, form.call_s)


def _moved(mean_s: float, taken_s: float, counted: float = math.inf) -> float:
    """The mean of so many, the last one included; of many, one that forgets the oldest."""
    return mean_s + max(_WEIGHT, 1 / counted) * (taken_s - mean_s)
