"""Named network namespaces: making one under the journal, and being inside one for a while.

A namespace belongs to the calling *thread*; threads and processes started inside it stay there. So whoever enters one
starts no threads that should be outside.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testbed.emulation import entries, syscalls
from testbed.emulation.journal import Journal
from testbed.errors import PreflightError

NAMES = Path("/run/netns")
_OURS = Path("/proc/thread-self/ns/net")


def of_process(pid: int) -> Path:
    """Path of the network namespace a process is in."""
    return Path(f"/proc/{pid}/ns/net")


def create(journal: Journal, prefix: str = "tlt-") -> Path:
    """Make the run's named namespace `<prefix><runid>`, with its loopback still down.

    Returns:
        Its path, as `ip netns` and `entered` know it.

    Raises:
        PreflightError: The host does not allow it.
    """
    path = NAMES / f"{prefix}{journal.runid}"
    failures: list[OSError] = []

    def make() -> None:
        # In a thread of its own: unshare moves the thread for good, and the namespace has an identity to put on
        # disk before it has a name on the host.
        try:
            syscalls.unshare_network()
            found = _OURS.stat()
            journal.record(entries.Namespace(str(path), found.st_dev, found.st_ino))
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444))
            syscalls.bind_mount(_OURS, path)
        except OSError as error:
            failures.append(error)

    try:
        NAMES.mkdir(exist_ok=True)
    except OSError as error:
        failures.append(error)
    else:
        maker = threading.Thread(target=make)
        maker.start()
        maker.join()
    if failures:
        raise PreflightError(
            f"network namespace {path.name} cannot be made: {failures[0]}; run as root, in a privileged container"
        ) from failures[0]
    return path


@contextmanager
def entered(path: Path) -> Iterator[None]:
    """Be in the network namespace at `path`, and back where the thread came from at the end."""
    origin = os.open(_OURS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.set_network(target)
        finally:
            os.close(target)
        try:
            yield
        finally:
            syscalls.set_network(origin)
    finally:
        os.close(origin)
