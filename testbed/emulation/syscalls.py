"""The few Linux system calls of network emulation that Python 3.11 does not offer.

Each wrapper raises `OSError` with the kernel's errno and does nothing else; what they are for is decided by the
modules that call them. The raw numbers are those of the generic table, equal on x86-64, arm64 and riscv.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

CLONE_NEWNET = 0x4000_0000
_MS_BIND = 4096
_MNT_DETACH = 2
_SYS_PIDFD_GETFD = 438
_PR_SET_PDEATHSIG = 1
_PR_SET_THP_DISABLE, _PR_GET_THP_DISABLE = 41, 42
_CLOCK_REALTIME = 0
_ADJ_SETOFFSET, _ADJ_NANO = 0x0100, 0x2000
_SECOND_NS = 1_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def unshare_network() -> None:
    """Move the calling thread into a new, empty network namespace."""
    _checked(_libc.unshare(CLONE_NEWNET), "unshare(CLONE_NEWNET)")


def set_network(descriptor: int) -> None:
    """Move the calling thread into the network namespace that `descriptor` refers to."""
    _checked(_libc.setns(descriptor, CLONE_NEWNET), "setns")


def bind_mount(source: Path, target: Path) -> None:
    """Make `source` visible at the existing path `target`."""
    _checked(_libc.mount(bytes(source), bytes(target), None, ctypes.c_ulong(_MS_BIND), None), str(target))


def unmount(target: Path) -> None:
    """Detach the topmost mount at `target`."""
    _checked(_libc.umount2(bytes(target), _MNT_DETACH), str(target))


def duplicate_descriptor(pidfd: int, descriptor: int) -> int:
    """Duplicate a file descriptor of another process into this one; the caller closes it."""
    return _checked(_libc.syscall(_SYS_PIDFD_GETFD, pidfd, descriptor, 0), f"pidfd_getfd({descriptor})")


def die_with_parent(number: int) -> None:
    """Have the kernel send the calling process this signal when the thread that started it ends."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def huge_pages_disabled() -> bool:
    """Whether the calling process and those it starts get none of the kernel's transparent huge pages."""
    return _checked(_libc.prctl(_PR_GET_THP_DISABLE, 0, 0, 0, 0), "prctl(PR_GET_THP_DISABLE)") != 0


def disable_huge_pages(disabled: bool) -> None:
    """Keep transparent huge pages from the calling process and those it starts, or no longer."""
    _checked(_libc.prctl(_PR_SET_THP_DISABLE, ctypes.c_ulong(disabled), 0, 0, 0), "prctl(PR_SET_THP_DISABLE)")


class _Timex(ctypes.Structure):
    """`struct timex` of 64-bit Linux as far as a step needs it; the rest is for the kernel to fill."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("unused", ctypes.c_long * 4),
        ("status", ctypes.c_int),
        ("limits", ctypes.c_long * 3),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
        ("answer", ctypes.c_long * 16),
    )


def step_clock(by_ns: int) -> None:
    """Step CLOCK_REALTIME by so much, negative for back."""
    seconds, nanoseconds = divmod(by_ns, _SECOND_NS)
    timex = _Timex(modes=_ADJ_SETOFFSET | _ADJ_NANO, seconds=seconds, nanoseconds=nanoseconds)
    _checked(_libc.clock_adjtime(_CLOCK_REALTIME, ctypes.byref(timex)), "clock_adjtime(ADJ_SETOFFSET)")
