"""What a sender is told and what it hands back, as files, so that either end can be another program.

`SenderSpec` is one JSON object, `SendRecord` one `.npz`. Neither says anything about delays in the network: those are
the captures' to tell.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from testbed.traffic.schedules import Schedule, load_arrays, save_arrays
from testbed.traffic.specs import load_spec, require, save_spec, upper
from testbed.traffic.wire import SERVER_PORT

FloatArray = npt.NDArray[np.float64]

NOT_ATTEMPTED = errno.ECANCELED
"""Error of the packets that were still to come when a sender was ended."""


@dataclass(frozen=True, slots=True)
class SenderSpec:
    """One tenant's sender in one window.

    Attributes:
        tenant: Tenant number: decides the source port and marks every packet.
        source: IPv4 address to send from.
        destination: IPv4 address to send to.
        schedule: File of `Schedule.save`.
        result: Where the `SendRecord` goes.
        clock_offset_ns: CLOCK_REALTIME minus CLOCK_MONOTONIC, the same for all senders of a run.
        flags: Flags that every packet carries (`testbed.traffic.wire`).
        port: UDP port to send to.
        priority: SCHED_FIFO priority, used where the host permits it; None for the normal scheduler.
        spin_ns: How long before a packet is due the sender stops sleeping and watches the clock instead.
    """

    tenant: int
    source: str
    destination: str
    schedule: str
    result: str
    clock_offset_ns: int
    flags: int = 0
    port: int = SERVER_PORT
    priority: int | None = 1
    spin_ns: int = 0

    def save(self, path: Path) -> None:
        """Write the specification as JSON."""
        save_spec(path, self)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a specification.

        Raises:
            ValueError: No JSON object, an unknown or missing key, or a value of the wrong type.
            OSError: The file cannot be read.
        """
        spec = load_spec(path, cls)
        require(
            path,
            spec,
            whole=("tenant", "clock_offset_ns", "flags", "port", "spin_ns"),
            text=("source", "destination", "schedule", "result"),
        )
        return spec


@dataclass(frozen=True, slots=True, eq=False)
class SendRecord:
    """What a sender did with a schedule. Sequence numbers are positions in its arrays.

    Attributes:
        tenant: Tenant number.
        start_monotonic_ns: Start of the window, CLOCK_MONOTONIC.
        start_realtime_ns: The same instant, CLOCK_REALTIME.
        schedule: The packets as intended.
        sent_s: When each was handed to the kernel, from the start of the window; NaN where it was not. float64[n].
        error: errno of each packet that was not sent, else 0; `NOT_ATTEMPTED` after an early end. int32[n].
    """

    tenant: int
    start_monotonic_ns: int
    start_realtime_ns: int
    schedule: Schedule
    sent_s: FloatArray
    error: npt.NDArray[np.int32]

    @property
    def lateness_s(self) -> FloatArray:
        """How much later than intended each packet was handed to the kernel; NaN where it was not."""
        return np.asarray(self.sent_s - self.schedule.time_s)

    def summary(self) -> dict[str, Any]:
        """Counts and the upper quantiles of lateness, JSON-ready."""
        codes, counts = np.unique(self.error[self.error != 0], return_counts=True)
        sent = self.error == 0
        return {
            "tenant": self.tenant,
            "packets": len(self.schedule),
            "sent": int(sent.sum()),
            "errors": {errno.errorcode.get(int(c), str(c)): int(k) for c, k in zip(codes, counts, strict=True)},
            "lateness_s": upper(self.lateness_s[sent]),
        }

    def save(self, path: Path) -> None:
        """Write the record to an `.npz` file that only its owner can read, all at once or not at all."""
        window = (self.tenant, self.start_monotonic_ns, self.start_realtime_ns)
        arrays: dict[str, npt.NDArray[Any]] = {
            "window": np.array(window, dtype=np.int64),
            "time_s": self.schedule.time_s,
            "size_bits": self.schedule.size_bits,
            "last_of_request": self.schedule.last_of_request,
            "sent_s": self.sent_s,
            "error": self.error,
        }
        save_arrays(path, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record written by `save`.

        Raises:
            ValueError: The file is no record.
            OSError: The file cannot be read.
        """
        arrays = load_arrays(path, ("window", "sent_s", "error"))
        tenant, monotonic_ns, realtime_ns = (int(value) for value in arrays["window"])
        return cls(tenant, monotonic_ns, realtime_ns, Schedule.load(path), arrays["sent_s"], arrays["error"])
