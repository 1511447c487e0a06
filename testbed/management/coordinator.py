"""Two-phase commit of what domains offered: every one of them holds its part and then installs it, or none keeps any.

Every decision is in the journal before it is acted upon (`testbed.management.journal`), so that whatever dies in
between, `Coordinator.recover` finishes what was decided and undoes the rest; should it never run, leases end by
themselves. What is worth reserving is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from testbed.errors import ReservationError, TestbedError
from testbed.management.answers import not_held
from testbed.management.calls import AgentClient, UnreachableError
from testbed.management.detours import Setback, because_of
from testbed.management.entry import HOLDING, OVER, State
from testbed.management.generated import management_pb2 as wire
from testbed.management.journal import UNFINISHED, Journal, Phase, Transfer

PREPARED_MS = 30_000
COMMITTED_MS = 3_600_000


def unheard(_point: str) -> None:
    """Called at each named point; tests end the process there."""


@dataclass(frozen=True)
class Pending:
    """One tenant on its way.

    Attributes:
        transfer: What was offered for it.
        envelopes: Domain to what it signed.
    """

    transfer: Transfer
    envelopes: Mapping[str, tuple[bytes, ...]]


@dataclass(frozen=True)
class Coordinator:
    """Brings transfers to where every domain of theirs holds them, or to where none does.

    Attributes:
        clients: A connection to each domain's agent.
        journal: What must survive a crash.
        reached: Told each point that a transfer reaches.
    """

    clients: Mapping[str, AgentClient]
    journal: Journal
    reached: Callable[[str], None] = unheard

    def client(self, domain: str) -> AgentClient:
        """The connection to a domain that something is held in, perhaps since before a restart."""
        if domain not in self.clients:
            raise UnreachableError(f"domain {domain}: found no connection to it; give the orchestrator one")
        return self.clients[domain]

    def reserve(self, pending: Sequence[Pending]) -> tuple[list[Pending], dict[str, Setback]]:
        """Take what was offered through both phases.

        Returns:
            Whose parts every domain has committed, and tenant to what stood in the way of the others.
        """
        self.journal.begin([one.transfer for one in pending])
        self.reached("journalled")
        prepared, refused = self._prepare(pending)
        self.journal.move([one.transfer.transfer for one in prepared], Phase.COMMITTING)
        self.reached("decided")
        committed, lost = self._finish([one.transfer for one in prepared])
        held = {one.transfer for one in committed}
        return [one for one in prepared if one.transfer.transfer in held], refused | lost

    def renew(self, lease_ms: int = COMMITTED_MS) -> None:
        """Move the end of every lease that is held; every domain is asked, whatever another one says.

        Raises:
            EnvelopeError, ReservationError: What the first domain said that no longer holds one of them.
        """
        failures: list[TestbedError] = []
        for domain, reservations in _by_domain(self.journal.transfers(Phase.COMMITTED)).items():
            try:
                answers = self.client(domain).renew(reservations, lease_ms)
            except TestbedError as error:
                failures.append(error)
            else:
                failures += map(ReservationError, not_held(domain, reservations, answers, HOLDING).values())
        if failures:
            raise failures[0]

    def recover(self) -> None:
        """Finish what a crash interrupted: what was decided is committed, everything else is undone."""
        unfinished = self.journal.transfers(*UNFINISHED)
        self.undo([one for one in unfinished if one.phase is not Phase.COMMITTING])
        decided = [one for one in unfinished if one.phase is Phase.COMMITTING]
        self._finish(decided)

    def undo(self, transfers: Sequence[Transfer], *, strict: bool = False) -> None:
        """Give up whatever these hold or were offered, everywhere; what cannot be reached is left to `recover`."""
        if not transfers:
            return
        self.journal.move([one.transfer for one in transfers], Phase.UNDOING)
        self.reached("undoing")
        failures: dict[str, TestbedError] = {}
        for domain, reservations in _by_domain(transfers).items():
            try:
                answers = self.client(domain).release(reservations)
            except TestbedError as error:
                failures[domain] = error
            else:
                kept = not_held(domain, reservations, answers, OVER)
                if kept:
                    failures[domain] = ReservationError(kept.values())
            self.reached(f"released:{domain}")
        done = [one for one in transfers if failures.keys().isdisjoint(one.reservations)]
        self.journal.move([one.transfer for one in done], Phase.UNDONE)
        if failures and strict:
            raise next(iter(failures.values()))

    def _prepare(self, pending: Sequence[Pending]) -> tuple[list[Pending], dict[str, Setback]]:
        """Have every domain hold its part; a tenant that one of them refuses is given up in all of them."""
        refused: dict[str, Setback] = {}
        for domain in dict.fromkeys(name for one in pending for name in one.transfer.reservations):
            here = [
                one for one in pending if domain in one.transfer.reservations and one.transfer.tenant not in refused
            ]
            owners = {one.transfer.reservations[domain]: one.transfer.tenant for one in here}
            presented = [
                wire.Presented(reservation=one.transfer.reservations[domain], envelopes=one.envelopes[domain])
                for one in here
            ]
            try:
                answers = self.client(domain).prepare(presented, PREPARED_MS) if presented else []
            except TestbedError as error:
                # Without an answer nobody knows what the domain holds.
                setback = Setback(because_of(error), domain, answered=not isinstance(error, UnreachableError))
                refused |= dict.fromkeys(owners.values(), setback)
            else:
                missing = not_held(domain, owners, answers, (State.PREPARED,))
                refused |= {owners[reservation]: Setback(why, domain) for reservation, why in missing.items()}
            self.reached(f"prepared:{domain}")
        self.undo([one.transfer for one in pending if one.transfer.tenant in refused])
        return [one for one in pending if one.transfer.tenant not in refused], refused

    def _finish(self, decided: Sequence[Transfer]) -> tuple[list[Transfer], dict[str, Setback]]:
        """Have every domain install its part; a tenant that one of them cannot install is undone in all of them."""
        lost: dict[str, Setback] = {}
        for domain, reservations in _by_domain(decided).items():
            owners = {one.reservations[domain]: one.tenant for one in decided if domain in one.reservations}
            wanted = [reservation for reservation in reservations if owners[reservation] not in lost]
            failed = self._commit(domain, wanted)
            lost |= {owners[one]: Setback(why, domain, answered=False) for one, why in failed.items()}
            self.reached(f"committed:{domain}")
        self.undo([one for one in decided if one.tenant in lost])
        firm = [one for one in decided if one.tenant not in lost]
        # What is replaced has given way where both had a reservation, and is still to leave the other domains.
        replaced = {one.replaces for one in firm if one.replaces}
        leaving = [one for one in self.journal.transfers(Phase.COMMITTED) if one.transfer in replaced]
        self.journal.move(replaced, Phase.UNDOING)
        self.journal.move([one.transfer for one in firm], Phase.COMMITTED)
        self.reached("done")
        self.undo(leaving)
        return firm, lost

    def _commit(self, domain: str, reservations: Sequence[str]) -> dict[str, str]:
        """Commit together, and one by one where that fails; which failed and why."""
        if not reservations:
            return {}
        try:
            answers = self.client(domain).commit(reservations, COMMITTED_MS)
        except UnreachableError as error:
            return dict.fromkeys(reservations, str(error))
        except TestbedError as error:
            if len(reservations) == 1:
                return {reservations[0]: because_of(error)}
        else:
            return not_held(domain, reservations, answers, (State.COMMITTED,))
        return {one: why for single in reservations for one, why in self._commit(domain, [single]).items()}


def _by_domain(transfers: Sequence[Transfer]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in transfers:
        for domain, reservation in one.reservations.items():
            found.setdefault(domain, []).append(reservation)
    return found
