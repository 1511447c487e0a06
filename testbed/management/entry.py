"""What a ledger's rows mean: where a reservation stands, what it wants, and every way in which the books refuse.

    offered -> prepared -> committed -> released
       |           |          | ^
       |           |          v |
       |           |        yielded, to one that replaces it
       |           |            |
       +-----------+------------+----> expired, when a lease ends
       +-----------+-----------------> aborted

Values only; who moves a reservation is `testbed.management.books`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from testbed.errors import ReservationError


class State(StrEnum):
    """Where a reservation stands; PREPARED, COMMITTED and YIELDED hold capacity.

    A reservation yields to one that replaces it and is committed. It comes back if that one is given back first, so a
    renegotiation that fails in another domain costs nothing; it is released when the other is firm everywhere.
    """

    OFFERED = "offered"
    PREPARED = "prepared"
    COMMITTED = "committed"
    YIELDED = "yielded"
    RELEASED = "released"
    ABORTED = "aborted"
    EXPIRED = "expired"


HOLDING = (State.PREPARED, State.COMMITTED, State.YIELDED)
LIVE = (State.OFFERED, *HOLDING)
OVER = (State.RELEASED, State.ABORTED, State.EXPIRED)


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
