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
