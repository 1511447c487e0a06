"""Which cores the parts of a run use, and before whom: so that what else runs on the host stays out of the result.

Every part that packets wait for gets a priority above whatever runs at the usual one, and, where there are enough
cores, cores that it shares with nothing that could hold it up. Priorities are those of the ordinary scheduler (nice),
which shares out the CPU whatever happens: no part can lock up the host. Only senders ask for a real-time priority,
sleep in all but microseconds of it, and are held to a part of a core by the kernel, which `require_limited` asks for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

from testbed.errors import PreflightError


class Role(StrEnum):
    """What a process is to a packet of the measured window."""

    DATAPATH = "datapath"
    CAPTURE = "capture"
    SENDER = "sender"
    SERVER = "server"
    TICKER = "ticker"


NICE: Mapping[Role, int] = {
    Role.DATAPATH: -20,
    # It stands for whatever has the highest priority.
    Role.TICKER: -20,
    Role.SENDER: -18,
    Role.SERVER: -16,
    Role.CAPTURE: -14,
}
"""Before whom each part runs. Captures have large buffers, so they may wait for all others."""

SPREAD = frozenset({Role.TICKER})
"""Parts whose threads take one of their cores each."""

LIMITS = Path("/proc/sys/kernel")
"""Where the kernel says how much of a core real-time processes may take."""

_ENOUGH = 4


@dataclass(frozen=True)
class Place:
    """Where a process may run, and before whom.

    Attributes:
        cores: Numbers of the cores.
        nice: From -20, before everybody, to 19.
    """

    cores: frozenset[int]
    nice: int


@dataclass(frozen=True)
class Placement:
    """A place for each role; for none by default, where everything runs like any other process."""

    places: Mapping[Role, Place] = field(default_factory=dict)

    @classmethod
    def on(cls, cores: Iterable[int]) -> Self:
        """Places on these cores.

        The datapath is one thread that is busy most of the time. From two cores on it has the last one, and senders,
        which come before it wherever they run, the others: left to itself the scheduler keeps both on one core for
        seconds while another idles. Whoever else there is uses all of two or three cores: who waited for its one core
        while another stood idle would be late by what isolation is there to avoid. From four on nobody else uses the
        datapath's; servers get half of the others, senders and captures the rest.
        """
        usable = sorted(cores)
        *rest, last = usable
        split = dict.fromkeys(Role, usable)
        if rest:
            split |= {Role.DATAPATH: [last], Role.SENDER: rest}
        if len(usable) >= _ENOUGH:
            half = len(rest) // 2
            split |= {Role.SENDER: rest[half:], Role.CAPTURE: rest[half:], Role.SERVER: rest[:half]}
        return cls({role: Place(frozenset(split[role]), NICE[role]) for role in Role})

    def __bool__(self) -> bool:
        return bool(self.places)

    def put(self, pid: int, role: Role | None) -> None:
        """Give a process that has just been started its place; whatever it starts itself inherits it.

        Raises:
            PermissionError: This user may not.
        """
        place = self.places.get(role) if role is not None else None
        if place is not None:
            os.sched_setaffinity(pid, place.cores)
            os.setpriority(os.PRIO_PROCESS, pid, place.nice)

    def differences(self, processes: Mapping[str, tuple[int, Role]]) -> tuple[str, ...]:
        """Whose threads are not all where they were put, a sentence each.

        Args:
            processes: Pid and role by name; those that have ended are in nobody's way.
        """
        return tuple(
            f"{name}: found {found}"
            for name, (pid, role) in processes.items()
            if role in self.places
            for found in sorted({*_elsewhere(_places_of_threads(pid), self.places[role], spread=role in SPREAD)})
        )


def require_limited(limits: Path = LIMITS) -> str:
    """Check that the kernel keeps a part of each core from real-time processes, whatever those do.

    Returns:
        What it leaves them, for a reader.

    Raises:
        PreflightError: It leaves them everything.
    """
    try:
        runtime_us, period_us = (int((limits / f"sched_rt_{name}_us").read_text()) for name in ("runtime", "period"))
    except FileNotFoundError:
        # Who cannot set the limit has the kernel's own.
        return "the kernel's own limit on real-time processes cannot be changed"
    if not 0 <= runtime_us < period_us:
        raise PreflightError(
            f"kernel.sched_rt_runtime_us: found {runtime_us}, expected less than kernel.sched_rt_period_us "
            f"({period_us}); senders are real-time processes, and nothing would keep a broken one from locking up its "
            f"core; run `sysctl -w kernel.sched_rt_runtime_us={95 * period_us // 100}`"
        )
    return f"real-time processes may take {runtime_us / period_us:.0%} of a core"


def _elsewhere(threads: Iterable[Place], place: Place, *, spread: bool) -> Iterator[str]:
    for found in threads:
        if found.nice != place.nice:
            yield f"nice {found.nice}, expected {place.nice}"
        if not (found.cores <= place.cores if spread else found.cores == place.cores):
            yield f"cores {_listed(found.cores)}, expected {_listed(place.cores)}"


def _listed(cores: Iterable[int]) -> str:
    return ",".join(map(str, sorted(cores)))


def _places_of_threads(pid: int) -> Iterator[Place]:
    try:
        threads = [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
    except FileNotFoundError:
        return
    for thread in threads:
        try:
            yield Place(frozenset(os.sched_getaffinity(thread)), os.getpriority(os.PRIO_PROCESS, thread))
        except ProcessLookupError:
            continue
