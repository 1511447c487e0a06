"""Memory of a run in pages of the usual size.

numpy asks for huge pages for whatever is large, and a kernel thread (khugepaged) then collects small ones into huge
ones: in pieces of some five milliseconds which nothing interrupts on a kernel without preemption, a sender of real-time
priority no more than a switch. On two cores that made senders late in every other window of a busy run.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from testbed.emulation import syscalls


@contextmanager
def small_pages() -> Iterator[None]:
    """Keep huge pages from this process and from whatever it starts, until the block ends."""
    try:
        before = syscalls.huge_pages_disabled()
        syscalls.disable_huge_pages(True)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        yield  # a kernel that knows none
        return
    try:
        yield
    finally:
        syscalls.disable_huge_pages(before)
