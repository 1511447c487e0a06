"""Keeps a domain's switches in step with its ledger: installs, reads back, repairs, and starts again where it stopped.

The program of the switches is a function of the ledger: everything committed, and nothing else. So there is one
operation, `follow`: hand the controller that program and let it read back. It installs a difference or none, whatever
was lost: a rule, a switch, the controller, or this process in the middle of an installation.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from controller.client import CallError, ControllerClient
from controller.program import DomainProgram, Meter, Queue, Rule
from testbed.errors import ReservationError
from testbed.management.entry import Entry, State
from testbed.management.ledger import Ledger
from testbed.management.sizing import class_minor

LOG = logging.getLogger("testbed.agent")


class ControllerError(ReservationError):
    """The controller did not answer, refused, or read back something else; what was there before is there again."""


@dataclass
class Counts:
    """What the repair loop has seen.

    Attributes:
        in_step: Whether the switches held what the ledger says when they were last looked at.
        repairs: Objects that had to be installed, changed or removed without anybody having asked.
        expired: Leases that ended.
        last_problem: The last thing that could not be done, or empty.
    """

    in_step: bool = False
    repairs: int = 0
    expired: int = 0
    last_problem: str = ""


@dataclass
class Installer:
    """The way from a domain's ledger to its controller.

    Attributes:
        ledger: The domain's ledger.
        socket: The controller's Unix socket.
        skeleton: The domain's switches and ports, without rules.
        counts: What was repaired.
    """

    ledger: Ledger
    socket: Path
    skeleton: DomainProgram
    counts: Counts = field(default_factory=Counts)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else installs meanwhile: the ledger's changes and the switches' happen in one order."""
        with self._lock:
            yield

    def program(self, joining: Sequence[Entry] = ()) -> DomainProgram:
        """Everything committed, and what is about to join, in place of what it replaces."""
        leaving = {entry.replaces for entry in joining} | {entry.reservation for entry in joining}
        staying = [e for e in self.ledger.entries(State.COMMITTED) if e.reservation not in leaving]
        return program_of(self.skeleton, [*staying, *joining])

    def follow(self, joining: Sequence[Entry] = ()) -> int:
        """Make the switches hold the program and read all of it back.

        Returns:
            Number of objects that were added, changed or removed.

        Raises:
            ControllerError: They do not; the controller has put the previous program back where it could.
        """
        with self.alone():
            try:
                # An installation compares before and reads back after, so it is its own verification.
                with ControllerClient(self.socket) as client:
                    done = client.install(self.program(joining))
            except CallError as error:
                raise ControllerError([f"domain {self.skeleton.domain}: {p}" for p in error.problems]) from error
        return _changed(done)

    def look_after(self) -> None:
        """One round: end leases that are over, then make the switches hold what the ledger says.

        Raises nothing for what controller or ledger do: what cannot be repaired now is said, and tried again in the
        next round.
        """
        with self.alone():
            try:
                gone = [entry for entry in self._expire() if entry.state is State.COMMITTED]
                changed = self.follow()
            except ReservationError as error:
                self._failed(str(error))
                return
            except sqlite3.Error as error:
                self._failed(
                    f"domain {self.skeleton.domain}: the ledger {self.ledger.path} cannot be used now ({error}); "
                    "is its disk full, or does another process hold it?"
                )
                return
            self.counts.in_step, self.counts.last_problem = True, ""
            if changed and not gone:
                self.counts.repairs += changed
                LOG.warning("domain %s: repaired %d objects", self.skeleton.domain, changed)

    def _expire(self) -> list[Entry]:
        with self.ledger.transaction("expire") as books:
            ended = books.expire()
        held = [entry for entry in ended if entry.state is not State.OFFERED]
        self.counts.expired += len(held)
        for entry in held:
            LOG.warning("lease of %s (%s) ended; it was %s", entry.reservation, entry.tenant, entry.state)
        return held

    def _failed(self, problem: str) -> None:
        if problem != self.counts.last_problem:
            LOG.error("%s", problem)
        self.counts.in_step, self.counts.last_problem = False, problem


class Keeper(threading.Thread):
    """Looks after a domain every now and then until it is told to stop."""

    def __init__(self, look_after: Callable[[], None], every_s: float) -> None:
        super().__init__(name="keeper", daemon=True)
        self._look_after = look_after
        self._every_s = every_s
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """Rounds without end."""
        while not self._stop_asked.wait(self._every_s):
            self._look_after()

    def stop(self) -> None:
        """Finish the round under way and end."""
        self._stop_asked.set()
        self.join()


def program_of(skeleton: DomainProgram, entries: Iterable[Entry]) -> DomainProgram:
    """The program that holds these reservations and no others."""
    rules = sorted((rule_of(entry) for entry in entries), key=lambda rule: rule.number)
    return replace(skeleton, rules=tuple(rules))


def body_of(rule: Rule, **more: Any) -> str:
    """What the ledger keeps of a reservation: its rule, whose seat is not known yet, and what its maker adds."""
    return json.dumps({"rule": asdict(rule), **more}, separators=(",", ":"))


def rule_of(entry: Entry) -> Rule:
    """The rule of a reservation, in its seat."""
    kept = json.loads(entry.body)["rule"]
    if entry.number is None:
        raise ReservationError(f"reservation {entry.reservation}: {entry.state} and without a seat, so without a rule")
    meter = None if kept["meter"] is None else Meter(**{**kept["meter"], "meter_id": entry.number})
    queue = Queue(**{**kept["queue"], "minor": class_minor(entry.number)})
    return Rule(**{**kept, "number": entry.number, "meter": meter, "queue": queue})


def _changed(done: dict[str, Any]) -> int:
    return sum(len(done[what]) for what in ("added", "changed", "removed"))
