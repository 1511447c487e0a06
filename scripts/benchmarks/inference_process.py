"""What the process of a server holds and has spent, as the kernel tells it."""

from __future__ import annotations

import os
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_WORKER, _WATCH = "event_engine", "lifeguard"
"""Names that gRPC gives to the threads of its pool, and to the one that watches over them."""


@dataclass(frozen=True)
class Held:
    """What a process holds.

    Attributes:
        memory_kb: Resident memory.
        descriptors: Open ones.
        threads: How many of each name.
    """

    memory_kb: int
    descriptors: int
    threads: Counter[str]

    @property
    def pool(self) -> int:
        """Threads of gRPC's pool."""
        return self.threads[_WORKER]

    @property
    def own(self) -> int:
        """All other threads but the one that watches over the pool: the process's own."""
        return self.threads.total() - self.pool - self.threads[_WATCH]


def held(pid: int) -> Held:
    """What a process holds now."""
    status = Path(f"/proc/{pid}/status").read_text()
    memory = int(re.findall(r"^VmRSS:\s*(\d+)", status, re.MULTILINE)[0])
    threads = Counter[str]()
    for name in Path(f"/proc/{pid}/task").glob("*/comm"):
        with suppress(OSError):  # a thread that has ended meanwhile
            threads[name.read_text().strip()] += 1
    return Held(memory, len(list(Path(f"/proc/{pid}/fd").iterdir())), threads)


def pool_reserve() -> int:
    """Threads that gRPC's pool always has: the machine's processors, at least 4 and at most 16.

    That is `PosixEventEngine` in gRPC's `src/core/lib/event_engine/posix_engine/posix_engine.cc`. Beyond them the pool
    starts one a second at most, and only while all are busy; one that has had nothing to do for 20 s ends
    (`src/core/lib/event_engine/thread_pool/work_stealing_thread_pool.cc`). It has no upper limit.
    """
    return min(max(os.sysconf("SC_NPROCESSORS_CONF"), 4), 16)


def busy_s(pid: int) -> float:
    """Processor time that a process has had."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
