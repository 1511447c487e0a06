"""The compiled loop that hands packets to the kernel at their times: libc called from numba, no Python in between.

libc's functions are named, not pointed to, so that the compiled loop can be cached on disk and a sender starts without
compiling. The loop keeps to the schedule whatever happens: a packet that is late is sent at once and no packet waits
for another one's fate. Sockets, files and priorities are the sender's.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
from numba import types

_CLOCK_MONOTONIC = 1
_TIMER_ABSTIME = 1
_MSG_DONTWAIT = 0x40
_SECOND_NS = 1_000_000_000

SLICE_NS = 50_000_000
"""The loop returns to Python this often, so that a signal which arrives just before a sleep is not slept through."""

_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.voidptr))
_clock_nanosleep = types.ExternalFunction(
    "clock_nanosleep", types.int32(types.int32, types.int32, types.voidptr, types.voidptr)
)
_send = types.ExternalFunction("send", types.intp(types.int32, types.voidptr, types.uintp, types.int32))
_errno_location = types.ExternalFunction("__errno_location", types.CPointer(types.int32)())


@numba.njit("int64(int64[::1])", cache=True)
def _now_ns(timespec: npt.NDArray[np.int64]) -> int:
    _clock_gettime(_CLOCK_MONOTONIC, timespec.ctypes)
    return timespec[0] * _SECOND_NS + timespec[1]  # type: ignore[no-any-return]


@numba.njit(
    "int64(int32, int64[::1], uint8[:,::1], int64[::1], uint8[::1], int64[::1], int32[::1], int64, int64)", cache=True
)
def send_due(  # noqa: PLR0917 - compiled functions take no keywords
    fd: int,
    due_ns: npt.NDArray[np.int64],
    headers: npt.NDArray[np.uint8],
    payload_bytes: npt.NDArray[np.int64],
    buffer: npt.NDArray[np.uint8],
    sent_ns: npt.NDArray[np.int64],
    error: npt.NDArray[np.int32],
    first: int,
    spin_ns: int,
) -> int:
    """Send packets from number `first` on, each when it is due, for one slice of time or until a signal arrives.

    Args:
        fd: Connected datagram socket.
        due_ns: CLOCK_MONOTONIC times, int64[n], non-decreasing.
        headers: First bytes of each payload, uint8[n, h].
        payload_bytes: Payload lengths, int64[n].
        buffer: What follows the header in every payload; as long as the longest payload.
        sent_ns: Filled with the clock just before each packet is handed to the kernel.
        error: Filled with 0, or errno where the kernel refused the packet.
        first: Number of the packet to begin with.
        spin_ns: Watch the clock, instead of sleeping, for this long before a packet is due.

    Returns:
        Number of the next packet; n when all have been sent.
    """
    timespec = np.zeros(2, dtype=np.int64)
    end_ns = _now_ns(timespec) + SLICE_NS
    packet = first
    while packet < due_ns.size:
        now_ns = _now_ns(timespec)
        if now_ns >= end_ns:
            return packet
        wake_ns = due_ns[packet] - spin_ns
        if now_ns < wake_ns:
            wake_ns = min(wake_ns, end_ns)
            timespec[0], timespec[1] = wake_ns // _SECOND_NS, wake_ns % _SECOND_NS
            if _clock_nanosleep(_CLOCK_MONOTONIC, _TIMER_ABSTIME, timespec.ctypes, 0) != 0:
                return packet
        elif now_ns >= due_ns[packet]:
            buffer[: headers.shape[1]] = headers[packet]
            sent_ns[packet] = now_ns
            if _send(fd, buffer.ctypes, payload_bytes[packet], _MSG_DONTWAIT) < 0:
                error[packet] = numba.carray(_errno_location(), 1)[0]
            else:
                error[packet] = 0
            packet += 1
    return packet
