"""The open ledger within one transaction: every move of a reservation, and what each move requires.

    prepare: offered -> prepared        commit: prepared -> committed, and the one replaced yields
    release, abort, expire: over, and what yielded comes back
    renew: the end of a lease

Whose transaction it is, and what is remembered of a call, is `testbed.management.ledger`'s.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from testbed.management.entry import (
    HOLDING,
    LIVE,
    CapacityError,
    Entry,
    ForeignReservationError,
    Request,
    ReusedRequestError,
    State,
    UnknownReservationError,
    Use,
    WrongStateError,
)
from testbed.management.schema import IN_HOLDING, IN_LIVE

REMEMBERED_S = 24 * 3600.0
"""How long the answer to a request id, and an entry that is over, are kept."""


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
        """Declare how much there is; of what is not named there is nothing any more.

        Raises:
            CapacityError: More is held than there is from now on.
        """
        # What is no longer sold stays in the table: offers that are still out refer to it, and are refused by it.
        for name, capacity in {**dict.fromkeys(self._counted(), 0), **capacities}.items():
            try:
                self._database.execute(
                    "INSERT INTO resource (name, capacity) VALUES (?, ?) "
                    "ON CONFLICT (name) DO UPDATE SET capacity = excluded.capacity",
                    (name, capacity),
                )
            except sqlite3.IntegrityError as error:
                held = self._counted()[name].held
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

        The one that it replaces yields, and goes on holding what it held until one of the two is released.

        Raises:
            UnknownReservationError, ForeignReservationError, WrongStateError: As `prepare`.
        """
        entry = self._own(reservation, owner)
        if entry.state is State.PREPARED:
            self._require_in_time(entry)
            if entry.replaces:
                self._require_replaceable(entry)
                self._end(entry.replaces, State.YIELDED)
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
        if entry.state not in {State.PREPARED, State.COMMITTED}:
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
        if entry.state in {State.COMMITTED, State.YIELDED}:
            raise WrongStateError(
                f"reservation {reservation}: found it {entry.state}, which cannot be aborted; release it"
            )
        if entry.state in LIVE:
            self._end(reservation, State.ABORTED)
        return self._own(reservation, owner)

    def release(self, reservation: str, owner: str) -> Entry:
        """Give back what holds something, or an offer; one that is over stays as it ended.

        Raises:
            UnknownReservationError, ForeignReservationError: Not one of the caller's.
        """
        entry = self._own(reservation, owner)
        if entry.state in LIVE:
            firm = entry.state in {State.COMMITTED, State.YIELDED}
            self._give_back(entry, State.RELEASED if firm else State.ABORTED)
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
        ended = self._where(f"state IN ({IN_LIVE}) AND expires_s < ?", self.now_s)
        for entry in ended:
            self._give_back(entry, State.EXPIRED)
        old_s = self.now_s - REMEMBERED_S
        self._database.execute(f"DELETE FROM reservation WHERE state NOT IN ({IN_LIVE}) AND expires_s < ?", (old_s,))  # noqa: S608
        self._database.execute("DELETE FROM request WHERE at_s < ?", (old_s,))
        return ended

    def entries(self, *states: State) -> list[Entry]:
        """Reservations in these states (all if none is named), in the order of their seats."""
        wanted = states or tuple(State)
        marks = ", ".join("?" * len(wanted))
        return self._where(f"state IN ({marks})", *(str(state) for state in wanted))

    def use(self) -> dict[str, Use]:
        """Every resource of which there is any."""
        return {name: one for name, one in self._counted().items() if one.capacity}

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

    def _counted(self) -> dict[str, Use]:
        rows = self._database.execute("SELECT name, capacity, held FROM resource ORDER BY name")
        return {name: Use(capacity, held) for name, capacity, held in rows}

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

    def _give_back(self, entry: Entry, over: State) -> None:
        """End a reservation; the one that yielded to it comes back, the one that it yielded to holds all it wanted."""
        self._end(entry.reservation, over)
        if entry.state is State.YIELDED:
            self._database.execute(
                "UPDATE share SET amount = wanted WHERE reservation IN "  # noqa: S608 - our own states
                f"(SELECT id FROM reservation WHERE replaces = ? AND state = '{State.COMMITTED}')",
                (entry.reservation,),
            )
        elif entry.state is State.COMMITTED and entry.replaces:
            self._database.execute(
                "UPDATE reservation SET state = ? WHERE id = ? AND state = ?",
                (State.COMMITTED, entry.replaces, State.YIELDED),
            )

    def _end(self, reservation: str, state: State) -> None:
        self._database.execute("UPDATE reservation SET state = ? WHERE id = ?", (state, reservation))

    def _free_seat(self) -> int:
        """The smallest number nobody sits on, so that numbers of classes and meters stay small."""
        if self._seats is None:
            rows = self._database.execute(f"SELECT number FROM reservation WHERE state IN ({IN_HOLDING})")  # noqa: S608
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
            f"SELECT id, tenant FROM reservation WHERE place = ? AND state IN ({IN_HOLDING}) AND id IS NOT ?",  # noqa: S608
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
        counted = self._counted()
        short = [
            f"{wanted} of {name} with {use.free} of {use.capacity} free"
            for name, wanted in entry.amounts.items()
            if wanted > (use := counted[name]).free
        ]
        return f"reservation {entry.reservation} of {entry.tenant}: wants {', '.join(short)}"
