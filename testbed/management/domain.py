"""One operator's side of the bargain: offer a signed envelope, prepare, commit, release.

A domain agent signs what it is able to enforce, holds capacity for what it offered, and lets its controller install
exactly what it signed. Committing means that the controller has installed the reservation *and read it back*. The agent
trusts signatures, including its own: nothing is installed from an envelope that does not verify. It knows no other
domain and no route; whoever calls it does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from controller.client import CallError
from controller.program import DomainProgram, Rule
from controller.report import sentence
from testbed.envelope.descriptor import Envelope, Validity
from testbed.envelope.keys import PublicKey, SigningKey
from testbed.envelope.store import issue, verify
from testbed.envelope.trust import Trust
from testbed.errors import EnvelopeError, ReservationError
from testbed.management.sealing import (
    Computation,
    Demand,
    best_effort_rule,
    compute_envelope,
    network_envelope,
    reserved_rule,
    shared_rule,
)
from testbed.management.sizing import PAUSE_S, ClassDemand, ReservedClass, design_classes, shared_class
from testbed.scenario.model import Domain

VALIDITY_S = 24 * 3600
"""An offer outlives any run and not much more."""

HOST_ALLOWANCE_CAP_S = 10e-3
"""The largest part of a latency that may be granted to the emulating host; offers before a calibration grant it all."""


class Controller(Protocol):
    """What an agent asks of its domain's controller; `controller.client.ControllerClient` is one."""

    def install(self, program: DomainProgram) -> Any:
        """Install the difference to what is installed and read it back; raises `CallError` if either fails."""

    def verify(self) -> Sequence[Mapping[str, str]]:
        """Differences between the program and what is read back: object, tenant, found, expected."""


@dataclass
class DomainAgent:
    """The agent of one domain, its keys and its ledger.

    Attributes:
        domain: What the domain is.
        controller: Who installs for it.
        skeleton: The domain's switches and ports, without rules.
        key: Signs the domain's envelopes.
        trust: Who may sign for which domain; the agent installs nothing that this does not accept.
        host_allowance_s: Part of every latency granted to the emulating host; a gate polices it.
        clock: Unix time in seconds.
        pause_s: How long the host may leave a queue unserved without its losing rate.
    """

    domain: Domain
    controller: Controller
    skeleton: DomainProgram
    key: SigningKey
    trust: Trust
    host_allowance_s: float
    clock: Callable[[], float] = time.time
    pause_s: float = PAUSE_S
    _version: int = 0
    _offered: dict[str, tuple[bytes, Demand, ReservedClass | None]] = field(default_factory=dict)
    _prepared: dict[str, Rule] = field(default_factory=dict)
    _committed: dict[str, Rule] = field(default_factory=dict)

    @property
    def public_key(self) -> PublicKey:
        """Verifies this domain's envelopes."""
        return self.key.public_key

    @property
    def program(self) -> DomainProgram:
        """What the controller is to have installed: everything committed."""
        rules = tuple(sorted(self._committed.values(), key=lambda rule: rule.number))
        return replace(self.skeleton, rules=rules)

    @property
    def reserved_bps(self) -> int:
        """Rate that is prepared or committed."""
        rules = {**self._committed, **self._prepared}
        return sum(rule.queue.rate_bps for rule in rules.values() if rule.meter is not None)

    def offer(self, demands: Sequence[Demand]) -> dict[str, bytes]:
        """Sign an envelope for every tenant that asks for a reservation.

        All demands of a domain are offered together: a reserved class's latency depends on the bursts of the others.

        Args:
            demands: Everything that is to share the domain's links.

        Returns:
            Tenant to signed envelope; best effort gets none.

        Raises:
            ReservationError: The reservations exceed the domain's links, or everybody shares one queue there.
        """
        reserved = [demand for demand in demands if demand.reservation is not None]
        if reserved and self.domain.shared_queue_bits is not None:
            raise ReservationError(
                f"domain {self.domain.name}: {', '.join(demand.tenant for demand in reserved)} asked for a reservation "
                "where all tenants share one queue; ask for none, or choose a domain with a queue for each tenant"
            )
        self._require_capacity(sum(demand.reservation.rate_bps for demand in reserved if demand.reservation))
        classes = design_classes(
            [ClassDemand(d.tenant, d.reservation.rate_bps, d.largest_packet_bits) for d in reserved if d.reservation],
            pause_s=self.pause_s,
        )
        self._version += 1
        envelopes: dict[str, bytes] = {}
        for demand in demands:
            shaped = classes.get(demand.tenant)
            if shaped is None:
                self._offered[demand.tenant] = (b"", demand, None)
                continue
            envelope = self._envelope(demand, shaped)
            envelopes[demand.tenant] = issue(envelope, [self.key])
            self._offered[demand.tenant] = (envelopes[demand.tenant], demand, shaped)
        return envelopes

    def serve(self, promised: Computation) -> bytes:
        """Sign for the domain's server what belongs to the latest offer.

        Raises:
            MalformedError: The tenant's meters let through what its share does not compute.
        """
        envelope = compute_envelope(self.domain.name, promised, version=self._version, validity=self._validity())
        return issue(envelope, [self.key])

    def prepare(self, tenant: str, envelope: bytes) -> None:
        """Hold what was offered.

        Args:
            tenant: Whose offer.
            envelope: The signed bytes as offered; empty for best effort.

        Raises:
            EnvelopeError: The envelope does not verify; the reason is named.
            ReservationError: No such offer, another one than the latest, or no capacity left.
        """
        _, demand, shaped = self._offered.get(tenant, (b"", None, None))
        if demand is None:
            raise ReservationError(f"domain {self.domain.name}: no offer for tenant {tenant}; ask for an offer first")
        if demand.reservation is None or shaped is None:
            self._prepared[tenant] = self._unreserved_rule(demand)
            return
        promise = verify(envelope, self.trust, self.clock())
        if promise.domain != self.domain.name or promise.subject.tenant != tenant:
            raise EnvelopeError(
                f"domain {self.domain.name}, tenant {tenant}: the envelope presented is of {promise.domain} for "
                f"{promise.subject.tenant}; present the one offered"
            )
        if envelope != self._offered[tenant][0]:
            raise ReservationError(
                f"domain {self.domain.name}, tenant {tenant}: offer {promise.version} is not the latest; ask again"
            )
        self._require_capacity(self.reserved_bps - self._reserved_by(tenant) + promise.guardrails.reserved_rate_bps)
        self._prepared[tenant] = reserved_rule(demand, promise.guardrails, shaped)

    def commit(self) -> None:
        """Install everything prepared and read it back.

        Raises:
            ReservationError: The controller failed or read back something else; what was prepared is dropped and what
                was committed before is installed again.
        """
        before = dict(self._committed)
        self._committed = {**before, **self._prepared}
        self._prepared = {}
        try:
            self._install()
        except ReservationError:
            self._committed = before
            self._install()
            raise

    def release(self) -> None:
        """Give back what all tenants hold and remove it from the switches."""
        self._prepared, self._committed = {}, {}
        self._install()

    def drift(self) -> tuple[str, ...]:
        """Differences between what was committed and what is on the switches now."""
        return tuple(f"domain {self.domain.name}: {sentence(found)}" for found in self.controller.verify())

    def _unreserved_rule(self, demand: Demand) -> Rule:
        if self.domain.shared_queue_bits is None:
            return best_effort_rule(self.domain, demand)
        largest_bits = max(asked.largest_packet_bits for _, asked, _ in self._offered.values())
        queue = shared_class(
            self.domain.link_rate_bps, largest_bits, self.domain.shared_queue_bits, pause_s=self.pause_s
        )
        return shared_rule(demand, queue)

    def _install(self) -> None:
        try:
            self.controller.install(self.program)
            differences = self.drift()
        except CallError as error:
            raise ReservationError([f"domain {self.domain.name}: {problem}" for problem in error.problems]) from error
        if differences:
            raise ReservationError(differences)

    def _require_capacity(self, wanted_bps: int) -> None:
        if wanted_bps > self.domain.link_rate_bps:
            raise ReservationError(
                f"domain {self.domain.name}: {wanted_bps} bit/s reserved on links of {self.domain.link_rate_bps}, "
                "a sum that HTB would not police; reserve less or raise the rate"
            )

    def _reserved_by(self, tenant: str) -> int:
        rule = self._prepared.get(tenant) or self._committed.get(tenant)
        return rule.queue.rate_bps if rule is not None and rule.meter is not None else 0

    def _envelope(self, demand: Demand, shaped: ReservedClass) -> Envelope:
        if demand.reservation is None:
            raise ReservationError(
                f"tenant {demand.tenant}: best effort is not promised anything, so nothing is signed"
            )
        return network_envelope(
            self.domain,
            demand,
            demand.reservation,
            shaped,
            host_allowance_s=self.host_allowance_s,
            version=self._version,
            validity=self._validity(),
        )

    def _validity(self) -> Validity:
        now = int(self.clock())
        return Validity(now, now + VALIDITY_S)
