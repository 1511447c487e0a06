"""One domain's ledger: what is offered, prepared, committed and over, in a file that survives the loss of its process.

    offered -> prepared -> committed -> released
       |           |            |
       +-----------+------------+----> expired, when a lease ends
       +-----------+-----------------> aborted

Every change is one SQLite transaction in a write-ahead log, flushed before it is answered, and the answer is stored in
it: a call repeated with the same request id gets the same answer and changes nothing. What is held of each resource is
counted by the database itself, in triggers below a CHECK, so that no caller and no number of concurrent writers can
hold more than there is. The ledger knows no switch, no signature and no caller's right to ask.
"""

from __future__ import annotations

import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from testbed.errors import ReservationError

BUSY_S = 30.0
"""How long a writer waits for the others."""

REMEMBERED_S = 24 * 3600.0
"""How long the answer to a request id, and an entry that is over, are kept."""


class State(StrEnum):
    """Where a reservation stands; PREPARED and COMMITTED hold capacity."""

    OFFERED = "offered"
    PREPARED = "prepared"
    COMMITTED = "committed"
    RELEASED = "released"
    ABORTED = "aborted"
    EXPIRED = "expired"


HOLDING = (State.PREPARED, State.COMMITTED)
LIVE = (State.OFFERED, *HOLDING)


class UnknownReservationError(ReservationError):
    """No such reservation in this ledger."""


class WrongStateError(ReservationError):
    """A reservation that is not where the call needs it."""


class ForeignReservationError(ReservationError):
    """A reservation of somebody else."""


class CapacityError(ReservationError):
    """More than is free."""


class ReusedRequestError(ReservationError):
    """A request id that stood for another request before."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One reservation.

    Attributes:
        reservation: Its id.
        tenant: For whom.
        owner: Who asked for it, and alone may go on with it.
        place: What identifies the tenant's traffic (its client's address); held by one reservation at a time.
        amounts: Wanted of each resource, integers above 0 in the resource's own unit.
        body: What is to be installed, and whatever else its maker needs to find again.
        expires_s: End of its lease, Unix time.
        replaces: Committed reservation whose place and capacity it takes over when it is committed.
        state: Where it stands.
        number: Its seat in the domain, 1 and up; None before it is prepared. A replacement sits where the other sat.
    """

    reservation: str
    tenant: str
    owner: str
    place: str
    amounts: Mapping[str, int]
    body: str
    expires_s: float
    replaces: str | None = None
    state: State = State.OFFERED
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """How much of a resource there is and how much of it is held."""

    capacity: int
    held: int

    @property
    def free(self) -> int:
        """What may still be held."""
        return self.capacity - self.held


@dataclass(frozen=True, slots=True)
class Request:
    """A call that changes the ledger.

    Attributes:
        request_id: Chosen by the caller; the same id means the same call again.
        call: Its name.
        owner: The caller.
        digest: Of its contents.
    """

    request_id: str
    call: str
    owner: str
    digest: bytes


_LIVE = ", ".join(f"'{state}'" for state in LIVE)
_HOLDING = ", ".join(f"'{state}'" for state in HOLDING)
_STATES = ", ".join(f"'{state}'" for state in State)
_SHARE_OF = "(SELECT amount FROM share WHERE reservation = NEW.id AND resource = name)"
_ITS_RESOURCES = "name IN (SELECT resource FROM share WHERE reservation = NEW.id)"
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS resource (
    name TEXT PRIMARY KEY,
    capacity INTEGER NOT NULL CHECK (capacity >= 0),
    held INTEGER NOT NULL DEFAULT 0,
    CONSTRAINT never_over_committed CHECK (held BETWEEN 0 AND capacity)
) STRICT;
CREATE TABLE IF NOT EXISTS reservation (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    owner TEXT NOT NULL,
    place TEXT NOT NULL,
    body TEXT NOT NULL,
    expires_s REAL NOT NULL,
    replaces TEXT,
    state TEXT NOT NULL CHECK (state IN ({_STATES})),
    number INTEGER CHECK (number > 0),
    CHECK (state NOT IN ({_HOLDING}) OR number IS NOT NULL)
) STRICT;
CREATE TABLE IF NOT EXISTS share (
    reservation TEXT NOT NULL REFERENCES reservation ON DELETE CASCADE,
    resource TEXT NOT NULL REFERENCES resource,
    wanted INTEGER NOT NULL CHECK (wanted > 0),
    amount INTEGER NOT NULL CHECK (amount >= 0),
    PRIMARY KEY (reservation, resource)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS request (
    id TEXT PRIMARY KEY, call TEXT NOT NULL, owner TEXT NOT NULL, digest BLOB NOT NULL, answer BLOB NOT NULL,
    at_s REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS reservation_by_state ON reservation (state, expires_s);
CREATE INDEX IF NOT EXISTS reservation_by_place ON reservation (place);
CREATE UNIQUE INDEX IF NOT EXISTS one_in_a_seat ON reservation (number) WHERE state = '{State.COMMITTED}';
CREATE UNIQUE INDEX IF NOT EXISTS one_in_a_place ON reservation (place) WHERE state = '{State.COMMITTED}';
CREATE TRIGGER IF NOT EXISTS takes AFTER UPDATE OF state ON reservation
WHEN NEW.state IN ({_HOLDING}) AND OLD.state NOT IN ({_HOLDING})
BEGIN UPDATE resource SET held = held + {_SHARE_OF} WHERE {_ITS_RESOURCES}; END;
CREATE TRIGGER IF NOT EXISTS gives_back AFTER UPDATE OF state ON reservation
WHEN OLD.state IN ({_HOLDING}) AND NEW.state NOT IN ({_HOLDING})
BEGIN UPDATE resource SET held = held - {_SHARE_OF} WHERE {_ITS_RESOURCES}; END;
CREATE TRIGGER IF NOT EXISTS takes_the_rest AFTER UPDATE OF amount ON share
WHEN (SELECT state FROM reservation WHERE id = NEW.reservation) IN ({_HOLDING})
BEGIN UPDATE resource SET held = held + NEW.amount - OLD.amount WHERE name = NEW.resource; END;
"""  # noqa: S608


def _nothing(_point: str) -> None:
    """Called at each named point of a transaction; tests end the process there."""


@dataclass
class Ledger:
    """A domain's ledger; may be shared between threads, and its file between processes.

    Attributes:
        path: The database file, made when it is missing.
        capacities: How much there is of each resource; less than is held is refused.
        clock: Unix time in seconds.
        reached: Told each point that a transaction reaches: `begun`, `written`, `durable`, after the call's name.
    """

    path: Path
    capacities: Mapping[str, int]
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
            for statement in _statements(_SCHEMA):
                self._database.execute(statement)
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
        """Every resource."""
        with self._lock:
            return Books(self._database, self.clock()).use()


class Books:
    """The open ledger within one transaction.

    Args:
        database: The connection, in a transaction unless nothing is to be changed.
        now_s: Unix time of everything that happens in it.
    """

    def __init__(self, database: sqlite3.Connection, now_s: float) -> None:
        self._database = database
        self._seats: Iterator[int] | None = None
        self.now_s = now_s

    @contextmanager
    def undoable(self) -> Iterator[None]:
        """What happens inside is undone if it fails, and what happened before stays."""
        self._database.execute("SAVEPOINT step")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK TO step")
            raise
        finally:
            self._database.execute("RELEASE step")

    def set_capacities(self, capacities: Mapping[str, int]) -> None:
        """Declare how much there is.

        Raises:
            CapacityError: More is held than there is from now on.
        """
        for name, capacity in capacities.items():
            try:
                self._database.execute(
                    "INSERT INTO resource (name, capacity) VALUES (?, ?) "
                    "ON CONFLICT (name) DO UPDATE SET capacity = excluded.capacity",
                    (name, capacity),
                )
            except sqlite3.IntegrityError as error:
                held = self.use()[name].held
                raise CapacityError(
                    f"{name}: found a capacity of {capacity} with {held} held; release reservations before lowering it"
                ) from error

    def next(self, counter: str) -> int:
        """1, 2, 3 and so on, never twice, not even after a restart."""
        (value,) = self._database.execute(
            "INSERT INTO counter VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value",
            (counter,),
        ).fetchone()
        return int(value)

    def offer(self, entries: Sequence[Entry]) -> None:
        """Write offers down; they hold nothing."""
        self._database.executemany(
            "INSERT INTO reservation (id, tenant, owner, place, body, expires_s, replaces, state) "  # noqa: S608
            f"VALUES (?, ?, ?, ?, ?, ?, ?, '{State.OFFERED}')",
            [(e.reservation, e.tenant, e.owner, e.place, e.body, e.expires_s, e.replaces) for e in entries],
        )
        self._database.executemany(
            "INSERT INTO share (reservation, resource, wanted, amount) VALUES (?, ?, ?, ?)",
            [(e.reservation, name, amount, amount) for e in entries for name, amount in e.amounts.items()],
        )

    def prepare(self, reservation: str, owner: str, expires_s: float) -> Entry:
        """Hold what was offered, in a seat; again for one that is prepared moves the end of its lease.

        Raises:
            UnknownReservationError, ForeignReservationError: Not one of the caller's.
            WrongStateError: It is over, or committed, or the one it replaces is no longer committed.
            CapacityError: More than is free, or another tenant has its place.
        """
        entry = self._own(reservation, owner)
        if entry.state is State.PREPARED:
            self._database.execute("UPDATE reservation SET expires_s = ? WHERE id = ?", (expires_s, reservation))
            return self._own(reservation, owner)
        if entry.state is not State.OFFERED:
            raise WrongStateError(f"reservation {reservation}: found it {entry.state}, expected offered; ask again")
        if entry.expires_s < self.now_s:
            raise WrongStateError(
                f"reservation {reservation}: the offer ended {self.now_s - entry.expires_s:.0f} s ago"
            )
        number = self._take_over(entry) if entry.replaces else self._free_seat()
        self._require_place(entry)
        try:
            self._database.execute(
                f"UPDATE reservation SET number = ?, state = '{State.PREPARED}', expires_s = ? WHERE id = ?",  # noqa: S608
                (number, expires_s, reservation),
            )
        except sqlite3.IntegrityError as error:
            raise CapacityError(self._shortage(entry)) from error
        return self._own(reservation, owner)

    def commit(self, reservation: str, owner: str, expires_s: float) -> Entry:
        """Make a prepared reservation firm; again for one that is committed changes nothing but its lease.

        Raises:
            UnknownReservationError, ForeignReservationError, WrongStateError: As `prepare`.
        """
        entry = self._own(reservation, owner)
        if entry.state is State.PREPARED:
            self._require_in_time(entry)
            if entry.replaces:
                self._require_replaceable(entry)
                self._end(entry.replaces, State.RELEASED)
                self._database.execute("UPDATE share SET amount = wanted WHERE reservation = ?", (reservation,))
        elif entry.state is not State.COMMITTED:
            raise WrongStateError(f"reservation {reservation}: found it {entry.state}, expected prepared; ask again")
        self._database.execute(
            f"UPDATE reservation SET state = '{State.COMMITTED}', expires_s = ? WHERE id = ?",  # noqa: S608
            (expires_s, reservation),
        )
        return self._own(reservation, owner)

    def state_of(self, reservation: str, owner: str) -> State:
        """Where one of the caller's reservations stands; raises as `abort` does."""
        return self._own(reservation, owner).state

    def require_committable(self, reservation: str, owner: str) -> Entry:
        """A reservation that `commit` would take now; raises as it does."""
        entry = self._own(reservation, owner)
        if entry.state not in HOLDING:
            raise WrongStateError(f"reservation {reservation}: found it {entry.state}, expected prepared; ask again")
        if entry.state is State.PREPARED:
            self._require_in_time(entry)
            if entry.replaces:
                self._require_replaceable(entry)
        return entry

    def abort(self, reservation: str, owner: str) -> Entry:
        """Give up an offer or what is prepared; one that is over stays as it ended.

        Raises:
            UnknownReservationError, ForeignReservationError: Not one of the caller's.
            WrongStateError: It is committed, and has to be released.
        """
        entry = self._own(reservation, owner)
        if entry.state is State.COMMITTED:
            raise WrongStateError(f"reservation {reservation}: found it committed, which cannot be aborted; release it")
        if entry.state in LIVE:
            self._end(reservation, State.ABORTED)
        return self._own(reservation, owner)

    def release(self, reservation: str, owner: str) -> Entry:
        """Give back what is committed or prepared; one that is over stays as it ended.

        Raises:
            UnknownReservationError, ForeignReservationError: Not one of the caller's.
        """
        entry = self._own(reservation, owner)
        if entry.state in LIVE:
            self._end(reservation, State.RELEASED if entry.state is State.COMMITTED else State.ABORTED)
        return self._own(reservation, owner)

    def renew(self, reservation: str, owner: str, expires_s: float) -> Entry:
        """Move the end of a lease.

        Raises:
            UnknownReservationError, ForeignReservationError: Not one of the caller's.
            WrongStateError: It holds nothing.
        """
        entry = self._own(reservation, owner)
        if entry.state not in HOLDING or entry.expires_s < self.now_s:
            raise WrongStateError(f"reservation {reservation}: found it {entry.state} or ended; nothing to renew")
        self._database.execute("UPDATE reservation SET expires_s = ? WHERE id = ?", (expires_s, reservation))
        return self._own(reservation, owner)

    def expire(self) -> list[Entry]:
        """End every lease that is over, forget what has long been over, and say what expired, as it was."""
        ended = self._where(f"state IN ({_LIVE}) AND expires_s < ?", self.now_s)
        for entry in ended:
            self._end(entry.reservation, State.EXPIRED)
        old_s = self.now_s - REMEMBERED_S
        self._database.execute(f"DELETE FROM reservation WHERE state NOT IN ({_LIVE}) AND expires_s < ?", (old_s,))  # noqa: S608
        self._database.execute("DELETE FROM request WHERE at_s < ?", (old_s,))
        return ended

    def entries(self, *states: State) -> list[Entry]:
        """Reservations in these states (all if none is named), in the order of their seats."""
        wanted = states or tuple(State)
        marks = ", ".join("?" * len(wanted))
        return self._where(f"state IN ({marks})", *(str(state) for state in wanted))

    def use(self) -> dict[str, Use]:
        """Every resource."""
        rows = self._database.execute("SELECT name, capacity, held FROM resource ORDER BY name")
        return {name: Use(capacity, held) for name, capacity, held in rows}

    def answered(self, request: Request) -> bytes | None:
        """The answer to this request if it was answered before; raises `ReusedRequestError`."""
        row = self._database.execute(
            "SELECT call, owner, digest, answer FROM request WHERE id = ?", (request.request_id,)
        ).fetchone()
        if row is None:
            return None
        if row[:3] != (request.call, request.owner, request.digest):
            raise ReusedRequestError(
                f"request id {request.request_id}: stood for another {row[0]} before; choose a new id for a new request"
            )
        return bytes(row[3])

    def remember(self, request: Request, answer: bytes) -> None:
        """Keep the answer to a request."""
        self._database.execute(
            "INSERT INTO request VALUES (?, ?, ?, ?, ?, ?)",
            (request.request_id, request.call, request.owner, request.digest, answer, self.now_s),
        )

    def _own(self, reservation: str, owner: str) -> Entry:
        found = self._where("id = ?", reservation)
        if not found:
            raise UnknownReservationError(f"reservation {reservation}: unknown here; ask for an offer first")
        if found[0].owner != owner:
            raise ForeignReservationError(f"reservation {reservation}: belongs to {found[0].owner}, not to {owner}")
        return found[0]

    def _where(self, condition: str, *values: object) -> list[Entry]:
        shares: dict[str, dict[str, int]] = {}
        rows = self._database.execute(
            "SELECT id, tenant, owner, place, body, expires_s, replaces, state, number FROM reservation "  # noqa: S608
            f"WHERE {condition} ORDER BY number, id",
            values,
        ).fetchall()
        for reservation, resource, wanted in self._database.execute(
            "SELECT reservation, resource, wanted FROM share WHERE reservation IN "  # noqa: S608 - our own conditions
            f"(SELECT id FROM reservation WHERE {condition})",
            values,
        ):
            shares.setdefault(reservation, {})[resource] = wanted
        return [
            Entry(id_, tenant, owner, place, shares.get(id_, {}), body, expires_s, replaces, State(state), number)
            for id_, tenant, owner, place, body, expires_s, replaces, state, number in rows
        ]

    def _end(self, reservation: str, state: State) -> None:
        self._database.execute("UPDATE reservation SET state = ? WHERE id = ?", (state, reservation))

    def _free_seat(self) -> int:
        """The smallest number nobody sits on, so that numbers of classes and meters stay small."""
        if self._seats is None:
            rows = self._database.execute(f"SELECT number FROM reservation WHERE state IN ({_HOLDING})")  # noqa: S608
            taken = {number for (number,) in rows}
            self._seats = (number for number in itertools.count(1) if number not in taken)
        return next(self._seats)

    def _take_over(self, entry: Entry) -> int:
        """Sit where the replaced one sits, and hold only what is needed beyond it until it leaves."""
        replaced = self._require_replaceable(entry)
        for name, wanted in entry.amounts.items():
            beyond = max(0, wanted - replaced.amounts.get(name, 0))
            self._database.execute(
                "UPDATE share SET amount = ? WHERE reservation = ? AND resource = ?", (beyond, entry.reservation, name)
            )
        return replaced.number or self._free_seat()

    def _require_replaceable(self, entry: Entry) -> Entry:
        replaced = self._own(str(entry.replaces), entry.owner)
        same = (replaced.tenant, replaced.place) == (entry.tenant, entry.place)
        if replaced.state is not State.COMMITTED or not same:
            raise WrongStateError(
                f"reservation {entry.reservation}: is to replace {entry.replaces}, found that {replaced.state} for "
                f"{replaced.tenant} at {replaced.place}; expected it committed for {entry.tenant} at {entry.place}"
            )
        return replaced

    def _require_place(self, entry: Entry) -> None:
        row = self._database.execute(
            f"SELECT id, tenant FROM reservation WHERE place = ? AND state IN ({_HOLDING}) AND id IS NOT ?",  # noqa: S608
            (entry.place, entry.replaces),
        ).fetchone()
        if row is not None:
            raise CapacityError(
                f"reservation {entry.reservation}: {entry.place} is held by reservation {row[0]} of {row[1]}; release "
                "that one, or replace it"
            )

    def _require_in_time(self, entry: Entry) -> None:
        if entry.expires_s < self.now_s:
            raise WrongStateError(f"reservation {entry.reservation}: its lease ended; ask for a new offer")

    def _shortage(self, entry: Entry) -> str:
        short = [
            f"{wanted} of {name} with {use.free} of {use.capacity} free"
            for name, wanted in entry.amounts.items()
            if wanted > (use := self.use()[name]).free
        ]
        return f"reservation {entry.reservation} of {entry.tenant}: wants {', '.join(short)}"


def _statements(script: str) -> Iterable[str]:
    """The statements of a script one by one, so that they share a transaction (`executescript` would end it)."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
