"""A federation of agents in this process, called without a network, of which some answer otherwise than they should."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from testbed.envelope.descriptor import Envelope
from testbed.envelope.keys import SigningKey
from testbed.envelope.store import EnvelopeStore, issue, verify
from testbed.envelope.trust import Root
from testbed.management.admission import Rule
from testbed.management.agent import Agent
from testbed.management.calls import AgentClient
from testbed.management.entry import Entry, State
from testbed.management.generated import management_pb2 as wire
from testbed.management.installer import Counts, Installer
from testbed.management.journal import Journal
from testbed.management.ledger import Ledger
from testbed.management.market import capacities
from testbed.management.orchestrator import Orchestrator
from testbed.management.sizing import PAUSE_S
from testbed.scenario.federation import Operator

from .federation_lab import BROKER, OPERATORS, SEGMENTS, address_of, make_root

Lie = Callable[[Any], Any]


class NoSwitch:
    """An installer that has nothing to install on."""

    counts = Counts()

    @contextmanager
    def alone(self) -> Iterator[None]:
        yield

    def follow(self, joining: Sequence[Entry] = ()) -> None: ...

    def look_after(self) -> None: ...


@dataclass
class AtHand:
    """An `AgentClient` of an agent in this process; what it answers to a call may be changed by a lie of that name."""

    agent: Agent
    lies: dict[str, Lie] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def _told(self, call: str, answer: Any) -> Any:
        self.calls.append(call)
        return self.lies[call](answer) if call in self.lies else answer

    def _id(self) -> str:
        return uuid.uuid4().hex

    def offer(self, demands: Sequence[wire.Demand]) -> Any:
        asked = wire.OfferRequest(request_id=self._id(), demands=demands)
        return self._told("offer", list(self.agent.offer(BROKER, asked).offers))

    def prepare(self, presented: Sequence[wire.Presented], lease_ms: int = 0) -> Any:
        asked = wire.PrepareRequest(request_id=self._id(), presented=presented, lease_ms=lease_ms)
        return self._told("prepare", list(self.agent.prepare(BROKER, asked).holdings))

    def _change(self, call: str, reservations: Sequence[str], lease_ms: int = 0) -> Any:
        asked = wire.ChangeRequest(request_id=self._id(), reservations=reservations, lease_ms=lease_ms)
        return self._told(call, list(getattr(self.agent, call)(BROKER, asked).holdings))

    def commit(self, reservations: Sequence[str], lease_ms: int = 0) -> Any:
        return self._change("commit", reservations, lease_ms)

    def release(self, reservations: Sequence[str]) -> Any:
        return self._change("release", reservations)

    def renew(self, reservations: Sequence[str], lease_ms: int) -> Any:
        return self._change("renew", reservations, lease_ms)

    def report(self) -> Any:
        return self._told("report", self.agent.report(BROKER, wire.ReportRequest()))


@dataclass
class Domains:
    """All agents, their keys and their root."""

    folder: Path
    root_key: SigningKey
    keys: dict[str, SigningKey]
    root: Root
    clients: Mapping[str, AtHand]

    @classmethod
    def of(cls, folder: Path, operators: Sequence[Operator] = OPERATORS, *, pause_s: float = PAUSE_S) -> Domains:
        keys = {one.name: SigningKey.generate() for one in operators}
        root_key = SigningKey.generate()
        root = make_root(root_key, keys)
        installer = cast(Installer, NoSwitch())
        clients = {
            one.name: AtHand(
                Agent(
                    operator=one,
                    key=keys[one.name],
                    root=root,
                    ledger=Ledger(folder / f"{one.name}.sqlite", capacities(one)),
                    installer=installer,
                    pause_s=pause_s,
                )
            )
            for one in operators
        }
        return cls(folder, root_key, keys, root, clients)

    def resigned(self, domain: str, change: Callable[[Envelope], Envelope]) -> Lie:
        """The domain's offers, each envelope changed and signed again by the domain."""

        def lie(offers: list[wire.Offered]) -> list[wire.Offered]:
            for offered in offers:
                now_s = self.clients[domain].agent.clock()
                promises = [verify(data, self.root.trust, now_s) for data in offered.envelopes]
                offered.envelopes[:] = [issue(change(one), [self.keys[domain]]) for one in promises]
            return offers

        return lie

    def rotate(self, domain: str) -> None:
        """Give a domain a new key, and everybody the root that says so."""
        key = self.keys[domain] = SigningKey.generate()
        changed = {domain: [key.public_key]}
        self.root = self.root.successor(
            self.root.rotated(not_after_s=self.root.not_after_s, domains=changed).sign([self.root_key])
        )
        for client in self.clients.values():
            client.agent.root = self.root
        self.clients[domain].agent.key = key

    @contextmanager
    def orchestrator(self) -> Iterator[Orchestrator]:
        """An orchestrator with the journal of the last one."""
        journal = Journal(self.folder / "journal.sqlite")
        clients = cast(Mapping[str, AgentClient], self.clients)
        try:
            yield Orchestrator(clients, SEGMENTS, Rule.STOCHASTIC, EnvelopeStore(self.root), journal, address_of)
        finally:
            journal.close()

    def holders(self, *states: State) -> dict[str, set[str]]:
        """Domain to the tenants that hold something there."""
        wanted = states or (State.PREPARED, State.COMMITTED, State.YIELDED)
        found = {
            name: {entry.tenant for entry in client.agent.ledger.entries(*wanted)}
            for name, client in self.clients.items()
        }
        return {name: tenants for name, tenants in found.items() if tenants}

    def close(self) -> None:
        for client in self.clients.values():
            client.agent.ledger.close()


def renamed(envelope: Envelope, **subject: Any) -> Envelope:
    return replace(envelope, subject=replace(envelope.subject, **subject))


def railed(envelope: Envelope, **guardrails: Any) -> Envelope:
    return replace(envelope, guardrails=replace(envelope.guardrails, **guardrails))
