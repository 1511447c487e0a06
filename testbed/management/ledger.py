"""One domain's ledger: what is offered, prepared, committed and over, in a file that survives the loss of its process.

Every change is one SQLite transaction in a write-ahead log, flushed before it is answered, and the answer is stored in
it: a call repeated with the same request id gets the same answer and changes nothing. The states are
`testbed.management.entry`'s, the moves between them `testbed.management.books`'. The ledger knows no switch, no
signature and no caller's right to ask.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from testbed.management.books import Books
from testbed.management.entry import Entry, Request, State, Use
from testbed.management.schema import statements

BUSY_S = 30.0
"""How long a writer waits for the others."""


def _nothing(_point: str) -> None:
    """Called at each named point of a transaction; tests end the process there."""


@dataclass
class Ledger:
    """A domain's ledger; may be shared between threads, and its file between processes.

    Attributes:
        path: The database file, made when it is missing.
        capacities: How much there is of each resource that is sold; less than is held is refused. None leaves it as it
            was, for who only reads.
        clock: Unix time in seconds.
        reached: Told each point that a transaction reaches: `begun`, `written`, `durable`, after the call's name.
    """

    path: Path
    capacities: Mapping[str, int] | None
    clock: Callable[[], float] = time.time
    reached: Callable[[str], None] = _nothing
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def __post_init__(self) -> None:
        self._database = sqlite3.connect(
            self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        self._database.execute("PRAGMA journal_mode = WAL")
        # FULL flushes the log at every commit: what was answered survives a power cut too, not just a kill.
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute("PRAGMA foreign_keys = ON")
        with self.transaction("open") as books:
            for statement in statements():
                self._database.execute(statement)
            if self.capacities is not None:
                books.set_capacities(self.capacities)

    def close(self) -> None:
        """Close the file; nothing is left to be written."""
        with self._lock:
            self._database.close()

    @contextmanager
    def transaction(self, call: str) -> Iterator[Books]:
        """All changes inside happen together, durably, or not at all, and one writer at a time."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self.reached(f"{call}:begun")
                yield Books(self._database, self.clock())
                self.reached(f"{call}:written")
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")
            self.reached(f"{call}:durable")

    def answered(self, request: Request) -> bytes | None:
        """The answer to this request if it was answered before.

        Raises:
            ReusedRequestError: The id stood for something else.
        """
        with self._lock:
            return Books(self._database, self.clock()).answered(request)

    def once(self, request: Request, act: Callable[[Books], bytes]) -> bytes:
        """Do what a request asks for and remember the answer, or give the answer remembered.

        Raises:
            ReusedRequestError: The id stood for something else.
        """
        with self.transaction(request.call) as books:
            known = books.answered(request)
            if known is not None:
                return known
            answer = act(books)
            books.remember(request, answer)
            return answer

    def entries(self, *states: State) -> list[Entry]:
        """Reservations in these states (all if none is named), in the order of their seats."""
        with self._lock:
            return Books(self._database, self.clock()).entries(*states)

    def use(self) -> dict[str, Use]:
        """Every resource of which there is any."""
        with self._lock:
            return Books(self._database, self.clock()).use()
